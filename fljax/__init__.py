"""Federated learning on resource-constrained devices, simulated fast on JAX.

    import fljax

    result = fljax.run(fljax.Config(algorithm="cocofl", dataset="digits", rounds=20))
    print(result.final["test_accuracy"])
    result.plot()

Everything below is imported when it is first asked for. What has no name here is in
the sub-packages, from the ground up: `runtime`, `data`, `kernels`, `plans`, `updates`,
`nn`, `devices`, `models`, `policies`, `tasks`, `engine`, `algorithms`, `runs`,
`experiment`, `exporting`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fljax.version import VERSION as __version__

# name -> module below fljax, and its name there if it is another one
_FACE = {
    # an experiment
    "Config": "experiment.config",
    "Experiment": "experiment.building.built",
    "build": "experiment.building.build",
    "Result": "experiment.running",
    "run": "experiment.running",
    "run_together": "experiment.together",
    "restore": "experiment.running",
    "read": "experiment.results",
    "plot": "experiment.results",
    "load": "runs.weights",
    "export": "exporting.files",
    "Comparison": "experiment.comparing.comparison",
    "compare": "experiment.comparing.comparison",
    "Hooks": "runs.simulation",
    # what it is made of
    "Dataset": "types",
    "Network": "nn.network",
    "FlaxBlock": "nn.flax_block",
    "Training": "engine.client",
    "Federation": "engine.federation",
    "Plan": "plans.plan",
    "CostTable": "plans.costs",
    "Tier": "devices.tiers",
    "Fleet": "devices.fleet",
    "Changes": "devices.fleet",
    "Clock": "devices.clock",
    "Failures": "devices.failures:Rates",
    "Rollback": "runs.guard",
    "Privacy": "updates.privacy",
    "Frozen": "kernels.specs",
    "Text": "data.load",
    "Task": "tasks.base",
    # algorithms, by name as in settings
    "Algorithm": "algorithms.base",
    "averaging": "algorithms.averaging",
    "cocofl": "algorithms.cocofl",
    "fedavg": "algorithms.fedavg",
    "fedavg_drop": "algorithms.fedavg_drop",
    "centralized": "algorithms.centralized",
    "fedprox": "algorithms.fedprox",
    "fedavgm": "algorithms.fedavgm",
    "fedadam": "algorithms.fedopt",
    "fedyogi": "algorithms.fedopt",
    "fedadagrad": "algorithms.fedopt",
    "scaffold": "algorithms.scaffold",
    "feddyn": "algorithms.feddyn",
    "fednova": "algorithms.fednova",
    # what one's own is made of
    "Policy": "policies.base",
    "policy": "policies.windows:from_function",
    "Selection": "policies.selection",
    "LocalRule": "updates.local_rule",
    "Codec": "updates.codecs",
    "Aggregate": "updates.aggregates",
    "Attack": "updates.attacks",
    "Personal": "updates.personal",
    "ServerRule": "updates.server_rule",
    "server_rule": "updates.server_rule",
}

_PACKAGES = (
    *("algorithms", "bounds", "data", "devices", "engine", "experiment", "exporting"),
    "kernels",
    *(
        "models",
        "nn",
        "notation",
        "plans",
        "policies",
        "runs",
        "runtime",
        "tasks",
        "trees",
    ),
    *("types", "updates", "version"),
)

if TYPE_CHECKING:  # the same for editors and type checkers; a test compares
    from fljax import algorithms as algorithms
    from fljax import bounds as bounds
    from fljax import data as data
    from fljax import devices as devices
    from fljax import engine as engine
    from fljax import experiment as experiment
    from fljax import exporting as exporting
    from fljax import kernels as kernels
    from fljax import models as models
    from fljax import nn as nn
    from fljax import notation as notation
    from fljax import plans as plans
    from fljax import policies as policies
    from fljax import runs as runs
    from fljax import runtime as runtime
    from fljax import tasks as tasks
    from fljax import trees as trees
    from fljax import types as types
    from fljax import updates as updates
    from fljax import version as version
    from fljax.algorithms.averaging import averaging as averaging
    from fljax.algorithms.base import Algorithm as Algorithm
    from fljax.algorithms.centralized import centralized as centralized
    from fljax.algorithms.cocofl import cocofl as cocofl
    from fljax.algorithms.fedavg import fedavg as fedavg
    from fljax.algorithms.fedavg_drop import fedavg_drop as fedavg_drop
    from fljax.algorithms.fedavgm import fedavgm as fedavgm
    from fljax.algorithms.feddyn import feddyn as feddyn
    from fljax.algorithms.fednova import fednova as fednova
    from fljax.algorithms.fedopt import fedadagrad as fedadagrad
    from fljax.algorithms.fedopt import fedadam as fedadam
    from fljax.algorithms.fedopt import fedyogi as fedyogi
    from fljax.algorithms.fedprox import fedprox as fedprox
    from fljax.algorithms.scaffold import scaffold as scaffold
    from fljax.data.load import Text as Text
    from fljax.devices.clock import Clock as Clock
    from fljax.devices.failures import Rates as Failures  # noqa: F401
    from fljax.devices.fleet import Changes as Changes
    from fljax.devices.fleet import Fleet as Fleet
    from fljax.devices.tiers import Tier as Tier
    from fljax.engine.client import Training as Training
    from fljax.engine.federation import Federation as Federation
    from fljax.experiment.building.build import build as build
    from fljax.experiment.building.built import Experiment as Experiment
    from fljax.experiment.comparing.comparison import Comparison as Comparison
    from fljax.experiment.comparing.comparison import compare as compare
    from fljax.experiment.config import Config as Config
    from fljax.experiment.results import plot as plot
    from fljax.experiment.results import read as read
    from fljax.experiment.running import Result as Result
    from fljax.experiment.running import restore as restore
    from fljax.experiment.running import run as run
    from fljax.experiment.together import run_together as run_together
    from fljax.exporting.files import export as export
    from fljax.kernels.specs import Frozen as Frozen
    from fljax.nn.flax_block import FlaxBlock as FlaxBlock
    from fljax.nn.network import Network as Network
    from fljax.plans.costs import CostTable as CostTable
    from fljax.plans.plan import Plan as Plan
    from fljax.policies.base import Policy as Policy
    from fljax.policies.selection import Selection as Selection
    from fljax.policies.windows import from_function as policy  # noqa: F401
    from fljax.runs.guard import Rollback as Rollback
    from fljax.runs.simulation import Hooks as Hooks
    from fljax.runs.weights import load as load
    from fljax.tasks.base import Task as Task
    from fljax.types import Dataset as Dataset
    from fljax.updates.aggregates import Aggregate as Aggregate
    from fljax.updates.attacks import Attack as Attack
    from fljax.updates.codecs import Codec as Codec
    from fljax.updates.local_rule import LocalRule as LocalRule
    from fljax.updates.personal import Personal as Personal
    from fljax.updates.privacy import Privacy as Privacy
    from fljax.updates.server_rule import ServerRule as ServerRule
    from fljax.updates.server_rule import server_rule as server_rule

__all__ = [*_FACE, "__version__"]


def __getattr__(name: str) -> Any:
    """Import what a name stands for, once it is asked for."""
    if name in _PACKAGES:
        return importlib.import_module(f"fljax.{name}")
    if name not in _FACE:
        raise AttributeError(f"module 'fljax' has no attribute {name!r}")
    module, _, there = _FACE[name].partition(":")
    found = getattr(importlib.import_module(f"fljax.{module}"), there or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, *_PACKAGES})
