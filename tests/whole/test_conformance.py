"""What the reference computes, replayed where its results lie beside the repository."""

import json

import jax
import numpy as np
import pytest

from fljax import models
from fljax.nn import network
from tests import conformance, conformance_widths, conftest, reference_names


def check(lines):
    """Asserts that there are lines, and that all of them pass."""
    lines = list(lines)
    short = [str(line) for line in lines if not line.passed]
    assert not short, "\n" + "\n".join(short)
    return len(lines)


CASES = sorted((conftest.SHARED / "conformance").glob("*.npz"))


def cases(kind):
    """Lists the recorded cases of a kind, or one that skips where there are none."""
    paths = [path for path in CASES if path.stem.startswith(f"{kind}_")]
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


@cases("block")
def test_block(path):
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


@cases("trace")
def test_entry_of_a_trace(path):
    # What follows it takes a compilation a block: see `test_trace`.
    data = np.load(path)
    if "entry/codes" in data.files:
        assert check(conformance.entry_lines(path.stem, data)) == 2


@pytest.mark.long
@cases("trace")
def test_trace(path):
    assert check(conformance.replay_trace(path.stem, np.load(path)))


@pytest.mark.long
@cases("net")
def test_network(path):
    assert check(conformance.replay_network(path.stem, np.load(path)))


@cases("width")
def test_slices_of_a_width(path):
    data = np.load(path)
    if "runs" in data.files:
        lines = conformance_widths.slice_lines(conformance_widths.case_of("", data))
        assert check(lines) == 1 + 2 * len(data["runs"])


class Altered(dict):
    """A file of results in which something is not as the reference has it."""

    @property
    def files(self):
        return list(self)


def test_other_channels_or_values_fall_short(shared):
    data = Altered(np.load(shared / "conformance/width_resnet20_s0.5.npz"))
    data["runs"] = np.array(["fedrolex_r1"])
    data["fedrolex_r1/in"] = data["fedrolex_r1/in"][::-1]
    data["fedrolex_r1/probe"] = data["fedrolex_r1/probe"] * (1 + 1e-3)
    lines = conformance_widths.slice_lines(conformance_widths.case_of("", data))
    assert [line.passed for line in lines] == [True, False, False]


@pytest.mark.long
@cases("width")
def test_width(path):
    replay = conformance_widths.replay_of(path.stem)
    if replay is not None:
        assert check(replay(path.stem, np.load(path)))


def test_seed_and_range_of_a_file(tmp_path):
    np.savez(tmp_path / "a.npz", seed=21)
    np.savez(tmp_path / "b.npz", x=0)
    seeds = [conformance._seed(np.load(tmp_path / f"{name}.npz")) for name in "ab"]
    assert seeds == [21, 7]
    drawn = [conformance._draw(seed, "net", "conv.weight", (2, 3)) for seed in seeds]
    assert not np.array_equal(*drawn)
    largest = np.random.default_rng(0).random(1000).astype(np.float32)
    scales = 2 * largest / np.float32(127)
    given = np.array([conformance._range(scale) for scale in scales])
    np.testing.assert_array_equal(given / np.float32(63.5), scales)


def test_noise_is_drawn_per_value():
    x = np.ones((4, 5), np.float32)
    moved = conformance._noisy(x, 1e-6, seed=0)
    assert len(np.unique(moved)) > 5
    np.testing.assert_allclose(moved, x, rtol=1e-5)
    np.testing.assert_array_equal(moved, conformance._noisy(x, 1e-6, seed=0))


def test_files_without_a_replay_are_named(tmp_path, capsys):
    np.savez(tmp_path / "other_resnet20_mean.npz", seed=7)
    np.savez(tmp_path / "trace_other_w0-1.npz", network="other")
    assert conformance.main([str(tmp_path)]) == 2
    assert capsys.readouterr().out.count("skipped: no replay for it") == 2


def test_a_difference_falls_short(shared):
    # The comparisons can fail: codes that are off by 3 in a hundredth of the places.
    codes = np.zeros((10, 10), np.uint8)
    off = codes.copy()
    off[0, 0] = 3
    assert conformance._codes_line("case", "codes", codes, codes).passed
    assert not conformance._codes_line("case", "codes", off, codes).passed
    path = shared / "reference/expected/maximal_windows.json"
    expected = json.loads(path.read_text())
    name, by_budget = next(iter(expected.items()))
    budget = next(iter(by_budget))
    wrong = {name: {budget: [*by_budget[budget], [0, 1]]}}
    (line,) = conformance.replay_windows("case", wrong, shared / "reference/tables")
    assert not line.passed


class Stored:
    """Stands for an npz file that holds a gradient of every given parameter."""

    def __init__(self, names):
        self.files = [f"w0-9/gradnorm/{name}" for name in names]


def norm(name):
    return [f"{name}.weight", f"{name}.bias"]


def resnet18(stem, inside, head):
    """Lists the reference's parameters of ResNet18 under one spelling."""
    names = [f"{stem[0]}.weight", *norm(stem[1]), *norm(head)]
    for i in range(8):
        at = inside(i)
        for j in (1, 2):
            names += [f"{at}.conv{j}.weight", *norm(f"{at}.bn{j}")]
        if i in (2, 4, 6):
            names += [f"{at}.shortcut.0.weight", *norm(f"{at}.shortcut.1")]
    return names


def densenet40(head_norm, head):
    names = ["conv1.weight", *norm(head_norm), *norm(head)]
    for group in (1, 2, 3):
        for i in range(6):
            at = f"dense{group}.{i}"
            names += [*norm(f"{at}.bn1"), f"{at}.conv1.weight", *norm(f"{at}.bn2")]
            names.append(f"{at}.conv2.weight")
        if group < 3:
            names += [*norm(f"trans{group}.bn1"), f"trans{group}.conv1.weight"]
    return names


SPELLINGS = {
    "resnet18": [
        resnet18(
            ("input_layer.conv1", "input_layer.bn1"), "layers.{}".format, "linear"
        ),
        resnet18(
            ("input_layer.0", "input_layer.1"),
            lambda i: f"layer{i // 2 + 1}.{i % 2}",
            "linear",
        ),
        resnet18(("conv1", "bn1"), lambda i: f"layers.{i // 2}.{i % 2}", "fc"),
    ],
    "densenet40": [densenet40("bn", "fc"), densenet40("bn1", "linear")],
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_names_of_networks(name):
    net = models.BY_NAME[name]()
    shapes = jax.eval_shape(lambda: network.init(net, jax.random.key(0)))
    for spelling in SPELLINGS[name]:
        names = reference_names.names_of_network(net, shapes, Stored(spelling))
        found = [n for block in names for n in block.parameters.values()]
        assert sorted(found) == sorted(spelling)
    with pytest.raises(ValueError, match="expected parameters such as"):
        reference_names.names_of_network(net, shapes, Stored(["nothing"]))
