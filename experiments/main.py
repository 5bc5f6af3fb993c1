"""What the command lines share: flags, errors in one line, the compilation cache."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging

_CACHE = flags.DEFINE_string(
    "compilation_cache",
    str(
        pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        / "fljax"
    ),
    "Folder that keeps compiled programs from run to run; empty: none.",
)

DATA_CACHE = flags.DEFINE_string(
    "data_cache",
    os.path.join(_CACHE.default, "data"),
    "Folder that keeps decoded data from run to run; empty: none.",
)

WORKDIR = flags.DEFINE_string(
    "workdir", "", "Folder that everything goes to; empty: nothing is kept."
)


def _parse(arguments: list[str]) -> list[str]:
    """Parses flags; a wrong one is one line and exit code 2."""
    try:
        rest = flags.FLAGS(arguments)
        if len(rest) > 1:
            raise flags.Error(
                f"expected flags such as --rounds=10, got {' '.join(rest[1:])!r}"
            )
        return rest
    except (flags.Error, OSError, UnicodeDecodeError) as error:
        sys.exit(_complain(error))


def _complain(error: BaseException) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def run(main: Callable[[], None]) -> None:
    """Runs a command line's main.

    Bad input (ValueError, or OSError of a path) is one line and exit code 2, a
    diverged run likewise with 1, Ctrl-C with 130.
    """

    def guarded(_: list[str]) -> int:
        from fljax import simulation

        logging.set_verbosity(logging.WARNING)  # jax tells of backends it has not
        if _CACHE.value:
            jax.config.update("jax_compilation_cache_dir", _CACHE.value)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        try:
            main()
        except (ValueError, OSError) as error:
            if os.environ.get("FLJAX_TRACEBACK"):
                raise
            return _complain(error)
        except simulation.NonFiniteError as error:
            _complain(error)
            return 1
        except KeyboardInterrupt:
            kept = "the same command goes on from here"
            lost = "without --workdir nothing is kept"
            print(f"stopped; {kept if WORKDIR.value else lost}", file=sys.stderr)
            return 130
        return 0

    app.run(guarded, flags_parser=_parse)
