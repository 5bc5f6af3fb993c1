"""Tables of a report."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from fljax import tasks
from fljax.experiment.comparing import summary
from fljax.experiment.report import found, verdict

_COSTS = (  # title, figure, form
    ("upload MB", "upload_megabytes", "{:.4g}"),
    ("devices' clock s", "clock_seconds", "{:.4g}"),
    ("compute share", "compute_share", "{:.3f}"),
    ("joules", "joules", "{:.4g}"),
    ("this machine s", "wall_seconds", "{:.1f}"),
)
_OF_COSTS = (
    "Upload: sent by all clients in all rounds, 1e6 bytes. Clock: virtual time of the "
    "devices until the last round ends. Compute share: what a client of a round "
    "computes, in the mean, if training everything is 1. In brackets: share of the "
    "largest. This machine: seconds of all rounds, compilation included."
)
_OF_RESULTS = (
    "Mean over the seeds after the last round; ±: sample standard deviation; interval: "
    "95 % of the mean, by Student's t. Behind the best: mean over the seeds that both "
    "have, with its 95 % interval. Worst tier: of the tiers' values on their own test "
    "examples. Late: mean over the evaluations in the last third of the rounds."
)


def rows(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Lays out texts as a table."""
    titles, *cells = ([html.escape(text) for text in row] for row in (titles, *cells))
    return _table(titles, cells, "left")


def results(setting: found.Setting, figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Lays out how well variants did, the best first, with 95 % intervals.

    Args:
      setting: what is compared.
      figures: of each variant, as `summary.summarize` gives them.
    """
    measure = setting.measure
    order = verdict.ranked(setting, figures)
    percent = " (%)" * measure.share
    worst, late = f"worst_tier_{measure.key}", summary.late_key(measure)
    titles = ["variant", "seeds", f"test {measure.title}{percent}"]
    several = any(len(runs) > 1 for runs in setting.variants.values())
    if several:
        titles += ["±", "95 % interval"]
    if len(order) > 1:
        titles += (
            ["behind the best", "95 % interval"] if several else ["behind the best"]
        )
    others = [(f"worst tier{percent}", worst), (f"late{percent}", late)]
    others = [item for item in others if any(item[1] in of for of in figures.values())]
    titles += [title for title, _ in others]
    lines = []
    for place, name in enumerate(order):
        figure = figures[name][measure.key]
        line = [html.escape(name), str(len(setting.variants[name]))]
        line.append(_number(measure, figure["mean"]))
        if several:
            spread = _number(measure, figure["std"]) if "std" in figure else ""
            line += [spread, verdict.interval(measure, figure)]
        if len(order) > 1:
            line += (
                _behind(setting, name, order[0], several)
                if place
                else ["", *[""] * several]
            )
        line += [_cell(measure, figures[name].get(key)) for _, key in others]
        if not place and len(order) > 1:
            line[:3] = [f'<span class="best">{cell}</span>' for cell in line[:3]]
        lines.append(line)
    return f'{_table(titles, lines)}<p class="note">{_OF_RESULTS}</p>'


def tiers(setting: found.Setting, order: Sequence[str]) -> str:
    """Lays out how well variants did for each tier of devices, in an order."""
    measure = setting.measure
    key = f"tier_{measure.key}"
    last = {
        name: [run.ended(measure).get(key) or {} for run in setting.variants[name]]
        for name in order
    }
    names = dict.fromkeys(t for of in last.values() for tiers in of for t in tiers)
    lines = []
    for name, of in last.items():
        line = [html.escape(name)]
        for tier in names:
            values = [tiers[tier] for tiers in of if tiers.get(tier) is not None]
            line.append(_cell(measure, summary.over_seeds(values) if values else None))
        lines.append(line)
    percent = " (%)" * measure.share
    return _table(["variant", *(f"{html.escape(n)}{percent}" for n in names)], lines)


def costs(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Lays out what variants cost."""
    there = [item for item in _COSTS if any(item[1] in of for of in figures.values())]
    most = {
        key: max(of[key]["mean"] for of in figures.values() if key in of)
        for _, key, _ in there
    }
    lines = []
    for name, of in figures.items():
        line = [html.escape(name)]
        for _, key, form in there:
            mean = of[key]["mean"] if key in of else None
            text = "" if mean is None else form.format(mean)
            if mean and len(figures) > 1 and key != "compute_share" and most[key]:
                text += f" ({mean / most[key]:.0%})"
            line.append(text)
        lines.append(line)
    titles = ["variant", *(title for title, _, _ in there)]
    return f'{_table(titles, lines)}<p class="note">{_OF_COSTS}</p>'


def _behind(setting: found.Setting, name: str, best: str, several: bool) -> list[str]:
    measure = setting.measure
    ahead, _ = verdict.difference(setting, name, best)
    cells = [_number(measure, ahead["mean"])]
    return [*cells, verdict.interval(measure, ahead)] if several else cells


def _cell(measure: tasks.Measure, figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    spread = f" ± {_number(measure, figure['std'])}" if "std" in figure else ""
    return _number(measure, figure["mean"]) + spread


def _number(measure: tasks.Measure, value: float) -> str:
    return f"{100 * value:.1f}" if measure.share else f"{value:.4g}"


def _table(
    titles: Sequence[str], cells: Sequence[Sequence[str]], style: str = ""
) -> str:
    """Lays out cells of HTML."""
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n"
        for row in cells
    )
    shown = f"<thead><tr>{head}</tr></thead>" if any(titles) else ""
    return (
        f'<div class="wide"><table class="{style}">{shown}\n<tbody>{body}</tbody>'
        f"</table></div>"
    )
