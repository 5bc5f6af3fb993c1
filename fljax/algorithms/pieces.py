"""What an algorithm is made of fits the network, or is refused in one line.

Pieces are traced, not run, so that one of the user's that does not fit says so before
anything is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fljax import bounds, trees, types
from fljax.engine import seams as kinds
from fljax.updates import (
    aggregates,
    attacks,
    codecs,
    local_rule,
    personal,
    server,
    server_rule,
)

_KINDS = {
    "local": local_rule.LocalRule,
    "codec": codecs.Codec,
    "aggregate": aggregates.Aggregate,
    "server": server_rule.ServerRule,
    "attack": attacks.Attack,
    "personal": personal.Personal,
}
_CLIENTS = 13  # unlike most other sizes, that one is not taken for the other


def _array(*shape: int, dtype: Any = jnp.float32) -> Any:
    """Stands for an array that is traced."""
    return jax.ShapeDtypeStruct(shape, dtype)


_SCALAR = _array()


def check_kinds(seams: kinds.Seams) -> None:
    """Refuses what is no piece of its kind, or cannot be hashed.

    Args:
      seams: what an algorithm is made of.

    Raises:
      ValueError: one line.
    """
    for name, kind in _KINDS.items():
        part = getattr(seams, name)
        if part is None and getattr(kinds.NONE, name) is None:
            continue
        if not isinstance(part, kind):
            raise ValueError(
                f"{name}: expected an instance of fljax.{kind.__name__}, got "
                f"{bounds.shown(part)}"
            )
        try:
            hash(part)
        except TypeError:
            raise ValueError(
                f"{name}: expected a dataclass(frozen=True), which can be hashed, got "
                f"{type(part).__name__}"
            ) from None


def check_traced(seams: kinds.Seams, blocks: tuple[dict, ...]) -> None:
    """Refuses pieces that do not take, or give, what their kind promises.

    Args:
      seams: what an algorithm is made of.
      blocks: shapes of the network, a tuple over blocks.

    Raises:
      ValueError: one line that says what was expected and what came.
    """
    params = server.params_of(blocks)
    vector, codec, aggregate = _array(trees.size(params)), seams.codec, seams.aggregate
    if codec is not None:
        memory = (vector,) * seams.memories

        def coded(update, memory):
            return codec.apply(jax.random.key(0), update, None, memory)

        _same(codec, "apply", (vector, memory), coded, vector, memory)
        _check_message(codec, vector.size)
    if aggregate != kinds.NONE.aggregate:
        _check_aggregate(aggregate, params, vector)
    if seams.attack is not None:
        _check_attack(seams.attack, params)
    if seams.personal is not None:
        _check_personal(seams.personal, blocks)
    if seams.server != kinds.NONE.server or seams.local is not None:
        _check_rules(seams, blocks, params)


def _check_aggregate(
    aggregate: aggregates.Aggregate, params: tuple, vector: Any
) -> None:
    """Checks what becomes of a block, or of all where whole updates are compared."""
    here = _array(_CLIENTS, dtype=jnp.bool_)
    if type(aggregate).combine is aggregates.Aggregate.combine:
        rows = _array(_CLIENTS, *vector.shape)
        _same(aggregate, "locate", vector, aggregate.locate, rows, here)
    sizes = [trees.size(block) for block in params]
    root = tuple(map(_array, sizes)) if aggregate.root_size else None
    seen = aggregates.Seen(
        tuple(_array(_CLIENTS, size) for size in sizes),
        _array(_CLIENTS, len(sizes), dtype=jnp.bool_),
        _array(_CLIENTS, dtype=jnp.int32),
        root,
    )
    state = _traced(aggregate, "init", aggregate.init, params)
    middle = tuple(map(_array, sizes)), _array(_CLIENTS)
    expected = aggregates.Combined(*middle), state
    _same(aggregate, "combine", expected, aggregate.combine, state, seen)


def _check_personal(rule: personal.Personal, blocks: tuple[dict, ...]) -> None:
    """Insists on a flag for each leaf."""
    try:
        found = rule.stays(blocks)
        flags = all(type(flag) is bool for flag in jax.tree.leaves(found))
        fits = jax.tree.structure(found) == jax.tree.structure(blocks)  # type: ignore[operator]
        came = bounds.shown(found)
    except Exception as error:  # whatever a rule of the user's raises
        flags, fits, came = False, False, _gist(error)
    if not (flags and fits):
        raise ValueError(
            f"{rule!r}: expected stays to give True or False for each leaf of the "
            f"blocks, got {came}"
        )


def _check_message(codec: codecs.Codec, size: int) -> None:
    """Insists on a message."""
    try:
        said = codec.message(codecs.Message(size), size)
        if isinstance(said, codecs.Message) and said.bytes >= 0:
            return
        came = bounds.shown(said)
    except Exception as error:  # whatever a codec of the user's raises
        came = _gist(error)
    raise ValueError(
        f"{codec!r}: expected message to give a codecs.Message of {size} numbers, got "
        f"{came}"
    )


def _check_attack(attack: attacks.Attack, params: tuple) -> None:
    """Checks what hostile clients send."""
    sizes = tuple(map(trees.size, params))
    vector = _array(sum(sizes))
    if attack.alters and not attack.colludes:
        _same(attack, "sent", vector, attack.sent, jax.random.key(0), vector)
    if attack.colludes:

        def made(rows, trained, hostile):
            return attack.together(attacks.know(rows, trained, hostile, sizes))

        rows = _array(_CLIENTS, vector.size)
        trained = _array(_CLIENTS, len(sizes), dtype=jnp.bool_)
        hostile = _array(_CLIENTS, dtype=jnp.bool_)
        _same(attack, "together", vector, made, rows, trained, hostile)


def _check_rules(seams: kinds.Seams, blocks: tuple[dict, ...], params: tuple) -> None:
    """Checks the rules of the server and of the clients, which go together."""
    rule, local = seams.server, seams.local
    numbers = None
    if local is not None and local.numbers:
        numbers = _array(local.numbers)
    message = params if local is not None and local.messages else None
    state = _traced(rule, "init", rule.init, params)
    trained = _array(len(params), dtype=jnp.bool_)
    got = server_rule.Received(params, message, numbers, _SCALAR, trained)
    _same(rule, "step", (params, state), rule.step, state, params, got)
    shared = _traced(rule, "shared", rule.shared, state) if rule.shares else None
    if shared is not None:
        _compare(rule, "shared", params, shared)
    if local is None:
        return
    own = _traced(local, "own", local.own, blocks) if local.keeps else None

    def changed(shared, own, params):
        transformation = local.transform(shared, own)
        state = transformation.init(params)
        return transformation.update(params, state, params)[0]

    def finished(shared, own, params, steps, rate):
        ended = local_rule.Local(params, steps, rate, lambda: params)
        return local.finish(shared, own, ended)

    steps = _array(dtype=jnp.int32)
    _same(local, "transform", params, changed, shared, own, params)
    expected = local_rule.Finished(params, own, message, numbers)
    _same(local, "finish", expected, finished, shared, own, params, steps, _SCALAR)


def _same(part: Any, what: str, expected: Any, call: Callable, *given: Any) -> None:
    """Traces a function of a piece, and insists on the shapes that it gives."""
    _compare(part, what, expected, _traced(part, what, call, *given))


def _traced(part: Any, what: str, call: Callable, *given: Any) -> Any:
    """Traces a function of a piece.

    Raises:
      ValueError: whatever it raises, in one line.
    """
    try:
        return jax.eval_shape(call, *given)
    except Exception as error:  # whatever a piece of the user's raises
        raise ValueError(
            f"{part!r}: expected {what} to run on float32 arrays of the network, got "
            f"{_gist(error)}"
        ) from error


def _gist(error: Exception) -> str:
    """Says in a line what was raised."""
    return f"{type(error).__name__}: {bounds.gist(error)}"


def _compare(part: Any, what: str, expected: Any, got: Any) -> None:
    """Insists on a tree's structure and on its shapes.

    Raises:
      ValueError: it is another.
    """
    (wants, kind), (comes, other) = map(jax.tree.flatten, (expected, got))
    if kind == other:  # type: ignore[operator]
        pairs = zip(wants, comes, strict=True)
        odd = next(((a, b) for a, b in pairs if a.shape != b.shape), None)
        if odd is None:
            return
        wanted, came = (_shape(x) for x in odd)
    else:
        wanted, came = (bounds.shown(jax.tree.map(_shape, x)) for x in (expected, got))
    raise ValueError(f"{part!r}: expected {what} to give {wanted}, got {came}")


def _shape(x: types.ArrayLike) -> str:
    return str(list(jnp.shape(x)))
