"""Pieces of one's own that do not fit are one line, before anything is compiled."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest

import fljax
from fljax.algorithms import feddyn, fednova, fedopt, pieces, scaffold
from fljax.engine import seams as kinds
from fljax.updates import aggregates, codecs, local_rule, server_rule

BLOCKS = (
    {"params": {"w": jax.ShapeDtypeStruct((3, 2), jnp.float32)}, "norms": {}},
    {"params": {"b": jax.ShapeDtypeStruct((4,), jnp.float32)}, "norms": {}},
)


def check(**parts):
    seams = kinds.Seams(**parts)
    pieces.check_kinds(seams)
    pieces.check_traced(seams, BLOCKS)


@dataclasses.dataclass(frozen=True)
class Codec(codecs.Elementary):
    """Gives what its field says."""

    size: int = 10
    memories = 0

    def apply(self, key, update, part, memory):
        return update[: self.size], memory

    def code(self, key, vector, part):
        return vector

    def message(self, message, size):
        return message


@dataclasses.dataclass(frozen=True)
class Forgets(Codec):
    """Keeps an error memory, and gives none."""

    memories = 1

    def apply(self, key, update, part, memory):
        return update, ()


@dataclasses.dataclass(frozen=True)
class Counts(Codec):
    """Gives bytes instead of a message, or fails."""

    fails: bool = False

    def message(self, message, size):
        return message.total if self.fails else 4 * size


@dataclasses.dataclass(frozen=True)
class Aggregate(fljax.Aggregate):
    """Gives a number instead of a vector, or fails."""

    fails: bool = False

    def locate(self, rows, here):
        return rows @ here if self.fails else jnp.mean(rows)


@dataclasses.dataclass(frozen=True)
class Server(fljax.ServerRule):
    """Gives no state."""

    def step(self, state, params, got):
        return got.delta


@dataclasses.dataclass(frozen=True)
class Reads(fljax.ServerRule):
    """Reads a message."""

    def step(self, state, params, got):
        return jax.tree.map(jnp.add, got.delta, got.message), state


@dataclasses.dataclass(frozen=True)
class Local(fljax.LocalRule):
    """Keeps a state, and does not make it."""

    keeps = True


@dataclasses.dataclass(frozen=True)
class Sends(fljax.LocalRule):
    """Sends a number, and does not say so."""

    def finish(self, shared, own, local):
        return local_rule.Finished(local.delta, numbers=jnp.ones(1))


@dataclasses.dataclass(frozen=True)
class Pulls(fljax.LocalRule):
    """Adds something of another shape to gradients."""

    def transform(self, shared, own):
        return optax.stateless(lambda g, params: jax.tree.map(jnp.sum, g))


class Unhashable(Local):
    """Has an equality, and so no hash."""

    def __eq__(self, other):
        return True


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"codec": "top_k:.1"}, "codec: expected an instance of fljax.Codec, got 'top"),
        ({"codec": codecs.Codec}, "codec: expected an instance of fljax.Codec, got <c"),
        ({"aggregate": None}, "aggregate: expected an instance .*Aggregate, got None"),
        ({"server": optax.sgd(1.0)}, "server: expected an instance of fljax.ServerRul"),
        ({"local": Unhashable()}, r"local: .*frozen=True\), .* got Unhashable"),
        (
            {"codec": Codec(4)},
            r"Codec\(size=4\): expected apply to give \[10\], g",
        ),
        (
            {"codec": Forgets()},
            r"expected apply to give \('\[10\]', \('\[10\]',\)\)",
        ),
        ({"codec": Counts()}, "expected message to give a .*Message of 10 .* got 40"),
        (
            {"codec": Counts(10, True)},
            "expected message .* got AttributeError: .*tot",
        ),
        ({"aggregate": Aggregate()}, r"expected locate to give \[10\], got \[\]"),
        ({"aggregate": Aggregate(True)}, "expected locate to run on .* TypeError: dot"),
        ({"server": Server()}, "expected step to give"),
        ({"server": Reads()}, "expected step to run on .* got ValueError: "),
        ({"server": fljax.server_rule(optax.adam)}, "expected init .*learning_rate"),
        ({"local": Local()}, "expected own to run .* makes it in `own`"),
        ({"local": Sends()}, "expected finish to give"),
        ({"local": Pulls()}, r"expected transform to give \[3, 2\], got \[\]"),
        ({"local": scaffold.Corrected()}, "expected transform to run"),  # no c is sent
    ],
)
def test_a_piece_that_does_not_fit_is_one_line(parts, words):
    with pytest.raises(ValueError, match=words) as error:
        check(**parts)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"codec": codecs.read("clip:1+top_k:.5+qsgd:3")},
        {"codec": codecs.read("drive")},
        {"aggregate": aggregates.TrimmedMean()},
        {"server": fljax.server_rule(optax.adamw, 0.1)},
        {"server": fedopt.Adaptive("yogi")},
        {"local": scaffold.Corrected(1), "server": scaffold.Control(9)},
        {"local": feddyn.Regularized(), "server": feddyn.Dynamic(9)},
        {"local": fednova.Normalized(0.9), "server": fednova.Rescaled()},
        {"local": fljax.LocalRule(), "server": server_rule.Averaging()},
    ],
)
def test_pieces_that_fit_are_taken(parts):
    check(**parts)


def test_an_optimizer_is_no_factory():
    with pytest.raises(ValueError, match=r"such as server_rule\(optax.adam, 1e-2\), g"):
        fljax.server_rule(optax.adam(1e-2))
