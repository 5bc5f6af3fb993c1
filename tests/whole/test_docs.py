"""The examples of the documentation run; Flax modules as blocks, in every role."""

import json
import pathlib
import re
import sys
import types as python_types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import fljax
from fljax import plans, types
from fljax.engine import client
from fljax.engine.program import single
from fljax.kernels import specs
from fljax.nn import flax_block, layers, network
from tests import conftest

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
TUTORIALS = sorted(
    path.stem for path in (DOCS / "tutorials").glob("*.md") if path.stem != "index"
)


def examples_of(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.long
def test_the_notebook_of_the_readme_runs():
    text = (DOCS.parent / "README.md").read_text()
    (example,) = examples_of(text)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert len(names["result"].records) == 20


@pytest.mark.long
def test_the_examples_of_your_own_run(capsys):
    text = (DOCS / "your_own.md").read_text()
    assert "experiments" not in text
    examples = examples_of(text)
    assert len(examples) == 6
    assert len(examples[0].strip().splitlines()) <= 15
    assert all(len(e.strip().splitlines()) <= 30 for e in examples)
    names: dict = {"__name__": "your_own"}
    for example in examples:
        exec(compile(example, "your_own.md", "exec"), names)
    shown = [float(line) for line in capsys.readouterr().out.splitlines()]
    assert len(shown) == 6
    assert all(0 <= accuracy <= 1 for accuracy in shown)
    assert min(shown[:2]) > 0.6  # the classes can be told by a linear layer


def tutorial(name, where, monkeypatch, capsys):
    """Runs a page as a script in a folder; gives its names and what it printed."""
    examples = examples_of((DOCS / "tutorials" / f"{name}.md").read_text())
    names: dict = {"__name__": name}
    monkeypatch.chdir(where)
    # Dataclasses look for the module of what they decorate.
    monkeypatch.setitem(sys.modules, name, python_types.ModuleType(name))
    for example in examples:
        exec(compile(example, f"{name}.md", "exec"), names)
    return names, capsys.readouterr().out.splitlines()


@pytest.mark.long
def test_the_tutorial_of_algorithms_runs_and_its_folder_names_it(
    tmp_path, monkeypatch, capsys
):
    names, (accuracy,) = tutorial("algorithm", tmp_path, monkeypatch, capsys)
    assert float(accuracy) > 0.3
    stored = json.loads((tmp_path / "runs/mine/config.json").read_text())["config"]
    assert stored["algorithm"] == "algorithm.mine (given in Python)"
    parts = {key: value for key, value in stored.items() if key.startswith("parts.")}
    assert parts == {
        "parts.codec": "TopK(share=0.1)",
        "parts.aggregate": "TrimmedMean(share=0.2)",
        "parts.local": "Proximal(mu=0.1)",
    }
    kept = fljax.restore("runs/mine", algorithm=names["mine"])
    assert kept.records == names["result"].records


# What each page prints, and what of it must hold.
PRINTED = {
    "fedprox": lambda a, rows: float(a) > 0.6 and rows.startswith("Rows(width=650"),
    # 10 clients with 650 values of 4 bits, and 4 bytes
    "codec": lambda sent: int(sent) == 10 * (650 * 4 // 8 + 4),
    "median": lambda mean, middle: float(middle) > max(0.6, float(mean)),
    "selection": lambda times: times == str(np.full(20, 3)),
    "server_optimizer": lambda adam, own: min(float(adam), float(own)) > 0.4,
    "loss": lambda accuracy, loss: float(accuracy) > 0.6 and 0 < float(loss) < 0.8,
}


@pytest.mark.long
@pytest.mark.parametrize("name", PRINTED)
def test_a_tutorial_runs(name, tmp_path, monkeypatch, capsys):
    _, printed = tutorial(name, tmp_path, monkeypatch, capsys)
    assert PRINTED[name](*printed), printed


def test_all_tutorials_are_short_run_and_linked():
    assert sorted([*PRINTED, "algorithm"]) == TUTORIALS
    for name in TUTORIALS:
        examples = examples_of((DOCS / "tutorials" / f"{name}.md").read_text())
        assert "\nimport fljax\n" in f"\n{examples[0]}"
        assert all(len(e.strip().splitlines()) <= 25 for e in examples)
    text = (DOCS / "tutorials" / "algorithm.md").read_text()
    assert all(f"]({name}.md)" in text for name in PRINTED)


def test_links_of_the_documentation_lead_somewhere():
    house = [DOCS.parent / f"{name}.md" for name in ("README", "CONTRIBUTING")]
    pages = [*house, *DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if link.startswith("http"):
                continue
            target, _, heading = link.partition("#")
            path = (page.parent / target) if target else page
            assert path.exists(), (page, link)
            if heading:
                assert heading in headings(path), (page, link)


def prose(page):
    """Gives the text of a page; of a notebook that of its cells of prose."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        return text
    cells = json.loads(text)["cells"]
    told = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    return "\n".join(told)


def headings(path):
    """Gives a page's headings as links name them."""
    lines = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", line).strip().lower() for line in lines)
    return {line.replace(" ", "-") for line in plain}


def _net(first):
    blocks = (
        flax_block.FlaxBlock(first),
        flax_block.FlaxBlock(nn.Dense(5)),
        flax_block.FlaxBlock(nn.Dense(3)),
    )
    return network.Network("flax", blocks, (4,), 3)


def test_a_flax_block_is_the_module_in_every_role():
    net = _net(nn.Dense(6))
    state = network.init(net, jax.random.key(0))
    state = client.calibrate(net, state, specs.DEFAULT, jax.random.key(1))
    x = jax.random.normal(jax.random.key(2), (7, 4))
    expected = x
    for block in state:
        weights = block["params"]["inner"]
        expected = expected @ weights["kernel"] + weights["bias"]
    for plan in (plans.Plan(0, 2), plans.Plan(1, 1)):
        roles = plans.roles(plan, 3)
        frozen = network.freeze(net, state, roles, specs.DEFAULT)
        run = [s if f is None else f for s, f in zip(state, frozen, strict=True)]
        calls = [layers.Call(role) for role in roles]
        y, _ = network.run(net, run, x, calls)
        value = y if roles[-1] is types.Role.TRAINED else y.value
        conftest.assert_close(value, expected, 1e-5)


class _Dropout(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=not self.has_rng("dropout"))(x)


def test_a_flax_block_drops_nothing_before_the_window():
    net = _net(_Dropout())
    state = network.init(net, jax.random.key(0))
    x = jax.random.normal(jax.random.key(2), (7, 4))
    for role, same in ((types.Role.FROZEN_BEFORE, True), (types.Role.TRAINED, False)):
        roles = (role,) + (types.Role.TRAINED,) * 2
        frozen = network.freeze(net, state, roles, specs.DEFAULT)
        run = [s if f is None else f for s, f in zip(state, frozen, strict=True)][:1]
        one, two = (
            network.run(net, run, x, [layers.Call(role, key=jax.random.key(k))])[0]
            for k in (3, 4)
        )
        values = [y if role is types.Role.TRAINED else y.value for y in (one, two)]
        assert bool(jnp.array_equal(*values)) is same


def test_a_flax_block_counts_what_the_module_computes():
    first = network.counts(_net(nn.Dense(6)))[0]
    # 4 x 6 multiplications; XLA counts the additions of the bias as well.
    assert 4 * 6 <= first.macs <= 4 * 6 + 6
    assert (first.kept, first.params, first.outputs) == (4 + 6, 4 * 6 + 6, 6)
    assert first.upload_bytes == 4 * first.params


def test_a_flax_block_refuses_running_statistics():
    net = _net(nn.BatchNorm(use_running_average=False))
    with pytest.raises(ValueError, match=r"params alone, got \['batch_stats'\]"):
        network.init(net, jax.random.key(0))


def test_gradients_pass_a_frozen_flax_block():
    net = _net(nn.Dense(6))
    state = network.init(net, jax.random.key(0))
    data = client.Data(
        jax.random.normal(jax.random.key(1), (8, 4)),
        jnp.arange(8) % 3,
        jnp.zeros(1),
        jnp.ones(1),
    )
    plan = plans.Plan(0, 0)
    training = client.Training(batch_size=4)
    frozen = network.freeze(net, state, plans.roles(plan, 3), training.spec)
    static = client.Static(net, single.Single(plan), training)
    start = client.Start(state, frozen, data, jnp.float32(0.1))
    own = client.Client(jnp.arange(8), jnp.int32(8), jax.random.key(2))
    result = client.train(static, start, own)
    assert result.delta[1] is None
    assert float(jnp.abs(result.delta[0]["params"]["inner"]["kernel"]).max()) > 1e-4
