"""What a comparison comes to, in sentences that follow from its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fljax import tasks
from fljax.experiment.comparing import summary
from fljax.experiment.report import found

_NAMED = 6  # variants that are told of; the table has them all
_LISTED = 3  # variants that are alike and named one by one
_COSTS = (  # figure, words, unit
    ("upload_megabytes", "sends most", "MB"),
    ("clock_seconds", "takes longest on the devices' clock", "s"),
)
_SOON = 0.01  # of accuracy: what is lost after the best round is worth a sentence


def sentences(
    setting: found.Setting, figures: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Says which variant is best, by how much, and whether that is more than chance.

    Args:
      setting: what is compared.
      figures: of each variant, as `summary.summarize` gives them.

    Returns:
      Sentences, the most important ones first.
    """
    order = ranked(setting, figures)
    said = [_best(setting, order[0], figures[order[0]])]
    if len(order) == 1:
        said += _along(setting, order[0])
    for name in order[1:_NAMED]:
        said.append(_behind(setting, name, order[0]))
    if len(order) > _NAMED:
        said.append(f"{len(order) - _NAMED} more are further behind: see the table.")
    if len(order) > 1:
        said += _worst_tier(setting, order, figures)
        for cost in _COSTS:
            said += _costs(figures, order[0], cost)
    return said + cautions(setting)


def ranked(setting: found.Setting, figures: Mapping[str, Mapping]) -> list[str]:
    """Orders the variants, the best first."""
    key = setting.measure.key
    return sorted(
        setting.variants,
        key=lambda name: figures[name][key]["mean"],
        reverse=setting.measure.more,
    )


def number(measure: tasks.Measure, value: float) -> str:
    """Writes a value of a measure, a share in percent."""
    return f"{100 * value:.1f} %" if measure.share else f"{value:.4g}"


def interval(measure: tasks.Measure, figure: Mapping[str, Any]) -> str:
    """Writes a 95 % interval; empty where one seed has none."""
    if "interval_95" not in figure:
        return ""
    scale = 100 if measure.share else 1
    form = "{:.1f}" if measure.share else "{:.4g}"
    low, high = (form.format(scale * end) for end in figure["interval_95"])
    return f"{low} to {high}"


def difference(
    setting: found.Setting, name: str, best: str
) -> tuple[dict[str, Any], bool]:
    """Compares two variants by the seeds that both have: on the same splits and draws.

    Returns:
      Mean and interval of what the second is ahead, as of `summary.over_seeds`, and
      whether it is over such pairs; else it is of the two means.
    """
    measure = setting.measure
    one, two = (
        {run.seed: run.final(measure) for run in setting.variants[which]}
        for which in (best, name)
    )
    both = sorted(one.keys() & two.keys())
    sign = 1 if measure.more else -1
    if both:
        ahead = [sign * (one[seed] - two[seed]) for seed in both]
        return summary.over_seeds(ahead), True
    means = [sum(values.values()) / len(values) for values in (one, two)]
    return {"mean": sign * (means[0] - means[1])}, False


def cautions(setting: found.Setting) -> list[str]:
    """Says what makes a comparison less than it seems."""
    every = [run for runs in setting.variants.values() for run in runs]
    said = []
    for run in every:
        if run.stopped:
            said.append(
                f"{run.folder.name} of {_of(setting, run)} ended early: {run.stopped}."
            )
    short = [run for run in every if len(run.records) < run.rounds and not run.stopped]
    if short:
        done = min(len(run.records) for run in short)
        said.append(
            f"{_runs(len(short))} of {len(every)} {'is' if len(short) == 1 else 'are'} "
            f"not finished (the shortest has {done} of {short[0].rounds} rounds)."
        )
    if len(every) == len(setting.variants) > 1:
        said.append("One seed each: nothing tells how much of this is chance.")
    elif max(map(len, setting.variants.values())) == 2:
        said.append("Two seeds at most: intervals of so few are wide; take three.")
    said += _unlike("rounds", {n: r[0].rounds for n, r in setting.variants.items()})
    seeds = {n: [run.seed for run in runs] for n, runs in setting.variants.items()}
    said += _unlike("seeds", {n: ", ".join(map(str, s)) for n, s in seeds.items()})
    by_seed: dict[int, set] = {}
    for run in every:
        data = run.described.config.get("dataset_sha256")
        by_seed.setdefault(run.seed, set()).add(data)
    if any(len(data) > 1 for data in by_seed.values()):
        said.append("They did not train and test on the same data.")
    return said


