"""Reports: how runs are grouped, what the words say, one page without a network."""

import json
import re
from html import parser

import pytest

from experiments import report as command
from fljax.experiment import config
from fljax.experiment.comparing import summary
from fljax.experiment.report import charts, found, page, verdict
from fljax.runs import writers

# Final accuracies by seed.
GOOD, BAD = {1: 0.80, 2: 0.90, 3: 0.85}, {1: 0.60, 2: 0.71, 3: 0.64}


def records(final, rounds=4, upload=1_000_000):
    """Makes records of a run whose accuracy grows evenly."""
    made = []
    for number in range(rounds):
        accuracy = final * (number + 1) / rounds
        record = {
            "round": number,
            "train_loss": 2.0 - accuracy,
            "participants": 3,
            "upload_bytes": upload,
            "download_bytes": upload,
            "compute_share": 0.5,
            "round_seconds": 2.0,
            "clock_seconds": 2.0 * (number + 1),
            "wall_seconds": 0.1,
            "test_accuracy": accuracy,
            "test_loss": 1.5 - accuracy,
            "worst_tier_test_accuracy": accuracy / 2,
            "tier_test_accuracy": {"strong": accuracy, "<weak>": accuracy / 2},
        }
        made.append(record)
    return made


def save(folder, lines, *, settings=None, alerts=(), rounds=4, **fields):
    """Writes a run folder."""
    folder.mkdir(parents=True)
    about = {"seed": 1, "rounds": rounds, "dataset_sha256": "same", **fields}
    content = {
        "run": "r",
        "config": about,
        "environment": {"jax": "0.10.2", "source": "0123456789abcdef"},
    }
    if settings is not None:
        content["settings"] = settings
    (folder / "config.json").write_text(json.dumps(content))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    if alerts:
        text = "".join(json.dumps(line) + "\n" for line in alerts)
        (folder / "alerts.jsonl").write_text(text)
    return folder


@pytest.fixture
def compared(tmp_path):
    """Makes the folder of a comparison: two algorithms, three seeds each."""
    for name, finals, upload in (("good", GOOD, 2_000_000), ("bad", BAD, 1_000_000)):
        for seed, final in finals.items():
            save(
                tmp_path / name / f"seed_{seed}",
                records(final, upload=upload),
                seed=seed,
                algorithm=name,
            )
    return tmp_path


def only(folders):
    (setting,) = found.settings(found.runs(folders))
    return setting


def said(setting):
    figures = summary.summarize(setting.records, measure=setting.measure)
    return verdict.sentences(setting, figures)


def test_runs_that_differ_in_the_seed_are_one_variant(compared):
    setting = only([compared])
    assert setting.name == ""
    seeds = {name: [r.seed for r in runs] for name, runs in setting.variants.items()}
    assert seeds == {"bad": [1, 2, 3], "good": [1, 2, 3]}


def test_seeds_in_folders_of_any_name_are_one_variant(tmp_path):
    for seed in (1, 2):
        save(tmp_path / f"mine_s{seed}", records(0.5), seed=seed, mean=[0.1 * seed])
    assert list(only([tmp_path / "mine_s1", tmp_path / "mine_s2"]).variants) == ["mine"]


def test_the_same_run_twice_is_two_variants(tmp_path):
    for name in ("here", "there"):
        save(tmp_path / name, records(0.5))
    assert list(only([tmp_path]).variants) == ["here", "there"]


def test_folders_above_are_settings_as_in_a_study(tmp_path):
    for above in ("mild", "strong"):
        for name in ("a", "b"):
            where = tmp_path / above / name / "seed_1"
            save(where, records(0.5), algorithm=name, alpha=above)
    made = found.settings(found.runs([tmp_path]))
    assert [(s.name, list(s.variants)) for s in made] == [
        ("mild", ["a", "b"]),
        ("strong", ["a", "b"]),
    ]


def test_the_verdict_follows_from_the_numbers(compared):
    lines = said(only([compared]))
    # Mean .85; deviation .05, t of 2 degrees of freedom 4.303: half .1242.
    assert lines[0] == (
        "good is best: its test accuracy is 85.0 % after 4 rounds, mean of 3 seeds "
        "(95 % interval 72.6 to 97.4)."
    )
    # Differences .2, .19, .21: deviation .01, half .0248.
    assert lines[1] == (
        "bad is 20.0 points lower (95 % interval 17.5 to 22.5), more than chance "
        "explains."
    )
    assert "good's worst tier does best: 42.5 % on its own test examples." in lines
    assert "good sends most, 8 MB; bad 50 % of that." in lines


def test_what_seeds_cannot_tell_is_said(tmp_path):
    for name, finals in (("a", (0.5, 0.9)), ("b", (0.6, 0.7))):
        for seed, final in enumerate(finals):
            where = tmp_path / name / f"seed_{seed}"
            save(where, records(final), seed=seed, algorithm=name)
    # Differences -.1 and .2: mean .05, deviation .2121, half 12.706 * .15.
    assert said(only([tmp_path]))[1] == (
        "b is 5.0 points lower, which these seeds cannot tell from chance (95 % "
        "interval -185.6 to 195.6)."
    )


def test_one_seed_tells_nothing_of_chance(tmp_path):
    for name, final in (("a", 0.5), ("b", 0.4)):
        save(tmp_path / name, records(final), algorithm=name)
    lines = said(only([tmp_path]))
    assert "b is 10.0 points lower with the seed that both have." in lines
    assert "One seed each: nothing tells how much of this is chance." in lines


