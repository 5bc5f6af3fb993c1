"""The program of clients whose network ends behind their window (DepthFL, ICLR 2023).

What is behind it is not there: nothing is frozen, and nothing is sent of it.
"""

from __future__ import annotations

import dataclasses

from fljax.engine.program import single


@dataclasses.dataclass(frozen=True, slots=True)
class Prefix(single.Single):
    """The program of clients who have the first blocks, up to an exit, and train all.

    Its plan begins with the first block and ends with the exit.
    """

    @property
    def name(self) -> str:
        """Names the blocks."""
        return f"{self.plan} alone"

    def holds(self, net):
        """Gives the first blocks."""
        return net._replace(blocks=net.blocks[: self.plan.last + 1])
