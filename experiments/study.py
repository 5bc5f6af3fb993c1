"""Studies: algorithms, widths of codes, policies, under several settings.

    python -m experiments.study --study=methods --dataset=npz:fashion_mnist.npz
    python -m experiments.study --study=imbalance --dataset=npz:fashion_mnist.npz
    python -m experiments.study --study=bits --dataset=npz:fashion_mnist.npz
    python -m experiments.study --study=narrow --dataset=npz:fashion_mnist.npz
    python -m experiments.study --study=policies --dataset=npz:fashion_mnist.npz
    python -m experiments.study --study=algorithms --dataset=npz:fashion_mnist.npz
    python -m experiments.study --study=robust --dataset=npz:fashion_mnist.npz

With --rates=0.03,0.1,0.3 each variant has another one beside it, of the learning rate
that did best on --tuning_seeds.

All flags of `experiments.train` hold for every run; a study changes what it is about.
WORKDIR gets report.html, table.md, summary.json, curves.png and a run folder for each
run. Stop it anywhere, run the same command, and it goes on.
"""

from __future__ import annotations

import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

import fljax
from experiments import flags as config_flags
from experiments import main, robustness, tuning
from fljax import bounds, devices, tasks
from fljax.experiment import as_flags, summary
from fljax.experiment import config as configs
from fljax.experiment.pictures import plots
from fljax.experiment.report import page
from fljax.runs import simulation, writers
from fljax.runtime import durable

Fields = Mapping[str, Any]  # of the configuration, by the names of their flags


# setting -> variant -> seeds -> records
Results = dict[str, dict[str, list[list[simulation.Record]]]]

# setting -> variant -> fields: every variant of a setting is run.
Study = Mapping[str, Mapping[str, Fields]]


def cross(settings: Mapping[str, Fields], variants: Mapping[str, Fields]) -> Study:
    """Puts every variant under every setting; its fields go before the setting's."""
    return {
        setting: {name: {**fields, **more} for name, more in variants.items()}
        for setting, fields in settings.items()
    }


_MILD = devices.parse_tiers(
    "strong:.34:1:1:1,medium:.33:.8:.75-1:.8,weak:.33:.6:.6-1:.6"
)
_STRONG = devices.parse_tiers(
    "strong:.34:1:1:1,medium:.33:.5:.4-.8:.5,weak:.33:.3:.3-.6:.3"
)
_CORRELATED = {"partition": "resource_correlated", "alpha": 0.1}

_IMBALANCE = cross(
    {
        f"{how} imbalance, {data}": {"tiers": tiers, **fields}
        for how, tiers in (("mild", _MILD), ("strong", _STRONG))
        for data, fields in (
            ("IID", {"partition": "iid"}),
            ("resource-correlated", _CORRELATED),
        )
    },
    {
        "cocofl": {"algorithm": "cocofl"},
        "uniform": {"algorithm": "cocofl", "policy": "uniform"},
        "fedavg": {"algorithm": "fedavg"},
        "fedavg_drop": {"algorithm": "fedavg_drop"},
    },
)


def _codes(rounding: str, scales: str, *widths: int) -> dict[str, Fields]:
    """Gives a variant for each width of codes."""
    how = {"frozen.rounding": rounding, "frozen.weight_scales": scales, **_CORRELATED}
    return {f"{bits} bits": {**how, "frozen.bits": bits} for bits in widths}


_BITS: Study = {
    "nearest, one scale a channel": {
        "float": {"frozen.fixed_point": "none", **_CORRELATED},
        **_codes("nearest", "channel", 8, 6, 5, 4, 3, 2),
        "adaptive": {"policy": "adaptive_bits", **_CORRELATED},
    },
    "nearest, one scale a tensor": _codes("nearest", "tensor", 8, 4, 3, 2),
    "stochastic, one scale a channel": _codes("stochastic", "channel", 8, 4, 3, 2),
    "stochastic, one scale a tensor": _codes("stochastic", "tensor", 8, 4, 3, 2),
}

# Narrow codes by max|x|, and one choice after the other on top of it.
_STEPS: Mapping[str, Fields] = {
    "max|x|": {
        "frozen.clipping": False,
        "frozen.half_steps": False,
        "frozen.group": 0,
        "frozen.unbiased": False,
    },
    "+ clipping": {"frozen.clipping": True},
    "+ half steps": {"frozen.half_steps": True},
    "+ groups": {"frozen.group": 16},
    "+ unbiased": {"frozen.unbiased": True},
    "+ edges of 8 bits": {"frozen.edges": 8},
}


