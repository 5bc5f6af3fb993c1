"""Measures on an accelerator what docs/performance.md leaves open, within a limit.

    python -m experiments.accelerator --table=MobileNet.json --figures=figures

Every item is a process of its own. Several compile at a time; as soon as one is ready,
the others are stopped while it is timed, and its rows are printed. Whoever ends this
early loses no row that was printed, nor what lies in --figures. `--before=FOLDER` times
CoCoFL of another checkout beside this one's.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments import define, main

_TABLE = flags.DEFINE_string(
    "table", "", "The published cost table of MobileNetV2; empty: a model of it."
)
_SECONDS = define.number("seconds", 480.0, "When to end.", least=1, most=1e5)
_FIGURES = flags.DEFINE_string("figures", "", "Folder for figures, logs and the table.")
_AT_ONCE = define.number("at_once", 4, "Items that compile at a time.", least=1)
_BEFORE = flags.DEFINE_string(
    "before", "", "Another checkout, whose CoCoFL is timed beside; empty: none."
)
_ITEMS = flags.DEFINE_list("items", [], "Names of those to measure; empty: all.")
_TINY = define.boolean(
    "tiny", False, "Few rounds of few examples, to try this out without a device."
)

_ROUNDS = 1000  # of the main experiment
_LEAST = 20.0  # seconds left below which nothing new begins


class Item(NamedTuple):
    """Something to measure.

    Attributes:
      name: of its rows and files.
      command: arguments of Python.
      limit: seconds that it may be timed, once it has its turn.
      beside: name of the item that its rounds are compared with.
      folder: that it runs in; empty: this checkout.
      waits: whether it compiles before its turn, as the bench does.
    """

    name: str
    command: tuple[str, ...]
    limit: float = 60.0
    beside: str = ""
    folder: str = ""
    waits: bool = True


class _Running(NamedTuple):
    """An item's process, and the files that it reads and writes.

    Attributes:
      item: which it is.
      process: first of a group of its own.
      figures: JSON of the bench.
      log: of what it prints.
      turn: file that it waits for.
    """

    item: Item
    process: subprocess.Popen
    figures: pathlib.Path
    log: pathlib.Path
    turn: pathlib.Path

    def signal(self, number: signal.Signals) -> None:
        """Signals to the whole group, if it is there."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    @property
    def ready(self) -> bool:
        """Tells whether the item waits for its turn."""
        return pathlib.Path(f"{self.turn}.ready").exists()


def _bench(workload: str, *more: str, repeats: int = 20) -> tuple[str, ...]:
    """Makes the command of a bench."""
    tiny = ("--examples=32",) if _TINY.value else ()
    number = f"--repeats={1 if _TINY.value else repeats}"
    head = ("-m", "experiments.bench", f"--workload={workload}", number)
    return head + tiny + more


def _cocofl(*more: str, clients: str = "", repeats: int = 20) -> tuple[str, ...]:
    table = _TABLE.value and pathlib.Path(_TABLE.value).resolve()
    costs = (f"--cost_table={table}",) if table else ()
    return _bench(f"mobilenetv2_cocofl{clients}", *costs, *more, repeats=repeats)


def items(scratch: pathlib.Path) -> list[Item]:
    """Lists what to measure, the most valuable first.

    Args:
      scratch: folder for profiles and for data of the dry runs.

    Returns:
      The items.
    """
    half = "--precision=bfloat16"

    def trace(name: str) -> str:
        return f"--trace={scratch / name}"

    before = _BEFORE.value and str(pathlib.Path(_BEFORE.value).resolve())
    wide = "--client_width=5"
    main_split = ("--partition=resource_correlated", "--alpha=0.1")
    made = [
        Item("cocofl_bf16", _cocofl(half, trace("cocofl")), beside="fedavg_bf16"),
        Item("fedavg_bf16", _bench("mobilenetv2", half)),
        Item("before_bf16", _cocofl(half), beside="fedavg_bf16", folder=before),
        Item("cocofl_5_wide_bf16", _cocofl(half, wide), beside="fedavg_bf16"),
        Item("main_bf16", _cocofl(half, *main_split), beside="cocofl_bf16"),
        Item("cocofl_f32", _cocofl(), beside="fedavg_f32"),
        Item("fedavg_f32", _bench("mobilenetv2")),
        Item("fedavg_5_wide_bf16", _bench("mobilenetv2", half, wide)),
        Item(
            "small",
            _bench("small_cnn,logistic,femnist_cnn", trace("small")),
            limit=90,
        ),
        Item(
            "cocofl_float_bf16",
            _cocofl(half, "--frozen.fixed_point=none"),
            beside="cocofl_bf16",
        ),
        Item(
            "cocofl_codes_as_bf16",
            _cocofl(half, "--frozen.products=bfloat16"),
            beside="cocofl_bf16",
        ),
        Item("cohort", _bench("cohort", "--longest=2", repeats=5), limit=90),
        Item("windows", _bench("windows", repeats=5), limit=90),
        Item(
            "uneven_bf16",
            _cocofl(half, "--partition=dirichlet", "--alpha=1"),
            beside="cocofl_bf16",
        ),
        Item(
            "cocofl_windows_bf16",
            _cocofl(half, "--programs=windows", repeats=2),
            beside="cocofl_bf16",
        ),
        Item(
            "100_clients_16_wide_bf16",
            _cocofl(half, "--client_width=16", clients="_100", repeats=5),
            beside="before_100_clients_bf16",
        ),
        Item(
            "100_clients_shared_draws_bf16",
            _cocofl(
                *(half, "--client_width=16", "--policy=random_shared"),
                clients="_100",
                repeats=5,
            ),
            beside="100_clients_16_wide_bf16",
        ),
        Item(
            "before_100_clients_bf16",
            _cocofl(half, clients="_100", repeats=5),
            folder=before,
        ),
        *_dry_runs(scratch),
    ]
    asked = [item for item in made if before or not item.name.startswith("before")]
    return [i for i in asked if i.name in _ITEMS.value] if _ITEMS.value else asked


