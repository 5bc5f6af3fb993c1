"""What is exported: a network, its state, and what its inputs are divided by."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fljax import experiment, types
from fljax.engine import client
from fljax.exporting import products
from fljax.nn import layers, network, signals, slicing

EXAMPLES = 256  # by which what nobody observed is quantized


class Model(NamedTuple):
    """A trained network that takes an example as the data have it.

    Attributes:
      net: the network.
      blocks: its state.
      mean: [C] what is subtracted from inputs.
      std: [C] what they are divided by.
      examples: [n, *input_shape] of training, as the data have them: images in uint8,
        tokens in an integer dtype, or floats.
    """

    net: network.Network
    blocks: tuple[dict, ...]
    mean: types.ArrayLike
    std: types.ArrayLike
    examples: types.ArrayLike

    @property
    def dtype(self) -> Any:
        """Gives the dtype of inputs: uint8, int32 of tokens, or float32."""
        given = jnp.asarray(self.examples[:1]).dtype
        if given == jnp.uint8:
            return np.uint8
        return np.int32 if jnp.issubdtype(given, jnp.integer) else np.float32

    def normalized(self, x: types.Array) -> types.Array:
        """Brings inputs [B, *input_shape] to what the network was trained on."""
        data = client.Data(x, x, jnp.asarray(self.mean), jnp.asarray(self.std))
        everything: Any = slice(None)
        return client.inputs(data, everything)


def of(result: experiment.Result) -> Model:
    """Takes the trained network of a run: that which is evaluated.

    Args:
      result: of `fljax.run` or `fljax.restore`.

    Returns:
      The network, at the largest width that devices train.

    Raises:
      ValueError: it is no result, or it has no state.
    """
    if not isinstance(result, experiment.Result):
        kind = type(result).__name__
        raise ValueError(f"expected what fljax.run or fljax.restore gave, got a {kind}")
    if result.state is None:
        raise ValueError("expected a run with a checkpoint, got one whose are removed")
    made = experiment.algorithm(result.experiment).at(result.state)
    if made.seams.withheld is not None:
        raise ValueError(
            f"expected a network that the server has whole, got one of which part "
            f"stays with each client by {made.seams.withheld}"
        )
    fed = made.federation or result.experiment.federation
    net, blocks = fed.model.net, result.state.server.blocks
    if made.depth is not None:
        net, blocks = fed.model.upto(made.depth).net, blocks[: made.depth]
    if made.evaluated < 1:
        places = slicing.places(net, fed.model.cut(made.evaluated))
        net, blocks = fed.model.at(made.evaluated)[0], slicing.take(blocks, places)
    data = fed.population.data
    rows = np.linspace(0, len(data.x) - 1, min(EXAMPLES, len(data.x))).astype(int)
    return Model(net, jax.device_get(blocks), data.mean, data.std, data.x[rows])


def outputs(model: Model, x: types.Array) -> types.Array:
    """Computes the outputs of examples, each for itself, in float32.

    Norms go by running statistics, folded into kernels. Convolutions are XLA's own,
    which lower for every batch size and every backend.

    Args:
      model: the network.
      x: [B, *input_shape] of `model.dtype`.

    Returns:
      [B, ...], as the network's last block gives them.
    """
    net, call = model.net, layers.Call(running=True)
    blocks = jax.tree.map(jnp.asarray, model.blocks)
    with nn.intercept_methods(products.running):
        calls = [call] * net.num_blocks
        y, _ = network.run(net, blocks, model.normalized(x), calls)
    return signals.to_float(y)
