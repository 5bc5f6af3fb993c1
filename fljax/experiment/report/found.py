"""Run folders as what a report compares: settings of variants, of seeds."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from fljax import tasks
from fljax.runs import simulation, writers

Flat = dict[str, Any]  # a configuration, a value by the name of its flag

_SEED = re.compile(r"seed[_-]?\d+")
_NUMBER = re.compile(r"[-_. /]+(s|seed)?[-_]?\d*$")  # at the end of a name
# What follows from the seed, or says nothing of what was run.
_OF_A_SEED = frozenset(("seed", "mean", "std", "client_width", "devices"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder tells.

    Attributes:
      folder: of the run.
      described: its `config.json`.
      records: of the rounds that stand.
      stopped: why the run ended early; empty: it did not.
      alerts: in the order of rounds.
    """

    folder: pathlib.Path
    described: writers.Described
    records: Sequence[simulation.Record]
    stopped: str = ""
    alerts: Sequence[Mapping[str, Any]] = ()

    @property
    def seed(self) -> int:
        """Of everything that was drawn."""
        return self.described.config.get("seed", 0)

    @property
    def rounds(self) -> int:
        """How many rounds it is to have."""
        return self.described.config.get("rounds", len(self.records))

    def final(self, measure: tasks.Measure) -> float:
        """Gives what the network ended with."""
        return self.ended(measure)[measure.key]

    def ended(self, measure: tasks.Measure) -> simulation.Record:
        """Gives the record with the evaluation that it ended with."""
        return simulation.final_evaluation(self.records, measure)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Variants that are compared with each other.

    Attributes:
      name: empty where there is one setting alone.
      variants: name -> runs, a seed each, evaluated at least once.
      measure: what all are judged by.
    """

    name: str
    variants: Mapping[str, Sequence[Run]]
    measure: tasks.Measure

    @property
    def records(self) -> dict[str, list[Sequence[simulation.Record]]]:
        """Gives the records by variant, of each seed."""
        return {name: [r.records for r in runs] for name, runs in self.variants.items()}


def runs(folders: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """Reads all run folders that are, or lie below, some folders.

    Args:
      folders: of runs, comparisons, studies, sweeps.

    Returns:
      The runs, by path; those that have not finished a round are left out.

    Raises:
      ValueError: there is no run that has, or a file is damaged.
    """
    paths: set[pathlib.Path] = set()
    given = [pathlib.Path(os.path.abspath(folder)) for folder in folders]
    for folder in given:
        paths |= {path.parent for path in folder.rglob("config.json")}
    found = [_read(path) for path in sorted(paths)]
    found = [run for run in found if run.records]
    if not found:
        shown = ", ".join(map(str, folders))
        raise ValueError(
            f"expected folders with runs that have finished a round, got "
            f"{shown or 'none'}"
        )
    return found


def _read(path: pathlib.Path) -> Run:
    records = writers.read_metrics(path)
    ended = [record["stopped"] for record in records if "stopped" in record]
    return Run(
        folder=path,
        described=writers.described(path),
        records=[record for record in records if "stopped" not in record],
        stopped=ended[-1] if ended else "",
        alerts=writers.read_alerts(path),
    )


def settings(found: Sequence[Run]) -> list[Setting]:
    """Groups runs: seeds to variants, variants to settings.

    Runs whose configurations differ in the seed alone are a variant, named by the part
    of their paths that tells it from the others. Where all these parts have a folder
    above, variants of one such folder are a setting, as in studies; and so are those
    of one task.
    """
    names = _names(found)
    groups = list(_groups(found, names))
    labels = [_label([names[run.folder] for run in group]) for group in groups]
    deep = len(labels) > 1 and all("/" in label for label in labels)
    sorted_out: dict[Any, dict[str, list[Run]]] = collections.defaultdict(dict)
    for label, group in zip(labels, groups, strict=True):
        measure = _measure(group)
        if measure is None:  # nothing is evaluated yet
            continue
        above, _, name = label.rpartition("/") if deep else ("", "", label)
        inside = sorted_out[above, measure]
        while name in inside:
            name += "'"
        judged = [r for r in group if any(measure.key in one for one in r.records)]
        inside[name] = sorted(judged, key=lambda run: run.seed)
    return [
        Setting(above, variants, measure)
        for (above, measure), variants in sorted_out.items()
    ]


def _names(found: Sequence[Run]) -> dict[pathlib.Path, str]:
    """Names each run by its path below what all have in common, without the seed."""
    common = os.path.commonpath([run.folder.parent for run in found])
    named = {}
    for run in found:
        parts = run.folder.relative_to(common).parts
        kept = [part for part in parts if not _SEED.fullmatch(part)]
        if not kept:  # seeds of one variant
            kept = [run.folder.parent.name]
        named[run.folder] = "/".join(kept)
    return named


def _groups(
    found: Sequence[Run], names: Mapping[pathlib.Path, str]
) -> Iterator[list[Run]]:
    """Puts runs together that are one configuration with a seed each."""
    for same in _by(found, _key).values():
        if len({run.seed for run in same}) == len(same):
            yield same
        else:  # the same run twice, say of two settings of a study
            yield from _by(same, lambda run: names[run.folder]).values()


def _by(found: Iterable[Run], key: Callable[[Run], str]) -> dict[str, list[Run]]:
    groups = collections.defaultdict(list)
    for run in found:
        groups[key(run)].append(run)
    return groups


def _label(names: Sequence[str]) -> str:
    """Names a variant by what the names of its runs begin with."""
    if len(set(names)) == 1:
        return names[0]
    return _NUMBER.sub("", _begin(names)) or names[0]


def _begin(names: Sequence[str]) -> str:
    """Gives the letters that all names begin with."""
    columns = itertools.takewhile(lambda c: len(set(c)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in columns)


def _key(run: Run) -> str:
    """Writes what a run depends on, but for its seed."""
    return json.dumps(of_variant(run), sort_keys=True, default=str)


def of_variant(run: Run) -> Flat:
    """Gives what a run depends on, but for its seed and what follows from it."""
    given = flat(run.described.settings or run.described.config)
    told = flat(run.described.config)
    in_python = any("(given in Python)" in str(value) for value in told.values())
    own = {
        name: value
        for name, value in told.items()
        if name in ("algorithm", "network", "dataset")
        or (in_python and name.startswith("parts."))
    }
    return {k: v for k, v in (given | own).items() if k not in _OF_A_SEED}


def flat(tree: Mapping[str, Any], above: str = "") -> Flat:
    """Lists the values of a configuration by the names of their flags."""
    found: Flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = value
    return found


def differences(variants: Mapping[str, Run]) -> dict[str, list[Any]]:
    """Gives what is not the same in all of some runs, a value each."""
    made = [of_variant(run) for run in variants.values()]
    names = dict.fromkeys(name for of in made for name in of)
    rows = {name: [of.get(name) for of in made] for name in names}
    return {
        name: row for name, row in rows.items() if any(value != row[0] for value in row)
    }


def _measure(group: Sequence[Run]) -> tasks.Measure | None:
    """Finds what a variant is judged by; None: nothing was evaluated."""
    evaluated = [
        record for run in group for record in run.records if "test_loss" in record
    ]
    return tasks.measure_of(evaluated[0]) if evaluated else None
