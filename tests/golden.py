"""Holds a change of shape to the bits of another commit, on the same machine.

    python -m tests.golden --against=HEAD~1 [--only=buffer,rollback]

A dozen small runs are made twice, in a checkout of that commit and in this one, and
their networks and records compared, bit for bit, wall clock apart. The runs of a commit
are kept in `--kept`, so that the next comparison with it makes half of them only.
Exit code 1: something differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

import numpy as np
from flax import serialization

ROOT = pathlib.Path(__file__).resolve().parents[1]

_SMALL = "--network=logistic --num_clients=12 --clients_per_round=4 --rounds=5"
_BLOCKS = "--network=small_convnet --num_clients=12 --clients_per_round=4 --rounds=4"
_TOKENS = (
    "--network=char_transformer --dataset=jsonl:{texts} --text.max_tokens=16 "
    "--num_clients=4"
)
_DEVICES = "XLA_FLAGS=--xla_force_host_platform_device_count=8"

# What is run, by name: flags, with variables of the environment before them. Sections
# are spelled `--clock.buffer=2`; `_older` writes them as older commits want them.
RUNS = {
    "cocofl": f"{_BLOCKS} --partition=resource_correlated",
    "fedavg": f"{_SMALL} --algorithm=fedavg --partition=dirichlet --momentum=.9",
    "fedavg_drop": f"{_SMALL} --algorithm=fedavg_drop --local_epochs=2",
    "centralized": f"{_SMALL} --algorithm=centralized --lr_schedule=2,4",
    "adamw": f"{_SMALL} --algorithm=fedavg --client_optimizer=adamw --lr=.01",
    "transformer": "--network=transformer --dataset=jsonl:{texts} --text.max_tokens=12 "
    "--num_clients=4 --clients_per_round=2 --rounds=3 --batch_size=8",
    "mobilenetv2": "--network=mobilenetv2 --batch_size=4 --num_clients=120 "
    "--clients_per_round=2 --rounds=3 --eval_every=3",
    "buffer": f"{_BLOCKS} --clock.buffer=2 --failures.drop=.2 --failures.delayed=.2 "
    "--failures.nonfinite=.1",
    "carry": f"{_BLOCKS} --clock.deadline=.6 --clock.late=carry --changes.drift=.3",
    "norm_bound": f"{_SMALL} --algorithm=fedavg --norm_bound=3 --failures.huge=.3",
    "rollback": f"{_SMALL} --algorithm=fedavg --rollback.drop=.01 --lr=2",
    "adaptive_bits": f"{_BLOCKS} --policy=adaptive_bits --rounds=5",
    "online": f"{_BLOCKS} --policy=online --table_error=.3 --max_windows=5",
    "balanced": f"{_BLOCKS} --policy=balanced --weighting=examples",
    "windows": f"{_BLOCKS} --programs=windows --frozen.rounding=stochastic",
    "reference": f"{_BLOCKS} --frozen.fixed_point=reference --frozen.reference_quirks",
    "width": f"{_BLOCKS} --client_width=4",
    "devices": f"{_DEVICES} {_BLOCKS} --clients_per_round=9",
}

# Sections of a configuration that older commits spell as one flag of pairs, and those
# that they spell as a prefix, or not at all.
_PAIRS = ("clock", "failures", "changes")
_PREFIXES = {"rollback": "rollback_", "frozen": "", "text": ""}

_OF_THE_DAY = ("wall_seconds",)


def _older(flags: list[str]) -> list[str]:
    """Spells sections as commits without them do."""
    pairs: dict[str, list[str]] = {}
    result = []
    for flag in flags:
        name, dot, rest = flag.removeprefix("--").partition(".")
        if dot and name in _PAIRS:
            pairs.setdefault(name, []).append(rest)
        elif dot and name in _PREFIXES:
            result.append(f"--{_PREFIXES[name]}{rest}")
        else:
            result.append(flag)
    return result + [f"--{name}={','.join(given)}" for name, given in pairs.items()]


def _texts(folder: pathlib.Path) -> pathlib.Path:
    """Writes a small data set of texts of two kinds."""
    path = folder / "texts.jsonl"
    words = (("good", "fine", "warm", "bright"), ("bad", "dull", "cold", "dim"))
    random = np.random.default_rng(0)
    with path.open("w") as file:
        for i in range(200):
            text = " ".join(random.choice(words[i % 2], 8))
            split = "train" if i < 160 else "test"
            line = {"text": text, "label": i % 2, "split": split}
            file.write(json.dumps(line) + "\n")
    return path


def _network(folder: pathlib.Path) -> dict[str, str]:
    """Hashes the leaves of the last checkpoint's network, by path."""
    data = max((folder / "checkpoints").glob("round_*.ckpt")).read_bytes()
    (form,) = struct.unpack_from("<I", data, 8)
    (size,) = struct.unpack_from("<Q", data, 20)  # of the payload, which comes last
    origin = 0 if form == 1 else 64  # bytes of the payload that say whose it is
    leaves = serialization.msgpack_restore(data[len(data) - size + origin :])
    return {
        path[path.index(".blocks") :]: hashlib.sha256(
            np.ascontiguousarray(leaf).tobytes()
        ).hexdigest()
        for path, leaf in leaves.items()
        if ".server.blocks" in path and ".memory" not in path
    }


