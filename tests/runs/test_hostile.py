"""A run folder that somebody else prepared is data: nothing of it runs, or grows."""

import os
import pickle

import jax
import msgpack
import numpy as np
import pytest

from fljax.engine import client_rows
from fljax.runs import checkpoints, follow, status, writers
from fljax.runtime import durable

TEMPLATE = {"a": np.zeros(3, np.float32), "n": 1}
NAMES = ["['a']", "['n']"]


def array(dtype, data, shape=(3,)):
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, data), use_bin_type=True))


class Runs:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


HOSTILE = [
    array("object", pickle.dumps(Runs())),
    array("O", bytes(24)),
    array("float32", bytes(12), (2**40, 2**20)),
    array("no_such_type", bytes(12)),
    array("V4000000000", b""),
    msgpack.ExtType(7, pickle.dumps(Runs())),
    {"first": 5, "segments": 3},
    {"first": [0.0], "segments": {}},
    {"__msgpack_chunked_array__": True, "shape": {"0": 2**60}, "chunks": {}},
    pickle.dumps(Runs()),
    [[[]]],
    None,
]


def write(folder, payload):
    """Writes a checkpoint as its author would, digest and all."""
    path = folder / "checkpoints" / "round_00000001.ckpt"
    path.parent.mkdir()
    payload = bytes(64) + payload
    size = len(payload)
    front = checkpoints._FRONT.pack(checkpoints._MAGIC, checkpoints._FORMAT, 1, size)
    path.write_bytes(front + checkpoints._digest(front, payload) + payload)
    return path


@pytest.mark.parametrize("leaf", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_runs_nothing(tmp_path, monkeypatch, leaf, name):
    monkeypatch.chdir(tmp_path)
    good = {NAMES[0]: array("float32", bytes(12)), NAMES[1]: 1}
    write(tmp_path, msgpack.packb({**good, name: leaf}))
    with pytest.raises(ValueError, match="no checkpoint in") as error:
        checkpoints.restore(tmp_path, TEMPLATE)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_such_a_checkpoint_is_read_where_it_is_sound(tmp_path):
    write(tmp_path, msgpack.packb({NAMES[0]: array("float32", bytes(12)), NAMES[1]: 1}))
    assert checkpoints.restore(tmp_path, TEMPLATE).round == 1


@pytest.mark.parametrize(
    "payload",
    [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\x91" * 100_000, b"\xc6" * 9],
    ids=["list", "map", "nested", "bytes"],
)
def test_lengths_that_a_checkpoint_tells_are_not_believed(tmp_path, payload):
    write(tmp_path, payload)
    with pytest.raises(ValueError, match="holds no state"):
        checkpoints.restore(tmp_path, TEMPLATE)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "clients.rows"])
def test_rows_come_from_segments_of_the_folder_alone(tmp_path, name):
    first = array("float32", bytes(12))
    rows = {"first": first, "segments": {name: bytes(32)}}
    write(tmp_path, msgpack.packb({"['rows']": rows}))
    template = {"rows": client_rows.Rows.empty(np.zeros(3, np.float32))}
    with pytest.raises(ValueError, match="which is no segment"):
        checkpoints.restore(tmp_path, template)


def test_files_that_no_memory_holds_are_not_read(tmp_path):
    path = write(tmp_path, b"")
    files = writers.files(tmp_path)
    for file in (path, files.config, files.metrics):
        file.touch()
        os.truncate(file, 2**42)  # of holes
    with pytest.raises(ValueError, match=r"fits into .* got a file"):
        checkpoints.restore(tmp_path, TEMPLATE)
    with pytest.raises(ValueError, match=r"fits into .* got a file"):
        writers.described(tmp_path)
    with pytest.raises(ValueError, match=r"fits into .* got a file"):
        writers.read_metrics(tmp_path)
    assert follow.read(files.metrics).records == []


def test_a_file_is_followed_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "MOST", 40)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"round": {r}}}\n' for r in range(9)))
    found, place = [], follow.Place()
    for _ in range(9):
        new = follow.read(path, place)
        found, place = found + new.records, new.place
    assert found == [{"round": r} for r in range(9)]
    assert follow.read(path, place).records == []


def test_pipes_are_not_waited_for(tmp_path):
    (tmp_path / "config.json").write_text('{"config": {"rounds": 3}}')
    files = writers.files(tmp_path)
    for path in (files.metrics, files.alerts, files.lock):
        os.mkfifo(path)
    assert follow.look(tmp_path).records == []
    assert status.held(tmp_path, frozenset()) is None
    with pytest.raises(OSError, match="expected a file"):
        writers.read_metrics(tmp_path)


def test_links_in_a_folder_are_not_written_through(tmp_path):
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    victim.write_text("mine")
    names = ("config.json.tmp", "metrics.jsonl.tmp", "metrics.jsonl", "alerts.jsonl")
    with writers.open_run(run, {"lr": 0.1}):
        pass
    for name in names:
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(victim)
    with writers.open_run(run, {"lr": 0.2}, ("lr",)) as held:
        with writers.MetricsWriter(held.path, tensorboard=False) as metrics:
            metrics.write({"round": 0})
        writers.AlertsWriter(held.path).write({"round": 0})
        checkpoints.save(held.path, 1, {})
    assert victim.read_text() == "mine"
    assert writers.read_metrics(run) == writers.read_alerts(run) == [{"round": 0}]
    (run / "lock").unlink()
    (run / "lock").symlink_to(victim)
    with pytest.raises(OSError, match="lock"):
        writers.open_run(run, {"lr": 0.2})
    assert victim.read_text() == "mine"


def test_events_without_room_end_a_run_and_do_not_hang_it(tmp_path, monkeypatch):
    from tensorboardX import event_file_writer

    def full(*_):
        raise OSError(28, "No space left on device")

    metrics = writers.MetricsWriter(tmp_path)
    monkeypatch.setattr(event_file_writer.EventsWriter, "write_event", full)

    def write():
        for number in range(10_000):  # more than wait in the queue
            metrics.write({"round": number, "test_loss": 1.0})

    with pytest.raises(OSError, match="No space left"):
        write()
    metrics.close()


def test_a_link_to_nothing_makes_nothing(tmp_path):
    (tmp_path / "lines").symlink_to(tmp_path / "made")
    with pytest.raises(OSError, match="lines"):
        durable.Lines(tmp_path / "lines", []).append(b"line")
    assert not (tmp_path / "made").exists()


def test_what_is_not_ours_stays_beside_checkpoints(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.tmp").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "elsewhere")
    checkpoints.save(tmp_path / "run", 1, {"a": jax.numpy.zeros(2)})
    assert (tmp_path / "elsewhere" / "mine.tmp").exists()
