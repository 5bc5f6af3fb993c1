"""What algorithms refuse of a federation, in one line that names the flag."""

from __future__ import annotations

from fljax.engine import federation
from fljax.engine import seams as kinds


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


def narrow(fed: federation.Federation, seams: kinds.Seams) -> None:
    """Refuses what makes no sense beside networks of several widths.

    Args:
      fed: the federation.
      seams: of the algorithm.

    Raises:
      ValueError: it is one; or there are such networks, and no rule for them.
    """
    widths = sorted({plan.width for plan in fed.model.table.listed} - {1.0})
    if widths and seams.narrowing is None:
        raise ValueError(
            f"narrowing: expected a rule for plans of width {widths[0]:g}, such as "
            f"fljax.Narrowing(), got none"
        )
    if seams.narrowing is None:
        return
    if seams.aggregate.sees_updates:
        raise ValueError(
            f"--aggregate: expected mean beside networks of several widths, which have "
            f"no value for each other's channels, got {seams.aggregate}"
        )
    if seams.local is not None or seams.server.shares:
        part = seams.local or seams.server
        raise ValueError(
            f"narrowing: expected clients that train by their optimizer alone, since "
            f"their networks differ in width, got {part!r}"
        )
    if seams.narrowing.masked and not fed.training.task.classes:
        raise ValueError(
            f"masked: expected a task of classes, whose logits it masks, got "
            f"{fed.training.task!r}"
        )
