"""The documentation site: pages from the code, notebooks, files for clusters."""

import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import types

import pytest
from absl import flags

import fljax
from experiments import main
from fljax import version
from fljax.experiment import config
from tests.whole import test_docs

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "tutorials").glob("*.ipynb"))

sys.path.append(str(DOCS / "_ext"))
from_code = importlib.import_module("from_code")


def read(path):
    return (DOCS / path).read_text(encoding="utf-8")


def test_the_page_of_flags_has_all_of_them():
    page = from_code.fill(read("flags.md"))
    found = set(re.findall(r"^\| `--([\w.]+)` \|", page, re.MULTILINE))
    assert set(config.fields()) <= found
    assert {"workdir", "hooks", "version", "dry_run", "seeds", "out"} <= found
    assert "from above 0, below 1" not in page  # a bound is said in one way
    assert "| `--clock.deadline` | `0` | 0 or a number from 1e-06 to 1e+06 |" in page


def test_the_pages_of_the_api_have_every_name_once():
    pages = [read(f"api/{name}.md") for name in from_code._CHAPTERS]
    text = "\n".join(from_code.fill(page) for page in pages)
    found = re.findall(r"^\.\. auto\w+:: (\S+)$", text, re.MULTILINE)
    renamed = {"fljax.devices.failures.Rates": "fljax.Failures"}
    names = [renamed.get(name, name) for name in found]
    wanted = [f"fljax.{name}" for name in fljax.__all__ if name[0] != "_"]
    assert sorted(names) == sorted(wanted)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            assert len(cell["source"]) <= 45
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert f"({path.name})" in read("tutorials/index.md")


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_pictures(path, tmp_path, monkeypatch):
    nbclient, nbformat = map(pytest.importorskip, ("nbclient", "nbformat"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=folder).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    assert len(pictures) >= 2
    assert not list(tmp_path.iterdir())  # nothing is left behind


@pytest.mark.parametrize("name", from_code.command_modules())
def test_every_command_says_its_version(name, capsys):
    importlib.import_module(name)
    flags.FLAGS.unparse_flags()
    with pytest.raises(SystemExit) as ended:
        main._parse([name, "--version"])
    flags.FLAGS.unparse_flags()
    flags.FLAGS["version"].value = False
    assert not ended.value.code
    assert capsys.readouterr().out.startswith(f"fljax {version.VERSION}, jax ")


def accepted(arguments):
    """Tells what training would make of the flags of a file for a cluster."""
    importlib.import_module("experiments.train")
    flags.FLAGS.unparse_flags()
    main._parse(["train", *arguments])
    values = {name: flags.FLAGS[name].value for name in ("coordinator", "seed")}
    values["workdir"] = flags.FLAGS["workdir"].value
    flags.FLAGS.unparse_flags()
    return values


@pytest.mark.parametrize(
    ("tasks", "number", "wanted"),
    [
        (8, None, {"coordinator": "auto", "seed": 11, "workdir": "runs/mine"}),
        (1, "3", {"coordinator": "", "seed": 3, "workdir": "runs/fljax/seed_3"}),
    ],
)
def test_the_file_for_slurm_starts_what_the_page_says(
    tasks, number, wanted, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text("")
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    told = {"SLURM_SUBMIT_DIR": tmp_path, "SLURM_JOB_NAME": "fljax"}
    told |= {"SLURM_NTASKS": tasks, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    told |= {} if number is None else {"SLURM_ARRAY_TASK_ID": number}
    given = ["--lr=.2", "--workdir=runs/mine"]
    done = subprocess.run(
        ["bash", DOCS / "howto/fljax.sbatch", *given],
        env={name: str(value) for name, value in told.items()},
        capture_output=True,
        text=True,
        check=True,
    )
    python, *arguments = done.stdout.splitlines()
    assert (python, arguments[:2]) == ("python", ["-m", "experiments.train"])
    assert accepted(arguments[2:]) == wanted


def test_the_file_for_kubernetes_starts_what_the_page_says(monkeypatch):
    yaml = pytest.importorskip("yaml")
    monkeypatch.chdir(ROOT)
    jobs, *others = yaml.safe_load_all(read("howto/jobset.yaml"))
    (workers,) = jobs["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    # JAX counts the processes of one job.
    assert (workers["replicas"], job["parallelism"]) == (1, job["completions"])
    pod = job["template"]["spec"]
    command = pod["containers"][0]["command"]
    assert command[:3] == ["python", "-m", "experiments.train"]
    found = accepted(command[3:])
    assert (found["coordinator"], found["workdir"]) == ("auto", "/shared/runs/x")
    account, role, binding = others
    assert account["metadata"]["name"] == pod["serviceAccountName"]
    assert binding["subjects"][0]["name"] == pod["serviceAccountName"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_the_commands_of_the_pages_are_accepted(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = read("howto/run.md").replace("\\\n", " ")
    lines = re.findall(r"^python -m experiments\.(\w+) (.*)$", text, re.MULTILINE)
    assert {name for name, _ in lines} == {"train", "compare"}
    for name, line in lines:
        importlib.import_module(f"experiments.{name}")
        flags.FLAGS.unparse_flags()
        main._parse([name, *shlex.split(line)])
        flags.FLAGS.unparse_flags()


def test_the_recipe_for_trackers_tracks(monkeypatch):
    logged = []
    tracker = types.ModuleType("trackio")
    tracker.init = lambda project: None
    tracker.log = logged.append
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    names: dict = {}
    for example in test_docs.examples_of(read("howto/tracking.md")):
        exec(compile(example, "tracking.md", "exec"), names)
    settings = fljax.Config(
        algorithm="fedavg", network="logistic", num_clients=12, rounds=2
    )
    result = fljax.run(settings, hooks=names["hooks"])
    assert [record["round"] for record in logged] == [0, 1]
    assert logged[-1]["test_accuracy"] == result.final["test_accuracy"]
    assert all(isinstance(value, int | float) for value in logged[-1].values())


@pytest.mark.long
def test_the_page_of_python_runs():
    names: dict = {}
    for example in test_docs.examples_of(read("howto/python.md")):
        exec(compile(example, "python.md", "exec"), names)
    assert len(names["result"].records) == 20


def test_the_version_is_the_same_everywhere():
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version.VERSION}\n" in cited
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {version.VERSION}\n" in changes
