"""Curves: the numbers drawn, the styles, and the cases with little to draw."""

import json
import struct

import numpy as np
import pytest

from experiments import plot
from fljax.experiment.pictures import panels, plots, styles


def _records(accuracies, upload=1_000_000, tier=None):
    """Evaluate every second round; the rounds between only upload."""
    records = []
    for number, accuracy in enumerate(accuracies):
        records.append({"round": 2 * number, "upload_bytes": upload})
        seconds = 2 * number + 2
        evaluation = {"test_accuracy": accuracy, "worst_tier_accuracy": tier}
        record = {"round": 2 * number + 1, "upload_bytes": upload}
        record["clock_seconds"] = seconds
        records.append(record | evaluation)
    return records


@pytest.fixture
def page(monkeypatch):
    """Keep the picture that `curves` makes."""
    pages = []
    make = plots.Picture

    def keep(*arguments, **options):
        pages.append(make(*arguments, **options))
        return pages[-1]

    monkeypatch.setattr(plots, "Picture", keep)
    return lambda: pages[-1]


def test_lines_are_means_and_bands_reach_from_lowest_to_highest(tmp_path, page):
    seeds = [_records([0.25, 0.5, 0.9], tier=0.1), _records([0.75, 1.0], tier=0.3)]
    plots.curves({"cocofl": seeds}, tmp_path / "curves.png")
    by_round, worst, by_upload, by_clock = page().axes
    # The second seed has no third evaluation, so the third point is left out.
    np.testing.assert_allclose(by_round.lines[0].get_xydata(), [[1, 50], [3, 75]])
    np.testing.assert_allclose(worst.lines[0].get_xydata(), [[1, 20], [3, 20]])
    np.testing.assert_allclose(by_upload.lines[0].get_xydata(), [[2, 50], [4, 75]])
    np.testing.assert_allclose(by_clock.lines[0].get_xydata(), [[2, 50], [4, 75]])
    (band,) = by_round.collections
    corners = band.get_paths()[0].vertices
    assert corners.min(0).tolist() == [1, 25]
    assert corners.max(0).tolist() == [3, 100]
    assert by_round.get_xlabel() == "round"
    assert by_upload.get_xlabel() == "total upload (MB)"
    (legend,) = page().legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "cocofl (mean and range of 2 seeds)"
    ]


def test_the_png_is_1200_pixels_wide(tmp_path):
    plots.curves({"fedavg": [_records([0.5])]}, tmp_path / "curves.png")
    data = (tmp_path / "curves.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", data[16:20]) == (1200,)


def test_centralized_is_left_out_of_the_upload_panel(tmp_path, page):
    runs = {"centralized": [_records([0.5], 0)], "fedavg": [_records([0.4])]}
    plots.curves(runs, tmp_path / "curves.png")
    assert [len(panel.lines) for panel in page().axes] == [2, 0, 1, 2]
    assert page().axes[1].texts[0].get_text() == "not recorded"


