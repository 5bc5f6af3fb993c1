"""Splits over clients: hand-checked numbers, a literal oracle, the reference."""

from __future__ import annotations

import doctest
import pathlib

import numpy as np
import pytest

from fljax.data import partition

EXPECTED = (
    pathlib.Path(__file__).parents[3]
    / "shared"
    / "reference"
    / "expected"
    / "splits_cifar10.npz"
)


def _labels(examples: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, examples)


def _walk(labels, owners, alpha, rng):
    """The rule word for word: owner by owner, class by class, the next examples."""
    classes = [list(np.flatnonzero(labels == c)) for c in range(labels.max() + 1)]
    shares = []
    for members in classes:
        p = rng.dirichlet([alpha] * owners)
        shares.append(rng.multinomial(len(members), p))
    walked = []
    for owner in range(owners):
        mine = []
        for members, share in zip(classes, shares, strict=True):
            mine += [members.pop(0) for _ in range(share[owner])]
        walked.append(mine)
    return walked


def _equal(order, num_clients):
    size = int(len(order) / num_clients)
    return [order[i * size : (i + 1) * size] for i in range(num_clients)]


def _dirichlet_oracle(labels, num_clients, alpha, seed):
    rng = np.random.default_rng(seed)
    walked = _walk(labels, num_clients, alpha, rng)
    return _equal([i for mine in walked for i in mine], num_clients)


def _correlated_oracle(labels, num_clients, alpha, seed, num_groups):
    rng = np.random.default_rng(seed)
    order = []
    for group in _walk(labels, num_groups, alpha, rng):
        group = np.array(group, np.int64)
        rng.shuffle(group)
        order += group.tolist()
    return _equal(order, num_clients)


def _lists(parts) -> list[list[int]]:
    return [np.asarray(part).tolist() for part in parts]


@pytest.fixture(scope="module")
def expected():
    if not EXPECTED.is_file():
        pytest.skip(f"no reference results at {EXPECTED}")
    with np.load(EXPECTED) as stored:
        return dict(stored)


@pytest.mark.parametrize("seed", [10, 11])
@pytest.mark.parametrize("kind", ["iid", "noniid", "rcnoniid"])
def test_equals_the_reference_index_for_index(expected, kind, seed):
    labels, key = expected["labels"], f"{kind}/seed{seed}/n100/alpha0.1"
    parts = {
        "iid": lambda: partition.iid(labels, 100, seed),
        "noniid": lambda: partition.dirichlet(labels, 100, 0.1, seed),
        "rcnoniid": lambda: partition.resource_correlated(labels, 100, 0.1, seed),
    }[kind]()
    np.testing.assert_array_equal(np.concatenate(parts), expected[f"{key}/indices"])
    np.testing.assert_array_equal([len(p) for p in parts], expected[f"{key}/sizes"])


# Group borders in devices of 100, of CIFAR-10's ten classes of 5,000 (CoCoFL).
@pytest.mark.parametrize(
    ("seed", "borders"), [(10, (40.4, 58.5)), (11, (43.2, 79.8)), (12, (45.9, 66.0))]
)
def test_group_borders_of_the_reference(seed, borders):
    rng = np.random.default_rng(seed)
    shares = partition._class_shares(np.full(10, 5000), 3, 0.1, rng)
    ends = np.cumsum(shares.sum(0))
    np.testing.assert_allclose(ends[:2] / 500, borders, atol=0.05)
    labels = np.repeat(np.arange(10), 5000)
    order = np.concatenate(partition.resource_correlated(labels, 100, 0.1, seed))
    groups = np.split(order, ends[:2])
    np.testing.assert_array_equal(partition.class_counts(labels, groups, 10), shares.T)


SHAPES = [  # examples, clients, alpha, classes
    (50, 5, 0.1, 3),
    (53, 7, 0.5, 4),  # clients do not divide the examples
    (20, 20, 1.0, 10),
    (31, 1, 0.1, 2),
    (200, 9, 1e-3, 62),
    (97, 30, 100.0, 1),
]


