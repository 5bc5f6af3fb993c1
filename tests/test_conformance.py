"""What the reference computes, replayed where its results lie beside the repository."""

import json

import numpy as np
import pytest

from tests import conformance


def check(lines):
    """Asserts that there are lines, and that all of them pass."""
    lines = list(lines)
    short = [str(line) for line in lines if not line.passed]
    assert not short, "\n" + "\n".join(short)
    return len(lines)


BLOCKS = (
    "mobilenet_s1_identity",
    "mobilenet_s1_shortcut",
    "mobilenet_s2",
    "mobilenet_gn_s1",
    "resnet_basic_s1",
    "resnet_basic_s2",
    "densenet_bottleneck",
    "densenet_transition",
)


@pytest.mark.parametrize("block", BLOCKS)
def test_block(shared, block):
    path = shared / f"conformance/block_{block}.npz"
    assert check(conformance.replay_block(path.stem, np.load(path))) == 8


def test_splits(shared):
    path = shared / "reference/expected/splits_cifar10.npz"
    data = np.load(path)
    stored = sum(key.endswith("/indices") for key in data.files)
    assert check(conformance.replay_splits(path.stem, data)) == stored > 0


def test_windows(shared):
    folder = shared / "reference"
    expected = json.loads((folder / "expected/maximal_windows.json").read_text())
    stored = sum(len(by_budget) for by_budget in expected.values())
    lines = conformance.replay_windows("maximal", expected, folder / "tables")
    assert check(lines) == stored > 0


@pytest.mark.long
def test_network(shared):
    # The calibration loss and the window that trains everything: floats throughout.
    # The other windows cannot be held to the limits: with weights drawn at random
    # twenty blocks of codes are chaotic. An input that moves by one part in 10^6 moves
    # some value across the border of two codes, and every later block doubles the
    # difference, so that only the same bits in every operation as fbgemm's would do;
    # `conformance.replay_network` prints how far our own result moves.
    path = shared / "conformance/net_mobilenetv2.npz"
    lines = list(conformance.replay_network(path.stem, np.load(path)))
    held = [
        line
        for line in lines
        if line.what == "calibration: loss" or line.what.startswith("w0-19:")
    ]
    assert check(held) == 3


def test_a_difference_falls_short(shared):
    # The comparisons can fail: codes that are off by 3 in a hundredth of the places.
    codes = np.zeros((10, 10), np.uint8)
    off = codes.copy()
    off[0, 0] = 3
    assert conformance._codes_line("case", codes, codes).passed
    assert not conformance._codes_line("case", off, codes).passed
    path = shared / "reference/expected/maximal_windows.json"
    expected = json.loads(path.read_text())
    name, by_budget = next(iter(expected.items()))
    budget = next(iter(by_budget))
    wrong = {name: {budget: [*by_budget[budget], [0, 1]]}}
    (line,) = conformance.replay_windows("case", wrong, shared / "reference/tables")
    assert not line.passed