_DRY_RUNS = {
    "shakespeare_char_transformer": "leaf:shakespeare.json",
    "femnist_densenet40": "npz:femnist.npz",
    "imdb_transformer": "jsonl:imdb.jsonl",
}


def _dry_runs(scratch: pathlib.Path) -> Iterator[Item]:
    """Lists dry runs of the presets, each with one program and with one a window."""
    for preset, source in _DRY_RUNS.items():
        kind, _, file = source.partition(":")
        for programs in ("one", "windows"):
            command = (
                *("-m", "experiments.train", "--dry_run"),
                f"--flagfile=experiments/presets/{preset}.flags",
                f"--dataset={kind}:{scratch / file}",
                f"--programs={programs}",
                *("--rounds=50", "--workdir="),
                "--num_clients=100",
            )
            yield Item(f"{preset}_{programs}", command, limit=150, waits=False)


def write_data(scratch: pathlib.Path) -> None:
    """Writes random data in the forms of the presets' data sets.

    Args:
      scratch: the folder.
    """
    generator, clients, each = np.random.default_rng(0), 100, 256
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz "))

    def text(length: int) -> str:
        return "".join(generator.choice(letters, length))

    users = {}
    for number in range(clients):
        line = text(80 + each)
        rows = [line[i : i + 80] for i in range(each)]
        users[f"u{number}"] = {"x": rows, "y": list(line[80:])}
    leaf = {"users": list(users), "user_data": users}
    (scratch / "shakespeare.json").write_text(json.dumps(leaf))
    size = clients * each
    x = generator.integers(0, 256, (size, 28, 28), np.uint8)
    y = np.arange(size) % 62
    owners = np.repeat(np.arange(clients), each)
    np.savez(
        scratch / "femnist.npz",
        x_train=x,
        y_train=y,
        x_test=x[:992],
        y_test=y[:992],
        users=owners,
    )
    words = np.array([text(6).replace(" ", "q") for _ in range(4000)])
    with open(scratch / "imdb.jsonl", "w") as file:
        for number in range(40 * clients):
            said = " ".join(generator.choice(words, 200))
            file.write(json.dumps({"text": said, "label": number % 2}) + "\n")


def _start(item: Item, out: pathlib.Path, scratch: pathlib.Path) -> _Running:
    figures, log = out / f"{item.name}.json", scratch / f"{item.name}.log"
    turn = scratch / f"{item.name}.turn"
    command = list(item.command)
    if item.waits:
        command += [f"--json={figures}", f"--turn={turn}"]
    cache = str(scratch / "programs")
    # Processes share the device: none may take most of its memory at once.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONUNBUFFERED": "1"}
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, *command, f"--compilation_cache={cache}"],
            cwd=item.folder or None,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    return _Running(item, process, figures, log, turn)


def _play(waiting: list[Item], out: pathlib.Path, scratch: pathlib.Path, end: float):
    """Runs the items; yields each with whether it ended as it should."""
    running: list[_Running] = []
    waiting = list(waiting)
    try:
        while (waiting or running) and time.monotonic() < end:
            room = end - time.monotonic() > _LEAST
            while waiting and room and len(running) < _AT_ONCE.value:
                if not waiting[0].waits and running:  # it is timed from the start
                    break
                running.append(_start(waiting.pop(0), out, scratch))
            if not running:
                return
            chosen = next((one for one in running if _due(one)), None)
            if chosen is None:
                time.sleep(0.05)
                continue
            running.remove(chosen)
            yield chosen, _timed(chosen, running, end)
    finally:
        for one in running:
            one.signal(signal.SIGKILL)
            one.process.wait()
    for one in running:
        yield one, False


