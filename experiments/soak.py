"""A long run to which everything happens, beside the same run left in peace.

    python -m experiments.soak --workdir=runs/soak
    python -m experiments.soak --num_clients=1000 --rounds=60 --kills=3 \\
        --workdir=runs/small

A million clients of one example each train `logistic` for 2000 rounds; of those chosen,
40 % fail, each way as often. One run is left in peace, and its memory is looked at in
every round. The other is killed (`kill -9`) at random moments, a fifth of them while it
starts, and twice its disk is full: a small one that is mounted for it, where this user
may, else the size that its files may have. The same command goes on each time. At the
end both must have the same records, alerts and state, bit for bit, every round once,
and memory must be flat; exit code 1 if anything fails. All flags of `experiments.train`
hold, for other rounds, failures or algorithms. Ten minutes of a core.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments import define, main
from experiments import flags as config_flags
from fljax.devices import failures
from fljax.experiment import as_flags
from fljax.experiment import config as configs
from fljax.runs import follow, writers

config_flags.define_flags()
for _module in (config_flags, main):
    flags.adopt_module_key_flags(_module)  # `--help` lists them
_KILLS = define.number("kills", 30, "Times that the run is killed.", least=0)
_FULL = define.number("full_disks", 2, "Times that its disk is full.", least=0)

_RATES = ("drop", "lost", "truncated", "duplicated", "delayed", "nonfinite", "huge")
_FAILING = 0.4  # share of the clients of a round that fail, each way as often
_USUAL = {  # flags that are not as they are by themselves
    "algorithm": "fedavg",
    "network": "logistic",
    "num_clients": 1_000_000,
    "clients_per_round": 100,
    "rounds": 2000,
    "batch_size": 4,
    "eval_every": 20,
    "norm_bound": 5.0,
    "attack": "sign_flip:0.1",
    "clock.deadline": 2.0,
    "clock.late": "carry",
    **{f"failures.{name}": int(1e6 * _FAILING / len(_RATES)) / 1e6 for name in _RATES},
}
_SHAPE, _CLASSES, _TESTS = (4, 4, 1), 10, 2000
_LEAST = 20  # rounds
_DISK = 64  # MB of the disk that gets full
_PATIENCE = 600  # seconds without a round after which a run hangs
_LOOK = 0.005  # seconds between two looks at a run
_GROWTH = 0.01  # of memory, at most
_WARM = 0.1  # share of the rounds before memory counts

Lines = list[tuple[int, float]]  # round, MB


class Blow(NamedTuple):
    """What happens to a run, and when.

    Attributes:
      kind: kill or full.
      round: that has to be recorded.
      seconds: after that.
    """

    kind: str
    round: int
    seconds: float


class Check(NamedTuple):
    """What was looked at, what was found, and whether it is as it must be."""

    what: str
    found: str
    good: bool


class Death(NamedTuple):
    """How a run ended: its exit code and the lines that begin with `error:`."""

    code: int
    errors: list[str]


def blows(rounds: int, starting: float, seed: int) -> list[Blow]:
    """Draws when a run is struck, in order.

    Args:
      rounds: of the run.
      starting: seconds that it takes to its first round.
      seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    placed = []
    for number in range(_KILLS.value):
        place = int(generator.integers(rounds))
        if number % 5:
            blow = Blow("kill", place, generator.uniform(0, 0.1))
        else:  # while it starts, wherever it was
            blow = Blow("kill", 0, generator.uniform(0, starting))
        placed.append((place, blow))
    for number in range(_FULL.value):
        place = (number + 1) * rounds // (_FULL.value + 1)
        placed.append((place, Blow("full", place, 0.0)))
    return [blow for _, blow in sorted(placed, key=lambda one: one[0])]


def settings(data: pathlib.Path) -> configs.Config:
    """Gives the settings of the run: as flags say, else what is usual here.

    Raises:
      ValueError: as of `config.check`, or there are too few rounds to be struck in.
    """
    left = {n: usual for n, usual in _USUAL.items() if not flags.FLAGS[n].present}
    made = config_flags.from_flags(flags.FLAGS, **left, dataset=f"npz:{data}")
    if made.rounds < _LEAST:
        raise ValueError(f"--rounds: expected at least {_LEAST}, got {made.rounds}")
    return made


def command(ran: configs.Config, workdir: pathlib.Path) -> list[str]:
    """Gives the command line of a run in a folder."""
    flagged = [*as_flags.lines(ran), "--data_cache=", f"--workdir={workdir}"]
    return [sys.executable, "-m", "experiments.train", *flagged]


