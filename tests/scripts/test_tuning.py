"""The best learning rate of each variant, on seeds of their own."""

import json
import math

import pytest

from experiments import studies, study, tuning
from tests.scripts import test_study

GRID = tuning.Grid((0.1, 0.3), (7, 8), usual=0.1)
VARIANTS = {"a": {"algorithm": "fedavg"}, "b": {"algorithm": "fedprox", "lr": 0.3}}


def score(name, fields, seed):
    """Scores a by its rate, b against it; at .3 the second seed of a diverges."""
    if fields["algorithm"] == "fedavg" and fields["lr"] == 0.3 and seed == 8:
        return math.nan
    return fields["lr"] * (1 if fields["algorithm"] == "fedavg" else -1) + seed


def test_the_best_mean_of_those_that_hold_is_taken():
    names = []

    def noted(name, fields, seed):
        names.append((name, seed))
        return score(name, fields, seed)

    found = tuning.tune(VARIANTS, GRID, noted)
    assert names[:3] == [("a, lr 0.1", 7), ("a, lr 0.1", 8), ("a, lr 0.3", 7)]
    assert found["a"].best == 0.1  # at .3 one diverged
    assert found["a"].scores[0.1] == pytest.approx(7.6)
    assert found["b"].best == 0.1  # -.1 is more than -.3
    assert tuning.tune(VARIANTS, GRID._replace(more=False), score)["b"].best == 0.3


def test_a_variant_has_the_tuned_one_beside_it_where_that_is_another():
    found = tuning.tune(VARIANTS, GRID, score)
    wider = tuning.beside(VARIANTS, found, GRID.usual)
    assert list(wider) == ["a", "b", "b, lr 0.1"]
    assert wider["b, lr 0.1"] == {"algorithm": "fedprox", "lr": 0.1}
    nothing = {name: tuning.Tuning({}, None) for name in VARIANTS}
    assert tuning.beside(VARIANTS, nothing, 0.1) == VARIANTS


def test_the_table_shows_what_diverged():
    lines = tuning.table({"s": tuning.tune(VARIANTS, GRID, score)}, GRID.rates)
    assert lines.splitlines()[2] == "| s | a | 7.600 | diverged | 0.1 |"


def test_a_study_is_tuned_on_other_seeds(call, tmp_path, monkeypatch):
    few = studies.cross({"calm": {}}, {"fedavg": {"algorithm": "fedavg"}})
    monkeypatch.setitem(studies.STUDIES, "imbalance", few)
    flags = (*test_study.SMALL, f"--workdir={tmp_path}", "--lr=0.001")
    done = call(study, *flags, "--rates=0.001,.2", "--tuning_seeds=3")
    assert done.code == 0, done.err
    written = json.loads((tmp_path / "summary.json").read_text())
    assert list(written["settings"]["calm"]) == ["fedavg", "fedavg, lr 0.2"]
    assert (tmp_path / "calm/fedavg__lr_0_2/seed_3/metrics.jsonl").exists()
    assert (tmp_path / "calm/fedavg__lr_0_2/seed_2/metrics.jsonl").exists()
    assert "| 0.2 |" in (tmp_path / "rates.md").read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--rates=0.1,x",), "--rates: expected learning rates such as"),
        (("--rates=-1",), "--rates: expected learning rates such as"),
        (("--rates=.1", "--tuning_seeds=2,9"), "--tuning_seeds: expected none of"),
    ],
)
def test_what_makes_no_sense_is_refused(call, tmp_path, flags, words):
    done = call(study, *test_study.SMALL, f"--workdir={tmp_path}", *flags)
    assert done.code == 2
    assert words in done.err
