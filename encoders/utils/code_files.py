"""Python files outside the package: imported from anywhere on disk, here and in child processes."""

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
    name, imported = path.stem, sys.modules.get(path.stem)
    if time_imported is None and imported and Path(getattr(imported, "__file__", None) or "").resolve() == path:
        module = imported  # by another file beside it
    else:
        if imported or not name.isidentifier():
            name = f"file_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    IMPORTED_FILES[path] = modified, module
    return module


def build_child_environment(**variables: str) -> dict[str, str]:
    """Return this process's environment with `variables`, in which a child process imports this very package."""
    package_root = str(Path(__file__).parents[2])
    python_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": python_path} | variables
