"""Command lines; while one imports, the first Ctrl-C ends it.

A KeyboardInterrupt in the middle of an import would end in a traceback, or in what a
half imported extension does. So this stands before all that takes long to import.
"""

import os
import signal
import sys

STOPPED = 130  # exit code of a process that Ctrl-C ended


def _end(*_: object) -> None:
    os.write(2, b"stopped\n")  # what else prints may be half done
    os._exit(STOPPED)


# `-m` stands there until the module is found. A shell's & ignores the signal.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, _end)
