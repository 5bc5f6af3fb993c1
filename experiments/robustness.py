"""The study of robust aggregates under attack: what is run, its table and its picture.

Each rule meets each attack by each share of hostile clients, under FedAvg and CoCoFL.
One more rule, or attack, is one more text below.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import axes, layout_engine

from fljax import tasks
from fljax.experiment.comparing import summary, text_tables
from fljax.experiment.pictures import plots, styles
from fljax.runs import simulation

RULES = (
    *("mean", "median", "trimmed_mean:0.2", "krum:3:4", "geometric_median"),
    *("centered_clipping:1", "fltrust:100"),
)
ATTACKS = (
    *("label_flip", "sign_flip", "gaussian", "alie", "ipm", "min_max"),
    "backdoor",
)
SHARES = (0.1, 0.2, 0.3)
ALGORITHMS = ("fedavg", "cocofl")

# Of nobody: so that it is measured how far a backdoor opens that is not there.
_NOBODY = "backdoor:0"
_SUCCESS = "attack_success"


class Case(NamedTuple):
    """A setting of the study.

    Attributes:
      algorithm: its name.
      attack: its name; empty: nobody is hostile.
      share: of the clients that are hostile.
    """

    algorithm: str
    attack: str
    share: float

    @property
    def name(self) -> str:
        """Names the setting."""
        if not self.attack:
            return f"{self.algorithm}, nobody"
        return f"{self.algorithm}, {self.attack}, {self.share:.0%}"

    @property
    def fields(self) -> dict[str, Any]:
        """Gives the fields of the configuration."""
        attack = f"{self.attack}:{self.share:g}" if self.attack else _NOBODY
        return {"algorithm": self.algorithm, "attack": attack}


CASES = tuple(
    Case(algorithm, *case)
    for algorithm in ALGORITHMS
    for case in (("", 0.0), *((a, s) for a in ATTACKS for s in SHARES))
)
SETTINGS = {case.name: case.fields for case in CASES}
VARIANTS = {rule: {"aggregate": rule} for rule in RULES}


def _at(algorithm: str, attack: str, share: float) -> str:
    """Names the setting with a share of hostile clients."""
    return Case(algorithm, attack if share else "", share).name


def _rows(
    ran: Mapping[str, Any], measure: tasks.Measure
) -> list[tuple[str, str, str, str]]:
    """Lists (algorithm, attack, figure, title) of what was run and is shown."""
    late = summary.late_key(measure)
    shown = [(attack, late, measure.title) for attack in ATTACKS]
    shown.append(("backdoor", _SUCCESS, "attack success"))
    return [
        (algorithm, *row)
        for algorithm in ALGORITHMS
        for row in shown
        if any(_at(algorithm, row[0], share) in ran for share in SHARES)
    ]


def table(
    figures: Mapping[str, Mapping[str, Any]],
    measure: tasks.Measure = tasks.DEFAULT.measure,
) -> str:
    """Lays the figures out as Markdown: a row for each rule, a column for each share.

    Args:
      figures: setting -> rule -> figures, as of `study.summarize`.
      measure: of the task.
    """
    shares = (0.0, *SHARES)
    shown = [["algorithm", "attack", "figure", "rule", *(f"{s:.0%}" for s in shares)]]
    for algorithm, attack, key, title in _rows(figures, measure):
        found = [figures.get(_at(algorithm, attack, share), {}) for share in shares]
        for rule in dict.fromkeys(rule for of in found for rule in of):
            cells = [_cell(of.get(rule, {}).get(key)) for of in found]
            shown.append([algorithm, attack, title, rule, *cells])
    lines = [
        text_tables.markdown(shown),
        "",
        "- columns: share of all clients that are hostile",
        f"- {measure.title}: of the global network, mean over the evaluations in the "
        "last third of the rounds",
        f"- attack success: {summary.MEANINGS[_SUCCESS]}",
        "- ±: sample standard deviation over the seeds",
    ]
    return "\n".join(lines) + "\n"


def _cell(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return ""
    spread = f" ± {figure['std']:.3f}" if "std" in figure else ""
    return f"{figure['mean']:.3f}{spread}"


def picture(
    result: Mapping[str, Mapping[str, Sequence[Sequence[simulation.Record]]]],
    path: str | os.PathLike[str],
    measure: tasks.Measure = tasks.DEFAULT.measure,
) -> None:
    """Draws the figures of the table by share: a panel an attack, a line a rule.

    A line is the mean over the seeds, its band reaches from the lowest to the highest.

    Args:
      result: setting -> rule -> seeds -> records.
      path: the file to write.
      measure: of the task.
    """
    rows = _rows(result, measure)
    columns = min(max(len(rows), 2), 4)
    layout = layout_engine.ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    high = max(-(-len(rows) // columns), 1)
    page = plots.Picture(
        figsize=(3.5 * columns, 0.6 + 3.1 * high), dpi=100, layout=layout
    )
    panels = list(page.subplots(high, columns, squeeze=False).flat)
    looks = styles.of(dict.fromkeys(rule for runs in result.values() for rule in runs))
    for panel, (algorithm, attack, key, title) in zip(panels, rows, strict=False):
        for rule, style in looks.items():
            points = [
                (100 * share, [summary.of_run(r, 0.0, measure).get(key) for r in seeds])
                for share in (0.0, *SHARES)
                if (seeds := result.get(_at(algorithm, attack, share), {}).get(rule))
            ]
            _draw(panel, points, style, rule)
        panel.set(title=f"{algorithm}: {attack}", ylabel=title)
        panel.set(xlabel="hostile clients (%)", xticks=[0, *(100 * s for s in SHARES)])
        panel.set_xlim(-2, 100 * SHARES[-1] + 2)
        if measure.share:
            panel.set_ylim(-0.02, 1.02)
        panel.grid(color="0.88")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(rows) :]:
        panel.remove()
    lines = {
        label: line
        for panel in panels[: len(rows)]
        for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    page.legend(
        lines.values(), lines.keys(), loc="outside lower center",
        ncols=max(len(lines), 1), frameon=False, handlelength=3.5,
    )  # fmt: skip
    page.savefig(path)


def _draw(panel: axes.Axes, points, style: styles.Style, label: str) -> None:
    """Draws a rule: (share, a value of each seed) of each share."""
    known = [(x, [v for v in values if v is not None]) for x, values in points]
    known = [(x, values) for x, values in known if values]
    if not known:
        return
    x = [share for share, _ in known]
    panel.plot(
        x, [float(np.mean(values)) for _, values in known], label=label,
        color=style.color, linestyle=style.line, marker=style.marker, markersize=5,
    )  # fmt: skip
    low, high = ([f(values) for _, values in known] for f in (min, max))
    panel.fill_between(x, low, high, color=style.color, alpha=0.2, linewidth=0)
