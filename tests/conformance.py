"""Replays what the reference computes against fljax; a line a case.

    python -m tests.conformance DIR [--tables=DIR]

DIR may hold block_*.npz (of mobilenet, resnet, densenet and encoder), net_*.npz,
trace_*.npz and width_*.npz (of the networks of `reference_names.NETWORKS`),
splits_*.npz and maximal_windows.json (which needs the cost tables). Exits with 1 if a
case falls short of its limit, 2 if there was nothing to replay.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax import plans, types
from fljax.data import partition
from fljax.kernels import quant, specs
from fljax.nn import layers, network, signals
from fljax.plans import costs
from tests import reference_names

SPEC = dataclasses.replace(specs.REFERENCE, reference_quirks=True)
HALF = np.float32(SPEC.levels(nonnegative=False))  # op_scale * 63.5 = max|x|
COLLECTIONS = ("params", "norms", "ranges", "backward")
ROLE = types.Role


class Line(NamedTuple):
    """The outcome of one comparison."""

    case: str
    what: str
    figures: str
    passed: bool

    def __str__(self) -> str:
        verdict = "pass" if self.passed else "FALLS SHORT"
        return f"{self.case:34s} {self.what:28s} {self.figures:58s} {verdict}"


def _nhwc(x: np.ndarray) -> np.ndarray:
    return x if x.ndim == 3 else np.transpose(x, (0, 2, 3, 1))  # 3: tokens


def _nchw(x) -> np.ndarray:
    x = np.asarray(x)
    return x if x.ndim == 3 else np.transpose(x, (0, 3, 1, 2))


# A parameter whose gradient is below this share of its block's largest has a gradient
# of zero in exact arithmetic (the bias of a norm that only feeds other norms, or of the
# keys of an attention): there is rounding noise on both sides and nothing to compare.
NOISE = 1e-6
PADDING = 3  # positions at the end of the sequences of the encoder cases
SEED = 7  # of files that do not say theirs
CODES = 100_000  # of so many one may differ: a tie
DRAWS = 5  # of noise, for a spread


def _entering(x):
    """Makes of images or tokens what flows into a block."""
    if x.ndim != 3:
        return x
    valid = jnp.arange(x.shape[1]) < x.shape[1] - PADDING
    return signals.Padded(x, jnp.broadcast_to(valid, x.shape[:2]))


def _apply(block, variables, x, call, **options):
    """Applies a block to bare arrays, and gives what flows out of it bare."""
    result = block.apply(variables, _entering(x), call, **options)
    if options:
        return signals.bare(result[0]), result[1]
    return signals.bare(result)


def _kernel(w: np.ndarray) -> np.ndarray:
    """Turns OIHW into ours: HWIO, HWC for depthwise, [in, out] for linear."""
    if w.ndim == 2:
        return w.T
    if w.shape[1] == 1 and w.shape[2] > 1:
        return np.transpose(w[:, 0], (1, 2, 0))
    return np.transpose(w, (2, 3, 1, 0))


def _to_reference(w: np.ndarray) -> np.ndarray:
    """Undoes `_kernel`."""
    w = np.asarray(w)
    if w.ndim == 2:
        return w.T
    if w.ndim == 3:
        return np.transpose(w, (2, 0, 1))[:, None]
    return np.transpose(w, (3, 2, 0, 1)) if w.ndim == 4 else w


def _params(names: reference_names.Names, values) -> dict:
    params: dict = {}
    for (layer, field), name in names.parameters.items():
        value = _kernel(values[name]) if field == "kernel" else values[name]
        params.setdefault(layer, {})[field] = jnp.asarray(value)
    return params


def _range(op_scale: np.ndarray) -> np.ndarray:
    """Gives the max|x| whose scale is op_scale to the bit; nearly, if there is none."""
    near = np.float32(op_scale) * HALF
    around = [np.nextafter(near, np.float32(to)) for to in (0, np.inf)]
    exact = [x for x in (near, *around) if x / HALF == op_scale]
    return exact[0] if exact else near


def _buffers(names: reference_names.Names, values, at: str, fresh: dict) -> dict:
    """Reads a block's norms and ranges from the reference's buffers.

    Of blocks that it never freezes the reference's statistics are not stored: those
    stay as they are fresh, and nothing reads them.
    """
    state: dict = {collection: {} for collection in COLLECTIONS[1:]}
    for (collection, layer, field), name in names.buffers.items():
        if at + name in values.files:
            value = values[at + name]
            value = _range(value[0]) if field == "range" else value
        else:
            value = fresh[collection][layer][field]
        state[collection].setdefault(layer, {})[field] = jnp.asarray(value)
    return state


def _initial(shapes: dict) -> dict:
    """Gives the collections beside the parameters as PyTorch starts them."""

    def leaf(path, shape):
        return (jnp.ones if path[-1].key == "var" else jnp.zeros)(shape.shape)

    of_block = {name: shapes.get(name, {}) for name in COLLECTIONS[1:]}
    return jax.tree_util.tree_map_with_path(leaf, of_block)


def relative(ours, theirs) -> float:
    """Largest difference, relative to the largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def cosine(ours, theirs) -> float:
    """Cosine of two arrays as vectors; 1 where both are zero."""
    a, b = (np.asarray(x, np.float64).ravel() for x in (ours, theirs))
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norm) if norm else float(not (a.any() or b.any()))


