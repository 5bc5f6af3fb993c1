"""Floors: a folder of fljax/ imports from the folders below it, and modules only.

And functions are small: few parameters, few lines.
"""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# The wings, from the ground up. Within one there are no circles: see below.
WINGS = (
    ("types", "trees", "bounds", "notation", "version"),
    ("runtime",),
    ("data", "kernels", "plans", "updates"),
    ("nn", "devices"),
    ("models", "policies", "tasks"),
    ("engine",),
    ("algorithms",),
    ("runs",),
    ("experiment",),
    ("exporting",),
)
FLOOR = {wing: floor for floor, wings in enumerate(WINGS) for wing in wings}
MOST_FILES = 20  # of a folder
MOST_PARAMETERS = 6  # of a function, self and cls aside
MOST_LINES = 80  # of a function, its docstring and those within it included
NOWHERE = {"experiments", "absl", "tests"}
NOT_AT_MODULE_LEVEL = {
    "PIL",
    "dash",
    "pandas",
    "plotly",
    "datasets",
    "dp_accounting",
    "jax_privacy",
    "optuna",
    "safetensors",
    "orbax",
    "onnx",
    "onnxruntime",
    "jax2onnx",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "tokenizers",
    "tqdm",
}


def wing(module):
    """Gives the folder, or the file on the ground, of a module such as "nn.layers"."""
    return module.split(".")[0]


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
    """Lists what is wrong with the imports of a module below fljax.

    A package (a name without a dot, of a folder) may take names from its own modules:
    they are its face.
    """
    found = []
    tree = ast.parse(source)
    outside = at_module_level(tree)
    floor = FLOOR.get(wing(module))
    if floor is None:
        found.append(f"{module} has no floor: give its folder one in {__name__}")
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
            face = wing(below) == module and "." not in module
            if not is_module(name) and not face:
                found.append(f"{where}: not a module")
            elif not is_from or not below:
                found.append(f"{where}: expected `from fljax... import module`")
            elif floor is not None and wing(below) != wing(module):
                other = FLOOR.get(wing(below))
                if other is None or other >= floor > 0:
                    found.append(f"{where}: not below it")
    return found


def sources():
    for path in sorted((ROOT / "fljax").rglob("*.py")):
        parts = path.relative_to(ROOT / "fljax").with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts:  # fljax/__init__.py: its own test
            yield ".".join(parts), path.read_text(encoding="utf-8")


def within(module, source):
    """Gives the modules of its own wing that a module imports when it is imported."""
    tree = ast.parse(source)
    outside = at_module_level(tree)
    names = (name for node, name, _ in imports(tree) if id(node) in outside)
    below = {name.removeprefix("fljax.") for name in names if "fljax." in name}
    return {name for name in below if wing(name) == wing(module) and name != module}


def large(module, source):
    """Lists the functions of a module that take or hold too much."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        given = node.args
        names = [x.arg for x in given.posonlyargs + given.args + given.kwonlyargs]
        names = [name for name in names if name not in ("self", "cls")]
        lines = node.end_lineno - node.lineno + 1
        if len(names) > MOST_PARAMETERS:
            found.append(f"{module}.{node.name} takes {len(names)} parameters")
        if lines > MOST_LINES:
            found.append(f"{module}.{node.name} is {lines} lines long")
    return found


def test_every_file_imports_from_below():
    found = [c for module, source in sources() for c in complaints(module, source)]
    assert not found, "\n".join(found)


def test_there_are_no_circles_within_a_wing():
    left = {m: within(m, source) for m, source in sources() if "." in m}
    while free := {m for m, needs in left.items() if not needs & left.keys()}:
        left = {m: needs for m, needs in left.items() if m not in free}
    assert not left


def test_folders_are_small_enough_to_look_through():
    for folder in (ROOT / "fljax").rglob("*"):
        if folder.is_dir():
            assert len(list(folder.glob("*.py"))) <= MOST_FILES, folder


def test_functions_take_few_parameters_and_are_short():
    found = [line for module, source in sources() for line in large(module, source)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def f(a, b, c, d, /, e, *, f, g): ...", "m.f takes 7 parameters"),
        ("class C:\n  def f(self, a, b, c, d, e, f, *g, **h): ...", None),
        ("def f():\n" + "  def g(): ...\n" * 80, "m.f is 81 lines long"),
        ("def f():\n" + "  pass\n" * 79, None),
    ],
)
def test_a_large_function_is_found(source, complaint):
    assert large("m", source) == ([complaint] if complaint else [])


def test_the_files_are_found():
    modules = {module for module, _ in sources()}
    assert {"types", "kernels.quant", "nn.network", "models"} <= modules
    assert {wing(module) for module in modules} == set(FLOOR)


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("kernels.quant", "from fljax.nn import layers", "not below it"),
        ("kernels.quant", "def f():\n    from fljax.nn import layers", "not below it"),
        ("kernels.quant", "from fljax.plans import costs", "not below it"),
        ("engine.client", "from fljax.runs import simulation", "not below it"),
        ("nn.network", "from fljax.models import logistic", "not below it"),
        ("policies.base", "from fljax.algorithms import averaging", "not below it"),
        ("kernels.quant", "from fljax.trees import add", "not a module"),
        ("kernels.quant", "from fljax import nothing", "not a module"),
        ("plans", "from fljax.types import Role", "not a module"),
        ("kernels.quant", "import fljax.trees", "expected `from fljax"),
        ("kernels.quant", "import fljax", "expected `from fljax"),
        ("kernels.quant", "from fljax.trees import *", "star"),
        ("kernels.quant", "from . import trees", "relative"),
        ("kernels.quant", "from .trees import add", "relative"),
        ("runs.writers", "import tensorboardX", "at module level"),
        ("runs.writers", "if True:\n    import tensorboardX", "at module level"),
        ("experiment.progress", "import tqdm.auto", "at module level"),
        (
            "experiment.building",
            "def f():\n    from absl import flags",
            "not for the lib",
        ),
        ("experiment.building", "from experiments import main", "not for the library"),
        ("novelty", "import jax", "has no floor"),
    ],
)
def test_a_breach_is_found(module, source, complaint):
    (found,) = complaints(module, source)
    assert complaint in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kernels.quant", "from fljax import types\nimport jax"),
        ("engine.cohort", "from fljax.engine import client"),
        ("engine.cohort", "from fljax.nn import network"),
        ("runs.writers", "def f():\n    import tensorboardX"),
        ("models.small_convnet", "from fljax.models import mobilenetv2"),
        ("plans", "from fljax.plans.plan import Plan"),
        ("plans.costs", "from fljax import plans, types"),
    ],
)
def test_what_is_allowed_is_not_complained_of(module, source):
    assert complaints(module, source) == []


def test_nothing_heavy_is_loaded_with_the_library():
    # In a process of its own. absl is left out: optax itself loads it.
    heavy = sorted((NOT_AT_MODULE_LEVEL | NOWHERE | {"matplotlib"}) - {"absl"})
    program = (
        "import sys\n"
        "from fljax import algorithms, experiment, models\n"
        "from fljax.data import load, partition\n"
        "from fljax.runs import simulation, writers\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert output.returncode == 0, output.stderr
    assert output.stdout.strip() == "[]"