def _due(one: _Running) -> bool:
    """Tells whether an item waits for its turn, or is through."""
    return not one.item.waits or one.ready or one.process.poll() is not None


def _timed(chosen: _Running, others: list[_Running], end: float) -> bool:
    """Lets an item run to its end while the others stand still."""
    for other in others:
        other.signal(signal.SIGSTOP)
    chosen.turn.touch()
    left = min(chosen.item.limit, end - time.monotonic())
    try:
        return chosen.process.wait(max(left, 0.1)) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        chosen.signal(signal.SIGKILL)
        chosen.process.wait()
        for other in others:
            other.signal(signal.SIGCONT)


COLUMNS = ("item", "what", "ms", "least", "most", "idle", "compile s", "device MB")


def rows(name: str, figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """Makes the rows of an item out of the figures of the bench.

    Args:
      name: of the item.
      figures: as the bench writes them.

    Returns:
      A row of COLUMNS for each workload, or for each of the sizes or windows of one;
      milliseconds are of a round, of windows a step.
    """
    found = []
    for workload, what in figures.items():
        if not isinstance(what, dict) or workload == "ceilings":
            continue
        parts = {workload: what} | {k: v for k, v in what.items() if k != "longest"}
        for key, part in parts.items():
            if isinstance(part, dict) and (row := _row(part)):
                found.append((name, key, *row))
    return found


def _row(part: dict[str, Any]) -> tuple[str, ...]:
    unit, scale = "seconds", 1e3
    if "median_milliseconds" in part:
        unit, scale = "milliseconds", 1.0
    if f"median_{unit}" not in part:
        return ()
    times = [
        scale * part.get(f"{of}_{unit}", np.nan) for of in ("median", "min", "max")
    ]
    others = [part.get(k) for k in ("idle_share", "compile_seconds", "device_peak_mb")]
    shown = ["" if value is None else f"{value:.3g}" for value in others]
    return tuple([f"{value:.4g}" for value in times] + shown)


def _read(one: _Running) -> dict[str, Any]:
    try:
        return json.loads(one.figures.read_text())
    except (OSError, ValueError):
        return {}


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _ended(one: _Running, well: bool) -> list[tuple[str, ...]]:
    """Gives an item's rows, and the end of its log where there is more to say."""
    lines = one.log.read_text(errors="replace").strip().splitlines()
    found = rows(one.item.name, _read(one))
    if not one.item.waits:  # a dry run says it in lines
        said = "; ".join(line for line in lines if " each" in line or " step" in line)
        found = [(one.item.name, said, *[""] * 6)] if well else []
    if not well:
        print(f"{one.item.name} did not end:", *lines[-8:], sep="\n    ", flush=True)
        found.append((one.item.name, "not finished", *[""] * 6))
    return found


def ratios(medians: dict[str, float], every: list[Item]) -> list[str]:
    """Compares rounds: a line for each item that stands beside another.

    Args:
      medians: milliseconds a round, by item.
      every: the items.

    Returns:
      The lines.
    """
    lines = [
        f"{item.name} / {item.beside}: {medians[item.name] / medians[item.beside]:.3f}"
        for item in every
        if item.beside and {item.name, item.beside} <= medians.keys()
    ]
    if "main_bf16" in medians:
        minutes = medians["main_bf16"] * _ROUNDS / 60e3
        lines.append(f"main_bf16: {_ROUNDS} rounds in {minutes:.1f} minutes")
    return lines


def _main() -> None:
    end = time.monotonic() + _SECONDS.value
    out = pathlib.Path(_FIGURES.value or "figures").resolve()
    out.mkdir(parents=True, exist_ok=True)
    table, medians = [_line(COLUMNS), _line(("---",) * 8)], dict[str, float]()
    devices: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        every = items(scratch)
        if any(not item.waits for item in every):
            write_data(scratch)
        print("\n".join(table), flush=True)
        for one, well in _play(every, out, scratch, end):
            found = _ended(one, well)
            figures = _read(one)
            devices |= {figures["device"]} if "device" in figures else set()
            medians |= {row[0]: float(row[2]) for row in found if row[2]}
            table += map(_line, found)
            print("\n".join(map(_line, found)), flush=True)
            (out / "table.md").write_text("\n".join(table) + "\n")
    about = f"{', '.join(sorted(devices))}; jax {main.jax.__version__}"
    said = [about, "", *table, "", *ratios(medians, every)]
    (out / "table.md").write_text("\n".join(said) + "\n")
    print("\n".join(["", *said]), flush=True)


if __name__ == "__main__":
    main.run(_main)