def _float_line(case, what, ours, theirs, limit=1e-4) -> Line:
    error = relative(ours, theirs)
    return Line(case, what, f"largest relative difference {error:.2e}", error <= limit)


def _codes_line(case, what, ours: np.ndarray, theirs: np.ndarray) -> Line:
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    differing, largest = int((difference > 0).sum()), int(difference.max())
    figures = f"{differing} of {difference.size} differ, largest {largest}"
    passed = differing <= math.ceil(difference.size / CODES) and largest <= 2
    return Line(case, what, figures, passed)


def _unsigned(q: quant.QArray, zero) -> np.ndarray:
    """Gives codes as the reference stores them, around its zero point."""
    return _nchw(q.codes).astype(int) + int(zero) - q.zero_point


def replay_block(case: str, data) -> Iterator[Line]:
    """Replays one block in its three roles."""
    block = reference_names.block_of(case, data)
    cal = jax.ShapeDtypeStruct(_nhwc(data["cal_x"]).shape, jnp.float32)
    shapes = jax.eval_shape(
        lambda x: block.init(jax.random.key(0), _entering(x), layers.Call()), cal
    )
    names = reference_names.names_of(block, shapes)
    state = {name[6:]: data[name] for name in data.files if name[:6] == "state/"}
    params = _params(names, state)
    initial = _initial(shapes)
    observed = _buffers(names, data, "state/", initial)

    def trained(params, backward, x):
        variables = {"params": params, **initial, "backward": backward}
        call = layers.Call(ROLE.TRAINED, SPEC)
        return _apply(block, variables, x, call, mutable=["norms", "ranges"])

    x, g = _nhwc(data["cal_x"]), _nhwc(data["cal_g"])

    @jax.jit
    def pulled(params, backward, x, g):
        y, pull, updates = jax.vjp(trained, params, backward, x, has_aux=True)
        return y, updates, pull(g)

    y, updates, (gradients, backward, dx) = pulled(params, initial["backward"], x, g)
    yield _float_line(case, "trained: output", _nchw(y), data["cal_y"])
    yield _float_line(case, "trained: input gradient", _nchw(dx), data["cal_dx"])
    largest = max(
        np.abs(data[f"cal_dw/{name}"]).max() for name in names.parameters.values()
    )
    errors = []
    for (layer, field), name in names.parameters.items():
        ours, theirs = _to_reference(gradients[layer][field]), data[f"cal_dw/{name}"]
        noise = np.abs(theirs).max() < NOISE * largest
        if noise and np.abs(ours).max() < 10 * NOISE * largest:
            continue
        errors.append(relative(ours, theirs))
    figures = f"largest relative difference {max(errors):.2e} of {len(errors)}"
    yield Line(case, "trained: parameter gradients", figures, max(errors) <= 1e-4)
    ours = {"norms": {}, **updates, "backward": backward}
    errors = jax.tree.leaves(jax.tree.map(relative, ours, observed))
    figures = f"largest relative difference {max(errors):.2e} of {len(errors)}"
    yield Line(case, "trained: norms and ranges", figures, max(errors) <= 1e-4)

    def frozen(role, x):
        call = layers.Call(role, SPEC)
        variables = {"params": params, **observed}
        _, update = jax.jit(
            lambda variables, x: _apply(block, variables, x, call, mutable=["frozen"])
        )(variables, x)
        return jax.jit(lambda x: _apply(block, update, x, call))

    x = _nhwc(data["x"])
    codes = frozen(ROLE.FROZEN_BEFORE, x)(x)
    ours = _unsigned(codes, data["fw_zero"])
    yield _codes_line(case, "frozen before: codes", ours, data["fw_codes"])
    figures = f"ours {float(codes.scale):.6g}, theirs {float(data['fw_scale']):.6g}"
    close = relative(codes.scale, data["fw_scale"]) <= 1e-4
    yield Line(case, "frozen before: scale", figures, close)

    after = frozen(ROLE.FROZEN_AFTER, x)

    @jax.jit
    def pulled_after(x, g):
        y, pull = jax.vjp(lambda x: signals.to_float(after(x)), x)
        return y, *pull(g)

    g = _nhwc(data["bw_g"])
    y, dx = pulled_after(x, g)
    step = float(data[f"state/{names.last}.op_scale"][0])
    yield _steps_line(case, "frozen after: output", _nchw(y), data["bw_y"], step)
    others = [pulled_after(x, _noisy(g, 1e-7, seed))[1] for seed in range(DRAWS)]
    yield _pulled_line(case, "frozen after: input gradient", dx, others, data["bw_dx"])


