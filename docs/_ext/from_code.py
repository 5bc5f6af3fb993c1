"""Pages that are written from the code: flags from their fields, the API from names.

A line `<!-- code: NAME ... -->` of a page is replaced by what the function NAME below
gives, so that such a page cannot be out of step.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

import fljax
from fljax import bounds
from fljax.experiment import config

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Flat settings under the part of a run that they belong to; what is new and not here
# comes under "Beside".
_GROUPS = {
    "What runs": ("algorithm", "network", "init", "init_head", "rounds", "seed"),
    "Data and clients": (
        *("dataset", "task", "test_share", "image_size", "image_mode", "augment"),
        *("mean", "std", "partition", "alpha", "shards_per_client"),
        *("classes_per_client", "class_assignment", "num_clients"),
    ),
    "A round": (
        *("clients_per_round", "selection", "policy", "codec", "aggregate"),
        *("attack", "secure_sum", "norm_bound", "weighting", "server_lr"),
    ),
    "Local training": (
        *("local_epochs", "batch_size", "lr", "lr_schedule", "lr_warmup"),
        *("weight_decay", "momentum", "client_optimizer"),
    ),
    "Devices and what windows cost": (
        *("tiers", "tiers_file", "fleet", "cost_table", "device_class"),
        *("table_error", "max_windows"),
    ),
    "Evaluation": ("evaluation", "eval_every", "eval_batch_size", "norm_statistics"),
    "How it is computed": (
        *("precision", "client_width", "programs", "devices", "data_memory"),
    ),
}

# Names of the face under a heading, by the folder that they come from.
_CHAPTERS = {
    "run": ("experiment", "runs", "exporting"),
    "data": ("types", "data", "nn", "models", "tasks"),
    "devices": ("devices", "plans", "kernels"),
    "algorithms": ("algorithms",),
    "pieces": ("policies", "updates", "engine"),
}

# What is documented of the modules below the face.
_MODULES = {
    "fljax.nn.layers": "Call, conv, depthwise, dense, max_pool, flatten, on_values, "
    "Dropout, Add, Product",
    "fljax.nn.network": "init, run",
    "fljax.engine.client": "inputs",
    "fljax.data.load": "load, Options, normalization",
    "fljax.policies.base": "Setting, Observation, from_rows, stateless, maximal, pick",
    "fljax.policies.selection": "Clients, Round, Heard, PowerOfChoice",
    "fljax.updates.local_rule": "Local, Finished",
    "fljax.updates.codecs.base": "Elementary, Part, Message, Chain, uniform",
    "fljax.updates.aggregates": "Combined, Seen, Mean, Median, TrimmedMean, Krum, "
    "Bulyan, GeometricMedian, CenteredClipping, FLTrust",
    "fljax.updates.attacks.base": "Examples, Honest",
    "fljax.updates.server_rule": "Received, kept, zeros",
    "fljax.tasks.base": "Measure, mean, total, ratio",
    "fljax.runtime.host_random": "uniforms, normals",
    "fljax.devices.fleet_sources": "Lognormal, load",
}


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _help(field: Any) -> str:
    """Gives the help of a field or a flag, with the flags in it as code."""
    text = getattr(field, "help", None) or field.metadata["help"]
    return re.sub(r"(?<![`\w-])(--[a-z][\w.]*\w)", r"`\1`", text)


def _written(default: Any) -> str:
    """Writes a default as a flag would be given."""
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    if default is None or default == "":
        return "none"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def _may_be(field: dataclasses.Field) -> str:
    """Says what a value may be, without what the help says or nobody reaches."""
    choices, text = field.metadata.get("choices"), field.metadata["help"]
    if choices and all(choice in text for choice in choices):
        return "one of these"
    return re.sub(r" to (2147483647|4294967295|1e\+38)$", "", bounds.wanted(field))


def _table(fields: dict[str, dataclasses.Field]) -> Iterator[str]:
    yield "| flag | default | it may be | |"
    yield "|---|---|---|---|"
    for name, field in fields.items():
        may, text = _may_be(field), _help(field)
        row = (f"`--{name}`", _written(field.default), may, text)
        yield f"| {' | '.join(map(_cell, row))} |"
    yield ""


def settings() -> Iterator[str]:
    """Gives the tables of all settings, those of a section under its name."""
    fields = config.fields()
    grouped = {name for names in _GROUPS.values() for name in names}
    left = [name for name in fields if "." not in name and name not in grouped]
    for title, names in {**_GROUPS, "Beside": tuple(left)}.items():
        if names:
            yield f"### {title}\n"
            yield from _table({name: fields[name] for name in names})
    for section, field in config.sections().items():
        kind = bounds.kind(field).__name__
        yield f"### `--{section}.NAME`\n"
        yield f"{_help(field)} In Python `Config({section}=fljax.{kind}(...))`.\n"
        inner = {n: f for n, f in fields.items() if n.startswith(f"{section}.")}
        yield from _table(inner)


def commands() -> Iterator[str]:
    """Gives what each command is for, with the flags that it has for itself."""
    yield from _flags_of("experiments.main", "### Flags of every command\n")
    for module in command_modules():
        text = inspect.getdoc(importlib.import_module(module)) or ""
        name = module.removesuffix(".__main__")
        about = text.partition("\n\n")[0]
        yield from _flags_of(module, f"### `python -m {name}`\n\n{about}\n")


def command_modules() -> list[str]:
    """Lists the commands of `experiments`: what hands itself to `main.run`."""
    folder = ROOT / "experiments"
    files = sorted((*folder.glob("*.py"), *folder.glob("*/__main__.py")))
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in files
        if "\n    main.run(" in path.read_text(encoding="utf-8")
    ]


def _flags_of(module: str, heading: str) -> Iterator[str]:
    importlib.import_module(module)
    own = flags.FLAGS.flags_by_module_dict().get(module, [])
    yield heading
    yield "| flag | default | |"
    yield "|---|---|---|"
    for flag in sorted(own, key=lambda flag: flag.name):
        default = flag.default
        default = ",".join(default) if isinstance(default, list) else default
        if isinstance(default, str) and default.startswith(str(pathlib.Path.home())):
            default = "~" + default.removeprefix(str(pathlib.Path.home()))
        row = (f"`--{flag.name}`", _written(default), _help(flag))
        yield f"| {' | '.join(map(_cell, row))} |"
    yield ""


def face(chapter: str) -> Iterator[str]:
    """Gives the documentation of the names of the face that belong to a chapter."""
    folders = _CHAPTERS[chapter]
    known = {folder for folders in _CHAPTERS.values() for folder in folders}
    for name, module in fljax._FACE.items():
        folder = module.partition(".")[0]
        if folder in folders or (chapter == "run" and folder not in known):
            yield from _documented(f"fljax.{name}", getattr(fljax, name))


def _documented(name: str, what: Any, members: str = "") -> Iterator[str]:
    """Gives the directive that takes a name's documentation from its docstring.

    Args:
      name: in full.
      what: it names.
      members: that are documented of it; none: all that have a docstring.
    """
    kind = "autoclass" if isinstance(what, type) else "autofunction"
    if isinstance(what, type) and what.__name__ != name.rpartition(".")[2]:
        name = f"{what.__module__}.{what.__qualname__}"  # else it is but an alias
    if inspect.ismodule(what):
        kind = "automodule"
    yield from ("```{eval-rst}", f".. {kind}:: {name}")
    if kind != "autofunction":
        yield f"   :members: {members}"
    yield from ("```", "")


def modules() -> Iterator[str]:
    """Gives the documentation of the modules below the face."""
    for name, members in _MODULES.items():
        yield f"## `{name}`\n"
        yield from _documented(name, importlib.import_module(name), members)


def pages(*names: str) -> Iterator[str]:
    """Gives those of some pages that a checkout has."""
    return (name for name in names if (ROOT / "docs" / f"{name}.md").exists())


_MARKED: dict[str, Callable[..., Iterator[str]]] = {
    made.__name__: made for made in (settings, commands, face, modules, pages)
}


def fill(text: str) -> str:
    """Replaces the marked lines of a page."""

    def made(found: re.Match[str]) -> str:
        name, *rest = found[1].split()
        return "\n".join(_MARKED[name](*rest))

    return re.sub(r"^<!-- code: (.*) -->$", made, text, flags=re.MULTILINE)


def _read(app: Any, name: str, source: list[str]) -> None:
    if "<!-- code: " in source[0]:
        source[0] = fill(source[0])
        app.env.note_reread()


def _told(what: Any) -> list[dataclasses.Field]:
    """Lists the fields of a class of settings: those that have a help."""
    if not (isinstance(what, type) and dataclasses.is_dataclass(what)):
        return []
    return [f for f in dataclasses.fields(what) if f.metadata.get("help")]


def _add_fields(
    app: Any, kind: str, name: str, what: Any, options: Any, lines: list[str]
) -> None:
    """Adds to the docstring of a dataclass of settings what its fields say."""
    told = {field.name: _about(field) for field in _told(what)}
    for field, text in (told or _commented(what)).items():
        lines += ["", f":ivar {field}: {text}"]


def _commented(what: Any) -> dict[str, str]:
    """Gives the comments beside or above the fields of a class.

    Of one whose docstring has its fields none.
    """
    fields = getattr(what, "__annotations__", {}) if isinstance(what, type) else {}
    if not fields or "Attributes:" in (what.__doc__ or ""):
        return {}
    found: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(what).splitlines():
        code, _, comment = line.strip().partition("#")
        name = code.partition(":")[0].strip()
        if not code:
            above.append(comment.strip())
        elif name in fields:
            told = " ".join((*above, comment.strip())).strip()
            plain = told.replace("*", "\\*")
            found |= {name: f"``{told}``" if "->" in told else plain} if told else {}
        above = above if not code else []
    return found


def _shorten(
    app: Any, kind: str, name: str, what: Any, options: Any, given: str, returned: str
) -> tuple[str, str] | None:
    """Leaves the fields of a dataclass of settings to their list."""
    return ("(**fields)", "") if _told(what) else None


def _about(field: dataclasses.Field) -> str:
    if dataclasses.is_dataclass(bounds.kind(field)):
        return _help(field)
    default = f"``{field.default!r}``"
    return f"{_help(field)} ({_may_be(field)}; default {default})"


def _skip(
    app: Any, kind: str, name: str, what: Any, skip: bool, options: Any
) -> bool | None:
    """Leaves out the fields of named tuples, which the docstring has."""
    return True if type(what).__name__ == "_tuplegetter" else None


def setup(app: Any) -> dict[str, Any]:
    """Has Sphinx write these pages."""
    from sphinx.domains import python

    for field in python.PyObject.doc_field_types:
        if field.name == "variable":  # what Sphinx would call it
            field.label = "Fields"
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _add_fields)
    app.connect("autodoc-process-signature", _shorten)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": False, "version": fljax.__version__}
