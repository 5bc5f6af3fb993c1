"""Images in class folders: what they become, and the line of each bad layout."""

import os
import struct
import sys
import zlib

import numpy as np
import pytest

from fljax.data import folder, load

Image = pytest.importorskip("PIL.Image")


def draw(path, shape=(6, 5), value=100, mode="L"):
    """Writes an image of one color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, shape[::-1], value).save(path)


def png_header(side):
    """Gives the first bytes of a PNG file that has as many pixels as it likes."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(chunk))
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + check + b"\0\0\0\1IDAT"
    )


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


def test_one_image_in_color_makes_all_of_them_so(root):
    draw(root / "test/dog/color.png", value=(1, 2, 3), mode="RGB")
    data = load.load(f"folder:{root}")
    assert data.x_train.shape == (3, 6, 5, 3)
    assert data.x_test[1, 0, 0].tolist() == [1, 2, 3]  # "color.png" before "y.png"
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


def test_what_systems_leave_is_passed_over(root):
    draw(root / "__MACOSX/train/cat/a.png")
    for place in ("train/__MACOSX/a.png", "train/.cache/a.png", "train/cat/a.png"):
        path = root / place
        path.parent.mkdir(exist_ok=True)
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    (root / "train/cat/.DS_Store").touch()
    (root / "train/cat/notes.txt").unlink()
    seen = []
    data = load.load(f"folder:{root}", watch=lambda *step: seen.append(step))
    assert (len(data.x_train), data.num_classes) == (3, 2)
    assert all(total for *_, total in seen)  # no note


def test_one_note_counts_what_is_left_out(root):
    (root / "train/empty").mkdir()
    (root / "train/labels.csv").touch()
    (root / "train/cat/more").mkdir()
    (root / "train/cat/more/again").symlink_to(root / "train/cat")
    (root / "train/cat/more/again.png").symlink_to(root / "train/cat/a.png")
    (root / "train/dog/README.TXT").touch()
    (root / "train/dog/loop.png").symlink_to("loop.png")
    os.mkfifo(root / "test/dog/pipe.png")  # would wait for ever
    draw(root / "train/cat/c.jpg", value=50)
    (root / "train/cat/c.jpg").rename(root / "train/cat/c.jfif")
    seen = []
    data = load.load(f"folder:{root}", watch=lambda *step: seen.append(step))
    assert data.x_train[:, 0, 0, 0].tolist() == [0, 10, 50, 20]
    assert data.num_classes == 2
    (note,) = [what for what, _, total in seen if not total]
    for count in (
        "2 of *.txt",
        "2 named pipes, devices or broken links",
        "1 beside the folders of classes",
        "1 folders in folders of classes",
        "1 folders of classes without images",
    ):
        assert count in note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: (r / "train").rename(r / "Train"),
            r"DIR/train.*, got Train",
        ),
        (lambda r: draw(r / "test/cow/a.png"), r"classes of train in test, got 'cow'"),
        (
            lambda r: [p.unlink() for p in (r / "train").rglob("*.png")],
            r"images in .*none in cat",
        ),
        (
            lambda r: (r / "test/cat/z.bmp").write_bytes(png_header(50_000)),
            r"Pillow can read, got .*z\.bmp \(DecompressionBombError",
        ),
        (
            lambda r: (r / "test/cat/z.bmp").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"),
            r"Pillow can read, got .*z\.bmp \(cannot identify",
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
    with pytest.raises(ValueError, match=r"needs Pillow.*'.\[images\]'"):
        folder.read("folder:x", files)
