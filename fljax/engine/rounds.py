"""A round of training: local updates of those who arrive, then the server step.

Their groups by age and program run one after the other, and add up what they send.

Legend: N all clients, A who arrive, K these with the padding of the cohort, n blocks.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding

from fljax import plans, trees, types
from fljax.data import partition
from fljax.devices import arrivals, clock, failures, hostile
from fljax.engine import (
    client,
    cohort,
    federation,
    feeding,
    group,
    program,
    schedule,
)
from fljax.engine import seams as kinds
from fljax.engine import sums as totals
from fljax.nn import narrowing, network, slicing
from fljax.runtime import host_random, mesh, streams
from fljax.updates import norm_bound, privacy, secure_sum, server
from fljax.updates.aggregates import combined

Networks = tuple[tuple[dict, ...], ...]  # of today, of the round before, ...


class _Members(NamedTuple):
    """Those of a round who began at the same time and share a program.

    Attributes:
      age: rounds since they began.
      kind: of the program that they share.
      keeper: who keeps the channels of a narrower network, `narrowing.NOBODY` if all
        keep the same.
      group: which clients they are, on the devices.
    """

    age: int
    kind: program.Program
    keeper: int
    group: cohort.Group


class Bounds(NamedTuple):
    """What L2 norms updates of a round may have, see `norm_bound`.

    Attributes:
      limits: [2, n], as of `cohort.Round`.
      l2: [2, n] usual L2 norms; 0: not known yet.
      measured: updates that these were learned from, as far as that is counted.
      waiting: whether nothing is taken because too few have been measured.
    """

    limits: types.Array
    l2: types.Array
    measured: int
    waiting: bool


class Begun(NamedTuple):
    """What a round begins with.

    Attributes:
      networks: of today and of the rounds before, on the devices.
      shared: what the server sends beside them; None: nothing.
      states: [A, S] of those who arrive; None: clients keep none.
      draw: what the noise of the round is made of, on the devices; None: it has none.
    """

    networks: Networks
    shared: tuple | None = None
    states: np.ndarray | None = None
    draw: privacy.Draw | None = None


class Beside(NamedTuple):
    """What the end of a round needs beside the sums; None: nothing.

    Attributes:
      attackers: of hostile clients who collude.
      left: masks of a secure sum, of who dropped out.
      draw: what the noise of a private round is made of.
    """

    attackers: totals.Attackers | None = None
    left: totals.Left | None = None
    draw: privacy.Draw | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Rounds:
    """Trains rounds; of `make`. Its methods are pure.

    Attributes:
      fed: the federation, its data on the devices.
      planned: its schedule.
      weights: [N] of the clients.
      rooms: [N] examples that their programs have room for.
      size: K.
      seams: what clients and server do beside averaging.
      most: examples that a round brings at most, where data are streamed.
      unlimited: [2, n] on the devices: updates may be as long as they are.
      rooted: whether the server trains as well, as a client after the last one.
      hostile: [N] bool, which clients are; None: nobody is.
    """

    fed: federation.Federation
    planned: schedule.Schedule
    weights: np.ndarray
    rooms: np.ndarray
    size: int
    seams: kinds.Seams
    most: int
    unlimited: types.Array
    rooted: bool = False
    hostile: np.ndarray | None = None

    @functools.cached_property
    def sizes(self) -> norm_bound.Sizes:
        """Gives what clients send of each block, in numbers."""
        counts = self.fed.model.counts
        if self.seams.withheld is not None:
            counts = kinds.without(
                self.seams, counts, network.shapes(self.fed.model.net)
            )
        return (  # what is sent beside parameters is statistics and ranges
            tuple(count.params for count in counts),
            tuple(count.upload_bytes // 4 - count.params for count in counts),
        )

    def everywhere(self, tree: types.Tree) -> types.Tree:
        """Puts a tree onto every device."""
        return mesh.replicate(self.fed.layout.devices, tree)

    def programs(self, assignment: schedule.Assignment) -> list[program.Program]:
        """Says what the program of each client is made for."""
        kinds, most = federation.programs(self.fed, assignment.plans), self.rooms.max()
        rooms = self.rooms[assignment.ids].tolist()
        # Once for each of a few: a round has thousands of clients.
        pairs = list(zip(kinds, rooms, strict=True))
        held = {
            (kind, room): kind.holding(room, room < most) for kind, room in set(pairs)
        }
        return [held[pair] for pair in pairs]

    def train(
        self, start: Begun, assignment: schedule.Assignment, limits: types.Array
    ) -> totals.Sums:
        """Trains those who arrive, where runs share programs in the pool with others'.

        Args:
          start: what the round begins with.
          assignment: of the round.
          limits: as of `cohort.Round`.

        Returns:
          What they send, added up on each device.
        """
        if self.fed.layout.pool is not None:
            return self.fed.layout.pool(self, start, assignment, limits)
        devices, index, networks = self.fed.layout.devices, assignment.round, start[0]
        sums = totals.zero_sums(
            networks[0], size=self.size, seams=self.seams.of_clients, devices=devices
        )
        if self.rooted and len(assignment.ids):
            assignment = self._with_server(assignment)
        groups = self._groups(assignment)
        if not groups:
            return sums
        cohorts = self.clients(assignment, start.states)
        data, clients = feeding.place(self.fed, cohorts, len(assignment.ids), self.most)
        ages = sorted({members.age for members in groups})
        begun = {
            age: self.begun(data, start, networks[age], index - age, limits)
            for age in ages
        }
        for at in range(0, len(groups), group.AT_ONCE):
            few = [
                (members, self._narrow(begun[members.age], index, members))
                for members in groups[at : at + group.AT_ONCE]
            ]
            wanted = {members.kind: narrow for members, narrow in few}
            statics = [(self.static(kind), one) for kind, one in wanted.items()]
            call = sums, clients, groups[0].group
            made = group.compile_groups(statics, call, devices)
            compiled = dict(zip(wanted, made, strict=True))
            for (age, kind, _, members), narrow in few:
                earlier = totals.weights_so_far(sums) if age else None
                sums = compiled[kind](narrow, sums, clients, members)
                if age:
                    scale = clock.weight(self.fed.rules.clock, index, index - age)
                    then = begun[age].blocks
                    sums = totals.catch_up(sums, earlier, then, networks[0], scale)
            del compiled, made, call  # programs are held no longer than this
        return sums

    def _with_server(self, assignment: schedule.Assignment) -> schedule.Assignment:
        """Puts the server in front, which trains everything as a client would."""
        number, outcome = len(self.weights) - 1, assignment.outcome
        own = schedule.by_hand(
            assignment.round, np.array([number]), [plans.full(len(self.sizes[0]))]
        )
        pairs = zip(own.outcome.arrived, outcome.arrived, strict=True)
        arrived = arrivals.Work(*map(np.concatenate, pairs))
        return assignment._replace(
            ids=np.append(own.ids, assignment.ids),
            plans=[*own.plans, *assignment.plans],
            outcome=outcome._replace(arrived=arrived),
        )

    def static(self, kind: program.Program) -> client.Static:
        """Says what the program of clients depends on."""
        fed, (net, _) = self.fed, self.fed.model.at(kind.width)
        return client.Static(
            net, kind, fed.training, fed.layout.width, self.seams.of_clients
        )

    def _narrow(
        self, begun: cohort.Round, index: int, members: _Members
    ) -> cohort.Round:
        """Says which channels the clients of a group keep, who began with a round."""
        model, rule = self.fed.model, self.seams.narrowing
        if members.kind.width == 1:
            return begun
        if rule is None:
            raise ValueError(
                f"plan {members.kind}: expected an algorithm that narrows networks, "
                f"such as heterofl, for a plan of width {members.kind.width:g}"
            )
        began = index - members.age
        choose = rule.channels.choose(self.fed.seed, began, members.keeper)
        kept = slicing.places(model.net, model.cut(members.kind.width), choose)
        return begun._replace(channels=self.everywhere(kept))

    def begun(
        self,
        data: client.Data,
        start: Begun,
        blocks: tuple[dict, ...],
        index: int,
        limits: types.Array,
    ) -> cohort.Round:
        """Says what clients begin with that began with a round."""
        # The words of the key are drawn on the host: no program runs for them.
        key = self.everywhere(host_random.of_round(self.fed.seed, index))
        key = jax.random.wrap_key_data(key, impl="threefry2x32")
        rate = self.everywhere(np.float32(self.fed.rules.learning_rate(index)))
        begun = cohort.Round(blocks, data, key, rate, limits, start.shared)
        return begun._replace(clip=start.draw.clip) if start.draw else begun

    def clients(
        self, assignment: schedule.Assignment, states: np.ndarray | None
    ) -> cohort.Clients:
        """Gathers who arrives, in host memory, [K] with padding."""
        work, rules = assignment.outcome.arrived, self.fed.rules.clock
        windows = [(plan.first, plan.last) for plan in assignment.plans]
        gathered = cohort.gather(
            assignment.ids,
            self.fed.population.shards,
            self.weights,
            self.size,
            factors=cohort.Factors(
                failures.tampering(work.faults),
                clock.weight(rules, assignment.round, work.versions),
            ),
            windows=np.array(windows).reshape(-1, 2),
        )
        if self.rooted:
            gathered = gathered._replace(
                ids=np.append(np.int32(cohort.SERVER), gathered.ids[1:])
            )
        hostile = self.hostile_of(assignment)
        if hostile is not None:
            hostile = np.pad(hostile, (0, self.size - len(hostile)))
        return gathered._replace(
            states=None if states is None else self._padded(states),
            hostile=hostile,
            partners=self._partners(assignment).rows if self._masks else None,
        )

    def hostile_of(self, assignment: schedule.Assignment) -> np.ndarray | None:
        """Tells which of those who arrive are hostile, [A] bool; None: nobody is."""
        return None if self.hostile is None else self.hostile[assignment.ids]

    def attackers(self, assignment: schedule.Assignment) -> totals.Attackers | None:
        """Says what `step` needs of hostile clients who collude; None: nobody does."""
        if not self.seams.colludes:
            return None
        if self.rooted and len(assignment.ids):
            assignment = self._with_server(assignment)
        clients = self.clients(assignment, None)
        key = federation.round_key(self.fed.seed, assignment.round)
        return self.everywhere(
            totals.Attackers(
                clients.hostile, clients.ids, clients.weights, clients.tampering, key
            )
        )

    @property
    def _masks(self) -> bool:
        """Tells whether masks are added and taken off."""
        return self.seams.secure is not None and self.seams.secure.masks

    def _partners(self, assignment: schedule.Assignment) -> secure_sum.Masking:
        """Says who shares masks with whom, of all that began; in host memory."""
        words, done = self.seams.secure, assignment.outcome.finished
        assert words is not None
        numbers, assigned = done.ids.tolist(), assignment.finished
        windows = {
            number: (plan.first, plan.last)
            for number, plan in zip(numbers, assigned, strict=True)
        }
        ring = streams.generator(self.fed.seed, streams.RING, assignment.round)
        order = ring.permutation(sorted(windows))
        found = secure_sum.partners(order, windows, words.neighbours)
        # With everybody a pair shares one stretch of blocks; on rings it may be more.
        most = words.neighbours
        if most < self.size - 1:
            most *= self.fed.model.net.num_blocks
        return secure_sum.masking(assignment.ids, found, (self.size, most))

    def beside(
        self, assignment: schedule.Assignment, draw: privacy.Draw | None = None
    ) -> Beside:
        """Says what `step` needs of a round beside its sums; draw as of `Begun`."""
        left = None
        if self._masks:
            key = federation.round_key(self.fed.seed, assignment.round)
            left = totals.Left(*self.everywhere((key, self._partners(assignment).left)))
        return Beside(self.attackers(assignment), left, draw)

    def _padded(self, rows: np.ndarray) -> np.ndarray:
        """Fills the rows of those who arrive up to those of the cohort, [K, ..]."""
        before = int(self.rooted)
        return np.pad(rows, ((before, self.size - len(rows) - before), (0, 0)))

    def _groups(self, assignment: schedule.Assignment) -> list[_Members]:
        """Sorts who arrives by age and program, and deals them out to the devices."""
        fed, ids = self.fed, assignment.ids
        load, roles = self.load(assignment)
        ages = (assignment.round - assignment.outcome.arrived.versions).tolist()
        kinds = self.programs(assignment)
        keepers = map(self._keeper, kinds, ids.tolist())
        keys = list(zip(ages, kinds, keepers, strict=True))
        by_key = cohort.group_by(keys, ids)
        devices, width = fed.layout.devices, fed.layout.width
        groups = cohort.spread(
            [rows for _, rows in by_key], load, devices.size, width, self.size, roles
        )
        return [
            _Members(*key, mesh.distribute(devices, rows))
            for (key, _), rows in zip(by_key, groups, strict=True)
        ]

    def states_after(self, sums: totals.Sums) -> types.Array | None:
        """Gives the clients' states [K, S] after a round; None: they keep none."""
        states = _states_after(sums)
        return states[1:] if self.rooted and states is not None else states

    def load(
        self, assignment: schedule.Assignment
    ) -> tuple[np.ndarray, cohort.Roles | None]:
        """Says what each of those who arrive computes, as of `cohort.spread`."""
        ids, assigned = assignment.ids, assignment.plans
        roles = federation.roles(self.fed, assigned)
        times = self.planned.time_shares(assigned) if roles is None else 1.0
        return np.asarray(self.fed.population.shards.counts)[ids] * times, roles

    def _keeper(self, kind: program.Program, number: int) -> int:
        """Says whose channels a client has: its own, or those that all have."""
        rule = self.seams.narrowing
        own = rule is not None and rule.channels.each and kind.width < 1
        return number if own else narrowing.NOBODY

    def step(
        self,
        state: server.ServerState,
        sums: totals.Sums,
        bounds: Bounds,
        rate: types.ArrayLike,
        beside: Beside = Beside(),
    ):
        """Ends a round.

        Args:
          state: of the server, on the devices.
          sums: of the round.
          bounds: of the round.
          rate: learning rate of the server.
          beside: of the method `beside`.

        Returns:
          The server's new state; losses and verdicts [K]; whether the new network is
          finite; usual L2 norms of updates [2, n]; the clip norm of the next round, if
          updates are clipped.
        """
        new, losses, failed, finite, usual, clip = server_step(
            state,
            sums,
            bounds.l2,
            self.everywhere(rate),
            beside,
            static=Ending(
                self.seams,
                self.sizes if self.fed.rules.norm_bound else (),
                self.fed.layout.devices,
            ),
        )
        if bounds.waiting:
            large = np.asarray(failed) == totals.TOO_LARGE
            failed = np.where(large, totals.UNMEASURED, failed)
        return new, losses, failed, finite, usual, clip

    def bounds(
        self,
        start: Begun,
        assignment: schedule.Assignment,
        l2: types.ArrayLike,
        measured: int,
    ) -> Bounds:
        """Says how long updates may be.

        Args:
          start: as of `train`.
          assignment: of the round.
          l2: [2, n] usual L2 norms so far.
          measured: updates that these were learned from.

        Returns:
          The bounds; where too few updates have been measured, everybody of this round
          is, before anybody is taken.
        """
        bound, l2 = self.fed.rules.norm_bound, self.everywhere(l2)
        if not bound:
            return Bounds(self.unlimited, l2, measured, False)
        if measured < norm_bound.FEWEST and len(assignment.ids):
            tried = self.train(start, assignment, self.unlimited)
            heard = tried.l2[:, 1:] if self.rooted else tried.l2
            l2, number = norm_bound.first(
                l2, heard, sizes=self.sizes, devices=self.fed.layout.devices
            )
            measured = min(measured + int(number), norm_bound.FEWEST)
        if measured < norm_bound.FEWEST:
            nothing = self.everywhere(np.zeros_like(self.unlimited))
            return Bounds(nothing, l2, measured, True)
        known = norm_bound.limits(l2, bound=bound, sizes=self.sizes)
        return Bounds(self.everywhere(known), l2, measured, False)


