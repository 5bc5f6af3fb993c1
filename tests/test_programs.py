"""Programs on disk: loaded, not traced, unless something they depend on has moved."""

import functools
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from jax import lax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from fljax import augment, client, flax_block, models, programs


class Pair(NamedTuple):
    """A tree that must survive."""

    a: jax.Array
    b: jax.Array


TRACED = []


@functools.partial(jax.jit, static_argnames="factor", donate_argnums=(1,))
def scaled(x, pair, *, factor):
    """Counts how often it is traced."""
    TRACED.append(factor)
    return Pair(pair.a + factor * x, pair.b)


def request(factor=3, shape=(2,), keep=True):
    x = jnp.arange(shape[0], dtype=jnp.float32)
    pair = Pair(jnp.ones(shape), jnp.zeros(()))
    return programs.Request(scaled, (x, pair), {"factor": factor}, pair, keep)


@pytest.fixture
def folder(kept):
    """Gives the folder of programs, of this test alone."""
    TRACED.clear()
    return kept / "programs"


def run(wanted):
    """Makes one program and calls it."""
    scaled.clear_cache()
    (program,) = programs.compile_all([wanted])
    result = program(*wanted.arguments)
    assert isinstance(result, Pair)
    return result.a.tolist()


def test_maps_are_counted_where_they_are_told():
    assert not programs.crowded(share=1.0)
    if os.path.exists("/proc/self/maps"):
        assert programs.crowded(share=0.0)


def test_what_was_used_longest_ago_makes_room(folder, monkeypatch):
    run(request(1))
    (first,) = folder.iterdir()
    size = first.stat().st_size
    monkeypatch.setattr(programs, "MOST_BYTES", 2.5 * size)
    os.utime(first, (1, 1))
    run(request(2))
    (second,) = set(folder.iterdir()) - {first}
    os.utime(second, (2, 2))
    run(request(1))  # from disk: used once more
    run(request(3))
    there = set(folder.iterdir())
    assert len(there) == 2
    assert first in there
    assert second not in there


def test_the_oldest_are_removed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "MOST_BYTES", 100)
    place = tmp_path
    for age, name in enumerate(("new-cache", "old-cache", "oldest-cache", "mine.txt")):
        (place / name).write_bytes(b"x" * 60)
        os.utime(place / name, (1000 - age, 1000 - age))
    programs.trim(place.glob("*-cache"))
    assert {path.name for path in place.iterdir()} == {"new-cache", "mine.txt"}
    programs.trim((tmp_path / "absent").glob("*-cache"))


def test_a_program_is_traced_once_for_all_processes(folder):
    assert run(request()) == [1, 4]
    assert run(request()) == [1, 4]
    assert TRACED == [3]
    assert len(list(folder.iterdir())) == 1


def test_what_differs_is_another_program(folder):
    run(request())
    assert run(request(factor=2)) == [1, 3]
    assert run(request(shape=(3,))) == [1, 4, 7]
    assert TRACED == [3, 2, 3]
    assert len(list(folder.iterdir())) == 3


def test_a_damaged_file_is_made_anew(folder):
    run(request())
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert run(request()) == [1, 4]
    assert run(request()) == [1, 4]
    assert TRACED == [3, 3]


def test_other_sources_are_other_programs(folder, monkeypatch):
    run(request())
    monkeypatch.setattr(programs, "_surroundings", lambda: "changed")
    run(request())
    assert TRACED == [3, 3]


@pytest.fixture
def both_caches(folder):
    """Has JAX keep what takes no time to compile, beside the programs."""
    name = "jax_persistent_cache_min_compile_time_secs"
    old = jax.config.values[name]
    jax.config.update(name, 0)
    compilation_cache.reset_cache()
    yield folder
    jax.config.update(name, old)
    compilation_cache.reset_cache()


def test_what_came_from_jaxs_cache_still_runs(both_caches, monkeypatch):
    # Another source of the same computation: JAX's cache has it, `programs` not.
    for source in ("one", "two", "two"):
        monkeypatch.setattr(programs, "_surroundings", lambda source=source: source)
        assert run(request()) == [1, 4]
    assert TRACED == [3, 3, 3]
    assert len(list(both_caches.iterdir())) == 1


def test_what_a_repr_does_not_describe_is_not_kept(folder):
    run(request(keep=False))
    run(request(keep=False))
    assert TRACED == [3, 3]
    assert not folder.exists()


class Mine(nn.Module):
    """A module of the user's, as far as the library knows."""

    @nn.compact
    def __call__(self, x):
        return x


def test_what_is_the_users_own_is_not_known_by_its_repr():
    known = [
        (1, "a", None, 2.5),
        models.BY_NAME["small_convnet"]((8, 8, 1), 3),
        client.Training(augment=augment.crop_flip),
        functools.partial(optax.sgd, momentum=0.9),
        flax_block.FlaxBlock(nn.Dense(3)),
        jax.nn.relu,
    ]
    assert all(programs.is_known(value) for value in known)
    own = [
        Mine(),
        (1, [Mine()]),
        flax_block.FlaxBlock(Mine()),
        flax_block.FlaxBlock(nn.Dense(3, kernel_init=lambda *_: 0)),
        functools.partial(optax.sgd, learning_rate=lambda step: 0.1),
        client.Training(optimiser=lambda rate: optax.sgd(rate)),
        {"a": Mine},
    ]
    assert not any(programs.is_known(value) for value in own)


def test_a_source_that_is_edited_while_it_compiles_keeps_nothing(folder, monkeypatch):
    monkeypatch.setattr(programs, "_sources", lambda: "edited")
    assert run(request()) == [1, 4]
    assert not folder.exists()


def test_a_program_that_cannot_be_loaded_is_made_anew(folder, monkeypatch):
    run(request())

    def refuse(*_, **__):
        raise ValueError("of another version")

    monkeypatch.setattr(serialize_executable, "deserialize_and_load", refuse)
    assert run(request()) == [1, 4]
    assert TRACED == [3, 3]


def test_without_a_folder_nothing_is_kept(folder, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", None)
    assert run(request()) == [1, 4]
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_costs_only_the_cache(folder):
    folder.write_text("a file is in the way")
    assert run(request()) == [1, 4]


def test_a_folder_that_is_only_to_be_read_from_is_read(folder, monkeypatch):
    run(request())

    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(os, "utime", refuse)  # root may write whatever the mode says
    assert run(request()) == [1, 4]
    assert TRACED == [3]


def test_many_come_back_in_order(folder):
    wanted = [request(factor) for factor in (5, 1, 4)]
    for _ in range(2):
        made = programs.compile_all(wanted)
        results = [
            p(*request(r.static["factor"]).arguments)
            for p, r in zip(made, wanted, strict=True)
        ]
        assert [r.a.tolist()[1] for r in results] == [6, 2, 5]


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
