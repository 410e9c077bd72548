"""Fine-tuning as an experiment: a task's rows, heads as the model's family has them, a recipe, a run to begin with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from encoders.data.labelled import LabelledData, TaskSpec
from encoders.data.stream import Phase
from encoders.experiment import Experiment, RunSpec
from encoders.model.config import EncoderConfig
from encoders.run.folder import parse_run_spec, read_run_record
from encoders.text.tokenization import TokenizerSpec
from encoders.training.metric_log import Intervals
from encoders.training.optimizer import AdamW
from encoders.utils.serialization import ExperimentError

ALL_BATCHES = 10**9  # held-out batches: labelled rows are evaluated whole


@dataclass(frozen=True)
class Recipe:
    """How a task is learned: `epochs` over its rows, or `steps`. A warm-up below 1 is a share of the steps.

    `dropout` is that of the head, `model` changes of the model such as ("dropout", 0.0), `evaluations` how often an
    epoch is scored, `length` that of an example. Where the order of two texts means nothing, `both_orders` trains on
    both. Batches have rows of like length and up to `cuts` lengths.
    """

    learning_rate: float
    batch_size: int
    num_epochs: float = 3
    num_steps: int | None = None
    warmup: float = 0.1
    max_seq_length: int = 128
    optimizer: AdamW = AdamW(learning_rate=1.0, warmup_steps=0)
    head_dropout: float = 0.1
    model_overrides: tuple[tuple[str, float], ...] = ()
    both_orders: bool = False
    evals_per_epoch: int = 1
    early_stopping: int | None = None
    num_length_buckets: int = 8


def load_run_spec(run: str | Path) -> RunSpec:
    """The network of a run, trained or imported, from its folder."""
    return parse_run_spec(read_run_record(Path(run)))


def build_finetuning(
    name: str,
    task: TaskSpec,
    root: str,
    recipe: Recipe,
    num_train_rows: int,
    *,
    init_from: str | None,
    config: EncoderConfig | None = None,
    tokenizer_path: str | None = None,
    seed: int = 0,
    objective=None,
    max_train_rows: int | None = None,
) -> Experiment:
    """The experiment that fine-tunes the run `start` on the `rows` training rows of `task` in the folder `root`.

    With a `limit` on the first so many of them.

    `model` and `vocabulary` are those of `start` unless given, as they must be where it is not trained yet, or is None.
    An `objective` takes the place of the one that the task has under the conventions of the model's family, or of
    another `family`.
    """
    if init_from is None and (config is None or tokenizer_path is None):
        raise ExperimentError(f"{name}: without a run to start from, a model and a vocabulary are needed")
    config = replace(config or load_run_spec(init_from).model, **dict(recipe.model_overrides))
    num_train_rows = min(num_train_rows, max_train_rows or num_train_rows)
    usual, form = task.build_objective_and_format(config.conventions, recipe.head_dropout, recipe.both_orders)
    num_train_rows *= 2 if recipe.both_orders and task.symmetric else 1
    steps = recipe.num_steps or math.ceil(num_train_rows / recipe.batch_size * recipe.num_epochs)
    every = math.ceil(
        num_train_rows / recipe.batch_size / recipe.evals_per_epoch
    )  # rounded up: else the last step comes just after one
    warmup = recipe.warmup if recipe.warmup >= 1 else recipe.warmup * steps
    length = min(recipe.max_seq_length, config.max_positions)
    length *= length // form.max_example_length(length)  # of a row, which has room for so many examples of that length
    return Experiment(
        name=name,
        model=config,
        objective=objective or usual,
        data=LabelledData(
            task,
            root,
            TokenizerSpec(path=tokenizer_path or f"{init_from}/tokenizer.json"),
            max_train_examples=max_train_rows,
        ),
        optimizer=replace(recipe.optimizer, learning_rate=recipe.learning_rate, warmup_steps=int(warmup)),
        phases=(Phase(steps, length, recipe.batch_size, form, recipe.num_length_buckets),),
        seed=seed,
        init_from=init_from,
        intervals=Intervals(
            log_every=min(every, 100), eval_every=every, save_every=every, keep_checkpoints=1, eval_batches=ALL_BATCHES
        ),
        early_stopping=recipe.early_stopping,
    )


def build_finetuning_grid(
    name: str,
    task: TaskSpec,
    root: str,
    recipes: Sequence[Recipe],
    num_train_rows: int,
    *,
    num_seeds: int = 1,
    **finetuning_args,
) -> list[Experiment]:
    """Every recipe with `seeds` seeds, named after what differs between the recipes; `given` is for `finetuned`."""
    labels = {"rate": "learning_rate", "batch": "batch_size", "epochs": "num_epochs"}
    varied = {label: f for label, f in labels.items() if len({getattr(recipe, f) for recipe in recipes}) > 1}
    parts = [[f"{label}{getattr(recipe, f):g}" for label, f in varied.items()] for recipe in recipes]
    return [
        build_finetuning(
            "-".join([name, *part, f"seed{seed}"]), task, root, recipe, num_train_rows, seed=seed, **finetuning_args
        )
        for recipe, part in zip(recipes, parts, strict=True)
        for seed in range(num_seeds)
    ]
