"""Progress of a load and of a run: a bar on a terminal or in a notebook, else lines.

Rounds are numbered from 0, as in records and messages; counts are of rounds done.
"""

from __future__ import annotations

import collections
import io
import os
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from typing import Any, Self, TextIO

from fljax import tasks
from fljax.runs import status

_LOSS = ("train_loss", "test_loss")  # the first that a record has is shown
_EVERY = 10  # seconds between the lines of a load


class _Ticker:
    """Draws a bar anew every second, so that time moves while nothing else does."""

    def __init__(self, bar: Any) -> None:
        """Start."""
        self._bar, self._stopped = bar, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(1):
            self._bar.refresh()

    def close(self) -> None:
        """Stop, and close the bar."""
        self._stopped.set()
        self._thread.join()
        self._bar.close()


def in_notebook(stream: TextIO) -> bool:
    """Tells whether a stream ends in the cell of a notebook."""
    return type(stream).__module__ == "ipykernel.iostream"


def _shows_bars(stream: TextIO) -> bool:
    return stream.isatty() or in_notebook(stream)


def _bar(stream: TextIO, **options: Any) -> Any:
    """Makes a bar of tqdm: a notebook's, where it can show one, or of characters."""
    if in_notebook(stream):
        with warnings.catch_warnings():  # of a notebook without ipywidgets
            warnings.simplefilter("ignore")
            from tqdm import auto

            return auto.tqdm(file=stream, **options)
    import tqdm

    return tqdm.tqdm(file=stream, **options)


def say(text: str) -> None:
    """Writes a line to stderr without breaking a bar that may be there."""
    if "tqdm" not in sys.modules:  # then there is none
        print(text, file=sys.stderr, flush=True)
        return
    import tqdm

    tqdm.tqdm.write(text, file=sys.stderr)


def _width(stream: TextIO) -> dict[str, Any]:
    """Gives tqdm's options for the width of a terminal.

    One that does not know it says 0, and tqdm then shows nothing.
    """
    if in_notebook(stream):
        return {}
    known = os.get_terminal_size(stream.fileno()).columns > 0
    return {"ncols": None if known else 80, "dynamic_ncols": known}


class Silent(io.TextIOBase):
    """A stream that forgets what it is told."""

    def write(self, text: str) -> int:
        """Take a text, and drop it."""
        return len(text)


