"""Checkpoints: exact round trips, damaged files, donated buffers, kill -9."""

import doctest
import hashlib
import os
import pathlib
import re
import struct
import sys
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax import serialization

from fljax.runs import checkpoints, writers
from tests.runs import test_writers


class _Pair(NamedTuple):
    mean: np.ndarray
    rest: tuple


def _bits(tree):
    """Name every leaf's type, dtype, shape and bytes."""
    return jax.tree.map(
        lambda leaf: (
            np.asarray(leaf).dtype,
            np.shape(leaf),
            np.asarray(leaf).tobytes(),
        ),
        tree,
    )


def test_module_example_runs():
    assert doctest.testmod(checkpoints).failed == 0


def _state():
    payload = np.array([0x7FC00001, 0xFFA00002, 0x80000000], np.uint32).view(np.float32)
    return {
        "codes": jnp.arange(-3, 3, dtype=jnp.int8).reshape(2, 3),
        "mask": np.array([True, False]),
        "nan": payload,
        "device_nan": jax.device_put(payload),
        "scalar": jnp.float32(0.1),
        "half": jnp.array([1.5, -2.25], jnp.bfloat16),
        "count": np.zeros((0, 4), np.int64),
        "pair": _Pair(np.float64(np.pi), ({"a": np.arange(2)}, {}, (), None)),
        "python": [3, 0.1, True],
        "numbers": {7: np.ones((), np.uint32)},
    }


def test_checkpoint_round_trip_keeps_every_bit(tmp_path):
    state = _state()
    checkpoints.save(tmp_path, 3, state)
    restored = checkpoints.restore(tmp_path, _state())
    assert restored is not None
    assert (restored.round, restored.notes) == (3, ())
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    assert _bits(restored.state) == _bits(state)
    for old, new in zip(*map(jax.tree.leaves, (state, restored.state)), strict=True):
        assert type(old) is type(new)
    restored.state["mask"][0] = False  # host arrays are the caller's own


def test_checkpoint_of_an_empty_tree_and_none_at_all(tmp_path):
    assert checkpoints.restore(tmp_path, ()) is None
    checkpoints.save(tmp_path, 0, {"a": ()})
    assert checkpoints.restore(tmp_path, {"a": ()}) == (0, {"a": ()}, (), {})


def test_restore_takes_shapes_as_template(tmp_path):
    def make():
        return {"w": jnp.ones((2, 3)), "n": jnp.int32(4)}

    checkpoints.save(tmp_path, 1, make())
    restored = checkpoints.restore(tmp_path, jax.eval_shape(make))
    assert restored is not None
    assert isinstance(restored.state["w"], jax.Array)
    assert _bits(restored.state) == _bits(make())


def test_newest_checkpoints_stay(tmp_path):
    def names():
        return sorted(os.listdir(tmp_path / "checkpoints"))

    for number in (1, 2, 9, 10):
        checkpoints.save(tmp_path, number, {}, keep=2)
    (tmp_path / "checkpoints" / "round_00000011.ckpt.tmp").write_bytes(b"killed")
    checkpoints.save(tmp_path, 10, {}, keep=2)  # the same again
    assert names() == ["round_00000009.ckpt", "round_00000010.ckpt"]
    # A run that resumed from 9 because 10 was damaged must not lose its own.
    checkpoints.save(tmp_path, 9, {}, keep=1)
    assert names() == ["round_00000009.ckpt"]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        checkpoints.save(tmp_path, 12, {}, keep=0)


