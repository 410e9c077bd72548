"""Fine-tuning as an experiment: a task's rows, heads as the model's family has them, a recipe, a run to begin with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from encoders.data.labelled import Labelled, Task
from encoders.data.stream import Phase
from encoders.experiment import Experiment, Network
from encoders.model.config import Model
from encoders.run.run import read_record
from encoders.tasks.conventions import Conventions, conventions
from encoders.text.tokenization import Vocabulary
from encoders.training.metric_log import Cadence
from encoders.training.optimizer import AdamW
from encoders.utils.overrides import ExperimentError, from_json

ALL = 10**9  # held-out batches: labelled rows are evaluated whole


@dataclass(frozen=True)
class Recipe:
    """How a task is learned: `epochs` over its rows, or `steps`. A warm-up below 1 is a share of the steps.

    `dropout` is that of the head, `model` changes of the model such as ("dropout", 0.0), `evaluations` how often an
    epoch is scored, `length` that of an example. Where the order of two texts means nothing, `both_orders` trains on
    both. Batches have rows of like length and up to `cuts` lengths.
    """

    rate: float
    batch: int
    epochs: float = 3
    steps: int | None = None
    warmup: float = 0.1
    length: int = 128
    optimizer: AdamW = AdamW(rate=1.0, warmup=0)
    dropout: float = 0.1
    model: tuple[tuple[str, float], ...] = ()
    both_orders: bool = False
    evaluations: int = 1
    stop_after: int | None = None
    cuts: int = 8


def network(run: str | Path) -> Network:
    """The network of a run, trained or imported, from its folder."""
    return from_json(read_record(Path(run))["experiment"])


def finetuned(
    name: str,
    task: Task,
    root: str,
    recipe: Recipe,
    rows: int,
    *,
    start: str | None,
    model: Model | None = None,
    vocabulary: str | None = None,
    seed: int = 0,
    objective=None,
    family: Conventions | None = None,
    limit: int | None = None,
) -> Experiment:
    """The experiment that fine-tunes the run `start` on the `rows` training rows of `task` in the folder `root`.

    With a `limit` on the first so many of them.

    `model` and `vocabulary` are those of `start` unless given, as they must be where it is not trained yet, or is None.
    An `objective` takes the place of the one that the task has under the conventions of the model's family, or of
    another `family`.
    """
    if start is None and (model is None or vocabulary is None):
        raise ExperimentError(f"{name}: without a run to start from, a model and a vocabulary are needed")
    model = replace(model or network(start).model, **dict(recipe.model))
    rows = min(rows, limit or rows)
    usual, form = task.parts(family or conventions(model), recipe.dropout, recipe.both_orders)
    rows *= 2 if recipe.both_orders and task.symmetric else 1
    steps = recipe.steps or math.ceil(rows / recipe.batch * recipe.epochs)
    every = math.ceil(rows / recipe.batch / recipe.evaluations)  # rounded up: else the last step comes just after one
    warmup = recipe.warmup if recipe.warmup >= 1 else recipe.warmup * steps
    length = min(recipe.length, model.positions)
    length *= length // form.longest(length)  # of a row, which has room for so many examples of that length
    return Experiment(
        name=name,
        model=model,
        objective=objective or usual,
        data=Labelled(task, root, Vocabulary(path=vocabulary or f"{start}/tokenizer.json"), limit=limit),
        optimizer=replace(recipe.optimizer, rate=recipe.rate, warmup=int(warmup)),
        phases=(Phase(steps, length, recipe.batch, form, recipe.cuts),),
        seed=seed,
        start=start,
        cadence=Cadence(log=min(every, 100), evaluate=every, save=every, keep=1, heldout=ALL),
        stop_after=recipe.stop_after,
    )


def grid(
    name: str, task: Task, root: str, recipes: Sequence[Recipe], rows: int, *, seeds: int = 1, **given
) -> list[Experiment]:
    """Every recipe with `seeds` seeds, named after what differs between the recipes; `given` is for `finetuned`."""
    told = {field: {getattr(recipe, field) for recipe in recipes} for field in ("rate", "batch", "epochs")}
    parts = [[f"{f}{getattr(recipe, f):g}" for f, values in told.items() if len(values) > 1] for recipe in recipes]
    return [
        finetuned("-".join([name, *part, f"seed{seed}"]), task, root, recipe, rows, seed=seed, **given)
        for recipe, part in zip(recipes, parts, strict=True)
        for seed in range(seeds)
    ]
