"""Exported networks compute elsewhere what they compute here."""

import collections
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import linen

import fljax
from experiments import export as command
from fljax import plans
from fljax.exporting import files, nodes, onnx_file
from fljax.exporting import model as models
from fljax.kernels import quant
from fljax.models import densenet, logistic, mobilenetv2, plain_cnn, resnet
from fljax.nn import flax_block, layers, network, signals
from tests import conftest, small

# A block of each kind: every layer that has a form in ONNX, every way to pool.
KINDS = network.Network(
    "of_all_kinds",
    (
        mobilenetv2.Outer(4, 3),
        mobilenetv2.InvertedResidual(2, 6, 1),
        densenet.DenseBlock(4, 8),
        densenet.Transition(),
        mobilenetv2.InvertedResidual(2, 8, 1, group_norm=True),
        resnet.BasicBlock(8, 2),
        plain_cnn.ConvBlock(8, pool=True),
        plain_cnn.DenseBlock(12),
        logistic.Logistic(3),
    ),
    (9, 9, 2),
    3,
)


def made(net, examples=40, dtype=np.uint8):
    """Makes a model of a network that nobody trained, on images or numbers."""
    generator = np.random.default_rng(4)
    x = generator.integers(0, 256, (examples, *net.input_shape)).astype(dtype)
    blocks = jax.device_get(conftest.start(net))
    channels = net.input_shape[-1]
    mean, std = np.linspace(0.2, 0.5, channels), np.linspace(0.3, 0.4, channels)
    return models.Model(net, blocks, mean.astype("f"), std.astype("f"), x)


@pytest.fixture(scope="module")
def model():
    return made(KINDS)


@pytest.fixture(scope="module")
def outputs(model):
    return jax.jit(lambda x: models.outputs(model, x))(model.examples)