@jax.jit
def _states_after(sums: totals.Sums) -> types.Array | None:
    """Adds up the rows of the devices."""
    return None if sums.states is None else jnp.sum(sums.states, axis=0)


class Ending(NamedTuple):
    """What the end of a round depends on beside shapes; hashable.

    Attributes:
      seams: how updates become one, and how the server moves.
      sizes: of the blocks, where usual L2 norms of updates are kept; else empty.
      devices: the mesh.
    """

    seams: kinds.Seams
    sizes: norm_bound.Sizes | tuple[()]
    devices: Mesh


@functools.partial(jax.jit, static_argnames=("static",))
def server_step(state, sums, l2, rate, beside=Beside(), *, static: Ending):
    """Adds up the devices' sums and ends the round; every device gets the result."""
    seams, sizes, devices = static
    added, kept = totals.total(sums._replace(states=None)), state.aggregate
    summed, clip = added.totals, None
    summed = totals.opened(summed, seams.secure, beside.left, state.blocks)
    if seams.privacy is not None:
        summed, clip = privacy.released(seams.privacy, beside.draw, summed)
    added = added._replace(totals=summed)
    if beside.attackers is not None:
        added = totals.filled(added, seams, beside.attackers, state.blocks)
    if seams.aggregate.root_size:  # the server is nobody's business but the aggregate's
        added = added._replace(
            losses=added.losses[1:], failed=added.failed[1:], l2=added.l2[1:]
        )
    if added.updates is not None:
        counted, kept = combined.combine(
            seams.aggregate, kept, added.updates, added.totals, state.blocks
        )
        added = added._replace(totals=counted)
    new = server.step(state, added.totals, seams.server, rate)
    new = new._replace(aggregate=kept)
    if seams.privacy is not None:
        new = new._replace(blocks=privacy.bounded(new.blocks, state.blocks))
    if seams.withheld is not None:  # adding zero would turn -0 into 0
        new = new._replace(blocks=seams.withheld.of_server(new.blocks, state.blocks))
    if sizes:
        l2 = norm_bound.usual(l2, added.l2, sizes)
    finite = trees.all_finite(new.blocks)
    result = new, added.losses, added.failed, finite, l2, clip
    return lax.with_sharding_constraint(result, NamedSharding(devices, mesh.SHARED))


