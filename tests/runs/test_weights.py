"""Parameters as files, and runs that start from them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import fljax
from fljax import experiment, trees
from fljax.experiment import running
from fljax.models import mobilenetv2, small_convnet
from fljax.runs import weights, writers
from tests import conftest, small

NET = small.CONVNET
OTHER = NET._replace(
    blocks=(*NET.blocks[:-1], mobilenetv2.Classifier(7)), num_classes=7
)
WIDER = NET._replace(
    blocks=(NET.blocks[0], small_convnet.ConvBlock(9, 2), NET.blocks[2])
)
HEAD = "2/params/dense/kernel"


@pytest.fixture(scope="module")
def blocks():
    """A state whose every number is another."""
    start = conftest.start(NET)
    return jax.tree.map(lambda x: x + jnp.arange(x.size).reshape(x.shape) / 7, start)


@pytest.fixture(scope="module")
def file(blocks, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    weights.save(path, NET, blocks)
    return path


@pytest.mark.parametrize("suffix", weights.SUFFIXES)
def test_what_is_written_is_read_bit_for_bit(suffix, blocks, tmp_path):
    path = tmp_path / f"net{suffix}"
    for _ in range(2):  # the second replaces the first
        weights.save(path, NET, blocks)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    conftest.assert_same_bits(fljax.load(path, NET), blocks)


def test_tensors_and_metadata_are_as_others_read_them(file, blocks):
    with safetensors.safe_open(file, "numpy") as opened:
        facts = opened.metadata()
        kernel = opened.get_tensor("1/params/conv/kernel")
        assert set(opened.keys()) == set(trees.named(blocks))
    np.testing.assert_array_equal(kernel, blocks[1]["params"]["conv"]["kernel"])
    assert (facts["network"], facts["num_classes"]) == ("third_convnet", "3")
    assert json.loads(facts["input_shape"]) == [8, 8, 1]
    assert facts["fljax"] == fljax.__version__


def test_a_head_of_other_classes_stays_as_drawn(file, blocks):
    start = conftest.start(OTHER)
    found = fljax.load(file, OTHER, start=start)
    conftest.assert_same_bits(found[:-1], blocks[:-1])
    conftest.assert_same_bits(found[-1], start[-1])


def test_a_head_can_be_left_out(file, blocks):
    start = conftest.start(NET)
    found = fljax.load(file, NET, start=start, head=False)
    conftest.assert_same_bits(found[:-1], blocks[:-1])
    conftest.assert_same_bits(found[-1], start[-1])


def test_parameters_alone_are_enough(blocks, tmp_path):
    path = tmp_path / "net.safetensors"
    tensors = trees.named(tuple({"params": b["params"]} for b in blocks))
    halves = {name: np.asarray(x, np.float16) for name, x in tensors.items()}
    safetensors.numpy.save_file(halves, path)
    found = fljax.load(path, NET)
    for name, value in trees.named(found).items():
        assert value.dtype == jnp.float32
        if name in halves:
            np.testing.assert_array_equal(value, halves[name].astype(np.float32))


def test_what_does_not_fit_is_one_line(file, blocks, tmp_path):
    missing = tmp_path / "missing.safetensors"
    tensors = {n: np.asarray(x) for n, x in trees.named(blocks).items()}
    safetensors.numpy.save_file({n: tensors[n] for n in tensors if n != HEAD}, missing)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(file.read_bytes()[:90])
    endless = tmp_path / "endless.safetensors"
    tensors[HEAD] = np.full_like(tensors[HEAD], np.inf)
    safetensors.numpy.save_file(tensors, endless)
    for path, net, words in (
        (missing, NET, rf"expected for network 'third_convnet' {HEAD} \[8, 3\], got n"),
        (file, WIDER, r"expected .* 1/.* \[9\], got \[8\] \(\d more do not fit\)"),
        (broken, NET, "broken.safetensors: .*[Hh]eader"),
        (endless, NET, f"expected finite numbers, got others in {HEAD}"),
        (tmp_path / "no.safetensors", NET, "there is no file .*; check the path"),
        (tmp_path / "no.orbax", NET, "there is no folder"),
        (tmp_path / "net.pkl", NET, r"expected a file .safetensors or a folder .orbax"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            fljax.load(path, net)
        assert "\n" not in str(error.value)


def test_a_folder_of_others_is_not_replaced(blocks, tmp_path):
    (tmp_path / "net.orbax").mkdir()
    (tmp_path / "net.orbax" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="expected a new folder, or one of orbax"):
        weights.save(tmp_path / "net.orbax", NET, blocks)


def _start(**changes):
    ready = small.build(NET, **changes)
    return experiment.algorithm(ready).init().server.blocks


def test_a_run_starts_from_a_file(file, blocks):
    conftest.assert_same_bits(_start(init=str(file)), blocks)


def test_a_run_with_a_head_of_its_own_starts_from_the_rest(file, blocks):
    drawn, begun = _start(), _start(init=str(file), init_head=False)
    conftest.assert_same_bits(begun[:-1], blocks[:-1])
    params = [x[-1]["params"] for x in (begun, drawn)]
    conftest.assert_same_bits(*params)


def test_a_run_says_that_a_head_of_other_classes_is_drawn(blocks, tmp_path):
    path = tmp_path / "other.safetensors"
    weights.save(path, OTHER, conftest.start(OTHER))
    ready = small.build(NET, init=str(path))
    said = "--init: the head of 3 classes is drawn: the file's is of another number"
    assert said in ready.notes


def test_a_run_folder_knows_what_it_started_from(file, blocks, tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(file.read_bytes())
    ready = small.build(NET, init=str(path), rounds=1)
    fljax.run(ready, tmp_path / "run", tensorboard=False)
    stored = writers.described(tmp_path / "run").config
    assert stored["init_sha256"] == weights.digest(weights.read(path))
    changed = jax.tree.map(lambda x: x + 1, blocks)
    weights.save(path, NET, changed)
    other = small.build(NET, init=str(path), rounds=2)
    with pytest.raises(ValueError, match="init_sha256"):
        running.run(other, tmp_path / "run", tensorboard=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"init": "no.safetensors"}, "--init: no.safetensors: there is no file"),
        ({"init_head": False}, "--init_head: expected --init=FILE beside it, got none"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(changes, words):
    with pytest.raises(ValueError, match=words):
        small.build(NET, **changes)
