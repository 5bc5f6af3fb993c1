"""Studies: every variant under every setting, their table, that all of them start."""

import json

import pytest

from experiments import studies, study
from fljax.experiment import config as configs
from fljax.experiment.comparing import summary

SMALL = (
    "--network=logistic",
    "--num_clients=12",
    "--clients_per_round=3",
    "--rounds=2",
    "--seeds=1,2",
)
STUDY = studies.cross(
    {"calm": {}, "30% lost, all": {"failures.lost": 0.3, "clock.deadline": 9.0}},
    {"fedavg": {"algorithm": "fedavg"}, "slow": {"algorithm": "fedavg", "lr": 0.01}},
)


def test_a_study_runs_everything_and_goes_on(call, tmp_path, monkeypatch):
    monkeypatch.setitem(studies.STUDIES, "imbalance", STUDY)
    done = call(study, *SMALL, f"--workdir={tmp_path}")
    assert done.code == 0, done.err
    folders = {path.parent.relative_to(tmp_path) for path in
               tmp_path.rglob("config.json")}  # fmt: skip
    assert len(folders) == 2 * 2 * 2
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["seeds"] == [1, 2]
    calm, lossy = (written["settings"][name] for name in STUDY)
    assert calm["fedavg"]["arrived"]["mean"] == 1
    lines = (tmp_path / "table.md").read_text().splitlines()
    shown = 2 + 4 + 1 + len(study._COLUMNS) + 1  # a blank line, the legend
    assert len(lines) == shown
    assert lines[8].startswith("- worst tier (mix): ")
    assert lines[2].startswith("| calm | fedavg | ")
    assert lines[3].startswith("|  | slow | ")
    records = [
        json.loads(line)
        for line in (tmp_path / "30__lost__all/slow/seed_1/metrics.jsonl")
        .read_text()
        .splitlines()
    ]
    shares = [record["participants"] / 3 for record in records]
    assert 0 <= sum(shares) / 2 <= 1
    assert lossy["slow"]["arrived"]["mean"] <= 1
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    again = call(study, *SMALL, f"--workdir={tmp_path}")
    assert (again.code, again.out, again.err) == (0, done.out, "")


def test_some_variants_are_run_and_compared_with_one(call, tmp_path, monkeypatch):
    of = {"algorithm": "fedavg"}
    three = {"fedavg": of, "other": of, "fedavg, slow": {**of, "lr": 0.01}}
    some = studies.cross({"calm": {}, "lossy": {"failures.lost": 0.3}}, three)
    monkeypatch.setitem(studies.STUDIES, "imbalance", some)
    wanted = (*SMALL, '--variants=fedavg,"fedavg, slow"', f"--workdir={tmp_path}")
    done = call(study, *wanted, "--against=fedavg")
    assert done.code == 0, done.err
    written = json.loads((tmp_path / "summary.json").read_text())
    assert list(written["settings"]["calm"]) == ["fedavg", "fedavg, slow"]
    found = written["differences"]["settings"]["lossy"]["fedavg, slow"]
    means = [
        of["late_accuracy"]["mean"] for of in written["settings"]["lossy"].values()
    ]
    assert found["late_accuracy"]["mean"] == pytest.approx(means[1] - means[0])
    lines = (tmp_path / "table.md").read_text().splitlines()
    begin = lines.index(
        "| setting | less the same seed's | accuracy | late | late worst (mix) |"
    )
    assert lines[begin + 2].startswith("| calm | fedavg, slow | ")
    assert lines[begin + 3].startswith("| lossy | fedavg, slow | ")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--variants=fedavg,sloe",), "--variants: expected fedavg, slow, got 'sloe'"),
        (("--against=sloe",), "--against: expected fedavg, slow, got 'sloe'"),
        (("--variants=slow", "--against=fedavg"), "--against: expected slow, got 'fed"),
    ],
)
def test_a_variant_that_there_is_not_is_refused(
    call, tmp_path, monkeypatch, flags, words
):
    monkeypatch.setitem(studies.STUDIES, "imbalance", STUDY)
    done = call(study, *SMALL, f"--workdir={tmp_path}", *flags)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert words in done.err
    assert not list(tmp_path.iterdir())


def test_late_figures_are_means_from_two_thirds_of_the_rounds_on():
    def record(index, accuracy):
        return {
            "round": index,
            **dict.fromkeys(("upload_bytes", "compute_share", "wall_seconds"), 0.0),
            **dict.fromkeys(("test_loss", "macro_f1", "tier_spread"), 0.0),
            "clock_seconds": 0.0,
            "test_accuracy": accuracy,
            "worst_tier_accuracy": accuracy / 2,
        }

    def late(records):
        figures = summary.of_run(records)
        return figures["late_accuracy"], figures["late_worst_tier"]

    run = [record(index, index / 10) for index in range(6)]
    assert late(run) == pytest.approx((0.4, 0.2))  # after 4, 5 and 6 rounds
    assert late(run[:2]) == pytest.approx((0.1, 0.05))  # the last of too few
    run[5]["rollback"] = {"to_round": 4}
    assert late(run) == pytest.approx((0.35, 0.175))


@pytest.mark.parametrize("name", list(studies.STUDIES))
def test_settings_and_variants_are_configurations(name):
    chosen = studies.STUDIES[name]
    base = configs.Config()
    for variants in chosen.values():
        for fields in variants.values():
            configs.check(configs.replace(base, fields))


def test_an_unknown_study_is_refused_in_one_line(call):
    done = call(study, "--study=imbalanced")
    assert done.code == 2
    assert "did you mean 'imbalance'" in done.err
    assert done.err.count("\n") == 1


def test_of_one_seed_there_is_no_spread():
    columns = (("accuracy", "{mean:.2f} ± {std:.2f}", "test_accuracy"),)
    one, two = ({"test_accuracy": summary.over_seeds(v)} for v in ([0.5], [0.5, 0.7]))
    assert one == {"test_accuracy": {"mean": 0.5}}
    assert summary.rows(columns, [one, two])[1:] == [["0.50"], ["0.60 ± 0.14"]]


def test_an_interval_is_students():
    # Of 1, 2, 3: mean 2, deviation 1; t of 2 degrees of freedom is 4.3027.
    figures = summary.over_seeds([1.0, 2.0, 3.0])
    assert figures["std"] == 1
    half = 4.3027 / 3**0.5
    assert figures["interval_95"] == pytest.approx([2 - half, 2 + half], rel=1e-4)