def _steps_line(case, what, ours, theirs, step: float) -> Line:
    steps = np.abs(ours - theirs) / step
    figures = f"largest {steps.max():.3f} steps, equal {np.mean(steps < 0.01):.4%}"
    return Line(case, what, figures, float(steps.max()) <= 2)


def _noisy(x: np.ndarray, size: float, seed: int) -> np.ndarray:
    """Moves every value of x by noise of its own, of this size relative to it."""
    noise = np.random.default_rng(seed).standard_normal(x.shape)
    return (x * (1 + size * noise)).astype(np.float32)


def _pulled_line(case, what, ours, noisy, theirs) -> Line:
    """Compares what came back through a block that is frozen after the window.

    The most negative value of a cotangent lies on a tie by construction, and its last
    bit says where it goes. So noise of 1e-7 decides what all that it reaches gets; some
    draw of it should give what the reference has.
    """
    similarity, *of_noise = (cosine(_nchw(x), theirs) for x in (ours, *noisy))
    figures = f"cosine {similarity:.5f}, with noise up to {max(of_noise):.5f}"
    passed = similarity >= 0.998 or max(of_noise) >= 0.9999
    return Line(case, what, figures, passed)


def _seed(data) -> int:
    return int(data["seed"]) if "seed" in data.files else SEED


def _draw(seed: int, tag: str, name: str, shape) -> np.ndarray:
    """Draws a reference parameter by the rule of the conformance README."""
    r = np.random.default_rng([seed, zlib.crc32((tag + name).encode())])
    if len(shape) >= 2:
        return r.standard_normal(shape) * 1.5 / np.sqrt(np.prod(shape[1:]))
    is_norm_scale = name.endswith("weight")
    return (
        r.uniform(0.5, 1.5, shape) if is_norm_scale else 0.2 * r.standard_normal(shape)
    )


