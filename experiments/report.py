"""Writes what came of runs as one page, which opens without a network.

    python -m experiments.report runs/demo --out=report.html
    python -m experiments.report runs/x runs/y

Folders of runs, comparisons, studies and sweeps, also while they run. Runs that differ
in the seed alone are one variant.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags

from experiments import main
from fljax.experiment.report import page

flags.declare_key_flag("out")


def _main(folders: Sequence[str]) -> None:
    wanted = main.OUT.value or "report.html"
    if not folders:
        raise ValueError("expected folders of runs, such as runs/x, got none")
    for folder in folders:
        if not pathlib.Path(folder).is_dir():
            raise ValueError(f"expected a folder of runs, got {folder!r}")
    out = pathlib.Path(wanted)
    if out.suffix != ".html" or not out.parent.is_dir():
        raise ValueError(
            f"--out: expected a file .html in a folder that is there, got {wanted!r}"
        )
    page.write(folders, out)
    print(f"wrote {out}")


if __name__ == "__main__":
    main.run(_main, folders=True)