def run(content, x):
    """Runs a file of ONNX."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(["output"], {"input": x})


def operators(content):
    nodes = onnx.load_from_string(content).graph.node
    return collections.Counter(node.op_type for node in nodes)


def test_outputs_are_those_of_the_network_by_running_statistics(model, outputs):
    call = layers.Call(running=True)

    @jax.jit
    def ours(blocks, x):
        y, _ = network.run(KINDS, blocks, x, [call] * KINDS.num_blocks)
        return signals.to_float(y)

    x = model.normalized(jnp.asarray(model.examples))
    np.testing.assert_allclose(outputs, ours(model.blocks, x), 1e-5, 1e-5)


def test_float_onnx_gives_the_same_to_1e_5(model, outputs):
    content = onnx_file.floats(model)
    (theirs,) = run(content, model.examples)
    np.testing.assert_allclose(theirs, outputs, 1e-5, 1e-5)
    (one,) = run(content, model.examples[:1])  # any number of examples
    np.testing.assert_allclose(one, outputs[:1], 1e-5, 1e-5)
    found = operators(content)
    # Norms are folded into convolutions, but for those that stand alone.
    assert (found["Conv"], found["Mul"], found["InstanceNormalization"]) == (16, 2, 4)


def _observed(model, plan=None):
    """Writes a file of int8; gives what this library has in place of its tensors."""
    found = onnx_file.traced(model, onnx_file.roles(model.net, plan), observe=True)
    return found, onnx_file._file(model, found)


def _channels_first(codes):
    return codes.transpose(0, 3, 1, 2) if codes.ndim == 4 else codes


def differences(found, content):
    """Runs every operator on codes by itself, on our codes; gives theirs less ours."""
    proto = onnx.load_from_string(content)
    ours = {name: _channels_first(x) for name, x in found.codes.items()}
    nodes, given, names = [], {}, []
    for node in proto.graph.node:
        data = [name for name in node.input if name and name not in found.numbers]
        if node.output[0] not in ours or not all(name in ours for name in data):
            continue
        for place, name in enumerate(node.input):
            if name in data:
                node.input[place] = f"given_{name}"
                given[f"given_{name}"] = ours[name]
        nodes.append(node)
        names.append(node.output[0])
    ends = [
        [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT8, None)
            for name in some
        ]
        for some in (given, names)
    ]
    read = {name for node in nodes for name in node.input}
    numbers = [x for x in proto.graph.initializer if x.name in read]
    graph = onnx.helper.make_graph(nodes, "each", *ends, numbers)
    opsets = {"opset_imports": proto.opset_import, "ir_version": proto.ir_version}
    made = onnx.helper.make_model(graph, **opsets)
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    results = zip(names, session.run(names, given), strict=True)
    return {name: theirs.astype(int) - ours[name] for name, theirs in results}


def test_int8_codes_are_ours_within_one(model):
    found, content = _observed(model)
    off = differences(found, content)
    everything = np.abs(np.concatenate([d.ravel() for d in off.values()]))
    assert np.mean(everything <= 1) >= 0.995
    assert np.mean(everything == 0) >= 0.99
    assert len(off) > 20
    (theirs,) = run(content, model.examples)
    largest = np.abs(found.outputs).max()
    np.testing.assert_allclose(theirs, found.outputs, atol=0.1 * largest)
    counted = operators(content)
    assert counted["QLinearConv"] == 15
    assert counted["QLinearAdd"] == 3
    assert counted["QLinearConcat"] == counted["QGemm"] == 1
    assert counted["Conv"] == 1  # the first one, in floats


def test_a_window_stays_in_floats(model, outputs):
    plan = plans.Plan(2, 5)
    found, content = _observed(model, plan)
    (theirs,) = run(content, model.examples)
    largest = np.abs(found.outputs).max()
    np.testing.assert_allclose(theirs, found.outputs, atol=0.1 * largest)
    counted = operators(content)
    assert counted["QLinearConv"] == 5  # of block 1, and the one of block 6
    assert counted["QLinearConcat"] == 0


def test_all_in_the_window_is_the_float_network(model, outputs):
    full = onnx_file.roles(KINDS, plans.full(KINDS.num_blocks))
    np.testing.assert_allclose(
        onnx_file.traced(model, full).outputs, outputs, 1e-5, 1e-5
    )


def test_a_bias_that_weights_are_nothing_beside_fits_int32():
    # Units of the sums are .5 * [.01, 1e-14]: 3 is 600 of the one, 6e14 of the other.
    x = quant.QArray(jnp.zeros((1, 2), jnp.int8), jnp.float32(0.5))
    w = quant.QArray(jnp.array([[4, 127], [-7, 3]], jnp.int8), jnp.array([0.01, 1e-14]))
    weights, sums = nodes._with_bias(x, w, jnp.array([3.0, -3.0]))
    np.testing.assert_array_equal(weights.codes, [[4, 0], [-7, 0]])
    np.testing.assert_allclose(sums, [600, -(2**30)])
    np.testing.assert_allclose(sums * 0.5 * weights.scale, [3, -3], 1e-6)


def test_files_of_int8_are_a_quarter(tmp_path):
    big = made(plain_cnn.cnn((8, 8, 1)))
    sizes = [
        files.export(big, tmp_path / f"net{suffix}").stat().st_size
        for suffix in (".onnx", ".int8.onnx")
    ]
    assert 0.25 < sizes[1] / sizes[0] < 0.3


def test_a_program_runs_without_this_library(model, outputs, tmp_path):
    files.export(model, tmp_path / "net.jax")
    np.save(tmp_path / "x.npy", model.examples)
    program = (
        "import sys, jax, numpy as np\n"
        "content = bytearray(open('net.jax', 'rb').read())\n"
        "y = jax.export.deserialize(content).call(np.load('x.npy'))\n"
        "assert not any(m.startswith(('fljax', 'flax')) for m in sys.modules)\n"
        "np.save('y.npy', y)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "y.npy").tobytes() == np.asarray(outputs).tobytes()


class Alien(linen.Module):
    """A block that computes outside of layers."""

    @linen.compact
    def __call__(self, x, call):
        return jnp.sin(signals.to_float(x))


def _with(block):
    blocks = (plain_cnn.ConvBlock(4), block, logistic.Logistic(3))
    return made(network.Network("own", blocks, (8, 8, 1), 3), 4)


@pytest.mark.parametrize(
    ("model", "name", "words"),
    [
        (made(logistic.logistic((4, 4, 1))), "x.int8.onnx", "'logistic': .* got none"),
        (_with(Alien()), "x.int8.onnx", "network 'own': .*Wire"),
        (_with(flax_block.FlaxBlock(linen.Dense(4))), "x.int8.onnx", "a FlaxBlock"),
        (made(KINDS, 2), "x.pkl", r"ends in .safetensors, .orbax, .jax, .onnx, .int8"),
        (made(KINDS, 2), "no/x.onnx", "expected a folder that is there"),
        (None, "x.onnx", "expected what fljax.run or fljax.restore gave, got a None"),
    ],
)
def test_what_cannot_be_written_is_one_line(model, name, words, tmp_path):
    with pytest.raises(ValueError, match=words) as error:
        fljax.export(model, tmp_path / name)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_plans_that_do_not_fit_are_one_line(model, tmp_path):
    for name, plan, words in (
        ("x.onnx", plans.Plan(1, 2), "plan: expected with a file .int8.onnx alone"),
        ("x.int8.onnx", plans.Plan(1, 9), "blocks 0 to 8 of .*'of_all_kinds', got 1-9"),
        ("x.int8.onnx", plans.Plan(1, 2, 4), "codes of 8 bits .*, got 1-2@4"),
    ):
        with pytest.raises(ValueError, match=words):
            fljax.export(model, tmp_path / name, plan=plan)


def test_networks_of_tokens_are_not_written_in_int8(tmp_path):
    text = models.Model(small.TEXTNET, (), 0.0, 1.0, np.zeros((1, 5), np.int32))
    with pytest.raises(ValueError, match="tokens, which is written in floats alone"):
        fljax.export(text, tmp_path / "x.int8.onnx")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ran")
    settings = fljax.Config(
        algorithm="fedavg", network="cnn", num_clients=4, clients_per_round=4, rounds=2
    )
    return fljax.run(settings, folder / "run", tensorboard=False), folder


def test_a_run_is_exported_with_the_same_accuracy(ran):
    result, folder = ran
    data = fljax.data.load.load("digits")
    accuracy = {}
    for suffix in (".onnx", ".int8.onnx"):
        path = fljax.export(result, folder / f"net{suffix}")
        (y,) = run(path.read_bytes(), data.x_test)
        accuracy[suffix] = np.mean(y.argmax(1) == data.y_test)
    ours = result.final["test_accuracy"]  # cnn has no norms: as it was evaluated
    assert ours > 0.3
    assert accuracy[".onnx"] == pytest.approx(ours, abs=1e-6)
    assert accuracy[".int8.onnx"] == pytest.approx(ours, abs=0.01)


def test_a_run_folder_is_exported_by_a_command(ran, call):
    result, folder = ran
    out = folder / "net.safetensors"
    done = call(command, folder / "run", f"--out={out}", folders=True)
    assert done.code == 0, done.err
    assert done.out.startswith(f"wrote {out}, ")
    assert done.out.endswith("bytes, of 2 rounds\n")
    found = fljax.load(out, result.experiment.federation.model.net)
    conftest.assert_same_bits(found, result.state.server.blocks)


def test_the_command_says_what_is_wrong_in_one_line(ran, call):
    for arguments, words in (
        ((), "expected one run folder, such as runs/x, got 0"),
        ((ran[1] / "run",), "--out: expected a file that ends in .safetensors"),
        ((ran[1] / "run", "--out=x.onnx", "--window=3"), "--window: expected FIRST-"),
    ):
        done = call(command, *arguments, folders=True)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert words in done.err