def _drawn_block(names: reference_names.Names, shapes, seed: int, tag: str) -> dict:
    """Draws the parameters of a block; the other collections are as PyTorch starts."""
    params: dict = {}
    for (layer, field), name in names.parameters.items():
        shape = _to_reference(np.empty(shapes["params"][layer][field].shape)).shape
        value = _draw(seed, tag, name, shape).astype(np.float32)
        value = _kernel(value) if field == "kernel" else value
        params.setdefault(layer, {})[field] = jnp.asarray(value)
    return {"params": params, **_initial(shapes)}


class Case(NamedTuple):
    """A network of the reference that is to be replayed.

    Attributes:
      name: of the file.
      data: what it holds.
      net: our network.
      names: of its blocks.
      fresh: its state before calibration.
      calibration: images and labels.
    """

    name: str
    data: Any
    net: network.Network
    names: list[reference_names.Names]
    fresh: list[dict]
    calibration: tuple[np.ndarray, np.ndarray]

    def observed(self) -> list[dict]:
        """Gives the state with the norms and ranges of the reference's calibration."""
        return [
            {"params": block["params"], **_buffers(names, self.data, "buffer/", block)}
            for block, names in zip(self.fresh, self.names, strict=True)
        ]


def _case(name: str, tag: str, data) -> Case:
    shape, seed = data["x"].shape[1:], _seed(data)
    classes = next(data[k].shape[-1] for k in data.files if k.endswith("logits"))
    net = reference_names.network_of(tag)((*shape[1:], shape[0]), classes)
    shapes = jax.eval_shape(lambda: network.init(net, jax.random.key(0)))

    def choose(index: int, known: list[reference_names.Names]):
        """Picks the names of a block of which nothing is stored but its output."""
        if index or "block0/value" not in data.files:
            return known[0]
        values = [
            network.run(
                net,
                [_drawn_block(names, shapes[0], seed, tag)],
                _nhwc(data["x"]),
                [layers.Call(ROLE.FROZEN_BEFORE, SPEC)],
                mutable=("frozen",),
            )[0]
            for names in known
        ]
        theirs = data["block0/value"]
        errors = [relative(_nchw(signals.to_float(x)), theirs) for x in values]
        return known[int(np.argmin(errors))]

    names = reference_names.names_of_network(net, shapes, data, choose)
    fresh = [
        _drawn_block(of_block, block, seed, tag)
        for of_block, block in zip(names, shapes, strict=True)
    ]
    r = np.random.default_rng([seed, zlib.crc32((tag + "cal").encode())])
    x = r.standard_normal((8, *shape)).astype(np.float32)
    return Case(name, data, net, names, fresh, (_nhwc(x), r.integers(0, classes, 8)))


def _loss(logits, labels):
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _window_step(net, roles, state, x, labels):
    """Computes loss, logits, gradients of the window, and what was observed."""
    window = [i for i, role in enumerate(roles) if role is ROLE.TRAINED]
    frozen = network.freeze(net, state, roles, SPEC)
    calls = [layers.Call(role, SPEC) for role in roles]

    def forward(trained):
        variables = list(frozen)
        for i, (params, backward) in zip(window, trained, strict=True):
            variables[i] = {**state[i], "params": params, "backward": backward}
        mutable = ("norms", "ranges")
        logits, updates = network.run(net, variables, x, calls, mutable=mutable)
        return _loss(logits, labels), (logits, updates)

    trained = [(state[i]["params"], state[i]["backward"]) for i in window]
    (loss, (logits, updates)), gradients = jax.value_and_grad(forward, has_aux=True)(
        trained
    )
    return loss, logits, dict(zip(window, gradients, strict=True)), updates


