"""Logistic regression: one block, one dense layer."""

from __future__ import annotations

from flax import linen as nn

from fljax.nn import layers, network, signals, slicing


class Logistic(nn.Module):
    """A dense layer on the flattened example.

    Attributes:
      num_classes: width of the logits.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, ...] to logits [B, num_classes]."""
        x = signals.to_float(x)
        x = x.reshape(x.shape[0], -1)
        logits = layers.dense(self.num_classes, quantized=False, name="dense")(x, call)
        return signals.to_float(logits)

    def slice(self, at: slicing.Site) -> slicing.Slice:
        """Keeps all logits, of what enters."""
        return slicing.Slice(self, {"dense": (at.flattened(), None)}, None)


def logistic(
    input_shape: tuple[int, ...] = (28, 28, 1),
    num_classes: int = 10,
    tracked: bool = False,
) -> network.Network:
    """Makes the network; it has no norm, so `tracked` changes nothing."""
    del tracked
    return network.Network(
        "logistic", (Logistic(num_classes),), input_shape, num_classes
    )
