"""Training data that a device cannot hold: a round brings what its clients need.

Such data lie in host memory, or in files that are mapped into it. Rounds are dispatched
ahead of what computes, so that the examples of one are gathered and sent while the one
before it trains.
"""

from __future__ import annotations

import jax
import numpy as np

from fljax.engine import client, cohort, federation
from fljax.runtime import mesh


def room(counts: np.ndarray, clients: int) -> int:
    """Counts the examples that a round may bring.

    Args:
      counts: [N] examples of all clients.
      clients: that take part at most.

    Returns:
      Those of as many clients, the largest: every round has arrays of this size, so
      that programs are compiled once.
    """
    largest = np.sort(np.asarray(counts))[len(counts) - min(clients, len(counts)) :]
    return int(largest.sum())


def bring(
    data: client.Data, clients: cohort.Clients, number: int, most: int
) -> tuple[client.Data, cohort.Clients]:
    """Gathers the examples of those who arrive.

    Args:
      data: of training, in host memory.
      clients: the cohort, in host memory.
      number: A, how many of its rows are clients; what follows is padding.
      most: examples that there is room for.

    Returns:
      Their examples alone, one client's after the other's, [most, ...]; the cohort,
      which finds them there.
    """
    starts, counts = clients.starts[:number], clients.counts[:number]
    rows = [clients.indices[s : s + c] for s, c in zip(starts, counts, strict=True)]
    places = np.zeros(most, np.int64)
    found = np.concatenate([places[:0], *rows])
    places[: len(found)] = found
    begins = np.zeros_like(clients.starts)
    begins[:number] = np.cumsum(counts) - counts
    few = data._replace(x=data.x[places], y=data.y[places])
    indices = np.arange(most, dtype=np.int32)
    return few, clients._replace(indices=indices, starts=begins)


def place(
    fed: federation.Federation, clients: cohort.Clients, number: int, most: int
) -> tuple[client.Data, cohort.Clients]:
    """Puts a cohort and the data that it trains on onto the devices.

    Args:
      fed: the federation; where its layout does not stream, its data lie there already.
      clients: as of `bring`; so are `number` and `most`.

    Returns:
      The data and the cohort, on every device.
    """
    data = fed.population.data
    if fed.layout.streams:
        data, clients = bring(data, clients, number, most)
    return mesh.replicate(fed.layout.devices, (data, clients))


def size(data: client.Data, examples: int) -> int:
    """Counts the bytes of so many examples."""
    return examples * sum(
        leaf.nbytes // max(len(leaf), 1) for leaf in jax.tree.leaves((data.x, data.y))
    )
