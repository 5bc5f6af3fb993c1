"""What is read of files, and the one line where they are something else."""

import doctest
import os

import pytest

from fljax.runtime import memory, reading


def test_examples_of_the_docstrings():
    assert doctest.testmod(reading).failed == 0


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_in_any_of_its_encodings(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_text('{"ü": [1, 2.5, null, true]}\r\n', encoding=encoding)
    assert reading.read_json(path) == {"ü": [1, 2.5, None, True]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected JSON, got: Expecting value"),
        (b"[1] 2", "got: Extra data"),
        (b"\xff", "got: 'utf-8' codec can't decode"),
        (b"[" * 100_000, "got: it is nested too deep"),
        (b'{"a":' * 100_000, "got: it is nested too deep"),
        (b"1" * 5000, "got: Exceeds the limit"),
        (b"[NaN]", "got: NaN, which is no number of JSON"),
        (b"[-Infinity]", "got: -Infinity"),
        (b'[{"a": 1, "b": 2, "a": 3}]', "got: the key 'a' twice in an object"),
    ],
)
def test_what_is_no_json(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        reading.read_json(path)
    assert str(caught.value).startswith(f"{path}: expected JSON")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"^leaf:x: .* in {path}$"):
        reading.read_json(path, "leaf:x")


def test_what_is_no_file(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    large = tmp_path / "large"
    large.write_bytes(b" " * 1000)
    monkeypatch.setattr(memory, "of_host", lambda: 999.0)
    for path, words in (
        (tmp_path, "there is no file .*, but a folder; check the path"),
        (tmp_path / "pipe", "but a named pipe"),
        ("/dev/zero", "but a device"),
        (tmp_path / "loop", "there is no file .*loop; check"),
        ("a\0b", "there is no file"),
        ("x" * 10_000, "there is no file"),
        (large, "expected what fits into 999 B of memory, got .* take 1 kB"),
    ):
        with pytest.raises(ValueError, match=words):
            reading.read_json(path)


def test_a_file_without_permission(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.touch()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    with pytest.raises(ValueError, match="a file that may be read, got"):
        reading.read_json(path)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("x: as it is"), "x: as it is"),
        (ValueError("one\n\n two\nDid you mean this?"), "x: one Did you mean this?"),
        (KeyError("a"), "x: KeyError: 'a'"),
        (MemoryError(), "x: it takes more memory than there is"),
        (RecursionError("deep"), "x: it is nested too deep"),
        (ImportError("no such"), "x: no such: pip install it"),
        (AssertionError(), "x: AssertionError"),
        (OSError("y" * 1000), f"x: {'y' * 300}..."),
    ],
)
def test_every_error_becomes_one_line(error, line):
    named = reading.one_line("x", install="pip install it")
    with pytest.raises(ValueError, match=r"^x: ") as caught, named:
        raise error
    assert str(caught.value) == line


def test_numbers():
    good = (0, -1, 1.5, 10**300, True - 1)
    assert all(map(reading.is_number, good))
    bad = (True, None, "1", [], 10**400, float("nan"), float("inf"), 1j)
    assert not any(map(reading.is_number, bad))
    assert reading.is_amount(1e-9)
    assert not any(map(reading.is_amount, (0, 1e-320, 1e300, -1)))