@pytest.mark.parametrize(
    "runs", [{}, {"a": []}, {"a": [[]]}, {"a": [[{"round": 0}], _records([0.1])]}]
)
def test_little_or_nothing_to_draw(tmp_path, runs):
    plots.curves(runs, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(
    ("record", "worst"),
    [
        ({"worst_tier_accuracy": 0.2, "tier_accuracy": {"weak": 0.1}}, 0.2),
        ({"tier_accuracy": {"weak": 0.1, "medium": None, "strong": 0.4}}, 0.1),
        ({"worst_tier_accuracy": None, "tier_accuracy": {}}, None),
        ({"tier_accuracy": None}, None),
        ({}, None),
    ],
)
def test_worst_tier_of_a_record(record, worst):
    assert panels._worst_tier(record) == worst


def test_an_algorithm_keeps_its_style_whoever_else_is_there():
    alone = styles.of(["fedavg"])["fedavg"]
    among = styles.of(["mine", "FedAvg", "cocofl", "his"])
    assert among["FedAvg"] == alone
    assert len(set(among.values())) == 4
    assert len(styles.of(map(str, range(20)))) == 20


def test_styles_differ_in_grey():
    """Take any two lines: another line style or another marker tells them apart."""
    assert len({(style.line, style.marker) for style in styles.STYLES}) == 8


RUN = [
    {"round": 0, "train_loss": 2.0},
    {"round": 1, "train_loss": 1.0, "test_accuracy": 0.25, "test_loss": 1.5},
    {"round": 2, "train_loss": None, "test_accuracy": 0.5, "test_loss": 1.25},
]
for _record in RUN:
    _record["clock_seconds"] = 10.0 * _record["round"] + 3


def _xy(line):
    return line.get_xydata().tolist()


def test_histories_share_panels(tmp_path, page):
    plots.histories({"a": RUN, "b": RUN[:1]}, tmp_path / "x.png", majority=[0.1])
    accuracy, loss, in_time = page().axes
    assert _xy(accuracy.lines[0]) == [[1, 25], [2, 50]]
    assert _xy(in_time.lines[0]) == [[13, 25], [23, 50]]
    assert {tuple(line.get_ydata()) for line in accuracy.lines[1:]} == {(10, 10)}
    assert [_xy(line) for line in loss.lines] == [
        [[1, 1.5], [2, 1.25]],
        [[0, 2], [1, 1]],
        [[0, 2]],
    ]
    (legend,) = page().legends
    assert [text.get_text() for text in legend.get_texts()] == ["a"]


def test_histories_stand_apart(tmp_path, page):
    runs = {"a": RUN, "b": RUN[:2]}
    plots.histories(runs, tmp_path / "x.png", apart=True, majority=[0.1, 0.5])
    a, b, a_loss, b_loss, *_ = page().axes
    assert [panel.get_title() for panel in (a, b)] == ["a", "b"]
    assert _xy(b.lines[0]) == [[1, 25]]
    assert [list(panel.lines[-1].get_ydata()) for panel in (a, b)] == [
        [10, 10],
        [50, 50],
    ]
    assert [len(panel.lines) for panel in (a_loss, b_loss)] == [2, 2]
    assert page().legends == []


def _folders(tmp_path):
    folders = []
    for name, records in (("a/seed_1", RUN), ("b/seed_1", RUN[:2])):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "metrics.jsonl").write_text(lines)
        folders.append(folder)
    return folders


def test_the_command_names_runs_by_what_tells_them_apart(call, tmp_path, page):
    out = tmp_path / "out.png"
    folders = _folders(tmp_path)
    done = call(
        plot, *folders, folders[0], f"--out={out}", "--majority=0.5", folders=True
    )
    assert (done.code, done.out, done.err) == (0, f"wrote {out}\n", "")
    assert out.read_bytes()[:4] == b"\x89PNG"
    (legend,) = page().legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["a/seed_1", "b/seed_1"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["{}"], "expected a run folder with records in metrics.jsonl, got {}"),
        (
            ["{}/odd"],
            "{}/odd/metrics.jsonl: line 1: expected a record such as "
            '{{"round": 2}}, got \'{{"round": "2"}}\'',
        ),
        ([], "expected folders of runs, such as runs/x, got none"),
        (
            ["{}/a/seed_1", "--majority=12"],
            "--majority: expected numbers from 0 to 1 such as 0.1,0.5, got '12'",
        ),
        (
            ["{}/a/seed_1", "{}/b/seed_1", "--majority=0.1,0.2,0.3"],
            "--majority: expected one number, or 2, one for each run, got 3",
        ),
        (
            ["{}/a/seed_1", "--out={}/none/x.png"],
            "--out: expected a file .png, .pdf, .svg in a folder that is there, got "
            "'{}/none/x.png'",
        ),
        (
            ["{}/a/seed_1", "--out={}/x.xyz"],
            "--out: expected a file .png, .pdf, .svg in a folder that is there, got "
            "'{}/x.xyz'",
        ),
    ],
)
def test_bad_input_is_one_line(call, tmp_path, arguments, error):
    _folders(tmp_path)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "metrics.jsonl").write_text('{"round": "2"}\n{"round": 3}\n')
    given = [argument.format(tmp_path) for argument in arguments]
    done = call(plot, *given, folders=True)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: {error.format(tmp_path)}\n"


def test_no_two_of_many_curves_look_the_same():
    names = ["cocofl", "fedavg", *(f"variant {i}" for i in range(40))]
    found = styles.of(names)
    assert len(set(found.values())) == len(names)
    assert found["cocofl"] == styles.STYLES[0]
