"""What the command lines share: flags, errors in one line, the compilation cache."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import operator
import os
import pathlib
import platform
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from absl import app, flags, logging

from experiments import define, interrupts
from fljax import version
from fljax.experiment import environment, progress
from fljax.runs import alerts, simulation
from fljax.runtime import private, programs, reading

_CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.environ.get(programs.FOLDER, private.home()),
    f"Folder that keeps compiled programs from run to run, of this user alone; empty: "
    f"none. Default: {programs.FOLDER}, else below ~/.cache.",
)

_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "HOST:PORT of process 0, for a run on several hosts, or auto where SLURM, MPI, "
    "Kubernetes or a TPU tells; empty: one process.",
)
_PROCESS_ID = define.number(
    "process_id", -1, "Which process this is, from 0.", least=-1
)
_NUM_PROCESSES = define.number(
    "num_processes", 0, "How many there are.", least=0, most=2**16
)

_START_SECONDS = 120  # that processes wait for each other at the start
_HEARTBEAT_SECONDS = 30  # without a sign of life after which a process is lost

# What such an error begins with where it is no other process that is to blame.
_OUR_OWN = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")

DATA_CACHE = flags.DEFINE_string(
    "data_cache",
    os.path.join(private.home(), "data") if private.home() else "",
    "Folder that keeps decoded data from run to run, of this user alone; empty: none.",
)

OUT = flags.DEFINE_string(
    "out",
    "",
    "The file to write: .png, .pdf or .svg of plot, else curves.png; .html of report, "
    "else report.html; of export by its suffix.",
)

WORKDIR = flags.DEFINE_string(
    "workdir",
    "",
    "Folder that everything goes to; empty: nothing is kept (comparisons and studies: "
    "a folder below runs/).",
)

_ALERT_COMMAND = flags.DEFINE_string(
    "alert_command",
    "",
    "Command to run for every alert (a rollback, a run that stops, refused updates, a "
    "round without clients), which it reads as JSON from its standard input.",
)


_HOOKS = flags.DEFINE_string(
    "hooks",
    "",
    "MODULE:NAME of a fljax.Hooks, or of a function that makes one: what else is to "
    "hear of rounds, messages and alerts.",
)


_VERSION = define.boolean("version", False, "Say which versions these are, and end.")


@flags.validator(_ALERT_COMMAND.name)
def _check_command(command: str) -> bool:
    try:
        return not command or bool(alerts.parse(command))
    except ValueError as error:
        raise flags.ValidationError(str(error)) from error


def _parse(arguments: list[str], folders: bool = False) -> list[str]:
    """Parses flags; a wrong one is one line and exit code 2."""
    try:
        _check_flagfiles(arguments)
        rest = flags.FLAGS(arguments)
        if len(rest) > 1 and not folders:
            raise flags.Error(
                f"expected flags such as --rounds=10, got {' '.join(rest[1:])!r}"
            )
        if _VERSION.value:
            print(versions())
            sys.exit(0)
        return rest
    except flags.UnrecognizedFlagError as error:
        from experiments import flags as config_flags

        sys.exit(_complain(ValueError(config_flags.explain(error))))
    except (flags.Error, OSError, ValueError) as error:
        sys.exit(_complain(error))


def versions() -> str:
    """Says in a line which versions of fljax, JAX and Python these are."""
    return (
        f"fljax {version.VERSION}, jax {jax.__version__}, "
        f"Python {platform.python_version()}"
    )


_DEEP = 20  # files of flags, each within another


def _check_flagfiles(arguments: Sequence[str], within: tuple[str, ...] = ()) -> None:
    """Checks the files of flags, whose reader waits for ever for what is no file.

    Raises:
      ValueError: one is none, is no text, or lies within too many others.
    """
    for path in _flagfiles(arguments):
        # What a shell gives for <(...) can be read once only. absl passes over a file
        # within itself.
        if path.startswith("/dev/fd/") or path in within:
            continue
        if len(within) == _DEEP:
            raise ValueError(f"--flagfile: expected at most {_DEEP} within each other")
        reading.check("--flagfile", path)
        with reading.one_line(f"--flagfile: {path}"):
            lines = pathlib.Path(path).read_text().splitlines()
        _check_flagfiles(lines, (*within, path))


def _flagfiles(arguments: Sequence[str]) -> Iterator[str]:
    """Gives the paths of --flagfile=PATH and --flagfile PATH."""
    for argument, after in zip(arguments, (*arguments[1:], ""), strict=True):
        name, equals, value = argument.strip().partition("=")
        path = value if equals else after
        if name in ("-flagfile", "--flagfile") and path.strip():
            yield os.path.expanduser(path.strip())


def _join() -> None:
    """Joins the other processes of a run on several hosts."""
    where = _COORDINATOR.value
    number, count = _PROCESS_ID.value, _NUM_PROCESSES.value
    numbered = number >= 0 or count > 0
    if where in ("", "auto") and numbered:
        raise ValueError(
            "--process_id and --num_processes: expected with --coordinator=HOST:PORT, "
            f"got --coordinator={where!r}"
        )
    if where == "auto":
        try:
            jax.distributed.initialize(
                initialization_timeout=_START_SECONDS,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=_HEARTBEAT_SECONDS,
            )
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            raise ValueError(
                f"--coordinator=auto: expected a cluster that tells its processes, "
                f"got: {error}"
            ) from error
    elif where:
        if not 0 <= number < count:
            raise ValueError(
                f"--process_id: expected 0 to --num_processes - 1, got {number} of "
                f"{count}"
            )
        _check_address(where, number)
        try:
            jax.distributed.initialize(
                where,
                count,
                number,
                initialization_timeout=_START_SECONDS,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=_HEARTBEAT_SECONDS,
            )
        except jax.errors.JaxRuntimeError as error:
            raise ValueError(
                f"--coordinator: expected {count} processes at {where} within "
                f"{_START_SECONDS} s, got: {error}"
            ) from error


def _check_address(where: str, number: int) -> None:
    """Checks HOST:PORT: JAX would wait for two minutes and abort.

    Raises:
      ValueError: it is none, or process 0 cannot listen there.
    """
    host, _, port = where.rpartition(":")
    wrong = f"--coordinator: expected HOST:PORT or auto, got {where!r}"
    if not re.fullmatch(r"[^\s/:]+|\[[^\s/]+\]", host):
        raise ValueError(wrong)
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise ValueError(f"{wrong}, whose port is not from 1 to {2**16 - 1}")
    try:
        socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        if number == 0:
            socket.create_server(("", int(port))).close()
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{wrong} ({error})") from error


def _expect_abort() -> None:
    """Explains what JAX does where process 0 is gone: it aborts, whatever runs.

    Python's own handlers wait until what runs is done, and an abort waits for nobody.
    """
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(_: int) -> None:
    _lost("JAX aborted, see above")


def is_first() -> bool:
    """Tells whether this is the process that prints and writes."""
    return jax.process_index() == 0


def _lost(error: BaseException | str) -> None:
    """Ends this process, since another one of the run is gone."""
    kept = "start all of them again and the run goes on from its last checkpoint"
    lost = "start all of them again; without --workdir nothing was kept"
    print(
        f"error: process {jax.process_index()} of {jax.process_count()} lost contact "
        f"with another process of the run; {kept if WORKDIR.value else lost} "
        f"({' '.join(str(error).split())[:200]})",
        file=sys.stderr,
        flush=True,
    )
    os._exit(3)  # the orderly way out would wait for who is gone


def _own(flag: flags.FlagHolder[str], read: str) -> str:
    """Gives the folder of a cache, made; empty, with a note, where others may write.

    Args:
      flag: that names it.
      read: pattern of what will be read from it.
    """
    if not flag.value or "://" in flag.value:  # JAX reads from some stores by address
        return flag.value
    try:
        folder = pathlib.Path(flag.value).expanduser()
        why = private.own(folder, read)
    except (OSError, RuntimeError) as error:  # of expanduser
        if flags.FLAGS[flag.name].present:
            raise ValueError(
                f"--{flag.name}: expected a folder of this user's, got {flag.value!r} "
                f"({error})"
            ) from error
        why = str(error)
    if why:
        print(f"note: --{flag.name} is not used: {why}", file=sys.stderr)
        return ""
    return str(folder)


def data_cache() -> str:
    """Gives the folder of --data_cache; empty: none."""
    return _own(DATA_CACHE, "*/*")


@contextlib.contextmanager
def hooks() -> Iterator[simulation.Hooks]:
    """Gives what --hooks and --alert_command want to hear of runs."""
    given = _given_hooks(_HOOKS.value) if _HOOKS.value else simulation.Hooks()
    if not (_ALERT_COMMAND.value and is_first()):
        yield given
        return
    with alerts.Command(_ALERT_COMMAND.value, progress.say) as command:
        yield simulation.together(given, simulation.Hooks(alert=command))


def _given_hooks(name: str) -> simulation.Hooks:
    """Imports the hooks of MODULE:NAME.

    Raises:
      ValueError: there are none.
    """
    module, _, there = name.partition(":")
    found: Any = None
    why = ""
    try:
        found = operator.attrgetter(there)(importlib.import_module(module))
        if callable(found):
            found = found()
    except Exception as error:  # whatever a user's module raises
        why = f" ({reading.gist(error)})"
    if not isinstance(found, simulation.Hooks):
        raise ValueError(
            f"--hooks: expected MODULE:NAME of a fljax.Hooks or of a function that "
            f"makes one, got {name!r}{why}"
        )
    return found


def _keep_programs() -> None:
    """Has JAX keep compiled programs in --compilation_cache."""
    folder = _own(_CACHE, programs.KEPT)
    if not (private.home() or folder or flags.FLAGS[_CACHE.name].present):
        print("note: this user has no home: no program is kept", file=sys.stderr)
    programs.keep(folder)


def folder(default: str) -> pathlib.Path:
    """Gives the folder of --workdir, which is this one where none is given."""
    flag = flags.FLAGS[WORKDIR.name]
    flag.value = flag.value or default
    return pathlib.Path(flag.value)


def _complain(error: BaseException) -> int:
    text = str(error) or reading.gist(error)
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return 2


def run(main: Callable[..., None], folders: bool = False) -> None:
    """Runs a command line's main; with `folders` it gets what is no flag as a list.

    Bad input (ValueError, OSError of a path, MemoryError) is one line and exit code 2,
    a diverged run likewise with 1, Ctrl-C with 130, another host that is gone 3.
    """

    def guarded(arguments: list[str]) -> int:
        logging.set_verbosity(logging.WARNING)  # jax tells of backends it has not
        try:
            _keep_programs()
            _join()
            environment.check()
            if _COORDINATOR.value:
                _expect_abort()
            main(arguments[1:]) if folders else main()
        except jax.errors.JaxRuntimeError as error:
            if not _COORDINATOR.value or str(error).startswith(_OUR_OWN):
                raise
            _lost(error)
        except (ValueError, OSError, MemoryError) as error:
            if os.environ.get("FLJAX_TRACEBACK"):
                raise
            return _complain(error)
        except simulation.DivergedError as error:
            _complain(error)
            return 1
        return 0

    try:
        with interrupts.heard():
            app.run(guarded, flags_parser=lambda given: _parse(given, folders))
    except KeyboardInterrupt:
        kept = "the same command goes on from here"
        lost = "without --workdir nothing is kept"
        workdir = flags.FLAGS.is_parsed() and WORKDIR.value
        print(f"stopped; {kept if workdir else lost}", file=sys.stderr)
        interrupts.leave()
