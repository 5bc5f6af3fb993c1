"""Texts in lines of JSON, split anew, and as tokens end to end."""

import json

import numpy as np
import pytest

from fljax.data import jsonl, labels, load, text

LINES = [
    {"text": "a good film", "label": 1, "split": "train"},
    {"text": "a bad film", "label": 0, "split": "train"},
    {"text": "a good, good play", "label": 1, "split": "test"},
]


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_splits_labels_and_users(tmp_path):
    users = [{**line, "user": user} for line, user in zip(LINES, "bab", strict=True)]
    arrays = jsonl.read("x", write(tmp_path / "a", users))
    assert arrays["x_train"].tolist() == ["a good film", "a bad film"]
    assert arrays["y_train"].tolist() == [1, 0]
    assert arrays["x_test"].tolist() == ["a good, good play"]
    assert arrays["users"].tolist() == [1, 0]
    assert arrays["users_test"].tolist() == [1]


def test_names_of_classes_are_numbered_in_sorted_order(tmp_path):
    named = [{"text": "x", "label": label} for label in ("pos", "neg", "pos")]
    arrays = jsonl.read("x", write(tmp_path / "a", named))
    assert arrays["y_train"].tolist() == [1, 0, 1]
    assert len(arrays["y_test"]) == 0


def test_marks_empty_lines_and_ends_of_lines_of_other_systems(tmp_path):
    lines = b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(x).encode() for x in LINES)
    (tmp_path / "a").write_bytes(lines + b"\r\n\r\n \n\n")
    arrays = jsonl.read("x", tmp_path / "a")
    assert arrays["x_train"].tolist() == ["a good film", "a bad film"]
    assert arrays["y_test"].tolist() == [1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"in line 2, got '\{' \("),
        ("[1]", r"in line 2, got '\[1\]'"),
        ('{"text": "a"}', "in line 2, got"),
        ('{"text": 1, "label": 1, "split": "train"}', "in line 2, got text 1"),
        ('{"text": "a", "label": 0.5, "split": "train"}', "got label 0.5"),
        ('{"text": "a", "label": "x", "split": "train"}', "'x' of another type"),
        ('{"text": "a", "label": 1, "split": "dev"}', "got split 'dev'"),
        ('{"text": "a", "label": 1}', "in line 2, got"),
        (
            '{"text": "a", "label": 1, "split": "train", "user": 3}',
            "fields that line 1 has not",
        ),
        ("[" * 100_000, r"got '\[\[.*it is nested too deep\)"),
        ('{"text": "a", "label": NaN, "split": "train"}', "NaN, which is no number"),
        ('{"text": "a", "label": 1, "label": 0}', "the key 'label' twice"),
        (r'{"text": "\ud800", "label": 1, "split": "train"}', "half a character in"),
        ('{"text": "\udcff", "label": 1, "split": "train"}', "utf-8"),
        (
            '{"text": "a", "label": 1' + "0" * 400 + ', "split": "train"}',
            "in line 2, got label 1000",
        ),
    ],
)
def test_bad_lines(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    text = json.dumps(LINES[0]) + "\n" + line + "\n"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message) as caught:
        load.load(f"jsonl:{path}")
    assert str(caught.value).startswith(f"jsonl:{path}: expected")
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="got none"):
        load.load(f"jsonl:{tmp_path / 'empty'}")
    for options in (load.Options(), load.Options(cache=str(tmp_path / "cache"))):
        with pytest.raises(ValueError, match="there is no file /no/such"):
            load.load("jsonl:/no/such", options)
    path = write(tmp_path / "train", LINES[:2])
    with pytest.raises(ValueError, match=r"test examples, got none; .*--test_share"):
        load.load(f"jsonl:{path}")
    with pytest.raises(ValueError, match="expect images, got text"):
        load.load(f"jsonl:{path}", load.Options(image_mode="rgb"))


def test_tokens_end_to_end(tmp_path):
    pytest.importorskip("tokenizers")
    path = write(tmp_path / "a.jsonl", LINES)
    options = load.Options(
        texts=load.Text(max_tokens=6, vocabulary_size=40), cache=str(tmp_path / "cache")
    )
    data = load.load(f"jsonl:{path}", options)
    assert data.x_train.shape == (2, 6)
    assert data.x_test.shape == (1, 6)
    assert data.x_train.dtype == np.uint16
    assert data.vocabulary <= 40
    assert data.num_classes == 2
    again = load.load(f"jsonl:{path}", options)  # from the cache
    resumed = load.load(f"jsonl:{path}", options._replace(tokenizer=data.tokenizer))
    uncached = load.load(f"jsonl:{path}", options._replace(cache=""))
    for other in (again, resumed, uncached):
        assert load.digest(other) == load.digest(data)
        assert other.tokenizer == data.tokenizer
    entries = [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]
    assert len(entries) == 2  # the vocabulary and the tokens
    write(path, [*LINES, LINES[0]])
    assert len(load.load(f"jsonl:{path}", options).x_train) == 3


def test_the_tokens_that_come_next_need_no_labels(tmp_path):
    pytest.importorskip("tokenizers")
    bare = [{k: v for k, v in line.items() if k != "label"} for line in LINES]
    path = write(tmp_path / "a.jsonl", bare)
    options = load.Options(
        texts=load.Text(max_tokens=6, vocabulary_size=40),
        cache=str(tmp_path / "cache"),
        check=labels.token_ids,
        following=True,
    )
    data = load.load(f"jsonl:{path}", options)
    assert data.x_train.shape == data.y_train.shape == (2, 5)
    np.testing.assert_array_equal(data.x_train[:, 1:], data.y_train[:, :-1])
    assert data.num_classes == data.vocabulary
    # What was kept of texts without labels is nothing that can be classified.
    with pytest.raises(ValueError, match="in line 1, got"):
        load.load(f"jsonl:{path}", load.Options(cache=options.cache))
    labelled = load.load(f"jsonl:{write(tmp_path / 'b', LINES)}", options)
    np.testing.assert_array_equal(labelled.y_train, data.y_train)
    short = options._replace(texts=load.Text(max_tokens=1))
    with pytest.raises(ValueError, match="texts of two tokens or more, got 1"):
        load.load(f"jsonl:{path}", short)


def test_numbers_have_no_token_that_comes_next():
    with pytest.raises(ValueError, match=r"digits: expected texts, .* got numbers"):
        load.load("digits", load.Options(following=True))


def test_the_vocabulary_is_trained_on_the_training_split_alone(tmp_path):
    pytest.importorskip("tokenizers")
    path = write(tmp_path / "a.jsonl", LINES)
    data = load.load(
        f"jsonl:{path}", load.Options(texts=load.Text(max_tokens=8, vocabulary_size=60))
    )
    known = json.loads(data.tokenizer)["model"]["vocab"]
    assert "y" not in known  # only in "play"
    assert (known[text.PADDING], known[text.UNKNOWN]) == (0, 1)
    assert 1 in data.x_test
