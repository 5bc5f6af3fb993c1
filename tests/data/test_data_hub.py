"""Sets of the hub's library, made on the spot: what `load` makes of them, refusals."""

from __future__ import annotations

import pathlib
import pickle
import sys

import numpy as np
import pytest

from fljax import types
from fljax.data import hub, labels, load

PIXELS = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4)
LABELS = [0, 1, 2, 0, 1, 2]

pytestmark = pytest.mark.filterwarnings("ignore")  # of what the library imports


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ValueError, match=r"hf:mnist needs datasets.*pip install -e '.\[hub\]'"
    ):
        load.load("hf:mnist")


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """Gives the library, without a network and with a cache of this test's own."""
    found = pytest.importorskip("datasets")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(found.config, "HF_HUB_OFFLINE", True)
    return found


@pytest.fixture
def save(datasets, tmp_path):
    """Saves splits of columns and returns the data set's name."""

    def write(features=None, **splits) -> str:
        rows = {
            name: datasets.Dataset.from_dict(columns, features=features)
            for name, columns in splits.items()
        }
        datasets.DatasetDict(rows).save_to_disk(str(tmp_path / "set"))
        return f"hf:{tmp_path / 'set'}"

    return write


@pytest.fixture
def pictures(datasets, save):
    """Saves six images with classes for training, two of them for testing."""
    pil = pytest.importorskip("PIL.Image")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b", "c", "d"])
    )
    images = [pil.fromarray(x) for x in PIXELS]
    return save(
        features,
        train={"image": images, "label": LABELS},
        test={"image": images[:2], "label": [3, 0]},
    )


def test_images_with_classes(pictures, tmp_path):
    for _ in range(2):  # the second time from the cache
        data = load.load(pictures, load.Options(cache=str(tmp_path / "kept")))
        np.testing.assert_array_equal(data.x_train, PIXELS[..., None])
        assert data.x_train.dtype == np.uint8
        np.testing.assert_array_equal(data.x_test, PIXELS[:2, ..., None])
        assert data.y_train.tolist() == LABELS
        assert data.y_test.tolist() == [3, 0]
        assert (data.num_classes, data.users) == (4, None)
    assert any((tmp_path / "kept").iterdir())


def test_images_are_resized_and_colored(pictures):
    data = load.load(pictures, load.Options(image_size=8, image_mode="rgb"))
    assert data.x_train.shape == (6, 8, 8, 3)


def test_texts_become_subwords(save, tmp_path):
    pytest.importorskip("tokenizers")
    columns = {
        "text": [f"some words {i}" for i in range(6)],
        "label": ["no", "yes", "no", "yes", "no", "yes"],
    }
    name = save(train=columns, validation={key: x[:3] for key, x in columns.items()})
    for _ in range(2):
        options = load.Options(cache=str(tmp_path / "kept"))
        data: types.Dataset = load.load(name, options)
        assert data.x_train.shape[0] == 6
        assert data.vocabulary is not None
        assert data.y_train.tolist() == [0, 1, 0, 1, 0, 1]  # in order of the names
        assert data.y_test.tolist() == [0, 1, 0]
    following = load.Options(check=labels.token_ids, following=True)
    assert load.load(name, following).y_train.ndim == 2


def test_numbers_with_users_and_columns_by_name(save):
    rows = np.random.default_rng(0).random((6, 3)).round(3)
    columns = {
        "first": rows.tolist(),
        "other": ["x"] * 6,
        "kind": LABELS,
        "writer": ["b", "a", "b", "c", "a", "b"],
    }
    name = save(train=columns)
    asked = hub.Columns(input="first", label="kind", user="writer")
    data = load.load(name, load.Options(columns=asked, test_share=0.34))
    assert data.x_train.shape == (4, 3)
    whole = np.concatenate([data.x_train, data.x_test])
    np.testing.assert_allclose(np.sort(whole, 0), np.sort(rows, 0), atol=1e-6)
    assert data.users is not None
    assert data.users_test is not None
    with pytest.raises(ValueError, match=r"expected test examples, got none; split"):
        load.load(name, load.Options(columns=asked))


def test_bytes_stay_bytes(datasets, save):
    features = datasets.Features(
        x=datasets.Array3D((4, 4, 1), "uint8"), label=datasets.Value("int64")
    )
    columns = {"x": PIXELS[..., None].tolist(), "label": LABELS}
    data = load.load(save(features, train=columns, test=columns))
    assert data.x_train.dtype == np.uint8
    np.testing.assert_array_equal(data.x_train, PIXELS[..., None])


def test_labels_that_are_kept_back_leave_the_validation_split(datasets, save):
    features = datasets.Features(
        x=datasets.List(datasets.Value("float32")),
        label=datasets.ClassLabel(names=["a", "b"]),
    )
    rows = [[float(i), 1.0] for i in range(4)]
    name = save(
        features,
        train={"x": rows, "label": [0, 1, 0, 1]},
        test={"x": rows, "label": [-1] * 4},
        validation={"x": rows[:2], "label": [1, 1]},
    )
    data = load.load(name)
    assert data.y_test.tolist() == [1, 1]


def test_a_folder_of_files_is_read(datasets, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    lines = "".join(f'{{"sentence": "word {i}", "label": {i % 2}}}\n' for i in range(8))
    (folder / "train.jsonl").write_text(lines)
    (folder / "test.jsonl").write_text(lines)
    found = hub.find(str(folder))
    assert found.kind == "text"
    assert hub.read(found)["y_train"].tolist() == [0, 1] * 4
    assert hub.files(found)


@pytest.mark.parametrize(
    ("columns", "asked", "message"),
    [
        ({"x": [[1.0]]}, {}, r"--columns.label expects one of its columns \(x\)"),
        (
            {"x": [[1.0]], "label": [0]},
            {"label": "lable"},
            "got 'lable'; did you mean 'label'",
        ),
        (
            {"x": [[1.0]], "label": [0]},
            {"user": "who"},
            r"--columns.user expects one of its columns \(x, label\), got 'who'",
        ),
        (
            {"a": ["p"], "b": ["q"], "label": [0]},
            {},
            r"--columns.input expects one of its columns \(a, b, label\)",
        ),
        ({"text": [None, "a"], "label": [0, 1]}, {}, "expected texts in column text"),
    ],
)
def test_bad_input_is_one_line(save, columns, asked, message):
    name = save(train=columns, test=columns)
    with pytest.raises(ValueError, match=message) as caught:
        load.load(name, load.Options(columns=hub.Columns(**asked)))
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)


def test_no_pickle_is_read(tmp_path, monkeypatch):
    class Runs:
        def __reduce__(self):
            return pathlib.Path.mkdir, (tmp_path / "ran",)

    (tmp_path / "train.pkl").write_bytes(pickle.dumps(Runs()))
    monkeypatch.chdir(tmp_path)  # where the library would find it
    with pytest.raises(ValueError, match=r"hf:pandas: expected .* pickles"):
        load.load("hf:pandas", load.Options())
    with pytest.raises(ValueError, match=f"hf:{tmp_path}"):
        load.load(f"hf:{tmp_path}", load.Options())
    assert not (tmp_path / "ran").exists()


def test_a_set_without_training_data_is_refused(save):
    with pytest.raises(ValueError, match="expected a split train, got test"):
        load.load(save(test={"x": [[1.0]], "label": [0]}))
