"""Notation: names with arguments become objects, or one line says why not."""

import pytest

from fljax import notation


def scaled(share: float, levels: int = 4):
    if share > 1:
        raise ValueError(f"share: expected at most 1, got {share}")
    return share, levels


TABLE = {"scaled": scaled, "plain": lambda: "plain"}


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("plain", "plain"),
        ("scaled:.5", (0.5, 4)),
        ("scaled:.5:8", (0.5, 8)),
        ("scaled:levels=2:share=.25", (0.25, 2)),
        ("scaled:.5:levels=3", (0.5, 3)),
    ],
)
def test_arguments_go_to_the_parameters(text, made):
    assert notation.make(text, TABLE) == made


def test_arguments_may_come_before_those_of_the_text():
    assert notation.make("scaled:7", TABLE, 0.5) == (0.5, 7)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("scaledd:1", "expected scaled, plain, got 'scaledd'; did you mean 'scaled'?"),
        ("scaled", "expected scaled:SHARE:LEVELS, got 'scaled'"),
        ("plain:3", "expected plain, got 'plain:3'"),
        ("scaled:.5:depth=2", "expected scaled:SHARE:LEVELS, got"),
        ("scaled:.5:share=2", "expected scaled:SHARE:LEVELS, got"),
        ("scaled:.5:4.5", "scaled: levels: expected a whole number"),
        ("scaled:2", "scaled: share: expected at most 1, got 2.0"),
    ],
)
def test_what_is_wrong_is_one_line(text, line):
    with pytest.raises(ValueError, match=line.replace("?", ".")) as error:
        notation.make(text, TABLE)
    assert "\n" not in str(error.value)
