"""The cache: hits, misses, damage, kills; what a changed source does."""

import json
import os
import shutil

import numpy as np
import pytest

from fljax.data import cache

ARRAYS = {
    "x_train": np.arange(12, dtype=np.uint8).reshape(3, 2, 2),
    "y_train": np.array([0, 1, 0]),
    "num_classes": np.array(2),
}
ABOUT = {"kind": "test", "source": "abc"}


class Maker:
    """Counts how often the arrays are made."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return dict(ARRAYS)


@pytest.fixture
def make():
    return Maker()


def entry(folder):
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


def test_a_second_load_maps_what_the_first_has_made(tmp_path, make):
    folder = tmp_path / "new" / "cache"
    for _ in range(2):
        arrays = cache.keep(folder, ABOUT, make)
        assert arrays.keys() == ARRAYS.keys()
        for key, value in ARRAYS.items():
            np.testing.assert_array_equal(arrays[key], value)
            assert arrays[key].dtype == value.dtype
        assert isinstance(arrays["x_train"], np.memmap)
        assert not arrays["x_train"].flags.writeable
    assert make.calls == 1


def test_other_options_and_another_version_are_other_entries(
    tmp_path, make, monkeypatch
):
    cache.keep(tmp_path, ABOUT, make)
    cache.keep(tmp_path, {**ABOUT, "image_size": 32}, make)
    monkeypatch.setattr(cache, "VERSION", 99)
    cache.keep(tmp_path, ABOUT, make)
    assert make.calls == 3


def test_without_a_folder_nothing_is_kept(make):
    assert cache.keep("", ABOUT, make)["x_train"] is ARRAYS["x_train"]
    cache.keep("", ABOUT, make)
    assert make.calls == 2


def flip(path):
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)


def other_source(path):
    manifest = json.loads(path.read_text())
    manifest["about"]["source"] = "def"
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("x_train.npy", flip, ("expected SHA-256", "got")),
        ("x_train.npy", lambda p: p.write_bytes(p.read_bytes()[:-1]), ("an array",)),
        ("y_train.npy", lambda p: p.write_bytes(b""), ("expected an array",)),
        ("y_train.npy", os.remove, ("expected an array", "there is no file")),
        ("y_train.npy", lambda p: np.save(p, np.zeros(4)), ("<i8[3]", "got <f8[4]")),
        ("manifest.json", lambda p: p.write_text("{"), ("expected a manifest",)),
        ("manifest.json", lambda p: p.write_text("[]"), ("expected a manifest",)),
        ("manifest.json", os.remove, ("expected a manifest",)),
        *(
            ("manifest.json", lambda p, text=text: p.write_text(text), ("a manifest",))
            for text in (
                "[" * 100_000,
                '{"arrays": {}, "about": []}',
                '{"arrays": [], "about": {}}',
                '{"arrays": {"x": 5}, "about": {}}',
                '{"arrays": {"../x": {}}, "about": {}}',
            )
        ),
        ("manifest.json", other_source, ("expected source 'abc', got 'def'",)),
    ],
)
def test_damage_is_refused_in_one_line(tmp_path, make, file, damage, words):
    cache.keep(tmp_path, ABOUT, make)
    path = entry(tmp_path) / file
    damage(path)
    with pytest.raises(ValueError, match="delete") as caught:
        cache.keep(tmp_path, ABOUT, make)
    line = str(caught.value)
    for word in (*words, str(path), f"delete {entry(tmp_path)} and it is made again"):
        assert word in line
    assert "\n" not in line
    shutil.rmtree(entry(tmp_path))  # what the line says
    cache.keep(tmp_path, ABOUT, make)
    assert make.calls == 2


def test_a_kill_at_any_moment_leaves_no_entry(tmp_path, make, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    for module, name in ((np, "save"), (os, "rename")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, killed)
            with pytest.raises(KeyboardInterrupt):
                cache.keep(tmp_path, ABOUT, make)
        assert entry(tmp_path).suffix == ".tmp"
    cache.keep(tmp_path, ABOUT, make)
    assert entry(tmp_path).suffix == ""  # what was left half is gone
    assert make.calls == 3


def test_the_content_is_names_and_bytes_not_times(tmp_path):
    files = [tmp_path / name for name in ("a", "b")]
    for path in files:
        path.write_bytes(path.name.encode() * 5)
    steps = []

    def watch(*step):
        steps.append(step)

    first = cache.content("src", tmp_path, files, watch)
    assert steps == [("hashing src (bytes)", 5, 10), ("hashing src (bytes)", 10, 10)]
    os.utime(files[0], (0, 0))
    assert cache.content("src", tmp_path, files[::-1]) == first
    moved = shutil.copytree(tmp_path, tmp_path / "moved")
    assert cache.content("src", moved, [moved / "a", moved / "b"]) == first
    files[1].write_bytes(b"bbbbc")
    changed = cache.content("src", tmp_path, files)
    files[1].rename(tmp_path / "c")
    renamed = cache.content("src", tmp_path, [files[0], tmp_path / "c"])
    assert len({first, changed, renamed}) == 3
