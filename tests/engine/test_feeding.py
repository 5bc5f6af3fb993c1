"""Training data on the host: what a round brings, and that it changes no bit."""

import jax
import numpy as np
import pytest

import fljax
from fljax.data import partition
from fljax.engine import client, cohort, feeding, group
from fljax.runtime import memory
from tests import small


def cohort_of(ids, size):
    """Gathers clients of 2, 3 and 1 examples out of ten; a row an example."""
    parts = partition.Split(np.array([9, 4, 0, 7, 2, 5], np.int32), np.array([2, 3, 1]))
    shards = partition.index_table(parts)
    return cohort.gather(np.array(ids, int), shards, np.ones(3), size)


DATA = client.Data(np.arange(10)[:, None] * 1.0, np.arange(10), 0.0, 1.0)


def test_a_round_brings_the_examples_of_its_clients():
    whole = cohort_of([1, 0], 3)
    few, clients = feeding.bring(DATA, whole, 2, 6)
    assert few.x.shape == (6, 1)
    for k, count in enumerate((3, 2)):
        span = slice(clients.starts[k], clients.starts[k] + count)
        old = whole.indices[whole.starts[k] : whole.starts[k] + count]
        assert few.y[clients.indices[span]].tolist() == DATA.y[old].tolist()
    assert clients.counts.tolist() == whole.counts.tolist()


def test_a_round_without_clients_brings_nothing():
    few, clients = feeding.bring(DATA, cohort_of([], 2), 0, 5)
    assert few.x.shape == (5, 1)
    assert clients.starts.tolist() == [0, 0]


def test_there_is_room_for_the_largest_clients():
    counts = np.array([4, 9, 1, 6])
    assert [feeding.room(counts, k) for k in (1, 2, 9)] == [9, 15, 20]
    assert feeding.size(DATA, 3) == 3 * (8 + 8)


def trained(**changes):
    net = small.CONVNET if changes["algorithm"] == "cocofl" else None
    failures = fljax.Failures(drop=changes.pop("drop", 0.0))
    ready = small.build(net, rounds=3, failures=failures, **changes)
    return ready, fljax.run(ready)


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "fedavg"},
        {"algorithm": "cocofl", "client_width": 2},
        {"algorithm": "fedavg", "drop": 0.5},
        {"algorithm": "scaffold", "clients_per_round": 9},
    ],
)
def test_no_bit_depends_on_where_data_lie(changes):
    (there, one), (here, two) = (
        trained(**changes, data_memory=place) for place in ("device", "host")
    )
    assert isinstance(here.federation.population.data.x, np.ndarray)
    assert isinstance(there.federation.population.data.x, jax.Array)
    jax.tree.map(np.testing.assert_array_equal, one.state.server, two.state.server)
    times = ("wall_seconds",)
    for a, b in zip(one.records, two.records, strict=True):
        assert {k: v for k, v in a.items() if k not in times} == {
            k: v for k, v in b.items() if k not in times
        }


def test_a_program_serves_all_rounds():
    group.forget()
    before = group.num_programs()
    trained(algorithm="fedavg", data_memory="host")
    assert group.num_programs() == before + 1


def test_large_data_stay_on_the_host(monkeypatch):
    size = small.data().x_train.nbytes + small.data().y_train.nbytes
    monkeypatch.setattr(memory, "of_device", lambda: 2 * size - 1)
    assert small.build(network="logistic").federation.layout.streams
    monkeypatch.setattr(memory, "of_device", lambda: 2 * size)
    assert not small.build(network="logistic").federation.layout.streams


def test_what_does_not_fit_is_refused(monkeypatch):
    ready = small.build(network="logistic", data_memory="host", clients_per_round=2)
    monkeypatch.setattr(
        memory, "of_device", lambda: 10_400
    )  # twice 20 examples of 260 B
    fljax.experiment.algorithm(ready)
    monkeypatch.setattr(memory, "of_device", lambda: 10_399)
    with pytest.raises(ValueError, match="--data_memory: expected what fits into"):
        fljax.experiment.algorithm(ready)


def test_clients_are_evaluated_but_not_fine_tuned():
    users = np.repeat(np.arange(len(small.SIZES)), small.SIZES)
    data = small.data()._replace(users_test=users)

    def evaluated(way, place):
        made = fljax.Config(
            algorithm="fedavg",
            network="logistic",
            partition="natural",
            clients_per_round=3,
            rounds=1,
            evaluation=way,
            data_memory=place,
        )
        return fljax.run(fljax.build(made, data)).records[-1]["client_test_accuracy"]

    assert evaluated("clients", "host") == evaluated("clients", "device")
    with pytest.raises(ValueError, match="--evaluation: expected clients without fine"):
        evaluated("clients:1", "host")


def test_a_run_goes_on_with_its_data_elsewhere(tmp_path):
    fljax.run(small.build(network="logistic", rounds=2), tmp_path / "x")
    moved = small.build(network="logistic", rounds=4, data_memory="host")
    went_on = fljax.run(moved, tmp_path / "x")
    alone = fljax.run(small.build(network="logistic", rounds=4))
    jax.tree.map(
        np.testing.assert_array_equal, went_on.state.server, alone.state.server
    )
