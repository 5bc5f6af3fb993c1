"""Every plan that a run may assign, a row each, with what it costs.

What is at work, and what a checkpoint holds of it, is a row: one number, whatever a
plan may be made of. The cost table says which plans there are; here each is listed at
every width of codes, so that policies may change the width during a run.

Legend: K clients, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fljax import plans, types
from fljax.plans import costs
from fljax.runtime import streams


class Catalogue(NamedTuple):
    """The plans of a run; of `make`.

    Attributes:
      listed: R of them.
      row: plan -> its row.
      sent: [R] int64, bytes that are sent under each.
      fetched: [R] int64, bytes of the network that a client is sent for each.
      time: [R] of a step by the table, as a share of full training.
      true_time: [R] what it really takes.
      true_memory: [R] likewise.
    """

    listed: tuple[plans.Plan, ...]
    row: dict[plans.Plan, int]
    sent: np.ndarray
    fetched: np.ndarray
    time: np.ndarray
    true_time: np.ndarray
    true_memory: np.ndarray

    def rows(self, assigned: Sequence[plans.Plan]) -> np.ndarray:
        """Finds the rows [K] int32 of plans.

        Raises:
          ValueError: a plan is not of the table.
        """
        distinct = {id(plan): plan for plan in assigned}  # plans take long to hash
        try:
            found = {key: self.row[plan] for key, plan in distinct.items()}
            return np.array([found[id(plan)] for plan in assigned], np.int32)
        except KeyError as error:
            windows = len(self.row) // len(plans.WIDTHS)
            raise ValueError(
                f"expected windows of the table of costs, which has {windows}, got "
                f"{error.args[0]}"
            ) from error

    def at(self, rows: np.ndarray) -> list[plans.Plan]:
        """Gives the plans of rows [K]."""
        return [self.listed[row] for row in rows.tolist()]


def make(
    table: costs.CostTable,
    by_width: Mapping[float, Sequence[types.BlockCounts]],
    error: float = 0.0,
    seed: int = 0,
) -> Catalogue:
    """Lists the plans of a table, and that of full training if it is left out there.

    Args:
      table: the costs; full training costs 1 where it is left out. What is above 1 is
        taken for noise, as `costs.feasible` does.
      by_width: width -> counts of the network's blocks at it, for all of the table.
      error: standard deviation of the log of true costs against the table's.
      seed: of these errors.

    Returns:
      The catalogue.
    """
    listed, full = list(table.listed), plans.full(table.num_blocks)
    shares = np.minimum([table.time, table.memory], 1.0)
    generator = streams.generator(seed, streams.TABLE_ERROR)
    true = shares * np.exp(error * generator.standard_normal((2, len(listed))))
    if full not in listed:
        listed.append(full)
        shares, true = (np.pad(x, ((0, 0), (0, 1)), constant_values=1.0)
                        for x in (shares, true))  # fmt: skip
    sent = [plans.upload_bytes(plan, by_width[plan.width]) for plan in listed]
    whole = [plans.upload_bytes(full, by_width[plan.width]) for plan in listed]
    many = len(plans.WIDTHS)
    every = tuple(plan.at(bits) for bits in plans.WIDTHS for plan in listed)
    return Catalogue(
        every,
        {plan: row for row, plan in enumerate(every)},
        np.tile(np.array(sent, np.int64), many),
        np.tile(np.array(whole, np.int64), many),
        np.tile(shares[0], many),
        *np.tile(true, many),
    )
