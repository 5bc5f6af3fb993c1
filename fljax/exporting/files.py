"""Writes a trained network in the format that a file's suffix names."""

from __future__ import annotations

import os
import pathlib

from fljax import experiment, plans
from fljax.exporting import model as models
from fljax.exporting import onnx_file, program
from fljax.runs import weights
from fljax.runtime import durable

INT8, ONNX, PROGRAM = ".int8.onnx", ".onnx", ".jax"
SUFFIXES = (weights.SAFETENSORS, weights.ORBAX, PROGRAM, ONNX, INT8)


def export(
    result: experiment.Result | models.Model,
    path: str | os.PathLike[str],
    *,
    plan: plans.Plan | None = None,
) -> pathlib.Path:
    """Exports a trained network: its parameters, or what computes it elsewhere.

    By suffix: `.safetensors`, the parameters, norms and ranges as tensors by name;
    `.orbax`, the same as a folder of orbax, Flax's checkpoints; `.jax`, the network as
    a program, which `jax.export.deserialize` reads; `.onnx`, the network in float32,
    for onnxruntime and others; `.int8.onnx`, the network in int8, for onnxruntime.

    Networks take examples as the data have them, and norms go by running statistics.

    >>> result = fljax.run(fljax.Config(rounds=20))  # doctest: +SKIP
    >>> export(result, "trained.int8.onnx")  # doctest: +SKIP

    Args:
      result: of `fljax.run` or `fljax.restore`.
      path: of the file; what is there is replaced.
      plan: of `.int8.onnx`: whose window stays in float32; None: none does.

    Returns:
      The path.

    Raises:
      ValueError: one line: the suffix is another, or the network cannot be written so.
    """
    where = pathlib.Path(path)
    suffix = next((s for s in reversed(SUFFIXES) if where.name.endswith(s)), None)
    if suffix is None:
        raise ValueError(
            f"expected a file that ends in {', '.join(SUFFIXES)}, got {where.name!r}"
        )
    if not where.absolute().parent.is_dir():
        raise ValueError(f"expected a folder that is there, got {where.parent}")
    if plan is not None and suffix != INT8:
        raise ValueError(f"plan: expected with a file {INT8} alone, got {where.name!r}")
    model = result if isinstance(result, models.Model) else models.of(result)
    match suffix:
        case ".jax":
            durable.replace(where, program.exported(model))
        case ".onnx":
            durable.replace(where, onnx_file.floats(model))
        case ".int8.onnx":
            durable.replace(where, onnx_file.int8(model, plan))
        case _:
            weights.save(where, model.net, model.blocks)
    return where
