"""SLT: how long its stages are, which channels they have, what moves in them."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import fljax
from fljax import devices, plans
from fljax.algorithms.widths import slt
from fljax.engine import group
from fljax.experiment import rehearsal
from fljax.exporting import model as models
from fljax.models import mobilenetv2, resnet
from fljax.nn import slicing
from tests import conftest, small


def tier(name, budget):
    return devices.Tier(name=name, share=1, time=budget, upload=budget, memory=budget)


ABLE, WEAK = tier("able", 1.0), tier("weak", 0.9)
LEVELS = "1/.5/.25"
SIX = f"slt:6:{LEVELS}"


def build(algorithm=SIX, tiers=(WEAK,), **changes):
    shares = [dataclasses.replace(one, share=1 / len(tiers)) for one in tiers]
    usual = {"algorithm": algorithm, "tiers": tuple(shares)}
    return small.build(small.CONVNET, **(usual | changes))


def algorithm(**changes):
    return fljax.experiment.algorithm(build(**changes))


@functools.cache
def six():
    """Runs all stages: rounds 0 to 2, round 3, rounds 4 and 5."""
    group.forget()  # other tests may have compiled some of them
    before = group.num_programs()
    rounds = list(small.rounds(build(), 6))
    return rounds, group.num_programs() - before


# --- stages


def test_stages_are_as_long_as_what_they_train_by_hand():
    # Of 3 x 3 kernels with a norm, and 3 classes, the whole blocks have 4 * 9 + 8 = 44,
    # 4 * 8 * 9 + 16 = 304 and 8 * 3 + 3 = 27 parameters. With one whole block and the
    # rest half, 44 + (4 * 4 * 9 + 8) + (4 * 3 + 3) = 211 are trained; with two, of
    # which the first is frozen, 304 + 27 = 331.
    fed = build().federation.having(rounding="floor")
    assert [count.params for count in fed.model.counts] == [44, 304, 27]
    stages = slt.stages_of(fed, 100, [0.5, 1.0])
    # Half of the rounds are the first stage's, 211 / 542 of the other 50 are 19.46.
    assert stages == ((0, 0, 0.5), (50, 1, 0.5), (69, 2, 1.0))
    assert str(stages[1]) == "50: 1 whole, rest x0.5"


def test_widths_are_the_largest_that_fit_the_weakest():
    fed = build().federation.having(rounding="floor")
    assert slt.widths_of(fed, (1.0, 0.5, 0.25)) == [0.5, 1.0]
    table = slt.model_of(fed, 1, 0.75).table
    most = max(table.time[0], table.upload[0], table.memory[0])
    assert most > 0.9  # .75 would not
    both = fed.having(fleet=build(tiers=(ABLE, WEAK)).federation.population.fleet)
    assert slt.widths_of(both, (1.0, 0.5, 0.25)) == [0.5, 1.0]
    able = fed.having(fleet=build(tiers=(ABLE,)).federation.population.fleet)
    assert slt.widths_of(able, (0.5,)) == [1.0]


# --- channels


def axes(places, block, layer):
    return [
        None if kept is None else kept.tolist()
        for kept in places[block]["params"][layer]["kernel"][-2:]
    ]


def test_whole_blocks_have_all_channels_and_the_next_takes_them_in():
    places = slicing.places(small.CONVNET, slicing.Cut(0.5, "floor", whole=1))
    half = [0, 1, 2, 3]
    assert axes(places, 0, "conv") == [None, None]
    assert axes(places, 1, "conv") == [None, half]
    assert axes(places, 2, "dense") == [half, None]
    everything = slicing.places(small.CONVNET, slicing.Cut(0.5, whole=2))
    assert all(kept is None for kept in jax.tree.leaves(
        everything, is_leaf=lambda x: x is None
    ))  # fmt: skip


def test_what_adds_its_whole_input_stays_whole():
    net = fljax.Network(
        "sums",
        (
            mobilenetv2.Outer(4, 3),
            resnet.BasicBlock(4, 1),
            resnet.BasicBlock(8, 2),
            mobilenetv2.Classifier(3),
        ),
        (8, 8, 1),
        3,
    )
    small_net = slicing.sliced(net, slicing.Cut(0.5, whole=1))
    assert [block.features for block in small_net.blocks[:3]] == [4, 4, 4]


# --- a run


def test_each_stage_has_its_plan_its_bytes_and_one_program():
    rounds, programs = six()
    used = [{str(plan) for plan in assigned.plans} for _, assigned, _, _ in rounds]
    half, whole = {"0-2x0.5"}, {"1-2"}
    assert used == [half, half, half, half, whole, whole]
    assert programs == 3
    # 4 clients; parameters as by hand above, at half width first 2 * 9 + 4 = 22,
    # 2 * 4 * 9 + 8 = 80 and 15. Beside them statistics and ranges are sent.
    sent = [report.books.upload_bytes for *_, report in rounds]
    model = build().federation.model._replace(rounding="floor")
    for begins, stage, number in ((0, (0, 0.5), 117), (3, (1, 0.5), 211),
                                  (4, (2, 1.0), 331)):  # fmt: skip
        net_counts = model._replace(whole=stage[0]).at(stage[1])[1]
        first = max(stage[0] - 1, 0)
        assert sum(count.params for count in net_counts[first:]) == number
        window = plans.Plan(first, 2)
        assert sent[begins] == 4 * plans.upload_bytes(window, net_counts)
        assert sent[begins] >= 4 * 4 * number


def test_frozen_and_absent_values_keep_their_bits():
    rounds, _ = six()

    def kernels(state):
        blocks = state.server.blocks
        names = ("conv", "conv", "dense")
        return [
            np.asarray(block["params"][name]["kernel"])
            for block, name in zip(blocks, names, strict=True)
        ]

    def moved(index):
        old, new = (kernels(rounds[index][at]) for at in (0, 2))
        return [a != b for a, b in zip(old, new, strict=True)]

    stem, middle, last = moved(0)  # 2, 4 channels
    assert stem[..., :2].any()
    assert not stem[..., 2:].any()
    assert middle[..., :2, :4].any()
    assert not middle[..., 2:, :].any()
    assert not middle[..., 4:].any()
    assert last[:4].any()
    assert not last[4:].any()
    stem, middle, last = moved(3)  # the stem is whole
    assert stem[..., 2:].any()
    assert middle[..., 2:, :4].any()
    assert not middle[..., 4:].any()
    assert not last[4:].any()
    stem, middle, last = moved(4)  # and frozen
    assert not stem.any()
    assert middle[..., 4:].any()
    assert last[4:].any()
    old, new = (rounds[4][at].server.blocks[0] for at in (0, 2))
    jax.tree.map(np.testing.assert_array_equal, old, new)


def test_the_network_of_the_stage_is_evaluated_and_exported():
    rounds, _ = six()
    ready = build()
    evaluator = ready.evaluator.of(fljax.experiment.algorithm(ready))

    def width(state):
        scores = jax.device_get(evaluator.scores(state))
        return evaluator.fields(scores).get("evaluated_width")

    first, middle, last = (rounds[index][2] for index in (0, 3, 4))
    assert [*map(width, (rounds[0][0], first, middle, last))] == [0.5, 0.5, 0.5, None]
    features = [
        [block.features for block in models.of(
            fljax.Result(ready, state, [])
        ).net.blocks[:2]]
        for state in (first, middle, last)
    ]  # fmt: skip
    assert features == [[2, 4], [4, 4], [4, 8]]


def test_who_is_able_trains_more_of_the_same_network():
    made = algorithm(tiers=(ABLE, WEAK), clients_per_round=9)
    assigned = made.assign(made.init(), 5)
    fleet = build(tiers=(ABLE, WEAK)).federation.population.fleet
    known = {
        (fleet.names[fleet.tier[number]], str(plan))
        for number, plan in zip(assigned.ids, assigned.plans, strict=True)
    }
    assert known == {("able", "0-2"), ("weak", "1-2")}


def test_a_rehearsal_goes_through_the_stages():
    rounds, _ = six()
    made = algorithm()
    seen = rehearsal.rehearse(made, made.federation, 6)
    assert {one.name for one in seen.programs} == {"0-2x0.5", "1-2"}
    sent = sum(report.books.upload_bytes for *_, report in rounds)
    assert seen.upload_bytes == sent
    np.testing.assert_allclose(seen.blocks, [4 / 6, 1, 1])


def test_at_level_1_it_is_federated_averaging():
    one, other = (
        list(small.rounds(build(name, (ABLE,)), 2))[-1][2]
        for name in ("slt:4:1", "fedavg")
    )
    conftest.assert_close(one.server, other.server)


def test_a_run_that_stopped_at_a_border_goes_on_bit_for_bit(tmp_path):
    whole = fljax.run(build(rounds=5))
    fljax.run(build(rounds=3), tmp_path)
    result = fljax.run(build(rounds=5), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, result.state, whole.state)
    for one, other in zip(result.records, whole.records, strict=True):
        assert one | {"wall_seconds": 0} == other | {"wall_seconds": 0}
    assert [r.get("evaluated_width") for r in result.records] == [0.5] * 4 + [None]
    with pytest.raises(ValueError, match=r"slt:7.* now"):
        fljax.run(build(f"slt:7:{LEVELS}", rounds=5), tmp_path)


@pytest.mark.long
def test_side_by_side_clients_are_as_one_by_one():
    ready = build(client_width=2, tiers=(ABLE, WEAK)), build(tiers=(ABLE, WEAK))
    one, other = (list(small.rounds(each, 4))[-1][2] for each in ready)
    small.assert_alike(one, other)


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"algorithm": "slt"}, "expected slt:ROUNDS:LEVELS:ROUNDING, got 'slt'"),
        ({"algorithm": "slt:0"}, "slt: rounds: expected a number above 0, got 0"),
        ({"algorithm": "slt:4:2"}, "levels: expected shares"),
        ({"algorithm": "slt:4:rounding=up"}, "rounding: expected ceil or floor"),
        ({"clock": fljax.Clock(buffer=2)}, "--clock.buffer: .* of another network"),
        ({"aggregate": "median"}, "--aggregate: expected mean beside networks of"),
        (
            {"tiers": (tier("weak", 0.3),)},
            "by operation counts of the stage of 2 whole blocks",
        ),
        (
            {"fleet": "phones", "tiers": fljax.Config().tiers},
            "slt: fleet: expected tiers, whose weakest",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        algorithm(**changes)


def test_a_network_of_one_block_is_refused():
    with pytest.raises(ValueError, match="'logistic': expected two blocks or more"):
        fljax.experiment.algorithm(small.build(algorithm="slt:4"))
