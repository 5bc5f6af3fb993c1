"""Measures what training the windows of a network costs on this machine.

    python -m experiments.profile --windows=all --costs_out=costs.json
    python -m experiments.profile --network=mobilenetv2 --costs_out=costs.json

Writes a cost table (`--cost_table` of the other commands). With a number, so many
windows are measured, the model from operation counts is fitted to them and fills in the
others; the printed errors are those of windows held out of the fit. `--class_out` keeps
the fitted prices as a device class for networks that were not measured.
"""

from __future__ import annotations

import pathlib
import statistics
import sys
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags

from experiments import define, main
from fljax import experiment, models, plans, types
from fljax.engine import federation, initial
from fljax.experiment import config as configs
from fljax.experiment import timing
from fljax.plans import cost_model, costs

_NETWORK = flags.DEFINE_string(
    "network", "small_convnet", "As in experiments.train.", allow_override=True
)
_BATCH = define.number("batch_size", 32, "Examples of a step.", least=1)
_SHAPE = flags.DEFINE_string(
    "input_shape", "", "Of an example, as 32,32,3; empty: the network's own."
)
_CLASSES = define.number("num_classes", 10, "Of the network.", least=2, most=1_000_000)
_WINDOWS = flags.DEFINE_string(
    "windows", "12", "How many are measured, or all; the others are modeled."
)
_TIMINGS = define.number("timings", 5, "Timings of each.", least=1, most=1_000_000)
_STEPS = define.number("steps", 2, "Local steps of a timing.", least=1, most=1_000_000)
_OUT = flags.DEFINE_string("costs_out", "", "The JSON file that the table goes to.")
_CLASS_OUT = flags.DEFINE_string("class_out", "", "A JSON file for the device class.")

# Examples of networks whose flags leave their shape open.
_SHAPES = {
    "mobilenetv2_large": (224, 224, 3),
    "logistic": (28, 28, 1),
    "small_convnet": (28, 28, 1),
    "transformer": (512,),
    "char_transformer": (80,),
}
_VOCABULARIES = {"transformer": 16_000, "char_transformer": 81}


def spread(num_blocks: int, most: int) -> list[tuple[int, int]]:
    """Chooses windows to measure, well spread over first and last block.

    Args:
      num_blocks: n.
      most: how many, at least 4.

    Returns:
      The full window, the first and the last block alone, and others that are each as
      far as can be from those before it (farthest points; distance in blocks).
    """
    every = plans.windows_of(plans.all_windows(num_blocks))
    last = num_blocks - 1
    chosen = list(dict.fromkeys([(0, last), (0, 0), (last, last)]))
    while len(chosen) < min(most, len(every)):
        gaps = np.abs(every[:, None] - np.array(chosen)).sum(-1).min(axis=1)
        first, end = every[int(np.argmax(gaps))].tolist()
        chosen.append((first, end))
    return chosen


def measure(
    fed: federation.Federation,
    chosen: Sequence[tuple[int, int]],
    steps: int,
    repeats: int,
    tell: Callable[[str], None],
) -> costs.CostTable:
    """Measures windows of a network.

    Args:
      fed: the network and how clients train.
      chosen: windows, the full one among them.
      steps: local steps of a timing.
      repeats: timings of each window, in turns; the median counts.
      tell: is given lines of progress.

    Returns:
      The table of these windows: medians of step times, peak memory as XLA plans it.

    Raises:
      ValueError: this backend does not tell a program's memory.
    """
    blocks = initial.blocks(fed)
    made = []
    for number, window in enumerate(chosen):
        tell(f"compiling window {window[0]}-{window[1]} ({number + 1}/{len(chosen)})")
        made.append(timing.compile_step(fed, blocks, plans.Plan(*window), steps))
    sizes = [step.bytes for step in made]
    if None in sizes:
        raise ValueError("expected a backend that tells a program's memory, got none")
    tell(f"timing {len(chosen)} windows, {repeats} times each")
    times = [statistics.median(t) for t in timing.interleaved(made, repeats)]
    full = list(chosen).index((0, fed.model.net.num_blocks - 1))
    memory = np.array(sizes, np.float64)
    listed = plans.of_windows(chosen)
    return costs.CostTable(
        num_blocks=fed.model.net.num_blocks,
        listed=listed,
        time=np.array(times) / times[full],
        upload=cost_model.upload_share(listed, {1.0: fed.model.counts}),
        memory=memory / memory[full],
        full_step_seconds=times[full],
        full_step_memory_gb=memory[full] / 1e9,
        batch=fed.training.batch_size,
        source="this machine",
    )


