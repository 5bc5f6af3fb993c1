"""The federation: what the algorithms of a comparison have in common.

Legend: N all clients, K clients of a round.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fljax import plans, types
from fljax.data import partition
from fljax.devices import clock as clocks
from fljax.devices import failures as faults
from fljax.devices import fleet as fleets
from fljax.engine import client, cohort, program
from fljax.engine.program import mixed, ordered, prefix, single
from fljax.nn import exits as ends
from fljax.nn import narrowing as narrowings
from fljax.nn import network, slicing
from fljax.plans import cost_model, costs
from fljax.policies import selection as selections
from fljax.updates import aggregates, attacks, codecs, secure_sum
from fljax.updates import personal as personals
from fljax.updates import privacy as privacies


class Population(NamedTuple):
    """Who there is: clients, their data and their devices.

    Attributes:
      data: training data, on the device or, where the layout streams, on the host.
      shards: the clients' examples; their numbers on the device, or put there.
      fleet: the clients' devices.
      failures: what goes wrong, how often.
      table_error: standard deviation of the log of what windows really cost against
        what the table says.
    """

    data: client.Data
    shards: partition.Shards
    fleet: fleets.Fleet
    failures: faults.Rates = faults.Rates()
    table_error: float = 0.0


class Model(NamedTuple):
    """What is trained, and what it costs.

    Attributes:
      net: the network.
      counts: of its blocks.
      table: costs of the plans.
      device_class: prices of networks that the table has no plan of.
      rounding: how the channels of a narrower network are counted.
      whole: first blocks of a narrower network that keep all channels.
      pretrained: by name (`trees.named`) what the state before the first round has
        instead of what is drawn; None: nothing.
    """

    net: network.Network
    counts: tuple[types.BlockCounts, ...]
    table: costs.CostTable
    device_class: cost_model.Prices = cost_model.GENERIC
    rounding: Literal["ceil", "floor"] = "ceil"
    whole: int = 0
    pretrained: Mapping[str, Any] | None = None

    def cut(self, width: float) -> slicing.Cut:
        """Says how a network of a width is cut out of this one."""
        return slicing.Cut(width, self.rounding, self.whole)

    def at(self, width: float) -> tuple[network.Network, tuple[types.BlockCounts, ...]]:
        """Gives the network at a width, and the counts of its blocks."""
        if width == 1:
            return self.net, self.counts
        return _narrow(self.net, self.cut(width))

    def upto(self, number: int) -> Model:
        """Gives the model of so many blocks, the first."""
        net = self.net._replace(blocks=self.net.blocks[:number])
        return self._replace(net=net, counts=self.counts[:number])

    @property
    def by_width(self) -> dict[float, tuple[types.BlockCounts, ...]]:
        """Gives the counts of the network at each width of the table, and at 1."""
        widths = {1.0, *(plan.width for plan in self.table.listed)}
        return {width: self.at(width)[1] for width in sorted(widths)}


@functools.cache
def _narrow(net: network.Network, cut: slicing.Cut):
    narrow = slicing.sliced(net, cut)
    return narrow, network.counts(narrow)


class Rules(NamedTuple):
    """How the server goes about a round.

    Attributes:
      clients_per_round: K.
      learning_rate: (round) -> of the clients.
      server_learning_rate: 1 takes the mean of the deltas as it is.
      weighting: "uniform" as in the paper, or "examples".
      clock: what time costs and how long the server waits.
      norm_bound: an update is refused whose length is above this many times the usual
        one of its window; 0: none is.
      codec: what clients send instead of their updates; None: these.
      aggregate: how updates become one.
      selection: who takes part.
      narrowing: how clients train whose plan asks for a narrower network; None: no plan
        does.
      attack: what hostile clients do; None: there are none.
      secure_sum: how the server gets the sum of updates and no summand; None: it gets
        each.
      privacy: of the clients; None: none.
      personal: what of the network stays with a client; None: nothing.
      exits: how clients train whose networks end behind their window, at an exit; None:
        all have the whole network.
    """

    clients_per_round: int
    learning_rate: Callable[[int], float]
    server_learning_rate: float = 1.0
    weighting: str = "uniform"
    clock: clocks.Clock = clocks.Clock()
    norm_bound: float = 0.0
    codec: codecs.Codec | None = None
    aggregate: aggregates.Aggregate = aggregates.Mean()
    selection: selections.Selection = selections.Uniform()
    narrowing: narrowings.Narrowing | None = None
    attack: attacks.Attack | None = None
    secure_sum: secure_sum.SecureSum | None = None
    privacy: privacies.Privacy | None = None
    personal: personals.Personal | None = None
    exits: ends.Exits | None = None


class Layout(NamedTuple):
    """Where a round is computed; changes nothing but the order of sums.

    Attributes:
      devices: the mesh that rounds are spread over.
      width: clients that run side by side in a program.
      mixed: the windows of a round share one program instead of having one each.
      streams: training data stay in host memory, and each round brings what it needs.
      pool: trains a round's clients beside those of other runs, see `meeting.Meeting`;
        None: the run is alone.
    """

    devices: Mesh
    width: int = 1
    mixed: bool = False
    streams: bool = False
    pool: Callable[..., Any] | None = None


class Federation(NamedTuple):
    """What the algorithms of a comparison have in common.

    Attributes:
      population: who there is.
      model: what is trained.
      training: how clients train.
      rules: how the server goes about it.
      layout: where it is computed.
      seed: of everything that is drawn.
    """

    population: Population
    model: Model
    training: client.Training
    rules: Rules
    layout: Layout
    seed: int

    def having(self, **changes: Any) -> Federation:
        """Gives the federation with some fields changed, of whichever part they are.

        So `fed.having(clients_per_round=3, width=2, seed=4)`.

        Raises:
          TypeError: a field is of no part.
        """
        parts = self._asdict()
        for name, value in changes.items():
            part = parts.get(_PART.get(name, ""))
            if part is None:
                parts[name] = value
            else:
                parts[_PART[name]] = part._replace(**{name: value})
        return Federation(**parts)


# The part of each field.
_PART = (
    dict.fromkeys(Population._fields, "population")
    | dict.fromkeys(Model._fields, "model")
    | dict.fromkeys(client.Training._fields, "training")
    | dict.fromkeys(Rules._fields, "rules")
    | dict.fromkeys(Layout._fields, "layout")
)


def clock(fed: Federation) -> clocks.Clock:
    """Gives the clock with all that it leaves open filled in."""
    return clocks.resolve(
        fed.rules.clock,
        fed.population.fleet.reference,
        fed.model.table,
        fed.model.counts,
        fed.training.batch_size,
    )


def programs(fed: Federation, assigned: Sequence[plans.Plan]) -> list[program.Program]:
    """Says what the program of each client of a round is made for.

    Args:
      fed: the federation.
      assigned: the plans of the round's clients.

    Returns:
      That of each one's plan; where windows share a program, and somebody freezes
      something, that of all windows.
    """
    blocks = fed.model.net.num_blocks
    # Of each width of network, those of codes.
    bits: dict[float, set[int]] = {}
    for plan in assigned:
        if plans.freezes(plan, blocks):
            bits.setdefault(plan.width, set()).add(plan.bits)

    rule = fed.rules.narrowing

    @functools.cache  # most clients of a round share a few plans
    def of(plan: plans.Plan) -> program.Program:
        if rule is not None and rule.ordered:
            return _ordered(fed, plan, rule.distill)
        if fed.rules.exits is not None:
            return prefix.Prefix(plan)
        if not fed.layout.mixed or plan.width not in bits:
            return single.Single(plan)
        # Who trains everything has no codes, and needs no program of its bits.
        met = bits[plan.width]
        return mixed.Mixed(
            plan.bits if plan.bits in met else min(met), width=plan.width
        )

    return list(map(of, assigned))


def _ordered(fed: Federation, plan: plans.Plan, distill: bool) -> ordered.Ordered:
    """Gives the program of a plan whose clients draw narrower networks."""
    widths = {p.width for p in fed.model.table.listed if p.width <= plan.width}
    net, rounding = fed.model.net, fed.model.rounding
    return ordered.Ordered(
        plan,
        levels=tuple(sorted(widths)),
        whole=net,
        rounding=rounding,
        distill=distill,
    )


def roles(fed: Federation, assigned: Sequence[plans.Plan]) -> cohort.Roles | None:
    """Gives what clients of several windows compute side by side.

    Args:
      fed: the federation.
      assigned: the plans of the round's clients.

    Returns:
      What their chunks are made by; None where nobody shares a chunk with another
      window.
    """
    if fed.layout.width == 1:
        return None
    if not any(program.any_window for program in programs(fed, assigned)):
        return None
    counts = fed.model.counts
    return cohort.Roles(
        np.array([(plan.first, plan.last) for plan in assigned]),
        np.array([count.macs + count.depthwise_macs for count in counts], float),
    )


def work(
    fed: Federation, assigned: Sequence[plans.Plan], alone: np.ndarray
) -> np.ndarray:
    """Says how much of a full step each client of a round computes here.

    Args:
      fed: the federation.
      assigned: the plans of the round's clients.
      alone: [K], what their windows alone compute of it.

    Returns:
      [K]; what its chunk does of each client that shares one with other windows.
    """
    beside = roles(fed, assigned)
    if beside is None:
        return alone
    clients, width = np.arange(len(assigned)), fed.layout.width
    ordered, loads = cohort.chunks(clients, np.ones(len(clients)), width, beside)
    shares = np.empty(len(clients))
    shares[ordered] = np.repeat(loads / width, width)[: len(clients)]
    return shares


def round_key(seed: int, round_index: int) -> types.Key:
    """Gives the key of a round: fold_in(key(seed), round)."""
    return jax.random.fold_in(jax.random.key(seed), round_index)
