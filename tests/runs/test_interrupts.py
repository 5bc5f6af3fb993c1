"""Ctrl-C while Python cannot listen, where it would be forgotten, and twice."""

import subprocess
import sys

import pytest

BODIES = {
    # In what Python ignores exceptions of, as JAX's callback of the garbage collector.
    "deaf": """
class Deaf:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        time.sleep(.01)
Deaf()
for _ in range(400):  # it is heard between two steps of Python
    time.sleep(.05)
""",
    # Twice, while the main thread is in a step that takes long.
    "twice": """
threading.Timer(.2, signal.raise_signal, [signal.SIGINT]).start()
threading.Timer(.4, signal.raise_signal, [signal.SIGINT]).start()
ctypes.CDLL(None).sleep(20)
""",
}


@pytest.mark.parametrize(
    ("body", "last"), [("deaf", "interrupted"), ("twice", "stopped at once")]
)
def test_ctrl_c_is_heard(body, last):
    lines = "\n".join(f"        {line}" for line in BODIES[body].splitlines())
    program = f"""
import ctypes, signal, sys, threading, time
from experiments import interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
try:
    with interrupts.heard():
{lines}
except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    interrupts.leave()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 130, done.stderr
    first = "stopping when what runs now is done; Ctrl-C again: at once"
    assert done.stderr.splitlines() == [first, last]


def test_what_is_ignored_stays_ignored():
    program = """
import signal
from experiments import interrupts
signal.signal(signal.SIGINT, signal.SIG_IGN)
with interrupts.heard():
    signal.raise_signal(signal.SIGINT)
print("on")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "")


def test_ctrl_c_while_a_command_line_imports_ends_it():
    program = """
import runpy, signal, sys
class Stop:  # in the place of the first module that takes long
    def find_spec(self, name, path=None, target=None):
        if name == "jax":
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Stop())
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["-m"]  # as Python leaves it until it has found the module
runpy.run_module("experiments.train", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")
