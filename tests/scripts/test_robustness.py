"""The study of robust aggregates: a row for each rule, a column for each share."""

from experiments import robustness, studies, study
from fljax.updates import attacks


def record(index, accuracy, success):
    return {
        "round": index,
        **dict.fromkeys(("upload_bytes", "compute_share", "wall_seconds"), 0.0),
        **dict.fromkeys(("test_loss", "macro_f1", "clock_seconds"), 0.0),
        "participants": 3,
        "test_accuracy": accuracy,
        **({} if success is None else {"attack_success": success}),
    }


def ran(*seeds, success=None):
    """Gives the records of seeds, of which the last of three rounds counts."""
    return [[record(i, a, success) for i, a in enumerate((0.0, 0.0, a))] for a in seeds]


RESULT = {
    "fedavg, nobody": {"mean": ran(0.9, 0.7, success=0.1), "median": ran(0.8, 0.8)},
    "fedavg, alie, 10%": {"mean": ran(0.6, 0.4), "median": ran(0.7, 0.7)},
    "fedavg, backdoor, 30%": {"mean": ran(0.5, 0.5, success=0.75)},
}


def test_every_rule_meets_every_attack_and_share_in_both_algorithms():
    assert len(robustness.CASES) == 2 * (1 + 7 * 3)
    assert studies.STUDIES["robust"].keys() == robustness.SETTINGS.keys()
    for case in robustness.CASES:
        attack = attacks.read(case.fields["attack"])
        assert attack.share == case.share
        assert case.share or attack.target is not None  # its success is measured
    assert {case.attack for case in robustness.CASES} - {""} == attacks.BY_NAME.keys()


def test_the_table_is_of_what_was_run():
    text = robustness.table(study.summarize(RESULT, 3))
    lines = text.splitlines()
    deviation = 0.02**0.5
    late = f"{0.4:.3f} ± {deviation / 2:.3f}"  # mean of the last two evaluations
    assert lines[0] == ("| algorithm | attack | figure | rule | 0% | 10% | 20% | 30% |")
    assert lines[2] == (
        f"| fedavg | alie | accuracy | mean | {late} | "
        f"0.250 ± {deviation / 2:.3f} |  |  |"
    )
    assert lines[3].startswith("| fedavg | alie | accuracy | median | 0.400 ± 0.000 |")
    assert lines[5].startswith("| fedavg | backdoor | accuracy | median | 0.400 ± ")
    success = "| fedavg | backdoor | attack success | mean | 0.100 ± 0.000 |  |  | "
    assert lines[6] == f"{success}0.750 ± 0.000 |"
    assert "cocofl" not in text


def test_the_picture_is_one(tmp_path):
    for result in (RESULT, {"fedavg, nobody": RESULT["fedavg, nobody"]}):
        robustness.picture(result, tmp_path / "shares.png")
        assert (tmp_path / "shares.png").read_bytes()[:4] == b"\x89PNG"
