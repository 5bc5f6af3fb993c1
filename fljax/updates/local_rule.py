"""Local rules: what a client does beside its optimizer.

A rule may change the client's gradients, keep a state from round to round, and send
something beside the update. It is written for one client; trees are tuples over the
blocks that the client's program trains, with None in place of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import optax

from fljax import types


class Local(NamedTuple):
    """A client's round, after its last step.

    Attributes:
      delta: new minus old parameters, a tuple over blocks.
      steps: that it took, [].
      learning_rate: of the round, [].
      gradient: () -> mean gradient over its examples at the network that it began
        with; another pass over them, computed only where it is called.
    """

    delta: tuple
    steps: types.Array
    learning_rate: types.Array
    gradient: Callable[[], tuple]


class Finished(NamedTuple):
    """What a client sends and keeps.

    Attributes:
      delta: of the parameters, as it is sent.
      own: the client's state, as `LocalRule.own`; None: it keeps none.
      message: sent beside it, shaped like delta; None: nothing.
      numbers: [m] likewise; None: nothing.
    """

    delta: tuple
    own: tuple | None = None
    message: tuple | None = None
    numbers: types.Array | None = None


class LocalRule:
    """What a client does beside its optimizer; frozen dataclasses, pure functions.

    Attributes:
      keeps: whether clients keep a state, `own`.
      messages: whether they send something shaped like the parameters beside them.
      numbers: how many numbers they send beside them.
    """

    keeps: ClassVar[bool] = False
    messages: ClassVar[bool] = False
    numbers: ClassVar[int] = 0

    def own(self, blocks: tuple) -> tuple:
        """Makes the state before a client's first round.

        Args:
          blocks: state of the initial network, a tuple over blocks; each has "params".

        Returns:
          A tuple over the same blocks.
        """
        raise NotImplementedError("a rule that keeps a state makes it in `own`")

    def transform(
        self, shared: tuple | None, own: tuple | None
    ) -> optax.GradientTransformation:
        """Changes gradients before the client's optimizer has them.

        Args:
          shared: what the server rule shares; None: nothing.
          own: the client's state; None: it keeps none.

        Returns:
          The transformation; its `init` sees the parameters that the round began with.
        """
        return optax.identity()

    def finish(self, shared: tuple | None, own: tuple | None, local: Local) -> Finished:
        """Says what is sent and kept after the last step.

        Args:
          shared: as of `transform`.
          own: as of `transform`.
          local: the client's round.

        Returns:
          What is sent and kept.
        """
        return Finished(local.delta, own)