def _calibration_lines(case: Case) -> Iterator[Line]:
    """Replays the pass in which nothing is frozen and ranges are observed."""
    roles = (ROLE.TRAINED,) * case.net.num_blocks
    loss, _, gradients, updates = _window_step(
        case.net, roles, case.fresh, *case.calibration
    )
    if "cal_loss" in case.data.files:
        yield _float_line(case.name, "calibration: loss", loss, case.data["cal_loss"])
    errors: dict[bool, list[float]] = {False: [], True: []}
    for i, theirs in enumerate(case.observed()):
        ours = {"norms": {}, "ranges": {}, **updates[i], "backward": gradients[i][1]}
        for (kind, layer, field), name in case.names[i].buffers.items():
            if f"buffer/{name}" in case.data.files:
                pair = ours[kind][layer][field], theirs[kind][layer][field]
                errors[kind == "backward"].append(relative(*pair))
    # The reference's own largest gradients move by up to 7.5e-3 with another library
    # for its float convolutions: they came back through all norms of 8 images.
    for backward, what, limit in (
        (False, "calibration: norms and ranges", 1e-5),
        (True, "calibration: ranges of gradients", 1e-2),
    ):
        largest = max(errors[backward])
        figures = (
            f"largest relative difference {largest:.2e} of {len(errors[backward])}"
        )
        yield Line(case.name, what, figures, largest <= limit)


def replay_network(name: str, data) -> Iterator[Line]:
    """Replays a network: calibration, then every stored window."""
    case = _case(name, name.removeprefix("net_"), data)
    yield from _calibration_lines(case)
    for window in sorted({key.split("/")[0] for key in data.files if key[0] == "w"}):
        first, last = map(int, window[1:].split("-"))
        yield from _end_to_end(case, plans.Plan(first, last), f"{window}/", window)


def replay_trace(name: str, data) -> Iterator[Line]:
    """Replays a step of a network block by block, each from what the reference has."""
    case = _case(name, str(data["network"]), data)
    plan = plans.Plan(*map(int, data["window"]))
    yield from _calibration_lines(case)
    yield from _prefix_lines(case, plan)
    yield from _trained_lines(case, plan)
    yield from _suffix_lines(case, plan)
    yield from _end_to_end(case, plan, "", "end to end")


def _left(data, index: int):
    """Gives what leaves a block in the reference: codes, floats, or None if not stored.

    For the stem, the codes that the first frozen block makes of it.
    """
    for at in ("entry",) * (index == 0) + (f"block{index}",):
        if f"{at}/codes" in data.files:
            zero = SPEC.zero_point_of(nonnegative=False)
            codes = data[f"{at}/codes"].astype(int) - int(data[f"{at}/zero"]) + zero
            return quant.QArray(_nhwc(codes.astype(np.int8)), data[f"{at}/scale"], zero)
    value = f"block{index}/value"
    return _nhwc(data[value]) if value in data.files else None


def _applied(case: Case, index: int, role):
    """Gives what runs one block, frozen as it runs, on a signal."""
    call, block = layers.Call(role, SPEC), case.net.blocks[index]

    @jax.jit
    def run(variables, x):
        return block.apply(variables, x, call, mutable=["frozen"])[0]

    return functools.partial(run, case.observed()[index])


def _prefix_lines(case: Case, plan: plans.Plan) -> Iterator[Line]:
    """Compares what leaves each block before the window, from the reference's input."""
    name, data = case.name, case.data
    for i in range(plan.first):
        x = _left(data, i - 1) if i else _nhwc(data["x"])
        if x is None:
            print(f"{name:34s} block {i}: skipped, its input is not stored")
            continue
        y = _applied(case, i, ROLE.FROZEN_BEFORE)(x)
        if f"block{i}/value" in data.files:
            y = _nchw(signals.to_float(y))
            yield _float_line(name, f"block {i}", y, data[f"block{i}/value"], 1e-5)
        if f"block{i}/codes" in data.files:
            yield from _coded_lines(name, f"block{i}", y, data)
    if plan.first and "entry/codes" in data.files:
        yield from entry_lines(name, data)


def entry_lines(case: str, data) -> Iterator[Line]:
    """Compares the codes that the first frozen block makes of what the stem gives."""
    x = signals.Ranged(jnp.asarray(_nhwc(data["block0/value"])), None)
    y = jax.jit(lambda x: signals.to_codes(x, SPEC, None))(x)
    yield from _coded_lines(case, "entry", y, data)


