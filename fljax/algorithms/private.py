"""Differential privacy of clients: what a federation's rounds spend, or are refused.

What a cohort hides is read off the rules of the round: Poisson cohorts and cohorts of
a fixed size, drawn uniformly, are accounted with amplification by sampling; where the
clock, failures or a fleet's comings and goings say who takes part, nothing is
amplified, and what counts are the rounds that a client takes part in.
"""

from __future__ import annotations

import dataclasses

from fljax import policies
from fljax.engine import federation
from fljax.engine import seams as kinds
from fljax.updates import privacy
from fljax.updates.privacy import accounting


def mechanism(fed: federation.Federation, clients: int) -> privacy.Mechanism | None:
    """Makes the mechanism of a federation's rounds.

    Args:
      fed: the federation; of its settings `rounds` are those of the run.
      clients: that may take part.

    Returns:
      The mechanism, its noise found if none is given; None: nothing is private.

    Raises:
      ValueError: one line; the budget cannot be kept.
    """
    asked = fed.rules.privacy
    if asked is None or not asked.clip:
        return None
    cohort, mean = _cohort(fed, clients), fed.rules.clients_per_round
    if asked.bands > 1 and asked.bands * mean > clients:
        raise ValueError(
            f"--privacy.bands: expected at most {clients // mean}, so that there are "
            f"clients for every round while others wait, got {asked.bands}"
        )
    most = asked.participations or None
    noise = asked.noise or _noise(asked, cohort)
    if asked.epsilon:
        times = accounting.times_for(cohort, noise, asked.delta, asked.epsilon)
        if not times:
            spent = accounting.epsilon(cohort, noise, asked.delta, 1)
            raise ValueError(
                f"--privacy.epsilon: expected at least {spent:.4g}, which the first "
                f"round spends with --privacy.noise={noise:g}, got {asked.epsilon:g}"
            )
        most = min(times, most or times)
    return privacy.Mechanism(
        asked.clip,
        noise,
        float(mean),
        _adaptive(asked, noise, mean),
        privacy.Ledger(cohort, asked.delta, most),
        asked.bands,
    )


def _noise(asked: privacy.Privacy, cohort: accounting.Cohort) -> float:
    """Finds the noise of a budget.

    Raises:
      ValueError: for an unknown number of rounds, or there is none.
    """
    if not asked.rounds:
        raise ValueError(
            "--privacy.rounds: expected the number of rounds that the noise is to be "
            "found for, got 0"
        )
    times = asked.rounds
    if cohort.by_client:  # who waits so long takes part so often
        times = -(-times // asked.bands)
    if asked.participations:
        times = min(times, asked.participations)
    return accounting.noise_for(cohort, asked.epsilon, asked.delta, times)


def _adaptive(
    asked: privacy.Privacy, noise: float, mean: int
) -> privacy.Adaptive | None:
    """Says how the clip norm moves.

    Raises:
      ValueError: the count takes all the noise that there is.
    """
    if not asked.quantile:
        return None
    deviation = asked.count_noise or mean / 20
    if 2 * deviation <= noise:
        raise ValueError(
            f"--privacy.count_noise: expected more than {noise / 2:.4g}, half of the "
            f"noise multiplier, which the updates share with the count, got "
            f"{deviation:g}"
        )
    return privacy.Adaptive(asked.quantile, asked.clip_rate, deviation)


def _cohort(fed: federation.Federation, clients: int) -> accounting.Cohort:
    """Says how cohorts are drawn."""
    rules, selection = fed.rules, fed.rules.selection
    number, asked = rules.clients_per_round, fed.rules.privacy
    if asked and (asked.participations or asked.bands > 1 or _seen(fed)):
        return accounting.Known()
    if type(selection) is policies.Poisson:
        most = selection.most(number, clients)
        return accounting.Poisson(clients, number, most)
    if type(selection) is policies.Uniform:
        return accounting.Fixed(clients, number)
    return accounting.Known()


def _seen(fed: federation.Federation) -> bool:
    """Tells whether more than the draw decides who takes part."""
    clock, people = fed.rules.clock, fed.population
    devices = people.fleet
    profile = devices.profile
    waits = clock.deadline or clock.over_selection > 1 or clock.carries
    fails = people.failures.total or profile.failure.any()
    goes = devices.trace is not None or devices.changes.diurnal
    return bool(waits or fails or goes or (profile.availability < 1).any())


def check(
    fed: federation.Federation, policy: policies.Policy, seams: kinds.Seams
) -> None:
    """Refuses what tells of clients beside the noisy sum, or weighs them differently.

    Args:
      fed: the federation.
      policy: which plan for which client.
      seams: of the algorithm.

    Raises:
      ValueError: one line that names the flag and says why.
    """
    rules, local = fed.rules, seams.local
    if seams.exits is not None:
        raise ValueError(
            "--privacy.clip: expected networks of one depth, got several: the mean of "
            "those who have a block would need noise for each number of them"
        )
    if seams.narrowing is not None:
        raise ValueError(
            "--privacy.clip: expected networks of one width, got several: the mean of "
            "those who have a value would need noise for each number of them"
        )
    if local is not None and (local.messages or local.numbers):
        raise ValueError(
            f"--privacy.clip: expected clients that send their updates alone, got "
            f"{local!r}, which sends more beside them than the clip norm bounds"
        )
    wrong = (
        ("aggregate", "mean", rules.aggregate, rules.aggregate.sees_updates,
         "whose result no clip norm bounds"),
        ("attack", "one that knows no updates of others", seams.attack, seams.colludes,
         "which sends what nobody clips"),
        ("weighting", "uniform", rules.weighting, rules.weighting != "uniform",
         "by which one client may count more than another"),
        ("norm_bound", "0", rules.norm_bound, bool(rules.norm_bound),
         "which goes by the norms of updates before there is noise"),
        ("policy", "one without losses", "one that asks for them", policy.needs_losses,
         "which no noise hides"),
        ("selection", "uniform or poisson", rules.selection, rules.selection.hears,
         "which hears losses that no noise hides"),
        ("clock.late", "drop", "carry", rules.clock.late == "carry",
         "by which the server corrects statistics for each late client"),
        ("clock.buffer", "0", rules.clock.buffer, bool(rules.clock.buffer),
         "by which the server corrects statistics for each late client"),
    )  # fmt: skip
    for flag, expected, got, refused, reason in wrong:
        if refused:
            raise ValueError(
                f"--{flag}: expected {expected} beside --privacy.clip, got {got}, "
                f"{reason}"
            )


def said(made: privacy.Mechanism, rounds: int) -> str:
    """Says in a line what rounds spend.

    Args:
      made: the mechanism.
      rounds: of the run.

    Returns:
      The line.
    """
    ledger = made.ledger
    each = ledger.cohort.by_client
    times = min(-(-rounds // made.bands), ledger.most or rounds)
    spent = ledger.epsilon(made.noise, times)
    return (
        f"privacy: epsilon {spent:.4g} at delta {ledger.delta:g} after {times:,} "
        f"rounds{' of a client' * each}; noise multiplier {made.noise:.4g}, clip norm "
        f"{made.clip:g} ({ledger.cohort.says})"
    )


def replaced(fed: federation.Federation, rounds: int) -> federation.Federation:
    """Fills in the rounds of a run, where the settings of privacy leave them open."""
    asked = fed.rules.privacy
    if asked is None or not asked.clip or asked.rounds:
        return fed
    return fed.having(privacy=dataclasses.replace(asked, rounds=rounds))
