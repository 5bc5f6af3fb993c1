"""The network as a program of `jax.export`, which runs without this library."""

from __future__ import annotations

import jax

from fljax.exporting import model as models

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def exported(model: models.Model) -> bytes:
    """Serializes inputs -> outputs, for any number of examples and every backend.

    `jax.export.deserialize(bytearray(content)).call(x)` runs it.

    Args:
      model: the network.

    Returns:
      What a file holds.
    """
    (number,) = jax.export.symbolic_shape("batch")
    shape = (number, *model.net.input_shape)
    function = jax.jit(lambda x: models.outputs(model, x))
    made = jax.export.export(function, platforms=PLATFORMS)
    return bytes(made(jax.ShapeDtypeStruct(shape, model.dtype)).serialize())
