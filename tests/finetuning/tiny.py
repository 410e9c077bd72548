"""A model, a recipe and runs of tiny size, and the files of experiments/."""

import importlib.util
from dataclasses import replace
from pathlib import Path

from encoders.families import albert, bert, electra, roberta
from encoders.finetuning.grids import Recipe, build_finetuning
from encoders.training.optimizer import AdamW

TINY = dict(
    vocab_size=400,
    hidden_size=32,
    num_layers=1,
    num_heads=2,
    intermediate_size=48,
    max_positions=128,
    init_std=0.15,
    hidden_dropout=0.0,
)
MODEL = replace(bert.TINY, **TINY, embedding_size=32, attention_dropout=0.0)
ADAM = AdamW(1.0, 0, bias_correction=True)
FAMILIES = {"bert": bert, "roberta": roberta, "albert": albert, "electra": electra}
QUICK = Recipe(
    learning_rate=5e-3,
    batch_size=16,
    num_epochs=4,
    max_seq_length=24,
    head_dropout=0.0,
    optimizer=ADAM,
    num_length_buckets=2,
)


def build_run(name, task, root, home, words, recipe=QUICK, num_rows=96, config=MODEL):
    """Return a fine-tuning run from fresh parameters, whose store is in the folder of this file's tests."""
    model = dict(init_from=None, config=config, tokenizer_path=words)
    experiment = build_finetuning(name, task, root, recipe, num_rows, **model)
    return replace(experiment, data=replace(experiment.data, store_dir=str(home / "stores")))


def load_file(name):
    """Import a file of experiments/."""
    path = Path(__file__).parents[2] / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
