"""The algorithm of an experiment, and the guard that rolls it back."""

from __future__ import annotations

import dataclasses

from fljax import algorithms, notation, policies
from fljax.algorithms import base, cocofl, fedavg_drop, private
from fljax.devices import fleet
from fljax.engine import federation
from fljax.experiment import config as configs
from fljax.experiment import fits, fleets
from fljax.experiment.building import built
from fljax.runs import guard


def algorithm(ready: built.Experiment) -> base.Algorithm:
    """Makes the configured algorithm.

    Raises:
      ValueError: its devices cannot run it.
    """
    config, fed = ready.settings, ready.federation
    fits.rounds(built.seen_by(ready))
    fits.buffer(fed)
    fed = private.replaced(fed, config.rounds)
    made = _algorithm(config, fed, ready.own.algorithm)
    if config.privacy.clip and "privacy" not in made.parts:
        raise ValueError(
            "--privacy.clip: expected an algorithm made by fljax.averaging, which "
            "clips and adds noise, got one of your own without it"
        )
    fits.kept(config, fed, made)
    return made


def _algorithm(
    config: configs.Config, fed: federation.Federation, own: built.Make | None
) -> base.Algorithm:
    """Makes the algorithm of the settings, or one's own.

    Raises:
      ValueError: its devices cannot run it.
    """
    if own is not None:
        return _made(own, fed)
    if config.algorithm == "cocofl" and fed.model.net.num_blocks == 1:
        raise ValueError(
            f"--network: expected one of two blocks or more for --algorithm=cocofl, "
            f"which freezes some of them, got {fed.model.net.name!r}, whose only block "
            f"is always trained; take --algorithm=fedavg"
        )
    if config.algorithm == "cocofl":
        with fleets.naming(config):
            policy = policies.BY_NAME[config.policy]
            return cocofl.cocofl(fed, config.frozen.bits, policy)
    if config.algorithm == "fedavg_drop":
        with fleets.naming(config):
            return fedavg_drop.fedavg_drop(fed)
    with configs.naming("algorithm"):
        return notation.make(config.algorithm, algorithms.BY_NAME, fed)


def _made(make: built.Make, fed: federation.Federation) -> base.Algorithm:
    """Makes an algorithm of the user's own."""
    made = make(fed)
    if not isinstance(made, base.Algorithm):
        raise ValueError(
            f"algorithm: expected a function of the federation that returns a "
            f"fljax.Algorithm, got one that returns a {type(made).__name__}"
        )
    return made


def rollback(ready: built.Experiment) -> guard.Guard | None:
    """Makes the configured guard; None: there is none."""
    wanted = ready.settings.rollback
    devices = ready.federation.population.fleet
    if not wanted.asked_for:
        return None
    return guard.Guard(
        **dataclasses.asdict(wanted),
        tiers=devices.known_as,
        tier_index=fleet.sorted_at(devices, ready.federation.seed, 0),
        measure=ready.federation.training.task.measure,
    )
