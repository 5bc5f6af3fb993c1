"""What a seed decides on the host, whatever the processor, from commit to commit."""

import hashlib
import json

import numpy as np
import pytest

import fljax
from fljax import experiment

ROUNDS = 6
SMALL = {"num_clients": 24, "clients_per_round": 5, "eval_batch_size": 360}
BLOCKS = {**SMALL, "network": "small_convnet"}


def decided(settings):
    """Hashes the split, and who takes part in which plan, sends what and fails."""
    ready = fljax.build(settings)
    algorithm = experiment.algorithm(ready)
    shards = ready.federation.population.shards
    lines = [np.asarray(shards.counts).tolist(), np.asarray(shards.indices).tolist()]
    state = algorithm.init()
    for index in range(ROUNDS):
        assigned = algorithm.assign(state, index)
        state, books = algorithm.rehearse(state, assigned)
        plans = list(map(str, assigned.plans))
        sent = books.upload_bytes, books.download_bytes
        lines.append([assigned.ids.tolist(), plans, sent, assigned.outcome.events])
    return hashlib.sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()[:16]


CASES = {
    "cocofl": fljax.Config(**BLOCKS, partition="resource_correlated"),
    "buffer": fljax.Config(
        **BLOCKS,
        clock=fljax.Clock(buffer=2),
        failures=fljax.Failures(drop=0.2, delayed=0.2, nonfinite=0.1),
    ),
    "carry": fljax.Config(
        **BLOCKS,
        partition="dirichlet",
        clock=fljax.Clock(deadline=0.6, late="carry"),
        changes=fljax.Changes(drift=0.3),
    ),
    "fedavg_drop": fljax.Config(**SMALL, network="logistic", algorithm="fedavg_drop"),
}
# A change here is a change of what a seed means: say which and why in the commit.
DIGESTS = {
    "cocofl": "8224110758b2934b",
    "buffer": "644b0620e701be1c",
    "carry": "1fecf166423698d5",
    "fedavg_drop": "46397f863b50af40",
}


@pytest.mark.parametrize("name", CASES)
def test_a_seed_decides_what_it_did(name):
    assert decided(CASES[name]) == DIGESTS[name]
