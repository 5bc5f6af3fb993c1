"""Ctrl-C in a command line: heard at once, obeyed when what runs now is done.

Python hears it between two of its own steps, and one of them may compile for minutes.
So a thread of its own says that it was heard, and a second Ctrl-C ends the process from
there: what a run keeps is whole at any moment. Before that, while a command line
imports, there is nothing to keep, and the first one ends it (`experiments/__init__`).
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import socket
import sys
import threading
import types
from collections.abc import Iterator

import experiments

CODE = experiments.STOPPED

# What is raised in these is printed and forgotten.
_DEAF = ("_xla_gc_callback", "__del__")
_LATER = 0.05  # seconds until it is tried again
_tried_again: list[bool] = []  # what the listener is about to hear of our own


_raised: list[bool] = []  # in this call of `heard`


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Listens to Ctrl-C: in the main thread alone, and where it is not ignored."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    _raised.clear()
    old_fd = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    old = signal.signal(signal.SIGINT, _interrupt)
    threading.Thread(target=_listen, args=(ours,), daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)
        signal.set_wakeup_fd(old_fd)
        theirs.close()


def leave() -> None:
    """Ends the process now; compilations that still run would crash an orderly end."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(CODE)


def _interrupt(number: int, frame: types.FrameType | None) -> None:
    """Raises KeyboardInterrupt, once, and where it is not forgotten.

    At the second Ctrl-C the listener ends the process, while this thread may be in the
    middle of what the first one made it do.
    """
    if _raised:
        return
    while frame is not None:
        if frame.f_code.co_name in _DEAF:
            threading.Timer(_LATER, _try_again).start()
            return
        frame = frame.f_back
    _raised.append(True)
    raise KeyboardInterrupt


def _try_again() -> None:
    _tried_again.append(True)
    _thread.interrupt_main()


def _listen(signals: socket.socket) -> None:
    """Answers to each Ctrl-C, until the other end is closed."""
    count = 0
    with signals:
        while numbers := signals.recv(1):
            if numbers[0] != signal.SIGINT:
                continue
            if _tried_again:
                _tried_again.pop()
                continue
            count += 1
            line = "stopping when what runs now is done; Ctrl-C again: at once"
            if count > 1:
                line = "stopped at once"
            start = "\n" if sys.stderr.isatty() else ""  # behind ^C
            print(f"{start}{line}", file=sys.stderr, flush=True)
            if count > 1:
                leave()
