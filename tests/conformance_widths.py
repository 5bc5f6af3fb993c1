"""Replays networks of a smaller width: slices, sub-networks, means, ordered dropout.

Of the conformance folder `width_NETWORK_sWIDTH.npz`, `_mean.npz` and `_fjord.npz`. The
reference's arrays differ from ours in more than the layout of a kernel: DenseNet joins
new channels in front of the old ones, and a flattened image has its channels first.
"""

from __future__ import annotations

import functools
import math
import types
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from fljax import plans
from fljax.engine import program
from fljax.engine.program import ordered
from fljax.kernels import specs
from fljax.models import densenet, resnet_small
from fljax.nn import layers, network, slicing
from tests import conformance, reference_names

FIRST = 64  # values of a packed tensor
SMALLEST = 1e-4  # norm of a tensor that differences are relative to
EXACT = 1e-9  # of sums in float64 over equal numbers
CLOSE = 1e-5  # logits, losses, means
GRADIENTS = {"resnet44": 1e-4}  # else:
GRADIENT = 2e-5  # of most runs that are as free of noise
ROUGH = 5e-2  # of every run
MOST = 0.75  # of the runs
_take, _put = (jax.jit(function) for function in (slicing.take, slicing.put))


class Wide(NamedTuple):
    """A network whose slices are to be replayed.

    Attributes:
      name: of the file.
      data: what it holds.
      net: our network.
      names: of its blocks.
      state: its parameters, drawn by the rule; the other collections are fresh.
    """

    name: str
    data: Any
    net: network.Network
    names: list[reference_names.Names]
    state: tuple

    @property
    def tag(self) -> str:
        """What the reference calls the network."""
        return str(self.data["network"])

    def draws(self, tag: str) -> np.random.Generator:
        """Makes the generator of a tag."""
        seed = [conformance._seed(self.data), zlib.crc32(tag.encode())]
        return np.random.default_rng(seed)

    def parameters(self) -> Iterator[tuple[int, str, str, str]]:
        """Yields (block, layer, field, reference name), in the reference's order."""
        ours = {
            name: (block, *key)
            for block, names in enumerate(self.names)
            for key, name in names.parameters.items()
        }
        for name in map(str, self.data["names"]):
            yield (*ours[name], name)

    def stored(self, at: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Gives name -> (kept outputs, kept inputs), of a run or a client."""
        outputs, inputs = (
            np.split(self.data[f"{at}{k}"], np.cumsum(self.data[f"{at}{k}_len"])[:-1])
            for k in ("out", "in")
        )
        pairs = zip(outputs, inputs, strict=True)
        return dict(zip(map(str, self.data["names"]), pairs, strict=True))

    def choose(self, method: str, at: str) -> slicing.Choose:
        """Gives what a run or a client chooses; random channels are stored."""
        if method.startswith("heterofl"):
            return slicing.leading
        if method.startswith("fedrolex"):
            return slicing.rolling(int(method.split("_")[1][1:]))
        stored = self.stored(at)

        def choose(name: str, channels: int, number: int) -> np.ndarray:
            block, layer = name.split("/")
            reference = self.names[int(block)].parameters[layer, "kernel"]
            kept = stored[reference][0]
            return kept if kept.size == number else np.full(number, -1)

        return choose

    def cut(self, width: float) -> slicing.Cut:
        """Gives a width as the reference counts channels."""
        return slicing.Cut(float(width), "floor")


def case_of(name: str, data) -> Wide:
    """Makes the network of a file, with its full parameters."""
    tag = str(data["network"])
    whole = "full/shape" if "full/shape" in data.files else "all/end_shape"
    shapes = [tuple(d for d in shape if d) for shape in data[whole].tolist()]
    *_, (classes, columns), _ = shapes
    channels = shapes[-5][0] if tag.startswith("resnet") else columns
    side = 16 * math.isqrt(columns // channels) if columns > channels else 32
    net = reference_names.network_of(tag)((side, side, 3), classes)
    known = types.SimpleNamespace(files=[f"gradnorm/{n}" for n in data["names"]])
    names = reference_names.names_of_network(net, network.shapes(net), known)
    fresh = tuple(
        {"params": {}, **conformance._initial(block)} for block in network.shapes(net)
    )
    wide = Wide(name, data, net, names, fresh)
    seed = conformance._seed(data)
    values = {
        name: conformance._draw(seed, tag, name, shape).astype(np.float32)
        for name, shape in zip(map(str, data["names"]), shapes, strict=True)
    }
    params = to_ours(wide, net, values)
    state = tuple(
        {**block, "params": p} for block, p in zip(fresh, params, strict=True)
    )
    return wide._replace(state=state)


def _orders(net: network.Network) -> list[np.ndarray | None]:
    """Tells of each block where the reference has our input channels; None: there.

    Of a classifier that flattens, the rows of its kernel.
    """
    orders: list[np.ndarray | None] = []
    segments: list[int] = []  # our joined axis
    for block, shape in zip(net.blocks, slicing.entering(net), strict=True):
        order = None
        if len(segments) > 1:
            ends = np.cumsum(segments[::-1])[::-1]  # the newest is in front
            order = np.concatenate(
                [np.arange(e - n, e) for e, n in zip(ends, segments, strict=True)]
            )
        if isinstance(block, resnet_small.Classifier):
            windows = math.prod(n // resnet_small.WINDOW for n in shape[:2])
            order = np.arange(shape[-1] * windows).reshape(shape[-1], windows).T.ravel()
        orders.append(order)
        if isinstance(block, densenet.DenseBlock):
            segments = [*(segments or [shape[-1]]), block.growth]
        else:
            segments = []
    return orders


def _reads_input(layer: str, field: str) -> bool:
    """Tells whether a parameter has an axis of the channels that enter its block."""
    return layer == "norm" or (
        field == "kernel" and layer in ("narrow", "conv", "dense")
    )


def to_ours(wide: Wide, net: network.Network, values: dict[str, np.ndarray]) -> tuple:
    """Lays the reference's parameters of a network, full or sliced, out as ours."""
    orders = _orders(net)
    params: list[dict] = [{} for _ in net.blocks]
    for block, layer, field, name in wide.parameters():
        value = values[name]
        value = conformance._kernel(value) if field == "kernel" else value
        order = orders[block]
        if order is not None and _reads_input(layer, field):
            value = np.take(value, order, axis=-2 if field == "kernel" else -1)
        params[block].setdefault(layer, {})[field] = np.asarray(value)
    return tuple(params)


def to_reference(wide: Wide, net: network.Network, params) -> list[np.ndarray]:
    """Undoes `to_ours`; in the reference's order."""
    orders, values = _orders(net), []
    for block, layer, field, _ in wide.parameters():
        value, order = np.asarray(params[block][layer][field]), orders[block]
        if order is not None and _reads_input(layer, field):
            axis = -2 if field == "kernel" else -1
            value = np.take(value, np.argsort(order), axis)
        values.append(conformance._to_reference(value) if field == "kernel" else value)
    return values


def _packed(values: list[np.ndarray]) -> dict[str, np.ndarray]:
    flat = [np.asarray(value).ravel() for value in values]
    return {
        "first64": np.stack(
            [np.pad(v[:FIRST], (0, max(0, FIRST - v.size))) for v in flat]
        ),
        "norm": np.array([np.linalg.norm(v.astype(np.float64)) for v in flat]),
        "probe": np.array([np.sum(v * np.cos(np.arange(v.size))) for v in flat]),
    }


def _error(data, at: str, values: list[np.ndarray]) -> float:
    """Largest difference of packed tensors, relative to the norm of each."""
    ours, norms = _packed(values), np.maximum(data[f"{at}norm"], SMALLEST)
    first = np.abs(ours["first64"] - data[f"{at}first64"]).max(axis=1)
    others = (np.abs(ours[k] - data[f"{at}{k}"]) for k in ("norm", "probe"))
    return float(np.max(np.stack([first, *others]) / norms))


def _state_line(wide: Wide, at: str, what: str, net, params, limit=EXACT):
    values = to_reference(wide, net, params)
    error = _error(wide.data, at, values)
    passed = error <= limit
    if f"{at}shape" in wide.data.files:
        theirs = [tuple(d for d in s if d) for s in wide.data[f"{at}shape"].tolist()]
        passed = passed and [value.shape for value in values] == theirs
    figures = f"{len(values)} tensors, largest relative difference {error:.2e}"
    return conformance.Line(wide.name, what, figures, passed)


def _channels_line(wide: Wide, at: str, what: str, small, places):
    """Compares the kept channels of every axis, as the reference numbers them."""
    full, narrow = _orders(wide.net), _orders(small)
    stored, differing = wide.stored(at), 0
    for block, layer, field, name in wide.parameters():
        axes = places[block]["params"][layer][field]
        shape = wide.state[block]["params"][layer][field].shape
        ours = {"out": axes[-1], "in": axes[-2] if field == "kernel" else None}
        sizes = {"out": shape[-1], "in": shape[-2] if field == "kernel" else 0}
        for axis, theirs in zip(("out", "in"), stored[name], strict=True):
            kept = ours[axis]
            if kept is None:
                kept = np.arange(sizes[axis] if theirs.size else 0)
            own = axis == ("in" if field == "kernel" else "out")
            if full[block] is not None and own and _reads_input(layer, field):
                moved = np.empty_like(kept)
                moved[narrow[block]] = full[block][kept]
                kept = moved
            differing += not np.array_equal(kept, theirs)
    figures = f"{differing} of {2 * len(stored)} axes differ"
    return conformance.Line(wide.name, what, figures, differing == 0)


class Part(NamedTuple):
    """A slice that is replayed: of a run, or of a client."""

    at: str
    net: network.Network
    places: Any
    state: tuple


def _part(wide: Wide, at: str, method: str, width) -> Part:
    cut = wide.cut(width)
    places = slicing.places(wide.net, cut, wide.choose(method, at))
    small = slicing.sliced(wide.net, cut)
    return Part(at, small, places, _take(wide.state, places))


def _params(state) -> tuple:
    return tuple(block["params"] for block in state)


def _runs(wide: Wide) -> Iterator[tuple[str, Part]]:
    whole = jax.tree.map(lambda x: (None,) * np.ndim(x), wide.state)
    yield "full", Part("full/", wide.net, whole, wide.state)
    for run in map(str, wide.data["runs"]):
        yield run, _part(wide, f"{run}/", run, wide.data["width"])


def slice_lines(wide: Wide) -> Iterator[conformance.Line]:
    """Compares state and kept channels of every run; nothing is compiled."""
    for run, part in _runs(wide):
        yield _state_line(wide, part.at, f"{run}: state", part.net, _params(part.state))
        if f"{part.at}out" in wide.data.files:
            args = wide, part.at, f"{run}: kept channels", part.net, part.places
            yield _channels_line(*args)


@functools.partial(jax.jit, static_argnums=0)
def _step(net: network.Network, state, x, labels):
    """Computes loss, logits and gradients of all parameters."""

    def forward(params):
        blocks = [{**s, "params": p} for s, p in zip(state, params, strict=True)]
        calls = [layers.Call()] * net.num_blocks
        logits, _ = network.run(net, blocks, x, calls)
        return conformance._loss(logits, labels), logits

    return jax.value_and_grad(forward, has_aux=True)(_params(state))


def step_lines(wide: Wide) -> Iterator[conformance.Line]:
    """Compares logits, loss and gradients of every sub-network."""
    data, clean = wide.data, []
    limit = GRADIENTS.get(wide.tag, GRADIENT)
    for run, part in _runs(wide):
        labels = data[f"{part.at}y"]
        r = wide.draws(f"{wide.tag}{run}/{int(data[f'{part.at}draw'])}")
        shape = wide.net.input_shape
        x = r.standard_normal((labels.size, shape[2], *shape[:2])).astype(np.float32)
        drawn = r.integers(0, wide.net.num_classes, labels.size)
        yield conformance.Line(
            wide.name, f"{run}: labels", "of the draw", np.array_equal(drawn, labels)
        )
        args = part.net, part.state, conformance._nhwc(x), labels
        (loss, logits), gradients = _step(*args)
        for what, ours in (("logits", logits), ("loss", loss)):
            theirs = data[f"{part.at}{what}"]
            line = f"{run}: {what}"
            yield conformance._float_line(wide.name, line, ours, theirs, CLOSE)
        error = _error(data, f"{part.at}grad_", to_reference(wide, part.net, gradients))
        noise = float(data[f"{part.at}grad_noise"])
        if noise <= GRADIENT:
            clean.append(error)
        figures = f"largest relative difference {error:.2e}, theirs {noise:.1e}"
        yield conformance.Line(wide.name, f"{run}: gradients", figures, error <= ROUGH)
    close = sum(error <= limit for error in clean)
    figures = f"{close} of {len(clean)} runs within {limit:.0e}"
    passed = close >= MOST * len(clean)
    yield conformance.Line(wide.name, "gradients", figures, passed)


def replay_width(name: str, data) -> Iterator[conformance.Line]:
    """Replays the slices of one width, and what their networks compute."""
    wide = case_of(name, data)
    yield from slice_lines(wide)
    yield from step_lines(wide)


def replay_mean(name: str, data) -> Iterator[conformance.Line]:
    """Replays what clients return, and the mean of each scalar over its holders."""
    wide = case_of(name, data)
    yield _state_line(wide, "full/", "full: state", wide.net, _params(wide.state))
    old = _params(wide.state)
    for case in map(str, data["cases"]):
        total = jax.tree.map(lambda x: np.zeros(x.shape), old)
        holders = total
        for k, width in enumerate(data[f"{case}/widths"]):
            part = _part(wide, f"{case}/client{k}/", case, width)
            noise = {
                name: (
                    0.1
                    * wide.draws(f"{wide.tag}{case}client{k}{name}").standard_normal(
                        value.shape
                    )
                ).astype(np.float32)
                for name, value in zip(
                    map(str, data["names"]),
                    to_reference(wide, part.net, _params(part.state)),
                    strict=True,
                )
            }
            returned = jax.tree.map(
                np.add, _params(part.state), to_ours(wide, part.net, noise)
            )
            what = f"{case}: client {k}"
            yield _state_line(wide, part.at, what, part.net, returned, 1e-6)
            line = f"{what}, channels"
            yield _channels_line(wide, part.at, line, part.net, part.places)
            where = _params(part.places)
            ones = jax.tree.map(np.ones_like, returned)
            total, holders = (
                jax.tree.map(np.add, sums, _put(x, where, old))
                for sums, x in ((total, returned), (holders, ones))
            )
        new = jax.tree.map(
            lambda x, s, n: np.where(n > 0, s / np.maximum(n, 1), x).astype(np.float32),
            *(old, total, holders),
        )
        yield _state_line(wide, f"{case}/new_", f"{case}: mean", wide.net, new, CLOSE)
        free = [int((n == 0).sum()) for n in to_reference(wide, wide.net, holders)]
        same = np.array_equal(free, data[f"{case}/untouched"])
        figures = f"{sum(free)} scalars that nobody holds"
        yield conformance.Line(wide.name, f"{case}: untouched", figures, same)


def replay_fjord(name: str, data) -> Iterator[conformance.Line]:
    """Replays a client's epoch of ordered dropout, a width a batch, by plain SGD."""
    wide = case_of(name, data)
    lr, decay = float(data["lr"]), float(data["weight_decay"])
    plan = plans.full(wide.net.num_blocks)
    for case in map(str, data["cases"]):
        part = _part(wide, f"{case}/", "heterofl", data[f"{case}/p_max"])
        width, levels = float(data[f"{case}/p_max"]), data[f"{case}/p"].tolist()
        kind = ordered.Ordered(
            plan.at_width(width),
            levels=tuple(sorted({*levels, width})),
            whole=wide.net,
            rounding="floor",
        )

        @functools.partial(jax.jit, static_argnums=0)
        def step(level, state, x, y, kind=kind, part=part):
            one = program.Batch(x, y, np.ones(len(y), np.float32), None)
            blocks = program.Blocks((None,) * part.net.num_blocks, state)
            done = kind.step_at(level, part.net, specs.DEFAULT, one, blocks)
            moved = jax.tree.map(
                lambda p, g: p - lr * (g + decay * p), _params(state), done.gradients
            )
            kept = jax.tree.map(jax.numpy.where, done.held, moved, _params(state))
            new = ({**s, "params": p} for s, p in zip(state, kept, strict=True))
            return done.loss, tuple(new)

        state, losses = part.state, []
        for level, x, y in zip(
            levels, data[f"{case}/x"], data[f"{case}/y"], strict=True
        ):
            loss, state = step(level, state, conformance._nhwc(x), y)
            losses.append(loss)
        theirs = data[f"{case}/losses"]
        line = f"{case}: losses"
        yield conformance._float_line(wide.name, line, np.array(losses), theirs, CLOSE)
        at, what = f"{case}/end_", f"{case}: end"
        yield _state_line(wide, at, what, part.net, _params(state), CLOSE)


def replay_of(name: str):
    """Gives what replays a file of widths by its name, None if nothing does."""
    kind = name.rsplit("_", 1)[-1]
    if kind == "mean":
        return replay_mean
    if kind == "fjord":
        return replay_fjord
    return replay_width if kind.startswith("s") else None
