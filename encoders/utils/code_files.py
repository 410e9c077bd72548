"""Python files outside the package: imported from anywhere on disk, here and in child processes."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from encoders.utils.serialization import ExperimentError

IMPORTED_FILES: dict[Path, tuple[int, ModuleType]] = {}  # modification time in ns, and the module


def import_file(path: str | Path) -> ModuleType:
    """Import a Python file, which may import what lies beside it. Raises `ExperimentError` where it is none.

    A file is executed once, and again after it has changed. Its folder stays on `sys.path`, as for a script.
    """
    path = Path(path).expanduser().resolve()
    if path.suffix != ".py" or not path.is_file():
        raise ExperimentError(f"{path} is not a Python file")
    modified = path.stat().st_mtime_ns
    time_imported, module = IMPORTED_FILES.get(path, (None, None))
    if time_imported == modified:
        return module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    imported = sys.modules.get(path.stem)
    if time_imported is None and imported and Path(getattr(imported, "__file__", None) or "").resolve() == path:
        module = imported  # by another file beside it
    else:
        name = path.stem
        if imported or not name.isidentifier():
            name = f"file_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
        module = execute_file(path, name)
    IMPORTED_FILES[path] = modified, module
    return module


def execute_file(path: Path, module_name: str) -> ModuleType:
    """Execute a file as a module of this name, which `sys.modules` has unless an error is raised."""
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def build_child_environment(**variables: str) -> dict[str, str]:
    """Return this process's environment with `variables`, in which a child process imports this very package."""
    package_root = str(Path(__file__).parents[2])
    python_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": python_path} | variables
