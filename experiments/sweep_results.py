"""What a sweep leaves: a table, a picture of its trials, the best settings as flags."""

from __future__ import annotations

import csv
import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colors, figure

from experiments import space as spaces
from fljax import tasks
from fljax.experiment import as_flags
from fljax.experiment import config as configs
from fljax.experiment.comparing import text_tables
from fljax.runtime import durable

_LISTED = 10  # trials of the printed table
_GREY = "#b8bec8"
_TICKS = 8  # whole numbers that an axis names one by one
_HUES = {True: (0.0, 0.87), False: (0.13, 1.0)}  # without yellow, too pale for a line


def folder(workdir: pathlib.Path, number: int) -> pathlib.Path:
    """Gives the run folder of a trial."""
    return workdir / "trials" / f"{number:04d}"


def write(
    workdir: pathlib.Path,
    study: Any,
    space: spaces.Space,
    measure: tasks.Measure,
    settings: Callable[[Mapping[str, str]], configs.Config],
) -> list[str]:
    """Writes trials.csv, parallel.png and best.flags.

    Args:
      workdir: of the sweep.
      study: of Optuna.
      space: that was searched.
      measure: what was gone by.
      settings: of a trial, from its values.

    Returns:
      Lines for the user: the best trials, and what was written.
    """
    every = study.get_trials(deepcopy=False)
    _write_table(workdir / "trials.csv", every, space)
    done = ranked(every, measure)
    counts = ", ".join(
        f"{count} {name}"
        for name in ("complete", "pruned", "fail", "running")
        if (count := sum(t.state.name.lower() == name for t in every))
    )
    lines = [f"{len(every)} trials: {counts}", *_shown(done[:_LISTED], space, measure)]
    if not done:
        return [*lines, f"wrote {workdir / 'trials.csv'}"]
    best = done[0]
    values = {name: str(best.params[name]) for name in space}
    flags = as_flags.lines(settings(values))
    head = [
        f"# Best of {len(every)} trials: {measure.key} {best.value:.4f}, trial "
        f"{best.number}.",
        f"# Command: python -m experiments.train --flagfile={workdir / 'best.flags'}",
    ]
    content = "\n".join((*head, *flags)) + "\n"
    durable.replace(workdir / "best.flags", content.encode())
    durable.replace(workdir / "parallel.png", picture(every, space, measure))
    files = ("trials.csv", "parallel.png", "best.flags")
    return [*lines, f"wrote {', '.join(str(workdir / name) for name in files)}"]


def ranked(every: Sequence[Any], measure: tasks.Measure) -> list[Any]:
    """Orders the trials that ran to their end, the best first."""
    done = [t for t in every if t.state.name == "COMPLETE" and np.isfinite(t.value)]
    return sorted(done, key=lambda t: t.value, reverse=measure.more)


def _write_table(path: pathlib.Path, every: Sequence[Any], space: spaces.Space) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", "state", "value", "rounds", *space, "folder", "why"])
    for t in every:
        steps = t.intermediate_values
        value = t.value if t.value is not None else steps[max(steps)] if steps else ""
        table.writerow(
            [
                t.number,
                t.state.name.lower(),
                value,
                max(steps) + 1 if steps else 0,
                *(t.params.get(name, "") for name in space),
                f"trials/{t.number:04d}",
                t.user_attrs.get("why", ""),
            ]
        )
    durable.replace(path, text.getvalue().encode())


def _shown(
    best: Sequence[Any], space: spaces.Space, measure: tasks.Measure
) -> list[str]:
    rows = [["trial", measure.key, *space]]
    for t in best:
        values = (_short(t.params[name]) for name in space)
        rows.append([str(t.number), f"{t.value:.4f}", *values])
    return text_tables.aligned(rows).splitlines() if best else []


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def picture(every: Sequence[Any], space: spaces.Space, measure: tasks.Measure) -> bytes:
    """Draws parallel coordinates: an axis a field, a line a trial, its value a color.

    Trials that were stopped are grey; the best one is drawn last and thick.

    Returns:
      The picture as PNG.
    """
    done = ranked(every, measure)[::-1]
    others = [
        t for t in every if t.state.name == "PRUNED" and t.params.keys() == space.keys()
    ]
    values = [t.value for t in done]
    width = max(6.0, 1.6 * len(space) + 2.5)
    page = figure.Figure(figsize=(width, 4.4), dpi=120, layout="constrained")
    axes: Any = page.subplots()
    places = {name: _scale(of) for name, of in space.items()}
    for t in others:
        y = [places[name](t.params[name]) for name in space]
        axes.plot(range(len(y)), y, color=_GREY, lw=0.8, alpha=0.7, marker=".", ms=4)
    norm = colors.Normalize(min(values), max(values))
    ours = matplotlib.colormaps["viridis" if measure.more else "viridis_r"]
    hues = colors.ListedColormap(ours(np.linspace(*_HUES[measure.more], 256)))
    for t in done:
        y = [places[name](t.params[name]) for name in space]
        y.append(float(norm(t.value)) if norm.vmax != norm.vmin else 0.5)
        look = {"lw": 3.5, "ms": 6} if t is done[-1] else {"lw": 1.4, "ms": 4}
        axes.plot(range(len(y)), y, color=hues(norm(t.value)), marker="o", **look)
    ticks = [_ticks(of, places[name]) for name, of in space.items()]
    results = np.linspace(min(values), max(values), 4 if len(set(values)) > 1 else 1)
    ends = [(f"{x:.4g}", float(norm(x)) if len(results) > 1 else 0.5) for x in results]
    for place, marks in enumerate([*ticks, ends]):
        axes.axvline(place, color="0.35", lw=0.8, zorder=0)
        for text, height in marks:
            axes.annotate(
                text, (place, height), (6, 0), textcoords="offset points",
                va="center", fontsize=8, color="0.2",
                bbox={"fc": "white", "ec": "none", "alpha": 0.75, "pad": 0.8},
            )  # fmt: skip
    titles = [*(f"--{name}" for name in space), measure.key]
    axes.set_xticks(list(range(len(titles))), titles)
    axes.set_xlim(-0.2, len(space) + 0.5)
    axes.set_ylim(-0.06, 1.06)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if others:
        axes.set_title("grey: stopped early", fontsize=9, color="0.4", loc="left")
    file = io.BytesIO()
    page.savefig(file, format="png")
    return file.getvalue()


def _scale(of: spaces.Range | spaces.Choices) -> Callable[[Any], float]:
    """Makes (value) -> its place on an axis, from 0 to 1."""
    if isinstance(of, spaces.Choices):
        last = max(len(of.texts) - 1, 1)
        return lambda value: of.texts.index(str(value)) / last
    warp: Callable = np.log if of.log else float
    low, high = warp(of.low), warp(of.high)
    return lambda value: float((warp(value) - low) / (high - low))


def _ticks(
    of: spaces.Range | spaces.Choices, place: Callable[[Any], float]
) -> list[tuple[str, float]]:
    if isinstance(of, spaces.Choices):
        return [(text, place(text)) for text in of.texts]
    spread = np.geomspace if of.log else np.linspace
    values = spread(of.low, of.high, 4)
    if of.whole and of.high - of.low < _TICKS:
        values = np.arange(of.low, of.high + 1)
    elif of.whole:
        values = np.unique(np.round(values))
    return [(f"{value:.3g}", place(value)) for value in values]
