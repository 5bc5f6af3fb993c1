"""Loading: what good files become, and the line that each bad input gets."""

from __future__ import annotations

import doctest
import hashlib
import os
import zipfile

import numpy as np
import pytest

from fljax import types
from fljax.data import checks, load, npz
from fljax.runtime import memory


def _arrays(**changes) -> dict[str, np.ndarray]:
    arrays = {
        "x_train": np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2, 1),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": np.zeros((3, 2, 2, 1), np.uint8),
        "y_test": np.array([0, 1, 3]),
    }
    return {**arrays, **changes}


@pytest.fixture
def save(tmp_path):
    """Writes the arrays and returns the data set's name."""

    def write(arrays) -> str:
        np.savez(tmp_path / "set.npz", **arrays)
        return f"npz:{tmp_path / 'set.npz'}"

    return write


def test_digits():
    data = load.load("digits")
    assert data.x_train.shape == (1437, 8, 8, 1)
    assert data.x_test.shape == (360, 8, 8, 1)
    assert data.x_train.dtype == data.x_test.dtype == np.uint8
    assert data.y_train.dtype == data.y_test.dtype == np.int32
    assert (data.num_classes, data.users) == (10, None)
    assert (data.x_train.min(), data.x_train.max()) == (0, 255)
    # Stratified: each class has a fifth of its examples in the test set.
    test = np.bincount(data.y_test) / (
        np.bincount(data.y_test) + np.bincount(data.y_train)
    )
    np.testing.assert_allclose(test, 0.2, atol=0.004)


def test_digits_file_stays_as_it_is():
    digest = hashlib.sha256(npz.DIGITS.read_bytes()).hexdigest()
    assert digest[:16] == "e2176553ca3dae5d"
    assert npz.DIGITS.stat().st_size < 100_000
    notice = npz.DIGITS.with_name("digits_notice.txt").read_text()
    assert "10.24432/C50P49" in notice
    assert "CC BY 4.0" in notice


def test_npz_round_trip(save):
    arrays = _arrays()
    data = load.load(save(arrays))
    for key in checks.KEYS:
        np.testing.assert_array_equal(getattr(data, key), arrays[key])
    assert data.x_train.dtype == np.uint8
    assert data.y_train.dtype == data.y_test.dtype == np.int32
    assert (data.num_classes, data.users) == (4, None)


def test_npz_below_home(save, tmp_path, monkeypatch):
    save(_arrays())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load.load("npz:~/set.npz").num_classes == 4


def test_grey_images_get_a_channel(save):
    grey = _arrays(x_train=np.ones((6, 28, 28)), x_test=np.ones((3, 28, 28)))
    data = load.load(save(grey))
    assert data.x_train.shape == (6, 28, 28, 1)
    assert data.x_test.shape == (3, 28, 28, 1)
    assert data.x_train.dtype == np.float32


@pytest.mark.parametrize("dtype", [bool, np.int64, np.uint16, np.float16, ">f8"])
def test_other_numbers_become_float32(save, dtype):
    x = np.ones((6, 5), dtype)
    data = load.load(save(_arrays(x_train=x, x_test=x[:3])))
    assert data.x_train.dtype == data.x_test.dtype == np.float32
    np.testing.assert_array_equal(data.x_train, np.ones((6, 5)))


def test_labels_may_be_a_column(save):
    arrays = _arrays()
    column = {key: arrays[key][:, None].astype(np.uint8) for key in checks.KEYS[1::2]}
    data = load.load(save({**arrays, **column}))
    np.testing.assert_array_equal(data.y_train, arrays["y_train"])


def test_names_and_labels_of_medmnist(save):
    arrays = _arrays()
    stored = {
        "train_images": arrays["x_train"],
        "train_labels": arrays["y_train"][:, None].astype(np.uint8),
        "val_images": arrays["x_test"],
        "val_labels": arrays["y_test"][:, None].astype(np.uint8),
        "test_images": arrays["x_test"],
        "test_labels": arrays["y_test"][:, None].astype(np.uint8),
    }
    data = load.load(save(stored))
    for key in checks.KEYS:
        np.testing.assert_array_equal(getattr(data, key), arrays[key])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, bool])
def test_one_hot_labels_become_class_numbers(save, dtype):
    arrays, rows = _arrays(), np.eye(5, dtype=dtype)
    hot = {key: rows[arrays[key]] for key in ("y_train", "y_test")}
    data = load.load(save({**arrays, **hot}))
    np.testing.assert_array_equal(data.y_train, arrays["y_train"])
    np.testing.assert_array_equal(data.y_test, arrays["y_test"])
    assert data.num_classes == 5


