"""The face: `import fljax` gives names, lazily; an experiment is a call."""

import ast
import dataclasses
import importlib
import json
import pathlib
import subprocess
import sys

import optax
import pytest

import fljax
from experiments import train
from fljax import experiment
from fljax.algorithms import fedavg
from fljax.experiment import progress
from fljax.runs import simulation, writers
from fljax.runtime import programs

SETTINGS = fljax.Config(
    algorithm="fedavg", network="logistic", num_clients=9, clients_per_round=3, rounds=2
)


def mine(fed):
    """Makes an algorithm of the user's own."""
    return fedavg.fedavg(fed)


@pytest.fixture(scope="module")
def ready():
    return fljax.build(SETTINGS)


@pytest.fixture(scope="module")
def result(ready):
    return fljax.run(ready)


def test_every_name_is_there_and_known_to_type_checkers():
    tree = ast.parse(pathlib.Path(fljax.__file__).read_text())
    (block,) = (n for n in tree.body if isinstance(n, ast.If))
    known = {
        alias.asname: (node.module, alias.name)
        for node in block.body
        for alias in node.names
    }
    modules = {name for name, (module, _) in known.items() if module == "fljax"}
    assert modules == set(fljax._PACKAGES)
    below = {p.stem for p in pathlib.Path(fljax.__file__).parent.iterdir()}
    assert modules == {n for n in below if not n.startswith("__")} - {"py"}
    assert known.keys() - modules == set(fljax._FACE)
    for name, (module, there) in known.items():
        found = getattr(fljax, name)
        if name in modules:
            assert found is importlib.import_module(f"fljax.{name}")
        else:
            assert found is getattr(importlib.import_module(module), there)
        assert name in dir(fljax)
    assert 25 <= len(fljax._FACE) <= 60
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fljax.nothing  # noqa: B018


def test_nothing_is_imported_before_it_is_asked_for():
    program = (
        "import sys, fljax; from fljax import *; "  # the star asks for all
        "print([m for m in ('matplotlib', 'tqdm') if m in sys.modules])"
    )
    lazy = "import sys, fljax; fljax.__version__; print('jax' in sys.modules)"
    for code, said in ((lazy, "False"), (program, "[]")):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert (done.stdout.strip(), done.returncode) == (said, 0), done.stderr


def test_a_result_says_what_ran_and_draws_it(result, tmp_path):
    assert repr(result).startswith("<fljax.Result: fedavg, 2 rounds, test accuracy 0.")
    assert result.final["round"] == 1
    assert result.experiment.settings == SETTINGS
    picture = result.plot(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    assert picture._repr_png_().startswith(b"\x89PNG")
    nothing = fljax.Result(result.experiment, result.state, [])
    assert repr(nothing) == "<fljax.Result: fedavg, 0 rounds>"
    with pytest.raises(ValueError, match="with an evaluated round"):
        nothing.final  # noqa: B018


def test_a_folder_is_restored_from_its_own_settings(ready, tmp_path):
    done = fljax.run(ready, tmp_path, tensorboard=False)
    again = fljax.restore(tmp_path)
    assert again.experiment.settings == SETTINGS
    assert again.records == writers.read_metrics(tmp_path) == done.records
    for given in (tmp_path / "no", tmp_path / "checkpoints"):
        with pytest.raises(ValueError, match="expected a run folder"):
            fljax.read(given)
    other = fljax.build(fljax.Config(**{**vars(SETTINGS), "lr": 0.2}))
    with pytest.raises(ValueError, match=r"holds another run \(lr: 0.1 in"):
        fljax.restore(tmp_path, other)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    stored["settings"].pop("lr")
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="read back, got others in lr; pass"):
        fljax.restore(tmp_path)
    assert fljax.restore(tmp_path, ready).records == done.records


def test_an_own_algorithm_is_named_in_the_folder(ready, result, tmp_path):
    data = {"data": None, "net": None}
    own = fljax.build(SETTINGS, algorithm=mine)
    done = fljax.run(own, tmp_path, tensorboard=False)
    assert repr(done).startswith("<fljax.Result: mine, 2 rounds")
    assert done.final["test_loss"] == result.final["test_loss"]
    stored = json.loads((tmp_path / "config.json").read_text())["config"]
    assert stored["algorithm"] == f"{__name__}.mine (given in Python)"
    with pytest.raises(ValueError, match="another configuration"):
        fljax.run(ready, tmp_path)
    with pytest.raises(ValueError, match=r"holds another run \(algorithm: '.*mine"):
        fljax.restore(tmp_path)
    assert fljax.restore(tmp_path, **data, algorithm=mine).records == done.records


