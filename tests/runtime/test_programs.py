"""Programs: in order, traced anew in every process, kept on disk by what they are."""

import functools
import os

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental.compilation_cache import compilation_cache

from fljax import experiment
from fljax.engine import group
from fljax.experiment import config
from fljax.runtime import programs
from fljax.tasks import classification


def loss(x):
    return 2 * x


@functools.partial(jax.jit, static_argnames="factor")
def scaled(x, *, factor):
    return loss(factor * x)


def request(factor=3):
    return programs.Request(scaled, (jnp.arange(2.0),), {"factor": factor})


@pytest.fixture
def folder(kept):
    """Gives the folder of JAX's cache, which keeps here what compiles in no time."""
    name = "jax_persistent_cache_min_compile_time_secs"
    old = jax.config.values[name]
    jax.config.update(name, 0)
    compilation_cache.reset_cache()
    yield kept
    jax.config.update(name, old)
    compilation_cache.reset_cache()


def run(wanted):
    """Makes one program as a new process would, and calls it."""
    scaled.clear_cache()
    (program,) = programs.compile_all([wanted])
    return program(*wanted.arguments).tolist()


def test_maps_are_counted_where_they_are_told():
    assert not programs.crowded(share=1.0)
    if os.path.exists("/proc/self/maps"):
        assert programs.crowded(share=0.0)


def test_the_oldest_are_removed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "MOST_BYTES", 100)
    place = tmp_path
    for age, name in enumerate(("new-cache", "old-cache", "oldest-cache", "mine.txt")):
        (place / name).write_bytes(b"x" * 60)
        os.utime(place / name, (1000 - age, 1000 - age))
    programs.trim(place.glob("*-cache"))
    assert {path.name for path in place.iterdir()} == {"new-cache", "mine.txt"}
    programs.trim((tmp_path / "absent").glob("*-cache"))


def test_what_was_made_before_comes_from_disk(folder):
    before = programs.found_on_disk()
    assert [run(request()) for _ in range(2)] == [[0, 6]] * 2
    assert programs.found_on_disk() == before + 1
    assert list(folder.glob("*-cache"))


def test_a_function_that_somebody_replaced_is_another_program(folder, monkeypatch):
    assert run(request()) == [0, 6]

    @functools.wraps(loss)
    def mine(x):
        return -x

    monkeypatch.setitem(globals(), "loss", mine)
    assert run(request()) == [0, -3]


@pytest.mark.long
def test_a_loss_that_somebody_replaced_is_what_trains(folder, monkeypatch):
    settings = config.Config(
        network="logistic",
        algorithm="fedavg",
        num_clients=40,
        clients_per_round=1,
        rounds=1,
    )
    ready = experiment.build(settings)
    # All of JAX's would take long to be made anew.
    monkeypatch.setattr(jax, "clear_caches", group.run_group.clear_cache)

    def train_loss():
        group.forget()
        (record,) = experiment.run(ready).records
        return record["train_loss"]

    old = classification.cross_entropy
    first = train_loss()
    assert train_loss() == first > 1  # from disk
    mine = functools.wraps(old)(lambda *operands: old(*operands) / 1000)
    monkeypatch.setattr(classification, "cross_entropy", mine)
    assert 0 < train_loss() < first / 100
    group.forget()


def test_a_damaged_file_is_made_anew(folder):
    run(request())
    for file in folder.glob("*-cache"):
        file.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache"):
        assert run(request()) == [0, 6]


def test_without_a_folder_nothing_is_kept(folder):
    with programs.anew():
        assert run(request()) == [0, 6]
    assert not list(folder.iterdir())
    assert jax.config.values["jax_compilation_cache_dir"] == str(folder)


def test_many_come_back_in_order():
    wanted = [request(factor) for factor in (5, 1, 4)]
    made = programs.compile_all(wanted)
    results = [p(*r.arguments) for p, r in zip(made, wanted, strict=True)]
    assert [r.tolist()[1] for r in results] == [10, 2, 8]


def test_barriers_stay_between_what_is_read_several_times():
    # XLA's CPU compiler would compute the codes once for each that reads them.
    if "xla_disable_hlo_passes" not in programs.compiler_options():
        pytest.skip("this compiler strips barriers")

    def codes(x):
        y = lax.optimization_barrier(jnp.round(x * 3).astype(jnp.int8))
        return y[:, :2] + 1, jnp.flip(y, 1)

    lowered = jax.jit(codes).lower(jnp.ones((4, 4)))
    plain = lowered.compile().as_text()
    kept = lowered.compile(compiler_options=programs.compiler_options()).as_text()
    assert plain.count("opt-barrier") == 0 < kept.count("opt-barrier")


def test_options_that_the_compiler_refuses_are_left_out(monkeypatch):
    if jax.default_backend() != "cpu":
        pytest.skip("options are of the compiler for CPUs")
    wanted = {"xla_no_such_option": 1, "xla_cpu_prefer_vector_width": 512}
    monkeypatch.setattr(programs, "_CPU_OPTIONS", wanted)
    taken = programs.compiler_options.__wrapped__()
    assert taken == {"xla_cpu_prefer_vector_width": 512}
