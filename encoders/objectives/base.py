"""What every objective is: a value that corrupts a batch, and a module whose metrics are sums over global counts."""

from __future__ import annotations

import math
from typing import ClassVar, Protocol

import flax.linen as nn
import numpy as np
from jaxtyping import Array

from encoders.data.store import Split
from encoders.model.config import Model
from encoders.model.flops import forward_flops
from encoders.objectives.masking import Batch
from encoders.text.tokenization import Facts
from encoders.utils.metrics import Mean, accuracy_error, value

Metrics = dict[str, Mean]


class Objective(Protocol):
    """A frozen dataclass. `needs` are the batch fields that a format must provide beyond the common ones;
    `weights` the loss terms, by the name of their metric; `copies` how many passes over the data differ (None: all);
    `body` the part of the parameters that is the encoder which other objectives begin with; `frozen` the parts that
    stay as they began; `answers` what its heads stand for, the classes of a classifier, if that is not always the same;
    `goal` the score by which a checkpoint is the best, which is the lowest for "loss" and else the highest.
    """

    body: str
    frozen: tuple[str, ...]
    answers: tuple[str, ...]
    goal: str
    needs: frozenset[str]
    weights: dict[str, float]
    copies: int | None

    def module(self, model: Model, facts: Facts) -> nn.Module:
        """The networks; `__call__(batch, train)` gives metrics, each loss term of `weights` among them."""

    def corrupt(self, batch: Batch, facts: Facts, seed) -> Batch:
        """What the networks are shown and have to predict: pure, and done once for all micro-steps."""

    def counts(self, batch: Batch) -> dict[str, Array]:
        """The number of elements of each loss term in a corrupted batch."""

    def scores(self, sums: Metrics) -> dict[str, float]:
        """Final scores from summed metrics, baselines and standard errors (`*_error`) included."""


class Objectives:
    """What most objectives have in common."""

    body: ClassVar[str] = "encoder"
    frozen: ClassVar[tuple[str, ...]] = ()
    answers: ClassVar[tuple[str, ...]] = ()
    goal: ClassVar[str] = "loss"

    def check(self, model: Model) -> None:
        """Raises `ValueError` for a model that cannot learn this."""

    def begun(self, before: Objectives, found: dict) -> dict:
        """The parts of parameters found under the objective `before` that mean the same here, by their names here."""
        # Under another body, or for other classes, heads of the same name need not mean the same.
        if before.body != self.body or (before.answers and before.answers != self.answers):
            return {self.body: found[before.body]} | {name: found[name] for name in found if name == "pooler"}
        return found

    def networks(self, model: Model) -> list[Model]:
        """The encoders that a step trains."""
        return [model]

    def flops(self, model: Model, sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Matrix-product FLOPs of the forward pass for examples of `sizes` tokens, by the part that does them.

        Small heads, to a few numbers, count nothing.
        """
        return {self.body: forward_flops(model, sizes)}

    def cost(self, scores: dict[str, float]) -> float:
        """What is lowest at the best checkpoint."""
        return scores["loss"] if self.goal == "loss" else -scores[self.goal]

    def ailments(self, scores: dict[str, float]) -> list[str]:
        """What is amiss with the scores of a run that is no longer young, each with what to change."""
        return []


class Unchanged(Objectives):
    """What objectives have in common that show their networks each example as it is."""

    copies: ClassVar[int | None] = 1

    def corrupt(self, batch: Batch, facts: Facts, seed) -> Batch:
        return batch

    def counts(self, batch: Batch) -> dict[str, Array]:
        return {}

    def scores(self, sums: Metrics) -> dict[str, float]:
        return means(sums)


class Task(Unchanged):
    """What objectives on labelled rows have in common: `score` of what their networks said of every row."""

    def score(self, said: dict[str, np.ndarray], rows: np.ndarray, split: Split) -> dict[str, float]:
        """Scores of `said`, by name `[rows, examples, ...]`, on the rows of an example table, `[rows, examples, 5]`."""
        raise NotImplementedError


class TaskModule(nn.Module):
    """Networks for labelled rows: loss and scores when trained, what they say when evaluated or used.

    A subclass has `logits(batch, train)`, `metrics(logits, batch)` and `said(logits, batch)`.
    """

    def __call__(self, batch: Batch, train: bool = False) -> Metrics:
        return self.metrics(self.logits(batch, train), batch)

    def outputs(self, batch: Batch) -> dict[str, Array]:
        """What is said of each example, `[b s ...]`; labels are not needed."""
        return self.said(self.logits(batch), batch)

    def evaluate(self, batch: Batch) -> tuple[Metrics, dict[str, Array]]:
        logits = self.logits(batch)
        return self.metrics(logits, batch), self.said(logits, batch)


def means(sums: Metrics) -> dict[str, float]:
    """Every metric as a number, and the standard error of every accuracy; none at [MASK] where there was no [MASK]."""
    unseen = {name for name, mean in sums.items() if "_mask_" in name and not mean.count}
    scores = {name: value(mean) for name, mean in sums.items() if mean.total.ndim == 0 and name not in unseen}
    errors = {f"{n}_error": accuracy_error(sums[n]) for n in scores if n.endswith("accuracy")}
    return scores | errors


def perplexity(loss: float) -> float:
    """e to the loss, a number still where that is beyond all bounds."""
    return math.exp(min(loss, 700.0))


def total_loss(scores: dict[str, float], weights: dict[str, float]) -> float:
    """The weighted sum of the loss terms."""
    return sum(weight * scores[name] for name, weight in weights.items())