def write_data(path: pathlib.Path, clients: int) -> None:
    """Draws an example for each client, labelled by a linear rule."""
    generator = np.random.default_rng(0)
    rule = generator.normal(size=(int(np.prod(_SHAPE)), _CLASSES))

    def draw(size: int) -> tuple[np.ndarray, np.ndarray]:
        x = generator.integers(0, 256, (size, *_SHAPE), np.uint8)
        centered = x.reshape(size, -1) / 255 - 0.5
        return x, (centered @ rule).argmax(1).astype(np.int32)

    (x, y), (x_test, y_test) = draw(clients), draw(_TESTS)
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)


class Run:
    """A process that runs in a folder; what it says goes to a file beside that."""

    def __init__(self, ran: configs.Config, workdir: pathlib.Path) -> None:
        """Start it."""
        self.log = workdir.with_name(f"{workdir.name}.log")
        self._metrics = writers.files(workdir).metrics
        self._place = follow.Place()
        self.begun = time.monotonic()
        with open(self.log, "wb") as out:
            self.process = subprocess.Popen(
                command(ran, workdir), stdout=out, stderr=subprocess.STDOUT
            )

    def rounds(self) -> Iterator[int]:
        """Gives how many rounds are recorded, again and again while it runs.

        Raises:
          ValueError: it hangs.
        """
        done, changed = -1, time.monotonic()
        while self.process.poll() is None:
            new = follow.read(self._metrics, self._place)
            self._place = new.place
            now = new.records[-1]["round"] + 1 if new.records else max(done, 0)
            if now != done:
                done, changed = now, time.monotonic()
            elif time.monotonic() - changed > _PATIENCE:
                self.process.kill()
                raise ValueError(f"{self.log}: no round for {_PATIENCE} s")
            yield done
            time.sleep(_LOOK)

    def megabytes(self) -> float:
        """Gives the memory that it holds."""
        pages = pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(pages[1]) * resource.getpagesize() / 1e6

    def ended(self) -> Death:
        """Waits for its end."""
        try:
            code = self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise ValueError(f"{self.log}: does not end in {_PATIENCE} s") from None
        lines = self.log.read_text(errors="replace").splitlines()
        return Death(code, [line for line in lines if line.startswith("error:")])


def in_peace(ran: configs.Config, workdir: pathlib.Path) -> tuple[Lines, float]:
    """Runs without a blow; gives its memory by rounds, and the seconds to the first.

    Raises:
      ValueError: it does not end well.
    """
    run, memory, starting, last = Run(ran, workdir), [], 0.0, 0
    for done in run.rounds():
        if done > last:
            starting = starting or time.monotonic() - run.begun
            with contextlib.suppress(OSError, IndexError):  # it has just ended
                memory.append((done, run.megabytes()))
            last = done
    if (end := run.ended()).code:
        raise ValueError(f"{run.log}: exit code {end.code}: {' '.join(end.errors)}")
    return memory, starting


def struck(
    ran: configs.Config,
    workdir: pathlib.Path,
    plan: Sequence[Blow],
    fill: Callable[[Run], contextlib.AbstractContextManager[None]],
) -> list[tuple[Blow, Death]]:
    """Runs through all blows to the end.

    Args:
      ran: the run's settings.
      workdir: its folder.
      plan: the blows.
      fill: leaves a run no room within it.

    Returns:
      Each blow, and how the run ended; the last one is none.
    """
    ends = []
    for blow in (*plan, Blow("none", sys.maxsize, 0.0)):
        run = Run(ran, workdir)
        with contextlib.ExitStack() as stack:
            for done in run.rounds():
                if done < blow.round:
                    continue
                time.sleep(blow.seconds)
                if blow.kind == "full":
                    stack.enter_context(fill(run))
                else:
                    run.process.kill()
                break
            ends.append((blow, run.ended()))
        print(f"{blow.kind} at round {done}: exit code {ends[-1][1].code}", flush=True)
    return ends


@contextlib.contextmanager
def small_disk(place: pathlib.Path) -> Iterator[str]:
    """Mounts a small disk, where this user may; gives what fills it, in words."""
    place.mkdir()
    size = f"size={_DISK}m"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(place)]
    try:
        mounted = not subprocess.run(mount, capture_output=True).returncode
    except OSError:
        mounted = False
    try:
        yield f"a disk of {_DISK} MB" if mounted else "a limit on the size of files"
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def filler(place: pathlib.Path, mounted: bool):
    """Gives what leaves a run no room within it: on its disk, or in its files."""

    @contextlib.contextmanager
    def disk(_: Run) -> Iterator[None]:
        ballast = place / "ballast"
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
        try:
            yield
        finally:
            ballast.unlink()

    @contextlib.contextmanager
    def files(run: Run) -> Iterator[None]:
        limit = writers.files(place / "run").metrics.stat().st_size
        resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        yield

    return disk if mounted else files


