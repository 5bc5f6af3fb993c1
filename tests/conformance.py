"""Replays what the reference computes against fljax; a line a case.

    python -m tests.conformance DIR [--tables=DIR]

DIR may hold block_*.npz (of mobilenet, resnet, densenet and encoder), net_*.npz (of the
networks of `reference_names.NETWORKS`), splits_*.npz and maximal_windows.json (which
needs the cost tables). Exits with 1 if a case falls short of its limit, 2 if there was
nothing to replay.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax import costs, layers, plans, quant, signals, types
from fljax.data import partition
from fljax.models import network
from tests import reference_names

SPEC = dataclasses.replace(quant.REFERENCE, reference_quirks=True)
HALF = SPEC.levels(nonnegative=False)  # op_scale * 63.5 = max|x|
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


def _buffers(names: reference_names.Names, values, at: str) -> dict:
    """Reads a block's norms and ranges from the reference's buffers."""
    state: dict = {collection: {} for collection in COLLECTIONS[1:]}
    for (collection, layer, field), name in names.buffers.items():
        value = values[at + name]
        value = value[0] * HALF if field == "range" else value
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


def _codes_line(case, ours: np.ndarray, theirs: np.ndarray) -> Line:
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    share, largest = float(np.mean(difference <= 1)), int(difference.max())
    equal = float(np.mean(difference == 0))
    figures = f"within 1 {share:.4%}, equal {equal:.2%}, largest {largest}"
    return Line(case, "frozen before: codes", figures, share >= 0.995 and largest <= 2)


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
    observed = _buffers(names, data, "state/")
    initial = _initial(shapes)

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
    offset = int(data["fw_zero"]) - codes.zero_point
    yield _codes_line(case, _nchw(codes.codes).astype(int) + offset, data["fw_codes"])
    figures = f"ours {float(codes.scale):.6g}, theirs {float(data['fw_scale']):.6g}"
    close = relative(codes.scale, data["fw_scale"]) <= 1e-4
    yield Line(case, "frozen before: scale", figures, close)

    after = frozen(ROLE.FROZEN_AFTER, x)

    @jax.jit
    def pulled_after(x, g):
        y, pull = jax.vjp(lambda x: signals.to_float(after(x)), x)
        return y, *pull(g)

    y, dx = pulled_after(x, _nhwc(data["bw_g"]))
    step = float(data[f"state/{names.last}.op_scale"][0])
    steps = float(np.abs(_nchw(y) - data["bw_y"]).max()) / step
    yield Line(case, "frozen after: output", f"largest {steps:.3f} steps", steps <= 2)
    similarity = cosine(_nchw(dx), data["bw_dx"])
    figures = f"cosine {similarity:.5f}"
    yield Line(case, "frozen after: input gradient", figures, similarity >= 0.998)


def _draw(tag: str, name: str, shape) -> np.ndarray:
    """Draws a reference parameter by the rule of the conformance README."""
    r = np.random.default_rng([7, zlib.crc32((tag + name).encode())])
    if len(shape) >= 2:
        return r.standard_normal(shape) * 1.5 / np.sqrt(np.prod(shape[1:]))
    is_norm_scale = name.endswith("weight")
    return (
        r.uniform(0.5, 1.5, shape) if is_norm_scale else 0.2 * r.standard_normal(shape)
    )


def _drawn_state(shapes, names: list[reference_names.Names], tag: str) -> list[dict]:
    state = []
    for of_block, block in zip(names, shapes, strict=True):
        params: dict = {}
        for (layer, field), name in of_block.parameters.items():
            shape = _to_reference(np.empty(block["params"][layer][field].shape)).shape
            value = _draw(tag, name, shape).astype(np.float32)
            value = _kernel(value) if field == "kernel" else value
            params.setdefault(layer, {})[field] = jnp.asarray(value)
        state.append({"params": params, **_initial(block)})
    return state


def _loss(logits, labels):
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])


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


def replay_network(case: str, data) -> Iterator[Line]:
    """Replays a network: calibration, then every stored window."""
    tag = case.removeprefix("net_")
    shape = data["x"].shape[1:]
    windows = sorted({key.split("/")[0] for key in data.files if key[0] == "w"})
    classes = data[f"{windows[0]}/logits"].shape[-1]
    net = reference_names.network_of(tag)((*shape[1:], shape[0]), classes)
    shapes = jax.eval_shape(lambda: network.init(net, jax.random.key(0)))
    names = reference_names.names_of_network(net, shapes, data)
    state = _drawn_state(shapes, names, tag)
    step = jax.jit(_window_step, static_argnums=(0, 1))
    r = np.random.default_rng([7, zlib.crc32((tag + "cal").encode())])
    x = r.standard_normal((8, *shape)).astype(np.float32)
    labels = r.integers(0, classes, 8)
    roles = (ROLE.TRAINED,) * net.num_blocks
    loss, _, gradients, updates = step(net, roles, state, _nhwc(x), labels)
    yield _float_line(case, "calibration: loss", loss, data["cal_loss"])
    errors = []
    for i, of_block in enumerate(names):
        theirs = _buffers(of_block, data, "buffer/")
        ours = {"norms": {}, "ranges": {}, **updates[i], "backward": gradients[i][1]}
        errors += jax.tree.leaves(jax.tree.map(relative, ours, theirs))
        state[i] = {"params": state[i]["params"], **theirs}
    figures = f"largest relative difference {max(errors):.2e} of {len(errors)}"
    yield Line(case, "calibration: buffers", figures, max(errors) <= 1e-4)

    x, labels = _nhwc(data["x"]), data["y"]
    for window in windows:
        first, last = map(int, window[1:].split("-"))
        roles = plans.roles(plans.Plan(first, last), net.num_blocks)
        loss, logits, gradients, _ = step(net, roles, state, x, labels)
        lines = list(
            _window_lines(
                case,
                window,
                data,
                names,
                loss,
                logits,
                gradients,
                last == net.num_blocks - 1,
            )
        )
        yield from lines
        if not all(line.passed for line in lines):
            print(_sensitivity(case, window, names, step, net, roles, state, x, labels))


def _cosines(data, window, names, gradients):
    """Gives name -> cosine of the first 64 values, and the names that are noise."""
    cosines, noise = {}, []
    for i, (params, _) in gradients.items():
        ours = names[i].parameters
        sizes = {n: float(data[f"{window}/gradnorm/{n}"]) for n in ours.values()}
        for (layer, field), name in ours.items():
            value = _to_reference(params[layer][field])
            if sizes[name] < NOISE * max(sizes.values()):
                noise.append(name)
                zero = np.linalg.norm(value) < 10 * NOISE * max(sizes.values())
                cosines[name] = float(zero)
                continue
            theirs = data[f"{window}/grad64/{name}"]
            cosines[name] = cosine(value.ravel()[: theirs.size], theirs)
    return cosines, noise


def _window_lines(case, window, data, names, loss, logits, gradients, to_end):
    similarity = cosine(logits, data[f"{window}/logits"])
    figures = (
        f"cosine {similarity:.5f}, loss {float(loss):.4f} "
        f"against {float(data[f'{window}/loss']):.4f}"
    )
    # The README sets no limit for logits; the weakest of the gradients' is taken.
    yield Line(case, f"{window}: logits", figures, similarity >= 0.98)
    cosines, noise = _cosines(data, window, names, gradients)
    limit = 0.999 if to_end else 0.98
    worst = min(cosines, key=cosines.__getitem__)
    short = sum(c < limit for c in cosines.values())
    figures = (
        f"smallest cosine {cosines[worst]:.5f} ({worst}), {short} of {len(cosines)} "
        f"below {limit}, {len(noise)} are zero on both sides"
    )
    yield Line(case, f"{window}: gradients", figures, cosines[worst] >= limit)


def _sensitivity(case, window, names, step, net, roles, state, x, labels) -> str:
    """Says how far our own result moves when the input moves by one part in 10^6.

    Rounding to codes makes a deep network with random weights chaotic: where even
    this moves the gradients further than the limit allows, only the same bits in
    every operation could meet it.
    """
    mine, other = (
        step(net, roles, state, inputs, labels)[2] for inputs in (x, x * (1 + 1e-6))
    )
    cosines = [
        cosine(np.ravel(a)[:64], np.ravel(b)[:64])
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True)
    ]
    return (
        f"{case:34s} {window + ': our own sensitivity':28s} input moved by 1e-6: "
        f"median gradient cosine {np.median(cosines):.3f} with itself"
    )


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


def replay(folder: pathlib.Path, tables: pathlib.Path | None) -> Iterator[Line]:
    """Replays all that the folder holds."""
    for path in sorted(folder.glob("block_*.npz")):
        if path.stem.split("_")[1] in reference_names.FAMILIES:
            yield from replay_block(path.stem, np.load(path))
    for path in sorted(folder.glob("net_*.npz")):
        if path.stem.removeprefix("net_") in reference_names.NETWORKS:
            yield from replay_network(path.stem, np.load(path))
    for path in sorted(folder.glob("splits_*.npz")):
        yield from replay_splits(path.stem, np.load(path))
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
