"""The one-way order of the house, and what the training core may import."""

import ast
import importlib
import inspect
import subprocess
import sys
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path

import flax.linen as nn
import pytest

from encoders.experiment import Experiment, RunSpec
from encoders.sweeps.paper_table import PaperTable
from encoders.utils.serialization import CLASS_ADDRESSES, find_class, get_class_name

ROOT = Path(__file__).parents[1]
# One rank a room: each imports only the rooms before it.
ROOMS = (
    "utils", "model", "text", "families", "data", "objectives", "tasks", "training", "experiment", "costs", "run",
    "finetuning", "inference", "exchange", "measures", "sweeps", "reporting", "bench", "library", "cli",
)  # fmt: skip
ABSENT = (
    "tensorflow", "tensorflow_datasets", "grain", "array_record", "torch", "transformers", "sentencex", "tokenizers",
    "backports", "pyarrow", "apache_beam", "sklearn", "tensorboard", "importlib_resources",
    "matplotlib",
)  # fmt: skip
CORE = [
    *("encoders.run.loop", "encoders.training.step", "encoders.costs.ledger", "encoders.reporting.summaries"),
    *("encoders.cli.commands", "encoders.reporting.page", "encoders.sweeps.paper_table", "encoders.text.corpus"),
    *("encoders.families.electra", "encoders.objectives.masked_lm", "encoders.data.stream"),
]


def rank(module: str) -> int:
    """The place of a module's room in the order."""
    return ROOMS.index(module.split(".")[1])


def modules():
    for path in sorted((ROOT / "encoders").rglob("*.py")):
        if path.name not in ("__init__.py", "__main__.py"):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


@pytest.mark.parametrize("name, path", list(modules()), ids=lambda x: x if isinstance(x, str) else "")
def test_a_module_imports_only_what_comes_before_it(name, path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "encoders":
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            imported |= {m if (ROOT / (m.replace(".", "/") + ".py")).exists() else node.module for m in inner}
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names if alias.name.startswith("encoders.")}
    late = sorted(m for m in imported - {"encoders"} if rank(m) > rank(name))
    assert not late, f"{name} imports {late}"


def list_saved_classes() -> set[type]:
    """Return every class that an experiment or a table may hold, by the declared types of their fields."""
    for name, _ in modules():
        if not name.startswith(("encoders.bench", "encoders.cli", "encoders.library")):
            importlib.import_module(name)
    ours = [module for name, module in list(sys.modules.items()) if name.startswith("encoders.")]
    defined = {cls for module in ours for cls in vars(module).values() if isinstance(cls, type)}
    defined = {cls for cls in defined if str(cls.__module__).startswith("encoders.") and is_dataclass(cls)}
    defined = {cls for cls in defined if not cls.__module__.startswith("encoders.library.")}  # registered by their file

    def list_accepted(declared) -> set[type]:
        inner = [cls for argument in typing.get_args(declared) for cls in list_accepted(argument)]
        if not isinstance(declared, type) or not declared.__module__.startswith("encoders."):
            return set(inner)
        if getattr(declared, "_is_protocol", False):
            methods = [name for name, value in vars(declared).items() if name[0] != "_" and callable(value)]
            return {cls for cls in defined if all(hasattr(cls, name) for name in methods)}
        accepted = {cls for cls in defined if issubclass(cls, declared) and not inspect.isabstract(cls)}
        return {cls for cls in accepted if cls is declared or not cls.__subclasses__()}

    reachable, waiting = set(), [Experiment, RunSpec, PaperTable]
    while waiting:
        cls = waiting.pop()
        if cls in reachable or not is_dataclass(cls):
            continue
        reachable.add(cls)
        for field in fields(cls) if not issubclass(cls, nn.Module) else ():
            declared = typing.get_type_hints(cls)[field.name]
            waiting += list_accepted(field.default if declared is type else declared)
    return reachable


def test_every_class_that_an_experiment_can_hold_has_a_name_that_lasts():
    addresses = {f"{cls.__module__}:{cls.__qualname__}" for cls in list_saved_classes()}
    assert "encoders.objectives.masking:Masking" in addresses and len(addresses) > 40
    assert sorted(addresses - set(CLASS_ADDRESSES.values())) == []


@pytest.mark.parametrize("name", CLASS_ADDRESSES)
def test_a_name_of_the_table_is_that_of_a_class(name):
    assert is_dataclass(find_class(name)) and get_class_name(find_class(name)) == name


def test_the_core_needs_no_data_or_text_library():
    block = f"import sys\nfor name in {ABSENT!r}: sys.modules[name] = None\n"
    code = block + "".join(f"import {name}\n" for name in CORE)
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)


def test_help_does_not_wait_for_jax():
    code = "import sys, launch\nlaunch.main([])\nassert 'jax' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert "launch.py train" in shown
