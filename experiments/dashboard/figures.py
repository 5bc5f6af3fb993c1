"""Figures of the live page: plain data that plotly.js draws.

Legend: P points of a curve.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.dashboard import watch
from fljax import tasks
from fljax.experiment.pictures import panels, styles

MOST = 12  # groups that are drawn
_FEW = 6  # of which tiers and plans are
_POINTS = 250  # of a curve; more are thinned
_MOST_PLANS = 20
_FEW_POINTS = 12  # that get markers
_FROM_ZERO = ("upload", "clock", "compute", "joules", "participants", "refused")
_RARE = ("refused", "rollbacks", "joules")  # drawn once there are any
_DASHES = ("solid", "dash", "dot", "dashdot")

Figure = dict[str, Any]
Groups = Mapping[str, Sequence[watch.Run]]


class Theme(NamedTuple):
    """Colors of what is no curve."""

    text: str
    grid: str
    paper: str


LIGHT = Theme("#3c4043", "#e4e7eb", "#ffffff")
DARK = Theme("#c9ced6", "#333a45", "#1c2128")


class Look(NamedTuple):
    """How a group's curves look."""

    color: str
    dash: str


class Page(NamedTuple):
    """What all figures go by.

    Attributes:
      groups: name -> runs that differ in their seeds alone.
      looks: name -> how it looks.
      axis: what is drawn over, of `panels.AXES`.
      theme: colors.
    """

    groups: Groups
    looks: Mapping[str, Look]
    axis: str
    theme: Theme


def looks(names: Sequence[str], dark: bool) -> dict[str, Look]:
    """Gives each group a color, and a line where colors come again."""
    short = {name: name.rpartition("/")[2] for name in names}  # tiers/cocofl: cocofl
    known = styles.of(short.values())
    found: dict[str, Look] = {}
    for name in names:
        color = known[short[name]].color
        if dark and color == "#000000":
            color = "#ffffff"
        free = [Look(color, dash) for dash in _DASHES]
        found[name] = next((f for f in free if f not in found.values()), free[0])
    return found


_JUDGED = ("measure", "worst", "clients", "worst_tenth")  # as the task measures


def draw(page: Page) -> dict[str, Figure | None]:
    """Draws all panels.

    Returns:
      Name -> figure; None: there is nothing to draw.
    """
    made = {name: _curves(page, name) for name in panels.LIVE}
    return made | {
        "tiers": _tiers(page),
        "by_tier": _by_tier(page),
        "plans": _plans(page),
    }


NAMES = (*panels.LIVE, "tiers", "by_tier", "plans")  # of what `draw` gives


def _measure(page: Page) -> tasks.Measure:
    """Finds what most runs are judged by."""
    measures = [run.measure for runs in page.groups.values() for run in runs]
    known = [measure for measure in measures if measure]
    return max(known, key=known.count) if known else panels.ACCURACY


def _quantity(page: Page, name: str) -> panels.Quantity:
    return panels.of(_measure(page))[name]


def _judged(page: Page) -> dict[str, list[watch.Run]]:
    """Gives the groups of the task that most runs have."""
    wanted = (None, _measure(page))
    runs = {n: [r for r in rs if r.measure in wanted] for n, rs in page.groups.items()}
    return {name: judged for name, judged in runs.items() if judged}


def _curves(page: Page, name: str) -> Figure | None:
    """Draws a quantity of all groups over the axis."""
    if name == page.axis:
        return None
    traces: list[Figure] = []
    happened = False
    groups = _judged(page) if name in _JUDGED else page.groups
    for group, runs in groups.items():
        made = _together(_curve(run, page.axis, run.column(name)) for run in runs)
        if made is None:
            continue
        happened |= bool(np.any(made.high))
        traces += _band(group, made, page.looks[group], len(runs) > 1)
    if not traces or (name in _RARE and not happened):
        return None
    figure = _figure(page, _quantity(page, name), traces)
    if name in _FROM_ZERO:
        figure["layout"]["yaxis"]["rangemode"] = "tozero"
    if name == "wall":  # rounds that compile would leave the others flat
        figure["layout"]["yaxis"]["range"] = [0, _usual(page.groups)]
    return figure


def _usual(groups: Groups) -> float:
    """Gives what nine of ten rounds take at most, and a third more."""
    every = [run.column("wall") for runs in groups.values() for run in runs]
    return 1.3 * float(np.nanquantile(np.concatenate(every), 0.9))


def _curve(run: watch.Run, axis: str, ys: np.ndarray) -> panels.Curve:
    return panels.known(run.column("round").astype(int), run.column(axis), ys)


def _together(curves: Iterable[panels.Curve]) -> panels.Band | None:
    return panels.band([c for c in curves if len(c.rounds)], begun=True, most=_POINTS)


def _band(group: str, made: panels.Band, look: Look, many: bool) -> Iterator[Figure]:
    """Draws a line, behind it the range of seeds where there are several."""
    x = _short(made.x)
    if many:
        edge = {"x": x, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
        fill = {"fill": "tonexty", "fillcolor": faint(look.color)}
        yield {**edge, "y": _short(made.low)}
        yield {**edge, "y": _short(made.high), **fill}
    few, point = len(x) <= _FEW_POINTS, "%{x:.6g}: <b>%{y:.5g}</b><extra></extra>"
    yield {
        "x": x,
        "y": _short(made.mean),
        "name": group,
        "mode": "lines+markers" if few else "lines",
        "marker": {"size": 5},
        "line": {"color": look.color, "dash": look.dash, "width": 1.8},
        "hovertemplate": f"{said(group)}<br>{point}",
    }


def said(name: str) -> str:
    """Writes a name of a run folder so that plotly.js takes it as it is.

    It reads tags and links in texts, and in templates what stands in braces.
    """
    return html.escape(name).replace("{", "&#123;")


def faint(color: str) -> str:
    """Gives a color of #rrggbb, a fifth of it."""
    parts = ",".join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))
    return f"rgba({parts},0.2)"


