"""The shapes and types that signatures state are checked here, and only here: the hook goes in before the imports."""

import gc
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import runtime_checkable

# Tests compile much and compute little: a third of the compile time without most of XLA's optimisations.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# XLA's generator of code for fusions takes another third of it, and changes no result beyond its rounding. Programs in
# one part instead of many take a tenth less of the tests' time. Later versions end a process that passes such a flag.
if version("jaxlib").startswith("0.10."):
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"
# One cache of compiled programs for this session: its workers and the processes that tests start share it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="encoders-tests-"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# jax reads its environment when it is imported, so these come last.
import jax  # noqa: E402
import pytest  # noqa: E402
from flax.linen import linear  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

collect_ignore = ["exchange/neobert_torch.py"]  # it imports PyTorch

gc.set_threshold(50_000, 20, 20)  # tracing makes many objects and little garbage

runtime_checkable(linear.PromoteDtypeFn)  # the hook checks a dataclass's fields, and Flax has this one in its layers
install_import_hook(
    ["encoders.model", "encoders.families", "encoders.objectives", "encoders.tasks"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",  # 0 will do where a float is asked for
)


@pytest.fixture(autouse=True, scope="module")
def not_too_many_programs():
    """A compiled program maps memory, and Linux allows a process 65,530 maps: beyond them it crashes."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


# One worker gets a whole file, whose tests share runs and compiled programs. These are long and share little.
APART = ("test_golden.py", "test_convert.py", "test_masking.py", "test_loop.py", "test_structure.py")
FIRST = ("test_readme_commands.py", "test_finetune.py", "test_warm_start.py")  # else one worker is left alone with them


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in FIRST)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if file.endswith(APART) else file

    config.option.loadscopereorder = False  # keep the order of the files
    return Together(config, log)
