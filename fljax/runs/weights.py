"""A network's numbers as a file that others read, and back: safetensors, orbax.

A tensor is named `BLOCK/COLLECTION/PATH`, as in `0/params/conv/kernel`; the collections
are those of `nn.layers`: params, norms, ranges, backward. Nothing of these formats runs
code when it is read, as a pickle would.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from fljax import trees, types, version
from fljax.nn import network
from fljax.runtime import durable, reading

SAFETENSORS, ORBAX = SUFFIXES = ".safetensors", ".orbax"
FACTS = "fljax.json"  # beside the checkpoint in an orbax folder

Blocks = tuple[dict, ...]


def facts(net: network.Network) -> dict[str, str]:
    """Says whose numbers a file holds: texts, as safetensors wants them."""
    return {
        "fljax": version.VERSION,
        "network": net.name,
        "blocks": str(net.num_blocks),
        "num_classes": str(net.num_classes),
        "input_shape": json.dumps(net.input_shape),
        "vocabulary": json.dumps(net.vocabulary),
    }


def save(
    path: str | os.PathLike[str], net: network.Network, blocks: types.Tree
) -> None:
    """Writes a network's state as `.safetensors`, or as an orbax folder `.orbax`.

    Args:
      path: whose suffix tells the format; what is there is replaced once all is
        written.
      net: the network.
      blocks: its state.

    Raises:
      ValueError: the suffix is another.
    """
    where = pathlib.Path(path)
    tensors = {name: np.asarray(leaf) for name, leaf in trees.named(blocks).items()}
    if where.suffix == SAFETENSORS:
        import safetensors.numpy

        content = safetensors.numpy.save(tensors, facts(net))
        durable.replace(where, content)
    elif where.suffix == ORBAX:
        _save_orbax(where, net, tensors)
    else:
        raise _unknown(path)


def _unknown(path: Any) -> ValueError:
    return ValueError(
        f"expected a file {SAFETENSORS} or a folder {ORBAX}, got {os.fspath(path)!r}"
    )


def _save_orbax(where: pathlib.Path, net, tensors: Mapping[str, Any]) -> None:
    """Writes a folder that `orbax.checkpoint.StandardCheckpointer` restores."""
    import orbax.checkpoint

    beside = durable.temporary(where.absolute())
    for old in (beside, where):
        _check_ours(old)
        shutil.rmtree(old, ignore_errors=True)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(beside, traverse_util.unflatten_dict(dict(tensors), sep="/"))
    (beside / FACTS).write_text(json.dumps(facts(net)))
    durable.rename(beside, where.absolute())


def _check_ours(folder: pathlib.Path) -> None:
    """Refuses to replace what is no folder of `save`."""
    known = not folder.exists() or (folder / "_CHECKPOINT_METADATA").exists()
    if not known and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise ValueError(f"{folder}: expected a new folder, or one of orbax to replace")


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the tensors of `save`, or of anybody's file of these formats, by name.

    Args:
      path: a file `.safetensors` or a folder `.orbax`.

    Returns:
      Name -> array. Of an orbax tree, names are paths with / between their parts.

    Raises:
      ValueError: there is none, or it holds something else.
    """
    where, name = pathlib.Path(path), os.fspath(path)
    if where.suffix == SAFETENSORS:
        import safetensors.numpy

        reading.check(name, where)
        with reading.one_line(name):
            return safetensors.numpy.load(where.read_bytes())
    if where.suffix == ORBAX:
        if not where.is_dir():
            raise ValueError(f"{name}: there is no folder {where.absolute()}")
        import orbax.checkpoint

        with reading.one_line(name):
            with orbax.checkpoint.PyTreeCheckpointer() as checkpointer:
                tree = checkpointer.restore(where.absolute())
            return {name: np.asarray(leaf) for name, leaf in trees.named(tree).items()}
    raise _unknown(path)


def digest(tensors: Mapping[str, np.ndarray]) -> str:
    """Hashes names, shapes and bits of tensors."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {value.shape}\n".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()


def load(
    path: str | os.PathLike[str],
    net: network.Network,
    *,
    start: Blocks | None = None,
    head: bool = True,
) -> Blocks:
    """Reads a network's pretrained parameters from a file into its state.

    The head is the last block. It stays as drawn where the file is of another number of
    classes, so that a network goes on to other labels (transfer learning). Norms and
    ranges that the file lacks stay as in `start`, too.

    >>> net = fljax.models.BY_NAME["cnn"]()  # doctest: +SKIP
    >>> blocks = load("cnn.safetensors", net)  # doctest: +SKIP

    Args:
      path: a file `.safetensors` or a folder `.orbax`, as `fljax.export` writes them.
      net: the network.
      start: state that has what the file does not give; None: drawn, with key 0.
      head: read the last block as well.

    Returns:
      The state, a tuple over blocks of collections.

    Raises:
      ValueError: one line: there is no such file, or its tensors do not fit.
    """
    if start is None:
        start = jax.jit(lambda key: network.init(net, key))(jax.random.key(0))
    found = chosen(os.fspath(path), net, read(path), head)
    arrays = {name: jnp.asarray(value) for name, value in found.items()}
    return trees.fill(start, arrays)


def chosen(
    name: str, net: network.Network, found: Mapping[str, np.ndarray], head: bool
) -> dict[str, np.ndarray]:
    """Takes the tensors of a file that a network is to start from.

    Args:
      name: of the file; opens errors.
      net: the network.
      found: of `read`.
      head: take the last block's as well, where the number of classes is the same.

    Returns:
      Name -> float32 array, of all parameters but perhaps those of the last block.

    Raises:
      ValueError: parameters are missing, or of another shape, or not finite.
    """
    wanted = trees.named(network.shapes(net))
    taken, wrong = {}, []
    with_head = head and not _other_classes(net, found)
    for tensor, leaf in wanted.items():
        if of_head(net, tensor) and not with_head:
            continue
        value = found.get(tensor)
        if value is None:
            if "/params/" in tensor:
                wrong.append(f"{tensor} {list(leaf.shape)}, got none")
        elif value.shape != leaf.shape:
            wrong.append(f"{tensor} {list(leaf.shape)}, got {list(value.shape)}")
        else:
            taken[tensor] = np.asarray(value, np.float32)
    if wrong:
        more = f" ({len(wrong) - 1} more do not fit)" if len(wrong) > 1 else ""
        raise ValueError(f"{name}: expected for network {net.name!r} {wrong[0]}{more}")
    for tensor, value in taken.items():
        if not np.isfinite(value).all():
            raise ValueError(f"{name}: expected finite numbers, got others in {tensor}")
    return taken


def of_head(net: network.Network, name: str) -> bool:
    """Tells whether a tensor is of the network's last block."""
    return name.startswith(f"{net.num_blocks - 1}/")


def _other_classes(net: network.Network, found: Mapping[str, np.ndarray]) -> bool:
    """Tells whether a file's head gives another number of classes."""
    for tensor, leaf in trees.named(network.shapes(net)).items():
        value = found.get(tensor)
        if not of_head(net, tensor) or value is None or not leaf.shape:
            continue
        *rest, classes = leaf.shape
        same = value.shape[:-1] == tuple(rest) and classes == net.num_classes
        if same and value.shape[-1] != classes:
            return True
    return False