def test_a_write_that_stops_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    def stop(*_):
        raise OSError("stopped")

    checkpoints.save(tmp_path, 1, {"a": 1})
    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(OSError, match="stopped"):
        checkpoints.save(tmp_path, 2, {"a": 2})
    assert checkpoints.restore(tmp_path, {"a": 0}) == (1, {"a": 1}, (), {})


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda data: data[:-7], "truncated: .* payload bytes"),
        (lambda data: data[:20], "truncated to 20 bytes"),
        (lambda data: b"", "truncated to 0 bytes"),
        (lambda data: _flip(data, len(data) - 3), "wrong sha256"),
        (lambda data: _flip(data, 12), "wrong sha256"),  # the round
        (lambda data: _flip(data, 0), "wrong magic"),
        (lambda data: _flip(data, 8), "format version 4"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, harm, reason):
    template = {"w": np.zeros(50, np.float32)}
    checkpoints.save(tmp_path, 1, {"w": np.full(50, 1, np.float32)})
    path = checkpoints.save(tmp_path, 2, {"w": np.full(50, 2, np.float32)})
    path.write_bytes(harm(path.read_bytes()))
    restored = checkpoints.restore(tmp_path, template)
    assert restored is not None
    assert restored.round == 1
    assert restored.state["w"][0] == 1
    assert len(restored.notes) == 1
    pattern = f"passed over {path.name}: .*{reason}.*; using round_00000001.ckpt"
    assert re.search(pattern, restored.notes[0])


def _file(payload: bytes, number: int = 2, version: int = 5) -> bytes:
    """Lay out a checkpoint with a right digest."""
    front = struct.pack("<8sIQQ", b"fljaxckp", version, number, len(payload))
    return front + hashlib.sha256(front + payload).digest() + payload


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        *(
            (_file(bytes(64) + payload), "holds no state")
            for payload in (
                msgpack.packb([1, 2]),
                msgpack.packb(5),
                msgpack.packb({1: 2}),
                msgpack.packb({"['w']": msgpack.ExtType(1, b"odd")}),
                b"\x91" * 100_000,
                b"",
            )
        ),
        (_file(bytes(64) + msgpack.packb({"['w']": "text"})), "leaf .'w'. is str"),
        (
            _file(msgpack.packb({}), number=2**63),
            f"of round {2**63}, there are at most",
        ),
        (_file(msgpack.packb({}), number=1), "says that it is of round 1"),
        (_file(b""), "holds no state"),
    ],
)
def test_a_sound_file_with_an_odd_payload_is_passed_over(tmp_path, data, reason):
    template = {"w": np.zeros(50, np.float32)}
    checkpoints.save(tmp_path, 1, template)
    (tmp_path / "checkpoints" / "round_00000002.ckpt").write_bytes(data)
    restored = checkpoints.restore(tmp_path, template)
    assert restored is not None
    assert restored.round == 1
    assert re.search(f"round_00000002.ckpt: .*{reason}", restored.notes[0])


def test_what_is_no_file_is_passed_over(tmp_path):
    checkpoints.save(tmp_path, 1, {})
    folder = tmp_path / "checkpoints"
    (folder / "round_00000003.ckpt").mkdir()
    os.mkfifo(folder / "round_00000002.ckpt")
    (folder / "round_last.ckpt").write_bytes(b"")  # no name of ours
    restored = checkpoints.restore(tmp_path, {})
    assert restored is not None
    assert (restored.round, len(restored.notes)) == (1, 2)
    checkpoints.save(tmp_path, 2, {}, keep=1)


def test_a_checkpoint_of_the_format_before_is_refused_in_a_line(tmp_path):
    state = {"w": np.arange(3)}
    payload = serialization.msgpack_serialize({"['w']": state["w"]})
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "round_00000002.ckpt"
    path.write_bytes(_file(bytes(64) + payload, version=2))
    with pytest.raises(ValueError, match="format version 2, this fljax reads 5") as e:
        checkpoints.restore(tmp_path, state)
    assert "\n" not in str(e.value)


def test_records_are_durable_before_their_checkpoint(tmp_path, monkeypatch):
    steps, sync, replace = [], os.fsync, os.replace

    def name_of(descriptor):
        return pathlib.Path(os.readlink(f"/proc/self/fd/{descriptor}")).name

    def synced(descriptor):
        steps.append(name_of(descriptor))
        sync(descriptor)

    def replaced(source, target):
        steps.append(f"to {pathlib.Path(target).name}")
        replace(source, target)

    (tmp_path / "metrics.jsonl").write_text("")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    checkpoints.save(tmp_path, 1, {})
    name = "round_00000001.ckpt"
    assert steps == ["metrics.jsonl", f"{name}.tmp", f"to {name}", "checkpoints"]