def test_a_variant_alone_and_what_it_lost(tmp_path):
    lines = records(0.8)
    lines[-1] |= {"test_accuracy": 0.5}
    save(tmp_path / "x", lines)
    first, second, *_ = said(only([tmp_path / "x"]))
    assert first == "x: the test accuracy is 50.0 % after 4 rounds."
    assert second == "With seed 1 it was better after round 2: 60.0 %."


def test_cautions_name_what_is_unlike(tmp_path):
    save(tmp_path / "a", records(0.5), algorithm="a")
    stopped = {**records(0.1)[0], "round": 2, "stopped": "the loss is not finite"}
    save(
        tmp_path / "b",
        [*records(0.4)[:2], stopped],
        algorithm="b",
        rounds=8,
        dataset_sha256="other",
    )
    save(tmp_path / "c", records(0.3)[:1], algorithm="c")
    lines = said(only([tmp_path]))
    assert "b of b ended early: the loss is not finite." in lines
    assert "1 run of 3 is not finished (the shortest has 1 of 4 rounds)." in lines
    assert "They differ in their rounds: 4 (a, c); 8 (b)." in lines
    assert "They did not train and test on the same data." in lines


def test_curves_by_round_upload_and_clock(compared):
    setting = only([compared])
    run = setting.variants["bad"][0]
    by_round, _, by_upload, by_clock, *_ = charts.panels(setting)
    last = {
        p.x: charts.curve(run.records, p)[3] for p in (by_round, by_upload, by_clock)
    }
    assert last == {
        "round": (3, pytest.approx(60)),
        "upload (MB)": (4, pytest.approx(60)),
        "devices' clock (s)": (8, pytest.approx(60)),
    }
    assert [p.title for p in charts.tiers(setting)] == ["strong (%)", "<weak> (%)"]


class _Page(parser.HTMLParser):
    """Collects what a page would load, and checks that its tags close."""

    EMPTY = frozenset(("meta", "line", "path", "use", "br", "rect"))

    def __init__(self, text):
        super().__init__()
        self.links, self.open, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [
            value
            for name, value in attrs
            if name in ("src", "href", "xlink:href") and not value.startswith("#")
        ]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


def test_the_page_holds_all_sections_and_loads_nothing(compared, tmp_path):
    save(
        compared / "ugly",
        records(0.2),
        algorithm="<script>",
        alerts=[{"round": 2, "kind": "rollback", "message": "loss & more"}],
    )
    page.write([compared], tmp_path / "report.html", "python -m experiments.compare")
    text = (tmp_path / "report.html").read_text()
    parsed = _Page(text)
    assert parsed.open == []
    assert parsed.links == []
    assert "script" not in parsed.tags
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", text)
    assert parsed.tags.count("figure") == 8  # 6 panels, as all took part, and 2 tiers
    for words in (
        "good is best",
        "1 x rollback",
        "loss &amp; more",
        "&lt;script&gt;",
        "--algorithm",
        "0123456789ab<",
        "python -m experiments.compare",
    ):
        assert words in text, words
    page.write([compared], tmp_path / "again.html", "python -m experiments.compare")
    assert (tmp_path / "again.html").read_text() == text


def test_nothing_of_a_run_folder_is_code_of_the_page(tmp_path):
    ugly = "<script>$(touch x)</script><img src=x onerror=x>'\""
    lines = records(0.5)
    for line in lines:
        for name in ("tier_accuracy", "tier_test_accuracy"):
            if name in line:
                line[name] = {ugly: 0.5, "weak": 0.25}
        line["plans"] = {ugly: 3}
    alerts = [{"round": 1, "kind": ugly, "message": ugly}]
    folder = ugly.replace("/", "|")
    save(tmp_path / folder, lines, alerts=alerts, algorithm=ugly, **{ugly: ugly})
    save(tmp_path / "plain", records(0.6))
    about = json.loads((tmp_path / folder / "config.json").read_text())
    about["environment"] = {ugly: ugly}
    (tmp_path / folder / "config.json").write_text(json.dumps(about))
    page.write([tmp_path], tmp_path / "report.html", ugly)
    text = (tmp_path / "report.html").read_text()
    parsed = _Page(text)
    assert (parsed.open, parsed.links) == ([], [])
    assert not {"script", "img"} & {*parsed.tags}
    assert text.count("&lt;script&gt;") > 8


def test_commands_repeat_runs_from_their_settings(tmp_path):
    settings = json.loads(
        writers.to_json(
            {
                name: getattr(config.Config(lr=0.25, algorithm="fedavg"), name)
                for name in ("lr",)
            }
        )
    )
    save(tmp_path / "bare", records(0.5), settings=settings)
    page.write([tmp_path], tmp_path / "report.html")
    assert "# no flags say it: " in (tmp_path / "report.html").read_text()


def test_the_command_refuses_what_is_no_run(call, tmp_path):
    for arguments, words in (
        ((), "expected folders of runs"),
        ((tmp_path / "x",), "expected a folder of runs"),
        ((tmp_path,), "expected folders with runs that have finished a round"),
        ((tmp_path, "--out=report.pdf"), "--out: expected a file .html"),
    ):
        done = call(command, *arguments, folders=True)
        assert done.code == 2
        assert words in done.err
        assert done.err.count("\n") == 1


def test_the_command_writes_a_page(call, compared, tmp_path):
    out = tmp_path / "page.html"
    done = call(command, compared, f"--out={out}", folders=True)
    assert (done.code, done.out) == (0, f"wrote {out}\n")
    assert out.read_text().startswith("<!DOCTYPE html>")
