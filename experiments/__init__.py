"""Command lines: the first Ctrl-C ends one that imports; then JAX is imported.

A KeyboardInterrupt in the middle of an import would end in a traceback, or in what a
half imported extension does. So the handler stands before all that takes long to
import. JAX reads its variables where it is imported, which is here first, so that a
command line ends in one line where it refuses one.
"""

import os
import signal
import sys

STOPPED = 130  # exit code of a process that Ctrl-C ended


def _end(*_: object) -> None:
    os.write(2, b"stopped\n")  # what else prints may be half done
    os._exit(STOPPED)


# `-m` stands there until the module is found. A shell's & ignores the signal.
_IS_COMMAND = sys.argv[:1] == ["-m"]
if _IS_COMMAND and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, _end)

try:
    import jax  # noqa: F401
except ValueError as error:
    if not _IS_COMMAND:  # imported by a script or a notebook
        raise
    print(f"error: a JAX_* variable: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)
