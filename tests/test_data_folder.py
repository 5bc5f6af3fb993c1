"""Images in class folders: what they become, and the line of each bad layout."""

import sys

import numpy as np
import pytest

from fljax.data import folder, load

Image = pytest.importorskip("PIL.Image")


def draw(path, shape=(6, 5), value=100, mode="L"):
    """Writes an image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, shape[::-1], value).save(path)


@pytest.fixture
def root(tmp_path):
    """Makes two classes, three training and two test images, in grey."""
    for number, place in enumerate(
        ("train/cat/a.png", "train/cat/b.png", "train/dog/x.png", "test/dog/y.png")
    ):
        draw(tmp_path / place, value=10 * number)
    draw(tmp_path / "test/cat/z.bmp", value=90)
    (tmp_path / "train/cat/notes.txt").write_text("no image")
    return tmp_path


def test_classes_and_files_come_in_sorted_order(root):
    seen = []
    data = load.load(f"folder:{root}", watch=lambda *step: seen.append(step))
    assert data.x_train.shape == (3, 6, 5, 1)
    assert data.x_train.dtype == np.uint8
    assert data.x_train[:, 0, 0, 0].tolist() == [0, 10, 20]
    assert data.y_train.tolist() == [0, 0, 1]
    assert data.x_test[:, 0, 0, 0].tolist() == [90, 30]
    assert data.y_test.tolist() == [0, 1]
    assert data.num_classes == 2
    assert seen[-1] == (f"decoding folder:{root}", 5, 5)


def test_one_image_in_colour_makes_all_of_them_so(root):
    draw(root / "test/dog/colour.png", value=(1, 2, 3), mode="RGB")
    data = load.load(f"folder:{root}")
    assert data.x_train.shape == (3, 6, 5, 3)
    assert data.x_test[1, 0, 0].tolist() == [1, 2, 3]  # "colour.png" before "y.png"
    assert data.x_train[2, 0, 0].tolist() == [20, 20, 20]
    grey = load.load(f"folder:{root}", load.Options(image_mode="grey"))
    assert grey.x_train.shape == (3, 6, 5, 1)


def test_sizes_differ_and_are_resized(root):
    draw(root / "train/cat/c.png", (4, 4), 200)
    with pytest.raises(ValueError, match=r"got 6 x 5 in .*a\.png and 4 x 4 in"):
        load.load(f"folder:{root}")
    data = load.load(f"folder:{root}", load.Options(image_size=8, image_mode="rgb"))
    assert data.x_train.shape == (4, 8, 8, 3)
    assert data.x_train[2].min() == data.x_train[2].max() == 200


def test_validation_stands_in_for_a_test_set_only_where_there_is_none(root):
    draw(root / "valid/cat/v.png", value=7)
    assert load.load(f"folder:{root}").x_test[0, 0, 0, 0] == 90
    (root / "test").rename(root / "spare")
    assert load.load(f"folder:{root}").x_test[:, 0, 0, 0].tolist() == [7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: (r / "train").rename(r / "Train"),
            r"DIR/train.*, got Train",
        ),
        (lambda r: draw(r / "test/cow/a.png"), r"classes of train in test, got 'cow'"),
        (
            lambda r: (r / "train/empty").mkdir(),
            r"images in .*none in empty",
        ),
        (
            lambda r: (r / "test/cat/z.bmp").write_bytes(b"BM"),
            r"an image that Pillow can read, got .*z\.bmp",
        ),
        (
            lambda r: draw(r / "test/cat/deep.png", mode="I;16"),
            r"8 bits a channel, got Pillow's mode 'I;16' in .*deep\.png",
        ),
    ],
)
def test_bad_layouts(root, change, message):
    change(root)
    with pytest.raises(ValueError, match=message) as caught:
        load.load(f"folder:{root}")
    assert str(caught.value).startswith(f"folder:{root}")
    assert "\n" not in str(caught.value)


def test_an_image_that_is_cut_short(root):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5), np.uint8)
    path = root / "train/dog/x.png"
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"Pillow can read, got .*x\.png"):
        load.load(f"folder:{root}")


def test_absent_folder_and_absent_library(root, monkeypatch):
    with pytest.raises(ValueError, match="there is no folder /no/such"):
        load.load("folder:/no/such")
    files = folder.find("folder:x", root)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ValueError, match=r"needs Pillow.*'fljax\[images\]'"):
        folder.read("folder:x", files)
