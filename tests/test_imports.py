"""The one-way order of the house, and what the training core may import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Text becomes tokens, batches, hidden states, a loss, an update, a table: each word knows those before it.
ORDER = (
    ("encoders.metrics", "encoders.values", "encoders.files"),
    ("encoders.text",),
    ("encoders.data",),
    ("encoders.model",),
    ("encoders.families",),
    ("encoders.objectives",),
    ("encoders.downstream",),
    ("encoders.training",),
    ("encoders.experiment",),
    ("encoders.training.run",),
    ("encoders.training.start", "encoders.ledger"),
    ("encoders.training.health",),
    ("encoders.training.loop",),
    ("encoders.exchange",),
    ("encoders.convert", "encoders.predict", "encoders.finetune"),
    ("encoders.recipes", "encoders.sweep", "encoders.crossed"),
    ("encoders.ablation",),
    ("encoders.members",),
    ("encoders.ask",),
    ("encoders.report",),
    ("encoders.plots",),
    ("encoders.page",),
    ("encoders.tables",),
    ("encoders.bench", "encoders.inspect"),
    ("encoders.cli",),
)
ABSENT = (
    "tensorflow", "tensorflow_datasets", "grain", "array_record", "torch", "transformers", "sentencex", "tokenizers",
    "zstandard", "pyarrow", "apache_beam", "sklearn", "tensorboard", "importlib_resources",
    "matplotlib",
)  # fmt: skip
CORE = [
    *("encoders.training.loop", "encoders.training.step", "encoders.ledger", "encoders.report", "encoders.cli"),
    *("encoders.page", "encoders.ablation"),
    *("encoders.families.electra", "encoders.objectives.joint", "encoders.data.stream", "encoders.text.corpus"),
]


def rank(module: str) -> int:
    """The place of a module in the order: that of the longest name that is its own or a parent's."""
    fits = [(len(name), i) for i, names in enumerate(ORDER) for name in names if f"{module}.".startswith(f"{name}.")]
    assert fits, f"{module} has no place in the order"
    return max(fits)[1]


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