def _coded_lines(case: str, at: str, y: quant.QArray, data) -> Iterator[Line]:
    what = at.replace("block", "block ")
    ours = _unsigned(y, data[f"{at}/zero"])
    yield _codes_line(case, f"{what}: codes", ours, data[f"{at}/codes"])
    scale, theirs = float(y.scale), float(data[f"{at}/scale"])
    figures = f"ours {scale:.9g}, theirs {theirs:.9g}"
    yield Line(case, f"{what}: scale", figures, scale == theirs)


def _trained_lines(case: Case, plan: plans.Plan) -> Iterator[Line]:
    """Compares the window, from the reference's own codes and its own cotangent."""
    name, data, state = case.name, case.data, case.observed()
    window = range(plan.first, plan.last + 1)
    x = _left(data, plan.first - 1) if plan.first else _nhwc(data["x"])
    to_end = plan.last == case.net.num_blocks - 1
    theirs = data["logits"] if to_end else _nhwc(data[f"block{plan.last}/value"])
    g = (
        jax.grad(_loss)(theirs, data["y"])
        if to_end
        else _nhwc(data[f"block{plan.last}/cotangent"])
    )

    @jax.jit
    def pulled(trained, x, g):
        def forward(trained):
            y, values = x, []
            for i, params in zip(window, trained, strict=True):
                variables = {**state[i], "params": params}
                call = layers.Call(ROLE.TRAINED, SPEC)
                y, _ = network.run(case.net, [variables], y, [call], i)
                values.append(y)
            return y, values

        _, pull, values = jax.vjp(forward, trained, has_aux=True)
        return values, pull(g)[0]

    values, gradients = pulled([state[i]["params"] for i in window], x, g)
    for i, y in zip(window, values, strict=True):
        if f"block{i}/value" in data.files:
            yield _float_line(name, f"block {i}", _nchw(y), data[f"block{i}/value"])
    if to_end:
        yield _float_line(name, "logits from own codes", values[-1], data["logits"])
    by_block = {i: (g, None) for i, g in zip(window, gradients, strict=True)}
    what = "gradients from own codes"
    yield _gradients_line(case, what, "", by_block, 0.9999)


def _suffix_lines(case: Case, plan: plans.Plan) -> Iterator[Line]:
    """Compares each block after the window, forward and back, from what is stored."""
    name, data = case.name, case.data
    last = case.net.num_blocks - 1
    for i in range(plan.last + 1, last + 1):
        block, x = (
            _applied(case, i, ROLE.FROZEN_AFTER),
            _nhwc(data[f"block{i - 1}/value"]),
        )

        @jax.jit
        def pulled(x, g, block=block):
            y, pull = jax.vjp(lambda x: signals.to_float(block(x)), x)
            return y, pull(g)[0]

        if i == last:
            g = np.asarray(jax.grad(_loss)(data["logits"], data["y"]))
        else:
            g = _nhwc(data[f"block{i}/cotangent"])
        y, dx = pulled(x, g)
        if i == last or not case.names[i].last:
            theirs = data["logits"] if i == last else data[f"block{i}/value"]
            yield _float_line(name, f"block {i}", y if i == last else _nchw(y), theirs)
        else:
            step = float(data[f"buffer/{case.names[i].last}.op_scale"][0])
            theirs = data[f"block{i}/value"]
            yield _steps_line(name, f"block {i}: output", _nchw(y), theirs, step)
        others = [pulled(x, _noisy(g, 1e-7, seed))[1] for seed in range(DRAWS)]
        theirs = data[f"block{i - 1}/cotangent"]
        yield _pulled_line(name, f"block {i}: input gradient", dx, others, theirs)


