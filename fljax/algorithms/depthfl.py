"""DepthFL (Kim et al., ICLR 2023): small devices train fewer blocks, up to an exit.

An exit, pooling and classifier, comes behind each group of blocks. A device has the
network up to the last exit that fits its budgets, and trains all of its exits, which
also learn from each other. Each block is the mean of those who have it; what is
evaluated is the mean of the exits' logits.

The paper's exits have separable convolutions and attention in front of the pooling, and
its clients FedDyn's regularization; here is neither.
"""

from __future__ import annotations

from fljax import policies
from fljax.algorithms import averaging, base
from fljax.engine import federation
from fljax.nn import exits, network
from fljax.plans import cost_model

GROUPS = "groups"


def depthfl(
    fed: federation.Federation,
    behind: str = GROUPS,
    distill: bool = True,
    ramp: int = 300,
) -> base.Algorithm:
    """Makes DepthFL.

    Args:
      fed: the clients and how they train.
      behind: blocks that an exit comes behind, such as `2/4/6`, beside the classifier
        at the end; or GROUPS: the last ones before the size of images changes.
      distill: exits learn from each other as well, if the task has classes.
      ramp: rounds in which the weight of that rises to 1; see `exits.Exits`.

    Returns:
      The algorithm.

    Raises:
      ValueError: there are no such blocks, an exit cannot read what one gives, or no
        network up to an exit fits a tier's smallest budgets.
    """
    rule = exits.Exits(distill and bool(fed.training.task.classes), ramp)
    net = exits.insert(fed.model.net, _blocks(behind, fed.model.net))
    fed = fed.having(net=net, counts=network.counts(net), exits=rule)
    model, batch = fed.model, fed.training.batch_size
    prices = model.counts, batch, model.device_class
    table = cost_model.of_prefixes(exits.ends(net), *prices)
    policies.check_feasible(table, fed.population.fleet)
    return averaging.averaging(fed.having(table=table), policies.largest(table))


def _blocks(behind: str, net: network.Network) -> tuple[int, ...]:
    """Reads the blocks that exits come behind, or finds them.

    Raises:
      ValueError: they are no numbers, or all blocks give signals of one size.
    """
    if behind != GROUPS:
        if not all(part.isdecimal() for part in behind.split("/")):
            raise ValueError(
                f"behind: expected numbers of blocks such as 2/4/6, or {GROUPS}, got "
                f"{behind!r}"
            )
        return tuple(sorted(int(part) for part in behind.split("/")))
    found = exits.borders(net)
    if not found:
        raise ValueError(
            f"behind: expected numbers of blocks such as 2/4/6 for network "
            f"{net.name!r}, whose blocks give signals of one size, got {GROUPS}"
        )
    return found
