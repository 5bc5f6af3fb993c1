"""Aggregates that see updates, in whole rounds."""

import jax
import numpy as np
import pytest

import fljax
from fljax.engine import feeding
from fljax.engine.rounds import setting, training
from fljax.runtime import memory
from tests import conftest, small


def end(number, **changes):
    """Gives the state after rounds."""
    *_, (_, _, state, _) = small.rounds(small.build(**changes), number)
    return state


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "aggregate",
    [
        "fltrust:20",
        pytest.param("krum:0:2", marks=LONG),
        pytest.param("bulyan:0", marks=LONG),
        pytest.param("geometric_median", marks=LONG),
        pytest.param("centered_clipping:.1", marks=LONG),
    ],
)
def test_side_by_side_clients_are_as_one_by_one(aggregate):
    one, three = (end(2, client_width=width, aggregate=aggregate) for width in (1, 3))
    small.assert_alike(one, three)
    first = fljax.experiment.algorithm(small.build(aggregate=aggregate)).init()
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), first.server.blocks, one.server.blocks
    )
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_the_server_trains_its_root_set_as_a_client_would():
    """Against a step of all examples in numpy, since the root set is all of them."""
    number, rate = sum(small.SIZES), 0.1
    ready = small.build(
        aggregate=f"fltrust:{number}", batch_size=number, lr=rate, weight_decay=0.0
    )
    made = fljax.experiment.algorithm(ready)
    state = made.init()
    assignment = made.assign(state, 0)
    rounds = made.round.__self__.rounds
    server = rounds.everywhere(state.server)
    begun = setting.Begun((server.blocks,))
    sums = training.train(rounds, begun, assignment, rounds.unlimited)
    assert sums.updates.ids[0].tolist() == [-1, *assignment.ids.tolist()]
    data = small.data()
    x = data.x_train.reshape(number, -1).astype(np.float64)
    x = (x - x.mean()) / x.std()
    bias, kernel = map(np.asarray, jax.tree.leaves(server.blocks[0]["params"]))
    logits = x @ kernel + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    wrong = p / p.sum(1, keepdims=True) - np.eye(small.OUTPUTS)[data.y_train]
    step = np.concatenate([wrong.sum(0), (x.T @ wrong).ravel()]) * -rate / number
    rows = np.asarray(sums.updates.params[0][0], np.float64)
    np.testing.assert_allclose(rows[0], step, rtol=1e-3, atol=1e-6)
    # And what the round makes of it.
    cosines = rows[1:] @ rows[0] / np.linalg.norm(rows, axis=1)[1:]
    cosines = np.maximum(cosines / np.linalg.norm(rows[0]), 0)
    lengths = np.linalg.norm(rows[0]) / np.linalg.norm(rows[1:], axis=1)
    moved = (cosines * lengths) @ rows[1:] / cosines.sum()
    new, report = made.round(state, assignment)
    bias, kernel = jax.tree.leaves(
        jax.tree.map(np.subtract, new.server.blocks, server.blocks)
    )
    got = np.concatenate([bias, kernel.ravel()])
    np.testing.assert_allclose(got, moved, rtol=1e-3, atol=1e-6)
    assert np.asarray(report.losses).shape == (len(assignment.ids),)


def test_a_bound_on_norms_spares_the_server():
    # Thirteen steps with momentum go further than three times a client's one to three.
    ready = small.build(aggregate="fltrust:52", norm_bound=3.0, momentum=0.9, lr=0.01)
    for before, _, after, _ in small.rounds(ready, 2):
        old, new = (jax.tree.leaves(state.server.blocks) for state in (before, after))
    assert any(np.any(a != b) for a, b in zip(old, new, strict=True))


def test_a_run_that_goes_on_keeps_the_center(tmp_path):
    def run(rounds, folder):
        ready = small.build(aggregate="centered_clipping:.05", rounds=rounds)
        return fljax.run(ready, tmp_path / folder)

    run(1, "halves")
    twice, once = run(2, "halves"), run(2, "whole")
    conftest.assert_same_bits(twice.state.server, once.state.server)
    assert np.any(np.concatenate(once.state.server.aggregate))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aggregate": "krum:1"}, "of 4 updates, the most .* got Krum.*which wants 5"),
        ({"aggregate": "krum:0:5"}, "got Krum.hostile=0, chosen=5., which wants 5"),
        ({"aggregate": "bulyan:1"}, "got Bulyan.hostile=1., which wants 7"),
        ({"aggregate": "fltrust:56"}, "a root set of at most 55 examples"),
        ({"aggregate": "fltrust:9", "algorithm": "fednova"}, "beside Normalized"),
        ({"aggregate": "krum"}, r"expected krum:HOSTILE:CHOSEN, got 'krum'"),
        ({"aggregate": "centered_clipping:0"}, "radius: expected above 0, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(changes, words):
    with pytest.raises(ValueError, match=f"^--aggregate: .*{words}") as error:
        fljax.experiment.algorithm(small.build(**changes))
    assert "\n" not in str(error.value)


def test_rows_that_do_not_fit_are_refused(monkeypatch):
    row = 4 * 65 * small.OUTPUTS  # 8 x 8 pixels and a bias
    monkeypatch.setattr(feeding, "size", lambda *_: 0)  # of the data, which are larger
    for aggregate, rows, words in (
        ("fltrust:20", 5, "got 5 updates one by one, which would take 7.8 kB"),
        ("median", 4, "got 4 updates one by one, which would take 6.24 kB"),
    ):  # of four clients, and the server
        ready = small.build(aggregate=aggregate, devices="1")
        monkeypatch.setattr(memory, "of_device", lambda rows=rows: 2.0 * rows * row)
        fljax.experiment.algorithm(ready)
        monkeypatch.setattr(memory, "of_device", lambda rows=rows: 2.0 * rows * row - 1)
        with pytest.raises(ValueError, match=f"^--aggregate: .*{words}"):
            fljax.experiment.algorithm(ready)
