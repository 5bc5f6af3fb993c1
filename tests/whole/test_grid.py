"""Every pair of choices runs to a sound end, or is refused in one line.

A covering array (Cohen et al., "The AETG system", 1997): in few runs, each of which
takes a value of every factor, any two values of two factors meet once at least. Pairs
that make no sense together are in `REFUSED`, and nowhere else.
"""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

import fljax
from tests import small

COLLUDE = ("alie:.3", "ipm:.3", "min_max:.3")  # who know all updates
POISON = ("label_flip:.3", "backdoor:.3")
# fedper and fedbn are fedrep without its first epochs, and of other leaves.
PERSONAL = ("fedrep", "ditto", "local")
STAGED = "slt:2"  # a round for the narrow network, one for the whole one
WIDTHS = (
    *("heterofl", "fedrolex", "federated_dropout", "fjord", "cocofl_width"),
    STAGED,
)
FACTORS = {
    "algorithm": (
        *("fedavg", "fedavg_drop", "centralized", "fedprox", "fedavgm", "fedadam"),
        *("fedyogi", "fedadagrad", "scaffold", "feddyn", "fednova", "cocofl"),
        *WIDTHS,
        "depthfl:0",
        *PERSONAL,
    ),
    "codec": (
        *("none", "top_k:.1", "random_k:.1", "qsgd:4", "uniform:4", "ternary"),
        *("signsgd", "drive", "eden:2", "clip:1+top_k:.1"),
    ),
    "policy": (
        *("random_maximal", "uniform", "largest", "largest_compute", "balanced"),
        *("round_robin", "online", "adaptive_bits", "random_shared"),
    ),
    "task": ("classification", "tokens", "regression", "multilabel"),
    "clock": ("plain", "drop", "carry", "buffer"),
    "aggregate": (
        *("mean", "median", "trimmed_mean:.2", "krum:0:2", "bulyan:0"),
        *("geometric_median", "centered_clipping:.1", "fltrust:20"),
    ),
    "attack": ("none", *POISON, "sign_flip:.3", "gaussian:.3", *COLLUDE),
    "selection": ("uniform", "poisson", "power_of_choice:20", "oort"),
    "client_optimizer": ("sgd", "momentum", "adamw"),
    "rollback": ("none", "server", "tier"),
    "weighting": ("uniform", "examples"),
    "norm_bound": (0.0, 3.0),
    "secure_sum": ("none", "18"),
    "failures": ("none", "some"),
    "client_width": (1, 2),
    "programs": ("one", "windows"),
    "privacy": ("none", "gaussian"),
}


def but(factor, *values):
    """Gives the other values of a factor."""
    return tuple(value for value in FACTORS[factor] if value not in values)


# Values of one factor, values of another, and the flag of the error.
REFUSED = (
    ("algorithm", ("centralized",), "codec", but("codec", "none"), "--codec"),
    ("algorithm", ("centralized",), "aggregate", but("aggregate", "mean"),
     "--aggregate"),
    ("algorithm", ("centralized",), "selection", but("selection", "uniform"),
     "--selection"),
    ("algorithm", ("scaffold", "feddyn"), "weighting", ("examples",), "--weighting"),
    ("algorithm", ("scaffold", "feddyn"), "aggregate", but("aggregate", "mean"),
     "--aggregate"),
    ("algorithm", ("fednova",), "aggregate", ("fltrust:20",), "--aggregate"),
    ("clock", ("buffer",), "aggregate", ("krum:0:2", "bulyan:0"), "--aggregate"),
    ("algorithm", ("scaffold", "feddyn", STAGED), "clock", ("carry",),
     "--clock.late"),
    ("algorithm", ("scaffold", "feddyn", STAGED), "clock", ("buffer",),
     "--clock.buffer"),
    ("algorithm", ("scaffold",), "client_optimizer", ("momentum",), "--momentum"),
    ("algorithm", ("scaffold", "fednova"), "client_optimizer", ("adamw",),
     "--client_optimizer"),
    ("algorithm", WIDTHS, "aggregate", but("aggregate", "mean"), "--aggregate"),
    ("algorithm", ("fjord",), "client_optimizer", ("momentum",), "--momentum"),
    ("algorithm", ("fjord",), "client_optimizer", ("adamw",), "--client_optimizer"),
    ("algorithm", ("centralized", "local"), "attack", but("attack", "none"),
     "--attack"),
    ("algorithm", WIDTHS, "attack", COLLUDE, "--attack"),
    ("task", but("task", "classification"), "attack", POISON, "--attack"),
    ("norm_bound", (3.0,), "attack", COLLUDE, "--norm_bound"),
    ("algorithm", ("local",), "codec", but("codec", "none"), "--codec"),
    ("algorithm", ("local",), "aggregate", but("aggregate", "mean"), "--aggregate"),
    ("algorithm", ("local",), "norm_bound", but("norm_bound", 0.0), "--norm_bound"),
    ("algorithm", ("local",), "secure_sum", ("18",), "--secure_sum"),
    ("algorithm", ("local",), "privacy", ("gaussian",), "--privacy.clip"),
    ("algorithm", PERSONAL, "aggregate", ("fltrust:20",), "--aggregate"),
    ("weighting", ("examples",), "aggregate", but("aggregate", "mean"), "--aggregate"),
    ("rollback", ("tier",), "algorithm",
     but("algorithm", "cocofl", "depthfl:0", *WIDTHS), "--rollback.lowers"),
    ("rollback", ("tier",), "policy", ("uniform",), "--rollback.lowers"),
    ("secure_sum", ("18",), "algorithm", ("centralized", *WIDTHS), "--secure_sum"),
    ("secure_sum", ("18",), "codec", but("codec", "none"), "--codec"),
    ("secure_sum", ("18",), "aggregate", but("aggregate", "mean"), "--aggregate"),
    ("secure_sum", ("18",), "norm_bound", (3.0,), "--norm_bound"),
    ("secure_sum", ("18",), "attack", COLLUDE, "--attack"),
    ("secure_sum", ("18",), "clock", ("carry",), "--clock.late"),
    ("secure_sum", ("18",), "clock", ("buffer",), "--clock.buffer"),
    ("clock", ("carry", "buffer"), "selection", ("poisson",), "--selection"),
    *(("privacy", ("gaussian",), *other) for other in (
        ("algorithm", ("centralized", "scaffold", "fednova", "depthfl:0", *WIDTHS),
         "--privacy.clip"),
        ("aggregate", but("aggregate", "mean"), "--aggregate"),
        ("attack", COLLUDE, "--attack"),
        ("weighting", ("examples",), "--weighting"),
        ("norm_bound", (3.0,), "--norm_bound"),
        ("policy", ("adaptive_bits",), "--policy"),
        ("selection", ("power_of_choice:20", "oort"), "--selection"),
        ("clock", ("carry",), "--clock.late"),
        ("clock", ("buffer",), "--clock.buffer"),
        ("rollback", but("rollback", "none"), "--rollback"),
    )),
)  # fmt: skip


