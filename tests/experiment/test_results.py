"""Results as tables and pictures: the columns, the rows, runs that go on."""

import json
import math

import numpy as np
import pytest

import fljax
from fljax.experiment import results
from fljax.experiment.pictures import overlay, panels
from fljax.runs import writers

pandas = pytest.importorskip("pandas")

RECORDS = [
    {"round": 0, "train_loss": 2.0, "plans": {"0-1": 2}, "upload_bytes": 10},
    {
        "round": 1,
        **{"train_loss": 1.0, "test_loss": 1.5, "test_accuracy": 0.5},
        **{"tier_accuracy": {"weak": 0.25}, "class_accuracy": [0.5, 0.5]},
        "upload_bytes": 30,
    },
]
for _record in RECORDS:
    _record |= {"clock_seconds": 2.0 + _record["round"], "compute_share": 0.5}
    _record["wall_seconds"] = 1.0


def folder(path, records=RECORDS, **config):
    path.mkdir(parents=True)
    config = {"lr": 0.1, "seed": 1, "clock": {"deadline": 0.0}, "mean": [0.5], **config}
    stored = {"config": config, "settings": {**config, "mean": []}}
    (path / "config.json").write_text(json.dumps(stored))
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (path / "metrics.jsonl").write_text(lines)
    return path


def test_a_row_a_round_with_flat_columns(tmp_path):
    folder(tmp_path / "a")
    table = fljax.read(tmp_path / "a")
    assert table["run"].tolist() == ["a", "a"]
    assert table["round"].tolist() == [0, 1]
    assert table["test_accuracy"].isna().tolist() == [True, False]
    assert table["tier_accuracy/weak"].iloc[1] == 0.25
    assert table["plans/0-1"].iloc[0] == 2
    assert table["class_accuracy"].iloc[1] == [0.5, 0.5]
    assert table["config.lr"].tolist() == [0.1, 0.1]
    assert table["config.clock.deadline"].tolist() == [0.0, 0.0]
    assert table["config.mean"].iloc[0] == [0.5]


def test_a_row_a_run(tmp_path):
    folder(tmp_path / "a/seed_1")
    folder(tmp_path / "a/seed_2", [*RECORDS[:1]], seed=2)
    folder(tmp_path / "b", [], lr=0.2)
    table = fljax.read(tmp_path, level="run").set_index("run")
    assert table.index.tolist() == ["a/seed_1", "a/seed_2", "b"]
    assert table["rounds"].tolist() == [2, 1, 0]
    assert table["config.lr"].tolist() == [0.1, 0.1, 0.2]
    done = table.loc["a/seed_1"]
    assert (done["test_accuracy"], done["upload_bytes"]) == (0.5, 40)
    assert (done["wall_seconds"], done["clock_seconds"]) == (2.0, 3.0)
    assert done["tier_accuracy/weak"] == 0.25
    assert math.isnan(table.loc["a/seed_2", "test_accuracy"])  # not evaluated yet


def test_a_run_that_goes_on_is_read(tmp_path):
    path = folder(tmp_path / "a")
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"round": 2, "train_')
    assert fljax.read(path)["round"].tolist() == [0, 1]
    empty = folder(tmp_path / "new", [])
    table = fljax.read(empty)
    assert (len(table), list(table.columns[:2])) == (0, ["run", "round"])
    assert "config.lr" in table


