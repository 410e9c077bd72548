"""How the papers fine-tune: for each family the recipes of GLUE, SQuAD and RACE.

- bert: GLUE 3 epochs, 32 rows, rates 5e-5, 4e-5, 3e-5, 2e-5 (Devlin et al., 2019, §4.1); SQuAD 5e-5, 32 rows, 3 epochs,
  2.0: 3e-5, 24 rows, 2 epochs (README of the released code), rows of 384. The released code has no bias correction;
  `--set optimizer.bias_correction=true` does without the failed runs that this is known for. It has no RACE: SWAG's
  2e-5, 16 rows, 3 epochs (§4.4).
- roberta: GLUE per task (fairseq, examples/roberta/config/finetuning), weight decay 0.1 on everything; SQuAD 1.5e-5,
  48 rows, 2 epochs, warm-up 6 %, decay 0.01; RACE 1e-5, 16 rows, 4 epochs, decay 0.1 (table 10).
- albert: per task (Lan et al., 2020, table 14); the dropout is ALBERT's own, in the hidden states alone.
- electra: GLUE 3 epochs, 10 of RTE and STS-B, 32 rows, layer-wise decay (Clark et al., 2020, table 7), with the
  released code's weight decay 0.01 (0 in the paper), its decay of the top layer twice, and MRPC and STS-B in both
  orders; SQuAD 32 rows, 2 epochs, rows of 512; no RACE: as GLUE.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from encoders.finetuning.grids import Recipe
from encoders.model.config import EncoderConfig
from encoders.training.optimizer import AdamW
from encoders.utils.serialization import ExperimentError

RECIPE_FAMILIES = ("bert", "roberta", "albert", "electra")
# Updates, warm-up, rate, batch.
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
# Rate, batch, ALBERT's dropout, updates, warm-up, length.
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
ELECTRA_BY_HIDDEN_SIZE = {256: (3e-4, 0.8), 768: (1e-4, 0.8), 1024: (5e-5, 0.9)}  # by width: rate, layer-wise decay


def bert_recipes(task: str, config: EncoderConfig) -> list[Recipe]:
    known = {
        "SQuAD1.1": Recipe(5e-5, 32, 3, max_seq_length=384),
        "SQuAD2.0": Recipe(3e-5, 24, 2, max_seq_length=384),
        "RACE": Recipe(2e-5, 16, 3, max_seq_length=512),
    }
    return [known[task]] if task in known else [Recipe(rate, 32) for rate in (5e-5, 4e-5, 3e-5, 2e-5)]


def roberta_recipes(task: str, config: EncoderConfig) -> list[Recipe]:
    adam, heavy = AdamW(1.0, 0, **FAIRSEQ_ADAM), AdamW(1.0, 0, weight_decay=0.1, **FAIRSEQ_ADAM)
    if task.startswith("SQuAD"):
        return [Recipe(1.5e-5, 48, 2, warmup=0.06, max_seq_length=512, optimizer=adam)]
    if task == "RACE":
        return [Recipe(1e-5, 16, 4, warmup=0.06, max_seq_length=512, optimizer=heavy)]
    steps, warmup, rate, batch = FAIRSEQ_GLUE.get(task, FAIRSEQ_GLUE["RTE"])  # of WNLI there is no file
    return [Recipe(rate, batch, num_steps=steps, warmup=warmup, max_seq_length=512, optimizer=heavy)]


def albert_recipes(task: str, config: EncoderConfig) -> list[Recipe]:
    rate, batch, dropout, steps, warmup, length = ALBERT_TABLE_14[task]
    changes = (("hidden_dropout", dropout), ("attention_dropout", 0.0))
    return [Recipe(rate, batch, num_steps=steps, warmup=warmup, max_seq_length=length, model_overrides=changes)]


def electra_recipes(task: str, config: EncoderConfig) -> list[Recipe]:
    rate, decay = ELECTRA_BY_HIDDEN_SIZE.get(config.hidden_size, ELECTRA_BY_HIDDEN_SIZE[768])
    adam = AdamW(1.0, 0, schedule="product", layer_lr_decay=decay, decay_top_layer_twice=True)
    if task.startswith("SQuAD"):
        return [Recipe(rate, 32, 2, max_seq_length=512, optimizer=adam)]
    length = 512 if task == "RACE" else 128
    epochs = 10 if task in ("RTE", "STS-B") else 3
    return [Recipe(rate, 32, num_epochs=epochs, max_seq_length=length, optimizer=adam, both_orders=True)]


RECIPE_BUILDERS = dict(
    zip(RECIPE_FAMILIES, (bert_recipes, roberta_recipes, albert_recipes, electra_recipes), strict=True)
)


def family_recipes(
    family: str,
    task: str,
    config: EncoderConfig,
    learning_rates: Sequence[float] = (),
    batch_sizes: Sequence[int] = (),
    epoch_counts: Sequence[float] = (),
) -> list[Recipe]:
    """The recipes of `family` for `task`: GLUE's names, SQuAD1.1, SQuAD2.0 and RACE; or its first one with each of the
    `rates`, `batches` and `epochs` that are given, in the place of its own.

    Raises `ExperimentError` where the paper has none.
    """
    try:
        found = RECIPE_BUILDERS[family](task, config)
    except KeyError:
        raise ExperimentError(
            f"there is no recipe of {family} for {task}; there are {', '.join(ALBERT_TABLE_14)}"
        ) from None
    own = dict.fromkeys(each.learning_rate for each in found)
    every = itertools.product(learning_rates or own, batch_sizes or (None,), epoch_counts or (None,))
    return [override_recipe(replace(found[0], learning_rate=rate), batch, count) for rate, batch, count in every]


def override_recipe(recipe: Recipe, batch_size: int | None, num_epochs: float | None) -> Recipe:
    """The recipe with other batches, of as many passes, or for other passes; its warm-up stays the share it was."""
    given = replace(recipe, batch_size=batch_size or recipe.batch_size, num_epochs=num_epochs or recipe.num_epochs)
    if recipe.num_steps is None or (num_epochs is None and given.batch_size == recipe.batch_size):
        return given
    share = recipe.warmup / recipe.num_steps if recipe.warmup >= 1 else recipe.warmup
    steps = None if num_epochs else round(recipe.num_steps * recipe.batch_size / given.batch_size)
    return replace(given, num_steps=steps, warmup=share)
