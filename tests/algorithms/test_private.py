"""Private rounds and runs: what is released, what is spent, when a run stops."""

import dataclasses

import jax
import numpy as np
import pytest

import fljax
from fljax import trees
from fljax.algorithms import private
from fljax.engine import schedule
from fljax.updates import privacy
from fljax.updates.privacy import accounting
from tests import conftest, small

NOISY = fljax.Privacy(clip=0.35, noise=0.5, delta=1e-3)
IDS = np.array([2, 0, 5])


def build(net=None, **changes):
    return small.build(net, **({"clients_per_round": 3, "privacy": NOISY} | changes))


def whole(state):
    """Strings all that the server has of the network together."""
    return np.asarray(trees.ravel(state.server.blocks))


def one_round(ready, ids=IDS, plans=None):
    """Runs a round of these clients; gives the network before and after it."""
    made = fljax.experiment.algorithm(ready)
    state = made.init()
    full = fljax.plans.full(ready.federation.model.net.num_blocks)
    assigned = schedule.by_hand(0, ids, plans or [full] * len(ids))
    new, _ = made.round(state, assigned)
    return whole(state), whole(new), new


def test_a_round_is_clipped_updates_and_noise_over_a_fixed_number():
    """The network is what the formula says, of updates that come one by one."""
    old, new, _ = one_round(build())
    deltas = np.stack(
        [
            np.subtract(
                *one_round(build(privacy=fljax.Privacy()), IDS[i : i + 1])[1::-1]
            )
            for i in range(3)
        ]
    )
    norms = np.linalg.norm(deltas, axis=1, keepdims=True)
    assert norms.min() < 0.35 < norms.max(), norms  # some are clipped
    short = deltas * np.minimum(1, 0.35 / norms)
    draw = privacy.Draw(jax.random.key(1), np.int32(0), np.float32(0.35))
    zeros = fljax.updates.server.Totals(np.zeros(len(old)), np.zeros(1), np.zeros(()))
    noise = privacy.released(privacy.Mechanism(0.35, 0.5, 3.0), draw, zeros)[0].deltas
    np.testing.assert_allclose(new, old + (short.sum(0) + noise) / 3, atol=1e-6)


def test_fewer_clients_count_less_and_the_noise_stays():
    """The divisor is that of the cohort, whoever came; so is the noise."""
    old, nobody, _ = one_round(build(), IDS[:0])
    _, one, _ = one_round(build(), IDS[:1])
    _, two, _ = one_round(build(), IDS[1:])
    _, all_three, _ = one_round(build())
    np.testing.assert_allclose(
        (one - nobody) + (two - nobody), all_three - nobody, atol=1e-6
    )
    assert np.all(nobody != old)
    assert np.linalg.norm(one - nobody) <= 0.35 / 3 * 1.001


def test_what_nobody_trained_gets_the_noise_all_the_same():
    windows = {"algorithm": "cocofl", "programs": "windows"}
    ready = build(small.CONVNET, norm_statistics="running", **windows)
    plans = [fljax.Plan(2, 2)] * 3
    made = fljax.experiment.algorithm(ready)
    assigned = schedule.by_hand(0, IDS, plans)
    before = made.init()
    after, _ = made.round(before, assigned)
    for old, new in zip(
        *map(jax.tree.leaves, (before.server.blocks, after.server.blocks)), strict=True
    ):
        assert np.any(old != new)
    for block in after.server.blocks:
        if "var" in block["norms"]:
            assert np.all(block["norms"]["var"] > 0)
        assert all(np.all(leaf > 0) for leaf in jax.tree.leaves(block["ranges"]))


def test_results_are_free_of_width_and_order():
    one = [*small.rounds(build(client_width=1), 3)][-1][2]
    two = [*small.rounds(build(client_width=3), 3)][-1][2]
    conftest.assert_close(one.server, two.server)
    _, there, _ = one_round(build())
    _, back, _ = one_round(build(), IDS[::-1])
    np.testing.assert_allclose(there, back, atol=1e-6)


def test_programs_are_made_once_whatever_the_clip_norm():
    from fljax.engine import group
    from fljax.engine.rounds import ending

    adaptive = dataclasses.replace(NOISY, quantile=0.5, count_noise=1.0)
    run = small.rounds(build(privacy=adaptive), 4)
    next(run)
    before = group.num_programs(), ending.server_step._cache_size()
    clips = [float(new.privacy.clip) for _, _, new, _ in run]
    assert len(set(clips)) == 3
    assert (group.num_programs(), ending.server_step._cache_size()) == before


def test_records_say_what_is_spent():
    result = fljax.run(dataclasses.replace(build(), settings=settings(rounds=3)))
    cohort = accounting.Fixed(len(small.SIZES), 3)
    assert [record["epsilon"] for record in result.records] == [
        accounting.epsilon(cohort, 0.5, 1e-3, times) for times in (1, 2, 3)
    ]


def settings(**changes):
    return dataclasses.replace(build().settings, **changes)


def test_the_noise_that_is_found_is_for_the_rounds_of_the_run():
    asked = fljax.Privacy(clip=1.0, epsilon=20.0, delta=1e-3)
    ready = build(privacy=asked, rounds=4, selection="poisson")
    made = fljax.experiment.algorithm(ready)
    mechanism = made.parts["privacy"]
    assert mechanism.ledger.cohort == accounting.Poisson(9, 3, 9)
    assert 19.9 < mechanism.ledger.epsilon(mechanism.noise, 4) <= 20
    assert any("epsilon 20 at delta 0.001 after 4 rounds" in x for x in made.notes)