@pytest.mark.parametrize(
    "users", [np.array([9, 4, 9, 4, 5, 9]), np.array(list("zazamz"))]
)
def test_users_become_codes_in_sorted_order(save, users):
    assert load.load(save(_arrays(users=users))).users.tolist() == [2, 0, 2, 0, 1, 2]
    stranger = np.array([1] if users.dtype.kind == "i" else ["q"])
    tested = np.concatenate([users[1:3], stranger])
    data = load.load(save(_arrays(users=users, users_test=tested)))
    assert data.users_test.tolist() == [0, 2, -1]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("digit", "digits"),
        ("Digits", "digits"),
        ("digits:8x8", "digits"),
        ("mnist", "tfds:mnist"),
        ("tdfs:mnist:3.0.1", "tfds:mnist:3.0.1"),
        ("TFDS:emnist/balanced", "tfds:emnist/balanced"),
        ("data/mine.npz", "npz:data/mine.npz"),
        ("npy:mine.npz", "npz:mine.npz"),
        ("npz:", "npz:PATH"),
        ("imdb.jsonl", "jsonl:imdb.jsonl"),
        ("femnist/all.json", "leaf:femnist/all.json"),
        ("folders:cinic", "folder:cinic"),
        ("tfds:", "tfds:NAME"),
        ("", "tfds:NAME"),
    ],
)
def test_unknown_name_gets_the_nearest(name, meant):
    with pytest.raises(ValueError, match="'digits', 'npz:PATH', '") as caught:
        load.load(name)
    assert f"got {name!r}; did you mean {meant!r}?" in str(caught.value)


def test_absent_file(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file /.*none\.npz; check"):
        load.load(f"npz:{tmp_path}/none.npz")
    for path in (str(tmp_path), "~nobody-of-that-name/set.npz", "long" * 2000):
        with pytest.raises(ValueError, match="there is no file"):
            load.load(f"npz:{path}")


@pytest.mark.parametrize("content", [b"", b"x_train,y_train\n1,2\n", b"PK\x03\x04"])
def test_not_an_npz(tmp_path, content):
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"no npz file, or is cut short; .*np\.savez"):
        load.load(f"npz:{tmp_path}/set.npz")


def test_cut_or_damaged_npz(save, tmp_path):
    name, path = save(_arrays()), tmp_path / "set.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(ValueError, match="is cut short"):
        load.load(name)
    path.write_bytes(whole.replace(np.arange(24, dtype=np.uint8).tobytes(), b"!" * 24))
    with pytest.raises(ValueError, match=r"is damaged .*CRC.* write it with") as caught:
        load.load(name)
    assert caught.value.__cause__ is not None


def test_pickled_objects_are_refused(save):
    users = np.array(["a", None] * 3, object)
    with pytest.raises(
        ValueError, match=r"more than plain arrays .*allow_pickle=False"
    ):
        load.load(save(_arrays(users=users)))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("(99999999999999,)", "is damaged"),
        ("(1099511627776, 16777216)", "is damaged"),
        ("(-5,)", "is damaged"),
        ("(" * 400 + ")" * 400, "is damaged"),
        ("None", "is damaged"),
    ],
)
def test_headers_that_ask_for_the_impossible(tmp_path, shape, words):
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}}}".encode()
    size = len(header).to_bytes(2, "little")
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w") as file:
        for key in checks.KEYS:
            file.writestr(f"{key}.npy", b"\x93NUMPY\1\0" + size + header + bytes(64))
    with pytest.raises(ValueError, match=words) as caught:
        load.load(f"npz:{path}")
    assert "\n" not in str(caught.value)


