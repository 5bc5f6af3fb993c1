"""FedRep (Collins et al., ICML 2021): the client's head first, then the shared body.

In a round a client trains its head for some epochs while the body stands still, then
the body, `--local_epochs` of them, while the head does. Flower's baseline has 5 and 1.
"""

from __future__ import annotations

from fljax import policies
from fljax.algorithms import averaging, base, refusals
from fljax.algorithms.personal import fedper
from fljax.engine import federation


def fedrep(
    fed: federation.Federation, head: int = 5, blocks: int = 1
) -> base.Algorithm:
    """Makes FedRep.

    Args:
      fed: the clients and how they train; its local epochs are those of the body.
      head: epochs of the head, before them.
      blocks: the last of the network, which are the head.

    Returns:
      The algorithm.

    Raises:
      ValueError: the network has no block below them.
    """
    refusals.body(fed, blocks, "fedrep")
    if head < 1:
        raise ValueError(f"head: expected 1 epoch or more, got {head}")
    mine = fed.having(
        personal=fedper.Head(blocks, head),
        local_epochs=head + fed.training.local_epochs,
    )
    plan = policies.full(fed.model.net.num_blocks)
    return averaging.averaging(mine, plan, constrained=False)
