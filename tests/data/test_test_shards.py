"""Test shards: dealt out as the training examples are, and by hand."""

import numpy as np

from fljax.data import test_shards


def test_each_class_is_dealt_out_by_the_shares_of_the_training_examples():
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 30, (7, 4))
    counts[:, 3] = 0  # a class that is for testing alone
    labels = generator.integers(0, 4, 4000)
    shards = test_shards.by_class(labels, counts, seed=3)
    assert shards.counts.sum() == (labels != 3).sum() == len(set(shards.indices))
    for client, start, count in zip(*shards[:1], *shards[2:], strict=True):
        mine = np.bincount(labels[shards.indices[start : start + count]], minlength=4)
        for kind in range(3):
            share = counts[client, kind] / counts[:, kind].sum()
            assert abs(mine[kind] - share * (labels == kind).sum()) < 1


def test_who_has_no_test_examples_is_left_out():
    shards = test_shards.by_owner(np.array([2, test_shards.NOBODY, 0, 2]))
    assert shards.ids.tolist() == [0, 2]
    assert shards.indices.tolist() == [2, 0, 3]
    assert shards.starts.tolist() == [0, 1]
    assert shards.counts.tolist() == [1, 2]


def test_a_sample_is_the_same_for_a_seed():
    shards = test_shards.by_owner(np.arange(1000) % 200)
    one, two, other = (test_shards.few(shards, 20, seed) for seed in (1, 1, 2))
    assert one.ids.tolist() == two.ids.tolist() != other.ids.tolist()
    assert len(set(one.ids)) == 20
    place = shards.ids.tolist().index(one.ids[3])
    assert one.starts[3] == shards.starts[place]
    assert test_shards.few(shards, 200, 1) is shards


def test_a_million_clients_are_two_arrays():
    counts = np.ones((1_000_000, 1), np.int64)
    shards = test_shards.by_class(np.zeros(300, int), counts, seed=0)
    assert len(shards.ids) == 300
    assert shards.counts.max() == 1