def _end_to_end(case: Case, plan: plans.Plan, at: str, what: str) -> Iterator[Line]:
    """Compares a whole step from the images, beside how far noise moves our own."""
    data, state = case.data, case.observed()
    roles = plans.roles(plan, case.net.num_blocks)
    x, labels = _nhwc(data["x"]), data["y"]
    loss, logits, gradients, _ = _window_step(case.net, roles, state, x, labels)
    spread = None
    if len(gradients) < case.net.num_blocks:
        moved = [
            _window_step(case.net, roles, state, _noisy(x, 1e-6, seed), labels)[1:3]
            for seed in range(DRAWS)
        ]
        spread = _spread(case, at, logits, gradients, moved)
        print(spread.line(case.name, what))
    similarity = cosine(logits, data[f"{at}logits"])
    figures = (
        f"cosine {similarity:.5f}, loss {float(loss):.4f} "
        f"against {float(data[f'{at}loss']):.4f}"
    )
    # The README sets no limit for logits; the weakest of the gradients' is taken.
    limit = min(0.98, spread.logits) if spread else 0.98
    yield Line(case.name, f"{what}: logits", figures, similarity >= limit)
    limit = 0.999 if plan.last == case.net.num_blocks - 1 else 0.98
    line = _gradients_line(case, f"{what}: gradients", at, gradients, limit)
    if spread and not line.passed:
        # Beside the spread: no further off than a draw of noise, in most parameters.
        cosines, _ = _cosines(case, at, gradients)
        median = float(np.median(list(cosines.values())))
        figures = f"{line.figures}; beside the spread from {spread.lowest_median:.5f}"
        line = line._replace(figures=figures, passed=median >= spread.lowest_median)
    yield line


class Spread(NamedTuple):
    """How far our own step moves when every input moves by noise of its own of 1e-6.

    Attributes:
      logits: smallest cosine of the logits with themselves, over the draws.
      smallest: of the gradients of all parameters.
      median: median of their cosines over parameters and draws.
      lowest_median: smallest median over parameters, of the draws.
    """

    logits: float
    smallest: float
    median: float
    lowest_median: float

    def line(self, case: str, what: str) -> str:
        """Says so in a line; no comparison with the reference."""
        return (
            f"{case:34s} {what + ': our own spread':28s} logits from "
            f"{self.logits:.5f}, gradients from {self.smallest:.5f}, median "
            f"{self.median:.5f}"
        )


def _spread(case: Case, at: str, logits, gradients, moved) -> Spread:
    """Measures the spread; moved holds logits and gradients of every draw."""
    _, noise = _cosines(case, at, gradients)
    cosines = [
        [
            cosine(_first64(ours[i][0][layer][field]), _first64(params[layer][field]))
            for i, (params, _) in gradients.items()
            for (layer, field), name in case.names[i].parameters.items()
            if name not in noise
        ]
        for _, ours in moved
    ]
    return Spread(
        min(cosine(ours, logits) for ours, _ in moved),
        float(np.min(cosines)),
        float(np.median(cosines)),
        float(np.median(cosines, axis=1).min()),
    )


def _first64(gradient) -> np.ndarray:
    return _to_reference(gradient).ravel()[:64]


def _cosines(case: Case, at: str, gradients) -> tuple[dict[str, float], list[str]]:
    """Gives name -> cosine with what is stored of it, and the names that are noise."""
    data, noise = case.data, []
    cosines: dict[str, float] = {}
    for i, (params, _) in gradients.items():
        ours = case.names[i].parameters
        sizes = {n: float(data[f"{at}gradnorm/{n}"]) for n in ours.values()}
        for (layer, field), name in ours.items():
            value = _to_reference(params[layer][field])
            if sizes[name] < NOISE * max(sizes.values()):
                noise.append(name)
                zero = np.linalg.norm(value) < 10 * NOISE * max(sizes.values())
                cosines[name] = float(zero)
                continue
            theirs = data[f"{at}grad64/{name}"]
            cosines[name] = cosine(value.ravel()[: theirs.size], theirs)
            if f"{at}grad/{name}" in data.files:
                whole = cosine(value, data[f"{at}grad/{name}"])
                cosines[name] = min(cosines[name], whole)
    return cosines, noise


