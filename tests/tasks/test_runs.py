"""Runs of each task: what is learned, recorded, kept, refused; a task of one's own."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fljax
from fljax import experiment, tasks
from fljax.engine import evaluate
from fljax.tasks import base
from tests.tasks import problems

NAMES = tuple(problems.BY_NAME)
FIELDS = {
    "classification": {"test_loss", "test_accuracy", "macro_f1", "class_accuracy"},
    "tokens": {"test_loss", "perplexity", "token_accuracy"},
    "regression": {"test_loss", "rmse", "mae", "r2"},
    "multilabel": {"test_loss", "macro_f1", "micro_f1", "subset_accuracy"},
}
_RUNS: dict = {}


def run(task):
    """Runs federated averaging for ten rounds, once a session."""
    if task not in _RUNS:
        _RUNS[task] = fljax.run(problems.ready(task, rounds=10))
    return _RUNS[task]


@pytest.mark.parametrize("task", NAMES)
def test_the_loss_falls(task):
    result = run(task)
    for key in ("train_loss", "test_loss"):
        first, last = (result.records[i][key] for i in (0, -1))
        assert last < first, key
    measure = result.measure
    assert FIELDS[task] | {f"tier_{measure.key}"} <= result.final.keys()
    assert f"test {measure.title} {result.final[measure.key]:.4f}" in repr(result)
    # Tiers by class mix, and classes, are of classification alone.
    by_class = {"tier_accuracy", "tier_spread", "worst_tier_accuracy", "class_accuracy"}
    assert bool(by_class & result.final.keys()) == (task == "classification")
    own = result.final[f"tier_{measure.key}"]
    assert own.keys() == {"new", "old"}
    assert result.final[f"worst_tier_{measure.key}"] == measure.worst(own.values())


@pytest.mark.parametrize("task", ["tokens", "regression", "multilabel"])
def test_frozen_blocks_train_it_too(task):
    result = fljax.run(problems.ready(task, algorithm="cocofl", rounds=2))
    assert all(np.isfinite(r["train_loss"]) for r in result.records)
    assert result.records[1]["test_loss"] < result.records[0]["test_loss"]
    assert any("0-" not in plan for r in result.records for plan in r["plans"])


@pytest.mark.parametrize("task", ["tokens", "regression"])
def test_clients_side_by_side_are_as_one_by_one(task):
    (record,) = fljax.run(problems.ready(task, rounds=1, client_width=2)).records
    alone = run(task).records[0]
    for key in ("train_loss", "test_loss", run(task).measure.key):
        assert record[key] == pytest.approx(alone[key], rel=1e-5), key


@pytest.mark.parametrize("task", ["tokens", "regression", "multilabel"])
def test_evaluation_does_not_depend_on_its_batches(task):
    ready, blocks = run(task).experiment, run(task).state.server.blocks
    data, net = problems.BY_NAME[task]()
    test = ready.federation.population.data._replace(x=data.x_test, y=data.y_test)
    static = evaluate.Static(net, tasks.named(task))
    for size in (7, problems.TEST):  # the last batch of 7 is padded
        batches = evaluate.batches(problems.TEST, size, seed=3)
        sums = evaluate.evaluate(blocks, test, batches, static=static)
        record = static.task.record(jax.device_get(sums.whole))
        assert record == pytest.approx(
            {key: run(task).final[key] for key in FIELDS[task]}, rel=1e-4
        )


def test_tables_and_pictures_show_what_the_task_goes_by(tmp_path):
    result = run("regression")
    compared = fljax.Comparison({"fedavg": {11: result}})
    title, row = compared.table(target=1e6).splitlines()
    assert title.split("  ")[0] == "algorithm"
    assert "rmse" in title
    assert "mix" not in title
    assert f"{result.final['rmse']:.4f}" in row
    assert row.split()[-2] == "1.0"  # any round is as good as that
    compared.plot(tmp_path / "a.png")
    figure = result.plot()
    assert [panel.get_ylabel() for panel in figure.axes] == [
        *("test rmse", "loss (thin: training)", "test rmse")
    ]
    assert len(figure.axes[0].lines) == 1


def test_what_goes_by_other_measures_is_not_compared():
    runs = {name: {11: run(name)} for name in ("regression", "multilabel")}
    with pytest.raises(ValueError, match="go by rmse and macro_f1; `records`"):
        fljax.Comparison(runs).table()


def test_a_run_folder_goes_on_with_its_task_alone(tmp_path):
    ready = problems.ready("multilabel", task="multilabel:0.4")
    fljax.run(ready, tmp_path)
    held = json.loads((tmp_path / "config.json").read_text())
    assert "multilabel:0.4" in json.dumps(held)
    data, net = problems.multilabel()
    kept = fljax.restore(tmp_path, data=data, net=net)
    assert kept.measure.key == "macro_f1"
    assert kept.final["macro_f1"] == fljax.read(tmp_path)["macro_f1"].iloc[-1]
    with pytest.raises(ValueError, match=r"task: .*multilabel:0\.4.*multilabel"):
        fljax.run(problems.ready("multilabel", rounds=3), tmp_path)


@dataclasses.dataclass(frozen=True)
class Pinball(fljax.Task):
    """A quantile of numbers."""

    quantile: float = 0.9

    def loss(self, outputs, labels, mask):
        """Averages the pinball loss."""
        short = labels - outputs
        losses = jnp.maximum(self.quantile * short, (self.quantile - 1) * short)
        return jnp.sum(losses.mean(-1) * mask) / jnp.maximum(jnp.sum(mask), 1)


def own(task, **fields):
    data, net = problems.regression()
    settings = problems.settings("classification", **fields)
    return fljax.build(settings, data._replace(task=task), net)


def test_a_task_of_ones_own(tmp_path):
    result = fljax.run(own(Pinball(), rounds=6), tmp_path)
    losses = [record["test_loss"] for record in result.records]
    assert losses[-1] < losses[0]
    assert result.measure.key == "test_loss"
    assert result.final["worst_tier_test_loss"] >= result.final["test_loss"] - 1e-6
    assert f"test loss {losses[-1]:.4f}" in repr(result)
    assert "Pinball(quantile=0.9)" in (tmp_path / "config.json").read_text()
    data, net = problems.regression()
    kept = fljax.restore(tmp_path, data=data._replace(task=Pinball()), net=net)
    assert kept.final == result.final
    with pytest.raises(ValueError, match=r"task: .*quantile=0\.9.*quantile=0\.5"):
        fljax.run(own(Pinball(0.5), rounds=7), tmp_path)


def test_a_task_that_is_defined_anew_is_another_program():
    def define():
        @dataclasses.dataclass(frozen=True)
        class Mine(Pinball):
            pass

        return Mine

    one, two = define(), define()
    assert one() == one(0.9) != one(0.8)
    assert one() != two()  # as where a cell of a notebook runs again


@dataclasses.dataclass(frozen=True)
class Each(Pinball):
    """A loss for each example."""

    def loss(self, outputs, labels, mask):
        """Forgets the mean."""
        return jnp.mean(outputs - labels, axis=1)


@dataclasses.dataclass(frozen=True)
class Broken(Pinball):
    """A loss of other shapes."""

    def loss(self, outputs, labels, mask):
        """Multiplies what cannot be."""
        return jnp.sum(outputs @ labels)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (
            Each(),
            r"a loss \[\] of outputs float32\[B, 2\] and .*, got float32\[B\]",
        ),
        (Broken(0.5), r"\(quantile=0.5\): expected it to take .*\[B, 2\], got \w+: "),
    ],
)
def test_a_loss_that_cannot_be_traced_is_one_line(task, words):
    with pytest.raises(ValueError, match=f"^task {type(task).__name__}.*{words}") as e:
        own(task)
    assert "\n" not in str(e.value)


def test_a_measure_that_no_record_has_is_one_line():
    class Wrong(Pinball):
        measure = tasks.Measure("pinball", "pinball")

    sums = evaluate.Scores(base.Means(np.ones(()), np.ones(())))
    with pytest.raises(
        ValueError, match=r"expected a record with 'pinball', .* test_l"
    ):
        evaluate.summary(sums, None, (), Wrong())


class Nameless(fljax.Task):
    """A task whose numbers nobody can compare."""

    __hash__ = None

    def loss(self, outputs, labels, mask):
        """Gives nothing."""
        return 0.0


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("regression", "expected task as an instance of a fljax.Task, got str"),
        (Pinball, "expected task as an instance of a fljax.Task, got Pinball"),
        (Nameless(), r"expected task as a dataclass\(frozen=True\)"),
    ],
)
def test_what_is_no_task_is_refused(task, words):
    with pytest.raises(ValueError, match=f"^data: {words}"):
        own(task)


@pytest.mark.parametrize("partition", ["dirichlet", "resource_correlated"])
def test_partitions_by_class_need_classes(partition):
    for make in (
        lambda: problems.ready("regression", partition=partition),
        lambda: own(Pinball(), partition=partition),
    ):
        with pytest.raises(ValueError, match=r"^--partition: expected iid or natural"):
            make()


def test_users_are_clients_of_any_task():
    data, net = problems.regression()
    users = np.arange(problems.TRAIN) % 5
    settings = problems.settings("regression", partition="natural")
    ready = fljax.build(settings, data._replace(users=users), net)
    assert len(ready.federation.population.shards.counts) == 5
    assert ready.evaluator.measure.key == "rmse"


def test_a_network_has_to_answer_at_every_position():
    data, net = problems.tokens()
    with pytest.raises(ValueError, match="--network: expected transformer or char"):
        fljax.build(
            problems.settings("tokens", network="logistic"),
            data._replace(vocabulary=None, x_train=data.x_train * 1.0,
                          x_test=data.x_test * 1.0),
        )  # fmt: skip
    last = net._replace(
        blocks=(*net.blocks[:-1], net.blocks[-1].clone(positions=False))
    )
    with pytest.raises(ValueError, match=r"logits \[B, 6, 7\], .* got \[B, 7\]"):
        fljax.build(problems.settings("tokens"), data, last)


def test_another_number_of_outputs_is_one_line():
    data, _ = problems.regression()
    with pytest.raises(ValueError, match=r"expected num_classes 2, .* got 3"):
        fljax.build(problems.settings("regression"), data, problems.dense(3))


def test_networks_by_name_have_the_outputs_that_the_task_needs():
    data, _ = problems.regression()
    ready = fljax.build(problems.settings("regression", network="logistic"), data)
    assert ready.federation.model.net.num_classes == 2
    assert experiment.resolved(ready)["task"] == "regression"


def test_a_better_measure_may_be_a_smaller_one():
    ready = problems.ready("regression", rollback=fljax.Rollback(drop=0.5))
    guard = experiment.rollback(ready)
    assert (guard.measure.key, guard.measure.more) == ("rmse", False)