def refused():
    """Lists the pairs that are refused, each as a set, with the flag."""
    return {
        frozenset([(one, a), (two, b)]): flag
        for one, left, two, right, flag in REFUSED
        for a, b in itertools.product(left, right)
    }


def pairs():
    """Lists all pairs of values of two factors, each as a set."""
    return [
        frozenset([(one, a), (two, b)])
        for one, two in itertools.combinations(FACTORS, 2)
        for a, b in itertools.product(FACTORS[one], FACTORS[two])
    ]


def covering():
    """Makes runs in which all pairs meet that are not refused; always the same."""
    never = refused()
    left = dict.fromkeys(pair for pair in pairs() if pair not in never)
    runs = []
    while left:
        taken = dict(next(iter(left)))
        for factor in FACTORS:
            if factor in taken:
                continue

            def gain(value, factor=factor, taken=taken):
                met = [frozenset([item, (factor, value)]) for item in taken.items()]
                if not never.keys().isdisjoint(met):
                    return -1
                return sum(pair in left for pair in met)

            # The first of the best; which is first moves on from run to run.
            values = FACTORS[factor]
            turned = [values[(len(runs) + i) % len(values)] for i in range(len(values))]
            taken[factor] = max(turned, key=gain)
            assert gain(taken[factor]) >= 0, (factor, taken)
        for pair in itertools.combinations(taken.items(), 2):
            left.pop(frozenset(pair), None)
        runs.append({factor: taken[factor] for factor in FACTORS})
    return runs


CLOCKS = {
    "plain": fljax.Clock(),
    "drop": fljax.Clock(deadline=1.2),
    "carry": fljax.Clock(deadline=1.2, late="carry"),
    "buffer": fljax.Clock(buffer=2),
}
FAILURES = {
    "none": fljax.Failures(),
    "some": fljax.Failures(
        drop=0.1, lost=0.1, truncated=0.1, duplicated=0.1, delayed=0.1, nonfinite=0.2
    ),
}
OPTIMIZERS = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "adamw": {"client_optimizer": "adamw"},
}
ROLLBACKS = {
    "none": fljax.Rollback(),
    "server": fljax.Rollback(drop=0.3, loss=5.0),
    "tier": fljax.Rollback(loss=5.0, lowers="tier"),
}

PRIVACIES = {
    "none": fljax.Privacy(),
    "gaussian": fljax.Privacy(clip=1.0, noise=0.1, delta=0.01),
}


# Of devices so able that small networks have several windows for each tier.
TIERS = tuple(
    fljax.Tier(name=name, share=share, time=time, upload=upload, memory=memory)
    for name, share, time, upload, memory in (
        ("strong", 0.4, 1.0, 1.0, 1.0),
        ("medium", 0.3, 0.95, (0.9, 1.0), 1.0),
        ("weak", 0.3, 0.8, (0.6, 1.0), 0.9),
    )
)
# All of them can train any block whole, the last ones not all blocks.
ABLE = tuple(
    dataclasses.replace(tier, time=limit, upload=limit, memory=limit)
    for tier, limit in zip(TIERS, (1.0, 1.0, 0.98), strict=True)
)


