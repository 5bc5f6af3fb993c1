"""Runs several experiments as one program: seeds, splits, learning rates.

Each is the run that it would be alone, with a folder of its own, which a kill does not
harm and which goes on alone or together. Clients of all train side by side.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fljax import experiment
from fljax.engine import client, width
from fljax.experiment import config as configs
from fljax.experiment import fits, running
from fljax.runs import meeting, pool, simulation

What = configs.Config | experiment.Experiment
_LOOK = 0.2  # seconds between two looks for a Ctrl-C


def run_together(
    runs: Sequence[What],
    workdirs: Sequence[str | os.PathLike[str]] | None = None,
    *,
    hooks: simulation.Hooks | None = None,
    label: str | None = None,
    tensorboard: bool = True,
    checkpoint_every: int = 1,
) -> list[running.Result]:
    """Runs experiments that differ in seed, split, fleet and learning rate at once.

    That fills an accelerator on which a few clients of a small network leave room. One
    client at a time, as on a CPU, results are to the bit those of each run alone, else
    to last bits.

    >>> seeds = [configs.Config(network="logistic", seed=s) for s in (1, 2, 3)]
    >>> [r.records for r in run_together(seeds)]  # doctest: +SKIP

    Args:
      runs: settings, or what `build` made of them.
      workdirs: their run folders; None: nothing is kept.
      hooks: what else wants to hear of the first run; of the others alerts alone, from
        several threads.
      label: as of `run`; so are `tensorboard` and `checkpoint_every`.

    Returns:
      The results, in the order of the runs.

    Raises:
      ValueError: the runs cannot share their programs, or as of `run`.
      DivergedError: training of one diverged; the others have ended.
    """
    if not runs:
        raise ValueError("runs: expected one at least, got none")
    if workdirs is not None and len(workdirs) != len(runs):
        raise ValueError(
            f"workdirs: expected one for each of {len(runs)} runs, got {len(workdirs)}"
        )
    folders: Sequence[Any] = [None] * len(runs) if workdirs is None else workdirs
    with configs.naming("together"):
        if jax.process_count() > 1:
            raise ValueError("expected a single process, got several")
        built = [running.built(*one) for one in zip(runs, folders, strict=True)]
        built = _wide(_sharing(built))
        for ready in built:
            fits.rounds(experiment.seen_by(ready), len(runs))
        meet = meeting.Meeting(pool.make([*map(experiment.algorithm, built)]))
    results: list[running.Result | BaseException | None] = [None] * len(runs)

    def go(index: int) -> None:
        fed = built[index].federation.having(pool=meet.trainer(index))
        ready = dataclasses.replace(built[index], federation=fed)
        heard = hooks
        if hooks is not None and index:  # records and messages would be everybody's
            heard = simulation.Hooks(alert=hooks.alert, interrupted=hooks.interrupted)
        told = running.Told(heard, label, not index, tensorboard, checkpoint_every)
        try:
            done = running.run_built(ready, folders[index], told)
            # What ran there can run again, alone.
            results[index] = dataclasses.replace(done, experiment=built[index])
        except BaseException as error:  # raised where the threads are waited for
            results[index] = error
        finally:
            meet.leave(index)

    threads = [threading.Thread(target=go, args=(i,)) for i in range(len(runs))]
    _wait(threads, meet)
    ended: list[running.Result] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        if result is None:  # it was interrupted before it began
            raise KeyboardInterrupt
        ended.append(result)
    return ended


def _sharing(built: list[experiment.Experiment]) -> list[experiment.Experiment]:
    """Has all train on the arrays of the first, where they are of the same values."""
    first = built[0].federation.population.data

    def same(ready: experiment.Experiment) -> bool:
        data = ready.federation.population.data
        return ready.facts["dataset_sha256"] == built[0].facts["dataset_sha256"] and (
            np.array_equal(data.mean, first.mean)
            and np.array_equal(data.std, first.std)
        )

    return [
        dataclasses.replace(ready, federation=ready.federation.having(data=first))
        if same(ready)
        else ready
        for ready in built
    ]


def _wide(built: list[experiment.Experiment]) -> list[experiment.Experiment]:
    """Has as many clients side by side as all runs have, where that is left open."""
    fed = built[0].federation
    if any(ready.settings.client_width for ready in built):
        return built
    clients = len(built) * fed.rules.clients_per_round
    real = client.fitting(fed.training, int(fed.population.shards.counts.max()))
    share = -(-clients // fed.layout.devices.size)
    beside = width.default_width(fed.model.counts, real, share)
    return [
        dataclasses.replace(
            ready,
            federation=ready.federation.having(width=beside),
            facts={**ready.facts, "client_width": beside},
        )
        for ready in built
    ]


def _wait(threads: list[threading.Thread], meet: meeting.Meeting) -> None:
    """Runs threads to their end; at a Ctrl-C they end where they meet next."""
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(_LOOK)
    except BaseException as error:
        meet.stop()
        for thread in threads:
            if thread.ident is not None:  # it was started
                thread.join()
        if not isinstance(error, KeyboardInterrupt):
            raise
