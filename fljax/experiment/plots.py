"""Curves of runs, as one picture: algorithms compared, or single runs as they went."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import axes, figure, layout_engine, ticker

from fljax import tasks

ACCURACY = tasks.DEFAULT.measure
Record = Mapping[str, Any]
Curve = Mapping[int, tuple[float, float]]  # round -> (x, y) of one seed


class _Style(NamedTuple):
    color: str
    line: str
    marker: str


# Okabe and Ito's colors for every kind of color vision (without the yellow, too pale
# for a line); line styles and markers tell them apart in grey.
_STYLES = (
    _Style("#0072B2", "-", "o"),
    _Style("#D55E00", "--", "s"),
    _Style("#009E73", "-.", "^"),
    _Style("#CC79A7", ":", "D"),
    _Style("#56B4E9", "--", "v"),
    _Style("#E69F00", "-.", "P"),
    _Style("#000000", ":", "x"),
    _Style("#7F7F7F", "-", "*"),
)
# An algorithm looks the same in every figure; others take the free styles in turn.
_FIXED = (
    "cocofl",
    "fedavg",
    "heterofl",
    "fjord",
    "fedprox",
    "fedavgdrop",
    "centralized",
    "fedrolex",
)
_MARKERS = 8  # on a line, about
_MB = 1e6  # bytes

FORMATS = (".png", ".pdf", ".svg")  # of the files that are written


class Picture(figure.Figure):
    """A figure that notebooks show, whether they have asked for matplotlib or not."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def curves(
    runs: Mapping[str, Sequence[Sequence[Record]]],
    path: str | os.PathLike[str],
    measure: tasks.Measure = ACCURACY,
) -> None:
    """Write the picture of `compared` to a file, its format by its name (`FORMATS`)."""
    compared(runs, measure).savefig(path)


def compared(
    runs: Mapping[str, Sequence[Sequence[Record]]], measure: tasks.Measure = ACCURACY
) -> Picture:
    """Draw accuracy by round, upload and virtual time, and that of the worst tier.

    A line is the mean over the seeds at the rounds that all of them have evaluated; its
    band reaches from the lowest to the highest seed. An algorithm that uploads nothing
    is left out of the upload panel.

    Args:
      runs: algorithm -> a list over seeds of metrics records in order of rounds, with
        `round`, `upload_bytes` and, on evaluated rounds, `test_accuracy` and
        `worst_tier_accuracy` or `tier_accuracy`.
      measure: of the task, drawn in the place of accuracy; where it is another, the
        worst tier is that on its own test examples.

    Returns:
      The picture, 1200 pixels wide.
    """
    title = _title(measure)
    of_classes = measure == ACCURACY
    worst = "worst tier by class mix (%)" if of_classes else f"worst tier's {title}"
    panels: tuple[tuple[str, str, Callable[..., Curve]], ...] = (
        ("round", title, _test_by_round),
        ("round", worst, _worst_tier_by_round),
        ("total upload (MB)", title, _test_by_upload),
        ("virtual time (s)", title, _test_by_clock),
    )
    layout = layout_engine.ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    page = Picture(figsize=(12, 8.2), dpi=100, layout=layout)
    styles = _styles(runs)
    for panel, (x_label, y_label, curve) in zip(
        page.subplots(2, 2, sharey=True).flat, panels, strict=True
    ):
        for name, style in styles.items():
            curves = (curve(records, measure) for records in runs[name])
            seeds = [made for made in curves if made]
            many = len(seeds) > 1
            count = f"mean and range of {len(seeds)} seeds" if many else "1 seed"
            _draw(panel, seeds, style, f"{name} ({count})")
        _dress(panel, x_label, y_label)
    _add_legend(page)
    return page