def settings(taken):
    """Turns a run of the grid into settings."""
    rate = 0.01 if taken["client_optimizer"] == "adamw" else 0.05
    named = ("algorithm", "codec", "policy", "task", "aggregate", "attack", "selection",
             "weighting", "norm_bound", "secure_sum", "client_width",
             "programs")  # fmt: skip
    return fljax.Config(
        **{name: taken[name] for name in named},
        **OPTIMIZERS[taken["client_optimizer"]],
        clock=CLOCKS[taken["clock"]],
        failures=FAILURES[taken["failures"]],
        rollback=ROLLBACKS[taken["rollback"]],
        privacy=PRIVACIES[taken["privacy"]],
        tiers=ABLE if taken["algorithm"] == STAGED else TIERS,
        partition="natural",
        clients_per_round=3,
        rounds=2,
        local_epochs=1,
        batch_size=4,
        lr=rate,
        seed=1,
    )


def network(taken):
    """Gives the smallest network that fits; None: of the settings."""
    if taken["task"] == "tokens":
        return small.TEXTNET
    deep = ("cocofl", *WIDTHS, "depthfl:0", *PERSONAL)
    return small.CONVNET if taken["algorithm"] in deep else None


def build(taken):
    """Builds the experiment of a run of the grid."""
    net = network(taken)
    config = settings(taken)
    if net is None:
        config = fljax.experiment.config.replace(config, {"network": "logistic"})
    return fljax.build(config, small.data(taken["task"]), net)


def numbers(value):
    """Yields all numbers of a record."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield value


def check(taken):
    """Runs, and checks what came of it."""
    ready = build(taken)
    before = fljax.experiment.algorithm(ready).init()
    result = fljax.run(ready)
    assert [record["round"] for record in result.records] == [0, 1]
    for record in result.records:
        assert np.all(np.isfinite([*numbers(record)])), record
    for leaf in jax.tree.leaves((result.state.server, result.state.policy)):
        assert np.all(np.isfinite(leaf)), result.records
    took_part = sum(record["participants"] for record in result.records)
    old, new = (jax.tree.leaves(s.server.blocks) for s in (before, result.state))
    moved = any(np.any(a != b) for a, b in zip(old, new, strict=True))
    undone = any("rollback" in record for record in result.records)
    # Nobody may point to where the server does; noise comes whoever does.
    idle = taken["aggregate"].startswith("fltrust") and not moved
    private = taken["privacy"] != "none"
    sends = taken["algorithm"] not in ("centralized", "local")
    moves = bool(took_part or private) and taken["algorithm"] != "local"
    assert moved == moves or undone or idle, result.records
    if sends:
        assert sum(record["download_bytes"] for record in result.records) > 0
        began = {record["round"]: record["participants"] for record in result.records}
        assert all(
            record["upload_bytes"] > 0
            for record in result.records
            if began[record["round"]]
        )
    if result.state.clients is not None:
        rows = result.state.clients
        assert 0 <= rows.visited <= took_part
        assert np.all(np.isfinite(rows.gather(np.arange(len(small.SIZES)))))
    return result


RUNS = covering()


def test_every_pair_is_run_or_refused():
    never = refused()
    assert never.keys() <= set(pairs())
    met = {frozenset(p) for run in RUNS for p in itertools.combinations(run.items(), 2)}
    assert met == set(pairs()) - never.keys()
    assert len(RUNS) < 260


SAMPLE = range(17, 100, 31)  # the others run with `-m long`


@pytest.mark.parametrize(
    "index",
    [
        pytest.param(index, marks=[] if index in SAMPLE else [pytest.mark.long])
        for index in range(len(RUNS))
    ],
)
def test_runs(index):
    check(RUNS[index])


USUAL = {factor: values[0] for factor, values in FACTORS.items()}


@pytest.mark.parametrize(
    ("pair", "flag"),
    [(dict(sorted(pair)), flag) for pair, flag in refused().items()],
    ids=lambda x: "-".join(map(str, x.values())) if isinstance(x, dict) else x,
)
def test_refused(pair, flag):
    taken = USUAL | pair
    if "algorithm" not in pair and {"rollback", "policy"} & pair.keys():
        taken["algorithm"] = "cocofl"
    with pytest.raises(ValueError, match=flag) as error:  # before anything can run
        fljax.experiment.algorithm(build(taken))
    (line,) = str(error.value).splitlines()
    assert line.startswith(flag)
    for factor in {"codec", "aggregate", "selection"} & pair.keys():
        if flag == f"--{factor}":  # what it proposes is a value
            assert f": expected {FACTORS[factor][0]} " in line


def test_a_buffer_of_more_than_are_able_names_its_flag():
    able = len(fljax.algorithms.fedavg_drop.unconstrained(build(USUAL).federation))
    taken = settings(USUAL | {"algorithm": "fedavg_drop"})
    clock = fljax.Clock(buffer=able + 1)
    taken = dataclasses.replace(taken, network="logistic", clock=clock)
    ready = fljax.build(taken, small.data())
    with pytest.raises(ValueError, match=f"^--clock.buffer: expected at most {able}, "):
        fljax.experiment.algorithm(ready)