@pytest.mark.parametrize(("examples", "clients", "alpha", "classes"), SHAPES)
def test_dirichlet_equals_the_literal_rule(examples, clients, alpha, classes):
    labels = _labels(examples, classes)
    parts = partition.dirichlet(labels, clients, alpha, seed=3)
    assert _lists(parts) == _lists(_dirichlet_oracle(labels, clients, alpha, 3))
    assert {len(part) for part in parts} == {examples // clients}


@pytest.mark.parametrize("num_groups", [1, 3, 5])
@pytest.mark.parametrize(("examples", "clients", "alpha", "classes"), SHAPES)
def test_correlated_equals_the_literal_rule(
    examples, clients, alpha, classes, num_groups
):
    labels = _labels(examples, classes)
    parts = partition.resource_correlated(labels, clients, alpha, 3, num_groups)
    oracle = _correlated_oracle(labels, clients, alpha, 3, num_groups)
    assert _lists(parts) == _lists(oracle)


def test_absent_class_is_drawn_for_and_stays_empty():
    labels = np.array([0, 2, 0, 2, 4, 4], np.uint8)
    parts = partition.dirichlet(labels, 3, 0.5, seed=1)
    assert _lists(parts) == _lists(_dirichlet_oracle(labels, 3, 0.5, 1))


def test_owners_take_the_next_examples_of_each_class():
    # Owner 0 gets one of class 0 and two of class 1, owner 1 gets one of each.
    order = partition._by_owner(np.array([0, 1, 0, 1, 1]), np.array([[1, 1], [2, 1]]))
    assert order.tolist() == [0, 1, 3, 2, 4]


def test_iid_holds_every_example_once():
    parts = partition.iid(_labels(11, 3), 4, seed=5)
    assert [len(part) for part in parts] == [3, 3, 3, 2]
    permutation = np.random.default_rng(5).permutation(11)
    np.testing.assert_array_equal(np.concatenate(parts), permutation)


def test_smaller_alpha_is_more_skewed():
    labels = _labels(10_000, 10)

    def largest_share(alpha):
        parts = partition.dirichlet(labels, 20, alpha, seed=0)
        return partition.class_counts(labels, parts, 10).max(1).mean() / 500

    assert largest_share(0.1) > 0.4 > largest_share(1.0) > largest_share(100.0) > 0.1


def test_same_seed_same_split_other_seed_another():
    labels = _labels(100, 5)
    for split in (partition.dirichlet, partition.resource_correlated):
        first = _lists(split(labels, 10, 0.5, 0))
        assert first == _lists(split(labels, 10, 0.5, 0))
        assert first != _lists(split(labels, 10, 0.5, 1))


@pytest.mark.parametrize(
    "users", [np.array([7, 3, 7, 5, 3]), np.array(["g", "c", "g", "e", "c"])]
)
def test_natural_orders_clients_by_user(users):
    assert _lists(partition.natural(users)) == [[1, 4], [3], [0, 2]]


def test_natural_needs_users():
    with pytest.raises(ValueError, match=r"one user id a training example.*has none"):
        partition.natural(None)


def test_many_clients_are_cut_without_a_pass_each():
    labels = np.zeros(100_000, np.int32)
    assert len(partition.iid(labels, 100_000, 0)) == 100_000
    assert len(partition.natural(np.arange(100_000)[::-1])) == 100_000


def test_index_table_holds_a_number_an_example():
    table = partition.index_table([np.array([4, 2, 9]), np.array([1])])
    assert table.indices.tolist() == [4, 2, 9, 1]
    assert table.starts.tolist() == [0, 3]
    assert table.counts.tolist() == [3, 1]
    assert {x.dtype for x in table} == {np.dtype(np.int32)}


def test_index_table_keeps_every_split():
    parts = partition.natural(_labels(300, 17))
    table = partition.index_table(parts)
    for part, start, count in zip(parts, table.starts, table.counts, strict=True):
        np.testing.assert_array_equal(table.indices[start : start + count], part)


def test_index_table_names_the_empty_clients():
    full, empty = np.array([1]), np.array([], np.int64)
    with pytest.raises(
        ValueError,
        match=r"2 of 4 have none \(clients 1, 3\); use fewer clients or a larger alpha",
    ):
        partition.index_table([full, empty, full, empty])
    with pytest.raises(
        ValueError, match=r"12 of 12 have none \(clients 0, .*9, \.\.\."
    ):
        partition.index_table([empty] * 12)
    with pytest.raises(ValueError, match="at least one client, got none"):
        partition.index_table([])


def test_class_counts_by_hand():
    labels, parts = np.array([0, 2, 2, 1]), [np.array([1, 2]), np.array([0, 3])]
    counts = partition.class_counts(labels, [*parts, np.array([], np.int64)], 4)
    assert counts.tolist() == [[0, 0, 2, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    with pytest.raises(ValueError, match="below num_classes = 2, got 2"):
        partition.class_counts(labels, parts, 2)


@pytest.mark.parametrize("num_clients", [0, -1, 6])
def test_number_of_clients_is_checked(num_clients):
    labels, expected = _labels(5, 2), rf"expected 1 to .* 5, clients, got {num_clients}"
    with pytest.raises(ValueError, match=expected):
        partition.iid(labels, num_clients, 0)
    for split in (partition.dirichlet, partition.resource_correlated):
        with pytest.raises(ValueError, match=expected):
            split(labels, num_clients, 0.1, 0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_is_checked(alpha):
    for split in (partition.dirichlet, partition.resource_correlated):
        with pytest.raises(ValueError, match=f"positive and finite, got {alpha}"):
            split(_labels(5, 2), 2, alpha, 0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0.0, 1.0]), r"class numbers from 0, got float64\[2\]"),
        (np.array([[0], [1]]), r"class numbers from 0, got int64\[2, 1\]"),
        (np.array([0, -2]), r"class numbers from 0, got -2"),
    ],
)
def test_labels_are_checked(labels, message):
    with pytest.raises(ValueError, match=message):
        partition.dirichlet(labels, 2, 0.1, 0)


def test_number_of_groups_is_checked():
    with pytest.raises(ValueError, match="num_groups must be 1 or more, got 0"):
        partition.resource_correlated(_labels(5, 2), 2, 0.1, 0, num_groups=0)


def test_examples_of_the_docstrings():
    assert doctest.testmod(partition).failed == 0
