"""Plans: what a client trains, how wide its network is and its frozen codes are.

CoCoFL (Pfeiffer et al., TMLR 2023, arXiv 2203.05468): a client trains one
contiguous window [a, b] of blocks in float32, everything else is frozen and runs in
fixed point. HeteroFL (Diao et al., ICLR 2021) and its kin give it a network of fewer
channels instead. A plan has both; it is static and hashable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from fljax import types

WIDTHS = (2, 3, 4, 5, 6, 7, 8)  # bits of the codes in frozen blocks
DEFAULT_BITS = 8


# Tables, catalogues and policies hold plans whole. What else a plan is made of is a
# field here, with its part in `covers` and `covering`, `is_full`, the prices of
# `cost_model` and the files of `costs`.
@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Plan:
    """Train blocks `first` to `last`, both inclusive; freeze the others at `bits`.

    Invariant: 0 <= first <= last, 2 <= bits <= 8 and 0 < width <= 1.

    >>> str(Plan(4, 11)), str(Plan(0, 19, width=0.5))
    ('4-11', '0-19x0.5')
    """

    first: int  # index of the first trained block
    last: int  # index of the last trained block
    bits: int = DEFAULT_BITS  # width of the codes in the frozen blocks
    width: float = 1.0  # share of the channels of every layer that the client has

    def __post_init__(self):
        if not all(isinstance(v, int) for v in (self.first, self.last, self.bits)):
            raise ValueError(
                f"a plan holds Python ints, got {dataclasses.astuple(self)[:3]}"
            )
        if not 0 <= self.first <= self.last:
            raise ValueError(
                f"a window needs 0 <= first <= last, got {self.first}-{self.last}"
            )
        if self.bits not in WIDTHS:
            raise ValueError(f"codes are 2 to 8 bits wide, got bits={self.bits}")
        if not 0 < self.width <= 1:
            raise ValueError(
                f"a width is a share of the channels above 0 and at most 1, got "
                f"width={self.width}"
            )

    def __str__(self) -> str:
        bits = "" if self.bits == DEFAULT_BITS else f"@{self.bits}"
        width = "" if self.width == 1 else f"x{self.width:g}"
        return f"{self.first}-{self.last}{bits}{width}"

    def at(self, bits: int) -> Plan:
        """Gives the plan at a width of codes."""
        return self if bits == self.bits else dataclasses.replace(self, bits=bits)

    def at_width(self, width: float) -> Plan:
        """Gives the plan of a network of a width."""
        return self if width == self.width else dataclasses.replace(self, width=width)

    def covers(self, other: Plan) -> bool:
        """Tells whether all that another plan trains is trained, at any width of codes.

        >>> Plan(1, 4).covers(Plan(2, 4)), Plan(1, 4).covers(Plan(0, 2))
        (True, False)
        """
        inside = self.first <= other.first and other.last <= self.last
        return inside and other.width <= self.width


def covering(listed: Sequence[Plan]) -> np.ndarray:
    """Tells which plans cover which others.

    Args:
      listed: P plans, none twice.

    Returns:
      [P, P] bool: `listed[i].covers(listed[j])`, and i is not j.
    """
    first, last = windows_of(listed).T
    width = np.array([plan.width for plan in listed])
    covers = (first[:, None] <= first) & (last[:, None] >= last)
    covers &= width[:, None] >= width
    np.fill_diagonal(covers, False)
    return covers


def full(num_blocks: int) -> Plan:
    """Return the plan that trains every block.

    Args:
      num_blocks: n, the blocks of the network.

    Returns:
      The plan of window [0, n - 1].

    Raises:
      ValueError: if the network has no block.
    """
    if num_blocks < 1:
        raise ValueError(f"a network has at least one block, got {num_blocks}")
    return Plan(0, num_blocks - 1)


def is_full(plan: Plan, num_blocks: int) -> bool:
    """Tell whether the plan trains every one of `num_blocks` blocks, in full width."""
    return plan.width == 1 and not freezes(plan, num_blocks)


def freezes(plan: Plan, num_blocks: int) -> bool:
    """Tell whether the plan freezes some of `num_blocks` blocks."""
    return (plan.first, plan.last) != (0, num_blocks - 1)


def roles(plan: Plan, num_blocks: int) -> tuple[types.Role, ...]:
    """Return what each block does under the plan.

    Args:
      plan: the window.
      num_blocks: n, the blocks of the network.

    Returns:
      n roles: frozen before the window, trained in it, frozen after it.

    Raises:
      ValueError: if the window reaches outside the network.
    """
    if plan.last >= num_blocks:
        raise ValueError(
            f"window {plan} reaches outside the network: it has {num_blocks} blocks, "
            f"0 to {num_blocks - 1}"
        )
    return (
        (types.Role.FROZEN_BEFORE,) * plan.first
        + (types.Role.TRAINED,) * (plan.last - plan.first + 1)
        + (types.Role.FROZEN_AFTER,) * (num_blocks - 1 - plan.last)
    )


def upload_bytes(plan: Plan, counts: Sequence[types.BlockCounts]) -> int:
    """Return the bytes that a client sends under the plan: those of its window.

    Args:
      plan: the window.
      counts: the counts of the n blocks, at the plan's width.

    Returns:
      Bytes a round. Frozen blocks send nothing, but for quirks of the reference
      (`types.BlockCounts.before_bytes`, `after_bytes`).

    Raises:
      ValueError: if the window reaches outside the network.
    """
    of_plan = zip(roles(plan, len(counts)), counts, strict=True)
    trained = sum(c.upload_bytes for role, c in of_plan if role is types.Role.TRAINED)
    before = sum(c.before_bytes for c in counts[: plan.first])
    after = sum(c.after_bytes for c in counts[plan.last + 1 :])
    return trained + before + after - counts[plan.first].entry_bytes


def of_windows(windows: Iterable[Sequence[int]] | np.ndarray) -> tuple[Plan, ...]:
    """Return the plans of windows, each a first and a last block.

    >>> [str(plan) for plan in of_windows([(0, 1), (1, 1)])]
    ['0-1', '1-1']
    """
    return tuple(Plan(int(first), int(last)) for first, last in windows)


def windows_of(listed: Sequence[Plan]) -> np.ndarray:
    """Return first and last trained block of P plans: [P, 2] int64."""
    return np.array([(plan.first, plan.last) for plan in listed], np.int64)


def all_windows(num_blocks: int) -> tuple[Plan, ...]:
    """Return every window of a network of n blocks, by first block, then by last.

    Args:
      num_blocks: n, the blocks of the network.

    Returns:
      n (n + 1) / 2 plans.
    """
    blocks = range(num_blocks)
    return of_windows((first, last) for first in blocks for last in blocks[first:])
