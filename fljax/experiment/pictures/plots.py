"""Curves of runs, as one picture: algorithms compared, or single runs as they went."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Mapping, Sequence

from matplotlib import axes, figure, layout_engine, ticker

from fljax import tasks
from fljax.experiment.pictures import panels, styles

ACCURACY = panels.ACCURACY
Record = panels.Record

_MARKERS = 8  # on a line, about

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

    Where clients were evaluated, also their mean and the worst tenth of them. A line is
    the mean over the seeds at the rounds that all of them have evaluated; its band
    reaches from the lowest to the highest seed. An algorithm that uploads nothing is
    left out of the upload panel.

    Args:
      runs: algorithm -> a list over seeds of metrics records in order of rounds, with
        `round`, `upload_bytes` and, on evaluated rounds, `test_accuracy` and
        `worst_tier_accuracy` or `tier_accuracy`.
      measure: of the task, drawn in the place of accuracy; where it is another, the
        worst tier is that on its own test examples.

    Returns:
      The picture, 1200 pixels wide.
    """
    quantities = panels.of(measure)
    layout = layout_engine.ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    seeds_of_all = itertools.chain.from_iterable(runs.values())
    drawn = panels.of_comparison(seeds_of_all, quantities)
    rows = len(drawn) // 2
    page = Picture(figsize=(12, 4.1 * rows), dpi=100, layout=layout)
    looks = styles.of(runs)
    for panel, (x, y) in zip(
        page.subplots(rows, 2, sharey=True).flat, drawn, strict=True
    ):
        axis, quantity = quantities[x], quantities[y]
        for name, style in looks.items():
            curves = (panels.curve(r, axis, quantity) for r in runs[name])
            seeds = [made for made in curves if len(made.rounds)]
            many = len(seeds) > 1
            count = f"mean and range of {len(seeds)} seeds" if many else "1 seed"
            _draw(panel, seeds, style, f"{name} ({count})")
        _dress(panel, axis.label, quantity.label)
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
    places = list(page.subplots(rows, columns, sharey=True, squeeze=False).flat)
    looks = styles.of(dict.fromkeys(name for runs in result.values() for name in runs))
    quantities = panels.of(measure)
    x, y = quantities["clock"], quantities["measure"]
    for panel, (setting, runs) in zip(places, result.items(), strict=False):
        for name, seeds in runs.items():
            made = [panels.curve(records, x, y) for records in seeds]
            _draw(panel, made, looks[name], name)
        _dress(panel, x.label, y.label)
        panel.set_title(setting)
    for panel in places[len(result) :]:
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
    places = page.subplots(*shape, squeeze=False).reshape(3, columns)  # [what, run]
    looks = itertools.cycle(styles.STYLES)
    quantities = panels.of(measure)
    for index, (name, records) in enumerate(runs.items()):
        column = list(places[:, index if apart else 0])
        style = styles.STYLES[0] if apart else next(looks)
        _add_history(column, name, records, style, quantities)
        if apart:
            column[0].set_title(name)
    for index, share in enumerate(shares):
        for panel in places[[0, 2], index if apart else 0]:
            panel.axhline(100 * share, color="0.4", linestyle=":", linewidth=1)
    for alike in places.T:
        for panel, (x, y) in zip(alike, panels.HISTORY, strict=True):
            label = "loss (thin: training)" if y == "test_loss" else quantities[y].label
            _dress(panel, quantities[x].label, label)
    if not apart:
        _add_legend(page)
    return page


def _add_history(
    places: Sequence[axes.Axes],
    name: str,
    records: Sequence[Record],
    style: styles.Style,
    quantities: Mapping[str, panels.Quantity],
) -> None:
    """Draw a run's accuracy, its losses, and its accuracy by time into three panels."""
    for panel, (x, y) in zip(places, panels.HISTORY, strict=True):
        made = panels.curve(records, quantities[x], quantities[y])
        _draw(panel, [made], style, name)
        train = panels.curve(records, quantities[x], quantities["train_loss"])
        if y == "test_loss" and len(train.rounds):
            panel.plot(
                train.x, train.y, color=style.color, linestyle=style.line, linewidth=0.8
            )


def _draw(
    panel: axes.Axes, seeds: Sequence[panels.Curve], style: styles.Style, label: str
) -> None:
    """Draw the mean of the seeds and the band between the lowest and the highest."""
    made = panels.band(seeds)
    if made is None:
        return
    panel.plot(
        made.x,
        made.mean,
        color=style.color,
        linestyle=style.line,
        marker=style.marker,
        markersize=5,
        markevery=max(1, len(made.x) // _MARKERS),
        label=label,
    )
    panel.fill_between(
        made.x, made.low, made.high, color=style.color, alpha=0.25, linewidth=0
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
