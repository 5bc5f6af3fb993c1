"""Builds an experiment: data, network, clients, federation, evaluation."""

from __future__ import annotations

import os

from fljax import tasks, types
from fljax.data import checks, partition
from fljax.experiment import (
    client_evaluation,
    environment,
    evaluating,
    facts,
    fleets,
)
from fljax.experiment import config as configs
from fljax.experiment.building import (
    built,
    examples,
    federations,
    networks,
    notes,
)
from fljax.nn import network
from fljax.runtime import programs


def build(
    config: configs.Config,
    data: types.Dataset | None = None,
    net: network.Network | None = None,
    algorithm: built.Make | None = None,
    *,
    workdir: str | os.PathLike[str] | None = None,
    cache: str = "",
) -> built.Experiment:
    """Loads data and makes everything that does not depend on the algorithm.

    Args:
      config: of the run.
      data: instead of loading `config.dataset`.
      net: instead of `config.network`.
      algorithm: (federation) -> algorithm, instead of `config.algorithm`.
      workdir: run folder whose vocabulary is to be used, if it has one.
      cache: folder that keeps decoded data; empty: none.

    Returns:
      The experiment.

    Raises:
      ValueError: one line that names the flag or file, what was expected and what
        came.
    """
    configs.check(config)
    environment.check()
    kept = programs.keep_at_home()
    given, task = built.Own(data, net, algorithm), examples.task_of(config, data)
    own = facts.own(config, data)
    if data is None:
        data = examples.load(config, task, workdir, cache)
    else:
        data = checks.made_by_hand(data, task.check)
    if net is None:
        net = networks.named(config, data, task)
    else:
        network.check(net, data, task.positions)
        own["network"] = f"{net.name} ({facts.OWN})"
    if data.task is not None:
        tasks.check_traced(task, net, data)
    start = networks.pretrained(config, net)
    parts = examples.split(config, data)
    shards = partition.index_table(parts)
    made = fleets.make(config, len(parts))
    over = federations.mesh_of(config.devices)
    train_data, test_data = examples.placed(config, data, over)
    fed = federations.make(config, net, (train_data, task), (shards, made), over)
    fed = fed.having(pretrained=start.found)
    shares = evaluating.shares_of(config, task, data, parts, len(made.known_as))
    each = client_evaluation.who(config, task, data, parts)
    evaluator = evaluating.evaluator(config, fed, test_data, (shares, each))
    return built.Experiment(
        settings=config,
        built_from=config,
        federation=fed,
        evaluator=evaluator,
        facts=facts.of(config, fed, data) | dict(start.facts) | own,
        notes=(
            *start.notes,
            *filter(None, [kept, fleets.note(made, config.seed)]),
            *checks.notes(data, task.classes),
            *notes.scales(config, data),
            *notes.few_tested(config, fed, len(data.y_test)),
            *client_evaluation.notes(each, len(parts)),
        ),
        tokenizer=data.tokenizer,
        own=given,
    )
