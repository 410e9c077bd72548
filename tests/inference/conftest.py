"""Runs of fresh parameters, which the tests of predictions share."""

from functools import partial

import jax
import pytest

import encoders
from encoders.experiment import RunSpec
from encoders.run.folder import build_run_record
from encoders.tasks.encoder_only import EncoderOnly
from encoders.text.tokenization import load_tokenizer
from encoders.training import step
from encoders.training.checkpoint import save_params
from encoders.utils.files import write_json
from tests import task_examples
from tests.inference.small_runs import BERT, LENGTHS


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(home):
    """Makes a run of fresh parameters, and opens it."""
    vocabulary = task_examples.vocabulary(home)
    tokenizer = load_tokenizer(vocabulary)

    def make(name, objective, model=BERT):
        folder = home / "runs" / name
        if not folder.exists():
            network = RunSpec(name=name, model=model, objective=objective)
            folder.mkdir(parents=True)
            tokenizer.save(folder)
            write_json(folder / "experiment.json", build_run_record(network, "0" * 16, tokenizer.vocab))
            init_params = jax.jit(partial(step.init_params, 0, objective.module(model, tokenizer.vocab)))
            save_params(folder / "checkpoints", init_params(), "none")
        return encoders.load(folder, batch_size=4, lengths=LENGTHS)

    return make


@pytest.fixture(scope="module")
def features(run):
    return run("features", EncoderOnly(has_pooler=True))
