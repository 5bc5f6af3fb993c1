"""Alerts: what of a run somebody should hear of, as records and as a command.

An alert is plain data with `round`, `kind` and `message`; a line of `alerts.jsonl`.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any, Self

Alert = dict[str, Any]

_SECONDS = 60  # that a command may take


def of_record(record: Mapping[str, Any]) -> list[Alert]:
    """Find what to tell of a round.

    Args:
      record: of its metrics: `rollback`, the client ids in `refused` and the number of
        `participants` count, where it has them.

    Returns:
      Alerts of the kinds rollback, refused and nobody.
    """
    found: list[Alert] = []

    def add(kind: str, message: str, **more: Any) -> None:
        about = {"round": record["round"], "kind": kind}
        found.append({**about, "message": f"round {record['round']}: {message}"} | more)

    if back := record.get("rollback"):
        add("rollback", _rollback(back), rollback=back)
    if ids := [int(client) for client in record.get("refused", ())]:
        names = ", ".join(map(str, ids))
        update = "updates of clients" if len(ids) > 1 else "the update of client"
        add("refused", f"the server refused {update} {names}", refused=ids)
    if record.get("participants") == 0 and not ids:
        add("nobody", "no client took part")
    return found


def _rollback(back: Mapping[str, Any]) -> str:
    """Say what a rollback does."""
    number, lowered = back["to_round"], back["lowered"]
    where = "the start" if number < 0 else f"the state after round {number}"
    server = lowered == "server"
    what = "the server's learning rate" if server else f"budgets of tier {lowered!r}"
    return (
        f"{back['reason']}; rollback {back['count']} to {where}, {what} times "
        f"{back['factor']:.3g} from here"
    )


def stopped(round: int, message: str) -> Alert:
    """Make the alert of a run that ends early.

    Args:
      round: the one that brought the end.
      message: why.
    """
    return {"round": round, "kind": "stopped", "message": message}


def parse(command: str) -> list[str]:
    """Split a command line as a shell would, without one.

    Returns:
      Program and arguments.

    Raises:
      ValueError: it is not whole, or there is no such program.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"expected a command, got {command!r} ({error})") from error
    if not words or shutil.which(words[0]) is None:
        raise ValueError(
            f"expected a command whose program is on the path, got {command!r}"
        )
    return words


class Command:
    """Runs a command for each alert, one after the other, beside the rounds.

    The command reads the alert as JSON from its standard input; what it prints is
    dropped. A context manager, which waits at its end for what is still to run.
    """

    def __init__(self, command: str, message: Callable[[str], None]) -> None:
        """Start nothing yet.

        Args:
          command: as of `parse`.
          message: is given a line when the command fails, from another thread.

        Raises:
          ValueError: as of `parse`.
        """
        self._words = parse(command)
        self._message = message
        self._worker = futures.ThreadPoolExecutor(max_workers=1)

    def __call__(self, alert: Alert) -> None:
        """Run the command as soon as those before it have ended.

        Args:
          alert: its input.
        """
        self._worker.submit(self._run, json.dumps(alert))

    def _run(self, text: str) -> None:
        quiet = subprocess.DEVNULL
        try:
            code = subprocess.run(
                self._words,
                input=text.encode(),
                stdout=quiet,
                stderr=quiet,
                timeout=_SECONDS,
            ).returncode
            failure = f"exit code {code}" if code else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            failure = str(error)
        if failure:
            self._message(f"alert command {self._words[0]} failed: {failure}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Ctrl-C ends it soon; all else, a diverged run too, has its alerts delivered.
        self._worker.shutdown(cancel_futures=kind is KeyboardInterrupt)
