"""Costs from operation counts at one set of prices: for networks of any size.

Device classes (`cost_model`) are fitted to machines and to networks of millions of
parameters; what such a machine spends beside the network would fill the memory of a
small one. Here every cost grows with the network, so budgets of a third mean something
for a network of ten thousand parameters too. Against the published tables, at batch 32
(mean absolute error, largest error, Pearson correlation):

| table                  | time           | memory         |
|------------------------|----------------|----------------|
| MobileNet x64          | .032 .138 .995 | .038 .124 .994 |
| MobileNetLarge x64     | .026 .248 .993 | .026 .112 .993 |
| MobileNetGroupNorm x64 | .089 .211 .991 | .052 .238 .985 |
| ResNet50 x64           | .044 .194 .976 | .053 .157 .982 |
| ResNet18 ARM           | .061 .161 .900 | .040 .150 .975 |
| DenseNet40 ARM         | .038 .200 .985 | .106 .233 .994 |
| Transformer x64        | .026 .081 .994 | .047 .160 .980 |
| TransformerSeq2Seq x64 | .034 .087 .991 | .064 .205 .969 |

Legend: P windows of a table, n blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fljax import types

# Price of a kind of work, in forward float32 multiply-accumulates of a dense product.
# One set for all networks: a compromise of scale-free least squares fits to the
# published tables, rounded. The docstring states what error that leaves.
#
# A fixed point product costs the same as a float one: fits that may choose put it at
# 0.6 to 1.0, because the int8 kernels of the tables are fast but their wrapping is not.
FIXED_POINT_MAC = 1.0
# Depthwise convolutions run at memory speed; the fits say 70 to 300 times a dense one.
DEPTHWISE_MAC = 150.0
# After the window a depthwise convolution stays in float32, without batch statistics.
FROZEN_DEPTHWISE_MAC = 120.0
# Norms, activations, additions and their gradients, for each value that is kept.
TRAINED_VALUE = 400.0
# After the window a step quantizes and dequantizes around every product, twice.
FROZEN_AFTER_VALUE = 320.0
# Before it, values stay codes from block to block, and there is no backward pass.
FROZEN_BEFORE_VALUE = 90.0
# The update of one parameter, once a step whatever the batch.
TRAINED_PARAMETER = 500.0

# Share of the values kept when trained that remain when frozen after the window
# (0.7 fits networks with batch norm, 0.97 those whose norms stay in float32).
KEPT_AFTER = 0.8
# Of the largest block before the window: its inputs and outputs, freed block by block.
KEPT_BEFORE = 0.5
# Copies of a trained parameter beside its value: gradient and update.
TRAINED_COPIES = 2.0


def prices(
    windows: np.ndarray, counts: Sequence[types.BlockCounts], batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Price windows [P, 2]; returns time and memory in units of their own: two [P].

    Args:
      windows: first and last trained block.
      counts: of the n blocks, for one example each.
      batch: examples a step.
    """
    return _time(windows, counts, batch), _memory(windows, counts, batch)


def masks(windows: np.ndarray, num_blocks: int) -> tuple[np.ndarray, ...]:
    """Return which blocks lie before, in and after each window: three 0/1 [P, n]."""
    block = np.arange(num_blocks)
    before, after = block < windows[:, :1], block > windows[:, 1:]
    return before.astype(float), (~before & ~after).astype(float), after.astype(float)


def _column(counts: Sequence[types.BlockCounts], field: str) -> np.ndarray:
    """Return one count of every block, float64 [n]."""
    return np.array([getattr(count, field) for count in counts], np.float64)


def _time(
    windows: np.ndarray, counts: Sequence[types.BlockCounts], batch: int
) -> np.ndarray:
    """Return the modeled time of an example, in float32 multiply-accumulates [P]."""
    macs, depthwise = _column(counts, "macs"), _column(counts, "depthwise_macs")
    kept, params = _column(counts, "kept"), _column(counts, "params")
    before, trained, after = masks(windows, len(counts))
    # Nothing needs a gradient before the window: its first block makes two passes.
    first = np.arange(len(counts)) == windows[:, :1]
    passes = 3 * trained - first
    return (
        passes @ (macs + DEPTHWISE_MAC * depthwise)
        + trained @ (TRAINED_VALUE * kept + TRAINED_PARAMETER * params / batch)
        + before @ (FIXED_POINT_MAC * (macs + depthwise) + FROZEN_BEFORE_VALUE * kept)
        + 2 * after @ (FIXED_POINT_MAC * macs + FROZEN_DEPTHWISE_MAC * depthwise)
        + after @ (FROZEN_AFTER_VALUE * kept)
    )


def _memory(
    windows: np.ndarray, counts: Sequence[types.BlockCounts], batch: int
) -> np.ndarray:
    """Return the modeled peak memory of a step, in float32 values [P]."""
    kept, params = _column(counts, "kept"), _column(counts, "params")
    before, trained, after = masks(windows, len(counts))
    values = trained @ kept + KEPT_AFTER * (after @ kept)
    values += KEPT_BEFORE * np.max(before * kept, axis=1)
    return batch * values + params.sum() + TRAINED_COPIES * (trained @ params)