def settings(
    result: Mapping[str, Mapping[str, Sequence[Sequence[Record]]]],
    path: str | os.PathLike[str],
    measure: tasks.Measure = ACCURACY,
) -> None:
    """Draw accuracy on the clock of the devices, a panel for each setting of a study.

    Args:
      result: setting -> variant -> seeds -> metrics records, as of `curves`.
      path: the file to write, its format by its name (`FORMATS`).
      measure: of the task, drawn in the place of accuracy.
    """
    columns = min(len(result), 2)
    rows = -(-len(result) // columns)
    layout = layout_engine.ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    page = Picture(figsize=(12, 0.6 + 3.8 * rows), dpi=100, layout=layout)
    panels = list(page.subplots(rows, columns, sharey=True, squeeze=False).flat)
    styles = _styles(dict.fromkeys(name for runs in result.values() for name in runs))
    for panel, (setting, runs) in zip(panels, result.items(), strict=False):
        for name, seeds in runs.items():
            made = [_test_by_clock(records, measure) for records in seeds]
            _draw(panel, made, styles[name], name)
        _dress(panel, "virtual time (s)", _title(measure))
        panel.set_title(setting)
    for panel in panels[len(result) :]:
        panel.remove()
    _add_legend(page)
    page.savefig(path)


def histories(
    runs: Mapping[str, Sequence[Record]],
    path: str | os.PathLike[str],
    *,
    apart: bool = False,
    majority: Sequence[float] = (),
    measure: tasks.Measure = ACCURACY,
) -> None:
    """Write the picture of `history` to a file, its format by its name (`FORMATS`)."""
    page = history(runs, apart=apart, majority=majority, measure=measure)
    page.savefig(path)


def history(
    runs: Mapping[str, Sequence[Record]],
    *,
    apart: bool = False,
    majority: Sequence[float] = (),
    measure: tasks.Measure = ACCURACY,
) -> Picture:
    """Draw accuracy and loss of runs by round, and accuracy by virtual time.

    Losses are of the test set, with a thin line for those of training.

    Args:
      runs: name -> metrics records in order of rounds, with `round`, `train_loss` and,
        on evaluated rounds, `test_accuracy` and `test_loss`.
      apart: every run has panels of its own, under its name; else all share them, with
        a legend.
      majority: shares of the most frequent class, one for each run or one for all;
        what guessing it would reach is drawn as a line.
      measure: of the task, drawn in the place of accuracy.

    Returns:
      The picture.

    Raises:
      ValueError: `majority` has another length.
    """
    if len(majority) not in (0, 1, len(runs)):
        raise ValueError(
            f"expected one number, or {len(runs)}, one for each run, got "
            f"{len(majority)}"
        )
    shares = list(majority) * (len(runs) if len(majority) == 1 else 1)
    columns = len(runs) if apart else 1
    shape = (3, columns) if apart else (1, 3)
    size = (1 + 2.6 * columns, 7.4) if apart else (12, 4.2)
    layout = layout_engine.ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    page = Picture(figsize=size, dpi=100, layout=layout)
    panels = page.subplots(*shape, squeeze=False).reshape(3, columns)  # [what, run]
    styles = itertools.cycle(_STYLES)
    for index, (name, records) in enumerate(runs.items()):
        column = list(panels[:, index if apart else 0])
        style = _STYLES[0] if apart else next(styles)
        _add_history(column, name, records, style, measure)
        if apart:
            column[0].set_title(name)
    for index, share in enumerate(shares):
        for panel in panels[[0, 2], index if apart else 0]:
            panel.axhline(100 * share, color="0.4", linestyle=":", linewidth=1)
    for accuracy, loss, in_time in panels.T:
        _dress(accuracy, "round", _title(measure))
        _dress(loss, "round", "loss (thin: training)")
        _dress(in_time, "virtual time (s)", _title(measure))
    if not apart:
        _add_legend(page)
    return page


def _add_history(
    panels: Sequence[axes.Axes],
    name: str,
    records: Sequence[Record],
    style: _Style,
    measure: tasks.Measure,
) -> None:
    """Draw a run's accuracy, its losses, and its accuracy by time into three panels."""
    accuracy, loss, in_time = panels
    test, train = _by_round(records, "test_loss"), _by_round(records, "train_loss")
    _draw(accuracy, [_test_by_round(records, measure)], style, name)
    _draw(loss, [test], style, name)
    _draw(in_time, [_test_by_clock(records, measure)], style, name)
    if train:
        x, y = zip(*train.values(), strict=True)
        loss.plot(x, y, color=style.color, linestyle=style.line, linewidth=0.8)


def _by_round(records: Sequence[Record], key: str, unit: float = 1) -> Curve:
    """Take a figure of the rounds that have it."""
    return {
        record["round"]: (record["round"], unit * record[key])
        for record in records
        if record.get(key) is not None
    }


def _styles(names: Iterable[str]) -> dict[str, _Style]:
    """Give every algorithm its style, the known ones always the same."""
    fixed = dict(zip(_FIXED, _STYLES, strict=True))
    keys = {name: name.lower().replace("_", "").replace("-", "") for name in names}
    taken = {fixed[key] for key in keys.values() if key in fixed}
    free = [style for style in _STYLES if style not in taken] or list(_STYLES)
    others = itertools.cycle(free)
    return {
        name: fixed[key] if key in fixed else next(others) for name, key in keys.items()
    }


def _title(measure: tasks.Measure) -> str:
    return f"test {measure.title}{' (%)' * measure.share}"


def _unit(measure: tasks.Measure) -> float:
    return 100 if measure.share else 1


def _test_by_round(records: Sequence[Record], measure: tasks.Measure) -> Curve:
    return _by_round(records, measure.key, _unit(measure))


def _worst_tier_by_round(records: Sequence[Record], measure: tasks.Measure) -> Curve:
    if measure != ACCURACY:
        return _by_round(records, f"worst_tier_{measure.key}", _unit(measure))
    worst = {record["round"]: _worst_tier(record) for record in records}
    return {
        number: (number, 100 * accuracy)
        for number, accuracy in worst.items()
        if accuracy is not None
    }


def _worst_tier(record: Record) -> float | None:
    """Take the recorded worst tier, or the lowest of the tiers that are there."""
    if record.get("worst_tier_accuracy") is not None:
        return record["worst_tier_accuracy"]
    tiers = (record.get("tier_accuracy") or {}).values()
    return min((value for value in tiers if value is not None), default=None)


def _test_by_clock(records: Sequence[Record], measure: tasks.Measure) -> Curve:
    key, unit = measure.key, _unit(measure)
    return {
        record["round"]: (record["clock_seconds"], unit * record[key])
        for record in records
        if record.get(key) is not None and "clock_seconds" in record
    }


def _test_by_upload(records: Sequence[Record], measure: tasks.Measure) -> Curve:
    """Put the bytes uploaded up to and with a round in the place of its number."""
    uploads = [record.get("upload_bytes") or 0 for record in records]
    if not any(uploads):
        return {}
    key, unit = measure.key, _unit(measure)
    return {
        record["round"]: (total / _MB, unit * record[key])
        for record, total in zip(records, itertools.accumulate(uploads), strict=True)
        if record.get(key) is not None
    }


def _draw(panel: axes.Axes, seeds: Sequence[Curve], style: _Style, label: str) -> None:
    """Draw the mean of the seeds and the band between the lowest and the highest."""
    rounds = sorted(set.intersection(*map(set, seeds))) if seeds else []
    if not rounds:
        return
    points = np.array([[seed[number] for number in rounds] for seed in seeds])
    x, y = points[..., 0].mean(0), points[..., 1]  # [rounds], [seeds, rounds]
    panel.plot(
        x,
        y.mean(0),
        color=style.color,
        linestyle=style.line,
        marker=style.marker,
        markersize=5,
        markevery=max(1, len(rounds) // _MARKERS),
        label=label,
    )
    panel.fill_between(
        x, y.min(0), y.max(0), color=style.color, alpha=0.25, linewidth=0
    )


def _dress(panel: axes.Axes, x_label: str, y_label: str) -> None:
    """Label the axes, or say that a panel is empty."""
    panel.set(xlabel=x_label, ylabel=y_label)
    panel.tick_params(labelleft=True)
    if x_label == "round":
        panel.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    panel.grid(color="0.88")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    if not panel.lines:
        panel.text(0.5, 0.5, "not recorded", transform=panel.transAxes, ha="center")


def _add_legend(page: figure.Figure) -> None:
    """Name each algorithm once, below the panels."""
    lines = {
        label: line
        for panel in page.axes
        for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if lines:
        page.legend(
            lines.values(),
            lines.keys(),
            loc="outside lower center",
            ncols=min(len(lines), 4),
            frameon=False,
            handlelength=3.5,  # long enough to show the line style
        )
