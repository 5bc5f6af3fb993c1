"""Cost tables reduced by typical budgets: feasible sets of windows, fewer windows.

Legend: P windows of a table, M budgets of a sample over clients and rounds, F different
sets of windows that fit them.
"""

from __future__ import annotations

import numpy as np

from fljax import types
from fljax.plans import costs


def feasible_sets(
    table: costs.CostTable, typical: types.Budgets
) -> tuple[np.ndarray, np.ndarray]:
    """List the different sets of windows that fit.

    Args:
      table: costs of P windows.
      typical: [M] budgets; those that nothing fits are left out.

    Returns:
      [F, P] bool, the sets, and [F] float64, how often each occurs; sums to 1.

    Raises:
      ValueError: nothing fits any of the budgets.
    """
    fits = costs.feasible(table, *typical)
    fits = fits[fits.any(axis=1)]
    if not len(fits):
        raise ValueError(
            f"typical: expected budgets that a window of {table.source} fits, got "
            f"{np.size(typical.time)} that none fits"
        )
    # Comparing eight windows at a time takes a tenth of the time for a large sample.
    _, where, counts = np.unique(
        np.packbits(fits, axis=1), axis=0, return_index=True, return_counts=True
    )
    return fits[where], counts / counts.sum()


def evenly(options: np.ndarray) -> np.ndarray:
    """Give every option of a row [F, P], at least one, the same probability."""
    return options / options.sum(axis=1, keepdims=True)


def restrict(
    table: costs.CostTable, typical: types.Budgets, lowest: types.Budgets, most: int
) -> costs.CostTable:
    """Keep few windows, so that a long run compiles few programs where each has one.

    Those are kept that uniform draws among maximal windows, CoCoFL's, choose most
    often; the rarest of them give way to what is needed so that no budget is left
    without a window that had one before. Windows that would never be chosen go, too.

    Args:
      table: costs of P windows.
      typical: [M] budgets to choose under.
      lowest: scalars, of each kind the least that any client may get in any round.
      most: windows to keep at most.

    Returns:
      The table itself if it is that small, else a table of the kept rows in their
      order.

    Raises:
      ValueError: nothing fits any of the typical budgets, or `most` windows are too
        few for them.
    """
    if len(table.listed) <= most:
        return table
    fits, shares = feasible_sets(table, typical)
    frequency = shares @ evenly(costs.maximal(table.covers, fits))
    lowest_fits = costs.feasible(table, *lowest)
    needed = np.vstack([fits, lowest_fits]) if lowest_fits.any() else fits
    order = np.argsort(-frequency, kind="stable")[: max(most, 0)]
    order = order[frequency[order] > 0]
    for often in range(len(order), -1, -1):
        rows = _covering(needed, order[:often], frequency)
        if len(rows) <= most:
            break
    else:
        raise ValueError(
            f"most: expected {len(rows)} windows or more, so that every budget keeps "
            f"one of {table.source}, got {most}"
        )
    rows.sort()
    return table.take(rows, f"{len(rows)} windows of {table.source}")


def _covering(
    needed: np.ndarray, start: np.ndarray, frequency: np.ndarray
) -> list[int]:
    """Add to the rows of `start` until every set of `needed` [F, P] holds one of them.

    Greedily: each time the window in most of the sets that are left, of several the
    most frequent one.
    """
    rows = start.tolist()
    left = needed[~needed[:, rows].any(axis=1)]
    while len(left):
        row = int(np.lexsort((-frequency, -left.sum(axis=0)))[0])
        rows.append(row)
        left = left[~left[:, row]]
    return rows
