"""Bytes and seconds of what is sent, counted by hand."""

import math

import numpy as np
import pytest

import fljax
from fljax import plans, policies
from fljax.algorithms import scaffold
from fljax.engine import schedule
from fljax.engine import seams as kinds
from fljax.updates import codecs
from tests import small

D = 65 * 3  # parameters of the logistic regression; it has nothing else


@pytest.mark.parametrize(
    ("method", "up", "down"),
    [
        ({}, 4 * D, 4 * D),
        ({"algorithm": "scaffold"}, 8 * D, 8 * D),
        ({"algorithm": "fednova"}, 4 * D + 4, 4 * D),
        ({"algorithm": "feddyn"}, 4 * D, 4 * D),
        ({"algorithm": "fedadam"}, 4 * D, 4 * D),
        # 20 values, and 20 places of 8 bits, which are less than 195.
        ({"codec": "top_k:.1"}, 4 * 20 + 20, 4 * D),
        # 98 values, and a bit for each of 195 places.
        ({"codec": "top_k:.5"}, math.ceil(4 * 98 + 195 / 8), 4 * D),
        ({"codec": "drive"}, 4 + 256 // 8, 4 * D),
        # Control variates are sent as they are.
        ({"algorithm": "scaffold", "codec": "top_k:.1"}, 100 + 4 * D, 8 * D),
        ({"algorithm": "fednova", "codec": "drive"}, 36 + 4, 4 * D),
        ({"aggregate": "median"}, 4 * D, 4 * D),
        # Of three neighbours keys and shares; two words of weights.
        ({"secure_sum": "16"}, 4 * D + 64 + 3 * 124 + 8, 4 * D + 3 * 160),
        ({"secure_sum": "16:2"}, 4 * D + 64 + 2 * 124 + 8, 4 * D + 2 * 160),
        (
            {"algorithm": "scaffold", "secure_sum": "16"},
            8 * D + 64 + 3 * 124 + 8,
            8 * D + 3 * 160,
        ),
    ],
    ids=str,
)
def test_bytes_and_seconds_of_a_client(method, up, down):
    """A round lasts as long as the client of the most steps."""
    tier = fljax.Tier(name="a", share=1.0, time=1, upload=1, memory=1)
    clock = fljax.Clock(step_seconds=0.5, upload_rate=100.0, download_rate=1000.0)
    ready = small.build(tiers=(tier,), clock=clock, rounds=2, **method)
    made = fljax.experiment.algorithm(ready)
    state = made.init()
    for index in range(2):
        assignment = made.assign(state, index)
        state, books = made.rehearse(state, assignment)
        assert books.upload_bytes == 4 * up
        assert books.download_bytes == 4 * down
        steps = max(math.ceil(small.SIZES[i] / 4) for i in assignment.ids)
        expected = down / 1000 + 0.5 * steps + up / 100
        assert books.seconds == pytest.approx(expected)


def test_selections_are_promised_what_rounds_take():
    tier = fljax.Tier(name="a", share=1.0, time=1, upload=1, memory=1)
    clock = fljax.Clock(step_seconds=0.5, upload_rate=100.0, download_rate=1000.0)
    seams = kinds.Seams(codec=codecs.read("drive"), server=scaffold.Control(9))
    fed = small.build(tiers=(tier,), clock=clock).federation
    everyone = np.arange(len(small.SIZES))
    planned = schedule.make(fed, policies.full(1), everyone, False, seams)
    steps = np.ceil(np.array(small.SIZES) / 4)
    expected = 8 * D / 1000 + 0.5 * steps + 36 / 100
    np.testing.assert_allclose(planned.clients.seconds, expected)


def test_records_say_the_same():
    ready = small.build(algorithm="scaffold", codec="top_k:.1", rounds=2)
    result = fljax.run(ready)
    for record in result.records:
        assert record["upload_bytes"] == 4 * (100 + 4 * D)
        assert record["download_bytes"] == 4 * 8 * D
    made = fljax.experiment.algorithm(ready)
    assert made.keeps == 2 * D  # the control variate, the error memory


def test_windows_send_the_codes_of_their_parameters():
    ready = small.build(small.CONVNET, algorithm="cocofl", codec="top_k:.1")
    made = fljax.experiment.algorithm(ready)
    # Kernels, scales and biases of the norms; the classifier has a bias.
    params = (3 * 3 * 1 * 4 + 2 * 4, 3 * 3 * 4 * 8 + 2 * 8, 8 * 3 + 3)
    counts = ready.federation.model.counts
    assert tuple(count.params for count in counts) == params
    beside = [count.upload_bytes - 4 * count.params for count in counts]
    windows = [plans.Plan(*window) for window in ((0, 1), (1, 1), (1, 2), (2, 2))]
    assignment = schedule.by_hand(0, np.arange(4), windows)
    expected = 0
    for plan in windows:
        here = slice(plan.first, plan.last + 1)
        size = sum(params[here])
        k = math.ceil(size / 10)
        expected += math.ceil(4 * k + k * math.ceil(math.log2(size)) / 8)
        expected += sum(beside[here])
    _, books = made.rehearse(made.init(), assignment)
    assert books.upload_bytes == expected
