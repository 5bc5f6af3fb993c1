"""Networks with layers that jax2onnx writes, where it is installed."""

import sys

import jax
import numpy as np
import onnxruntime
import pytest

import fljax
from fljax.exporting import model as models
from fljax.nn import network
from tests import small


def _model(net, x):
    blocks = jax.device_get(network.init(net, jax.random.key(0)))
    return models.Model(net, blocks, np.float32(0), np.float32(1), x)


TOKENS = _model(
    small.TEXTNET,
    np.random.default_rng(1).integers(0, small.WORDS, (6, small.LENGTH)),
)


@pytest.mark.filterwarnings("default")
def test_float_onnx_gives_the_same_to_1e_5(tmp_path):
    pytest.importorskip("jax2onnx")
    path = fljax.export(TOKENS, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(
        path.read_bytes(), providers=["CPUExecutionProvider"]
    )
    x = TOKENS.examples.astype(TOKENS.dtype)
    (theirs,) = session.run(["output"], {"input": x})
    np.testing.assert_allclose(theirs, models.outputs(TOKENS, x), 1e-5, 1e-5)


def test_without_jax2onnx_it_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ValueError, match=r"as ONNX: .*pip install 'fljax\[export\]'"):
        fljax.export(TOKENS, tmp_path / "net.onnx")
