"""Fine-tuning experiments: a task, a recipe, the conventions of the model's family, and a run to start from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from encoders.data.labelled import LabelledData, TaskSpec, list_row_files
from encoders.data.row_files import RowReader
from encoders.data.stream import Phase
from encoders.experiment import Experiment, RunSpec
from encoders.model.config import EncoderConfig
from encoders.run.folder import parse_run_spec, read_run_record
from encoders.text.tokenization import TokenizerSpec
from encoders.training.metric_log import Intervals
from encoders.training.optimizer import AdamW, OptimizerConfig
from encoders.utils.buckets import parse_path
from encoders.utils.serialization import ExperimentError

ALL_BATCHES = 10**9  # evaluation reads every labelled row


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of fine-tuning, for `num_epochs` over the rows or for `num_steps`.

    `warmup` is a number of steps or, below 1, their share. `max_seq_length` is the length of an example,
    `model_overrides` are changes of the model such as ("hidden_dropout", 0.0). `both_orders` trains on both orders of
    two texts in symmetric tasks. Batches are cut to one of `num_length_buckets` lengths.
    """

    learning_rate: float
    batch_size: int
    num_epochs: float = 3
    num_steps: int | None = None
    warmup: float = 0.1
    max_seq_length: int = 128
    optimizer: OptimizerConfig = AdamW(learning_rate=1.0, warmup_steps=0)
    head_dropout: float = 0.1
    model_overrides: tuple[tuple[str, float], ...] = ()
    both_orders: bool = False
    evals_per_epoch: int = 1
    early_stopping: int | None = None
    num_length_buckets: int = 8


def load_run_spec(run: str | Path) -> RunSpec:
    """Return the experiment of a trained run, or the model and objective of an imported one, from its folder."""
    return parse_run_spec(read_run_record(run))


def count_train_rows(task: TaskSpec, root: str, default: int | None = None) -> int:
    """Return the number of usable training rows in the folder `root`; bad ones stop or are skipped when training.

    A task with `sources` has those of a pass, in which a row counts as often as the weight of its file. `default` is
    returned for a TFDS data set, and for a folder that lacks a file. Raises `ExperimentError` where no row is usable.
    """
    paths = [parse_path(root).expanduser() / name for name in list_row_files(task)["train"]]
    has_files = not root.startswith("tfds:") and all(path.is_file() for path in paths)
    if default is not None and not has_files:
        return default
    reader = RowReader("skip")
    counts = Counter(example.source_index for example in task.read_examples(root, "train", reader))
    weights = [weight for _, weight in getattr(task, "sources", ())] or [1]
    num_rows = sum(counts[index] * weight for index, weight in enumerate(weights))
    if not num_rows:
        reason = f"the first one: {reader.skipped_rows[0]}" if reader.skipped_rows else "its rows make no example"
        raise ExperimentError(f"{root} lacks a usable row in the split train; {reason}")
    return max(round(num_rows), 1)


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
    """Return the experiment that fine-tunes the run in the folder `init_from` on `task`, whose rows are in `root`.

    `num_train_rows` is the number of training rows, of which the first `max_train_rows` are used. `config` and
    `tokenizer_path` are those of the run by default; give both for a run that is not trained yet or None. `objective`
    overrides the task's own. Raises `ExperimentError`.
    """
    if init_from is None and (config is None or tokenizer_path is None):
        raise ExperimentError(f"{name}: init_from=None needs both config and tokenizer_path")
    config = replace(config or load_run_spec(init_from).model, **dict(recipe.model_overrides))
    task_objective, row_format = task.build_objective_and_format(
        config.conventions, recipe.head_dropout, recipe.both_orders
    )
    num_train_rows = min(num_train_rows, max_train_rows or num_train_rows)
    if recipe.both_orders and task.symmetric:
        num_train_rows *= 2
    num_steps = recipe.num_steps or math.ceil(num_train_rows / recipe.batch_size * recipe.num_epochs)
    # Rounded up: otherwise the last step would follow an evaluation by one or two steps.
    eval_every = math.ceil(num_train_rows / recipe.batch_size / recipe.evals_per_epoch)
    warmup_steps = recipe.warmup if recipe.warmup >= 1 else recipe.warmup * num_steps
    example_length = min(recipe.max_seq_length, config.max_positions)
    # A row of several examples, as in multiple choice, has room for each of that length.
    row_length = example_length * (example_length // row_format.max_example_length(example_length))
    tokenizer = TokenizerSpec(path=tokenizer_path or f"{init_from}/tokenizer.json")
    return Experiment(
        name=name,
        model=config,
        objective=objective or task_objective,
        data=LabelledData(task, root, tokenizer, max_train_examples=max_train_rows),
        optimizer=replace(recipe.optimizer, learning_rate=recipe.learning_rate, warmup_steps=int(warmup_steps)),
        phases=(Phase(num_steps, row_length, recipe.batch_size, row_format, recipe.num_length_buckets),),
        seed=seed,
        init_from=init_from,
        intervals=Intervals(min(eval_every, 100), eval_every, eval_every, keep_checkpoints=1, eval_batches=ALL_BATCHES),
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
    """Return the experiments of every recipe and seed, named after what differs between the recipes.

    `finetuning_args` are passed to `build_finetuning`.
    """
    names = {"rate": "learning_rate", "batch": "batch_size", "epochs": "num_epochs"}
    varied = {label: f for label, f in names.items() if len({getattr(recipe, f) for recipe in recipes}) > 1}
    settings = [[f"{label}{getattr(recipe, f):g}" for label, f in varied.items()] for recipe in recipes]
    return [
        build_finetuning(
            "-".join([name, *labels, f"seed{seed}"]), task, root, recipe, num_train_rows, seed=seed, **finetuning_args
        )
        for recipe, labels in zip(recipes, settings, strict=True)
        for seed in range(num_seeds)
    ]
