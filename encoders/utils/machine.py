"""Facts about this machine and this copy of the package, for records of measurements; how it keeps memory."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from pathlib import Path

M_ARENA_MAX = -8  # of glibc's malloc.h


def find_commit() -> str | None:
    """Return the commit of the package, "-dirty" behind it if files have changed, or None outside a repository."""
    # `describe --dirty` would write the index, and a process that is killed would leave its lock.
    git = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent)]
    run_git = lambda *words: subprocess.run([*git, *words], capture_output=True, text=True).stdout.strip()
    try:
        commit, changes = run_git("describe", "--always"), run_git("status", "--porcelain", "--untracked-files=no")
    except OSError:  # without git
        return None
    return (commit + "-dirty" * bool(changes)) or None


def describe_processor() -> str:
    """Return the model of the processor, or its architecture where the system does not name it."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text(encoding="utf-8").splitlines() if cpu_info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def limit_malloc_arenas() -> None:
    """Make all threads share one heap: glibc's several keep freed memory, 0.1 to 0.4 GB with BERT-large."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_ARENA_MAX, 1)
