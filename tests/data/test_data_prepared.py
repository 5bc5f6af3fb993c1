"""Sets of tensorflow-datasets: what `load` makes of them, and each refusal's line."""

from __future__ import annotations

import functools
import sys

import numpy as np
import pytest

from fljax import types
from fljax.data import load, prepared


def test_tfds_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        ValueError,
        match=r"tfds:mnist needs tensorflow-datasets.*pip install -e '.\[data\]'",
    ) as caught:
        load.load("tfds:mnist")
    assert isinstance(caught.value.__cause__, ImportError)


@pytest.mark.parametrize("name", ["kaggle:some_set", "lab:set/plain:1.0.0"])
def test_sets_whose_code_would_be_fetched_are_refused(name):
    with pytest.raises(ValueError, match=f"tfds:{name}: expected .* of a namespace"):
        load.load(f"tfds:{name}")


def _stripes(tfds, *, register=False, keys=("pixels", "digit"), splits=None, names=()):
    """Makes a builder class named TinyStripes; image i is full of the value i."""
    sizes = splits or {"train": 12, "test": 5}
    features = {
        "pixels": tfds.features.Tensor(shape=(4, 4, 1), dtype=np.uint8),
        "digit": tfds.features.ClassLabel(num_classes=3),
        "title": tfds.features.Text(),
    }

    names = dict(names)
    features = {names.get(key, key): value for key, value in features.items()}

    class TinyStripes(tfds.core.GeneratorBasedBuilder, skip_registration=not register):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            described = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(
                builder=self, features=described, supervised_keys=keys
            )

        def _split_generators(self, _):
            return {k: self._generate_examples(n) for k, n in sizes.items()}

        def _generate_examples(self, count):
            for i in range(count):
                pixels = np.full((4, 4, 1), i, np.uint8)
                row = {"pixels": pixels, "digit": i % 3, "title": f"stripe {i}"}
                yield i, {names.get(key, key): value for key, value in row.items()}

    return TinyStripes


@pytest.fixture
def tfds(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    pytest.importorskip("importlib_resources")  # undeclared, but tfds needs it
    return pytest.importorskip("tensorflow_datasets")


@functools.cache
def _register(tfds) -> None:
    """Makes the class known by name; the library takes a name once."""
    _stripes(tfds, register=True)


def _check_stripes(data: types.Dataset) -> None:
    assert data.x_train.shape == (12, 4, 4, 1)
    assert data.x_test.shape == (5, 4, 4, 1)
    assert data.x_train.dtype == np.uint8
    assert sorted(data.x_train[:, 0, 0, 0]) == list(range(12))
    np.testing.assert_array_equal(data.y_train, data.x_train[:, 0, 0, 0] % 3)
    np.testing.assert_array_equal(data.y_test, data.x_test[:, 3, 3, 0] % 3)
    assert data.num_classes == 3


third_party = pytest.mark.filterwarnings("ignore")  # warnings that are not ours


@third_party
@pytest.mark.parametrize("version", ["", ":1.0.0"])
def test_tfds_reads_a_prepared_set(tfds, tmp_path, version):
    _stripes(tfds)(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    _check_stripes(load.load(f"tfds:tiny_stripes{version}"))


@third_party
def test_tfds_takes_validation_for_test(tfds, tmp_path):
    builder = _stripes(tfds, splits={"train": 12, "validation": 5})
    builder(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    _check_stripes(load.load("tfds:tiny_stripes"))


@third_party
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"keys": None},
            r"has no \(input, label\) pair, but None; bring it into an npz",
        ),
        (
            {"keys": ("pixels", "title")},
            "title must be numbers of one shape",
        ),
        ({"splits": {"train": 3}}, r"splits train and test .*, got train; bring it"),
    ],
)
def test_tfds_set_that_does_not_fit(tfds, tmp_path, changes, message):
    builder = _stripes(tfds, **changes)
    builder(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(ValueError, match=message):
        load.load("tfds:tiny_stripes")


@third_party
@pytest.mark.parametrize("keys", [("title", "digit"), None])
def test_tfds_text_becomes_tokens(tfds, tmp_path, keys):
    pytest.importorskip("tokenizers")
    names = {"title": "text", "digit": "label"} if keys is None else {}
    builder = _stripes(tfds, keys=keys, names=names)
    builder(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    options = load.Options(
        texts=load.Text(max_tokens=6, vocabulary_size=30), cache=str(tmp_path / "cache")
    )
    for _ in range(2):  # read, then from the cache
        data = load.load("tfds:tiny_stripes", options)
        assert data.x_train.shape == (12, 6)
        assert data.x_test.shape == (5, 6)
        assert data.vocabulary <= 30
        assert data.num_classes == 3
        assert len(np.unique(data.x_train, axis=0)) == 12  # "stripe 0" to "stripe 11"


@third_party
def test_tfds_images_are_cached(tfds, tmp_path, monkeypatch):
    _stripes(tfds)(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    options = load.Options(cache=str(tmp_path / "cache"))
    _check_stripes(load.load("tfds:tiny_stripes", options))
    monkeypatch.setattr(prepared, "_read_split", None)
    _check_stripes(load.load("tfds:tiny_stripes", options))


@third_party
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnis", "Dataset mnis not found.*Did you mean: mnis -> mnist"),
        ("no such set!", "tfds:no such set!: "),
    ],
)
def test_tfds_unknown_name(tfds, name, message):
    with pytest.raises(ValueError, match=message) as caught:
        load.load(f"tfds:{name}")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


@third_party
def test_tfds_unprepared_set_needs_tensorflow(tfds, monkeypatch):
    _register(tfds)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(
        ValueError,
        match=r"is not prepared in .* TensorFlow is missing: pip install -e '.\[data",
    ):
        load.load("tfds:tiny_stripes")


@third_party
def test_tfds_prepares_a_set(tfds):
    pytest.importorskip("tensorflow")
    _register(tfds)
    _check_stripes(load.load("tfds:tiny_stripes"))


@third_party
def test_tfds_reads_a_tfrecord_set(tfds, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    _stripes(tfds)(data_dir=tmp_path, file_format="tfrecord").download_and_prepare()
    _check_stripes(load.load("tfds:tiny_stripes"))
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ValueError, match="is stored as tfrecord and TensorFlow is mis"):
        load.load("tfds:tiny_stripes")
