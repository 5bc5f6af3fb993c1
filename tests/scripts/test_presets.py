"""Every preset says what it is for, is accepted, and starts."""

import json
import pathlib
import re

import numpy as np
import pytest
from absl import flags

from experiments import compare, main, studies, study, train
from experiments import flags as config_flags
from fljax.experiment import config

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "presets"
PRESETS = sorted(path.stem for path in FOLDER.glob("*.flags"))
MODULES = {"train": train, "compare": compare, "study": study}
TINY = (
    "--rounds=2",
    "--num_clients=4",
    "--clients_per_round=2",
    "--batch_size=2",
    "--eval_batch_size=4",
    "--eval_every=2",
    "--test_share=0",
    "--tiers=all:1:1:1:1",
)
TINY_STUDY = {"calm": {"random": {"policy": "random_maximal"}}}
MORE = {
    train: (),
    compare: ("--algorithms=cocofl", "--seeds=1"),
    study: ("--seeds=1", "--study=bits", "--rates="),
}


def head(name):
    """Reads the comment at the top of a preset."""
    lines = (FOLDER / f"{name}.flags").read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def test_there_are_presets_of_every_network_of_the_paper():
    networks = {
        line.removeprefix("--network=")
        for name in PRESETS
        for line in (FOLDER / f"{name}.flags").read_text().splitlines()
        if line.startswith("--network=")
    }
    assert networks >= {
        "mobilenetv2",
        "mobilenetv2_gn",
        "mobilenetv2_large",
        "resnet18",
        "resnet50",
        "densenet40",
        "transformer",
        "char_transformer",
    }


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_what_they_are_for_and_are_accepted(name):
    comment = head(name)
    command = re.search(
        r"Command: python -m experiments\.(\w+) --flagfile=(\S+)", comment
    )
    assert command[1] in MODULES
    assert command[2] == f"experiments/presets/{name}.flags"
    assert "\n# Time: " in comment
    assert "\n# Result: " in comment
    flags.FLAGS.unparse_flags()
    main._parse(["preset", f"--flagfile={FOLDER / name}.flags"])
    assert config_flags.from_flags(flags.FLAGS) != config.Config()
    flags.FLAGS.unparse_flags()


def _data(name, folder):
    """Makes a tiny data set of the kind that the preset is for."""
    generator = np.random.default_rng(0)
    if name.startswith("demo"):
        return ()
    if name.startswith("shakespeare"):
        line = "What light through yonder window breaks? It is the east, " * 8
        x, y = [line[i : i + 80] for i in range(300)], list(line[80:380])
        users = {f"ROLE {i}": {"x": x, "y": y} for i in range(4)}
        (folder / "play.json").write_text(json.dumps({"user_data": users}))
        return (f"--dataset=leaf:{folder / 'play.json'}",)
    if name.startswith("imdb"):
        pytest.importorskip("tokenizers")
        rows = [
            {"text": f"some words {i}", "label": i % 2, "split": split}
            for i in range(8)
            for split in ("train", "test")
        ]
        path = folder / "texts.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return (f"--dataset=jsonl:{path}", "--text.max_tokens=8")
    shape = (28, 28, 1) if "fashion" in name else (32, 32, 3)
    arrays = {
        f"x_{part}": generator.integers(0, 255, (size, *shape)).astype(np.uint8)
        for part, size in (("train", 16), ("test", 4))
    }
    arrays |= {"y_train": np.arange(16) % 2, "y_test": np.arange(4) % 2}
    arrays |= {"users": np.arange(16) // 4}
    np.savez(folder / "data.npz", **arrays)
    return (f"--dataset=npz:{folder / 'data.npz'}", "--image_size=0")


@pytest.mark.long
@pytest.mark.parametrize("name", PRESETS)
def test_presets_start(name, call, tmp_path, monkeypatch):
    monkeypatch.setitem(studies.STUDIES, "bits", TINY_STUDY)
    module = MODULES[re.search(r"experiments\.(\w+) ", head(name))[1]]
    run = tmp_path / "run"
    done = call(
        module,
        f"--flagfile={FOLDER / name}.flags",
        *TINY,
        *MORE[module],
        *_data(name, tmp_path),
        f"--workdir={run}",
        "--data_cache=",
    )
    assert done.code == 0, done.err
    (metrics,) = run.rglob("metrics.jsonl")
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert len(records) == 2
    assert np.isfinite(records[-1]["train_loss"])
    assert 0 <= records[-1]["test_accuracy"] <= 1