def _gradients_line(case: Case, what: str, at: str, gradients, limit: float) -> Line:
    cosines, noise = _cosines(case, at, gradients)
    worst = min(cosines, key=cosines.__getitem__)
    short = sum(c < limit for c in cosines.values())
    figures = (
        f"smallest cosine {cosines[worst]:.5f} ({worst}), median "
        f"{np.median(list(cosines.values())):.5f}, {short} of {len(cosines)} below "
        f"{limit:.4f}, {len(noise)} are zero on both sides"
    )
    return Line(case.name, what, figures, cosines[worst] >= limit)


def replay_splits(case: str, data) -> Iterator[Line]:
    """Replays every stored split of the stored labels."""
    labels = data["labels"]
    for key in sorted(k for k in data.files if k.endswith("/indices")):
        kind, seed, clients, alpha, _ = key.split("/")
        n, s, a = int(clients[1:]), int(seed[4:]), float(alpha[5:])
        parts = {
            "iid": lambda n=n, s=s: partition.iid(labels, n, s),
            "noniid": lambda n=n, s=s, a=a: partition.dirichlet(labels, n, a, s),
            "rcnoniid": lambda n=n, s=s, a=a: partition.resource_correlated(
                labels, n, a, s
            ),
        }[kind]()
        sizes = np.array([len(part) for part in parts])
        indices = np.concatenate(parts)
        same = np.array_equal(sizes, data[key.replace("indices", "sizes")])
        same = same and np.array_equal(indices, data[key])
        figures = f"{len(indices)} indices {'equal' if same else 'differ'}"
        yield Line(case, key.rsplit("/", 1)[0], figures, same)


def replay_windows(case: str, expected: dict, tables: pathlib.Path) -> Iterator[Line]:
    """Replays the maximal windows of every table under every stored budget."""
    for name, by_budget in expected.items():
        path = tables / f"{name}.json"
        if not path.exists():
            yield Line(case, name, f"no table {path.name}", False)
            continue
        table = costs.load(path)
        for text, windows in by_budget.items():
            limits = {k: float(v) for k, v in (p.split("=") for p in text.split())}
            fits = costs.feasible(table, limits["T"], limits["C"], limits["M"])
            keep = costs.maximal(table.covers, fits)
            ours = sorted(map(tuple, table.windows[keep].tolist()))
            same = ours == sorted(map(tuple, windows))
            figures = f"{len(ours)} windows {'equal' if same else 'differ'}"
            yield Line(case, f"{name} {text}", figures, same)


def _replay_of(path: pathlib.Path) -> Callable[[str, Any], Iterator[Line]] | None:
    """Gives what replays a file, None if it is of a kind, or network, of no replay."""
    kind, _, rest = path.stem.partition("_")
    if kind == "block":
        known = rest.split("_")[0] in reference_names.FAMILIES
        return replay_block if known else None
    if kind == "net":
        return replay_network if rest in reference_names.NETWORKS else None
    if kind in ("trace", "width"):
        if str(np.load(path)["network"]) not in reference_names.NETWORKS:
            return None
        # Which itself needs this module.
        from tests import conformance_widths

        of_width = conformance_widths.replay_of(rest)
        return replay_trace if kind == "trace" else of_width
    return replay_splits if kind == "splits" else None


def replay(folder: pathlib.Path, tables: pathlib.Path | None) -> Iterator[Line]:
    """Replays all that the folder holds; says for which files there is no replay."""
    for path in sorted(folder.glob("*.npz")):
        replay_one = _replay_of(path)
        if replay_one is None:
            print(f"{path.stem:34s} skipped: no replay for it")
        else:
            yield from replay_one(path.stem, np.load(path))
    for path in sorted(folder.glob("maximal_windows.json")):
        where = tables or folder
        yield from replay_windows(path.stem, json.loads(path.read_text()), where)


def main(arguments: list[str]) -> int:
    """Prints a line a case; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--tables", type=pathlib.Path)
    options = parser.parse_args(arguments)
    lines = []
    for line in replay(options.folder, options.tables):
        print(line, flush=True)
        lines.append(line)
    short = sum(not line.passed for line in lines)
    print(f"{len(lines)} comparisons, {short} fall short")
    return 2 if not lines else int(short > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