def test_what_is_no_run_is_refused_in_a_line(tmp_path):
    with pytest.raises(ValueError, match="expected a run folder, or some below"):
        fljax.read(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is no run's"):
        fljax.read(tmp_path)
    bad = folder(tmp_path / "bad")
    (bad / "metrics.jsonl").write_text('odd\n{"round": 1}\n')
    with pytest.raises(ValueError, match="line 1: expected a record such as"):
        fljax.read(tmp_path / "bad")
    with pytest.raises(ValueError, match="level: expected round or run, got 'seed'"):
        fljax.read(bad, level="seed")


def test_configurations_of_other_programs_are_passed_over(tmp_path):
    folder(tmp_path / "a")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model": 1}')
    assert set(fljax.read(tmp_path)["run"]) == {"a"}


def test_without_pandas_a_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[analysis\]'"):
        fljax.read(folder(tmp_path / "a"))


def test_a_result_is_the_table_of_its_folder(tmp_path):
    settings = fljax.Config(
        network="logistic", algorithm="fedavg", num_clients=10, rounds=2
    )
    done = fljax.run(settings, tmp_path / "x", tensorboard=False)
    table, kept = done.frame(), fljax.read(tmp_path / "x")
    assert table.drop(columns="run").equals(kept.drop(columns="run"))
    assert done.frame("run")["test_accuracy"].iloc[0] == done.final["test_accuracy"]
    both = fljax.Comparison({"a": {1: done, 2: done}})
    assert both.frame("run")["run"].tolist() == ["a/seed_1", "a/seed_2"]
    labels = _labels(fljax.plot(done, tmp_path / "x", both))
    assert labels == ["fedavg (1 seed)", "x (1 seed)", "a (mean and range of 2 seeds)"]


def _labels(picture):
    (legend,) = picture.legends
    return [text.get_text() for text in legend.get_texts()]


def test_pictures_of_folders(tmp_path):
    for seed in (1, 2):
        folder(tmp_path / f"a/seed_{seed}", seed=seed)
        folder(tmp_path / f"b/seed_{seed}", seed=seed, lr=0.5)
    labels = _labels(fljax.plot(tmp_path, path=tmp_path / "x.svg"))
    assert labels == [f"{name} (mean and range of 2 seeds)" for name in "ab"]
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")
    one = fljax.plot(tmp_path / "a/seed_1")
    assert _labels(one) == ["seed_1"]
    assert _labels(fljax.plot(tmp_path / "a/seed_1", tmp_path / "b/seed_1")) == [
        "seed_1 (1 seed)",
        "seed_1 2 (1 seed)",
    ]
    with pytest.raises(ValueError, match="expected results or run folders"):
        fljax.plot()


def test_runs_are_grouped_by_all_but_their_seeds():
    def run(**settings):
        return {"lr": 0.1, "algorithm": "fedavg", "seed": 1, **settings}

    apart = {"a/seed_1": run(), "a/seed_2": run(seed=2), "b/seed_1": run(lr=0.2)}
    assert overlay.groups(apart) == {
        "a": ["a/seed_1", "a/seed_2"],
        "b/seed_1": ["b/seed_1"],
    }
    together = {
        "1": run(),
        "2": run(seed=2),
        "3": run(lr=0.2),
        "4": run(lr=0.2, seed=2),
    }
    assert overlay.groups(together) == {"lr=0.1": ["1", "2"], "lr=0.2": ["3", "4"]}
    assert overlay.groups({"1": run(), "2": run(seed=2)}) == {"1": ["1", "2"]}
    assert overlay.differing(list(together.values())) == ["lr", "seed"]
    assert overlay.differing([{"a": 1}, {"b": 1}]) == ["a", "b"]


def test_settings_are_those_that_somebody_chose():
    config = {"lr": 0.1, "mean": [0.3], "data_sha256": "x", "clock": {"deadline": 1.0}}
    flat = {"lr": 0.1, "mean": [0.3], "clock.deadline": 1.0}
    assert overlay.settings(writers.Described(config, {})) == flat
    given = {"algorithm": "my.own (given in Python)", "parts.codec": "Mine()"}
    stored = {"algorithm": "cocofl", "lr": 0.1, "mean": []}
    assert overlay.settings(writers.Described(config | given, stored)) == stored | given
    assert [overlay.text(v) for v in (0.1, [1, 2], "a", True, None, [{"a": 1}])] == [
        *("0.1", "1,2", "a", "true", "null", '[{"a": 1}]')
    ]


def test_quantities_of_records():
    quantities = panels.of()
    record = {"round": 3, "test_accuracy": 0.5, "refused": [1, 2], "rollback": {"a": 1}}
    values = {name: quantity.value(record) for name, quantity in quantities.items()}
    assert (values["round"], values["measure"], values["refused"]) == (3, 50, 2)
    assert (values["rollbacks"], values["upload"]) == (1, 0)
    assert math.isnan(values["clock"])
    assert quantities["upload"].label == "total upload (MB)"
    assert (
        results.panels.of(fljax.tasks.named("regression").measure)["measure"].unit == ""
    )


def test_a_total_is_added_up_over_rounds_that_have_none_of_the_other():
    records = [
        {"round": 0, "upload_bytes": 1e6},
        {"round": 1, "upload_bytes": 2e6, "test_accuracy": 0.5},
        {"round": 2},
    ]
    quantities = panels.of()
    made = panels.curve(records, quantities["upload"], quantities["measure"])
    assert [column.tolist() for column in made] == [[1], [3.0], [50.0]]
    silent = [{"round": 0, "test_accuracy": 0.5}]
    none = panels.curve(silent, quantities["upload"], quantities["measure"])
    assert [len(column) for column in none] == [0, 0, 0]


def test_a_band_of_seeds_that_have_come_to_different_rounds():
    def seed(*points):
        rounds, x, y = np.array(points).reshape(-1, 3).T
        return panels.Curve(rounds.astype(int), x, y)

    seeds = [seed((0, 1.0, 10.0), (1, 2.0, 20.0)), seed((0, 3.0, 30.0))]
    strict, live = panels.band(seeds), panels.band(seeds, begun=True)
    assert (strict.x.tolist(), strict.mean.tolist()) == ([2.0], [20.0])
    assert (live.x.tolist(), live.mean.tolist()) == ([2.0, 2.0], [20.0, 20.0])
    assert (live.low.tolist(), live.high.tolist()) == ([10.0, 20.0], [30.0, 20.0])
    assert panels.band([]) is None
    assert panels.band([seed(), seeds[0]]) is None
    long = seed(*((r, r, r) for r in range(1001)))
    thin = panels.band([long, long], begun=True, most=400)
    assert (len(thin.x), thin.x[-1], thin.x[1] - thin.x[0]) == (334, 1000, 3)
