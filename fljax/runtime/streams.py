"""The register of random streams: what is drawn, and from which numbers.

Every draw of a run depends on its seed and on what it is for, never on what was drawn
before. There are four kinds of streams:

- of a round: `fold_in(round key, tag)`, then a client's number. The key of a round is
  `fold_in(key(seed), round)`; a client trains with `fold_in(round key, number)`. Both
  numbers are int32, so tags from 2**32 downward never meet them.
- of the seed: `fold_in(key(seed), INITIAL)`, or another tag; no round has that number.
- on the host: `generator(seed, number, ...)`. Three of these numbers stand for two
  streams that have nothing to do with each other; another number would change results.
- partitions of a training set, `numpy.random.default_rng(seed)`: the seed alone.

Within a client (`engine.client.train`) its key is split in two: of the order of
examples, folded with the epoch and the slot, and of noise, folded with the step. A key
of a step is folded with the index of a block; to augment, with the number of blocks.
"""

from __future__ import annotations

import numpy as np

# Folded into the key of the seed.
INITIAL = 0xFFFF0000  # weights and calibration of the network before the first round
FINETUNE = 0xFFFF0044  # , client: what it draws before its evaluation

# Folded into the key of a round.
BUDGETS = 0xFFFF0001  # what a device may spend
CHOICE = 0xFFFF0002  # which of its windows a client gets
ROUNDING = 0xFFFF0003  # stochastic rounding of frozen weights
MIXTURE = 0xFFFF0010  # policy `balanced`: which part of the mixture
EXPLORE = 0xFFFF0011  # policy `online`: who tries what
SHARED = 0xFFFF0012  # policy `random_shared`: the orders that a round's clients share
DRIFT = 0xFFFF0020  # speed of a device; of the round of a knot
BANDWIDTH = 0xFFFF0021  # of a device in a round
FAULT = 0xFFFF0023  # what goes wrong with a client
CODEC = 0xFFFF0030  # what a codec draws for a client
STEPS = 0xFFFF0031  # which way a client rounds what is summed securely
MASKS = 0xFFFF0032  # of two clients, in a secure sum
PRIVACY = 0xFFFF0033  # noise of the sum of a round's updates
PRIVACY_COUNT = 0xFFFF0034  # noise of the number of norms below the clip norm
ATTACK = 0xFFFF0040  # what a hostile client draws

# Numbers of `generator`, with what follows them.
COHORT = 1  # , round: who takes part
EVALUATION_ORDER = 2  # examples over batches
TYPICAL = 3  # clients whose budgets policies plan with
TEST_SHARE = 3  # training and test examples split anew
AVAILABILITY = 4  # , round: which devices are there
USER_SHARE = 4  # , CRC-32 of the user's name: examples of a LEAF user held out
SPREAD = 5  # of a fleet drawn by `spread`
TEST_TIERS = 5  # test examples dealt out to tiers
TABLE_ERROR = 6  # true costs against those of the table
CHANNELS = 7  # , round, client or nobody: which channels a narrow network keeps
ROOT = 8  # examples that a server trains on itself
RING = 9  # , round: who stands beside whom, in a secure sum
TIME_ZONES = 0xFFFF0022  # of devices that come and go with the hour
PHONES = 0xFFFF0024  # of a fleet drawn by `phones`
HOSTILE = 0xFFFF0041  # which clients are hostile
TEST_SHARDS = 0xFFFF0042  # test examples dealt out to clients
EVALUATED = 0xFFFF0043  # which clients are evaluated, of very many


def generator(seed: int, stream: int, *more: int) -> np.random.Generator:
    """Makes the numpy generator of a stream: the same for the same numbers."""
    return np.random.default_rng([seed, stream, *more])