def lasting(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the lines of a file, without what a line took on this machine."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in x.items() if k != "wall_seconds"} for x in lines]


def compared(one: pathlib.Path, two: pathlib.Path, wanted: int) -> list[Check]:
    """Compares what two runs of so many rounds left in their folders."""
    peace, blown = writers.files(one), writers.files(two)
    rounds = [record["round"] for record in lasting(blown.metrics)]
    missing = len(set(range(wanted)) - set(rounds))
    twice = len(rounds) - len(set(rounds))
    whole = rounds == list(range(wanted))
    found = f"{len(rounds)} lines, {missing} rounds missing, {twice} twice"
    checks = [Check("records", found, whole)]
    for name in ("metrics", "alerts"):
        left, right = (lasting(getattr(files, name)) for files in (peace, blown))
        pairs = zip(left, right, strict=False)
        other = sum(a != b for a, b in pairs) + abs(len(left) - len(right))
        found = f"{other} of {len(left)} lines differ"
        checks.append(Check(f"{name} as in peace", found, not other))
    name = f"checkpoints/round_{wanted:08d}.ckpt"
    same = (one / name).read_bytes() == (two / name).read_bytes()
    found = "the same bytes" if same else "other bytes"
    return [*checks, Check("final state as in peace", found, same)]


def of_memory(memory: Lines) -> Check:
    """Compares the memory of the first and the last quarter, once warm."""
    warm = [mb for done, mb in memory if done > _WARM * memory[-1][0]]
    quarter = max(len(warm) // 4, 1)
    first, last = (float(np.median(part)) for part in (warm[:quarter], warm[-quarter:]))
    growth = last / first - 1
    found = f"{first:.1f} MB, then {last:.1f} MB ({growth:+.2%})"
    return Check("memory, first and last quarter", found, abs(growth) <= _GROWTH)


def of_blows(ends: Sequence[tuple[Blow, Death]], fills: str) -> list[Check]:
    """Says how the run took its blows: a full disk is one line and exit code 2."""
    kills = [end for blow, end in ends if blow.kind == "kill"]
    full = [end for blow, end in ends if blow.kind == "full"]
    killed = sum(end.code < 0 for end in kills)
    told = sum(end.code == 2 and len(end.errors) == 1 for end in full)
    return [
        Check("killed", f"{killed} of {len(kills)}", killed == len(kills)),
        Check(f"disk full ({fills})", f"{told} of {len(full)}", told == len(full)),
        Check("the end", f"exit code {ends[-1][1].code}", not ends[-1][1].code),
    ]


def of_failures(records: Sequence[dict[str, Any]]) -> Check:
    """Counts what went wrong, in the mean of a round."""
    kinds = [f.name.lower() for f in failures.Fault if f.name != "OUT_OF_MEMORY"]
    count = {
        kind: sum(len(r.get("events", {}).get(kind, ())) for r in records)
        for kind in kinds[1:]
    }
    found = ", ".join(f"{kind} {n / len(records):.1f}" for kind, n in count.items())
    return Check("failures a round", found, all(count.values()))


def _main() -> None:
    folder = main.folder("runs/soak").absolute()
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"--workdir: expected a new or empty folder, got {folder}")
    data, peace, kept = folder / "data.npz", folder / "peace", folder / "struck"
    ran = settings(data)
    folder.mkdir(parents=True, exist_ok=True)
    write_data(data, ran.num_clients)
    memory, starting = in_peace(ran, peace)
    with small_disk(folder / "disk") as fills:
        place = folder / "disk"
        fill = filler(place, fills.startswith("a disk"))
        plan = blows(ran.rounds, starting, ran.seed)
        ends = struck(ran, place / "run", plan, fill)
        shutil.copytree(place / "run", kept)
    records = lasting(writers.files(peace).metrics)
    checks = [
        *compared(peace, kept, ran.rounds),
        *of_blows(ends, fills),
        of_failures(records),
        of_memory(memory),
    ]
    (folder / "memory.json").write_text(json.dumps(memory))
    (folder / "verdict.json").write_bytes(
        writers.to_json([check._asdict() for check in checks])
    )
    print("\n| looked at | found | |\n|---|---|---|")
    for check in checks:
        print(f"| {check.what} | {check.found} | {'ok' if check.good else 'FAILS'} |")
    if not all(check.good for check in checks):
        sys.exit(1)


if __name__ == "__main__":
    main.run(_main)
