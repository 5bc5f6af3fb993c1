"""What algorithms refuse of a federation, in one line that names the flag."""

from __future__ import annotations

from fljax.engine import federation


def plain_sgd(fed: federation.Federation, name: str, momentum: bool = False) -> None:
    """Refuses clients that do not train by SGD.

    Args:
      fed: the federation.
      name: of the algorithm.
      momentum: whether momentum is fine.

    Raises:
      ValueError: they train otherwise.
    """
    training = fed.training
    if training.rule != "sgd" or training.optimizer is not None:
        raise ValueError(
            f"--client_optimizer: expected sgd beside {name}, which counts with its "
            f"steps, got {'one of your own' if training.optimizer else training.rule}"
        )
    if training.momentum and not momentum:
        raise ValueError(
            f"--momentum: expected 0 beside {name}, which takes an update for the sum "
            f"of gradients, got {training.momentum}"
        )


def equal_weights(fed: federation.Federation, name: str) -> None:
    """Refuses clients that weigh differently.

    Raises:
      ValueError: they do.
    """
    if fed.rules.weighting != "uniform":
        raise ValueError(
            f"--weighting: expected uniform beside {name}, whose server averages over "
            f"clients, got {fed.rules.weighting}"
        )


def nobody_late(fed: federation.Federation, name: str) -> None:
    """Refuses updates from earlier rounds.

    Raises:
      ValueError: there may be some.
    """
    if fed.rules.clock.carries:
        flag = "buffer" if fed.rules.clock.buffer else "late"
        raise ValueError(
            f"--clock.{flag}: expected rounds without late updates beside {name}, "
            f"whose correction is of the round it was sent in"
        )


def plain_mean(fed: federation.Federation, name: str) -> None:
    """Refuses aggregates that see single updates.

    Raises:
      ValueError: the aggregate is one.
    """
    if fed.rules.aggregate.sees_updates:
        raise ValueError(
            f"--aggregate: expected mean beside {name}, whose server counts with sums "
            f"over the cohort, got {fed.rules.aggregate}"
        )


def plain_rounds(fed: federation.Federation, name: str) -> None:
    """Refuses rounds that are no plain mean over clients of today's network.

    Args:
      fed: the federation.
      name: of an algorithm whose server keeps a sum over clients.

    Raises:
      ValueError: clients weigh differently, may be late, or are not averaged.
    """
    equal_weights(fed, name)
    nobody_late(fed, name)
    plain_mean(fed, name)
