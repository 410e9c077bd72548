"""A run to measure."""

import pytest

from encoders.experiment import RunSpec
from encoders.tasks.encoder_only import EncoderOnly
from encoders.text.tokenization import load_tokenizer
from tests import task_examples
from tests.inference.small_runs import BERT
from tests.networks import write_random_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a run of random parameters."""
    home = tmp_path_factory.mktemp("home")
    spec = RunSpec(name="features", model=BERT, objective=EncoderOnly())
    write_random_run(home / "run", spec, load_tokenizer(task_examples.vocabulary(home)))
    return home / "run"