def test_a_bomb_an_array_twice_and_a_pipe(save, tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", **_arrays(x_train=np.zeros((6, 10**5))))
    with monkeypatch.context() as patch:
        patch.setattr(memory, "of_host", lambda: 1e6)
        with pytest.raises(ValueError, match=r"4 arrays, which would take 4\.8 MB"):
            load.load(f"npz:{tmp_path}/bomb.npz")
    name = save(_arrays())
    twice = pytest.warns(UserWarning, match="Duplicate name")
    with zipfile.ZipFile(tmp_path / "set.npz", "a") as file, twice:
        file.writestr("y_train.npy", b"")
    with pytest.raises(ValueError, match="expected y_train once, got it twice"):
        load.load(name)
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(ValueError, match="but a named pipe; check the path"):
        load.load(f"npz:{tmp_path}/pipe.npz")


def test_whatever_a_library_raises_is_one_line(save, monkeypatch):
    def raises(*_):
        raise TypeError("a\nb")

    monkeypatch.setattr(checks, "dataset", raises)
    name = save(_arrays())
    with pytest.raises(ValueError, match=f"^{name}: TypeError: a$"):
        load.load(name)


def test_lengths_are_checked_before_a_new_split(save):
    name = save(_arrays(y_train=np.zeros(5, int)))
    with pytest.raises(ValueError, match="one row an example, got 6 and 5 rows"):
        load.load(name, load.Options(test_share=0.3))


def test_missing_keys(save):
    arrays = _arrays(note=np.zeros(1))
    del arrays["y_test"], arrays["x_test"]
    with pytest.raises(
        ValueError,
        match=r"lacks x_test, y_test; it holds 'x_train', 'y_train', 'note'; write it",
    ):
        load.load(save(arrays))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"y_train": np.zeros(5, int)},
            "x_train and y_train must have one row an example, got 6 and 5 rows",
        ),
        ({"y_test": np.zeros(4, int)}, "x_test and y_test .*, got 3 and 4 rows"),
        (
            {"x_test": np.zeros((3, 2, 3, 1), np.uint8)},
            r"the same features, got uint8\[6, 2, 2, 1\] and uint8\[3, 2, 3, 1\]",
        ),
        (
            {"x_test": np.zeros((3, 2, 2, 1))},
            r"the same features, got uint8\[6, 2, 2, 1\] and float32\[3, 2, 2, 1\]",
        ),
        (
            {"y_train": np.zeros(6)},
            r"y_train must be integer class .* got float64\[6\]; cast",
        ),
        ({"y_test": np.array(["a", "b", "c"])}, r"y_test must be integer .*<U1\[3\]"),
        ({"y_train": np.zeros((6, 4), int)}, r"got int64\[6, 4\]; .*\.argmax\(1\)"),
        ({"y_train": np.zeros((6, 4))}, r"got float64\[6, 4\]; .*\.argmax\(1\)"),
        ({"y_train": np.array(3)}, r"\[examples\] or \[examples, 1\], got int64\[\]"),
        (
            {"y_train": np.array([0, 1, -1, 2, -3, 0])},
            "2 are not, the first is -1 at index 2",
        ),
        ({"y_test": np.array([0, 2**40, 0])}, "the first is 1099511627776 at index 1"),
        (
            {"x_train": np.array(["a"] * 6)},
            r"x_train must be numbers of shape \[examples, \*features\], got <U1\[6\]",
        ),
        ({"x_train": np.zeros(6)}, r"\*features\], got float64\[6\]"),
        ({"x_train": np.zeros((6, 2), complex)}, r"got complex128\[6, 2\]"),
        (
            {"x_train": np.zeros((0, 2, 2, 1)), "y_train": np.zeros(0, int)},
            r"x_train is empty, shape \[0, 2, 2, 1\]",
        ),
        ({"x_test": np.zeros((3, 0), np.uint8)}, r"x_test is empty, shape \[3, 0\]"),
        (
            {"users": np.zeros(5, int)},
            "x_train and users must have one row an example, got 6 and 5 rows",
        ),
        ({"users": np.zeros(6)}, r"users must be .* strings, got float64\[6\]"),
    ],
)
def test_bad_contents(save, changes, message):
    name = save(_arrays(**changes))
    with pytest.raises(ValueError, match=message) as caught:
        load.load(name)
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)


def _images(*shape, low=0.0, high=1.0, dtype=np.float32):
    drawn = np.random.default_rng(0).random(shape, np.float32)
    return (low + (high - low) * drawn).astype(dtype)


BYTES = {"high": 255, "dtype": np.uint8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"y_train": np.array([0, 5, 900] * 2), "y_test": np.array([0, 5, 0])},
            "3 labels from 0 to 900, which would make 901 classes; number them with",
        ),
        ({"x": ((3, 16, 16), {}, {})}, r"float32\[6, 3, 16, 16\], channels first"),
        ({"x": ((1, 8, 8), {}, {})}, "channels first"),
        (
            {"x": ((8, 8, 3), {"high": 255.0}, {})},
            r"one scale, got values from 0.* to 25\d.* and from 0.* to 0.99",
        ),
        ({"x": ((8, 8, 3), {"low": -1.0}, {"high": 255.0})}, "one scale"),
        (
            {"x": ((8, 8, 3), BYTES, BYTES | {"high": 1.99})},
            "one scale, got values from 0 to 254 and from 0 to 1;",
        ),
        (
            {"x": ((8, 8, 3), BYTES, {"high": 255})},
            r"must have the same features, got uint8.* and float32",
        ),
    ],
)  # fmt: skip
def test_values_that_cannot_be_meant(save, changes, message):
    if "x" in changes:
        shape, train, test = changes.pop("x")
        changes = {
            "x_train": _images(6, *shape, **train),
            "x_test": _images(3, *shape, **test),
        }
    with pytest.raises(ValueError, match=message) as caught:
        load.load(save(_arrays(y_test=np.array([0, 1, 2])) | changes))
    assert "\n" not in str(caught.value)


