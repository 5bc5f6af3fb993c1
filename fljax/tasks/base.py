"""What a task is: what labels mean, the loss, and what a record says of the network.

Legend: N examples, B of a batch, C outputs of the network.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax import bounds, types
from fljax.data import labels as kinds
from fljax.nn import network


class Measure(NamedTuple):
    """What a network is judged by first: in bars, curves, tables and rollbacks.

    Attributes:
      key: of the record's field.
      title: in words, that of the test set.
      more: whether more is better.
      share: whether it lies from 0 to 1, and is drawn in percent.
    """

    key: str
    title: str
    more: bool = True
    share: bool = True

    def worst(self, values: Iterable[float]) -> float:
        """Gives the worst of some values."""
        return min(values) if self.more else max(values)

    def reaches(self, value: float, target: float) -> bool:
        """Tells whether a value is as good as a target, or better."""
        return value >= target if self.more else value <= target


LOSS = Measure("test_loss", "loss", more=False, share=False)


class Means(NamedTuple):
    """Sums of the scores that any task has.

    Attributes:
      loss: [] sum of the losses.
      total: [] number of examples.
    """

    loss: types.Array
    total: types.Array


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """What labels mean; a frozen dataclass, since compiled programs are keyed by it.

    A task of one's own is given with its data, `Dataset(..., task=Mine())`. On labels
    that are floats like the outputs `loss` is all that it needs; what it leaves out is
    as below. One of class numbers builds on `Classification`.

    Attributes:
      measure: what the network is judged by first; a field of `record`.
      classes: labels are class numbers [N], and data can be split by class.
      positions: the network gives an output for each position, [B, T, C].
    """

    measure: ClassVar[Measure] = LOSS
    classes: ClassVar[bool] = False
    positions: ClassVar[bool] = False

    @abc.abstractmethod
    def loss(
        self, outputs: types.Array, labels: types.Array, mask: types.Array
    ) -> types.Array:
        """Averages the loss over the examples of a mask.

        Args:
          outputs: of the network, [B, C] or [B, T, C] float32.
          labels: [B, ...].
          mask: [B] 1 for examples, 0 for padding.

        Returns:
          [], 0 where all is padding.
        """

    def scores(
        self, outputs: types.Array, labels: types.Array, mask: types.Array
    ) -> Any:
        """Gives sums over the examples of a mask, arguments as of `loss`.

        Returns:
          A tree of float32 arrays, which are added up over batches and devices.
        """
        # Where all rows are padding a norm has nothing to go by, and may overflow.
        real = mask.reshape(-1, *(1,) * (outputs.ndim - 1)) > 0
        loss = self.loss(jnp.where(real, outputs, 0.0), labels, mask)
        total = jnp.sum(mask)
        return Means(loss * total, total)

    def record(self, sums: Any) -> dict[str, Any]:
        """Turns the sums over a test set into fields of a record.

        Args:
          sums: of `scores`, on the host.

        Returns:
          `test_loss`, that of `measure`, and others.
        """
        return {"test_loss": float(sums.loss) / float(sums.total)}

    def check(self, name: str, data: types.Dataset) -> types.Dataset:
        """Checks the labels of a data set.

        Args:
          name: opens every error.
          data: as somebody gave it, its x checked.

        Returns:
          It, with labels as the loss takes them, and the number of outputs that a
          network needs as `num_classes`.

        Raises:
          ValueError: one line: what was expected, what came, and the fix.
        """
        return kinds.any_numbers(name, data)

    def noise(self, key: types.Key, shape: tuple[int, ...]) -> types.Array:
        """Draws labels for calibration, before any data is seen; floats, by itself.

        Args:
          key: of the draw.
          shape: of the outputs, [B, C] or [B, T, C].

        Returns:
          Labels [B, ...].
        """
        return jax.random.normal(key, shape)

    def shape(self, net: network.Network, size: int) -> tuple[int, ...]:
        """Gives the shape of the outputs for a batch of a size."""
        length = net.input_shape[:1] if self.positions else ()
        return (size, *length, net.num_classes)


def check_traced(task: Task, net: network.Network, data: types.Dataset) -> None:
    """Checks what a task of one's own makes of the outputs and labels that it will see.

    Args:
      task: it is traced, not run.
      net: whose outputs.
      data: whose labels, checked.

    Raises:
      ValueError: one line that says what was expected and what came.
    """
    size = 13  # unlike most numbers of outputs, that one is not taken for the other
    outputs = jax.ShapeDtypeStruct(task.shape(net, size), jnp.float32)
    labels = jax.ShapeDtypeStruct((size, *data.y_train.shape[1:]), data.y_train.dtype)
    mask = jax.ShapeDtypeStruct((size,), jnp.float32)
    seen = f"outputs {_batch(outputs)} and labels {_batch(labels)}"
    try:
        loss = jax.eval_shape(task.loss, outputs, labels, mask)
        key = jax.random.key(0)
        drawn = jax.eval_shape(lambda key: task.noise(key, outputs.shape), key)
        jax.eval_shape(task.loss, outputs, drawn, mask)
        jax.eval_shape(task.scores, outputs, labels, mask)
    except Exception as error:  # whatever a task of the user's raises
        raise ValueError(
            f"task {task!r}: expected it to take {seen}, got "
            f"{type(error).__name__}: {bounds.gist(error)}"
        ) from error
    if getattr(loss, "shape", None) != ():
        raise ValueError(
            f"task {task!r}: expected a loss [] of {seen}, got "
            f"{_batch(loss) if hasattr(loss, 'shape') else type(loss).__name__}"
        )


def _batch(x: jax.ShapeDtypeStruct) -> str:
    return f"{x.dtype}[{', '.join(['B', *map(str, x.shape[1:])])}]"


def mean(values: types.Array, mask: types.Array) -> types.Array:
    """Averages values [B] over the rows of a mask [B]; 0 where there are none."""
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def total(values: types.Array, mask: types.Array) -> types.Array:
    """Sums values [B, ...] over the rows of a mask [B], whatever the others are."""
    rows = mask.reshape(-1, *(1,) * (values.ndim - 1)) > 0
    return jnp.sum(jnp.where(rows, values, 0.0), axis=0)


def ratio(above: Any, below: Any) -> float:
    """Divides two sums; 0 where there is nothing to divide by."""
    below = float(np.sum(below))
    return float(np.sum(above)) / below if below else 0.0


def macro_f1(right: Any, there: Any, predicted: Any) -> float:
    """Averages F1, the harmonic mean of precision and recall, over classes or labels.

    It weighs a rare one as much as a frequent one. One that is neither in the test set
    nor predicted is left out.

    Args:
      right: [C] examples of each that were predicted to be so.
      there: [C] examples of each.
      predicted: [C] examples that were predicted as each.

    Returns:
      0 to 1.
    """
    right, there, predicted = (
        np.asarray(x, np.float64) for x in (right, there, predicted)
    )
    known = there + predicted > 0
    if not known.any():
        return 0.0
    return float(np.mean(2 * right[known] / (there + predicted)[known]))


def measure_of(record: Mapping[str, Any], known: Iterable[Measure]) -> Measure:
    """Finds what a record was judged by: the first of the known that it has."""
    return next((m for m in known if m.key in record), LOSS)
