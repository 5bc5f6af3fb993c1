"""What labels mean; `BY_NAME` maps what `Config.task` names to the tasks."""

from collections.abc import Mapping
from typing import Any

from fljax import notation
from fljax.tasks import base, classification, multilabel, regression, tokens
from fljax.tasks.base import Measure as Measure
from fljax.tasks.base import Task as Task
from fljax.tasks.base import check_traced as check_traced
from fljax.tasks.classification import Classification as Classification
from fljax.tasks.multilabel import MultiLabel as MultiLabel
from fljax.tasks.regression import Regression as Regression
from fljax.tasks.tokens import Tokens as Tokens

BY_NAME: dict[str, type[base.Task]] = {
    "classification": classification.Classification,
    "tokens": tokens.Tokens,
    "regression": regression.Regression,
    "multilabel": multilabel.MultiLabel,
}
DEFAULT = classification.Classification()


def named(text: str) -> base.Task:
    """Makes what a text such as `multilabel:0.3` names.

    Raises:
      ValueError: it names none.
    """
    return notation.make(text, BY_NAME)


def measure_of(record: Mapping[str, Any]) -> base.Measure:
    """Tells what an evaluated record was judged by: by the loss, if by none of these.

    Args:
      record: of an evaluated round, of any task.
    """
    return base.measure_of(record, [task.measure for task in BY_NAME.values()])