def _steps(bits: int) -> dict[str, Fields]:
    """Gives a variant for every step, each with those before it."""
    fields: dict[str, Any] = {"frozen.bits": bits, **_CORRELATED}
    variants: dict[str, Fields] = {}
    for name, more in _STEPS.items():
        fields = {**fields, **more}
        variants[name] = fields
    return variants


_NARROW: Study = {
    "8 bits": {"8 bits": _CORRELATED},
    "2 bits": _steps(2),
    "3 bits": _steps(3),
}

# Speeds and bandwidths that move while the server looks every tenth round only; a cost
# table that is off; a deadline that half a window too much misses, or one that a device
# of 1.0 misses that trains everything.
_STALE = {
    "changes.drift": 0.3,
    "changes.drift_rounds": 15.0,
    "changes.bandwidth": 0.3,
    "changes.refresh": 10,
    "table_error": 0.2,
    "clock.deadline": 1.5,
    **_CORRELATED,
}
_POLICIES = cross(
    {
        f"{rate:.0%} drop out": {"failures.drop": rate, **_STALE}
        for rate in (0.0, 0.2, 0.4)
    }
    | {"tight deadline": {**_STALE, "clock.deadline": 0.9}},
    {
        name: {"algorithm": "cocofl", "policy": name}
        for name in ("random_maximal", "balanced", "online", "uniform")
    },
)

# Rates of the servers' rules are about what each was published with on images.
_ALGORITHMS = cross(
    {"Dirichlet .3": {"partition": "dirichlet", "alpha": 0.3}},
    {
        **{
            name: {"algorithm": name}
            for name in (
                *("fedavg", "cocofl", "fedprox:0.01", "scaffold", "feddyn:0.1"),
                *("fednova", "fedavgm:0.5", "fedadam:0.01", "fedyogi:0.01"),
                "fedadagrad:0.03",
            )
        },
        **{
            f"fedavg, {codec}": {"algorithm": "fedavg", "codec": codec}
            for codec in ("top_k:0.01", "qsgd:4", "drive", "signsgd")
        },
        **{
            f"fedavg, {aggregate}": {"algorithm": "fedavg", "aggregate": aggregate}
            for aggregate in ("median", "trimmed_mean:0.2")
        },
        "fedavg, power of choice": {
            "algorithm": "fedavg",
            "selection": "power_of_choice:20",
        },
        "cocofl, drive": {"algorithm": "cocofl", "codec": "drive"},
    },
)

# What the method is measured against, under the same budgets: full training of all, or
# of who can; less of what is sent; narrower networks; windows. `fit` gives every tier
# the widest network of its budgets, where the published halves leave some of them.
_METHODS = cross(
    {
        f"{how} imbalance, {data}": {"tiers": tiers, **fields}
        for how, tiers in (("mild", _MILD), ("strong", _STRONG))
        for data, fields in (
            ("IID", {"partition": "iid"}),
            ("Dirichlet .3", {"partition": "dirichlet", "alpha": 0.3}),
            ("resource-correlated", _CORRELATED),
        )
    },
    {
        **{
            name: {"algorithm": name}
            for name in (
                *("fedavg", "fedavg_drop", "heterofl", "heterofl:levels=fit"),
                *("fjord", "fedrolex:levels=fit", "cocofl", "cocofl_width"),
            )
        },
        "cocofl, balanced": {"algorithm": "cocofl", "policy": "balanced"},
        **{
            f"{name}, {codec}": {"algorithm": name, "codec": codec}
            for name, codec in (
                *(("fedavg", "top_k:0.01"), ("fedavg", "qsgd:4")),
                *(("cocofl", "drive"), ("heterofl:levels=fit", "drive")),
            )
        },
    },
)

STUDIES = {
    "methods": _METHODS,
    "imbalance": _IMBALANCE,
    "bits": _BITS,
    "narrow": _NARROW,
    "policies": _POLICIES,
    "algorithms": _ALGORITHMS,
    "robust": cross(robustness.SETTINGS, robustness.VARIANTS),
}

config_flags.define_flags(skip=("seed",))
_TARGET = config_flags.target()
_TOGETHER = config_flags.together()
for _module in (config_flags, main):
    flags.adopt_module_key_flags(_module)  # `--help` lists them
_STUDY = flags.DEFINE_string("study", "imbalance", ", ".join(STUDIES) + ".")
_ONLY = flags.DEFINE_string(
    "only", "", "Settings of the study whose name has this in it; empty: all."
)
_SEEDS = flags.DEFINE_list(
    "seeds", ["1"], "Seeds, comma separated.", allow_override=True
)

_RATES = flags.DEFINE_list(
    "rates",
    [],
    "Learning rates: each variant has another beside it, of the rate that did best.",
    allow_override=True,
)
_TUNING_SEEDS = flags.DEFINE_list(
    "tuning_seeds",
    ["101"],
    "Seeds that --rates are compared on, none of --seeds.",
    allow_override=True,
)