def _records(folder: pathlib.Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in _OF_THE_DAY}
        for line in lines
    ]


def _run(tree: pathlib.Path, name: str, scratch: pathlib.Path, cache: pathlib.Path):
    """Makes a run in a checkout; its folder."""
    words = RUNS[name].format(texts=_texts(scratch)).split()
    variables = dict(word.split("=", 1) for word in words if not word.startswith("-"))
    flags = [word for word in words if word.startswith("-")]
    sections = "clock.buffer" in _help(tree)
    folder = scratch / f"{tree.name}-{name}"
    command = [
        *(sys.executable, "-m", "experiments.train"),
        *(flags if sections else _older(flags)),
        *(f"--workdir={folder}", "--notensorboard", "--checkpoint_every=100"),
        *(f"--compilation_cache={cache}", "--data_cache="),
    ]
    environment = os.environ | variables | {"PYTHONPATH": str(tree)}
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True
    )
    if done.returncode not in (0, 1):  # 1: diverged
        raise SystemExit(f"{name} in {tree}: {done.stderr.strip()[-2000:]}")
    return folder


def _help(tree: pathlib.Path, known: dict = {}) -> str:  # noqa: B006
    if tree not in known:
        command = [sys.executable, "-m", "experiments.train", "--help"]
        environment = os.environ | {"PYTHONPATH": str(tree)}
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True
        )
        known[tree] = done.stdout
    return known[tree]


def result(tree: pathlib.Path, name: str, cache: pathlib.Path) -> dict:
    """Makes a run in a checkout; gives its network's hashes and its records.

    Programs are kept in `cache`: those that did not change are compiled once.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = _run(tree, name, pathlib.Path(scratch), cache)
        return {"network": _network(folder), "records": _records(folder)}


def differences(before: dict, after: dict) -> list[str]:
    """Says in lines what differs between two results of `result`."""
    found = []
    old, new = before["network"], after["network"]
    if lost := old.keys() - new.keys():
        found.append(f"leaves that are gone: {', '.join(sorted(lost)[:4])}")
    if moved := [k for k in old.keys() & new.keys() if old[k] != new[k]]:
        found.append(f"{len(moved)} of {len(old)} leaves differ, such as {moved[0]}")
    if len(before["records"]) != len(after["records"]):
        found.append(f"{len(before['records'])} and {len(after['records'])} records")
    for a, b in zip(before["records"], after["records"], strict=False):
        both = [k for k in a if k in b and json.dumps(a[k]) != json.dumps(b[k])]
        found += [f"round {a['round']}: {k} {a[k]} -> {b[k]}" for k in both]
    fields = [{k for r in x["records"] for k in r} for x in (before, after)]
    if odd := fields[0] ^ fields[1]:
        found.append(f"(fields of one only: {', '.join(sorted(odd))})")
    if more := new.keys() - old.keys():
        found.append(f"(new leaves: {', '.join(sorted(more)[:4])})")
    return found


def _checkout(commit: str, kept: pathlib.Path) -> pathlib.Path:
    """Checks a commit out into a folder of its own."""
    git = ("git", "-C", str(ROOT))
    found = subprocess.run(
        [*git, "rev-parse", commit], check=True, capture_output=True, text=True
    ).stdout.strip()
    tree = kept / found[:12]
    if not tree.exists():
        tree.mkdir(parents=True)
        packed = subprocess.run(
            [*git, "archive", found], check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", str(tree)], check=True, input=packed)
    return tree


def main() -> int:
    """Compares; see above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", default="HEAD", help="commit to compare with")
    parser.add_argument("--only", default=",".join(RUNS), help="runs, comma separated")
    parser.add_argument(
        "--kept", default=str(pathlib.Path(tempfile.gettempdir(), "fljax_golden"))
    )
    given = parser.parse_args()
    kept = pathlib.Path(given.kept)
    tree = _checkout(given.against, kept)
    odd = 0
    for name in given.only.split(","):
        path = kept / f"{tree.name}-{name}.json"
        if not path.exists():
            path.write_text(json.dumps(result(tree, name, kept / "cache")))
        now = result(ROOT, name, kept / "cache")
        found = differences(json.loads(path.read_text()), now)
        real = [line for line in found if not line.startswith("(")]
        odd += bool(real)
        print(f"{name}: {'differs' if real else 'same'}", *found[:6], sep="\n  ")
        sys.stdout.flush()
    print(f"{odd} of {len(given.only.split(','))} differ from {tree.name}")
    return bool(odd)


if __name__ == "__main__":
    sys.exit(main())