@pytest.mark.parametrize(
    ("saved", "reason"),
    [
        (
            {"w": np.zeros(4, np.float32)},
            r"leaf \['w'\] is float32\[4\], .* float32\[3\]",
        ),
        ({"w": np.zeros(3, np.int32)}, r"leaf \['w'\] is int32\[3\]"),
        ({"v": np.zeros(3, np.float32)}, r"another tree .* 2 leaves .* \['v'\]"),
        ({}, "another tree"),
    ],
)
def test_no_usable_checkpoint_is_an_error(tmp_path, saved, reason):
    checkpoints.save(tmp_path, 2, saved)
    with pytest.raises(ValueError, match=f"no checkpoint in .*{reason}"):
        checkpoints.restore(tmp_path, {"w": np.zeros(3, np.float32)})


def test_async_save_outlives_donation_and_changes(tmp_path, monkeypatch):
    changed = threading.Event()
    save = checkpoints.save

    def save_late(*arguments):
        assert changed.wait(10)
        return save(*arguments)

    monkeypatch.setattr(checkpoints, "save", save_late)
    double = jax.jit(lambda w: 2 * w, donate_argnums=0)
    state = {"w": jnp.arange(1000.0), "host": np.ones(3)}
    with checkpoints.AsyncCheckpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        double(state["w"]).block_until_ready()
        assert state["w"].is_deleted()
        state["host"] += 1
        changed.set()
    restored = checkpoints.restore(tmp_path, state)
    assert restored is not None
    np.testing.assert_array_equal(restored.state["w"], np.arange(1000.0))
    np.testing.assert_array_equal(restored.state["host"], np.ones(3))


def test_async_errors_are_raised_once(tmp_path):
    checkpointer = checkpoints.AsyncCheckpointer(tmp_path / "gone")
    checkpointer.save(0, {})
    with pytest.raises(FileNotFoundError):
        checkpointer.wait()
    checkpointer.save(1, {})
    with pytest.raises(FileNotFoundError):
        checkpointer.save(2, {})
    checkpointer.close()


_RUN = """
import sys
import numpy as np
from fljax.runs import checkpoints, writers
folder, rounds = sys.argv[1], int(sys.argv[2])
with writers.open_run(folder, {"seed": 1}) as run:
    template = {"w": np.zeros(100_000, np.float64)}
    restored = checkpoints.restore(run.path, template)
    first, state = restored[:2] if restored else (0, template)
    with (
        writers.MetricsWriter(run.path, first) as metrics,
        checkpoints.AsyncCheckpointer(run.path) as checkpointer,
    ):
        for number in range(first, rounds):
            state = {"w": state["w"] + 0.1}
            metrics.write({"round": number, "loss": state["w"][0], "pad": "x" * 3000})
            checkpointer.save(number + 1, state)
"""


def _kill_in_the_middle(folder: pathlib.Path, more: int) -> None:
    done = len(writers.read_metrics(folder))
    child = test_writers.start_python(_RUN, folder, 10**6)
    while len(writers.read_metrics(folder)) < done + more:
        assert child.poll() is None
        time.sleep(0.01)
    test_writers.kill(child)


def test_kill_and_resume_gives_the_same_run(tmp_path, monkeypatch):
    folder = tmp_path / "killed"
    for more in (10, 30):
        _kill_in_the_middle(folder, more)
    restored = checkpoints.restore(folder, {"w": np.zeros(100_000)})
    assert restored is not None
    assert restored.notes == ()
    # A kill loses the round that runs and the checkpoint in flight, no record.
    records = writers.read_metrics(folder)
    assert len(records) - 2 <= restored.round <= len(records)
    assert [record["round"] for record in records] == [*range(len(records))]

    rounds = restored.round + 5
    for where in (folder, tmp_path / "whole"):
        monkeypatch.setattr(sys, "argv", ["", str(where), str(rounds)])
        exec(_RUN, {})
    for name in ("metrics.jsonl", f"checkpoints/round_{rounds:08d}.ckpt"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(os.listdir(folder / "checkpoints")) == 2
