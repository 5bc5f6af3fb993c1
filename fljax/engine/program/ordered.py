"""The program of ordered dropout (FjORD, Horvath et al., NeurIPS 2021).

A client draws a width for every batch, uniformly among the levels up to its own, and
trains the leading channels of that width alone, so that the first come to do most. With
self-distillation it trains all that it has, and what the drawn width gives is pulled
towards what all gives.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fljax import plans
from fljax.engine import program
from fljax.engine.program import single
from fljax.kernels import specs
from fljax.nn import network, slicing


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ordered(single.Single):
    """The program of clients of one width that draw narrower ones.

    Its plan is everything, at the clients' width.

    Attributes:
      levels: widths that are drawn, the clients' own the largest.
      whole: the network of width 1.
      rounding: of numbers of channels.
      distill: train all that they have, and distill it into what is drawn.
    """

    levels: tuple[float, ...]
    whole: network.Network
    rounding: Literal["ceil", "floor"] = "ceil"
    distill: bool = False

    @property
    def name(self) -> str:
        """Names the plan."""
        return f"{self.plan} ordered"

    def step(self, net, spec, blocks, batch, own) -> program.Stepped:
        """Takes a step at a width that is drawn."""
        # The blocks' keys are 0 to num_blocks - 1, then comes what augments.
        key = jax.random.fold_in(batch.key, net.num_blocks + 1)
        drawn = jax.random.randint(key, (), 0, len(self.levels))
        # One of the steps takes the key; side by side clients' keys go to all of them.
        words = jax.random.key_data(batch.key)

        def step(width, words, blocks):
            # Leading channels of any width have the leading positions.
            own = batch._replace(key=jax.random.wrap_key_data(words), columns=None)
            return self.step_at(width, net, spec, own, blocks)

        steps = [functools.partial(step, width) for width in self.levels]
        return lax.switch(drawn, steps, words, blocks)

    def step_at(
        self,
        width: float,
        net: network.Network,
        spec: specs.Spec,
        batch: program.Batch,
        blocks: program.Blocks,
    ) -> program.Stepped:
        """Takes a step at one of the levels.

        Args:
          width: the level.
          net: the clients' network.
          spec: as of `freeze`.
          batch: what to train on.
          blocks: of the clients' network.

        Returns:
          As of `Program.step`; `held` is what the step trains; None: all.
        """
        plan, trained = plans.full(net.num_blocks), blocks.trained
        if width == self.width or self.distill:
            done = single.gradient_step(net, spec, plan, blocks, batch)
            if not self.distill:
                ones = jax.tree.map(lambda x: jnp.ones(x.shape, bool), done.gradients)
                return done._replace(held=ones, outputs=None)
            if width == self.width:  # distilled into itself it has no gradient
                return done._replace(outputs=None)
            batch = batch._replace(soft=lax.stop_gradient(done.outputs))
        few = slicing.sliced(self.whole, slicing.Cut(width, self.rounding))
        channels = self._channels(width)
        inner = program.Blocks(blocks.frozen, slicing.take(trained, channels))
        found = single.gradient_step(few, spec, plan, inner, batch)
        params = tuple(block["params"] for block in channels)
        gradients = slicing.put(found.gradients, params, _params(trained))
        if self.distill:
            both = jax.tree.map(jnp.add, done.gradients, gradients)
            return done._replace(gradients=both, outputs=None)
        ones = jax.tree.map(jnp.ones_like, found.gradients)
        held = slicing.put(ones, params, _params(trained))
        held = jax.tree.map(lambda x: x > 0, held)
        updates = tuple(map(_updated, found.updates, channels, trained))
        return found._replace(
            gradients=gradients, updates=updates, held=held, outputs=None
        )

    def _channels(self, width: float) -> slicing.Places:
        """Says where a narrower network lies in the clients'."""
        inner, outer = (
            slicing.places(self.whole, slicing.Cut(w, self.rounding))
            for w in (width, self.width)
        )
        return jax.tree.map(_within, network.shapes(self.whole), inner, outer)


def _params(blocks: tuple) -> tuple:
    return tuple(block["params"] for block in blocks)


def _updated(update: dict, channels: dict, old: dict) -> dict:
    """Lays a block's new statistics and ranges into those that the client has."""
    names = list(update)
    where, before = ({n: tree[n] for n in names} for tree in (channels, old))
    wide = slicing.put(update, where, before)
    held = slicing.put(jax.tree.map(jnp.ones_like, update), where, before)
    return jax.tree.map(lambda h, a, b: jnp.where(h > 0, a, b), held, wide, before)


def _within(leaf: Any, inner: tuple, outer: tuple) -> tuple:
    """Gives the places of kept channels among others that are kept, axis by axis."""
    del leaf

    def axis(few, many):
        if few is None or many is None:
            return few
        order = np.argsort(many)
        return order[np.searchsorted(many, few, sorter=order)].astype(np.int32)

    return tuple(map(axis, inner, outer))
