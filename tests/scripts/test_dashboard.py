"""The live page: what is known of runs, the table, the figures, what is sent anew."""

import json
import shutil
import time

import numpy as np
import pytest

from experiments.dashboard import __main__ as dashboard
from experiments.dashboard import figures, table, watch
from fljax.experiment.pictures import panels
from fljax.runs import status

NOW = time.time()


def record(number, **more):
    fields = {"train_loss": 2.0 - 0.1 * number, "participants": 3, "compute_share": 0.5}
    fields |= {"upload_bytes": 1_000_000, "clock_seconds": 2.0 * number + 2}
    fields |= {"plans": {"0-3": 2, "2-3": 1}, "wall_seconds": 60.0}
    return {"round": number, **fields, **more}


def evaluated(number, accuracy=0.5, **more):
    tiers = {"weak": accuracy - 0.1, "strong": accuracy + 0.1}
    found = {"test_accuracy": accuracy, "test_loss": 1.0, "tier_accuracy": tiers}
    return record(number, **found, worst_tier_accuracy=accuracy - 0.1, **more)


def lines(path, items):
    with open(path, "a") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)


def folder(path, records=(), alerts=(), rounds=4, **config):
    path.mkdir(parents=True)
    config = {"algorithm": "cocofl", "lr": 0.1, "seed": 1, "rounds": rounds, **config}
    (path / "config.json").write_text(
        json.dumps({"config": config, "settings": config})
    )
    lines(path / "metrics.jsonl", records)
    if alerts:
        lines(path / "alerts.jsonl", alerts)
    return path


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Gives two seeds of one setting and a run of another, with alerts."""
    monkeypatch.setattr(watch, "_OFTEN", 0)
    refused = {"round": 1, "kind": "refused", "message": "round 1: refused 3"}
    back = {"to_round": 0, "lowered": "server", "reason": "x", "factor": 0.5}
    folder(tmp_path / "a/seed_1", [record(0), evaluated(1, refused=[3])], [refused] * 2)
    folder(tmp_path / "a/seed_2", [record(0), evaluated(1, 0.7), record(2)], seed=2)
    folder(
        tmp_path / "b",
        [record(0), record(1, rollback=back), evaluated(2, 0.9), evaluated(3, 0.8)],
        lr=0.2,
    )
    return tmp_path


def test_runs_are_known_by_what_their_records_add_up_to(runs):
    found = watch.Watch([runs]).board().runs
    assert list(found) == ["a/seed_1", "a/seed_2", "b"]
    one, two, other = found.values()
    assert [run.status.name for run in found.values()] == ["running"] * 2 + ["finished"]
    assert (one.done, one.rounds, other.done) == (2, 4, 4)
    assert one.last("measure") == 50
    assert one.last("worst") == pytest.approx(40)
    assert two.column("upload").tolist() == [1, 2, 3]  # MB, added up
    assert two.column("clock").tolist() == [2, 4, 6]
    assert one.column("refused").tolist() == [0, 1]
    assert other.column("rollbacks").tolist() == [0, 1, 1, 1]
    np.testing.assert_allclose(other.tiers["weak"], [np.nan, np.nan, 80, 70])
    assert other.plans == {"0-3": 8, "2-3": 4}
    assert one.alerts["refused"] == watch.Alert(2, 1, "round 1: refused 3")


def test_only_growth_is_folded_in_and_vanished_runs_go(runs):
    found = watch.Watch([runs])
    first = found.board()
    assert found.board().revision == first.revision
    lines(runs / "a/seed_1/metrics.jsonl", [evaluated(2, 0.75)])
    with open(runs / "b/metrics.jsonl", "a") as file:
        file.write('{"round": 4, "tra')
    second = found.board()
    assert second.revision > first.revision
    assert first.runs["a/seed_1"].done == 2  # a value: it stays
    assert second.runs["a/seed_1"].last("measure") == 75
    assert second.runs["b"].done == 4
    shutil.rmtree(runs / "a/seed_2")
    (runs / "b/metrics.jsonl").write_text(json.dumps(record(0)) + "\n")  # began anew
    third = found.board()
    assert list(third.runs) == ["a/seed_1", "b"]
    assert third.runs["b"].done == 1
    assert third.runs["b"].last("rollbacks") == 0
    shutil.rmtree(runs)
    assert found.board().runs == {}


def test_more_rounds_and_odd_folders(runs):
    found = watch.Watch([runs])
    found.board()
    path = runs / "b/config.json"
    stored = json.loads(path.read_text())
    stored["config"]["rounds"] = 9
    path.write_text(json.dumps(stored))
    (runs / "c").mkdir()
    (runs / "c/config.json").write_text('{"model": 1}')
    board = found.board()
    assert list(board.runs) == ["a/seed_1", "a/seed_2", "b"]
    assert (board.runs["b"].done, board.runs["b"].rounds) == (4, 9)
    assert found.board().revision == board.revision
    (runs / "c/config.json").write_text('{"config": {"rounds": 1}}')
    assert found.board().runs["c"].status.name == "running"


def test_a_look_that_takes_long_goes_on_with_the_next(runs, monkeypatch):
    monkeypatch.setattr(watch, "_LONG", -1)
    found = watch.Watch([runs])
    first = found.board()
    assert (first.runs, first.waiting) == ({}, 3)
    monkeypatch.setattr(watch, "_LONG", 60)
    found.catch_up()
    assert (len(found.board().runs), found.board().waiting) == (3, 0)
    monkeypatch.setattr(watch, "_LONG", -1)
    lines(runs / "b/metrics.jsonl", [record(4)])
    assert found.board().runs["b"].done == 5  # what is known is kept up with


def test_several_folders_are_named_by_what_tells_them_apart(runs):
    names = watch.Watch([runs / "a/seed_1", runs / "b"]).board().runs
    assert list(names) == ["a/seed_1", "b"]
    assert list(watch.Watch([runs / "b"]).board().runs) == ["b"]


def test_another_tasks_measure_takes_the_place_of_accuracy(tmp_path):
    scored = {"test_loss": 1.0, "perplexity": 7.0, "token_accuracy": 0.25}
    path = tmp_path / "x"
    folder(path, [record(0), record(1, **scored)], task="tokens")
    (run,) = watch.Watch([path]).board().runs.values()
    assert run.measure.key in scored
    assert run.last("measure") == pytest.approx(
        scored[run.measure.key] * (100 if run.measure.share else 1)
    )


def test_the_table_says_what_differs_and_sorts(runs):
    found = watch.Watch([runs]).board().runs
    laid = table.lay_out(found.values())
    assert laid.titles[:4] == ("run", "status", "done", "left")
    assert laid.differing == laid.titles[-2:] == ("lr", "seed")
    assert ("algorithm", "cocofl") in laid.same
    assert [row.name for row in laid.rows] == ["a/seed_1", "a/seed_2", "b"]
    assert laid.rows[0].cells[:2] == ("2 / 4", "2 min")
    assert laid.rows[2].cells == ("4 / 4", "", "80", "70", "4", "8", "0.2", "1")
    by_accuracy = table.lay_out(found.values(), 4, True).rows
    assert [row.name for row in by_accuracy] == ["b", "a/seed_2", "a/seed_1"]
    by_left = table.lay_out(found.values(), 3).rows
    assert [row.name for row in by_left] == ["a/seed_2", "a/seed_1", "b"]
    assert table.lay_out([]).rows == ()


def test_runs_are_filtered_by_any_setting(runs):
    found = watch.Watch([runs]).board().runs
    options = table.choices(found.values())
    labels = [option["label"] for option in options]
    assert labels[:2] == ["status = finished", "status = running"]
    assert labels.index("lr = 0.1") < labels.index("algorithm = cocofl")
    value = {option["label"]: option["value"] for option in options}

    def passed(*names):
        return list(table.chosen(found, [value[name] for name in names]))

    assert passed("lr = 0.2") == ["b"]
    assert passed("seed = 1", "seed = 2") == list(found)
    assert passed("seed = 2", "lr = 0.1", "status = running") == ["a/seed_2"]
    assert passed() == list(found)


def test_seeds_are_one_curve_or_each(runs):
    found = watch.Watch([runs]).board().runs
    assert list(table.grouped(found, True)) == ["a", "b"]
    assert list(table.grouped(found, False)) == list(found)
    assert list(table.grouped(found, True, ["b", "gone"])) == ["b"]
    many = {f"r{i}": found["b"]._replace(name=f"r{i}", begun=i) for i in range(20)}
    newest = table.grouped(many, False)
    assert set(newest) == {f"r{i}" for i in range(8, 20)}


def test_alerts_come_gravest_first_and_once_a_kind(runs):
    found = watch.Watch([runs]).board().runs
    stalled = status.Status("stalled", why="no record for 3 minutes")
    found = {**found, "b": found["b"]._replace(status=stalled)}
    assert table.alerts(found.values()) == [
        table.Line("stalled", "b", 1, "no record for 3 minutes"),
        table.Line("refused", "a/seed_1", 2, "round 1: refused 3"),
    ]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3.4, "3 s"), (100, "2 min"), (3700, "1 h 02 min"), (100_000, "1 d 3 h")],
)
def test_spans_are_said(seconds, said):
    assert table.span(seconds) == said


def page_of(found, axis="round", dark=False):
    groups = table.grouped(found, True)
    looks = figures.looks(list(groups), dark)
    return figures.Page(groups, looks, axis, figures.DARK if dark else figures.LIGHT)


def lines_of(figure):
    return {
        trace["name"]: list(zip(trace["x"], trace["y"], strict=True))
        for trace in figure["data"]
        if trace.get("name") and trace["x"] != [None]
    }


def test_figures_have_means_bands_and_either_axis(runs):
    found = watch.Watch([runs]).board().runs
    drawn = figures.draw(page_of(found))
    assert set(drawn) == set(figures.NAMES)
    accuracy = drawn["measure"]
    assert lines_of(accuracy) == {"a": [(1, 60)], "b": [(2, 90), (3, 80)]}
    low, high = accuracy["data"][:2]
    assert (low["y"], high["y"], high["fill"]) == ([50], [70], "tonexty")
    assert accuracy["layout"]["title"]["text"] == "test accuracy (%)"
    assert lines_of(drawn["upload"])["b"] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert lines_of(drawn["refused"])["a"] == [(0, 0), (1, 0.5), (2, 0)]
    assert lines_of(drawn["rollbacks"])["b"] == [(0, 0), (1, 1), (2, 1), (3, 1)]
    assert drawn["joules"] is None  # nobody's power is known
    assert lines_of(drawn["tiers"])["b, weak"] == [(2, 80), (3, 70)]
    bars = {trace["name"]: trace for trace in drawn["plans"]["data"]}
    assert bars["b"]["x"] == ["0-3", "2-3"]
    assert bars["b"]["y"] == [66.667, 33.333]
    assert drawn["by_tier"] is None  # these records do not tell
    in_time = figures.draw(page_of(found, "clock"))
    assert lines_of(in_time["measure"])["b"] == [(6, 90), (8, 80)]
    assert in_time["clock"] is None
    assert json.dumps(drawn)  # plain data


def test_names_of_folders_are_text_and_nothing_else(tmp_path):
    ugly = "<a href=x>{y}%{x}"
    ugly_too = {"tier_accuracy": {ugly: 0.5}, "plans": {ugly: 1}, "tiers": {ugly: 1}}
    folder(tmp_path / ugly, [evaluated(0) | ugly_too])
    folder(tmp_path / "b", [evaluated(0)])
    found = watch.Watch([tmp_path]).board().runs
    assert figures.said(ugly) == "&lt;a href=x&gt;&#123;y}%&#123;x}"
    count = 0
    for figure in filter(None, figures.draw(page_of(found)).values()):
        for trace in figure["data"]:
            named = [trace["name"]] if trace.get("showlegend") else []
            for text in (trace.get("hovertemplate", ""), *named, *map(str, trace["x"])):
                count += "&lt;a" in text
                assert "<a" not in text
                assert "%{x}%" not in text
                assert "{y}" not in text
    assert count


def test_nothing_to_draw():
    assert set(figures.draw(page_of({})).values()) == {None}


def test_runs_of_other_tasks_are_not_drawn_into_the_same_panel(runs):
    found = watch.Watch([runs]).board().runs
    other = found["b"]._replace(measure=panels.tasks.named("regression").measure)
    drawn = figures.draw(page_of({**found, "b": other}))
    assert set(lines_of(drawn["measure"])) == {"a"}
    assert set(lines_of(drawn["train_loss"])) == {"a", "b"}


def test_curves_are_told_apart():
    names = [f"r{i}" for i in range(figures.MOST)]
    looks = figures.looks(names, dark=True)
    assert len(set(looks.values())) == figures.MOST
    assert "#000000" not in {look.color for look in looks.values()}
    assert figures.faint("#0072B2") == "rgba(0,114,178,0.2)"
    assert sorted(["10-11", "2-7", "2-3", "full"], key=figures._order) == [
        *("2-3", "2-7", "10-11", "full")
    ]


ASKED = {
    **{"tick": 0, "dark": False, "filters": [], "names": [], "axis": "round"},
    **{"seeds": "band", "order": [0, False], "shown": {}},
}


def test_what_has_not_changed_is_not_sent_again(runs, monkeypatch):
    # A run from which nothing comes for long is another: the clock stands still.
    now = time.time()
    monkeypatch.setattr(watch.time, "time", lambda: now)
    dash = pytest.importorskip("dash")
    from experiments.dashboard import page

    found = watch.Watch([runs])
    first = page.refreshed(found.board(), ASKED, "runs")
    assert not any(part is dash.no_update for part in first.values())
    seen = ASKED | {"shown": first["shown"]}
    again = page.refreshed(found.board(), seen, "runs")
    flat = [*again.pop("figures"), *again.pop("panels"), *again.values()]
    assert all(part is dash.no_update for part in flat)
    lines(runs / "a/seed_1/metrics.jsonl", [evaluated(2, 0.75)])
    grown = page.refreshed(found.board(), seen, "runs")
    assert grown["body"] is not dash.no_update
    assert grown["figures"][0] is not dash.no_update
    assert grown["head"] is grown["filters"] is dash.no_update
    dark = page.refreshed(found.board(), seen | {"dark": True}, "runs")
    assert dark["figures"][0]["layout"]["font"]["color"] == figures.DARK.text
    none = page.refreshed(watch.Watch([runs / "b/none"]).board(), ASKED, "runs/none")
    assert "no run folder below runs/none yet" in str(none["summary"])


def test_bad_input_is_one_line(call, runs):
    pytest.importorskip("dash")
    done = call(dashboard, runs / "none", folders=True)
    assert (done.code, done.out) == (2, "")
    expected = f"expected a folder with runs below it, got {runs / 'none'}"
    assert done.err == f"error: {expected}\n"
    server = dashboard.serve([runs], 0, 2.0)
    try:
        port = server.server_port
        done = call(dashboard, runs, f"--port={port}", folders=True)
        assert done.code == 2
        assert done.err.startswith(f"error: --port: expected a free one, got {port} (")
    finally:
        server.server_close()
    done = call(dashboard, runs, "--refresh=0", folders=True)
    assert done.err.startswith("error: flag --refresh=0: expected a number ")


def test_it_is_served_to_this_machine_alone(runs):
    pytest.importorskip("dash")
    server = dashboard.serve([runs], 0, 2.0)
    try:
        assert server.server_address[0] == "127.0.0.1"
        client = server.app.test_client()
        text = client.get("/").text
        assert "fljax runs" in text
        assert "https://" not in text
    finally:
        server.server_close()
