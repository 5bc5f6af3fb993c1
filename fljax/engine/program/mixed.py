"""One program for clients of all windows: the window is data.

A program for every window makes dozens of programs, and where clients run side by side
it leaves most of an accelerator idle (a window has one or two clients a round). Here
each block has the three roles in one program, and takes the one that the client's
window says: one client alone by a branch; clients side by side run the block in those
roles that one of their chunk has, and each selects its own.

What a client does not take passes no gradient on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fljax import plans, trees, types
from fljax.engine import program
from fljax.engine.program import branches
from fljax.kernels import quant, specs
from fljax.nn import layers, network, signals

# Collections of a block that training it changes beside its parameters.
_RECORDS = ("norms", "ranges")


@dataclasses.dataclass(frozen=True, slots=True)
class Mixed(program.Program):
    """The program of clients of all windows."""

    bits: int = plans.DEFAULT_BITS
    capacity: int = 0
    short: bool = False
    width: float = 1.0

    any_window: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Names the widths of codes and network, where they are others than usual."""
        bits = "" if self.bits == plans.DEFAULT_BITS else f"@{self.bits}"
        return f"mixed{bits}" if self.width == 1 else f"mixed{bits}x{self.width:g}"

    @property
    def order(self) -> tuple:
        """Puts programs of all windows last, by their widths."""
        return True, self.width, self.bits, self.capacity

    def span(self, num_blocks: int) -> slice:
        """Gives all blocks."""
        return slice(0, num_blocks)

    def freeze(self, net, spec, state, key) -> tuple:
        """Freezes every block for both frozen roles."""
        return freeze(net, state, spec, key)

    def places(self, net, spec, blocks, x) -> tuple[Place, ...]:
        """Makes a place for each block."""
        return places(net, spec, blocks, x)

    def step(self, net, spec, blocks, batch, own) -> program.Stepped:
        """Takes a step of the client's window; see `gradient_step`."""
        return gradient_step(net, spec, blocks, batch, own)

    def settle(self, new, old, own) -> tuple:
        """Keeps the blocks outside the client's window as they were."""
        return tuple(map(trees.select, inside(own.window, len(new)), new, old))

    def present(self, windows, real, num_blocks) -> types.Array:
        """Tells which roles the clients of a chunk have."""
        roles = role_of(windows[:, :1], windows[:, 1:], jnp.arange(num_blocks))
        return jnp.stack([jnp.any((roles == r) & real[:, None], 0) for r in range(3)])

    def trains(self, windows, num_blocks) -> types.Array:
        """Tells which blocks each client's window holds."""
        return jax.vmap(lambda w: inside((w[0], w[1]), num_blocks))(windows)


