"""Every experiment file loads, its members initialise, and the papers' numbers stand in it."""

import importlib.util
import math
from pathlib import Path

import pytest

from encoders.costs.ledger import count_params, eval_param_shapes
from encoders.experiment import Experiment
from encoders.families import albert, bert, electra, roberta

# tests/sweeps/test_paper_tables.py has the tables.
FILES = sorted((Path(__file__).parents[1] / "experiments").glob("*.py"))


def load(path: Path) -> list[Experiment]:
    """The members of a file, none of one whose members depend on a run: tests/finetuning/test_finetune.py has these."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [] if callable(module.experiments) else module.experiments


MEMBERS = {experiment.name: experiment for path in FILES for experiment in load(path)}


@pytest.mark.parametrize("path", [path for path in FILES if load(path)], ids=lambda path: path.stem)
def test_a_file_has_members_with_names_of_their_own(path):
    names = [experiment.name for experiment in load(path)]
    assert names and len(set(names)) == len(names)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_initialises_at_its_full_size(name):
    assert count_params(eval_param_shapes(MEMBERS[name].model, MEMBERS[name].objective)) > 100_000


def test_every_published_size_has_an_experiment():
    published = bert.SIZES | roberta.SIZES | albert.SIZES | electra.SIZES
    assert {name: MEMBERS[name].model for name in published} == published


@pytest.mark.parametrize(
    "name, rate, warmup, tokens",
    [  # papers.md A3: peak rate, warm-up, and batch x steps x length
        ("bert-base", 1e-4, 10_000, 256 * (900_000 * 128 + 100_000 * 512)),
        ("bert-large", 1e-4, 10_000, 256 * (900_000 * 128 + 100_000 * 512)),
        ("roberta-base", 6e-4, 24_000, 8192 * 500_000 * 512),
        ("roberta-large", 4e-4, 30_000, 8192 * 500_000 * 512),
        ("albert-base", 1.76e-3, 3125, 4096 * 125_000 * 512),
        ("electra-small", 5e-4, 10_000, 128 * 1_000_000 * 128),
        ("electra-base", 2e-4, 10_000, 256 * 766_000 * 512),
        ("electra-large", 2e-4, 10_000, 2048 * 400_000 * 512),
    ],
)
def test_a_recipe_has_the_papers_numbers(name, rate, warmup, tokens):
    experiment, start, seen = MEMBERS[name], 0, 0
    for phase in experiment.phases:
        seen += (phase.until_step - start) * phase.batch_size * phase.seq_length
        start = phase.until_step
    assert (experiment.optimizer.learning_rate, experiment.optimizer.warmup_steps, seen) == (rate, warmup, tokens)


def test_quickstart_models_start_at_one_over_the_root_of_their_width():
    for name in ("bert", "roberta", "albert", "electra"):
        model = MEMBERS[f"quickstart-{name}"].model
        assert model.init_std == pytest.approx(1 / math.sqrt(model.hidden_size))
