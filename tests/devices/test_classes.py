"""How a server sorts devices: against the tiers that they are of, and in runs."""

import json

import numpy as np
import pytest

from experiments import flags
from fljax import devices, experiment, types
from fljax.devices import classes, fleet, fleet_sources
from fljax.experiment import config, fleets, rehearsal, running
from fljax.experiment.building import examples
from fljax.runs import guard
from tests import small

AUTO = classes.Auto
# Factors of three or more apart, and changing every round.
SEPARATED = devices.parse_tiers(
    "slow:.2:.05-.06:.04-.05:.1,quick:.5:.8-1:.7-1:1,mid:.3:.2-.25:.15-.2:.3"
)


def measured(made, seed=1):
    return fleet.believed(made, seed, 0, np.arange(len(made.row)))


@pytest.mark.parametrize("size", [10, 300, 20_000])
def test_well_separated_tiers_are_found(size):
    made = fleet.of_tiers(size, SEPARATED)
    assert classes.number(measured(made), "kmeans") == 3
    labels = classes.sort(measured(made), AUTO(3))
    assert classes.agreement(labels, made.tier) == 1
    # The most able come first, whatever their numbers.
    assert labels[[0, size // 2, size - 1]].tolist() == [2, 0, 1]
    assert labels.dtype == np.int32
    # By the mean of the logs alone, in equal parts: the borders are elsewhere.
    thirds = classes.sort(measured(made), AUTO(3, "quantiles"))
    assert np.ptp(np.bincount(thirds)) <= 1
    assert 0 < classes.agreement(thirds, made.tier) < 1


def test_the_papers_tiers_are_found_although_their_uploads_are_drawn_anew():
    made = fleet.of_tiers(100)
    found = [
        classes.agreement(classes.sort(measured(made, seed), AUTO(3)), made.tier)
        for seed in range(20)
    ]
    assert found == [1.0] * 20


def test_a_partition_does_not_depend_on_the_order_of_devices():
    made = fleet_sources.lognormal(500, 3)
    one = measured(made)
    turn = np.random.default_rng(0).permutation(500)
    turned = types.Budgets(*(kind[turn] for kind in one))
    labels = classes.sort(one, AUTO(4))
    np.testing.assert_array_equal(classes.sort(turned, AUTO(4)), labels[turn])
    means = [np.log(np.stack(one))[:, labels == label].mean() for label in range(4)]
    assert means == sorted(means, reverse=True)


def test_devices_that_are_alike_are_one_class():
    alike = types.Budgets(*np.ones((3, 9)))
    assert classes.number(alike, "kmeans") == 1
    assert classes.sort(alike, AUTO(3)).tolist() == [0] * 9
    two = types.Budgets(*np.where(np.arange(9) < 4, 1.0, 0.5)[None].repeat(3, 0))
    assert classes.number(two, "kmeans") == 2
    assert classes.sort(two, AUTO(5)).tolist() == [0] * 4 + [1] * 5


def test_agreement_by_hand():
    # Pairs together: none in both of 2 each of 6, by chance 2/3; (0 - 2/3)/(2 - 2/3).
    crossed = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert classes.agreement(*crossed) == pytest.approx(-0.5)
    assert classes.agreement(np.zeros(4, int), np.zeros(4, int)) == 1
    drawn = np.random.default_rng(1).integers(3, size=(2, 5000))
    assert abs(classes.agreement(*drawn)) < 0.01


def test_a_flag_says_so():
    assert flags._tiers("auto") == AUTO(0, "kmeans")
    assert flags._tiers("auto:4") == AUTO(4)
    assert flags._tiers("auto:2:quantiles") == AUTO(2, "quantiles")
    for text, wanted in (
        ("auto:x", "number: expected a whole number"),
        ("auto:65", "auto: number: expected a whole number from 0 to 64, got 65"),
        ("auto:2:size", "auto: by: expected kmeans, quantiles, got 'size'"),
        ("auto:2:kmeans:1", "expected auto:NUMBER:BY"),
    ):
        with pytest.raises(ValueError, match=wanted):
            flags._tiers(text)


def test_fleets_of_any_kind_are_sorted(tmp_path):
    def made(**changes):
        return fleets.make(config.Config(tiers=AUTO(), **changes), 60)

    path = tmp_path / "tiers.json"
    tiers = [
        {"name": name, "share": share, "time": can, "upload": can, "memory": can}
        for name, share, can in (("a", 0.5, 1), ("b", 0.25, 0.1), ("c", 0.25, 0.01))
    ]
    path.write_text(json.dumps(tiers))
    listed = made(tiers_file=str(path))
    assert listed.classes == AUTO(3)
    assert listed.known_as == ("class_1", "class_2", "class_3")
    assert listed.names == ("a", "b", "c")
    assert fleets.note(listed, 1) == (
        "the server sorts devices into 3 classes of 30, 15, 15 by kmeans; their "
        "agreement with a, b, c is 1.00 (adjusted Rand index)"
    )
    assert 2 <= made(fleet="phones").classes.number <= 8
    assert fleets.note(made()._replace(classes=None), 1) is None
    with pytest.raises(
        ValueError, match=r"--tiers: expected at most 60 classes, .* 61"
    ):
        fleets.make(config.Config(tiers=AUTO(61)), 60)


DRIFTING = {
    "tiers": AUTO(2),
    "changes": fleet.Changes(drift=1.0, drift_rounds=2, refresh=3),
}


def test_devices_are_sorted_anew_when_they_are_looked_at():
    ready = small.build(**DRIFTING)
    devices_ = ready.federation.population.fleet
    seen, last = [], None
    for state, assignment, new, _ in small.rounds(ready, 7):
        assert (new.classes is state.classes) == (assignment.round % 3 > 0)
        if assignment.round % 3 == 0:
            last = fleet.sorted_at(devices_, 1, assignment.round)
        np.testing.assert_array_equal(new.classes, last)
        np.testing.assert_array_equal(assignment.classes, last)
        seen.append(tuple(new.classes))
    assert len(set(seen)) > 1


def test_records_are_of_the_classes_of_their_time():
    ready = small.build(partition="iid", num_clients=11, **DRIFTING)
    names = {f"class_{i}" for i in (1, 2)}
    labels = small.data().y_train
    shards = examples.split(ready.settings, small.data())
    client = np.empty(len(labels), int)
    for number, rows in enumerate(shards):
        client[rows] = number
    for _, _, state, _ in small.rounds(ready, 5):
        sums = ready.evaluator.scores(state)
        record = ready.evaluator.fields(sums)
        assert record["tier_accuracy"].keys() == names
        assert record["tier_test_accuracy"].keys() == names
        of_rows = state.classes[client]
        for label in (0, 1):
            mix = np.bincount(labels[of_rows == label], minlength=3)
            mine = np.dot(mix, record["class_accuracy"]) / mix.sum()
            assert record["tier_accuracy"][f"class_{label + 1}"] == pytest.approx(mine)
        # The test set is the training set, and dealt out as that is.
        total, trained = np.asarray(sums.tier_total), np.bincount(of_rows, minlength=2)
        assert total.sum() == len(labels)
        assert np.abs(total - trained).max() < 3


def test_a_run_that_stops_between_looks_goes_on_as_it_would_have(tmp_path):
    def run(folder, rounds):
        ready = small.build(rounds=rounds, **DRIFTING)
        return running.run(ready, folder, tensorboard=False)

    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "parts", 2)
    parts = run(tmp_path / "parts", 6)
    np.testing.assert_array_equal(parts.state.classes, whole.state.classes)
    for one, two in zip(parts.records, whole.records, strict=True):
        del one["wall_seconds"], two["wall_seconds"]
        assert one == two
    settings = running.read_settings(tmp_path / "whole")
    assert settings.tiers == AUTO(2)
    config_file = running.writers.described(tmp_path / "whole").config
    assert config_file["classes"] == "auto:2:kmeans"


def test_a_lognormal_fleet_is_read_back_from_a_folder(tmp_path):
    spread = fleet_sources.Lognormal(0.3)
    ready = small.build(rounds=1, fleet=spread)
    running.run(ready, tmp_path / "run", tensorboard=False)
    assert running.read_settings(tmp_path / "run").fleet == spread


def test_a_rollback_lowers_a_class():
    ready = small.build(**DRIFTING)
    *_, (_, assignment, state, report) = small.rounds(ready, 3)
    watch = guard.Guard(
        drop=0.1, lowers="tier", tiers=("class_1", "class_2"),
        tier_index=1 - state.classes,  # of another time
    )  # fmt: skip
    of_cohort = state.classes[assignment.ids]
    for label in np.unique(of_cohort):
        failed = np.zeros(len(np.asarray(report.failed)))
        failed[: len(of_cohort)] = of_cohort == label
        assert guard._worst_tier(watch, report._replace(failed=failed)) == label
    good = state._replace(classes=1 - state.classes)
    back = guard._back(good, state, state.caution)
    np.testing.assert_array_equal(back.classes, state.classes)


def test_a_rehearsal_counts_by_class():
    ready = small.build(**DRIFTING)
    made = experiment.algorithm(ready)
    seen = rehearsal.rehearse(made, ready.federation, 5)
    assert seen.tiers.keys() == {"class_1", "class_2"}
    assert set(seen.tiers.values()) <= {0.0, 1.0}
