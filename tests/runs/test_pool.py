"""Several runs as one program: each is to the bit the run that it would be alone."""

import dataclasses
import threading

import jax
import numpy as np
import pytest

import fljax
from experiments import compare, studies, study
from fljax.engine import group
from fljax.runs import meeting, pool, writers
from tests import conftest, small
from tests.runtime import test_mesh

SEEDS = (1, 2, 3)
DATA = small.data()
ABLE = (fljax.Tier(name="all", share=1, time=1, upload=1, memory=1),)


def settings(seed, **changes):
    """Gives settings whose learning rate and split go with the seed, too."""
    usual = {
        "algorithm": "fedavg",
        "network": "logistic",
        "partition": "dirichlet",
        "alpha": 0.5,
        "num_clients": 6,
        "clients_per_round": 3,
        "batch_size": 4,
        "rounds": 2,
        "lr": 0.02 * seed,
        "seed": seed,
    }
    return fljax.Config(**(usual | changes))


def ready(seed, net=None, **changes):
    return fljax.build(settings(seed, **changes), DATA, net)


def told(records):
    """Takes what of records does not tell of this machine."""
    return [{k: v for k, v in r.items() if k != "wall_seconds"} for r in records]


def assert_same(one, two):
    assert told(one.records) == told(two.records)
    jax.tree.map(np.testing.assert_array_equal, one.state.server, two.state.server)
    if one.state.clients is not None:
        everyone = np.arange(6)
        np.testing.assert_array_equal(
            one.state.clients.gather(everyone), two.state.clients.gather(everyone)
        )


CASES = {
    "fedavg": {},
    "natural": {"partition": "natural", "num_clients": 9},
    "scaffold": {"algorithm": "scaffold", "codec": "top_k:0.1"},
    "median": {"aggregate": "median", "weight_decay": 0.0},
    "cocofl": {"algorithm": "cocofl", "net": small.CONVNET},
    "windows": {"algorithm": "cocofl", "net": small.CONVNET, "programs": "windows"},
    "centralized": {"algorithm": "centralized"},
    "personal": {"algorithm": "ditto", "attack": "sign_flip:.3"},
    "private": {
        "privacy": fljax.Privacy(clip=0.5, noise=1.0, quantile=0.5, count_noise=2.0)
    },
    "bounded": {"norm_bound": 3.0, "failures": fljax.Failures(nonfinite=0.3, drop=0.3)},
}


LONG = ("natural", "windows", "centralized", "median")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name in LONG else ())
        for name in CASES
    ],
)
def test_one_by_one_no_bit_is_another(name):
    alone = [fljax.run(ready(seed, **CASES[name])) for seed in SEEDS]
    done = fljax.run_together([ready(seed, **CASES[name]) for seed in SEEDS])
    for one, two in zip(alone, done, strict=True):
        assert_same(one, two)
    assert len({str(told(one.records)) for one in done}) == len(SEEDS)


def test_side_by_side_runs_differ_by_last_bits():
    codes = fljax.Frozen(fixed_point="none")
    case = {"algorithm": "cocofl", "net": small.CONVNET, "frozen": codes}
    alone = [fljax.run(ready(seed, **case)) for seed in SEEDS]
    done = fljax.run_together([ready(s, client_width=3, **case) for s in SEEDS])
    for one, two in zip(alone, done, strict=True):
        conftest.assert_close(one.state.server, two.state.server)


def test_all_runs_are_compiled_once():
    group.forget()
    before = group.num_programs()
    done = fljax.run_together([ready(seed, rounds=3) for seed in SEEDS])
    assert [len(one.records) for one in done] == [3, 3, 3]
    assert group.num_programs() == before + 1


def test_each_has_a_folder_of_its_own_and_goes_on_however_far_it_is(tmp_path):
    where = [tmp_path / str(seed) for seed in SEEDS]
    fljax.run(settings(2, dataset="digits", rounds=1), where[1])
    fljax.run(settings(3, dataset="digits", rounds=3), where[2])  # it is finished
    runs = [settings(seed, dataset="digits", rounds=3) for seed in SEEDS]
    done = fljax.run_together(runs, where)
    for config, folder, one in zip(runs, where, done, strict=True):
        alone = fljax.run(config)
        assert_same(alone, one)
        assert told(writers.read_metrics(folder)) == told(one.records)
        assert len(fljax.run(config, folder).records) == 3  # the folder is a whole one


def test_who_diverges_leaves_and_the_others_end(tmp_path):
    where = [tmp_path / str(seed) for seed in SEEDS]
    runs = [ready(seed, rounds=3, lr=1e30 if seed == 2 else 0.1) for seed in SEEDS]
    with pytest.raises(fljax.runs.simulation.DivergedError):
        fljax.run_together(runs, where)
    finished = [len(writers.read_metrics(folder)) for folder in where]
    assert (finished[0], finished[2]) == (3, 3)
    assert "stopped" in writers.read_metrics(where[1])[-1]