_ACCURACY = tasks.DEFAULT.measure
_COLUMNS = (
    ("accuracy", "{mean:.3f} ± {std:.3f}", "test_accuracy"),
    ("worst tier (mix)", "{mean:.3f}", "worst_tier_accuracy"),
    ("worst tier (own)", "{mean:.3f}", "worst_tier_test_accuracy"),
    ("spread (mix)", "{mean:.3f}", "tier_spread"),
    ("in the same time", "{mean:.3f}", "in_time"),
    ("late", "{mean:.3f}", "late_accuracy"),
    ("late worst (mix)", "{mean:.3f}", "late_worst_tier"),
    ("upload MB", "{mean:.1f}", "upload_megabytes"),
    ("clock s", "{mean:.4g}", "clock_seconds"),
    ("arrived", "{mean:.2f}", "arrived"),
)


def folder(workdir: pathlib.Path, setting: str, name: str, seed: int) -> pathlib.Path:
    """Gives the folder of a run, below one for its setting and its variant."""

    def plain(text: str) -> str:
        return "".join(c if c.isalnum() else "_" for c in text)

    return workdir / plain(setting) / plain(name) / f"seed_{seed}"


def _arrived(records: list[simulation.Record], wanted: int) -> float:
    """Gives the share of the wanted updates that entered the state."""
    return sum(r["participants"] for r in records) / (wanted * len(records))


def run(
    study: Study,
    base: configs.Config,
    seeds: list[int],
    workdir: pathlib.Path,
    cache: str = "",
    hooks: simulation.Hooks | None = None,
) -> Results:
    """Runs every variant of every setting with every seed.

    Args:
      study: what to run.
      base: the fields that the study leaves alone.
      seeds: of the experiments.
      workdir: gets a run folder for each.
      cache: folder that keeps decoded data; empty: none.
      hooks: what wants to hear of the runs.

    Returns:
      setting -> variant -> seeds -> records.
    """

    def some(setting: str, name: str, fields: Fields, seeds: Sequence[int]):
        """Runs a variant with some seeds at once."""
        where = [folder(workdir, setting, name, seed) for seed in seeds]
        ready = []
        for seed, path in zip(seeds, where, strict=True):
            config = configs.replace(base, {**fields, "seed": seed})
            configs.check(config)
            ready.append(fljax.build(config, workdir=path, cache=cache))
        told: Any = {"hooks": hooks, "label": f"{setting}: {name}"}
        told["tensorboard"] = False
        if len(seeds) == 1:
            return [fljax.run(ready[0], where[0], **told).records]
        return [one.records for one in fljax.run_together(ready, where, **told)]

    batches = [seeds] if _TOGETHER.value else [[seed] for seed in seeds]
    result: Results = {}
    for setting, variants in study.items():
        runs: dict[str, list[list[simulation.Record]]] = {name: [] for name in variants}
        for batch in batches:
            for name, fields in variants.items():
                runs[name] += some(setting, name, fields, batch)
        result[setting] = runs
    return result


def tuned(
    study: Study,
    grid: tuning.Grid,
    train: Callable[[Study, int], Results],
    measure: tasks.Measure,
) -> tuple[Study, str]:
    """Puts beside each variant the one of the learning rate that does best.

    Args:
      study: the study.
      grid: rates and seeds that are tried.
      train: runs a study with one seed, as `run`.
      measure: whose mean over the late evaluations says how well a run did.

    Returns:
      The study, and a table of what the rates came to.
    """
    found = {}
    for setting, variants in study.items():

        def score(name: str, fields: Fields, seed: int, at: str = setting) -> float:
            try:
                (records,) = train({at: {name: fields}}, seed)[at][name]
            except simulation.DivergedError:
                return math.nan
            return summary.of_run(records, 0.0, measure)[summary.late_key(measure)]

        found[setting] = tuning.tune(variants, grid, score)
    wider = {s: tuning.beside(v, found[s], grid.usual) for s, v in study.items()}
    return wider, tuning.table(found, grid.rates)


def _in_time(
    records: list[simulation.Record], seconds: float, measure: tasks.Measure
) -> float:
    """Gives the last evaluation before the devices' clock says so much; NaN: none."""
    values = [
        record[measure.key]
        for record in records
        if measure.key in record
        and "rollback" not in record
        and record["clock_seconds"] <= seconds
    ]
    return values[-1] if values else float("nan")


