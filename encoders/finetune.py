"""Fine-tuning as an experiment: a task's rows, a head of the model's family, a recipe, and the run to begin with."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from encoders.data.labelled import Labelled
from encoders.data.stream import Phase
from encoders.downstream.classification import Classification
from encoders.downstream.texts import TextRows, Texts
from encoders.experiment import Experiment, Network
from encoders.families.electra import ElectraEmbeddings
from encoders.model.config import Model
from encoders.text.vocab import Vocabulary
from encoders.training.log import Cadence
from encoders.training.optimizer import AdamW
from encoders.training.run import read_record
from encoders.values import from_json

ALL = 10**9  # held-out batches: labelled rows are evaluated whole


@dataclass(frozen=True)
class Conventions:
    """What a family's fine-tuning has of its own: its classification head, and the separators between two texts."""

    head: str = "pooled"
    between: int = 1


def conventions(model: Model) -> Conventions:
    """Those of the family whose parts and positions `model` has: ELECTRA's embeddings, RoBERTa's offset positions.

    BERT's and ALBERT's are the same. ELECTRA's head is Google's, one layer on the raw [CLS].
    """
    if model.embed is ElectraEmbeddings:
        return Conventions(head="linear")
    return Conventions(head="tanh", between=2) if model.position_offset else Conventions()


@dataclass(frozen=True)
class Recipe:
    """How a task is learned. A warm-up below 1 is a share of the steps; `model` are changes such as another dropout.

    A number of `steps` takes the place of `epochs`. `evaluations` is how often an epoch is scored.
    """

    rate: float
    batch: int
    epochs: float = 3
    steps: int | None = None
    warmup: float = 0.1
    length: int = 128
    optimizer: AdamW = AdamW(rate=1.0, warmup=0)
    dropout: float = 0.1  # of the head
    model: tuple[tuple[str, float], ...] = ()
    symmetric: bool = False
    evaluations: int = 1
    stop_after: int | None = None
    cuts: int = 8  # lengths that batches are cut to


def network(run: str | Path) -> Network:
    """The network of a run, trained or imported, from its folder."""
    return from_json(read_record(Path(run))["experiment"])


def finetuned(
    name: str,
    task: Texts,
    root: str,
    recipe: Recipe,
    rows: int,
    *,
    start: str | None,
    model: Model | None = None,
    vocabulary: str | None = None,
    seed: int = 0,
) -> Experiment:
    """The experiment that fine-tunes the run `start` on the `rows` training rows of `task` in the folder `root`.

    `model` and `vocabulary` are those of `start` unless given, as they must be where it is not trained yet, or is None.
    """
    model = replace(model or network(start).model, **dict(recipe.model))
    family = conventions(model)
    steps = recipe.steps or math.ceil(rows * (1 + recipe.symmetric) / recipe.batch * recipe.epochs)
    epoch = steps if recipe.steps else math.ceil(steps / recipe.epochs)
    every = max(epoch // recipe.evaluations, 1)
    warmup = recipe.warmup if recipe.warmup >= 1 else recipe.warmup * steps
    return Experiment(
        name=name,
        model=model,
        objective=Classification(task.labels or ("number",), family.head, recipe.dropout, task.scores),
        data=Labelled(task, root, Vocabulary(path=vocabulary or f"{start}/tokenizer.json")),
        optimizer=replace(recipe.optimizer, rate=recipe.rate, warmup=int(warmup)),
        phases=(Phase(steps, recipe.length, recipe.batch, TextRows(recipe.symmetric, family.between), recipe.cuts),),
        seed=seed,
        start=start,
        cadence=Cadence(log=max(min(every, 100), 1), evaluate=every, save=every, keep=1, heldout=ALL),
        stop_after=recipe.stop_after,
    )
