"""Aliases and small state tuples that the whole library shares; no logic.

Legend of shapes, used in every docstring: N all clients, K clients of a cohort,
W clients of a chunk, S local steps, B batch, C classes, n blocks of the network.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array
ArrayLike = Any  # an array on the host or on the device
Key = jax.Array  # a typed key of jax.random.key
Tree = Any  # any pytree of arrays
Params = Any  # pytree of float32 parameters


class Role(enum.Enum):
    """What a block does under a plan."""

    TRAINED = "trained"  # float32, gradients of its parameters
    FROZEN_BEFORE = "frozen_before"  # fixed point forward, no gradient
    FROZEN_AFTER = "frozen_after"  # fixed point forward and input gradient


class Dataset(NamedTuple):
    """A data set in host memory; what labels are is the task's affair.

    They are class numbers from 0, if it is classification. Text is tokens: x is
    [examples, length] uint16 or int32 token ids, 0 being padding.
    """

    x_train: np.ndarray  # [examples, *features], uint8, float32 or tokens
    y_train: np.ndarray  # [examples, ...]
    x_test: np.ndarray  # [examples, *features], dtype of x_train
    y_test: np.ndarray  # [examples, ...]
    num_classes: int = 0  # outputs that a network needs; 0: as the labels say
    users: np.ndarray | None = None  # [train examples] int: who wrote the example
    vocabulary: int | None = None  # number of token ids; None: x are no tokens
    tokenizer: bytes | None = None  # what made the tokens, as JSON, if it was trained
    # [test examples] likewise; -1: no one in users
    users_test: np.ndarray | None = None
    task: Any = None  # a `tasks.Task` of one's own, instead of the named one


class BlockCounts(NamedTuple):
    """What one block computes and keeps, for one example."""

    macs: int  # multiply-accumulates of dense products, forward
    depthwise_macs: int  # multiply-accumulates of depthwise convolutions, forward
    kept: int  # float32 values that the backward pass of a trained block needs
    outputs: int  # values of the block's output
    params: int  # trainable parameters
    upload_bytes: int  # bytes a client sends when it trained the block
    entry_bytes: int = 0  # of these, not sent where the block is the window's first
    before_bytes: int = 0  # bytes that are sent though the block is before the window
    after_bytes: int = 0  # bytes that are sent though the block is after it
    float_macs: int = 0  # of `macs`, those that stay in float32 when frozen
    values: int = 0  # values that norms, activations and sums of a trained block write
    after_values: int = 0  # of these, written in float32 after the window as well
    before_values: int = 0  # of these, written in float32 before it as well
    coded: int = 0  # values that enter and leave products in fixed point


class Budgets(NamedTuple):
    """Limits of a round, relative to training everything (1.0 = the full network)."""

    time: np.ndarray  # [K] float64
    upload: np.ndarray  # [K] float64
    memory: np.ndarray  # [K] float64
