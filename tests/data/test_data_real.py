"""The loaders on real data beside the repository, a small part of each; or skipped."""

import json
import lzma

import numpy as np
import pytest

from fljax.data import load


def stored(shared, name):
    path = shared / "data" / name
    if not path.is_file():
        pytest.skip(f"needs {path}")
    return path


def test_chest_x_rays_in_class_folders(shared, tmp_path):
    image = pytest.importorskip("PIL.Image")
    with np.load(stored(shared, "pneumoniamnist.npz")) as packed:
        parts = {
            part: (packed[f"{part}_images"][:40], packed[f"{part}_labels"][:40, 0])
            for part in ("train", "test")
        }
    for part, (x, y) in parts.items():
        for i, (pixels, label) in enumerate(zip(x, y, strict=True)):
            folder = tmp_path / part / ("normal", "pneumonia")[label]
            folder.mkdir(parents=True, exist_ok=True)
            image.fromarray(pixels).save(folder / f"{i:02}.png")
    data = load.load(f"folder:{tmp_path}")
    for x, y, part in (
        (data.x_train, data.y_train, "train"),
        (data.x_test, data.y_test, "test"),
    ):
        order = np.argsort(parts[part][1], kind="stable")  # class by class
        np.testing.assert_array_equal(x[..., 0], parts[part][0][order])
        np.testing.assert_array_equal(y, parts[part][1][order])


def test_a_role_of_shakespeare(shared, tmp_path):
    packed = stored(shared, "shakespeare_roles.json.xz").read_bytes()
    roles = json.loads(lzma.decompress(packed))
    name, role = max(roles.items(), key=lambda item: len(item[1]["lines"]))
    words = " ".join(role["lines"])[:1080]
    users = {
        name: {
            "x": [words[i : i + 80] for i in range(1000)],
            "y": list(words[80:]),
        }
    }
    (tmp_path / "all.json").write_text(json.dumps({"user_data": users}))
    data = load.load(f"leaf:{tmp_path}")
    assert data.x_train.shape == (1000 - 100 - 79, 80)
    assert data.x_test.shape == (100, 80)
    assert (data.vocabulary, data.num_classes) == (81, 81)
    assert np.all(data.x_train > 0)  # all of them LEAF's characters
    np.testing.assert_array_equal(data.y_train[:-1], data.x_train[1:, -1])


def test_reviews_of_imdb(shared, tmp_path):
    pytest.importorskip("tokenizers")
    lines = []
    with lzma.open(stored(shared, "imdb50k.jsonl.xz"), "rt") as file:
        for _, line in zip(range(300), file, strict=False):
            split, label, *_, words = json.loads(line)[:5]
            lines.append({"split": split, "label": int(label), "text": words})
    (tmp_path / "a").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = load.Options(
        test_share=0.2, texts=load.Text(vocabulary_size=1000), seed=3
    )
    data = load.load(f"jsonl:{tmp_path / 'a'}", options)
    assert data.x_train.shape == (240, 512)
    assert data.x_test.shape == (60, 512)
    assert data.vocabulary == 1000
    padding = data.x_train == 0
    assert np.all(padding[:, :-1] <= padding[:, 1:])  # behind the text only
    assert np.mean(data.x_train == 1) < 1e-3  # next to nothing is unknown
