"""What a long load tells the host, as it goes."""

from __future__ import annotations

from collections.abc import Callable

Watch = Callable[[str, int, int], None]  # what is being done, how much, of how much


def ignore(what: str, done: int, total: int) -> None:
    """Does nothing with what a watch is given."""


def note(watch: Watch, text: str) -> None:
    """Tells what a reader should know though nothing failed: a step of nothing."""
    watch(text, 0, 0)
