"""The program of one window: the roles of its blocks are fixed when it is compiled.

Blocks before the window run in fixed point and pass no gradient on; the window trains
in float32; blocks after it run in fixed point both ways (CoCoFL, Fig. 2).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from fljax import plans, types
from fljax.engine import program
from fljax.kernels import specs
from fljax.nn import layers, network, signals


@dataclasses.dataclass(frozen=True, slots=True)
class Single(program.Program):
    """The program of all clients of one plan."""

    plan: plans.Plan
    capacity: int = 0
    short: bool = False

    any_window: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Gives the name of the plan."""
        return str(self.plan)

    @property
    def bits(self) -> int:
        """Gives the plan's width of codes."""
        return self.plan.bits

    @property
    def width(self) -> float:
        """Gives the plan's width of the network."""
        return self.plan.width

    @property
    def order(self) -> tuple:
        """Puts programs of one window first, in the order of their plans."""
        return False, self.plan, self.capacity

    def span(self, num_blocks: int) -> slice:
        """Gives the blocks of the window."""
        return slice(self.plan.first, self.plan.last + 1)

    def freeze(self, net, spec, state, key) -> tuple:
        """Freezes the blocks outside the window, each for its role."""
        roles = plans.roles(self.plan, net.num_blocks)
        return network.freeze(net, state, roles, spec, key)

    def places(self, net, spec, blocks, x) -> None:
        """Makes none: no block branches."""
        return

    def step(self, net, spec, blocks, batch, own) -> program.Stepped:
        """Takes a step of the window; see `gradient_step`."""
        return gradient_step(net, spec, self.plan, blocks, batch)

    def settle(self, new, old, own) -> tuple:
        """Gives the new state: what does not train is not in it."""
        return new

    def present(self, windows, real, num_blocks) -> None:
        """Tells nothing: every client has the plan's roles."""
        return

    def trains(self, windows, num_blocks) -> types.Array:
        """Tells that every client trains the whole window."""
        span = self.span(num_blocks)
        return jnp.ones((windows.shape[0], span.stop - span.start), bool)


def gradient_step(
    net: network.Network,
    spec: specs.Spec,
    plan: plans.Plan,
    blocks: program.Blocks,
    batch: program.Batch,
    fresh: bool = False,
) -> program.Stepped:
    """Computes loss, gradients of the window, and its blocks' new norms and ranges.

    Args:
      net: the network, static.
      spec: of the frozen blocks, static.
      plan: the window, static.
      blocks: frozen outside the window, trained in it.
      batch: what to train on.
      fresh: statistics are replaced rather than averaged, static.

    Returns:
      Gradients of params and backward ranges of all blocks, None outside the window;
      new norms and ranges of the blocks of the window; no places.
    """
    frozen, trained = blocks
    x, mask, key, observe = batch.x, batch.mask, batch.key, batch.observe
    roles = plans.roles(plan, net.num_blocks)
    first, last = plan.first, plan.last
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
    calls = [
        layers.Call(
            role,
            network.spec_of(net, spec, i),
            mask,
            observe=observe,
            first=i == first,
            fresh=fresh,
            key=key,
            scale=batch.scale,
            columns=None if i else batch.columns,
        )
        for i, role in enumerate(roles)
    ]
    prefix, _ = network.run(net, frozen[:first], x, calls[:first])
    # The border of the frozen prefix.
    border = signals.cast(lax.stop_gradient(prefix), dtype)

    def loss_of(params, backward):
        state = [
            {**trained[i], "params": params[i], "backward": backward[i]}
            for i in range(first, last + 1)
        ]
        window = calls[first : last + 1]
        h, updates = network.run(
            net, state, border, window, first, mutable=("norms", "ranges")
        )
        if last + 1 < net.num_blocks:
            h = signals.known(h, network.nonnegative(net)[last])
        h, _ = network.run(net, frozen[last + 1 :], h, calls[last + 1 :], last + 1)
        return batch.loss(h), (updates, signals.to_float(h))

    params, backward = (
        tuple(None if block is None else block[name] for block in trained)
        for name in ("params", "backward")
    )
    (loss, (updates, outputs)), (gradients, ranges) = jax.value_and_grad(
        loss_of, argnums=(0, 1), has_aux=True
    )(params, backward)
    return program.Stepped(loss, gradients, ranges, updates, None, outputs=outputs)
