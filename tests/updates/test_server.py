"""The server: the paper's aggregation rule by hand, and what must keep its bits."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fljax import trees
from fljax.algorithms import fedavgm, fedopt
from fljax.updates import server, server_rule
from tests import conftest

PAPER = server_rule.Averaging()


def block(w, mean=0.0, forward=0.0, backward=0.0):
    """Makes a block's state, or its delta, of one value a collection."""
    return {
        "params": {"w": jnp.asarray(w, jnp.float32)},
        "norms": {"mean": jnp.float32(mean)},
        "ranges": {"range": jnp.float32(forward)},
        "backward": {"range": jnp.float32(backward)},
    }


def totals(*blocks_and_weights, cohort):
    deltas, weights = zip(*blocks_and_weights, strict=True)
    weights = jnp.array(weights, jnp.float32)
    return server.Totals(trees.ravel(deltas), weights, jnp.float32(cohort))


def test_the_rule_of_the_paper_by_hand():
    # K = 4; three clients trained the block and ended at 11, 12 and 16: the mean is 13,
    # r is 3/4, so new = 3/4 * 13 + 1/4 * 10. Ranges are the plain mean of 5, 6 and 10.
    old = block([10.0], mean=10.0, forward=1.0, backward=2.0)
    delta = block([1.0 + 2 + 6], 1.0 + 2 + 6, 4.0 + 5 + 9, 0.5 + 0.5 + 2)
    state = server.init((old,), PAPER)
    new = server.step(state, totals((delta, 3.0), cohort=4), PAPER)
    assert new.blocks[0]["params"]["w"] == 12.25
    assert new.blocks[0]["norms"]["mean"] == 12.25
    assert new.blocks[0]["ranges"]["range"] == 7
    assert new.blocks[0]["backward"]["range"] == 3
    assert (state.round, new.round) == (0, 1)


def test_everyone_gives_the_plain_mean():
    state = server.init((block([10.0], 5.0, 1.0),), PAPER)
    new = server.step(state, totals((block([8.0], -6.0, 2.0), 2.0), cohort=2), PAPER)
    assert new.blocks[0]["params"]["w"] == 14
    assert new.blocks[0]["norms"]["mean"] == 2
    assert new.blocks[0]["ranges"]["range"] == 2


def test_weights_by_hand():
    # Weights 1 and 3 of a cohort of 8: deltas 2 and 4, ranges 10 and 6 from 0.
    state = server.init((block([1.0], 1.0, 0.0),), PAPER)
    delta = block([1 * 2.0 + 3 * 4], 1 * 2.0 + 3 * 4, 1 * 10.0 + 3 * 6)
    new = server.step(state, totals((delta, 4.0), cohort=8), PAPER)
    assert new.blocks[0]["params"]["w"] == 1 + 14 / 8
    assert new.blocks[0]["norms"]["mean"] == 1 + 14 / 8
    assert new.blocks[0]["ranges"]["range"] == 28 / 4


def test_server_learning_rate_scales_parameters_only():
    state = server.init((block([10.0], 10.0, 1.0),), PAPER)
    sums = totals((block([8.0], 8.0, 4.0), 2.0), cohort=2)
    new = server.step(state, sums, PAPER, rate=0.5)
    assert new.blocks[0]["params"]["w"] == 12
    assert new.blocks[0]["norms"]["mean"] == 14
    assert new.blocks[0]["ranges"]["range"] == 3


@pytest.mark.parametrize(
    "rule",
    [
        PAPER,
        server_rule.server_rule(optax.sgd, 1.0, momentum=0.9),
        server_rule.server_rule(optax.adam, 0.1),
        server_rule.server_rule(optax.adamw, 0.1),
        fedopt.Adaptive("adam", 0.1),
        fedopt.Adaptive("yogi", 0.1),
        fedopt.Adaptive("adagrad", 0.1),
        fedavgm.Momentum(0.9),
    ],
    ids=repr,
)
def test_what_nobody_trained_keeps_its_bits(rule):
    # In the first round both blocks move, so that momentum would move the second one
    # on; in the second round nobody trains it.
    values = [-0.0, 0.0, 1e-42, 0.1, -3.0]
    both = (block(values, -0.0, 0.3, -0.0),) * 2
    state = server.init(both, rule)
    moved = (block([1.0, 2.0, 3.0, 4.0, 5.0], 1.0, 1.0, 1.0), 1.0)
    nobody = (block([0.0] * 5), 0.0)
    state = server.step(state, totals(moved, moved, cohort=2), rule)
    kept = state.blocks[1]
    assert kept["params"]["w"][4] != -3
    signed = (*state.blocks[:1], {**kept, "params": {"w": jnp.float32(values)}})
    state = state._replace(blocks=signed)
    new = server.step(state, totals(moved, nobody, cohort=2), rule)
    conftest.assert_same_bits(new.blocks[1], signed[1])
    assert np.signbit(new.blocks[1]["params"]["w"][0])
    assert new.blocks[0]["params"]["w"][3] != state.blocks[0]["params"]["w"][3]


def test_a_block_nobody_trained_keeps_minus_zero():
    state = server.init((block([-0.0], -0.0, -0.0, -0.0),), PAPER)
    new = server.step(state, totals((block([0.0]), 0.0), cohort=3), PAPER)
    conftest.assert_same_bits(new.blocks, state.blocks)