class Steps:
    """Says what is being done: a line each, on a terminal with its seconds.

    A context manager, called with each step.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        """Begin; writes to stderr if there is no stream."""
        self._stream = sys.stderr if stream is None else stream
        self._ticker: _Ticker | None = None

    def __call__(self, what: str) -> None:
        """Begin a step, which ends the one before."""
        self.close()
        if not _shows_bars(self._stream):
            print(what, file=self._stream, flush=True)
            return
        form = "{desc} [{elapsed}]"
        bar = _bar(self._stream, desc=what, bar_format=form, **_width(self._stream))
        self._ticker = _Ticker(bar)

    def close(self) -> None:
        """End the last step."""
        if self._ticker is not None:
            self._ticker.close()
            self._ticker = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Loading:
    """Shows how far a load is; a context manager, called as data.progress.Watch."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Start the clock.

        Args:
          stream: where to write; stderr if None.
        """
        self._stream = sys.stderr if stream is None else stream
        self._what = ""
        self._next = 0.0  # when a line is due
        self._bar: Any = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show a step: one bar for each `what`, or a line every ten seconds.

        Args:
          what: is being done.
          done: how much of it.
          total: of how much; 0: `what` is a note, which gets a line of its own.
        """
        if not total:
            self.close()
            print(f"note: {what}", file=self._stream)
            return
        if what != self._what:
            self.close()
            self._what, self._next = what, time.monotonic() + _EVERY
            if _shows_bars(self._stream):
                self._bar = _bar(
                    self._stream,
                    total=total,
                    desc=what,
                    unit_scale=True,
                    delay=1,
                    leave=False,
                )
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY
            share = f"{100 * done / max(total, 1):.0f} %"
            print(f"{what}: {done:,} of {total:,}, {share}", file=self._stream)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Progress:
    """Shows the rounds of a run as they finish; a context manager."""

    def __init__(
        self,
        total_rounds: int,
        first_round: int = 0,
        label: str = "",
        stream: TextIO | None = None,
        measure: tasks.Measure = tasks.DEFAULT.measure,
    ) -> None:
        """Start the clock, and a bar on a terminal or in a notebook.

        Args:
          total_rounds: rounds of the whole run.
          first_round: the round that runs next, above 0 when a run resumes.
          label: name of the run, such as the algorithm's.
          stream: where to write; stderr if None.
          measure: of the task, that is shown beside the loss.
        """
        self._total = total_rounds
        self._measure = measure
        self._label = label
        self._stream = sys.stderr if stream is None else stream
        self._shown: dict[str, str] = {}
        self._seconds: collections.deque[float] = collections.deque(
            maxlen=status.RECENT
        )
        self._begin()
        shown = _shows_bars(self._stream)
        self._bar = self._open_bar(first_round) if shown else None
        self._ticker = _Ticker(self._bar) if self._bar is not None else None

    def _open_bar(self, first_round: int) -> Any:
        return _bar(
            self._stream,
            total=self._total,
            initial=first_round,
            desc=self._label or None,
            unit="round",
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
            **_width(self._stream),
        )

    def start(self, first_round: int) -> None:
        """Begin counting at a round: above 0 when a run resumes."""
        self._begin()
        if self._bar is not None:
            self._bar.initial = self._bar.n = first_round
            self._bar.refresh()

    def _begin(self) -> None:
        self._seconds.clear()
        self._ended = time.monotonic()
        self._with_first = True  # counts the first round, which compiles

    def update(self, record: Mapping[str, Any]) -> None:
        """Show that a round has finished.

        Args:
          record: its metrics: `round`, and `train_loss`, `test_loss`, the task's
            measure, `events` and `refused` where it has them.
        """
        done = record["round"] + 1
        values = _values(record, self._measure)
        self._shown |= values
        times = self._times(done)
        if self._bar is None:
            words = [f"{name} {value}" for name, value in values.items()]
            words.append(f"{times['round']} eta {times['eta']}")
            count = f"{done}/{self._total} done"
            self.message(f"round {done - 1} ({count}) {' '.join(words)}")
            return
        self._bar.set_postfix(self._shown | times, refresh=False)
        self._bar.update(done - self._bar.n)

    def _times(self, done: int) -> dict[str, str]:
        """Tell how long a round that has finished took, and the others will."""
        before, self._ended = self._ended, time.monotonic()
        took = self._ended - before
        self._seconds.append(took)
        if len(self._seconds) == 2 and self._with_first:
            self._seconds.popleft()
            self._with_first = False
        left = (self._total - done) * status.usual(self._seconds)
        return {"round": f"{took:.1f} s", "eta": _clock(left)}

    def message(self, text: str) -> None:
        """Write a line without breaking the bar.

        Args:
          text: the line, such as "compiling plan 4-11 ...".
        """
        line = f"[{self._label}] {text}" if self._label else text
        if self._bar is None:
            print(line, file=self._stream, flush=True)
        else:
            self._bar.write(line, file=self._stream)

    def close(self) -> None:
        """Leave the bar as it stands and end its line."""
        if self._ticker is not None:
            self._ticker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _values(record: Mapping[str, Any], measure: tasks.Measure) -> dict[str, str]:
    """Format loss, the task's measure, and who was left where some were not."""
    values = {}
    shown = [("loss", _LOSS), (measure.title, (measure.key,))]
    if measure.title == "loss":  # that of training and of the test set
        shown[1] = ("test loss", (measure.key,))
    for name, keys in shown:
        found = [record[key] for key in keys if record.get(key) is not None]
        if found:
            values[name] = f"{found[0]:.3f}"
    if record.get("events") or record.get("refused"):
        values["clients"] = str(record["participants"])
        values["refused"] = str(len(record.get("refused", ())))
    return values


def _clock(seconds: float) -> str:
    """Write 250 seconds as 4:10, 3850 as 1:04:10."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
