"""Draws accuracy and loss of runs from their folders, also while they run.

python -m experiments.plot runs/cocofl runs/fedavg --out=curves.png
python -m experiments.plot runs/cifar10 runs/imdb --apart --majority=0.1,0.5
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

from absl import flags

from experiments import define, main
from fljax.experiment import config as configs
from fljax.experiment.pictures import panels, plots
from fljax.runs import writers

flags.declare_key_flag("out")
_APART = define.boolean(
    "apart", False, "Give every run panels of its own, for runs on different data."
)
_MAJORITY = flags.DEFINE_list(
    "majority",
    [],
    "Share of the most frequent class in the test data, drawn as a line; one for all "
    "runs or one for each.",
)


def _shares() -> list[float]:
    try:
        shares = [float(share) for share in _MAJORITY.value]
    except ValueError:
        shares = [-1.0]
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(
            f"--majority: expected numbers from 0 to 1 such as 0.1,0.5, got "
            f"{','.join(_MAJORITY.value)!r}"
        )
    return shares


def _named(folders: Sequence[str]) -> dict[str, pathlib.Path]:
    """Names runs by the part of their paths that tells them apart."""
    paths = list(dict.fromkeys(pathlib.Path(os.path.abspath(f)) for f in folders))
    common = os.path.commonpath([path.parent for path in paths])
    return {path.relative_to(common).as_posix(): path for path in paths}


def _main(folders: Sequence[str]) -> None:
    wanted = main.OUT.value or "curves.png"
    if not folders:
        raise ValueError("expected folders of runs, such as runs/x, got none")
    shares, out = _shares(), pathlib.Path(wanted)
    if out.suffix not in plots.FORMATS or not out.parent.is_dir():
        raise ValueError(
            f"--out: expected a file {', '.join(plots.FORMATS)} in a folder that is "
            f"there, got {wanted!r}"
        )
    runs = {}
    for name, folder in _named(folders).items():
        runs[name] = writers.read_metrics(folder)
        if not runs[name]:
            raise ValueError(
                f"expected a run folder with records in metrics.jsonl, got {folder}"
            )
    measure = panels.measure_of(runs.values())
    with configs.naming("majority"):
        plots.histories(
            runs, wanted, apart=_APART.value, majority=shares, measure=measure
        )
    print(f"wrote {wanted}")


if __name__ == "__main__":
    main.run(_main, folders=True)