def _short(column: np.ndarray) -> list[float | None]:
    """Writes numbers as briefly as a picture needs; JSON has no NaN."""
    return [float(f"{x:.6g}") if math.isfinite(x) else None for x in column]


def _few(page: Page) -> dict[str, Sequence[watch.Run]]:
    return dict(itertools.islice(page.groups.items(), _FEW))


def _note(page: Page) -> str:
    return f", {_FEW} of {len(page.groups)} curves" if len(page.groups) > _FEW else ""


def _tiers(page: Page) -> Figure | None:
    """Draws each tier's measure: a color a group, a line a tier."""
    names = list(
        dict.fromkeys(n for runs in page.groups.values() for r in runs for n in r.tiers)
    )
    dashes = dict(zip(names, itertools.cycle(_DASHES), strict=False))
    traces: list[Figure] = []
    for group, runs in _few(page).items():
        for tier in names:
            having = (run for run in runs if tier in run.tiers)
            made = _together(_curve(r, page.axis, r.tiers[tier]) for r in having)
            if made is not None:
                look = Look(page.looks[group].color, dashes[tier])
                traces += _band(f"{group}, {tier}", made, look, many=False)
    if not traces:
        return None
    for tier in names:  # what the lines mean
        line = {"color": page.theme.text, "dash": dashes[tier], "width": 1.8}
        key = {
            "x": [None],
            "y": [None],
            "mode": "lines",
            "name": said(tier),
            "line": line,
        }
        traces.append(key | {"showlegend": True})
    measure = _quantity(page, "measure")
    quantity = measure._replace(title=f"{measure.title} by tier{_note(page)}")
    return _figure(page, quantity, traces)


def _plans(page: Page) -> Figure | None:
    counts = {name: _sum(r.plans for r in runs) for name, runs in _few(page).items()}
    return _bars(page, "clients by plan", counts, _order)


def _by_tier(page: Page) -> Figure | None:
    counts = {name: _sum(r.by_tier for r in runs) for name, runs in _few(page).items()}
    return _bars(page, "clients by tier", counts)


def _bars(
    page: Page,
    title: str,
    counts: Mapping[str, Mapping[str, int]],
    order: Callable[[str], Any] | None = None,
) -> Figure | None:
    """Draws what each group's clients were, in percent; as found without an order."""
    counts = {name: of for name, of in counts.items() if any(of.values())}
    percent = {
        name: {kind: 100 * count / sum(of.values()) for kind, count in of.items()}
        for name, of in counts.items()
    }
    kinds = dict.fromkeys(kind for of in percent.values() for kind in of)
    if not kinds:
        return None
    weight = {kind: sum(of.get(kind, 0) for of in percent.values()) for kind in kinds}
    common = sorted(kinds, key=lambda kind: -weight[kind])[:_MOST_PLANS]
    shown = [kind for kind in kinds if kind in common]
    shown = sorted(shown, key=order) if order else shown
    bar = "%{x}: <b>%{y:.3g} %</b><extra></extra>"
    traces: list[Figure] = [
        {
            "type": "bar",
            "name": name,
            "x": [said(kind) for kind in shown],
            "y": [round(of.get(kind, 0), 3) for kind in shown],
            "marker": {"color": page.looks[name].color},
            "hovertemplate": f"{said(name)}<br>{bar}",
        }
        for name, of in percent.items()
    ]
    left = f", {len(shown)} most frequent" if len(kinds) > len(shown) else ""
    quantity = panels.Quantity("", f"{title}{left}{_note(page)}", (), "%")
    figure = _figure(page, quantity, traces)
    figure["layout"]["xaxis"] |= {"type": "category", "title": None}
    return figure


def _order(kind: str) -> tuple:
    """Sorts plans by their blocks: 2-7 before 10-11."""
    parts = kind.replace("@", "-").split("-")
    return tuple((not p.isdigit(), int(p) if p.isdigit() else 0, p) for p in parts)


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for kind, count in one.items():
            total[kind] = total.get(kind, 0) + count
    return total


def _figure(page: Page, quantity: panels.Quantity, traces: list[Figure]) -> Figure:
    theme = page.theme
    line = {"gridcolor": theme.grid, "zeroline": False, "linecolor": theme.grid}
    x = _quantity(page, page.axis).label
    return {
        "data": [{"type": "scatter", "showlegend": False} | trace for trace in traces],
        "layout": {
            "title": {
                "text": quantity.label,
                "font": {"size": 13},
                "x": 0.02,
                "y": 0.97,
            },
            "font": {
                "color": theme.text,
                "size": 11,
                "family": "system-ui, sans-serif",
            },
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 46, "r": 10, "t": 34, "b": 38},
            "xaxis": {
                **line,
                "title": {"text": x, "standoff": 6},
                "rangemode": "tozero",
            },
            "yaxis": dict(line),
            "hovermode": "closest",
            "hoverlabel": {"bgcolor": theme.paper, "font": {"color": theme.text}},
            "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1.0}
            | {"xanchor": "right", "bgcolor": "rgba(0,0,0,0)"},
            "barmode": "group",
            "uirevision": page.axis,  # keeps what the reader zoomed to
        },
    }
