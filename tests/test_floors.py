"""Floors: a file of fljax/ imports from what lies below it, and modules only."""

import ast
import fnmatch
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Patterns of modules below fljax, lowest first. A module may import what matches an
# earlier pattern, on its own floor too.
FLOORS = (
    ("types", "bounds", "version"),
    (
        "backends",
        "memory",
        "reading",
        "trees",
        "winograd",
        "unsigned",
        "convs",
        "norms",
        "quant",
        "signals",
        "mesh",
        "host_random",
        "programs",
        "private",
        "augment",
        "data.progress",
        "data.checks",
        "data.images",
        "data.npz",
        "data.prepared",
        "data.text",
        "data.leaf",
        "data.folder",
        "data.cache",
        "data.jsonl",
        "data.resplit",
        "data.*",
        "data",
        "durable",
        "surroundings",
        "writers",
        "checkpoints",
        "alerts",
    ),
    (
        "branches",
        "operations",
        "layers",
        "lone_norms",
        "joins",
        "attention",
        "flax_block",
        "models.network",
        "models.logistic",
        "models.mobilenetv2",
        "models.*",
        "models",
        "plans",
        "costs",
        "catalogue",
        "typical",
        "generic_costs",
        "cost_model",
        "devices",
        "fleet",
        "fleet_sources",
        "failures",
        "clock",
        "arrivals",
    ),
    (
        "server",
        "norm_bound",
        "policy_base",
        "balanced_policy",
        "learning_policies",
        "policies",
        "program",
        "single",
        "mixed",
        "client",
        "width",
        "evaluate",
        "cohort",
        "sums",
        "group",
        "federation",
        "initial",
        "schedule",
        "rounds",
    ),
    ("algorithms.base", "algorithms.averaging", "algorithms.*", "algorithms"),
    ("guard", "simulation"),
)
ORDER = tuple(pattern for floor in FLOORS for pattern in floor)
NOWHERE = {"experiments", "absl", "tqdm", "tests"}
NOT_AT_MODULE_LEVEL = {
    "PIL",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "tokenizers",
}


def rank(module):
    """Gives the place of a module below fljax, e.g. "models.network"."""
    for place, pattern in enumerate(ORDER):
        if fnmatch.fnmatchcase(module, pattern):
            return place
    return None


def is_module(name):
    """Tells whether a dotted name is a module or a package of the repository."""
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports(tree):
    """Yields (node, dotted name, whether it is `from x import y`) of every import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, False
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node, f"{'.' * node.level}{node.module or ''}.{alias.name}", True


def at_module_level(tree):
    """Gives the imports that run when the module is imported."""
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    return {id(node) for node in ast.walk(tree) if id(node) not in inside}


def complaints(module, source):
    """Lists what is wrong with the imports of a module below fljax."""
    found = []
    tree = ast.parse(source)
    outside = at_module_level(tree)
    own = rank(module)
    if own is None:
        found.append(f"{module} has no floor: give it one in {__name__}")
    for node, name, is_from in imports(tree):
        top = name.split(".")[0]
        where = f"{module}:{node.lineno} imports {name}"
        if top == "":
            found.append(f"{where}: relative")
        elif name.endswith(".*"):
            found.append(f"{where}: star")
        elif top in NOWHERE:
            found.append(f"{where}: not for the library")
        elif top in NOT_AT_MODULE_LEVEL and id(node) in outside:
            found.append(f"{where}: at module level")
        elif top == "fljax":
            below = name.removeprefix("fljax").lstrip(".")
            other = rank(below) if below else None
            if not is_module(name):
                found.append(f"{where}: not a module")
            elif not is_from or not below:
                found.append(f"{where}: expected `from fljax... import module`")
            elif own is not None and (other is None or other >= own):
                found.append(f"{where}: not below it")
    return found


def sources():
    for path in sorted((ROOT / "fljax").rglob("*.py")):
        parts = path.relative_to(ROOT / "fljax").with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts:  # fljax/__init__.py: see below
            yield ".".join(parts), path.read_text(encoding="utf-8")


def test_every_file_imports_from_below():
    found = [c for module, source in sources() for c in complaints(module, source)]
    assert not found, "\n".join(found)


def test_the_package_itself_imports_nothing():
    source = (ROOT / "fljax/__init__.py").read_text(encoding="utf-8")
    assert not list(imports(ast.parse(source)))


def test_the_files_are_found():
    modules = {module for module, _ in sources()}
    assert {"types", "quant", "models.network", "models", "simulation"} <= modules
    assert len(modules) > 25


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("trees", "from fljax import quant", "not below it"),
        ("quant", "from fljax import layers", "not below it"),
        ("quant", "def f():\n    from fljax import layers", "not below it"),
        ("client", "from fljax import cohort", "not below it"),
        ("models.network", "from fljax.models import logistic", "not below it"),
        ("data.load", "from fljax.data import partition", "not below it"),
        ("policies", "from fljax.algorithms import averaging", "not below it"),
        ("quant", "from fljax.trees import add", "not a module"),
        ("quant", "from fljax import nothing", "not a module"),
        ("quant", "import fljax.trees", "expected `from fljax"),
        ("quant", "import fljax", "expected `from fljax"),
        ("quant", "from fljax.trees import *", "star"),
        ("quant", "from . import trees", "relative"),
        ("quant", "from .trees import add", "relative"),
        ("writers", "import tensorboardX", "at module level"),
        ("writers", "if True:\n    import tensorboardX", "at module level"),
        ("simulation", "import tqdm.auto", "not for the library"),
        ("simulation", "def f():\n    from absl import flags", "not for the library"),
        ("simulation", "from experiments import config", "not for the library"),
        ("novelty", "import jax", "has no floor"),
    ],
)
def test_a_breach_is_found(module, source, complaint):
    (found,) = complaints(module, source)
    assert complaint in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("quant", "from fljax import convs, types\nimport jax"),
        ("cohort", "from fljax import client, server"),
        ("cohort", "from fljax.models import network"),
        ("writers", "def f():\n    import tensorboardX"),
        ("models.small_convnet", "from fljax.models import mobilenetv2"),
        ("algorithms", "from fljax.algorithms import cocofl"),
    ],
)
def test_what_is_allowed_is_not_complained_of(module, source):
    assert complaints(module, source) == []


def test_nothing_heavy_is_loaded_with_the_library():
    # In a process of its own. absl is left out: optax itself loads it.
    heavy = sorted((NOT_AT_MODULE_LEVEL | NOWHERE) - {"absl"})
    program = (
        "import sys\n"
        "from fljax import simulation, algorithms, models, writers\n"
        "from fljax.data import load, partition\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert output.returncode == 0, output.stderr
    assert output.stdout.strip() == "[]"