def complete(
    measured: costs.CostTable, device_class: cost_model.DeviceClass, counts, batch: int
) -> costs.CostTable:
    """Fills in the windows that were not measured from a fitted class.

    Args:
      measured: some of the windows.
      device_class: fitted to them.
      counts: of the n blocks.
      batch: examples of a step.

    Returns:
      The table of all windows; measured figures stay as they are.
    """
    every = plans.all_windows(len(counts))
    time, memory = cost_model.predict(device_class, every, {1.0: counts}, batch)
    row = {plan: i for i, plan in enumerate(every)}
    known = [row[plan] for plan in measured.listed]
    time[known], memory[known] = measured.time, measured.memory
    return costs.CostTable(
        num_blocks=len(counts),
        listed=every,
        time=np.maximum(time, 1e-6),
        upload=np.maximum(cost_model.upload_share(every, {1.0: counts}), 1e-9),
        memory=np.maximum(memory, 1e-6),
        full_step_seconds=measured.full_step_seconds,
        full_step_memory_gb=measured.full_step_memory_gb,
        batch=measured.batch,
        source="this machine",
    )


def _dataset() -> types.Dataset:
    """Draws examples of the network's shape."""
    name = _NETWORK.value
    if name not in models.BY_NAME:
        raise configs.unknown("network", name, models.BY_NAME)
    shape = _SHAPES.get(name, (32, 32, 3))
    if _SHAPE.value:
        try:
            shape = tuple(int(part) for part in _SHAPE.value.split(","))
        except ValueError:
            shape = (0,)
        if min(shape) < 1:
            raise ValueError(
                f"--input_shape: expected sizes such as 32,32,3, got {_SHAPE.value!r}"
            )
    generator = np.random.default_rng(0)
    size = max(_BATCH.value * _STEPS.value, _CLASSES.value)
    labels = (np.arange(size) % _CLASSES.value).astype(np.int32)
    vocabulary = _VOCABULARIES.get(name)
    if vocabulary is None:
        x = generator.integers(0, 256, (size, *shape), np.uint8)
    else:
        x = generator.integers(1, vocabulary, (size, *shape), np.int32)
    return types.Dataset(x, labels, x, labels, _CLASSES.value, vocabulary=vocabulary)


def _number(num_blocks: int) -> int:
    every = num_blocks * (num_blocks + 1) // 2
    text = _WINDOWS.value
    if text == "all":
        return every
    if not text.isdecimal() or int(text) < 4:
        raise ValueError(f"--windows: expected all or a number from 4, got {text!r}")
    return int(text)


def _check_folder(flag: str, path: str) -> None:
    """Raises before minutes of measuring if a file cannot be put where it should go."""
    folder = pathlib.Path(path).parent
    if path and (not folder.is_dir() or pathlib.Path(path).is_dir()):
        raise ValueError(f"--{flag}: expected a file in a folder there is, got {path}")


def _errors(name: str, errors: np.ndarray) -> str:
    return f"{name} {errors.mean():.4f} (largest {errors.max():.4f})"


def _main() -> None:
    if not _OUT.value:
        raise ValueError(
            "--costs_out: expected the file that the table goes to, got none"
        )
    _check_folder("costs_out", _OUT.value)
    _check_folder("class_out", _CLASS_OUT.value)
    data = _dataset()
    settings = configs.Config(
        algorithm="fedavg", network=_NETWORK.value, batch_size=_BATCH.value,
        num_clients=1, clients_per_round=1,
    )  # fmt: skip
    fed = experiment.build(settings, data).federation
    if fed.model.net.num_blocks < 2:
        raise ValueError(
            f"--network: expected one of two blocks or more, which has windows to "
            f"compare, got {fed.model.net.name!r}"
        )
    chosen = spread(fed.model.net.num_blocks, _number(fed.model.net.num_blocks))

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    table = measure(fed, chosen, _STEPS.value, _TIMINGS.value, tell)
    sample = cost_model.Sample(fed.model.counts, table, _BATCH.value)
    fitted = cost_model.fit([sample], "this machine", f"fitted to {_NETWORK.value}")
    held_out = cost_model.held_out_errors(sample)
    print(
        f"{fed.model.net.name}: {len(chosen)} windows measured, full step "
        f"{table.full_step_seconds:.4g} s, {table.full_step_memory_gb:.4g} GB"
    )
    print(
        f"mean absolute error of the fit for windows held out of it: "
        f"{_errors('time', held_out.time)}, {_errors('memory', held_out.memory)}"
    )
    every = complete(table, fitted, fed.model.counts, _BATCH.value)
    costs.save(every, _OUT.value)
    if _CLASS_OUT.value:
        cost_model.save_class(fitted, pathlib.Path(_CLASS_OUT.value))
    print(f"wrote {len(every.listed)} windows to {_OUT.value}")


if __name__ == "__main__":
    main.run(_main)
