"""Processes that compile a training step anew compute the same bits as each other, on a busy machine.

    ENCODERS_PROCESSES=200 python -m pytest -m live -s tests/training/test_bits_live.py

starts that many, one more at a time than there are cores, and prints how many gave which result.
"""

import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.live
ROOT = Path(__file__).parents[2]
NUM_PROCESSES = int(os.environ.get("ENCODERS_PROCESSES", 4))
# Four updates of the quickstart's BERT from fresh parameters, on random tokens; then a digest of losses and parameters.
PROGRAM = """
import hashlib
import jax
import numpy as np
import encoders
from encoders.bench.inputs import make_random_batches
from encoders.training import step

experiment = encoders.load_experiments("quickstart")["quickstart-bert"]
vocab, batches = make_random_batches(experiment, experiment.phases[0], 2)
module = experiment.objective.module(experiment.model, vocab)
init = jax.jit(step.init_train_state, static_argnames=("module", "optimizer"))
state, digest = init(0, module=module, optimizer=experiment.optimizer), hashlib.sha256()
for i in range(4):
    static_args = step.build_static_args(experiment, module)
    state, metrics = step.train_step(state, jax.device_put(batches[i % 2]), experiment.seed, **static_args)
    for leaf in jax.tree.leaves((metrics, state.params)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
print(digest.hexdigest())
"""


def test_processes_that_compile_anew_compute_the_same_bits():
    # As a user runs it: the flags of the tests change what is compiled, and a kept program would be read.
    ours = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in ours}

    def run_program(_) -> str:
        command = [sys.executable, "-c", PROGRAM]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    with ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:
        results = Counter(pool.map(run_program, range(NUM_PROCESSES)))
    print({digest.strip()[:12]: count for digest, count in results.items()})
    assert len(results) == 1 and len(next(iter(results)).strip()) == 64
