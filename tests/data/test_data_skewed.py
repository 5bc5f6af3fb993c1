"""Splits by Flower's names: by hand, against Flower itself, and what is refused."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from fljax.data import partition, skewed

LABELS = np.random.default_rng(7).integers(0, 6, 607)


def _counts(parts):
    return partition.class_counts(LABELS, parts, 6)


def _lists(parts):
    return [np.asarray(part).tolist() for part in parts]


# What flwr-datasets 0.6.1 gives of LABELS for 9 clients and seed 3: the first client's
# first five examples, and how many of each class the first two clients have.
RECORDED = {
    "shard": (
        lambda: skewed.shard(LABELS, 9, 3),
        [24, 180, 204, 126, 83],
        [[0, 0, 0, 0, 35, 31], [0, 0, 21, 12, 0, 33]],
    ),
    "pathological": (
        lambda: skewed.pathological(LABELS, 9, 3, 3),
        [146, 84, 13, 178, 174],
        [[33, 25, 0, 14, 0, 0], [0, 0, 0, 14, 21, 22]],
    ),
    "inner_dirichlet": (
        lambda: skewed.inner_dirichlet(LABELS, 9, 0.3, 3),
        [463, 220, 444, 361, 128],
        [[0, 23, 0, 25, 11, 8], [17, 0, 0, 4, 43, 3]],
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_equals_what_flower_gave(name):
    make, first, counts = RECORDED[name]
    parts = make()
    assert parts[0][:5].tolist() == first
    assert _counts(parts)[:2].tolist() == counts


def test_examples_of_the_docstrings():
    assert doctest.testmod(skewed).failed == 0


def test_shards_are_dealt_out_whole_by_hand():
    # Six examples in order of class are 0 2 4, 1 3 5; three clients have one each.
    labels = np.array([0, 1, 0, 1, 0, 1])
    parts = skewed.shard(labels, 3, 0, 1)
    assert sorted(map(sorted, _lists(parts))) == [[0, 2], [1, 4], [3, 5]]
    parts = skewed.shard(labels, 1, 0, 2)
    assert sorted(parts[0].tolist()) == [0, 1, 2, 3, 4, 5]


def test_shards_that_do_not_divide_leave_some_out():
    parts = skewed.shard(LABELS, 10, 0, 3)  # 607 // 30 = 20, of which there are 30
    assert {len(part) for part in parts} == {60}
    whole = np.concatenate(parts)
    assert len(np.unique(whole)) == len(whole) == 600
    assert (_counts(parts) > 0).sum(1).max() <= 6  # a shard has two classes at most


@pytest.mark.parametrize("assignment", skewed.ASSIGNMENTS)
@pytest.mark.parametrize("classes", [1, 2, 6])
def test_pathological_clients_have_so_many_classes_in_equal_parts(assignment, classes):
    parts = skewed.pathological(LABELS, 20, 1, classes, assignment)
    counts = _counts(parts)
    assert ((counts > 0).sum(1) == classes).all()
    shared = [column[column > 0] for column in counts.T]
    assert all(np.ptp(part) <= 1 for part in shared if len(part))
    if assignment != "random":  # so all classes are in use
        assert len(np.unique(np.concatenate(parts))) == len(LABELS)
        assert (counts[np.arange(20), np.arange(20) % 6] > 0).all()


def test_pathological_in_turn_by_hand():
    parts = skewed.pathological(np.array([0, 1, 2, 0, 1, 2]), 3, 0, 2, "deterministic")
    # Client 0 has classes 0, 1; 1 has 1, 2; 2 has 2, 0: of each class one example.
    assert [sorted(part) for part in _lists(parts)] == [[0, 1], [2, 4], [3, 5]]


def test_numbers_of_classes_may_have_gaps():
    labels = np.array([2, 5, 2, 5])
    parts = skewed.pathological(labels, 2, 0, 1, "deterministic")
    assert [sorted(part) for part in _lists(parts)] == [[0, 2], [1, 3]]


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 1.0, 1000.0])
def test_inner_dirichlet_gives_each_client_its_mix_until_classes_run_out(alpha):
    parts = skewed.inner_dirichlet(LABELS, 12, alpha, 5)
    assert {len(part) for part in parts} == {607 // 12}
    whole = np.concatenate(parts)
    assert len(np.unique(whole)) == len(whole)
    largest = _counts(parts).max(1).mean() / (607 // 12)
    low, high = {1e-3: (0.6, 1), 0.1: (0.5, 1), 1.0: (0.3, 0.6), 1000.0: (0.15, 0.3)}[
        alpha
    ]
    assert low <= largest <= high


def test_a_class_that_is_absent_is_drawn_for_and_stays_empty():
    labels = np.array([0, 2, 0, 2, 4, 4])
    parts = skewed.inner_dirichlet(labels, 3, 0.5, 1)
    assert sorted(np.concatenate(parts).tolist()) == [0, 1, 2, 3, 4, 5]


def test_same_seed_same_split_other_seed_another():
    for split in (
        lambda seed: skewed.shard(LABELS, 8, seed),
        lambda seed: skewed.pathological(LABELS, 8, seed),
        lambda seed: skewed.inner_dirichlet(LABELS, 8, 0.5, seed),
    ):
        assert _lists(split(0)) == _lists(split(0))
        assert _lists(split(0)) != _lists(split(1))


FLOWERS = {
    "shard": (
        "ShardPartitioner",
        {"num_partitions": 9, "num_shards_per_partition": 2},
        lambda seed: skewed.shard(LABELS, 9, seed),
    ),
    "many shards": (
        "ShardPartitioner",
        {"num_partitions": 40, "num_shards_per_partition": 7},
        lambda seed: skewed.shard(LABELS, 40, seed, 7),
    ),
    **{
        f"pathological {how}": (
            "PathologicalPartitioner",
            {
                "num_partitions": 9,
                "num_classes_per_partition": 3,
                "class_assignment_mode": how,
            },
            lambda seed, how=how: skewed.pathological(LABELS, 9, seed, 3, how),
        )
        for how in skewed.ASSIGNMENTS
    },
    **{
        f"inner_dirichlet {alpha}": (
            "InnerDirichletPartitioner",
            {"partition_sizes": [607 // 9] * 9, "alpha": alpha},
            lambda seed, alpha=alpha: skewed.inner_dirichlet(LABELS, 9, alpha, seed),
        )
        for alpha in (0.3, 5.0)
    },
}


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("name", FLOWERS)
@pytest.mark.filterwarnings("ignore")  # of what Flower imports, and of what is left out
def test_equals_flower_index_for_index(name, seed):
    flower = pytest.importorskip("flwr_datasets.partitioner")
    datasets = pytest.importorskip("datasets")
    kind, given, ours = FLOWERS[name]
    made = getattr(flower, kind)(partition_by="label", seed=seed, **given)
    rows = {"label": LABELS.tolist(), "place": list(range(len(LABELS)))}
    made.dataset = datasets.Dataset.from_dict(rows)
    parts = ours(seed)
    theirs = [list(made.load_partition(i)["place"]) for i in range(len(parts))]
    assert _lists(parts) == theirs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda y: skewed.shard(y, 0, 0), "expected 1 to .* 6, clients, got 0"),
        (lambda y: skewed.shard(y, 2, 0, 0), "shards_per_client must be 1 or more"),
        (lambda y: skewed.shard(y, 4, 0, 2), "at most 6 shards.* got 4 clients of 2"),
        (lambda y: skewed.pathological(y, 7, 0), "expected 1 to .* 6, clients, got 7"),
        (lambda y: skewed.pathological(y, 2, 0, 0), "classes_per_client must be 1"),
        (lambda y: skewed.pathological(y, 2, 0, 4), "at most the 3 classes .* got 4"),
        (
            lambda y: skewed.pathological(y, 3, 0, 3),
            "an example of class 0 for each of the 3 clients that have it, got 2",
        ),
        (
            lambda y: skewed.pathological(y, 2, 0, 1, "in turn"),
            "the assignment random, .* got 'in turn'",
        ),
        (lambda y: skewed.inner_dirichlet(y, 9, 1.0, 0), "6, clients, got 9"),
        (lambda y: skewed.inner_dirichlet(y, 2, 0.0, 0), "positive and finite, got 0"),
        (lambda y: skewed.inner_dirichlet(y / 2, 2, 1.0, 0), "class numbers from 0"),
    ],
)
def test_bad_input_is_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make(np.array([0, 0, 1, 1, 2, 2]))
