"""Writes the trained network of a run folder in a format that others read.

    python -m experiments.export runs/demo --out=demo.safetensors
    python -m experiments.export runs/demo --out=demo.int8.onnx

By the suffix: .safetensors or .orbax (parameters), .jax (a program of jax.export),
.onnx (float32) or .int8.onnx. The network is that of the newest checkpoint.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

from absl import flags

import fljax
from experiments import main
from fljax import bounds
from fljax.exporting import files

flags.declare_key_flag("out")
_WINDOW = flags.DEFINE_string(
    "window",
    "",
    "Of .int8.onnx: FIRST-LAST, blocks that stay in float32; empty: none.",
)


def _plan(text: str) -> fljax.Plan | None:
    first, dash, last = text.partition("-")
    if not text:
        return None
    if not dash or not (first.isdecimal() and last.isdecimal()):
        raise ValueError(f"--window: expected FIRST-LAST, got {bounds.shown(text)}")
    return fljax.Plan(int(first), int(last))


def _main(folders: Sequence[str]) -> None:
    if len(folders) != 1:
        raise ValueError(f"expected one run folder, such as runs/x, got {len(folders)}")
    wanted = main.OUT.value
    if not wanted:
        raise ValueError(
            f"--out: expected a file that ends in {', '.join(files.SUFFIXES)}, got none"
        )
    plan, result = _plan(_WINDOW.value), fljax.restore(folders[0])
    path = files.export(result, wanted, plan=plan)
    print(f"wrote {path}{_size(path)}, of {len(result.records)} rounds")


def _size(path: pathlib.Path) -> str:
    return f", {os.path.getsize(path):,} bytes" if path.is_file() else ""


if __name__ == "__main__":
    main.run(_main, folders=True)
