"""One program for clients of all windows: the window is data.

A program for every window makes dozens of programs, and where clients run side by side
it leaves most of an accelerator idle (a window has one or two clients a round). Here
each block has the three roles in one program, and takes the one that the client's
window says: one client alone by a branch; clients side by side compute all three and
select, more arithmetic in one chunk.

What a client does not take passes no gradient on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fljax import layers, quant, signals, types
from fljax.models import network

# Collections of a block that training it changes beside its parameters.
_RECORDS = ("norms", "ranges")


def fits(net: network.Network, counts: Sequence[types.BlockCounts]) -> bool:
    """Tells whether a network's windows can share a program.

    Not if a block records less where it is the first of the window; nor sequences,
    whose padding travels along.

    Args:
      net: the network.
      counts: of its blocks.

    Returns:
      Whether `gradient_step` does what each window's own program does.
    """
    return net.vocabulary is None and not any(count.entry_bytes for count in counts)


def freeze(
    net: network.Network,
    state: Sequence[dict],
    spec: quant.Spec,
    key: types.Key | None = None,
) -> tuple[tuple, tuple]:
    """Freezes every block for both frozen roles; arguments as of `network.freeze`.

    Returns:
      What the blocks read before the window, and what they read after it.
    """
    before, after = (
        network.freeze(net, state, (role,) * net.num_blocks, spec, key)
        for role in (types.Role.FROZEN_BEFORE, types.Role.FROZEN_AFTER)
    )
    return before, after


def inside(window: tuple[types.Array, types.Array], num_blocks: int) -> types.Array:
    """Tells which blocks a window trains: [n] bool."""
    first, last = window
    blocks = jnp.arange(num_blocks)
    return (first <= blocks) & (blocks <= last)


def _choose(index: types.Array, branches: Sequence[Callable], operands, alone: bool):
    """Calls one of the branches: by a branch, or all of them and a selection."""
    if alone:
        return lax.switch(index, branches, *operands)
    results = [branch(*operands) for branch in branches]
    return jax.tree.map(lambda *each: lax.select_n(index, *each), *results)


def _zeros(shapes):
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


class _Passed(NamedTuple):
    """What a block hands to the next, in whichever role it ran.

    Attributes:
      codes: what a frozen block before the window gives; else zeros.
      value: floats, what the others give; else zeros.
      largest: of a frozen block after the window: the range of the value, [], or None
        where such a block tells none.
    """

    codes: signals.Signal
    value: types.Array
    largest: types.Array | None


def gradient_step(
    net: network.Network,
    spec: quant.Spec,
    frozen: tuple[tuple, tuple],
    trained: tuple[dict, ...],
    x: types.Array,
    labels: types.Array,
    mask: types.Array,
    key: types.Key,
    window: tuple[types.Array, types.Array],
    loss,
    observe: types.Array | None = None,
    alone: bool = False,
):
    """Computes what `client`'s step of one window does, for a window that is data.

    Args:
      net: the network, static.
      spec: of the frozen blocks, static.
      frozen: of `freeze`.
      trained: state of all blocks.
      x: batch [B, *features].
      labels: [B].
      mask: [B] 1 for real rows.
      key: for dropout and stochastic rounding.
      window: first and last trained block, [] each.
      loss: (logits, labels, mask) -> [].
      observe: [] whether ranges are recorded.
      alone: no other client runs beside this one, static: blocks branch, not select.

    Returns:
      Loss; gradients of params and backward ranges of all blocks, 0 outside the window;
      new norms and ranges of all blocks, those of the state outside.
    """
    first, last = window
    before, call, after = (
        layers.Call(role, spec, mask, observe=observe)
        for role in (
            types.Role.FROZEN_BEFORE,
            types.Role.TRAINED,
            types.Role.FROZEN_AFTER,
        )
    )
    nonnegative = network.nonnegative(net)

    def block(i: int, given: _Passed, params, backward):
        """Runs a block in its role; returns what it passes on, and its new records."""
        state = {**trained[i], "params": params, "backward": backward}
        old = {name: state[name] for name in _RECORDS}

        def run_before(given: _Passed):
            y, _ = network.run(net, [frozen[0][i]], given.codes, [before], i, key=key)
            return lax.stop_gradient(y)

        def run_trained(given: _Passed):
            h = given.value
            if i > 0:
                prefix = lax.stop_gradient(signals.to_float(given.codes))
                h = jnp.where(first == i, prefix.astype(h.dtype), h)
            h, (update,) = network.run(
                net, [state], h, [call], i, mutable=_RECORDS, key=key
            )
            return signals.to_float(h), {**old, **update}

        def run_after(given: _Passed):
            largest = given.largest
            if largest is not None:  # of what a trained block gives: that of this batch
                largest = jnp.where(last == i - 1, quant.amax(given.value), largest)
            x = signals.Ranged(given.value, largest, nonnegative[i - 1])
            y, _ = network.run(net, [frozen[1][i]], x, [after], i, key=key)
            return signals.to_ranged(y)

        codes = _zeros(jax.eval_shape(run_before, given))
        value = _zeros(jax.eval_shape(run_trained, given)[0])
        told = jax.eval_shape(run_after, given).largest if i > 0 else None
        largest = None if told is None else jnp.zeros(told.shape)

        def as_before(given: _Passed):
            return _Passed(run_before(given), value, largest), old

        def as_trained(given: _Passed):
            h, update = run_trained(given)
            return _Passed(codes, h, largest), update

        def as_after(given: _Passed):
            y = run_after(given)
            return _Passed(codes, y.value, y.largest), old

        roles = [as_before, as_trained, as_after] if i > 0 else [as_before, as_trained]
        role = (first <= i).astype(jnp.int32) + (last < i)
        passed, update = _choose(role, roles, (given,), alone)
        if not alone:  # right wherever it is read, so nothing needs selecting
            passed = passed._replace(codes=run_before(given))
        return passed, update

    def loss_of(params, backward):
        passed, updates = _Passed(x, x, None), []
        for i in range(net.num_blocks):
            passed, update = block(i, passed, params[i], backward[i])
            updates.append(update)
        return loss(passed.value.astype(jnp.float32), labels, mask), tuple(updates)

    params, backward = (
        tuple(block[name] for block in trained) for name in ("params", "backward")
    )
    (value, updates), gradients = jax.value_and_grad(
        loss_of, argnums=(0, 1), has_aux=True
    )(params, backward)
    return value, gradients, updates
