"""Plans, roles and upload bytes, with numbers that can be checked by hand."""

import dataclasses

import pytest

from fljax import plans, types

BEFORE, TRAINED, AFTER = (
    types.Role.FROZEN_BEFORE,
    types.Role.TRAINED,
    types.Role.FROZEN_AFTER,
)


def block_of(upload_bytes):
    return types.BlockCounts(1, 0, 1, 1, 1, upload_bytes)


def test_plan_is_static_hashable_and_ordered():
    plan = plans.Plan(4, 11)
    assert plan == plans.Plan(4, 11, 8)
    assert len({plan, plans.Plan(4, 11), plans.Plan(4, 11, 4)}) == 2
    assert sorted([plans.Plan(5, 5), plans.Plan(4, 11), plans.Plan(4, 5)]) == [
        plans.Plan(4, 5),
        plans.Plan(4, 11),
        plans.Plan(5, 5),
    ]
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.first = 0


def test_plan_reads_as_its_window():
    assert str(plans.Plan(4, 11)) == "4-11"
    assert str(plans.Plan(0, 0, 4)) == "0-0@4"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((5, 4), "0 <= first <= last, got 5-4"),
        ((-1, 4), "got -1-4"),
        ((0, 4, 1), "2 to 8 bits wide, got bits=1"),
        ((0, 4, 9), "got bits=9"),
        ((0.0, 4), "Python ints"),
    ],
)
def test_plan_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        plans.Plan(*fields)


def test_roles_before_in_and_after_the_window():
    assert plans.roles(plans.Plan(1, 2), 4) == (BEFORE, TRAINED, TRAINED, AFTER)
    assert plans.roles(plans.full(2), 2) == (TRAINED, TRAINED)


def test_roles_refuse_a_window_outside_the_network():
    with pytest.raises(ValueError, match=r"window 4-25 .* 20 blocks, 0 to 19"):
        plans.roles(plans.Plan(4, 25), 20)


def test_full():
    assert plans.full(20) == plans.Plan(0, 19)
    assert plans.is_full(plans.Plan(0, 19), 20)
    assert not plans.is_full(plans.Plan(0, 18), 20)
    assert not plans.is_full(plans.Plan(1, 19), 20)
    with pytest.raises(ValueError, match="at least one block, got 0"):
        plans.full(0)


def test_upload_is_the_sum_over_the_window():
    counts = [block_of(1), block_of(20), block_of(300)]
    assert plans.upload_bytes(plans.Plan(0, 1), counts) == 21
    assert plans.upload_bytes(plans.Plan(2, 2), counts) == 300
    assert plans.upload_bytes(plans.full(3), counts) == 321
    with pytest.raises(ValueError, match="window 1-3 reaches outside"):
        plans.upload_bytes(plans.Plan(1, 3), counts)


def test_all_windows():
    every = plans.all_windows(3)
    assert " ".join(map(str, every)) == "0-0 0-1 0-2 1-1 1-2 2-2"
    assert plans.of_windows(plans.windows_of(every)) == every
    assert len(plans.all_windows(20)) == 210


def test_one_plan_covers_another():
    listed = plans.all_windows(4)
    covers = plans.covering(listed)
    for i, outer in enumerate(listed):
        for j, inner in enumerate(listed):
            trains = [range(p.first, p.last + 1) for p in (outer, inner)]
            assert outer.covers(inner) == (set(trains[1]) <= set(trains[0]))
            assert covers[i, j] == (i != j and outer.covers(inner))
    assert listed[0].covers(listed[0].at(4))