def freeze(
    net: network.Network,
    state: Sequence[dict],
    spec: specs.Spec,
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


def role_of(first, last, block) -> types.Array:
    """Numbers the role of a block: 0 before the window, 1 in it, 2 after it."""
    return (first <= block).astype(jnp.int32) + (last < block)


class Place(NamedTuple):
    """Buffers of a block, written by whichever role it runs in: see `branches`.

    Of a client that runs alone. For a convolution of 8 channels on a batch of 4, codes
    are int8 and value is float32 [4, H, W, 8], though a step writes one of the two.

    Attributes:
      codes: its output when it is frozen before the window.
      value: its output in floats when it is trained, or frozen after the window.
      largest: [], observed max|value| if it is frozen after the window; None: unknown.
      trained: residuals of its backward pass when it is trained.
      after: residuals of its backward pass when it is frozen after the window.
      cotangent: gradient of the loss for its input; empty for the first block, which
        reads data.
    """

    codes: signals.Signal
    value: types.Array
    largest: types.Array | None
    trained: list
    after: list
    cotangent: tuple[types.Array, ...]


class _Passed(NamedTuple):
    """The output of a block in both forms, of which the next block reads one.

    Attributes:
      codes: quantized output; meaningful before the window.
      value: output in floats; meaningful in and after the window, and of the last block
        before it, where it is the dequantized codes.
      largest: [], observed max|value|; meaningful after the window. None where such a
        block does not observe it.
    """

    codes: signals.Signal
    value: types.Array
    largest: types.Array | None


class _Block(NamedTuple):
    """What a block does in its roles with what it is handed.

    Attributes:
      before: codes -> codes.
      train: (value, params, backward ranges) -> value, new norms and ranges; the first
        block's value is data and has no gradient.
      after: value -> value, largest; None of the first block.
    """

    before: Callable
    train: branches.Differentiable
    after: branches.Differentiable | None


def _valid(net, trained, x) -> list[types.Array | None]:
    """Tells of what each block reads which positions are no padding, [B, L].

    Whatever their roles, blocks say the same of that: here all train, and what they
    compute beside it is dead code. None of what is no sequence.
    """
    valid: list[types.Array | None] = [None] * net.num_blocks
    for i in range(net.num_blocks - 1):
        x, _ = network.run(net, [trained[i]], x, [layers.Call()], i)
        if not isinstance(x, signals.Padded):
            break
        valid[i + 1] = x.valid
    return valid


def _blocks(
    net, spec, blocks: program.Blocks, batch: program.Batch, window
) -> Callable:
    """Gives (i, passed) -> `_Block`; arguments as of `gradient_step`."""
    frozen, trained = blocks
    mask, key, observe = batch.mask, batch.key, batch.observe
    first, last = window
    nonnegative = network.nonnegative(net)
    valid = _valid(net, trained, batch.x)

    def run(i, state, x, role, mutable=()):
        own = network.spec_of(net, spec, i)
        call = layers.Call(role, own, mask, observe=observe, first=first == i, key=key)
        if valid[i] is not None:
            x = signals.Padded(x, valid[i])
        y, updates = network.run(net, [state], x, [call], i, mutable)
        return signals.bare(y), updates

    def block(i: int, passed: _Passed) -> _Block:
        def before(codes):
            y, _ = run(i, frozen[0][i], codes, types.Role.FROZEN_BEFORE)
            return lax.stop_gradient(y)

        def train(value, params, backward):
            state = {**trained[i], "params": params, "backward": backward}
            y, (update,) = run(i, state, value, types.Role.TRAINED, _RECORDS)
            return signals.to_float(y), {**_records(trained[i]), **update}

        def after(value):
            largest = passed.largest
            if largest is not None:  # of what a trained block gives: that of this batch
                here, own = last == i - 1, network.spec_of(net, spec, i)
                mine = quant.range_of(value, own, nonnegative[i - 1])
                largest = jnp.where(here, mine, largest)
            x = signals.Ranged(value, largest, nonnegative[i - 1])
            y, _ = run(i, frozen[1][i], x, types.Role.FROZEN_AFTER)
            y = signals.to_ranged(y)
            return y.value, y.largest

        halves = branches.Differentiable
        if i == 0:  # what it reads is data
            return _Block(before, halves(train, fixed=1), None)
        return _Block(before, halves(train), halves(after))

    return block


def _records(block: dict) -> dict:
    return {name: block[name] for name in _RECORDS}


def places(
    net: network.Network, spec: specs.Spec, blocks: program.Blocks, x: types.Array
) -> tuple[Place, ...]:
    """Makes the places of a network's blocks; arguments as of `gradient_step`."""
    made: list[Place] = []

    def place(i: int, state: dict, passed: _Passed) -> Place:
        block = make(i, passed)
        operands = (passed.value, state["params"], state["backward"])
        (value, _), kept = block.train.forward(*operands)
        codes = block.before(passed.codes)
        if block.after is None:
            return Place(codes, value, None, kept, [], ())
        (_, largest), kept_after = block.after.forward(passed.value)
        return Place(codes, value, largest, kept, kept_after, (passed.value,))

    window, mask = (jnp.zeros((), jnp.int32),) * 2, jnp.ones(x.shape[0])
    key = jax.random.key(0)
    batch = program.Batch(x, jnp.zeros(0), mask, key, jnp.array(True))
    passed = _Passed(x, x, None)
    make = _blocks(net, spec, blocks, batch, window)
    for i, state in enumerate(blocks.trained):
        shapes = jax.eval_shape(functools.partial(place, i), state, passed)
        made.append(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
        passed = _Passed(*made[-1][:3])
    return tuple(made)


def _branch(i: int, block: _Block, window, passed: _Passed, state: dict, place: Place):
    """Runs a block in its role alone.

    Returns:
      What it passes on; its new records; cotangent -> that of its input, but for the
      first block, and the gradients of its parameters and backward ranges; its place,
      but for the cotangent.
    """
    first, last = window
    inside, behind = (first <= i) & (i <= last), last < i
    operands = (passed.value, state["params"], state["backward"])
    train, after = block.train, block.after
    codes = branches.when(i < first, block.before, (passed.codes,), place.codes)
    (value, records), kept = branches.when(
        inside, train.forward, operands, ((place.value, _records(state)), place.trained)
    )
    largest, kept_after = place.largest, place.after
    if after is not None:
        (value, largest), kept_after = branches.when(
            behind, after.forward, operands[:1], ((value, largest), kept_after)
        )
    value = branches.when(
        first == i + 1,
        lambda x: signals.to_float(x).astype(value.dtype),
        (codes,),
        value,
    )

    def pull(cotangent):
        nothing = jax.tree.map(jnp.zeros_like, operands[1:])
        *given, params, backward = branches.when(
            inside,
            train.backward,
            (operands, kept, cotangent),
            (*place.cotangent, *nothing),
        )
        if after is not None:
            arguments = (operands[:1], kept_after, cotangent)
            given = branches.when(behind, after.backward, arguments, tuple(given))
        return *given, params, backward

    new = Place(codes, value, largest, kept, kept_after, place.cotangent)
    return _Passed(codes, value, largest), records, pull, new


def _select(i: int, block: _Block, window, passed: _Passed, state: dict, present: list):
    """Runs a block in the roles that are present and selects the client's own.

    Returns:
      As `_branch`, but for the place.
    """
    first, last = window
    role = role_of(first, last, i)
    before, inside, behind = present
    train, after = block.train, block.after
    operands = (passed.value, state["params"], state["backward"])
    codes = branches.or_zeros(before, block.before, (passed.codes,))
    (trained, update), kept = branches.or_zeros(inside, train.forward, operands)
    results, largest = [signals.to_float(codes).astype(trained.dtype), trained], None
    if after is not None:
        (late, largest), kept_after = branches.or_zeros(
            behind, after.forward, operands[:1]
        )
        results.append(late)
    value = lax.select_n(role, *results)
    records = trees.select(role == 1, update, _records(state))

    def pull(cotangent):
        own = jnp.where(role == 1, cotangent, 0)
        *given, params, backward = branches.or_zeros(
            inside, train.backward, (operands, kept, own)
        )
        if after is not None:
            arguments = (operands[:1], kept_after, cotangent)
            (late,) = branches.or_zeros(behind, after.backward, arguments)
            given = [jnp.where(role == 2, late, given[0])]
        return *given, params, backward

    return _Passed(codes, value, largest), records, pull


def gradient_step(
    net: network.Network,
    spec: specs.Spec,
    blocks: program.Blocks,
    batch: program.Batch,
    own: program.Own,
) -> program.Stepped:
    """Computes what `single.gradient_step` does, for a window that is data.

    Args:
      net: the network, static.
      spec: of the frozen blocks, static.
      blocks: all of them, frozen by `freeze` and trained.
      batch: what to train on.
      own: the client's window; places of a client that no other one runs beside, whose
        blocks branch; given up to the result. Without them blocks run in all roles that
        the clients of the chunk have, and the client's own is selected.

    Returns:
      Gradients of params and backward ranges of all blocks, 0 outside the window;
      new norms and ranges of all blocks, those of the state outside; the places.
    """
    window, places, present = own
    make = _blocks(net, spec, blocks, batch, window)
    passed, updates, pulls, used = _Passed(batch.x, batch.x, None), [], [], []
    for i, state in enumerate(blocks.trained):
        block = make(i, passed)
        if places is None:
            roles = [None] * 3 if present is None else list(present[:, i])
            if i == net.num_blocks - 1:  # before the window of nobody
                roles[0] = False
            passed, update, pull = _select(i, block, window, passed, state, roles)
        else:
            passed, update, pull, place = _branch(
                i, block, window, passed, state, places[i]
            )
            used.append(place)
        updates.append(update)
        pulls.append(pull)
    loss, pull = jax.vjp(batch.loss, passed.value)
    cotangent = pull(jnp.ones_like(loss))
    gradients = []
    for i in reversed(range(net.num_blocks)):
        *cotangent, params, backward = pulls[i](*cotangent)
        gradients.append((params, backward))
        if places is not None:
            used[i] = used[i]._replace(cotangent=tuple(cotangent))
    params, backward = zip(*reversed(gradients), strict=True)
    new = None if places is None else tuple(used)
    return program.Stepped(loss, params, backward, tuple(updates), new)