def _noted(**changes):
    """Gives the notes on a data set of 6 and 3 images of 8 x 8 with some changes."""
    fields = {
        "x_train": _images(6, 8, 8, 1),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": _images(3, 8, 8, 1),
        "y_test": np.array([0, 1, 2]),
        "num_classes": 3,
    }
    return checks.notes(checks.made_by_hand(types.Dataset(**fields | changes)))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"y_train": np.array([0, 1] * 3)},
            "class 2 is in the test set only: no client can learn what is 33.3% of it",
        ),
        (
            {"y_test": np.array([0, 0, 0])},
            "2 classes (1, 2) are in the training set only: nothing tests it",
        ),
        (
            {"num_classes": 901},
            "898 classes (3, 4, 5, 6, 7, ...) are without examples, of 901: labels "
            "with gaps, or not from 0, widen the network for nothing",
        ),
        (
            {"y_train": np.zeros(6, int), "y_test": np.zeros(3, int)},
            "all training examples are of class 0",
        ),
        (
            {"x_train": _images(6, 4, 32, 16), "x_test": _images(3, 4, 32, 16)},
            "images of [4, 32, 16] are taken as height 4, width 32 and 16 channels: "
            "channels come last",
        ),
        (
            {"x_train": _images(6, 5, high=99), "x_test": _images(3, 5, high=0.1)},
            " are both scaled alike?",
        ),
        ({"x_test": _images(3, 8, 8, 1, low=-1.0)}, " are both scaled alike?"),
        ({"x_test": np.zeros((3, 8, 8, 1))}, " are both scaled alike?"),
    ],
)
def test_values_that_are_seldom_meant_are_noted(changes, line):
    assert any(note.endswith(line) for note in _noted(**changes))


def test_of_most_data_there_is_nothing_to_note():
    assert _noted() == ()
    assert checks.notes(load.load("digits")) == ()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.full((6, 4), 9), "token ids from 0 to 8, below the vocabulary of 9, got 9"),
        (np.full((6, 4), -1), "token ids from 0 to 8"),
        (np.zeros((6, 4)), r"must be token ids .* got float64\[6, 4\]"),
    ],
)
def test_tokens_are_below_the_vocabulary(x, message):
    y = np.zeros(6, int)
    fine = np.full((6, 4), 8, np.uint8)
    with pytest.raises(ValueError, match=message):
        checks.made_by_hand(types.Dataset(fine, y, x, y, 1, vocabulary=9))
    made = checks.made_by_hand(types.Dataset(fine, y, fine, y, 1, vocabulary=9))
    assert made.x_train.dtype == np.int32  # uint8 would be taken as an image


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite(save, bad):
    x = np.ones((6, 2, 2))
    x[4, 1, 0] = x[5, 0, 1] = bad
    with pytest.raises(
        ValueError, match=r"x_train holds 2 NaN or .* the first at index \(4, 1, 0\);"
    ):
        load.load(save(_arrays(x_train=x, x_test=np.ones((3, 2, 2)))))


def _dataset(x: np.ndarray) -> types.Dataset:
    y = np.zeros(len(x), np.int32)
    return types.Dataset(x, y, x, y, num_classes=1)


def test_normalization_by_hand():
    x = np.array([[[[0, 51]], [[255, 153]]]], np.uint8)  # one image, 2 x 1, 2 channels
    mean, std = load.normalization(_dataset(x))
    np.testing.assert_allclose(mean, [0.5, 0.4], rtol=1e-6)
    np.testing.assert_allclose(std, [0.5, 0.2], rtol=1e-6)
    assert mean.dtype == std.dtype == np.float32


def test_normalization_of_floats_is_in_their_units():
    x = np.random.default_rng(0).normal(1e4, 3, (500, 7)).astype(np.float32)
    mean, std = load.normalization(_dataset(x))
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, x.astype(np.float64).std(0), rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 100, 10**9])
def test_normalization_does_not_depend_on_chunks(monkeypatch, chunk):
    monkeypatch.setattr(load, "CHUNK", chunk)
    data = load.load("digits")
    mean, std = load.normalization(data)
    np.testing.assert_allclose(mean, [(data.x_train / 255.0).mean()], rtol=1e-6)
    np.testing.assert_allclose(std, [(data.x_train / 255.0).std()], rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "floor"), [(np.uint8, load.FLOOR_UINT8), (np.float32, load.FLOOR_FLOAT)]
)
def test_constant_channel_gets_the_floor(dtype, floor):
    _, std = load.normalization(_dataset(np.full((4, 3), 7, dtype)))
    np.testing.assert_allclose(std, floor, rtol=1e-6)


def test_examples_of_the_docstrings():
    assert doctest.testmod(load).failed == 0