def make(
    fed: federation.Federation,
    planned: schedule.Schedule,
    candidates: int,
    seams: kinds.Seams = kinds.NONE,
) -> Rounds:
    """Makes what trains the rounds of a federation.

    Args:
      fed: the federation.
      planned: its schedule.
      candidates: number of clients that may take part.
      seams: what clients and server do beside averaging.

    Returns:
      The rounds.
    """
    rules, devices, root = fed.rules, fed.layout.devices, seams.aggregate.root_size
    shards, counts = fed.population.shards, np.asarray(fed.population.shards.counts)
    rooms = client.capacities(counts, fed.training.batch_size)
    if root:
        indices = mesh.local(shards.indices)
        shards = partition.with_more(shards._replace(indices=indices), root, fed.seed)
        counts = np.append(counts, root)
        rooms = np.append(rooms, min(rooms[rooms >= root], default=root))
    weights = counts.astype(np.float32)
    if rules.weighting == "uniform":
        weights = np.ones_like(weights)
    unlimited = np.full((2, fed.model.net.num_blocks), np.inf, np.float32)
    if not fed.layout.streams:
        data, indices = mesh.replicate(devices, (fed.population.data, shards.indices))
        fed = fed.having(data=data)
        shards = shards._replace(indices=indices)
    cohorts = rules.selection.most(rules.clients_per_round, candidates)
    most = arrivals.most_arrivals(rules.clock, cohorts, candidates) + bool(root)
    attack, enemies = seams.attack, None
    if attack is not None:
        enemies = hostile.draw(
            attack.share, attack.tier, fed.population.fleet, fed.seed
        )
        enemies = np.append(enemies, np.zeros(int(bool(root)), bool))
    return Rounds(
        fed.having(shards=shards),
        planned,
        weights,
        rooms,
        most,
        seams,
        feeding.room(counts, most),
        mesh.replicate(devices, unlimited),
        bool(root),
        enemies,
    )
