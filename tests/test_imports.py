"""The one-way order of the house, and what the training core may import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# One rank a room: each imports only the rooms before it.
ROOMS = (
    "utils", "model", "text", "families", "data", "objectives", "tasks", "training", "experiment", "costs", "run",
    "finetuning", "inference", "exchange", "sweeps", "reporting", "bench", "cli",
)  # fmt: skip
ABSENT = (
    "tensorflow", "tensorflow_datasets", "grain", "array_record", "torch", "transformers", "sentencex", "tokenizers",
    "zstandard", "pyarrow", "apache_beam", "sklearn", "tensorboard", "importlib_resources",
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
        if path.name != "__init__.py":
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


def test_the_core_needs_no_data_or_text_library():
    block = f"import sys\nfor name in {ABSENT!r}: sys.modules[name] = None\n"
    code = block + "".join(f"import {name}\n" for name in CORE)
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)


def test_help_does_not_wait_for_jax():
    code = "import sys, launch\nlaunch.main([])\nassert 'jax' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert "launch.py train" in shown
