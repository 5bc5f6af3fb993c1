"""Run folders: refusal, lock, torn lines, what JSON and TensorBoard get."""

import doctest
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from fljax.runs import writers

_ROOT = pathlib.Path(__file__).parents[2]


def start_python(code: str, *arguments: object) -> subprocess.Popen:
    """Run code on the CPU in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=_ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def kill(child: subprocess.Popen) -> None:
    """Send kill -9 and wait for the end."""
    child.send_signal(signal.SIGKILL)
    child.communicate()


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
        *("fljax", "source", "jax", "jaxlib", "flax", "optax", "numpy", "python"),
        *("processor", "cores", "device"),
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


def test_open_run_takes_values_that_may_change(tmp_path):
    path = tmp_path / "config.json"
    writers.open_run(tmp_path, {"lr": 0.1, "rounds": 5}).close()
    first = json.loads(path.read_text())
    longer = {"lr": 0.1, "rounds": 8}
    with writers.open_run(tmp_path, longer, may_change=("rounds",)) as run:
        assert run.notes == ("configuration changed: rounds: 5 in the folder, 8 now",)
    assert json.loads(path.read_text()) == {**first, "config": longer}
    writers.open_run(tmp_path, longer).close()  # no longer a change
    with pytest.raises(ValueError, match="rounds: 8 in the folder, 5 now"):
        writers.open_run(tmp_path, {"lr": 0.1, "rounds": 5})


def test_open_run_keeps_the_environment_of_the_first_run(tmp_path):
    path = tmp_path / "config.json"
    writers.open_run(tmp_path, {"rounds": 5}).close()
    stored = json.loads(path.read_text())
    stored["environment"]["jax"] = "0.0.1"
    path.write_text(json.dumps(stored))
    with writers.open_run(tmp_path, {"rounds": 8}, may_change=("rounds",)) as run:
        configuration, environment = run.notes
    assert configuration.startswith("configuration changed: rounds: 5")
    assert environment.startswith("environment changed: jax: '0.0.1'")
    assert json.loads(path.read_text()) == {**stored, "config": {"rounds": 8}}


def test_open_run_refuses_what_may_not_change_and_leaves_the_file(tmp_path):
    config = {"client": {"rounds": 1}, "rounds": 5}
    writers.open_run(tmp_path, config).close()
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match="another configuration") as refusal:
        writers.open_run(
            tmp_path, {"client": {"rounds": 2}, "rounds": 8}, may_change=("rounds",)
        )
    # Only the top-level value of that name is free.
    assert "(client.rounds: 1 in the folder, 2 now);" in str(refusal.value)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_change_of_the_configuration_that_stops_leaves_the_old(tmp_path, monkeypatch):
    def stop(*_):
        raise OSError("stopped")

    writers.open_run(tmp_path, {"rounds": 5}).close()
    before = (tmp_path / "config.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(OSError, match="stopped"):
            writers.open_run(tmp_path, {"rounds": 8}, may_change=("rounds",))
    assert (tmp_path / "config.json").read_bytes() == before
    writers.open_run(tmp_path, {"rounds": 5}).close()  # the lock is free


def test_open_run_refuses_what_is_no_run_folder(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"no run folder: it has 'thesis.tex'"):
        writers.open_run(tmp_path, {})
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(ValueError, match="is a file"):
        writers.open_run(tmp_path / "thesis.tex", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "is no run's"),
        ("{}", "no run's"),
        ('{"config": 5}', "no run's"),
        ('{"config": {}, "environment": 5}', "no run's"),
        ('{"config": {}, "run": 5}', "no run's"),
        ("[" * 100_000, "is not JSON"),
        ('{"config": {"a": ' + '{"a": ' * 200 + "1" + "}" * 202, "no run's"),
    ],
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
        writers.open_run(tmp_path, {"loss": lambda: 0})


def test_lock_is_held_by_one_process_and_freed_by_kill(tmp_path):
    code = (
        "import sys; from fljax.runs import writers\n"
        "run = writers.open_run(sys.argv[1], {})\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    child = start_python(code, tmp_path)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(
        ValueError, match=f"{tmp_path.name} is .* by pid {child.pid} on"
    ):
        writers.open_run(tmp_path, {})
    kill(child)
    writers.open_run(tmp_path, {}).close()


def test_a_lock_that_was_deleted_or_is_no_text_still_keeps_others_out(tmp_path):
    code = (
        "import sys; from fljax.runs import writers\n"
        "try: writers.open_run(sys.argv[1], {})\n"
        "except ValueError as error: print(error)"
    )
    with writers.open_run(tmp_path, {}):
        (tmp_path / "lock").unlink()
        out, _ = start_python(code, tmp_path).communicate()
        assert f"{tmp_path} is being written by another process;" in out
    with writers.open_run(tmp_path, {}):
        (tmp_path / "lock").write_bytes(b"\xff\xfe pid 1")
        with pytest.raises(ValueError, match="being written by another process"):
            writers.open_run(tmp_path, {})
    with writers.open_run(tmp_path, {"a": 1}, may_change=("a",)):  # another file
        (tmp_path / "lock").unlink()
        with pytest.raises(ValueError, match="being written by another process"):
            writers.open_run(tmp_path, {"a": 1})
    writers.open_run(tmp_path, {"a": 1}).close()


def test_the_library_imports_without_fcntl():
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "from fljax.data import load\n"
        "from fljax.runs import simulation, writers; print('imported')"
    )
    assert start_python(code).communicate()[0] == "imported\n"


def test_what_changes_the_order_of_sums_is_said_with_what_it_may_change(tmp_path):
    writers.open_run(tmp_path, {"width": 1}).close()
    with writers.open_run(tmp_path, {"width": 4}, rounding=("width",)) as run:
        (note,) = run.notes
    changed = "configuration changed: width: 1 in the folder, 4 now"
    assert note == f"{changed}; {writers.MAY_DIFFER}"


ODD = [
    b'{"round": "2"}',
    b'{"round": null}',
    b'{"round": NaN}',
    b'{"round": true}',
    b'{"round": -1}',
    b'{"round": 1' + b"0" * 400 + b"}",
    b'{"round": 1' + b"0" * 5000 + b"}",
    b'{"round": 2, "test_accuracy": "high"}',
    b'{"round": 2, "test_accuracy": 1e999}',
    b'{"round": 2, "upload_bytes": 1' + b"0" * 400 + b"}",
    b'{"round": 2, "tier_accuracy": [1]}',
    b'{"round": 2, "rollback": 3}',
    b"[" * 100_000,
    b'{"round": 2, "x": ' + b"[" * 100_000,
    b"5",
    b"null",
    b"\xff\xfe",
    b"",
]


@pytest.mark.parametrize("line", ODD)
@pytest.mark.parametrize("name", ["metrics", "alerts"])
def test_odd_lines_are_torn_at_the_end_and_refused_elsewhere(tmp_path, name, line):
    path, good = tmp_path / f"{name}.jsonl", b'{"round": 0}\n'
    read = getattr(writers, f"read_{name}")
    path.write_bytes(good + line + b"\n")
    assert read(tmp_path) == [{"round": 0}]
    path.write_bytes(line + b"\n" + good)
    with pytest.raises(ValueError, match=f"{name}.jsonl: line 1: expected a record"):
        read(tmp_path)
    make = {"metrics": writers.MetricsWriter, "alerts": writers.AlertsWriter}[name]
    assert make(tmp_path, 5).notes == [
        f"{name}.jsonl: dropped 1 torn or unreadable lines"
    ]
    assert path.read_bytes() == good


def test_alerts_that_are_deleted_meanwhile_come_back(tmp_path):
    alerts = writers.AlertsWriter(tmp_path)
    assert not (tmp_path / "alerts.jsonl").exists()
    alerts.write({"round": 0})
    (tmp_path / "alerts.jsonl").unlink()
    alerts.write({"round": 1})
    assert [alert["round"] for alert in writers.read_alerts(tmp_path)] == [0, 1]
    assert "alerts.jsonl was changed by others" in alerts.notes[0]


@pytest.mark.parametrize("name", ["metrics.jsonl", "alerts.jsonl"])
def test_what_is_no_file_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    read = writers.read_metrics if name[0] == "m" else writers.read_alerts
    with pytest.raises(OSError, match=f"{name}: expected a file"):
        read(tmp_path)


def test_content_is_json_with_null_for_what_is_not_finite():
    content = writers.to_json({"mean": float("nan"), "seeds": [1, 2]})
    assert json.loads(content) == {"mean": None, "seeds": [1, 2]}
    assert b"NaN" not in content


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
