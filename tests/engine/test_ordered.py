"""Ordered dropout: what a step trains, by hand and against networks of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fljax
from fljax import devices, plans
from fljax.engine import program
from fljax.engine.program import ordered, single
from fljax.kernels import specs
from fljax.nn import layers, network, slicing
from tests import conftest, small

NET = small.CONVNET
FULL = plans.full(3)
ABLE = (devices.Tier(name="all", share=1, time=1, upload=1, memory=1),)
LEVELS = (0.5, 1.0)


def blocks(net=NET, seed=0):
    return network.init(net, jax.random.key(seed))


def batch(seed=1):
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(keys[0], (4, 8, 8, 1))
    return program.Batch(x, jnp.array([0, 1, 2, 1]), jnp.ones(4), keys[2])


def step_at(width, state, one, distill=False):
    kind = ordered.Ordered(FULL, levels=LEVELS, whole=NET, distill=distill)
    return jax.jit(
        lambda state: kind.step_at(
            width, NET, specs.DEFAULT, one, program.Blocks((None,) * 3, state)
        )
    )(state)


def places(width):
    return slicing.places(NET, slicing.Cut(width))


def test_a_step_at_a_level_is_one_of_the_network_of_that_width():
    state, one = blocks(), batch()
    done = step_at(0.5, state, one)
    few = slicing.sliced(NET, slicing.Cut(0.5))
    inner = program.Blocks((None,) * 3, slicing.take(state, places(0.5)))
    alone = jax.jit(
        lambda blocks: single.gradient_step(few, specs.DEFAULT, FULL, blocks, one)
    )(inner)
    np.testing.assert_allclose(done.loss, alone.loss, rtol=1e-6)
    params = tuple(block["params"] for block in places(0.5))
    whole = tuple(block["params"] for block in state)
    wide = slicing.put(alone.gradients, params, whole)
    conftest.assert_close(done.gradients, wide)
    held = jax.tree.map(lambda x: int(x.sum()), done.held)
    sizes = jax.tree.map(lambda x: x.size, alone.gradients)
    assert held == sizes


def test_what_a_step_leaves_out_keeps_its_bits(monkeypatch):
    # With weight decay of 1/2, and every draw the half: the rest stays as it was drawn.
    monkeypatch.setattr(jax.random, "randint", lambda *_, **__: jnp.int32(0))
    ready = small.build(
        NET, algorithm="fjord:levels=1/.5/.25", weight_decay=0.5, tiers=ABLE
    )
    state, assignment, new, _ = next(small.rounds(ready, 1))
    assert any(plan.width == 1 for plan in assignment.plans)
    least, blocks = places(0.25), state.server.blocks
    ones = jax.tree.map(jnp.ones_like, slicing.take(blocks, least))
    inside = slicing.put(ones, least, blocks)
    for old, after, here in zip(
        *map(
            jax.tree.leaves,
            [
                tuple(b["params"] for b in s)
                for s in (state.server.blocks, new.server.blocks, inside)
            ],
        ),
        strict=True,
    ):
        old, after, outside = np.asarray(old), np.asarray(after), np.asarray(here) == 0
        np.testing.assert_allclose(old[outside], after[outside], rtol=1e-6)
        assert (old[~outside] != after[~outside]).any()


def test_at_one_level_it_is_federated_averaging():
    one, two = (
        [
            s
            for *_, s, _ in small.rounds(
                small.build(NET, algorithm=name, tiers=ABLE), 2
            )
        ][-1]
        for name in ("fjord:levels=1", "fedavg")
    )
    conftest.assert_close(one.server, two.server)


def test_clients_draw_all_levels():
    state, kind = blocks(), ordered.Ordered(FULL, levels=LEVELS, whole=NET)
    given = program.Blocks((None,) * 3, state)

    @jax.jit
    def held(key):
        one = batch()._replace(key=key)
        done = kind.step(NET, specs.DEFAULT, given, one, program.Own())
        return sum(x.sum() for x in jax.tree.leaves(done.held))

    found = {int(held(jax.random.key(i))) for i in range(12)}
    assert len(found) == 2


def test_distillation_by_hand():
    # The whole network's gradient, plus that of the cross entropy between what the half
    # gives and what the whole gives.
    state, one = blocks(), batch()
    done = step_at(0.5, state, one, distill=True)
    calls = [layers.Call(mask=one.mask)] * 3
    few = slicing.sliced(NET, slicing.Cut(0.5))
    whole, _ = network.run(NET, state, one.x, calls)
    wanted = jax.nn.softmax(whole)

    def loss(params):
        full = [{**b, "params": p} for b, p in zip(state, params, strict=True)]
        outputs, _ = network.run(NET, full, one.x, calls)
        part = slicing.take(tuple(full), places(0.5))
        narrow, _ = network.run(few, part, one.x, calls)
        hard = -jax.nn.log_softmax(outputs)[jnp.arange(4), one.labels].mean()
        return hard - (wanted * jax.nn.log_softmax(narrow)).sum(-1).mean()

    params = tuple(block["params"] for block in state)
    conftest.assert_close(done.gradients, jax.jit(jax.grad(loss))(params))
    assert done.held is None


@pytest.mark.parametrize("distill", [False, True])
def test_side_by_side_clients_are_as_one_by_one(distill):
    name = f"fjord:levels=1/.5/.25:distill={str(distill).lower()}"
    one, three = (
        [s for *_, s, _ in small.rounds(ready, 2)][-1]
        for ready in (
            small.build(NET, algorithm=name, client_width=width) for width in (1, 3)
        )
    )
    small.assert_alike(one, three)


def test_narrower_levels_lie_within_a_rolled_window():
    inner, outer = np.array([3, 0]), np.array([2, 3, 0, 1])
    (found,) = ordered._within(None, (inner,), (outer,))
    assert outer[found].tolist() == inner.tolist()


def test_momentum_is_refused():
    with pytest.raises(ValueError, match="--momentum: expected 0 beside fjord"):
        fljax.experiment.algorithm(small.build(NET, algorithm="fjord", momentum=0.9))
