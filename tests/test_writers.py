"""Run folders: refusal, lock, torn and damaged files, kill -9, exact round trips."""

import doctest
import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from fljax import writers

_ROOT = pathlib.Path(__file__).parents[1]


class _Pair(NamedTuple):
    mean: np.ndarray
    rest: tuple


def _python(code: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=_ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _kill(child: subprocess.Popen) -> None:
    child.send_signal(signal.SIGKILL)
    child.communicate()


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
    assert doctest.testmod(writers).failed == 0


def test_open_run_writes_the_configuration_once(tmp_path):
    config = {"client": {"lr": np.float32(0.5), "limit": np.inf}, "tiers": (1, 2)}
    with writers.open_run(tmp_path / "new" / "run", config) as run:
        assert run.notes == ()
        stored = json.loads((run.path / "config.json").read_text())
    assert stored["config"] == {"client": {"lr": 0.5, "limit": "inf"}, "tiers": [1, 2]}
    assert stored["environment"]["jax"] == jax.__version__
    assert set(stored["environment"]) == {
        *("fljax", "jax", "flax", "optax", "numpy", "python", "device")
    }
    before = (run.path / "config.json").stat().st_mtime_ns
    writers.open_run(run.path, config).close()
    assert (run.path / "config.json").stat().st_mtime_ns == before


def test_open_run_names_every_difference_in_one_line(tmp_path):
    config = {"client": {"lr": 0.1}, "rounds": 5, "old": 1}
    writers.open_run(tmp_path, config).close()
    with pytest.raises(ValueError, match="another configuration") as refusal:
        writers.open_run(tmp_path, {"client": {"lr": 0.05}, "rounds": 5, "name": "a"})
    text = str(refusal.value)
    assert "client.lr: 0.1 in the folder, 0.05 now" in text
    assert "old: 1 in the folder, absent now" in text
    assert "name: absent in the folder, 'a' now" in text
    assert "rounds" not in text
    assert "\n" not in text
    writers.open_run(tmp_path, config).close()  # the refusal let the lock go


def test_open_run_notes_another_environment(tmp_path):
    writers.open_run(tmp_path, {}).close()
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    stored["environment"]["jax"] = "0.0.1"
    path.write_text(json.dumps(stored))
    with writers.open_run(tmp_path, {}) as run:
        (note,) = run.notes
    assert f"jax: '0.0.1' in the folder, '{jax.__version__}' now" in note


def test_open_run_refuses_what_is_no_run_folder(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"no run folder: it has 'thesis.tex'"):
        writers.open_run(tmp_path, {})
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(ValueError, match="is a file"):
        writers.open_run(tmp_path / "thesis.tex", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[1]", "is no run's"), ("{}", "no run's")],
)
def test_open_run_refuses_a_strange_configuration(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        writers.open_run(tmp_path, {})


def test_open_run_goes_on_after_a_kill_before_the_configuration(tmp_path):
    (tmp_path / "lock").write_text("pid 1 on gone\n")
    (tmp_path / "config.json.tmp").write_text('{"conf')
    writers.open_run(tmp_path, {"a": 1}).close()
    assert json.loads((tmp_path / "config.json").read_text())["config"] == {"a": 1}


def test_open_run_refuses_a_configuration_that_json_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="of type function"):
        writers.open_run(tmp_path, {"loss": _bits})


def test_lock_is_held_by_one_process_and_freed_by_kill(tmp_path):
    code = (
        "import sys; from fljax import writers\n"
        "run = writers.open_run(sys.argv[1], {})\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    child = _python(code, tmp_path)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(
        ValueError, match=f"{tmp_path.name} is .* by pid {child.pid} on"
    ):
        writers.open_run(tmp_path, {})
    _kill(child)
    writers.open_run(tmp_path, {}).close()


def test_records_are_json_lines_with_null_for_what_is_not_finite(tmp_path):
    with writers.MetricsWriter(tmp_path, tensorboard=False) as metrics:
        metrics.write({"round": 0, "loss": float("nan"), "tier": {2: np.float32(0.1)}})
        metrics.write(
            {"round": np.int64(1), "x": jnp.array([jnp.inf, 0.5]), "ok": True}
        )
        metrics.write({"round": 2, "half": jnp.bfloat16(1.5), "none": None, "t": (1,)})
        with pytest.raises(ValueError, match="of type object"):
            metrics.write({"round": 3, "x": object()})
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [
        '{"round": 0, "loss": null, "tier": {"2": 0.10000000149011612}}',
        '{"round": 1, "x": [null, 0.5], "ok": true}',
        '{"round": 2, "half": 1.5, "none": null, "t": [1]}',
    ]


def test_resume_drops_later_records_and_the_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [b'{"round": %d, "loss": 0.1}\n' % number for number in range(6)]
    path.write_bytes(b"".join(lines) + b'{"round": 1, "lo')
    assert [record["round"] for record in writers.read_metrics(tmp_path)] == [*range(6)]
    with writers.MetricsWriter(tmp_path, 4, tensorboard=False) as metrics:
        assert metrics.notes == ["metrics.jsonl: dropped 1 torn or unreadable lines"]
        assert path.read_bytes() == b"".join(lines[:4])
        metrics.write({"round": 4, "loss": 0.1})
    assert path.read_bytes() == b"".join(lines[:5])


def test_a_record_that_lost_only_its_newline_stays(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"round": 0}\n{"round": 1}')
    with writers.MetricsWriter(tmp_path, 2, tensorboard=False) as metrics:
        metrics.write({"round": 2})
    assert path.read_bytes() == b'{"round": 0}\n{"round": 1}\n{"round": 2}\n'


def _events(path: pathlib.Path) -> list:
    """Read the TFRecord frames: length, its checksum, data, its checksum."""
    data, events = path.read_bytes(), []
    while data:
        (size,) = struct.unpack_from("<Q", data)
        events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return events


def test_tensorboard_gets_scalars_and_purges_on_resume(tmp_path):
    with writers.MetricsWriter(tmp_path) as metrics:
        metrics.write(
            {"round": 0, "loss": 0.5, "tier_accuracy": {"weak": 0.25, "x": None}}
        )
        metrics.write(
            {"round": 1, "loss": float("inf"), "note": "text", "list": [1, 2]}
        )
    with writers.MetricsWriter(tmp_path, 1) as metrics:
        metrics.write({"round": 1, "loss": 0.75})
    first, second = map(_events, sorted(tmp_path.glob("*.tfevents.*")))
    found = [
        (value.tag, event.step, value.simple_value)
        for event in first
        for value in event.summary.value
    ]
    assert found == [("loss", 0, 0.5), ("tier_accuracy/weak", 0, 0.25)]
    starts = [event.step for event in second if event.HasField("session_log")]
    assert starts == [1]
    assert second[-1].summary.value[0].simple_value == 0.75
    assert not any(event.HasField("session_log") for event in first)


def test_metrics_go_on_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with writers.MetricsWriter(tmp_path) as metrics:
        (note,) = metrics.notes
        metrics.write({"round": 0})
    assert "pip install -U tensorboardX" in note
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


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
    writers.save_checkpoint(tmp_path, 3, state)
    restored = writers.restore_checkpoint(tmp_path, _state())
    assert restored is not None
    assert (restored.round, restored.notes) == (3, ())
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    assert _bits(restored.state) == _bits(state)
    for old, new in zip(*map(jax.tree.leaves, (state, restored.state)), strict=True):
        assert type(old) is type(new)
    restored.state["mask"][0] = False  # host arrays are the caller's own


def test_checkpoint_of_an_empty_tree_and_none_at_all(tmp_path):
    assert writers.restore_checkpoint(tmp_path, ()) is None
    writers.save_checkpoint(tmp_path, 0, {"a": ()})
    assert writers.restore_checkpoint(tmp_path, {"a": ()}) == (0, {"a": ()}, ())


def test_restore_takes_shapes_as_template(tmp_path):
    def make():
        return {"w": jnp.ones((2, 3)), "n": jnp.int32(4)}

    writers.save_checkpoint(tmp_path, 1, make())
    restored = writers.restore_checkpoint(tmp_path, jax.eval_shape(make))
    assert restored is not None
    assert isinstance(restored.state["w"], jax.Array)
    assert _bits(restored.state) == _bits(make())


def test_newest_checkpoints_stay(tmp_path):
    def names():
        return sorted(os.listdir(tmp_path / "checkpoints"))

    for number in (1, 2, 9, 10):
        writers.save_checkpoint(tmp_path, number, {}, keep=2)
    (tmp_path / "checkpoints" / "round_00000011.ckpt.tmp").write_bytes(b"killed")
    writers.save_checkpoint(tmp_path, 10, {}, keep=2)  # the same again
    assert names() == ["round_00000009.ckpt", "round_00000010.ckpt"]
    # A run that resumed from 9 because 10 was damaged must not lose its own.
    writers.save_checkpoint(tmp_path, 9, {}, keep=1)
    assert names() == ["round_00000009.ckpt"]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        writers.save_checkpoint(tmp_path, 12, {}, keep=0)


def test_a_write_that_stops_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    def stop(*_):
        raise OSError("stopped")

    writers.save_checkpoint(tmp_path, 1, {"a": 1})
    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(OSError, match="stopped"):
        writers.save_checkpoint(tmp_path, 2, {"a": 2})
    assert writers.restore_checkpoint(tmp_path, {"a": 0}) == (1, {"a": 1}, ())


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
        (lambda data: _flip(data, 8), "format version 0"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, harm, reason):
    template = {"w": np.zeros(50, np.float32)}
    writers.save_checkpoint(tmp_path, 1, {"w": np.full(50, 1, np.float32)})
    path = writers.save_checkpoint(tmp_path, 2, {"w": np.full(50, 2, np.float32)})
    path.write_bytes(harm(path.read_bytes()))
    restored = writers.restore_checkpoint(tmp_path, template)
    assert restored is not None
    assert restored.round == 1
    assert restored.state["w"][0] == 1
    assert len(restored.notes) == 1
    pattern = f"passed over {path.name}: .*{reason}.*; using round_00000001.ckpt"
    assert re.search(pattern, restored.notes[0])


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
    writers.save_checkpoint(tmp_path, 2, saved)
    with pytest.raises(
        ValueError, match=f"no checkpoint in .*{reason}.*start at round 0"
    ):
        writers.restore_checkpoint(tmp_path, {"w": np.zeros(3, np.float32)})


def test_async_save_outlives_donation_and_changes(tmp_path, monkeypatch):
    changed = threading.Event()
    save = writers.save_checkpoint

    def save_late(*arguments):
        assert changed.wait(10)
        return save(*arguments)

    monkeypatch.setattr(writers, "save_checkpoint", save_late)
    double = jax.jit(lambda w: 2 * w, donate_argnums=0)
    state = {"w": jnp.arange(1000.0), "host": np.ones(3)}
    with writers.AsyncCheckpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        double(state["w"]).block_until_ready()
        assert state["w"].is_deleted()
        state["host"] += 1
        changed.set()
    restored = writers.restore_checkpoint(tmp_path, state)
    assert restored is not None
    np.testing.assert_array_equal(restored.state["w"], np.arange(1000.0))
    np.testing.assert_array_equal(restored.state["host"], np.ones(3))


def test_async_errors_are_raised_once(tmp_path):
    checkpointer = writers.AsyncCheckpointer(tmp_path / "gone")
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
from fljax import writers
folder, rounds = sys.argv[1], int(sys.argv[2])
with writers.open_run(folder, {"seed": 1}) as run:
    template = {"w": np.zeros(100_000, np.float64)}
    restored = writers.restore_checkpoint(run.path, template)
    first, state = restored[:2] if restored else (0, template)
    with (
        writers.MetricsWriter(run.path, first) as metrics,
        writers.AsyncCheckpointer(run.path) as checkpointer,
    ):
        for number in range(first, rounds):
            state = {"w": state["w"] + 0.1}
            metrics.write({"round": number, "loss": state["w"][0], "pad": "x" * 3000})
            checkpointer.save(number + 1, state)
"""


def _kill_in_the_middle(folder: pathlib.Path, more: int) -> None:
    done = len(writers.read_metrics(folder))
    child = _python(_RUN, folder, 10**6)
    while len(writers.read_metrics(folder)) < done + more:
        assert child.poll() is None
        time.sleep(0.01)
    _kill(child)


def test_kill_and_resume_gives_the_same_run(tmp_path, monkeypatch):
    folder = tmp_path / "killed"
    for more in (10, 30):
        _kill_in_the_middle(folder, more)
    restored = writers.restore_checkpoint(folder, {"w": np.zeros(100_000)})
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
