"""What evaluates the network of an experiment: test set, tiers, clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fljax import tasks
from fljax.algorithms import base
from fljax.data import partition
from fljax.devices import fleet
from fljax.engine import evaluate
from fljax.engine import seams as kinds
from fljax.experiment import client_evaluation
from fljax.nn import slicing
from fljax.runs import simulation
from fljax.runtime import memory, mesh
from fljax.updates import attacks


class _Tiers(NamedTuple):
    """The tiers' shares of the data.

    Attributes:
      mixes: [T, C] of the training data; None: there are no classes.
      tested: [examples, T] whose the test examples are; None: nobody knows.
    """

    mixes: np.ndarray | None
    tested: np.ndarray | None


Shares = Callable[[np.ndarray], _Tiers]  # of the tier [N] of each client


def shares_of(config, task: tasks.Task, data, parts, tiers: int) -> Shares:
    """Tells what so many tiers train on, and are tested on.

    Raises:
      ValueError: the test set has no class of the training set.
    """
    by_class = task.classes  # else all examples are as of one class
    ours, theirs = (
        y if by_class else np.zeros(len(y), np.int32)
        for y in (data.y_train, data.y_test)
    )
    counts = partition.class_counts(ours, parts, data.num_classes if by_class else 1)
    there = np.unique(theirs)
    if by_class and not counts[:, there].any():
        raise ValueError(
            f"--dataset: {config.dataset}: expected a test set with classes of the "
            f"training set, got {there.tolist()} there and "
            f"{np.unique(ours).tolist()} here"
        )

    def shares(tier: np.ndarray) -> _Tiers:
        by_tier = evaluate.tier_counts(counts, tier, tiers)
        tested = _tiers_of_test(config, theirs, data.users_test, tier, by_tier)
        mixes = evaluate.tier_mixes(counts, tier, tiers) if by_class else None
        return _Tiers(mixes, tested)

    return shares


def _tiers_of_test(config, classes, users_test, tier, by_tier) -> np.ndarray | None:
    """Tells whose the test examples are, [examples, tiers]; None: nobody knows."""
    if config.partition != "natural":
        return evaluate.tiers_of_test(classes, by_tier, config.seed)
    if users_test is None:
        return None
    of_users = np.where(users_test >= 0, tier[users_test], -1)
    return evaluate.one_hot(of_users, len(by_tier))


Whose = tuple[Shares, client_evaluation.Who | None]  # the test examples are


def evaluator(
    config,
    fed,
    test_data,
    whose: Whose,
    width: float = 1.0,
    seams: kinds.Seams = kinds.NONE,
) -> simulation.Evaluator:
    """Makes what evaluates the network, its first blocks or leading channels."""
    shares, tested = whose
    task, cut, (net, _) = fed.training.task, None, fed.model.at(width)
    backdoor = attacks.backdoor(fed.rules.attack)
    static = evaluate.Static(net, task, config.norm_statistics == "running", backdoor)
    size, over = len(test_data.y), fed.layout.devices
    batch_size = min(config.eval_batch_size, size)
    largest = max(count.outputs for count in fed.model.counts)
    memory.require(
        "--eval_batch_size",
        f"batches of {batch_size:,} examples",
        4 * batch_size * largest,
        memory.of_device(),
    )
    if width < 1:
        cut = mesh.replicate(over, slicing.places(fed.model.net, fed.model.cut(width)))

    def laid_out(tier: np.ndarray) -> tuple[np.ndarray | None, evaluate.Batches]:
        mixes, tested = shares(tier)
        order = evaluate.batches(size, batch_size, config.seed, over.size, tested)
        return mixes, mesh.distribute(over, order)

    devices, each = fed.population.fleet, None
    tier = fleet.sorted_at(devices, config.seed, 0)
    names, last = devices.known_as, (tier, laid_out(tier))
    if tested is not None:
        each = client_evaluation.make(tested, fed, static, test_data, batch_size)
        each = each.of(seams)

    def scores(state: base.State) -> evaluate.Scores:
        nonlocal last
        if state.classes is not None and not np.array_equal(state.classes, last[0]):
            last = state.classes, laid_out(state.classes)
        mixes, batches = last[1]
        blocks = mesh.replicate(over, state.server.blocks[: net.num_blocks])
        if cut is not None:
            blocks = slicing.take(blocks, cut)
        sums = evaluate.evaluate(
            blocks,
            test_data,
            batches,
            static=static,
            devices=over,
        )
        if each is not None:
            sums = sums._replace(clients=each.run(blocks, state, last[0]))
        return sums._replace(mixes=mixes, width=None if width == 1 else width)

    def fields(sums) -> dict:
        found = evaluate.summary(sums, sums.mixes, names, task)
        if each is not None:
            found |= each.fields(sums.clients, names)
        if sums.width is not None:
            found["evaluated_width"] = float(sums.width)
        return found

    def other(
        algorithm: base.Algorithm, attack: attacks.Attack | None
    ) -> simulation.Evaluator:
        mine = fed.having(attack=attack)
        if algorithm.federation is not None:  # which says how channels are counted
            model = algorithm.federation.model
            mine = mine.having(model=model.upto(algorithm.depth or len(model.counts)))
        width, seams = algorithm.evaluated, algorithm.seams
        return evaluator(config, mine, test_data, whose, width, seams)

    every = config.eval_every
    return simulation.Evaluator(
        scores, fields, every, size, task.measure, backdoor, other
    )
