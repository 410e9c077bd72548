"""Fine-tuning recipes of the papers, for each family: GLUE, SQuAD and RACE.

- bert: GLUE 3 epochs, 32 rows, rates 5e-5, 4e-5, 3e-5, 2e-5 (Devlin et al., 2019, §4.1); SQuAD 5e-5, 32 rows, 3 epochs,
  2.0: 3e-5, 24 rows, 2 epochs (README of the released code), rows of 384. The released code omits bias correction,
  which makes some runs fail; `--set optimizer.bias_correction=true` adds it. RACE is not in the paper: SWAG's 2e-5, 16
  rows, 3 epochs (§4.4).
- roberta: GLUE per task (fairseq, examples/roberta/config/finetuning), weight decay 0.1 on everything; SQuAD 1.5e-5,
  48 rows, 2 epochs, warm-up 6 %, decay 0.01; RACE 1e-5, 16 rows, 4 epochs, decay 0.1 (table 10).
- albert: per task (Lan et al., 2020, table 14); the dropout is ALBERT's own, in the hidden states alone.
- electra: GLUE 3 epochs, 10 of RTE and STS-B, 32 rows, layer-wise decay (Clark et al., 2020, table 7). As in the
  released code, weight decay 0.01 (0 in the paper), the decay of the top layer twice, MRPC and STS-B in both orders.
  SQuAD 32 rows, 2 epochs, rows of 512. RACE is not in the paper: as GLUE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from encoders.finetuning.grids import Recipe
from encoders.model.config import EncoderConfig
from encoders.training.optimizer import AdamW
from encoders.utils.serialization import ExperimentError

# Updates, warm-up steps, learning rate, batch size.
FAIRSEQ_GLUE = {
    "CoLA": (5336, 320, 1e-5, 16),
    "MNLI": (123_873, 7432, 1e-5, 32),
    "MRPC": (2296, 137, 1e-5, 16),
    "QNLI": (33_112, 1986, 1e-5, 32),
    "QQP": (113_272, 28_318, 1e-5, 32),
    "RTE": (2036, 122, 2e-5, 16),
    "SST-2": (20_935, 1256, 1e-5, 32),
    "STS-B": (3598, 214, 2e-5, 16),
}
# Learning rate, batch size, ALBERT's dropout, updates, warm-up steps, length.
ALBERT_TABLE_14 = {
    "CoLA": (1e-5, 16, 0.0, 5336, 320, 512),
    "STS-B": (2e-5, 16, 0.0, 3598, 214, 512),
    "SST-2": (1e-5, 32, 0.0, 20_935, 1256, 512),
    "MNLI": (3e-5, 128, 0.0, 10_000, 1000, 512),
    "QNLI": (1e-5, 32, 0.0, 33_112, 1986, 512),
    "QQP": (5e-5, 128, 0.1, 14_000, 1000, 512),
    "RTE": (3e-5, 32, 0.1, 800, 200, 512),
    "MRPC": (2e-5, 32, 0.0, 800, 200, 512),
    "WNLI": (2e-5, 16, 0.1, 2000, 250, 512),
    "SQuAD1.1": (5e-5, 48, 0.0, 3649, 365, 384),
    "SQuAD2.0": (3e-5, 48, 0.0, 8144, 814, 512),
    "RACE": (2e-5, 32, 0.1, 12_000, 1000, 512),
}
FAIRSEQ_ADAM = dict(betas=(0.9, 0.98), bias_correction=True, schedule="peak", clip_norm=None, no_decay=())
# Hidden size: learning rate, layer-wise decay.
ELECTRA_BY_HIDDEN_SIZE = {256: (3e-4, 0.8), 768: (1e-4, 0.8), 1024: (5e-5, 0.9)}


BERT_RECIPES = {
    "SQuAD1.1": [Recipe(5e-5, 32, 3, max_seq_length=384)],
    "SQuAD2.0": [Recipe(3e-5, 24, 2, max_seq_length=384)],
    "RACE": [Recipe(2e-5, 16, 3, max_seq_length=512)],
    "GLUE": [Recipe(learning_rate, 32) for learning_rate in (5e-5, 4e-5, 3e-5, 2e-5)],
}


def build_roberta_recipes(task: str, config: EncoderConfig) -> list[Recipe]:
    if task.startswith("SQuAD"):
        return [Recipe(1.5e-5, 48, 2, warmup=0.06, max_seq_length=512, optimizer=AdamW(1.0, 0, **FAIRSEQ_ADAM))]
    optimizer = AdamW(1.0, 0, weight_decay=0.1, **FAIRSEQ_ADAM)
    if task == "RACE":
        return [Recipe(1e-5, 16, 4, warmup=0.06, max_seq_length=512, optimizer=optimizer)]
    steps, warmup, rate, batch = FAIRSEQ_GLUE.get(task, FAIRSEQ_GLUE["RTE"])  # fairseq lacks a file for WNLI
    return [Recipe(rate, batch, num_steps=steps, warmup=warmup, max_seq_length=512, optimizer=optimizer)]


def build_albert_recipes(task: str, config: EncoderConfig) -> list[Recipe]:
    rate, batch, dropout, steps, warmup, length = ALBERT_TABLE_14[task]
    changes = (("hidden_dropout", dropout), ("attention_dropout", 0.0))
    return [Recipe(rate, batch, num_steps=steps, warmup=warmup, max_seq_length=length, model_overrides=changes)]


def build_electra_recipes(task: str, config: EncoderConfig) -> list[Recipe]:
    rate, decay = ELECTRA_BY_HIDDEN_SIZE.get(config.hidden_size, ELECTRA_BY_HIDDEN_SIZE[768])
    adam = AdamW(1.0, 0, schedule="product", layer_lr_decay=decay, decay_top_layer_twice=True)
    if task.startswith("SQuAD"):
        return [Recipe(rate, 32, 2, max_seq_length=512, optimizer=adam)]
    length = 512 if task == "RACE" else 128
    epochs = 10 if task in ("RTE", "STS-B") else 3
    return [Recipe(rate, 32, num_epochs=epochs, max_seq_length=length, optimizer=adam, both_orders=True)]


RECIPE_BUILDERS = {
    "bert": lambda task, config: BERT_RECIPES.get(task, BERT_RECIPES["GLUE"]),
    "roberta": build_roberta_recipes,
    "albert": build_albert_recipes,
    "electra": build_electra_recipes,
    # The sweeps of these papers are not written out.
    "modernbert": build_roberta_recipes,
    "eurobert": build_roberta_recipes,
    "neobert": build_roberta_recipes,
    "esm": build_roberta_recipes,
    "deberta": build_roberta_recipes,
}


def build_recipes(
    family: str,
    task: str,
    config: EncoderConfig,
    learning_rates: Sequence[float] = (),
    batch_sizes: Sequence[int] = (),
    epoch_counts: Sequence[float] = (),
) -> list[Recipe]:
    """Return the recipes of `family` for `task`: a name of GLUE, SQuAD1.1, SQuAD2.0 or RACE.

    Learning rates, batch sizes and epoch counts override those of the first recipe, in every combination. Raises
    `ExperimentError` for a family or a task without a recipe.
    """
    try:
        recipes = RECIPE_BUILDERS[family](task, config)
    except KeyError:
        raise ExperimentError(
            f"no recipe for the family {family!r} and the task {task!r}; families are {', '.join(RECIPE_BUILDERS)}, "
            f"tasks are {', '.join(ALBERT_TABLE_14)}"
        ) from None
    own_rates = dict.fromkeys(recipe.learning_rate for recipe in recipes)
    return [
        override_recipe(replace(recipes[0], learning_rate=rate), batch_size, num_epochs)
        for rate in learning_rates or own_rates
        for batch_size in batch_sizes or (recipes[0].batch_size,)
        for num_epochs in epoch_counts or (None,)
    ]


def override_recipe(recipe: Recipe, batch_size: int, num_epochs: float | None) -> Recipe:
    """Return the recipe with another batch size or number of epochs, by default as many as its steps amount to.

    The share of the warm-up is preserved.
    """
    changed = replace(recipe, batch_size=batch_size, num_epochs=num_epochs or recipe.num_epochs)
    if recipe.num_steps is None or (num_epochs is None and batch_size == recipe.batch_size):
        return changed
    warmup_share = recipe.warmup / recipe.num_steps if recipe.warmup >= 1 else recipe.warmup
    num_steps = None if num_epochs else round(recipe.num_steps * recipe.batch_size / batch_size)
    return replace(changed, num_steps=num_steps, warmup=warmup_share)


def set_row_length(recipes: Sequence[Recipe], length: int | None, config: EncoderConfig) -> list[Recipe]:
    """Return recipes for rows of `length` tokens, by default of the model's positions, padded to one of 16 lengths.

    Raises `ExperimentError` for a length that the model cannot have.
    """
    if length is not None and not 8 <= length <= config.max_positions:
        raise ExperimentError(f"length={length} must be from 8 to the model's max_positions={config.max_positions}")
    return [replace(r, max_seq_length=length or config.max_positions, num_length_buckets=16) for r in recipes]
