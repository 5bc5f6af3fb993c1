"""Who is hostile: drawn once a run from the seed, the same clients in every round.

A hostile client wants to do harm (`updates.attacks`); one that fails is in `failures`.
"""

from __future__ import annotations

import numpy as np

from fljax import bounds
from fljax.devices import fleet as fleets
from fljax.runtime import streams


def draw(share: float, tier: str, fleet: fleets.Fleet, seed: int) -> np.ndarray:
    """Draws which clients are hostile.

    With the same seed, those of a smaller share are among those of a larger one.

    Args:
      share: of the clients, to the nearest number of them; above 0 at least one.
      tier: of whose clients it is a share; empty: of all.
      fleet: the clients' devices.
      seed: of the experiment.

    Returns:
      [N] bool.

    Raises:
      ValueError: no device is of such a tier; one line without the flag.
    """
    clients = np.arange(len(fleet.row))
    if tier and tier not in fleet.names:
        raise ValueError(
            f"tier: expected one of {', '.join(fleet.names)}, got {tier!r}"
            f"{bounds.nearest(tier, fleet.names)}"
        )
    if tier:
        clients = clients[fleet.tier == fleet.names.index(tier)]
    number = int(np.floor(share * len(clients) + 0.5 + 1e-9))
    number = min(max(number, share > 0), len(clients))
    order = streams.generator(seed, streams.HOSTILE).permutation(clients)
    chosen = np.zeros(len(fleet.row), bool)
    chosen[order[:number]] = True
    return chosen
