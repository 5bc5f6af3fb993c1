"""Evaluation per client: each on its own test shard, by the network that it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

MOST = 1000  # clients that are evaluated, unless more are asked for


@dataclasses.dataclass(frozen=True)
class Clients:
    """Evaluates clients beside the global network, all of them and not the cohort.

    Attributes:
      epochs: of fine-tuning on a client's training examples before its evaluation, by
        its optimizer, from the network that it has; nothing of it is kept. 0: none.
      most: clients; of more a sample is evaluated, the same one in every round.
    """

    epochs: int = 0
    most: int = MOST

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
          ValueError: there is one.
        """
        if not 0 <= self.epochs <= 100_000:
            raise ValueError(f"epochs: expected 0 to 100000, got {self.epochs}")
        if self.most < 1:
            raise ValueError(f"most: expected 1 or more, got {self.most}")


def nobody() -> None:
    """Evaluates the global network alone."""


# What --evaluation may say.
BY_NAME: dict[str, Callable[..., Clients | None]] = {
    "global": nobody,
    "clients": Clients,
}
