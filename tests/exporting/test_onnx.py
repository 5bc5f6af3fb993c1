"""Networks with layers that jax2onnx writes, where it is installed."""

import sys

import jax
import numpy as np
import onnxruntime
import pytest
from flax import linen

import fljax
from fljax.exporting import model as models
from fljax.models import logistic
from fljax.nn import flax_block, network
from tests import small


def _model(net, x):
    blocks = jax.device_get(network.init(net, jax.random.key(0)))
    return models.Model(net, blocks, np.float32(0), np.float32(1), x)


TOKENS = _model(
    small.TEXTNET,
    np.random.default_rng(1).integers(0, small.WORDS, (6, small.LENGTH)),
)
BLOCKS = (flax_block.FlaxBlock(linen.Conv(4, (3, 3))), logistic.Logistic(3))
FLAX = _model(
    network.Network("flax", BLOCKS, (6, 6, 2), 3),
    np.random.default_rng(1).normal(size=(6, 6, 6, 2)).astype(np.float32),
)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("model", [TOKENS, FLAX], ids=["transformer", "flax"])
def test_float_onnx_gives_the_same_to_1e_5(model, tmp_path):
    pytest.importorskip("jax2onnx")
    path = fljax.export(model, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(
        path.read_bytes(), providers=["CPUExecutionProvider"]
    )
    x = model.examples.astype(model.dtype)
    (theirs,) = session.run(["output"], {"input": x})
    np.testing.assert_allclose(theirs, models.outputs(model, x), 1e-5, 1e-5)


def test_without_jax2onnx_it_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ValueError, match=r"as ONNX: .*pip install 'fljax\[export\]'"):
        fljax.export(TOKENS, tmp_path / "net.onnx")
