"""One program for clients of all windows, side by side: the windows are data.

Where clients run side by side, a program for every window leaves most of an accelerator
idle (a window has one or two clients a round) and makes dozens of programs. Here every
block runs in all three roles, and each client takes what its window says: more
arithmetic, one program, one chunk.

A client's window is contiguous, so three chains suffice: the frozen prefix of all
blocks, the trained blocks, which start where the prefix hands over, and the frozen
suffix, which starts where the window ends. What a client does not take is computed and
left; no gradient comes out of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from fljax import layers, quant, signals, types
from fljax.models import network


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


def _prefix(net, frozen, x, call: layers.Call, key) -> list[types.Array]:
    """Runs the frozen prefix; returns what it gives each block from block 1 on."""
    given = []
    for i, block in enumerate(frozen[:-1]):
        x, _ = network.run(net, [block], x, [call], i, key=key)
        given.append(lax.stop_gradient(signals.to_float(x)))
    return given


def _suffix_input(trained: types.Array, after: signals.Signal, ends, nonnegative: bool):
    """Gives a block after the window its input: the window's output where it ends."""
    if after is None:
        return signals.Ranged(trained, None, nonnegative)
    after = signals.to_ranged(after)
    largest = after.largest
    if largest is not None:
        largest = jnp.where(ends, quant.amax(trained), largest)
    value = jnp.where(ends, trained, after.value)
    return signals.Ranged(value, largest, nonnegative)


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

    Returns:
      Loss; gradients of params and backward ranges of all blocks, 0 outside the window;
      new norms and ranges of all blocks, meaningless outside.
    """
    first, last = window
    roles = types.Role
    before, after = (
        layers.Call(role, spec, mask)
        for role in (roles.FROZEN_BEFORE, roles.FROZEN_AFTER)
    )
    call = layers.Call(roles.TRAINED, spec, mask, observe=observe)
    nonnegative = network.nonnegative(net)
    given = _prefix(net, frozen[0], x, before, key)

    def loss_of(params, backward):
        h, suffix = x, None
        updates: list[dict] = []
        for i in range(net.num_blocks):
            frozen_output = None
            if i > 0:
                ended = _suffix_input(h, suffix, last == i - 1, nonnegative[i - 1])
                frozen_output, _ = network.run(
                    net, [frozen[1][i]], ended, [after], i, key=key
                )
                h = jnp.where(first == i, given[i - 1], h)
            state = {**trained[i], "params": params[i], "backward": backward[i]}
            h, update = network.run(
                net, [state], h, [call], i, mutable=("norms", "ranges"), key=key
            )
            h, suffix = signals.to_float(h), frozen_output
            updates += update
        if suffix is not None:
            h = jnp.where(last == net.num_blocks - 1, h, signals.to_float(suffix))
        return loss(h, labels, mask), tuple(updates)

    params, backward = (
        tuple(block[name] for block in trained) for name in ("params", "backward")
    )
    (value, updates), gradients = jax.value_and_grad(
        loss_of, argnums=(0, 1), has_aux=True
    )(params, backward)
    return value, gradients, updates
