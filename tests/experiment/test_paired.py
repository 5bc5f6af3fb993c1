"""How far runs are ahead of others of the same seeds."""

import pytest

from fljax.experiment.comparing import paired, text_tables


def run(accuracy, worst=0.0):
    """Makes the records of a run of one round."""
    numbers = ("upload_bytes", "compute_share", "wall_seconds", "clock_seconds")
    return [
        {
            "round": 0,
            **dict.fromkeys(numbers, 0.0),
            **dict.fromkeys(("test_loss", "macro_f1", "tier_spread"), 0.0),
            "test_accuracy": accuracy,
            "worst_tier_accuracy": worst,
        }
    ]


RUNS = {  # seeds differ by .3, variants of a seed by .01 to .03
    "base": [run(0.2), run(0.5), run(0.8)],
    "ahead": [run(0.21, 0.1), run(0.52, 0.1), run(0.83, 0.1)],
    "level": [run(0.23, -0.1), run(0.51, 0.1), run(0.77)],
}


def test_a_difference_is_of_runs_of_one_seed():
    found = paired.differences(RUNS, "base")
    assert list(found) == ["ahead", "level"]
    of = found["ahead"]["late_accuracy"]
    # Of .01, .02, .03: mean .02, deviation .01; t of 2 degrees of freedom is 4.3027.
    assert (of["mean"], of["std"]) == pytest.approx((0.02, 0.01))
    half = 4.3027 * 0.01 / 3**0.5
    assert of["interval_95"] == pytest.approx([0.02 - half, 0.02 + half], rel=1e-4)


def test_what_lies_on_one_side_of_nothing_is_marked():
    titles, ahead, level = paired.rows(paired.differences(RUNS, "base"))
    assert titles[1:] == ["accuracy", "late", "late worst (mix)"]
    assert ahead == ["ahead", *["+0.020 ± 0.025"] * 2, "+0.100 ± 0.000 *"]
    assert level[1] == "+0.003 ± 0.076"
    _, less, _ = paired.rows(paired.differences(RUNS, "ahead"))
    assert less[3] == "-0.100 ± 0.000 *"


def test_one_seed_has_no_interval():
    one = {name: seeds[:1] for name, seeds in RUNS.items()}
    _, ahead, _ = paired.rows(paired.differences(one, "base"))
    assert ahead[1:] == ["+0.010", "+0.010", "+0.100"]


def test_what_cannot_be_subtracted_is_refused():
    with pytest.raises(ValueError, match="expected one of base, ahead, level, got 'l"):
        paired.differences(RUNS, "lever")
    with pytest.raises(ValueError, match="zip"):
        paired.differences({**RUNS, "ahead": RUNS["ahead"][:2]}, "base")


def test_tables_are_laid_out():
    rows = [["a", "bcd"], ["ef", "g"]]
    assert text_tables.aligned(rows) == "a   bcd\nef    g"
    assert text_tables.markdown(rows) == "| a | bcd |\n| --- | --- |\n| ef | g |"
    assert text_tables.markdown([["max|x|"]]).startswith("| max\\|x\\| |\n")