def summarize(
    result, wanted: int, target: float = 0.0, measure: tasks.Measure = _ACCURACY
) -> dict[str, dict[str, Any]]:
    """Computes the figures of every setting and variant, as `summary.summarize`.

    Beside them the share of the updates that arrived, and where each was when the
    first of the setting's runs was through: at the same time of the devices' clock.
    """
    figures: dict[str, dict[str, Any]] = {}
    for setting, runs in result.items():
        figures[setting] = summary.summarize(runs, target, measure)
        ends = [seed[-1]["clock_seconds"] for seeds in runs.values() for seed in seeds]
        for name, seeds in runs.items():
            shares = [_arrived(records, wanted) for records in seeds]
            mean = sum(shares) / len(shares)
            figures[setting][name]["arrived"] = {"mean": mean}
            then = [_in_time(records, min(ends), measure) for records in seeds]
            figures[setting][name]["in_time"] = {"mean": sum(then) / len(then)}
    return figures


def table(
    figures_by_setting: Mapping[str, Mapping[str, Any]],
    measure: tasks.Measure = _ACCURACY,
) -> str:
    """Lays a summary out as Markdown."""
    names = [
        (setting if index == 0 else "", name)
        for setting, variants in figures_by_setting.items()
        for index, name in enumerate(variants)
    ]
    figures = [of for each in figures_by_setting.values() for of in each.values()]
    columns = summary.columns(_COLUMNS, measure)
    titles, *cells = summary.rows(columns, figures)
    titles = ["setting", "variant", *titles]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, row in zip(names, cells, strict=True):
        lines.append("| " + " | ".join((*name, *row)) + " |")
    lines += ["", *(f"- {line}" for line in summary.legend(columns, figures))]
    return "\n".join(lines) + "\n"


def _grid(
    base: configs.Config, seeds: list[int], measure: tasks.Measure
) -> tuning.Grid:
    """Reads the learning rates to try."""
    over = summary.numbers("tuning_seeds", _TUNING_SEEDS.value)
    if shared := sorted({*over} & {*seeds}):
        raise ValueError(
            f"--tuning_seeds: expected none of --seeds, which would be judged by what "
            f"they were chosen for, got {', '.join(map(str, shared))} in both"
        )
    try:
        rates = sorted({bounds.read(float, text) for text in _RATES.value})
        for rate in rates:
            configs.check(configs.replace(base, {"lr": rate}))
    except ValueError as error:
        raise ValueError(
            f"--rates: expected learning rates such as 0.03,0.1,0.3, got "
            f"{','.join(_RATES.value)!r} ({error})"
        ) from error
    return tuning.Grid(tuple(rates), tuple(over), base.lr, measure.more)


def _main() -> None:
    if _STUDY.value not in STUDIES:
        raise configs.unknown("study", _STUDY.value, STUDIES)
    seeds = summary.numbers("seeds", _SEEDS.value)
    base = config_flags.from_flags(flags.FLAGS, seed=seeds[0])
    measure = config_flags.reached(_TARGET.value, base)
    workdir = main.folder(f"runs/{_STUDY.value}")
    every = STUDIES[_STUDY.value]
    study: Study = {s: of for s, of in every.items() if _ONLY.value in s}
    if not study:
        raise ValueError(
            f"--only: expected part of a setting's name ({'; '.join(every)}), got "
            f"{_ONLY.value!r}"
        )
    grid = _grid(base, seeds, measure)
    with main.hooks() as hooks:

        def train(some: Study, over: Sequence[int]) -> Results:
            return run(some, base, list(over), workdir, main.data_cache(), hooks)

        rates = ""
        if grid.rates:
            study, rates = tuned(study, grid, lambda some, s: train(some, [s]), measure)
        result = train(study, seeds)
    if not main.is_first():
        return
    if rates:
        durable.replace(workdir / "rates.md", rates.encode())
    wanted = base.clock.buffer or base.clients_per_round
    figures = summarize(result, wanted, _TARGET.value, measure)
    robust = _STUDY.value == "robust"  # which has a table and a picture of its own
    text = (robustness.table if robust else table)(figures, measure)
    durable.replace(workdir / "table.md", text.encode())
    content = writers.to_json({"settings": figures, "seeds": seeds})
    durable.replace(workdir / "summary.json", content)
    draw = robustness.picture if robust else plots.settings
    draw(result, workdir / "curves.png", measure)
    folders = [
        folder(workdir, setting, name, seed)
        for setting, variants in study.items()
        for name in variants
        for seed in seeds
    ]
    page.write(folders, workdir / "report.html", as_flags.ran(sys.argv))
    print(text)
    files = ("report.html", "table.md", "summary.json", "curves.png")
    print(f"wrote {', '.join(str(workdir / name) for name in files)}")


if __name__ == "__main__":
    main.run(_main)
