"""Variables that change results or platforms: followed, named in a line, or refused."""

import os
import subprocess
import sys

import jax
import pytest

from experiments import main, train
from fljax import experiment
from fljax.experiment import config, environment
from fljax.runtime import private


@pytest.fixture
def setting():
    """Gives a function that changes a setting of JAX for this test."""
    old = {}

    def change(name, value):
        old[name] = getattr(jax.config, name)
        jax.config.update(name, value)

    yield change
    for name, value in old.items():
        jax.config.update(name, value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("jax_enable_x64", True, "expected False, since fljax computes in 32 bits"),
        ("jax_disable_jit", True, "expected False, since fljax runs compiled"),
        ("jax_numpy_dtype_promotion", "strict", "expected standard"),
        ("jax_numpy_rank_promotion", "raise", "expected allow"),
        ("jax_transfer_guard_device_to_device", "disallow", "expected None"),
    ],
)
def test_what_fljax_cannot_run_with_is_refused(call, setting, name, value, words):
    setting(name, value)
    with pytest.raises(ValueError, match=f"{name.upper()}: {words}"):
        experiment.build(config.Config())
    done = call(train)
    assert done.code == 2
    assert done.err.startswith(f"error: {name.upper()}: {words}")
    assert done.err.count("\n") == 1


def test_a_platform_that_is_not_there_is_one_line(monkeypatch):
    def absent():
        raise RuntimeError("Unable to initialize backend 'tpu'")

    monkeypatch.setattr(jax, "devices", absent)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    with pytest.raises(ValueError, match="JAX_PLATFORMS=tpu: expected a platform"):
        environment.check()


def test_flags_that_would_end_the_process_are_one_line():
    with pytest.raises(
        ValueError, match="XLA_FLAGS: expected flags of XLA, got '--no_such"
    ):
        environment._check_flags("--no_such=1")


def test_what_changes_results_is_named(monkeypatch):
    for name in list(os.environ):
        if name.startswith("JAX_") or name in environment._OTHERS:
            monkeypatch.delenv(name)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "x")
    assert environment.notes() == []
    monkeypatch.setenv("JAX_DEFAULT_PRNG_IMPL", "rbg")
    monkeypatch.setenv("XLA_FLAGS", "--a")
    (line,) = environment.notes()
    assert line == "results may differ by JAX_DEFAULT_PRNG_IMPL=rbg, XLA_FLAGS=--a"


def python(*arguments, **variables):
    """Runs Python in a process of its own."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_value_that_jax_refuses_is_one_line():
    done = python("-m", "experiments.plot", MPLBACKEND="no", JAX_ENABLE_X64="maybe")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: a JAX_* variable: invalid truth value 'maybe'"
    )
    assert done.stderr.count("\n") == 1


def test_jaxs_variable_is_the_default_of_the_flag(tmp_path):
    program = "from experiments import main; print(main._CACHE.default)"
    done = python("-c", program, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    assert done.stdout.strip() == str(tmp_path)


def test_who_has_no_home_keeps_nothing(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without one
    assert private.home() == ""
    monkeypatch.setenv("XDG_CACHE_HOME", "/of/mine")
    assert private.home() == "/of/mine/fljax"


@pytest.mark.parametrize(
    "where",
    ["a:0", "a:65536", "a:99999999", "a:" + "9" * 5000, "a:b:80", "http://a:80", ":80"],
)
def test_an_address_that_is_none_is_refused_at_once(where):
    with pytest.raises(ValueError, match="--coordinator: expected HOST:PORT or auto"):
        main._check_address(where, 1)


def test_a_port_that_is_taken_is_refused_at_once():
    with main.socket.create_server(("", 0)) as server:
        where = f"localhost:{server.getsockname()[1]}"
        main._check_address(where, 1)
        with pytest.raises(ValueError, match="in use"):
            main._check_address(where, 0)
