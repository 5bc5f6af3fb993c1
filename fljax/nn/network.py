"""A network as an ordered list of blocks, and what can be done with one.

The state of a network is a tuple over its blocks of dicts of linen collections
(params, norms, ranges, backward: see `nn.layers`), so that a window of blocks is a
slice of it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fljax import bounds, trees, types
from fljax.kernels import specs
from fljax.nn import layers, signals

STATE = ("params", "norms", "ranges", "backward")
# What layers may put into the collection `counts`, of one example: the fields of
# `types.BlockCounts` of these names, and values that are not sent where the block is
# the window's first, or by a slip of the reference sent where it is after the window,
# or never.
WORK = (
    *("macs", "depthwise_macs", "float_macs", "kept"),
    *("values", "after_values", "before_values", "coded"),
)
COUNTED = (*WORK, "entry", "after", "unsent")


class Network(NamedTuple):
    """A network; static and hashable.

    Attributes:
      name: as in `--network`.
      blocks: linen modules with `__call__(x, call)`, index 0 first.
      input_shape: of one example, without the batch axis.
      num_classes: width of the logits, or of what else the last block gives.
      always_sent: blocks that the reference's clients send even where they are frozen
        before the window, by a slip that `counts` reproduces if asked.
      vocabulary: number of token ids; None: inputs are numbers.
    """

    name: str
    blocks: tuple[nn.Module, ...]
    input_shape: tuple[int, ...]
    num_classes: int
    always_sent: tuple[int, ...] = ()
    vocabulary: int | None = None

    @property
    def num_blocks(self) -> int:
        """How many blocks there are."""
        return len(self.blocks)


def _streams(key: types.Key | None, index: int) -> dict[str, types.Key]:
    if key is None:
        return {}
    rounding, dropout = jax.random.split(jax.random.fold_in(key, index))
    return {"rounding": rounding, "dropout": dropout}


def zeros(network: Network) -> types.Array:
    """Makes one example [1, *input_shape] of zeros, or of padding."""
    dtype = jnp.float32 if network.vocabulary is None else jnp.int32
    return jnp.zeros((1, *network.input_shape), dtype)


def noise(network: Network, key: types.Key, size: int) -> types.Array:
    """Draws inputs [size, *input_shape]: standard normal, or tokens but for padding."""
    shape = (size, *network.input_shape)
    if network.vocabulary is None:
        return jax.random.normal(key, shape)
    return jax.random.randint(key, shape, 1, network.vocabulary)


def init(network: Network, key: types.Key) -> tuple[dict, ...]:
    """Draws the parameters of every block; a block's key depends on its index alone.

    Args:
      network: the network.
      key: for the parameters.

    Returns:
      A tuple over the blocks of {collection: tree}, norms and ranges unset: see
      `engine.client.calibrate`.
    """
    x: Any = zeros(network)
    state = []
    for index, block in enumerate(network.blocks):
        variables = block.init(jax.random.fold_in(key, index), x, layers.Call())
        x = block.apply(variables, x, layers.Call())
        state.append({name: variables.get(name, {}) for name in STATE})
    return tuple(state)


@functools.cache
def shapes(network: Network) -> tuple[dict, ...]:
    """Gives the state of `init` in shapes and dtypes alone; nothing is run."""
    return jax.eval_shape(lambda: init(network, jax.random.key(0)))


def run(
    network: Network,
    state: Sequence[dict],
    x: signals.Signal,
    calls: Sequence[layers.Call],
    first: int = 0,
    mutable: tuple[str, ...] = (),
) -> tuple[signals.Signal, tuple[dict, ...]]:
    """Runs consecutive blocks.

    Args:
      network: the network.
      state: collections of the blocks to run, the first of which is `first`.
      x: input of block `first`.
      calls: how to run each of them.
      first: index of the first block to run.
      mutable: collections that the blocks may change.

    Returns:
      The output, and for each block the collections named in `mutable`.
    """
    updates = []
    blocks = network.blocks[first : first + len(state)]
    for index, (block, variables, call) in enumerate(
        zip(blocks, state, calls, strict=True), start=first
    ):
        if index + 1 == network.num_blocks:
            call = call._replace(scale=1.0)
        x, update = block.apply(
            variables, x, call, mutable=list(mutable), rngs=_streams(call.key, index)
        )
        updates.append(dict(update))
    return x, tuple(updates)


def freeze(
    network: Network,
    state: Sequence[dict],
    roles: Sequence[types.Role],
    spec: specs.Spec,
    key: types.Key | None = None,
) -> tuple[dict | None, ...]:
    """Folds and quantizes the blocks that are frozen, for `run` in their roles.

    The blocks run once on one example of zeros: what a layer reads when frozen
    depends on the state alone, so the activations are dead code under jit.

    Args:
      network: the network.
      state: of all blocks.
      roles: of all blocks.
      spec: fixed point choices.
      key: for stochastic rounding.

    Returns:
      A tuple over all blocks: {"frozen": tree}, or None where it is trained.
    """
    x: Any = zeros(network)
    calls = [
        layers.Call(role, spec_of(network, spec, index), key=key)
        for index, role in enumerate(roles)
    ]
    _, updates = run(network, state, x, calls, mutable=("frozen",))
    return tuple(
        None if role is types.Role.TRAINED else update
        for role, update in zip(roles, updates, strict=True)
    )


def spec_of(network: Network, spec: specs.Spec, index: int) -> specs.Spec:
    """Gives a block's fixed point choices: the first and last in codes may be wider.

    Args:
      network: the network.
      spec: of all its blocks.
      index: of the block.

    Returns:
      Its own.
    """
    if spec.of_edge is spec:
        return spec
    coded = [i for i, block in enumerate(shapes(network)) if block["ranges"]]
    return spec.of_edge if index in (coded[:1] + coded[-1:]) else spec


@functools.cache
def nonnegative(network: Network) -> tuple[bool, ...]:
    """Tells of each block whether its output cannot be negative: it ends in a ReLU.

    A trained block's output does not say so, and codes of what is not negative are
    twice as fine.

    Args:
      network: the network; it is traced, not run.

    Returns:
      A flag for each block.
    """

    def outputs(state):
        call = layers.Call(types.Role.FROZEN_AFTER)
        roles = (call.role,) * network.num_blocks
        frozen = freeze(network, state, roles, call.spec)
        x, given = zeros(network), []
        for index, block in enumerate(frozen):
            x, _ = run(network, [block or {}], x, [call], index)
            given.append(signals.bare(x))
        return given

    return tuple(
        isinstance(x, signals.Ranged) and x.nonnegative
        for x in jax.eval_shape(outputs, shapes(network))
    )


def counts(
    network: Network, reference_quirks: bool = False
) -> tuple[types.BlockCounts, ...]:
    """Counts what each block computes, keeps and uploads, for one example.

    The upload is the reference's: 4 bytes for every parameter, running statistic and
    observed range, and for the batch counter that PyTorch keeps with every norm.

    Args:
      network: the network; it is traced, not run.
      reference_quirks: count what the reference sends of frozen blocks.

    Returns:
      A tuple over the blocks.
    """
    state = shapes(network)
    x = jax.eval_shape(lambda: zeros(network))
    result = []
    for index, variables in enumerate(state):
        work = dict.fromkeys(COUNTED, 0)

        def trace(variables, x, index=index, work=work):
            y, updates = run(
                network, [variables], x, [layers.Call()], index, mutable=("counts",)
            )
            counted = updates[0].get("counts", {})
            for path, value in jax.tree_util.tree_leaves_with_path(counted):
                work[path[-1].key] += value  # plain ints: known while tracing
            return y

        x = jax.eval_shape(trace, variables, x)
        norms = len(jax.tree.leaves(variables["norms"])) // 2
        size = trees.size([variables[name] for name in STATE])
        upload = 4 * (size + norms - work["unsent"])
        sent_before = reference_quirks and index in network.always_sent
        result.append(
            types.BlockCounts(
                **{name: work[name] for name in WORK},
                outputs=signals.bare(x).size,
                params=trees.size(variables["params"]),
                upload_bytes=upload,
                entry_bytes=4 * work["entry"],
                before_bytes=upload if sent_before else 0,
                after_bytes=4 * work["after"] if reference_quirks else 0,
            )
        )
    return tuple(result)


def check(network: Network, data: types.Dataset, positions: bool = False) -> None:
    """Checks a network of one's own against the data that it is to train on.

    Args:
      network: it is traced, not run.
      data: checked.
      positions: the task wants an output for each position.

    Raises:
      ValueError: one line that says what was expected and what came.
    """
    if not isinstance(network, Network):
        raise ValueError(
            f"expected a fljax.Network of blocks, which fljax.FlaxBlock(module) makes "
            f"of Flax modules, got {_kind(network)}"
        )
    name = f"network {network.name!r}"
    if not isinstance(network.blocks, tuple) or not network.blocks:
        raise ValueError(
            f"{name}: expected blocks as a tuple of modules, got "
            f"{'none' if network.blocks == () else _kind(network.blocks)}"
        )
    for field, wanted in (
        ("input_shape", data.x_train.shape[1:]),
        ("num_classes", data.num_classes),
        ("vocabulary", data.vocabulary),
    ):
        given = getattr(network, field)
        if wanted != given:
            raise ValueError(
                f"{name}: expected {field} {wanted!r}, as the data have it, got "
                f"{given!r}"
            )
    x: Any = zeros(network)
    for index, block in enumerate(network.blocks):
        x = _traced(f"{name}: block {index}", block, x)
    length = network.input_shape[:1] if positions else ()
    wanted = (*length, network.num_classes)
    if getattr(signals.bare(x), "shape", None) != (1, *wanted):
        raise ValueError(
            f"{name}: expected the last block to give logits [B, "
            f"{', '.join(map(str, wanted))}], one a class, got {_shape(x)}"
        )


def _kind(value: Any) -> str:
    return type(value).__name__


def _shape(x: Any) -> str:
    shape = getattr(signals.bare(x), "shape", None)
    return _kind(x) if shape is None else f"[{', '.join(['B', *map(str, shape[1:])])}]"


def _traced(name: str, block: Any, x: Any) -> Any:
    """Traces a block on one example; what is wrong with it is one line."""
    if not isinstance(block, nn.Module):
        given = block.__name__ if isinstance(block, type) else _kind(block)
        raise ValueError(f"{name}: expected an instance of a linen module, got {given}")
    try:
        inspect.signature(type(block).__call__).bind(block, x, None)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}: expected a module that is called with (x, call), as those of "
            f"fljax.layers are, got {_kind(block)}; wrap it in flax_block.FlaxBlock"
        ) from None

    def run(x):
        variables = block.init(jax.random.key(0), x, layers.Call())
        return block.apply(variables, x, layers.Call())

    try:
        return jax.eval_shape(run, x)
    except Exception as error:  # whatever a module of the user's raises
        raise ValueError(
            f"{name}: expected {_kind(block)} to take {_shape(x)}, got "
            f"{_kind(error)}: {bounds.gist(error)}"
        ) from error


def check_image(name: str, shape: tuple[int, ...], smallest: int) -> None:
    """Raises ValueError unless shape is [height, width, channels], large enough."""
    if len(shape) != 3 or min(shape[:2]) < smallest:
        raise ValueError(
            f"network {name!r} expects images [height, width, channels] of at least "
            f"{smallest} x {smallest}, got examples of shape {list(shape)}"
        )


def check_tokens(name: str, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless shape is that of a sequence, [length]."""
    if len(shape) != 1 or shape[0] < 1:
        raise ValueError(
            f"network {name!r} expects token ids [length], got examples of shape "
            f"{list(shape)}"
        )
