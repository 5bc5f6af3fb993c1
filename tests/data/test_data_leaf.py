"""LEAF's JSON: writers and roles, its split and ours, and bad files."""

import json
import os

import numpy as np
import pytest

from fljax.data import labels, load, text


def write(path, users):
    """Writes {user: (x, y)} as LEAF does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "users": list(users),
        "num_samples": [len(y) for _, y in users.values()],
        "user_data": {user: {"x": x, "y": y} for user, (x, y) in users.items()},
    }
    path.write_text(json.dumps(content))
    return path


def pixels(count, value):
    return [[value / 255] * 784] * count


def windows(line, size=4):
    """Cuts a line as LEAF cuts Shakespeare: overlapping windows, the next character."""
    starts = range(len(line) - size)
    return [line[i : i + size] for i in starts], [line[i + size] for i in starts]


def test_leafs_own_split_of_images(tmp_path):
    write(tmp_path / "train/0.json", {"w2": (pixels(3, 51), [4, 5, 6])})
    write(tmp_path / "train/1.json", {"w1": (pixels(2, 255), [1, 2])})
    write(tmp_path / "test/0.json", {"w1": (pixels(1, 0), [7])})
    data = load.load(f"leaf:{tmp_path}")
    assert data.x_train.shape == (5, 28, 28, 1)
    assert data.x_train.dtype == np.uint8
    assert data.x_train[:, 0, 0, 0].tolist() == [255, 255, 51, 51, 51]
    assert data.y_train.tolist() == [1, 2, 4, 5, 6]
    assert data.users.tolist() == [0, 0, 1, 1, 1]  # in order of the names
    assert (data.y_test.tolist(), data.num_classes) == ([7], 8)
    assert data.users_test.tolist() == [0]
    assert data.vocabulary is None


def test_one_file_is_split_user_by_user(tmp_path):
    users = {f"w{i}": (pixels(20, i), list(range(20))) for i in range(4)}
    path = write(tmp_path / "all.json", users)
    data = load.load(f"leaf:{path}")
    assert np.bincount(data.users).tolist() == [18] * 4
    assert data.users_test.tolist() == data.x_test[:, 0, 0, 0].tolist()
    assert data.x_test[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for i in range(4):  # each example is on one side
        rows = data.y_train[data.users == i], data.y_test[data.x_test[:, 0, 0, 0] == i]
        assert sorted(np.concatenate(rows)) == list(range(20))
    again = load.load(f"leaf:{tmp_path}", load.Options())
    np.testing.assert_array_equal(again.y_test, data.y_test)
    other = load.load(f"leaf:{path}", load.Options(seed=1))
    assert np.any(other.y_test != data.y_test)
    half = load.load(f"leaf:{path}", load.Options(test_share=0.5))
    assert len(half.y_test) == 40


def test_a_share_splits_what_leaf_had_split_anew(tmp_path):
    write(tmp_path / "train/0.json", {"w": (pixels(6, 1), [0, 1, 2, 3, 4, 5])})
    write(tmp_path / "test/0.json", {"w": (pixels(4, 1), [6, 7, 8, 9])})
    data = load.load(f"leaf:{tmp_path}", load.Options(test_share=0.2))
    assert sorted([*data.y_train, *data.y_test]) == list(range(10))
    assert len(data.y_test) == 2


def test_text_becomes_characters_and_windows_do_not_leak(tmp_path):
    line = "To be, or not to be: that is the question of the day"
    users = {"HAMLET": windows(line), "OPHELIA": windows("Good my lord, ö.")}
    data = load.load(f"leaf:{write(tmp_path / 'a.json', users)}")
    assert data.x_train.shape[1:] == (4,)
    assert data.x_train.dtype == np.uint16
    assert (data.vocabulary, data.num_classes, data.tokenizer) == (81, 81, None)
    letters = np.array(["?", *text.ALPHABET])
    assert "".join(letters[data.x_train[0]]) == "To b"
    assert letters[data.y_train[0]] == "e"
    # The last windows of each are for testing, and share no character with others.
    held = round(0.1 * (len(line) - 4))
    assert "".join(letters[data.x_test[0]]) == line[-held - 4 : -held]
    first = [i for i in range(len(data.users)) if data.users[i] == 0]
    last = line.index("".join(letters[data.x_train[first[-1]]]))
    assert last + 4 == len(line) - 4 - held
    assert 0 in data.x_test  # the character that is none of LEAF's
    short = load.load(
        f"leaf:{tmp_path / 'a.json'}", load.Options(texts=load.Text(max_tokens=3))
    )
    np.testing.assert_array_equal(short.x_train, data.x_train[:, -3:])
    np.testing.assert_array_equal(short.x_test, data.x_test[:, -3:])
    np.testing.assert_array_equal(short.y_train, data.y_train)


def test_the_character_that_comes_next_at_every_position(tmp_path):
    line = "To be, or not to be: that is the question of the day"
    path = write(tmp_path / "a.json", {"HAMLET": windows(line)})
    plain = load.load(f"leaf:{path}")
    options = load.Options(following=True, check=labels.token_ids)
    data = load.load(f"leaf:{path}", options)
    np.testing.assert_array_equal(data.x_train, plain.x_train)
    np.testing.assert_array_equal(data.y_train[:, :-1], plain.x_train[:, 1:])
    np.testing.assert_array_equal(data.y_train[:, -1], plain.y_train)
    assert data.num_classes == 81


def test_features_that_are_no_images_stay(tmp_path):
    rows = [[0.5, -1.0, 2.0]] * 10
    data = load.load(f"leaf:{write(tmp_path / 'a.json', {'u': (rows, [0, 1] * 5)})}")
    assert data.x_train.shape == (9, 3)
    assert data.x_train.dtype == np.float32


def test_femnist_as_the_paper_has_it(tmp_path):
    pytest.importorskip("PIL")
    path = write(tmp_path / "a.json", {"u": (pixels(20, 7), [0, 61] * 10)})
    data = load.load(f"leaf:{path}", load.Options(image_size=32, image_mode="rgb"))
    assert data.x_train.shape == (18, 32, 32, 3)
    assert np.all(data.x_train == 7)
    assert data.num_classes == 62


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"expected JSON, got: .* in .*a\.json"),
        ("[1]", r'expected \{"user_data": .*, got another JSON in .*a\.json'),
        ('{"user_data": {}}', "got another JSON"),
        (
            '{"user_data": {"u": {"x": [[1, 2], [3]], "y": [0, 1]}}}',
            "rows of one length",
        ),
        (
            '{"user_data": {"u": {"x": [[1, 2]]}}}',
            r'"y": \[...\]}, got .* for user .u. of',
        ),
        ('{"user_data": {"u": {"x": [[1, 2]], "y": [0, 1]}}}', "got 1 and 2 for user"),
        ('{"user_data": {"u": {"x": ["ab"], "y": ["cd"]}}}', "a character each, got x"),
        ('{"user_data": {"u": {"x": [[1, 2]], "y": [0.5]}}}', r"y float64\[1\]"),
        (
            '{"user_data": {"u": {"x": [[1, 2]], "y": [0]}}}',
            "enough examples",
        ),
        ('{"user_data": {"u": {"x": [], "y": []}}}', "expected examples, got none"),
        ("[" * 100_000, r"got: it is nested too deep in .*a\.json"),
        ('{"user_data": {"u": {"x": [[1]], "y": [1]}, "u": {}}}', "the key 'u' twice"),
        ('{"user_data": {"u": {"x": [[NaN]], "y": [1]}}}', "got: NaN"),
        ('{"user_data": {"u": {"x": [[1e400]] , "y": [1]}}}', "enough examples"),
        ('{"user_data": {"u": {"x": [[1' + "0" * 400 + ']], "y": [1]}}}', "x object"),
        ('{"user_data": {"u": {"x": ["ab", 5], "y": ["c", "d"]}}}', "x <U"),
        ('{"user_data": {"u": {"x": [[1]], "y": [true]}}}', r"y bool\[1\]"),
        (
            '{"user_data": {"u": {"x": ' + "[" * 99 + "]" * 99 + ', "y": [1]}}}',
            "rows of",
        ),
        *(
            ('{"user_data": {"u": ' + wrong + "}}", "for user 'u' of")
            for wrong in ("5", "null", "[]", '"x"', '{"x": 5, "y": 5}')
        ),
        *(
            ('{"user_data": {"u": {"x": ' + wrong + ', "y": [1]}}}', "for user 'u' of")
            for wrong in ("null", '"a"', "{}", "[null]", "[{}]", "[[null]]", "[true]")
        ),
    ],
)
def test_bad_files(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load.load(f"leaf:{tmp_path}")
    assert str(caught.value).startswith(f"leaf:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_hidden_files_are_passed_over_and_pipes_are_not_waited_for(tmp_path):
    write(tmp_path / "a.json", {"u": ([[0.5, 1.0]] * 10, [0, 1] * 5)})
    (tmp_path / "._a.json").write_bytes(b"\0\5\x16\7")
    assert load.load(f"leaf:{tmp_path}").x_train.shape == (9, 2)
    os.mkfifo(tmp_path / "b.json")
    with pytest.raises(ValueError, match=r"b\.json, but a named pipe; check the path"):
        load.load(f"leaf:{tmp_path}")


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="there is no file /no/such"):
        load.load("leaf:/no/such")
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"expected DIR/train/\*\.json.*with train"):
        load.load(f"leaf:{tmp_path}")
    path = write(tmp_path / "text.json", {"u": windows("a line of a play")})
    with pytest.raises(ValueError, match="expect images, got text"):
        load.load(f"leaf:{path}", load.Options(image_size=32))
