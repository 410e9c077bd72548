"""Only speed and memory depend on the mesh: numbers, what a step sends, what a device holds."""

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh

from encoders.costs.ledger import make_blank_vocab
from encoders.families import bert
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.sentence_pair import NextSentencePrediction
from encoders.training import step
from encoders.training.optimizer import AdamW
from encoders.training.sharding import MESH_AXES, infer_shardings
from tests.training.meshes import FAMILIES, LENGTH, ROWS, VOCABULARY

# The eight devices are those of a process of its own, so that the other tests keep one.
CODE = """
import dataclasses, json, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from tests.training.meshes import compared
for *found, sent in compared(sys.argv[1], json.loads(sys.argv[2])):
    print(json.dumps([*found, [dataclasses.asdict(each) for each in sent]]))
"""
ROOT = Path(__file__).parents[2]
EVERY = [(1, 8, 1), (1, 2, 4), (2, 2, 2)]
CASES = [pytest.param((name, EVERY), marks=pytest.mark.live) for name in FAMILIES]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{len(case[1])}")
def found(request):
    """Of a family and some meshes: each mesh, deviations of losses and of parameters, and what a step sends."""
    name, meshes = request.param
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", CODE, name, json.dumps(meshes)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_five_steps_with_dropout_are_those_of_one_device(found):
    for mesh, losses, params, _ in found:
        assert losses < 1e-5 and params < 1e-5, mesh  # float32 sums in another order


def test_word_table_and_logits_stay_split_over_the_vocabulary(found):
    for mesh, _, _, sent in found:
        whole = [each for each in sent if any(VOCABULARY in shape for _, shape in each["arrays"])]
        assert not whole or mesh.endswith("x1"), (mesh, whole)


def tokens(shape: list[int]) -> int:
    """Of how many tokens an array is, rows and positions being one axis or two; 0 for parameters."""
    count = math.prod(shape[: 1 if len(shape) < 3 else 2])
    return 0 if count % LENGTH else count


def test_no_device_sees_rows_of_others(found):
    for mesh, _, _, sent in found:
        own = ROWS * LENGTH // math.prod(map(int, mesh.split("x")[:2]))
        assert all(tokens(shape) <= own for each in sent for _, shape in each["arrays"]), (mesh, sent)


def test_a_device_of_eight_holds_an_eighth_of_parameters_and_moments():
    mesh = AbstractMesh((1, 8, 1), MESH_AXES)
    module = MaskedLM(sentence_task=NextSentencePrediction()).module(bert.BASE, make_blank_vocab(bert.BASE.vocab_size))
    state = jax.eval_shape(partial(step.init_train_state, module=module, optimizer=AdamW(1e-4, 1)), 0)
    for tree in (state.params, state.moments["adam"].m, state.moments["adam"].v):
        size = lambda leaf, place: math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        held = sum(jax.tree.leaves(jax.tree.map(size, tree, infer_shardings(tree, mesh))))
        whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        assert whole / 8 <= held <= whole / 7