def _best(setting: found.Setting, name: str, figures: Mapping[str, Any]) -> str:
    measure, figure = setting.measure, figures[setting.measure.key]
    seeds = len(setting.variants[name])
    rounds = max(len(run.records) for run in setting.variants[name])
    about = f"after {rounds} round{'s' * (rounds != 1)}"
    if within := interval(measure, figure):
        about += f", mean of {seeds} seeds (95 % interval {within})"
    begin = f"{name} is best: its" if len(setting.variants) > 1 else f"{name}: the"
    return f"{begin} test {measure.title} is {number(measure, figure['mean'])} {about}."


def _along(setting: found.Setting, name: str) -> list[str]:
    """Says of a variant alone whether it was better on the way."""
    measure, said = setting.measure, []
    pick: Callable = max if measure.more else min
    for run in setting.variants[name]:
        there = [r for r in run.records if measure.key in r and "rollback" not in r]
        if not there:
            continue
        best = pick(there, key=lambda record: record[measure.key])
        lost = abs(best[measure.key] - run.final(measure))
        if measure.share and lost > _SOON:
            said.append(
                f"With seed {run.seed} it was better after round {best['round']}: "
                f"{number(measure, best[measure.key])}."
            )
    return said


def _behind(setting: found.Setting, name: str, best: str) -> str:
    """Says how far a variant is behind the best one, and whether that is chance."""
    measure = setting.measure
    ahead, paired = difference(setting, name, best)
    lower = "lower" if measure.more else "higher"
    if ahead["mean"] == 0:
        return f"{name} ends with the same."
    text = f"{name} is {_amount(measure, abs(ahead['mean']))} {lower}"
    if "interval_95" not in ahead:
        return f"{text} with {'the seed that both have' if paired else 'other seeds'}."
    low, high = ahead["interval_95"]
    within = f"95 % interval {_points(measure, low)} to {_points(measure, high)}"
    if low > 0:
        return f"{text} ({within}), more than chance explains."
    return f"{text}, which these seeds cannot tell from chance ({within})."


def _amount(measure: tasks.Measure, value: float) -> str:
    return f"{100 * value:.1f} points" if measure.share else f"{value:.4g}"


def _points(measure: tasks.Measure, value: float) -> str:
    return f"{100 * value:.1f}" if measure.share else f"{value:.4g}"


def _worst_tier(
    setting: found.Setting, order: Sequence[str], figures: Mapping[str, Mapping]
) -> list[str]:
    """Says whose weakest tier does best, of the tier's own test examples."""
    measure = setting.measure
    key = f"worst_tier_{measure.key}"
    there = [name for name in order if key in figures[name]]
    if len(there) < len(order):
        return []
    means = {name: figures[name][key]["mean"] for name in there}
    best = (max if measure.more else min)(there, key=means.__getitem__)
    shown = number(measure, means[best])
    if best == order[0]:
        return [f"{best}'s worst tier does best: {shown} on its own test examples."]
    other = number(measure, means[order[0]])
    return [
        f"The worst tier does best with {best}: {shown} on its own test examples, "
        f"{other} with {order[0]}."
    ]


def _costs(
    figures: Mapping[str, Mapping[str, Any]], best: str, cost: tuple[str, str, str]
) -> list[str]:
    """Says who costs most, and what share of that others cost.

    Of many that is the best and the cheapest.
    """
    key, what, unit = cost
    means = {name: of[key]["mean"] for name, of in figures.items() if key in of}
    if len(means) < len(figures) or min(means.values()) > 0.995 * max(means.values()):
        return []
    most, *rest = sorted(means, key=means.__getitem__, reverse=True)
    few = len(rest) < _NAMED
    others = [name for name in rest if few or name in (best, rest[-1])]
    shares = [f"{name} {100 * means[name] / means[most]:.3g} %" for name in others]
    return [f"{most} {what}, {means[most]:.4g} {unit}; {', '.join(shares)} of that."]


def _unlike(what: str, values: Mapping[str, Any]) -> list[str]:
    """Says what differs between variants, those that are alike together."""
    if len(set(values.values())) < 2:
        return []
    alike: dict[Any, list[str]] = {}
    for name, value in values.items():
        alike.setdefault(value, []).append(name)
    parts = []
    for value, names in alike.items():
        few = ", ".join(names) if len(names) <= _LISTED else f"{len(names)} variants"
        parts.append(f"{value} ({few})")
    listed = "; ".join(parts)
    return [f"They differ in their {what}: {listed}."]


def _of(setting: found.Setting, run: found.Run) -> str:
    return next(name for name, runs in setting.variants.items() if run in runs)


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"
