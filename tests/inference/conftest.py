"""Runs of random parameters, which the tests of predictions share."""

import pytest

import encoders
from encoders.experiment import RunSpec
from encoders.tasks.encoder_only import EncoderOnly
from encoders.text.tokenization import load_tokenizer
from tests import task_examples
from tests.inference.small_runs import BERT, LENGTHS
from tests.networks import write_random_run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(home):
    """Makes a run of random parameters, and opens it."""
    vocabulary = task_examples.vocabulary(home)
    tokenizer = load_tokenizer(vocabulary)

    def make(name, objective, model=BERT):
        folder = home / "runs" / name
        if not folder.exists():
            write_random_run(folder, RunSpec(name=name, model=model, objective=objective), tokenizer)
        return encoders.load(folder, batch_size=4, lengths=LENGTHS)

    return make


@pytest.fixture(scope="module")
def features(run):
    return run("features", EncoderOnly(has_pooler=True))