def test_a_stop_interrupts_all_and_keeps_what_is_finished(tmp_path, monkeypatch):
    where = [tmp_path / str(seed) for seed in SEEDS]
    train, rounds = pool.train, []

    def stopping(*arguments):
        rounds.append(None)
        if len(rounds) == 3:
            raise KeyboardInterrupt
        return train(*arguments)

    runs = [ready(seed, rounds=5) for seed in SEEDS]
    with monkeypatch.context() as patch:
        patch.setattr(pool, "train", stopping)
        with pytest.raises(KeyboardInterrupt):
            fljax.run_together(runs, where)
    assert [writers.read_history(folder).finished for folder in where] == [1, 1, 1]
    for seed, one in zip(SEEDS, fljax.run_together(runs, where), strict=True):
        assert_same(fljax.run(ready(seed, rounds=5)), one)


def test_a_meeting_that_is_stopped_lets_nobody_wait():
    rooms = (np.ones(6),) * 3
    meet, raised = meeting.Meeting(pool.Pool(None, np.zeros(3), rooms)), []

    def wait(run):
        try:
            meet.trainer(run)(None, None, None, None)
        except KeyboardInterrupt:
            raised.append(run)

    threads = [threading.Thread(target=wait, args=(run,)) for run in (0, 2)]
    for thread in threads:
        thread.start()
    meet.stop()
    for thread in threads:
        thread.join(10)
    assert sorted(raised) == [0, 2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight_decay": 0.1}, "different ways of local training"),
        ({"selection": "poisson"}, "different selections"),
        ({"clock": fljax.Clock(over_selection=1.5)}, "different clocks"),
        ({"clients_per_round": 2}, "different numbers of clients a round"),
        ({"client_width": 2}, "different layouts"),
        ({"data_memory": "host"}, "different layouts"),
    ],
)
def test_runs_that_cannot_share_programs_are_refused(changes, words):
    with pytest.raises(ValueError, match=f"--together: expected .*{words}"):
        fljax.run_together([ready(1), ready(2, **changes)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_memory": "host"}, "training data on the devices"),
        ({"clock": fljax.Clock(buffer=2)}, "late updates are dropped"),
        ({"algorithm": "heterofl", "net": small.CONVNET}, "networks of one width"),
        (
            {"algorithm": "depthfl:0", "net": small.CONVNET, "tiers": ABLE},
            "networks of one depth",
        ),
        ({"secure_sum": "18"}, "sums of floats"),
        ({"aggregate": "fltrust:5"}, "clients alone"),
    ],
)
def test_runs_that_are_no_pool_are_refused(tmp_path, changes, words):
    runs = [ready(seed, **changes) for seed in SEEDS]
    where = [tmp_path / str(seed) for seed in SEEDS]
    with pytest.raises(ValueError, match=f"^--together: .*{words}"):
        fljax.run_together(runs, where)
    assert not any(tmp_path.iterdir())  # before anything is written


def test_cohorts_of_different_sizes_are_refused():
    sizes = zip(SEEDS, (8, 6, 8), strict=True)  # rooms of Poisson cohorts go by them
    runs = [
        ready(s, num_clients=n, selection="poisson", clients_per_round=4)
        for s, n in sizes
    ]
    with pytest.raises(ValueError, match="--together: expected as many updates"):
        fljax.run_together(runs)


def test_no_runs_are_refused():
    with pytest.raises(ValueError, match="runs: expected one at least"):
        fljax.run_together([])


def test_what_ran_together_can_run_alone():
    for one in fljax.run_together([ready(seed) for seed in SEEDS]):
        assert_same(one, fljax.run(one.experiment))


def test_other_data_are_refused():
    other = dataclasses.replace(settings(2))
    moved = DATA._replace(x_train=DATA.x_train + 1)
    with pytest.raises(ValueError, match="different training data"):
        fljax.run_together([ready(1), fljax.build(other, moved)])


def test_seeds_of_a_comparison_and_a_study(call, tmp_path, monkeypatch):
    flags = ("--network=logistic", "--num_clients=12", "--clients_per_round=3",
             "--rounds=2", "--seeds=1,2")  # fmt: skip
    wanted = {"one by one": (), "together": ("--together",)}
    few = studies.cross({"calm": {}}, {"fedavg": {"algorithm": "fedavg"}})
    monkeypatch.setitem(studies.STUDIES, "imbalance", few)
    for command, more in ((compare, "--algorithms=fedavg"), (study, "--only=")):
        kept = {}
        for name, flag in wanted.items():
            where = tmp_path / command.__name__ / name
            done = call(command, *flags, more, *flag, f"--workdir={where}")
            assert done.code == 0, done.err
            kept[name] = {
                path.relative_to(where): told(writers.read_metrics(path.parent))
                for path in sorted(where.rglob("metrics.jsonl"))
            }
        assert len(kept["together"]) == 2
        assert kept["together"] == kept["one by one"]


ON_EIGHT = """
import jax, fljax, pytest
from fljax.runs import pool
from fljax.runtime import backends
from tests import conftest
from tests.runs import test_pool

assert len(jax.devices()) == 8
one = fljax.run(test_pool.ready(2, devices="1"))
two = fljax.run_together([test_pool.ready(seed) for seed in test_pool.SEEDS])[1]
conftest.assert_close(one.state.server, two.state.server)
made = fljax.experiment.algorithm(test_pool.ready(1))
backends.accelerated = lambda: True
with pytest.raises(ValueError, match="expected one accelerator"):
    pool.make([made, made])
"""


@pytest.mark.long
def test_several_devices_agree_with_one():
    test_mesh.on_devices(8, ON_EIGHT)