def test_an_algorithm_without_a_name_is_refused_for_a_folder(tmp_path):
    def inner(fed):
        return fedavg.fedavg(fed)

    for nameless in (lambda fed: fedavg.fedavg(fed), inner):
        own = fljax.build(SETTINGS, algorithm=nameless)
        with pytest.raises(ValueError, match="a name of its own for a run folder"):
            fljax.run(own, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    inner.__qualname__ = "inner"
    assert experiment.resolved(fljax.build(SETTINGS, algorithm=inner))
    none = fljax.build(SETTINGS, algorithm=lambda fed: None)
    with pytest.raises(ValueError, match=r"returns a fljax.Algorithm, got .* NoneType"):
        fljax.run(none)
    with pytest.raises(ValueError, match=r"expected a fljax.Config or .* got a dict"):
        fljax.run({})


def optimizer(rate):
    """Makes a server optimizer of the user's own."""
    return optax.sgd(rate)


def test_a_piece_without_a_name_is_refused_for_a_folder(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Inner(fljax.ServerRule):
        rate: object = 1.0

        def step(self, state, params, got):
            return got.delta, state

    def made(rule):
        def inner(fed):
            plan = fljax.policies.full(fed.model.net.num_blocks)
            return fljax.averaging(fed, plan, constrained=False, server=rule)

        inner.__qualname__ = "inner"
        return fljax.build(SETTINGS, algorithm=inner)

    schedule = optax.constant_schedule(0.1)
    for nameless in (
        fljax.server_rule(lambda rate: optax.sgd(rate), 1.0),
        fljax.server_rule(optax.sgd, schedule),
        Inner(),
    ):
        with pytest.raises(ValueError, match="server: expected one that a run folder"):
            fljax.run(made(nameless), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    for rule, name in (
        (fljax.server_rule(optax.sgd, 0.1), "optax.sgd(0.1)"),
        (fljax.server_rule(optimizer, 0.1), "tests.optimizer(0.1)"),
    ):
        assert experiment.resolved(made(rule))["parts.server"] == name


def test_what_is_compared_is_built_once_a_seed(ready, result, monkeypatch):
    built, build = [], experiment.build

    def counted(*given, **more):
        built.append(given)
        return build(*given, **more)

    monkeypatch.setattr(experiment, "build", counted)
    what = {"one": ready, "mine": fljax.build(SETTINGS, algorithm=mine)}
    done = fljax.compare(what, seeds=(11, 12))
    assert len(built) == 1  # of seed 12
    assert repr(done) == "<fljax.Comparison: one, mine; seeds 11, 12>"
    one, two = done.results["one"], done.results["mine"]
    assert one[11].final["test_loss"] == result.final["test_loss"]
    assert one[12].experiment.federation is two[12].experiment.federation
    for seed in (11, 12):
        assert one[seed].final["test_loss"] == two[seed].final["test_loss"]
    header, *rows = done.table().splitlines()
    assert header.split()[:2] == ["algorithm", "accuracy"]
    assert [row.split()[0] for row in rows] == ["one", "mine"]
    assert done.plot()._repr_png_()
    with pytest.raises(ValueError, match="settings or experiments by name"):
        fljax.compare([SETTINGS])


@pytest.mark.parametrize("folder", [False, True])
def test_ctrl_c_in_a_session_keeps_what_is_finished(
    ready, tmp_path, monkeypatch, capsys, folder
):
    where = tmp_path / "run" if folder else None

    def stop(record):
        if record["round"] == 0:
            raise KeyboardInterrupt

    hooks = fljax.Hooks(record=stop)
    with pytest.raises(KeyboardInterrupt):  # of a script
        fljax.run(ready, tmp_path / "script", hooks=hooks)
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    done = fljax.run(ready, where, hooks=hooks, tensorboard=False)
    assert [record["round"] for record in done.records] == [0]
    assert "interrupted: 1 of 2 rounds are finished" in capsys.readouterr().err
    if folder:
        kept = fljax.restore(where)
        assert kept.records == done.records


def test_hooks_hear_together():
    heard = []
    one = simulation.Hooks(message=heard.append, interrupted=lambda done: True)
    both = simulation.together(one, simulation.Hooks(message=heard.append))
    both.message("a")
    assert heard == ["a", "a"]
    assert both.interrupted(3)
    assert not simulation.together(simulation.Hooks(), simulation.Hooks()).interrupted(
        3
    )


HEARD = []


def make_hooks():
    """Makes what --hooks names."""
    return fljax.Hooks(record=HEARD.append)


def test_hooks_are_given_to_a_command(call):
    flags = ("--algorithm=fedavg", "--network=logistic", "--num_clients=9",
             "--clients_per_round=3", "--rounds=2", "--data_cache=")  # fmt: skip
    assert not call(train, *flags, f"--hooks={__name__}:make_hooks").code
    assert [record["round"] for record in HEARD] == [0, 1]
    for wrong in ("no_such:x", f"{__name__}:HEARD", f"{__name__}:no", "x", ":"):
        done = call(train, *flags, f"--hooks={wrong}")
        assert done.code == 2
        assert done.err.splitlines()[-1].startswith("error: --hooks: expected MODULE:")


def test_programs_are_kept_at_home_unless_told_otherwise(kept, monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(programs, "keep", told.append)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert programs.keep_at_home() == ""  # conftest told it
    monkeypatch.setattr(programs, "_told", [])
    assert programs.keep_at_home() == ""  # `kept` told JAX
    assert not told
    with programs.anew():
        assert programs.keep_at_home() == ""
        assert told == [str(tmp_path / "home" / "fljax")]
        (tmp_path / "home" / "fljax").chmod(0o777)
        assert "others may write" in programs.keep_at_home()
        monkeypatch.setenv(programs.FOLDER, "")
        assert programs.keep_at_home() == ""
    assert told[1:] == [""]


def test_programs_that_others_may_write_are_not_run(kept, monkeypatch):
    told = []
    monkeypatch.setattr(programs, "keep", told.append)
    monkeypatch.setattr(programs, "_told", [])
    kept.chmod(0o777)
    assert f"others may write to {kept}" in programs.keep_at_home()
    assert told == [""]


def test_a_bar_in_a_notebook():
    class OutStream:  # of ipykernel: no terminal, and perhaps no number
        __module__ = "ipykernel.iostream"
        text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

        def isatty(self):
            return False

    stream = OutStream()
    with progress.Progress(2, label="a", stream=stream) as bar:
        bar.message("a line")
        bar.update({"round": 0, "test_loss": 1.0})
    assert "[a] a line\n" in stream.text
    assert "| 1/2 [" in stream.text