def test_a_run_stops_before_the_budget_is_exceeded(capsys):
    cohort = accounting.Fixed(9, 3)
    budget = accounting.epsilon(cohort, 4.0, 1e-3, 3) * 1.001
    asked = fljax.Privacy(clip=1.0, noise=4.0, epsilon=budget, delta=1e-3)
    result = fljax.run(build(privacy=asked, rounds=6))
    assert len(result.records) == 3
    assert result.records[-1]["epsilon"] <= budget
    said = capsys.readouterr().err
    assert "stopped after 3 of 6 rounds: another would exceed --privacy.epsilon" in said


def test_one_round_that_spends_too_much_is_refused():
    asked = fljax.Privacy(clip=1.0, noise=0.5, epsilon=0.1)
    with pytest.raises(ValueError, match=r"^--privacy.epsilon: expected at least") as e:
        fljax.experiment.algorithm(build(privacy=asked))
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize("selection", ["uniform", "poisson"])
def test_resume_keeps_ledger_and_clip_norm(tmp_path, selection):
    asked = fljax.Privacy(
        clip=0.05, noise=1.0, delta=1e-3, quantile=0.5, count_noise=1.0
    )
    whole = build(privacy=asked, rounds=5, selection=selection)
    short = dataclasses.replace(
        whole, settings=dataclasses.replace(whole.settings, rounds=2)
    )
    straight = fljax.run(whole, tmp_path / "straight", tensorboard=False)
    fljax.run(short, tmp_path / "stopped", tensorboard=False)
    resumed = fljax.run(whole, tmp_path / "stopped", tensorboard=False)
    for one, two in zip(
        *map(jax.tree.leaves, (straight.state, resumed.state)), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    timeless = [
        [{k: v for k, v in r.items() if k != "wall_seconds"} for r in result.records]
        for result in (straight, resumed)
    ]
    assert timeless[0] == timeless[1]
    assert timeless[0][4]["epsilon"] > timeless[0][3]["epsilon"]
    assert int(resumed.state.privacy.rounds) == 5


def test_where_the_clock_says_who_takes_part_nothing_is_amplified():
    waiting = {"clock": fljax.Clock(deadline=1.2), "rounds": 6}
    asked = dataclasses.replace(NOISY, noise=2.0, participations=2)
    ready = build(privacy=asked, **waiting)
    *_, (_, _, end, report) = small.rounds(ready, 8)
    assert end.privacy.parts.max() == 2  # and nobody is drawn a third time
    known = accounting.Known()
    assert report.said["epsilon"] == known.epsilon(2.0, 1e-3, 2)
    assert private._cohort(ready.federation, 9) == known
    # A budget is a number of rounds of each client then.
    budget = known.epsilon(2.0, 1e-3, 1) * 1.01
    asked = dataclasses.replace(NOISY, noise=2.0, epsilon=budget)
    *_, (_, _, end, report) = small.rounds(build(privacy=asked, **waiting), 5)
    assert end.privacy.parts.max() == 1
    assert report.said["epsilon"] <= budget


def test_with_correlated_noise_a_client_waits():
    asked = fljax.Privacy(clip=0.35, epsilon=5.0, delta=1e-3, bands=3, rounds=7)
    ready = build(privacy=asked, rounds=7)
    made = fljax.experiment.algorithm(ready).parts["privacy"]
    known = accounting.Known()
    assert made.noise == accounting.noise_for(known, 5.0, 1e-3, 3)  # of 7 rounds
    took, spent = [], []
    for _, assigned, _, report in small.rounds(ready, 7):
        took.append(set(assigned.ids.tolist()))
        spent.append(report.said["epsilon"])
    assert all(len(ids) == 3 for ids in took)
    for i in range(5):
        assert len(took[i] | took[i + 1] | took[i + 2]) == 9
    expected = [known.epsilon(made.noise, 1e-3, k) for k in (1, 1, 1, 2, 2, 2, 3)]
    assert spent == expected
    with pytest.raises(ValueError, match=r"^--privacy.bands: expected at most 3, "):
        fljax.experiment.algorithm(
            build(privacy=dataclasses.replace(asked, bands=4), rounds=7)
        )


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({}, False),
        ({"selection": "poisson"}, False),
        ({"failures": fljax.Failures(drop=0.1)}, True),
        ({"clock": fljax.Clock(over_selection=1.5)}, True),
        ({"changes": fljax.Changes(diurnal=0.5)}, True),
    ],
    ids=str,
)
def test_what_hides_who_takes_part(changes, known):
    cohort = private._cohort(build(**changes).federation, 9)
    assert (cohort == accounting.Known()) == known


def test_poisson_cohorts_vary_within_their_room():
    from fljax.policies import selection

    rule = fljax.policies.Poisson()
    clients = selection.Clients(np.ones(1000, int), np.ones(1000))
    here, sizes = np.arange(1000), []
    for index in range(400):
        ids = selection.choose(rule, (), selection.Round(3, index, clients), here, 50)
        sizes.append(len(ids))
    assert rule.most(50, 1000) == 79 >= max(sizes)
    assert abs(np.mean(sizes) - 50) < 4 * np.sqrt(47.5 / 400)
    assert abs(np.var(sizes) - 47.5) < 4 * 47.5 * np.sqrt(2 / 400)
    tight = fljax.policies.Poisson(50)
    sizes = [
        len(selection.choose(tight, (), selection.Round(3, i, clients), here, 50))
        for i in range(20)
    ]
    assert max(sizes) == 50


def test_an_algorithm_of_ones_own_must_add_the_noise():
    def mine(fed):
        return fljax.fedavg(fed.having(privacy=None))

    ready = build()
    own = fljax.build(ready.settings, small.data(), algorithm=mine)
    with pytest.raises(
        ValueError, match=r"^--privacy.clip: expected an algorithm made"
    ):
        fljax.experiment.algorithm(own)
