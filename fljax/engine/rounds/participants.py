"""Who takes part in a round: the cohort, who of it is hostile, who shares masks.

Legend: N all clients, A who arrive, K these with the padding of the cohort.
"""

from __future__ import annotations

import numpy as np

from fljax import plans
from fljax.devices import arrivals, clock, failures
from fljax.engine import cohort, federation, schedule
from fljax.engine import sums as totals
from fljax.engine.rounds import setting
from fljax.runtime import streams
from fljax.updates import secure_sum


def gather(
    rounds: setting.Rounds,
    assignment: schedule.Assignment,
    states: np.ndarray | None = None,
    masks: secure_sum.Masking | None = None,
) -> cohort.Clients:
    """Gathers the cohort of a round: who arrives, with padding.

    Args:
      rounds: of the run.
      assignment: of the round.
      states: [A, S], of `setting.Begun`; so is `masks`.
      masks: who shares which; None: there are none.

    Returns:
      The clients, in host memory, [K].
    """
    work, rules = assignment.outcome.arrived, rounds.fed.rules.clock
    windows = [(plan.first, plan.last) for plan in assignment.plans]
    gathered = cohort.gather(
        assignment.ids,
        rounds.fed.population.shards,
        rounds.weights,
        rounds.size,
        factors=cohort.Factors(
            failures.tampering(work.faults),
            clock.weight(rules, assignment.round, work.versions),
        ),
        windows=np.array(windows).reshape(-1, 2),
    )
    if rounds.rooted:
        gathered = gathered._replace(
            ids=np.append(np.int32(cohort.SERVER), gathered.ids[1:])
        )
    hostile = hostile_of(rounds, assignment)
    if hostile is not None:
        hostile = np.pad(hostile, (0, rounds.size - len(hostile)))
    return gathered._replace(
        states=None if states is None else _padded(rounds, states),
        hostile=hostile,
        partners=None if masks is None else masks.rows,
    )


def _padded(rounds: setting.Rounds, rows: np.ndarray) -> np.ndarray:
    """Fills the rows of those who arrive up to those of the cohort, [K, ..]."""
    before = int(rounds.rooted)
    return np.pad(rows, ((before, rounds.size - len(rows) - before), (0, 0)))


def with_server(
    rounds: setting.Rounds, assignment: schedule.Assignment
) -> schedule.Assignment:
    """Puts the server in front of who arrives, where it trains its root set.

    It trains everything as a client would, unless nobody arrives.

    Args:
      rounds: of the run.
      assignment: of the round.

    Returns:
      The assignment with the server in it, if it trains.
    """
    if not rounds.rooted or not len(assignment.ids):
        return assignment
    number, outcome = len(rounds.weights) - 1, assignment.outcome
    own = schedule.by_hand(
        assignment.round, np.array([number]), [plans.full(len(rounds.sizes[0]))]
    )
    pairs = zip(own.outcome.arrived, outcome.arrived, strict=True)
    arrived = arrivals.Work(*map(np.concatenate, pairs))
    return assignment._replace(
        ids=np.append(own.ids, assignment.ids),
        plans=[*own.plans, *assignment.plans],
        outcome=outcome._replace(arrived=arrived),
    )


def hostile_of(
    rounds: setting.Rounds, assignment: schedule.Assignment
) -> np.ndarray | None:
    """Tells which of those who arrive are hostile, [A] bool; None: nobody is."""
    return None if rounds.hostile is None else rounds.hostile[assignment.ids]


def attackers(
    rounds: setting.Rounds, assignment: schedule.Assignment
) -> totals.Attackers | None:
    """Says what the server's step needs of hostile clients who collude.

    Args:
      rounds: of the run.
      assignment: of the round.

    Returns:
      It, on every device; None: nobody colludes.
    """
    if not rounds.seams.colludes:
        return None
    clients = gather(rounds, with_server(rounds, assignment))
    key = federation.round_key(rounds.fed.seed, assignment.round)
    return rounds.everywhere(
        totals.Attackers(
            clients.hostile, clients.ids, clients.weights, clients.tampering, key
        )
    )


def masks(
    rounds: setting.Rounds, assignment: schedule.Assignment
) -> secure_sum.Masking | None:
    """Says who of a round shares masks with whom (Bonawitz et al., CCS 2017).

    Args:
      rounds: of the run.
      assignment: of the round; all that begin it have partners, whoever arrives.

    Returns:
      The partners, in host memory; None: no masks are added.
    """
    words, done = rounds.seams.secure, assignment.outcome.finished
    if words is None or not words.masks:
        return None
    numbers, assigned = done.ids.tolist(), assignment.finished
    windows = {
        number: (plan.first, plan.last)
        for number, plan in zip(numbers, assigned, strict=True)
    }
    ring = streams.generator(rounds.fed.seed, streams.RING, assignment.round)
    order = ring.permutation(sorted(windows))
    found = secure_sum.partners(order, windows, words.neighbours)
    # With everybody a pair shares one stretch of blocks; on rings it may be more.
    most = words.neighbours
    if most < rounds.size - 1:
        most *= rounds.fed.model.net.num_blocks
    return secure_sum.masking(assignment.ids, found, (rounds.size, most))
