"""Curves of a setting as SVG that a page holds: its colors follow the page's.

Drawn by matplotlib, which is there; plotly would add 4.8 MB to every report.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import figure, ticker

from fljax.experiment.pictures import styles
from fljax.experiment.report import found
from fljax.runs import simulation

Point = tuple[float, float]
Value = Callable[[simulation.Record], float | None]

# Colors of the drawing that the page replaces by its own.
_INK, _GRID = "#010203", "#010204"
_REPLACED = {
    _INK: "var(--soft)",
    _GRID: "var(--line)",
    "#010205": "var(--others)",
    "#010206": "var(--c6)",
}
_DRAWN = {"#000000": "#010206"}  # SVG has no word for black: it is what nothing says
COLORS = tuple(style.color for style in styles.STYLES)
OTHERS = styles.Style("#010205", "-", "")  # of which there are too many to tell apart
_REPLACED |= {color: f"var(--c{i})" for i, color in enumerate(COLORS)}


class Panel(NamedTuple):
    """What a chart shows.

    Attributes:
      title: of the chart.
      x: what the horizontal axis is: round, upload (MB) or clock (s).
      y: (record) -> value; None: the round has none.
    """

    title: str
    x: str
    y: Value


def panels(setting: found.Setting) -> list[Panel]:
    """Gives the charts of a setting."""
    measure = setting.measure
    unit = 100.0 if measure.share else 1.0
    title = f"test {measure.title}{' (%)' * measure.share}"
    judged, worst = _of(measure.key, unit), _of(f"worst_tier_{measure.key}", unit)
    made = [
        Panel(title, "round", judged),
        Panel(f"worst tier{' (%)' * measure.share}", "round", worst),
        Panel(title, "upload (MB)", judged),
        Panel(title, "devices' clock (s)", judged),
        Panel("test loss", "round", _of("test_loss")),
        Panel("training loss", "round", _of("train_loss")),
        Panel("clients that took part", "round", participants),
    ]
    return made if measure.key != "test_loss" else [*made[:4], *made[5:]]


def tiers(setting: found.Setting) -> list[Panel]:
    """Gives a chart for each tier of devices."""
    measure = setting.measure
    key, unit = f"tier_{measure.key}", 100.0 if measure.share else 1.0
    names = dict.fromkeys(
        name
        for runs in setting.variants.values()
        for run in runs
        for record in run.records
        for name in record.get(key) or ()
    )
    return [
        Panel(f"{name}{' (%)' * measure.share}", "round", _of(key, unit, name))
        for name in names
    ]


def _of(key: str, unit: float = 1.0, tier: str = "") -> Value:
    def value(record: simulation.Record) -> float | None:
        found = record.get(key)
        if tier and found is not None:
            found = found.get(tier)
        return None if found is None else unit * found

    return value


def looks(names: Sequence[str]) -> dict[str, styles.Style]:
    """Gives each variant its look: the best few a color each, the rest a thin grey.

    Args:
      names: of the variants, the best ones first.
    """
    few = styles.of(names[: len(COLORS)])
    return {name: few.get(name, OTHERS) for name in names}


def variable(look: styles.Style) -> str:
    """Gives the color of a look as the page names it."""
    return _REPLACED[look.color]


def draw(
    setting: found.Setting, panel: Panel, looks: Mapping[str, styles.Style]
) -> str:
    """Draws the means over the seeds, and bands from the lowest to the highest one.

    Returns:
      The SVG; empty where no variant has what the panel shows.
    """
    lines = {}
    for name, runs in setting.variants.items():
        curves = [curve(run.records, panel) for run in runs]
        rounds = sorted(set.intersection(*map(set, curves)))
        if rounds and not (panel.x.startswith("upload") and not _sent(runs)):
            lines[name] = np.array([[c[number] for number in rounds] for c in curves])
    if not lines or (panel.y is participants and _constant(lines)):
        return ""
    # What marks of a picture are called must not be met in another one of the page.
    salt = f"{setting.name} {panel.title} {panel.x}"
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        page = figure.Figure(figsize=(5.2, 3.1), layout="constrained")
        axes: Any = page.subplots()
        for name in reversed(list(looks)):  # the best ones on top
            if name in lines:
                _line(axes, lines[name], looks[name], 0.18 if len(lines) < 5 else 0.08)
        _dress(axes, panel)
        file = io.StringIO()
        page.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline(file.getvalue(), f"{panel.title} by {panel.x}")


def _line(axes: Any, points: np.ndarray, look: styles.Style, shade: float) -> None:
    """Draws a variant, [seeds, rounds, 2]."""
    x, y = points[..., 0].mean(0), points[..., 1]
    other, color = look == OTHERS, _DRAWN.get(look.color, look.color)
    axes.plot(
        x,
        y.mean(0),
        look.line,
        color=color,
        marker=look.marker if len(x) < 3 else None,
        linewidth=1 if other else 1.7,
    )
    if len(y) > 1 and not other:
        axes.fill_between(x, y.min(0), y.max(0), color=color, alpha=shade, linewidth=0)


def curve(records: Sequence[simulation.Record], panel: Panel) -> dict[int, Point]:
    """Takes the points of one run, by the numbers of their rounds."""
    sent = itertools.accumulate(record.get("upload_bytes") or 0 for record in records)
    points = {}
    for record, total in zip(records, sent, strict=True):
        y = panel.y(record)
        x = {
            "round": record["round"],
            "upload (MB)": total / 1e6,
            "devices' clock (s)": record.get("clock_seconds"),
        }[panel.x]
        if x is not None and y is not None:
            points[record["round"]] = (x, y)
    return points


def participants(record: simulation.Record) -> float | None:
    """Gives how many clients took part."""
    return record.get("participants")


def _constant(lines: Mapping[str, np.ndarray]) -> bool:
    values = {y for points in lines.values() for y in points[..., 1].flat}
    return len(values) < 2


def _sent(runs: Sequence[found.Run]) -> bool:
    return any(record.get("upload_bytes") for run in runs for record in run.records)


def _dress(axes: Any, panel: Panel) -> None:
    axes.set_xlabel(panel.x, color=_INK)
    axes.tick_params(colors=_INK, length=3)
    if panel.x == "round":
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.margins(x=0.02)


def _inline(svg: str, label: str) -> str:
    """Makes an SVG part of a page: as wide as its place, in the page's colors."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r' (width|height)="[\d.]+pt"', "", body, count=2)
    body = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 system-ui, sans-serif", body)
    for color, variable in _REPLACED.items():
        body = re.sub(re.escape(color), variable, body, flags=re.IGNORECASE)
    return body.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
