"""Every experiment file loads, its experiments initialise, and they have the papers' numbers."""

import ast
import importlib.util
import math
import re
from pathlib import Path

import pytest

from encoders.costs.ledger import count_params, eval_param_shapes
from encoders.experiment import Experiment
from encoders.families import albert, bert, electra, roberta
from encoders.tasks.classification import Classification

# tests/sweeps/test_paper_tables.py tests the tables.
HOME = Path(__file__).parents[1] / "experiments"
FILES = sorted(HOME.glob("*.py"))


def load_experiments(path: Path) -> list[Experiment]:
    """Return a file's experiments, or none if they depend on a run; tests/finetuning/test_recipes.py tests those."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [] if callable(module.experiments) else module.experiments


EXPERIMENTS = {experiment.name: experiment for path in FILES for experiment in load_experiments(path)}


@pytest.mark.parametrize("path", sorted(HOME.rglob("*.py")), ids=lambda path: path.stem)
def test_a_file_documents_its_command_cost_and_score(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    name = f"experiments/guides/{path.name}" if path.parent.name == "guides" else path.stem
    other_verbs = {"speed_tpu": "price speed_tpu"} | dict.fromkeys(("speed", "speed_gpu", "speed_long"), "bench peers")
    assert f"    python launch.py {other_verbs.get(path.stem, f'train {name}')}" in text
    assert "not measured here" in text or "easured on" in text or ("Cost" in text and "Score" in text)


@pytest.mark.parametrize("path", [path for path in FILES if load_experiments(path)], ids=lambda path: path.stem)
def test_the_names_of_a_files_experiments_differ(path):
    names = [experiment.name for experiment in load_experiments(path)]
    assert names and len(set(names)) == len(names)


@pytest.mark.live
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_initialises_at_its_full_size(name):
    experiment = EXPERIMENTS[name]
    assert count_params(eval_param_shapes(experiment.model, experiment.objective)) > 100_000


def test_the_overrides_of_the_measured_results_name_existing_fields():
    text = (HOME / "README.md").read_text(encoding="utf-8")
    commands = "\n".join(line for line in text.splitlines() if line.startswith("    "))
    paths = set(re.findall(r"([a-z_]+(?:\.\w+)+)=", commands))
    pretraining = EXPERIMENTS["first"]
    assert len(paths) > 10
    for path in paths:
        objective = Classification(("no", "yes")) if path.startswith("objective.head") else pretraining.objective
        value = pretraining
        for name in path.split("."):
            if name == "objective":
                value = objective
            else:
                value = value[int(name)] if name.isdigit() else getattr(value, name)


def test_every_published_size_has_an_experiment():
    published = bert.SIZES | roberta.SIZES | albert.SIZES | electra.SIZES
    assert {name: EXPERIMENTS[name].model for name in published} == published


@pytest.mark.parametrize(
    "name, rate, warmup, tokens",
    [  # from the papers: peak rate, warm-up, and batch x steps x length
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
    experiment, start, seen = EXPERIMENTS[name], 0, 0
    for phase in experiment.phases:
        seen += (phase.until_step - start) * phase.batch_size * phase.seq_length
        start = phase.until_step
    assert (experiment.optimizer.learning_rate, experiment.optimizer.warmup_steps, seen) == (rate, warmup, tokens)


def test_quickstart_models_start_at_one_over_the_root_of_their_width():
    for name in ("bert", "roberta", "albert", "electra"):
        model = EXPERIMENTS[f"quickstart-{name}"].model
        assert model.init_std == pytest.approx(1 / math.sqrt(model.hidden_size))
