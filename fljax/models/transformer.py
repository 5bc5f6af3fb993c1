"""Transformers (Vaswani et al., NeurIPS 2017), as CoCoFL's reference has them.

Six encoder layers of width 128 with two heads, norms after the sums, sinusoids for the
positions. 8 blocks: embedding, the six layers, a linear classifier. Embedding and
classifier stay in float32 when frozen. `transformer` classifies a text by the largest
value of each channel over its tokens; `char_transformer` predicts the next character.
With `positions` both predict the next token at each position, and none attends to a
later one (Radford et al., "Improving language understanding by generative
pre-training", 2018).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from fljax import types
from fljax.nn import attention, layers, lone_norms, network, signals

FEATURES = 128
LAYERS = 6
HEADS = 2
DROPOUT = 0.05


def sinusoids(positions: int, features: int) -> np.ndarray:
    """Computes the encoding of positions [positions, features] float32.

    Vaswani et al., section 3.5: sines in even channels, cosines in odd ones.
    """
    rate = 10_000.0 ** (-2 * (np.arange(features) // 2) / features)
    angles = np.arange(positions)[:, None] * rate
    odd = np.arange(features) % 2 == 1
    return np.where(odd, np.cos(angles), np.sin(angles)).astype(np.float32)


class Embedding(nn.Module):
    """A learned vector for every token, plus that of its position.

    Positions count from 1; padding has position 0. The first position is never taken
    for padding, so that an empty text has something to attend to.

    Attributes:
      vocabulary: number of token ids; 0 is padding.
      features: width of the vectors.
      appended: tokens of padding that are put behind the text.
    """

    vocabulary: int
    features: int = FEATURES
    appended: int = 0

    @nn.compact
    def __call__(self, x: types.Array, call: layers.Call) -> signals.Padded:
        """Maps token ids [B, L] to [B, L + appended, features]; float or Ranged."""
        trained = call.role is types.Role.TRAINED
        if trained:
            table = self._table()
        else:
            table = self.variable("frozen", "table", self._table).value
        tokens = jnp.pad(x.astype(jnp.int32), ((0, 0), (0, self.appended)))
        length = tokens.shape[1]
        valid = (tokens != 0).at[:, 0].set(True)
        places = jnp.where(valid, jnp.arange(length) + 1, 0)
        y = table[tokens] + jnp.asarray(sinusoids(length + 1, self.features))[places]
        values = length * self.features
        layers.count(
            self,
            kept=length,
            values=values,
            after_values=values,
            before_values=values,
        )
        return signals.Padded(y if trained else signals.Ranged(y, None), valid)

    def _table(self) -> types.Array:
        shape = (self.vocabulary, self.features)
        return self.param("embedding", nn.initializers.normal(1.0), shape)


class EncoderLayer(nn.Module):
    """Self-attention and two dense layers, each with a sum and a norm after it.

    Attributes:
      inner: width between the dense layers.
      heads: of the attention.
      dropout: rate, of what either part adds.
      causal: no position attends to a later one.
    """

    inner: int = FEATURES
    heads: int = HEADS
    dropout: float = DROPOUT
    causal: bool = False

    @nn.compact
    def __call__(self, x: signals.Padded, call: layers.Call) -> signals.Padded:
        """Maps [B, L, C] to the same shape; float, QArray or Ranged by role."""
        channels = x.value.shape[-1]

        def dense(name, signal, features=channels, relu=False):
            return layers.dense(features, relu=relu, name=name)(signal, call)

        def joined(index, residual, h):
            h = layers.Dropout(self.dropout, name=f"dropout{index}")(h, call)
            h = layers.Add(name=f"add{index}")(residual, h, call)
            h = lone_norms.LayerNorm(name=f"norm{index}")(h, call)
            # Several layers read it: see `programs.compiler_options`.
            return layers.on_values(lax.optimization_barrier, h)

        q, k, v = (dense(name, x.value) for name in ("query", "key", "value"))
        attend = attention.Attention(self.heads, self.causal, name="attention")
        h = dense("output", attend(q, k, v, x.valid, call))
        middle = joined(1, x.value, h)
        h = dense("widen", middle, self.inner, relu=True)
        y = joined(2, middle, dense("narrow", h))
        # Scale and bias of both norms, which the reference leaves trainable.
        layers.count(self, after=4 * channels)
        return signals.Padded(y, x.valid)


class Classifier(nn.Module):
    """A linear layer on one vector for each sequence, or on each of its vectors.

    It is in float32 in every role.

    Attributes:
      num_classes: width of the logits.
      last: the vector is that of the last position; else the largest value of each
        channel over the positions that are no padding.
      reference_quirks: of the largest values, the logits go through a softmax (and
        again in the loss); of the last position, class c gets what the last class has
        at position c, as a slip of two axes has it.
      positions: logits for each position, [B, L, num_classes]; without quirks.
    """

    num_classes: int
    last: bool = False
    reference_quirks: bool = False
    positions: bool = False

    @nn.compact
    def __call__(self, x: signals.Padded, call: layers.Call) -> types.Array:
        """Maps [B, L, C] to logits [B, num_classes], or one for each position."""
        h = signals.to_float(x.value)
        if self.positions:
            dense = layers.dense(self.num_classes, quantized=False, name="dense")
            return signals.to_float(dense(h, call))
        if not self.last:
            h = jnp.max(jnp.where(x.valid[..., None], h, -jnp.inf), axis=1)
        elif not self.reference_quirks:
            h = h[:, -1]
        dense = layers.dense(self.num_classes, quantized=False, name="dense")
        logits = signals.to_float(dense(h, call))
        if not self.reference_quirks:
            return logits
        return logits[:, :, -1] if self.last else jax.nn.softmax(logits)


def transformer(
    input_shape: tuple[int, ...] = (512,),
    num_classes: int = 2,
    tracked: bool = False,
    vocabulary: int = 16_000,
    reference_quirks: bool = False,
    positions: bool = False,
) -> network.Network:
    """Makes the network that classifies a text.

    Args:
      input_shape: [length] of token ids.
      num_classes: width of the logits.
      tracked: has no effect, no norm of it keeps statistics.
      vocabulary: number of token ids.
      reference_quirks: see `Classifier`.
      positions: it predicts the token that comes next, at every position.

    Returns:
      A network of 8 blocks.

    Raises:
      ValueError: input_shape is not that of token ids.
    """
    del tracked
    network.check_tokens("transformer", input_shape)
    if positions:
        return _causal("transformer", input_shape, num_classes, vocabulary)
    embedding = Embedding(vocabulary)
    head = Classifier(num_classes, reference_quirks=reference_quirks)
    return _make("transformer", embedding, head, input_shape, num_classes)


def char_transformer(
    input_shape: tuple[int, ...] = (80,),
    num_classes: int = 81,
    tracked: bool = False,
    vocabulary: int = 81,
    reference_quirks: bool = False,
    positions: bool = False,
) -> network.Network:
    """Makes the network that predicts the next character.

    A token of padding behind the text is where the prediction is read; with `positions`
    there is none. Arguments as of `transformer`.

    Raises:
      ValueError: as of `transformer`, or the reference's slip does not fit: it needs
        as many classes as positions.
    """
    del tracked
    network.check_tokens("char_transformer", input_shape)
    if positions:
        return _causal("char_transformer", input_shape, num_classes, vocabulary)
    if reference_quirks and num_classes != input_shape[0] + 1:
        raise ValueError(
            f"network 'char_transformer' with reference_quirks expects as many classes "
            f"as characters and one more, got {num_classes} classes of examples of "
            f"shape {list(input_shape)}"
        )
    embedding = Embedding(vocabulary, appended=1)
    head = Classifier(num_classes, last=True, reference_quirks=reference_quirks)
    return _make("char_transformer", embedding, head, input_shape, num_classes)


def _causal(name, input_shape, num_classes, vocabulary):
    head = Classifier(num_classes, positions=True)
    embedding = Embedding(vocabulary)
    return _make(name, embedding, head, input_shape, num_classes, causal=True)


def _make(name, embedding: Embedding, head, input_shape, num_classes, causal=False):
    encoder = (EncoderLayer(causal=causal) for _ in range(LAYERS))
    blocks, vocabulary = (embedding, *encoder, head), embedding.vocabulary
    return network.Network(
        name, blocks, input_shape, num_classes, vocabulary=vocabulary
    )
