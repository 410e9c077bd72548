"""What every objective is: a value that corrupts a batch, and a module whose metrics are sums over global counts."""

from __future__ import annotations

from typing import ClassVar, Protocol

import flax.linen as nn
from jaxtyping import Array

from encoders.metrics import Mean, accuracy_error, value
from encoders.model.config import Model
from encoders.objectives.masking import Batch
from encoders.text.vocab import Facts

Metrics = dict[str, Mean]


class Objective(Protocol):
    """A frozen dataclass. `needs` are the batch fields that a format must provide beyond the common ones;
    `weights` the loss terms, by the name of their metric; `copies` how many passes over the data differ (None: all);
    `body` the part of the parameters that is the encoder which other objectives begin with.
    """

    body: str
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


class Unchanged:
    """What objectives have in common that show their networks each example as it is."""

    body: ClassVar[str] = "encoder"
    copies: ClassVar[int | None] = 1

    def corrupt(self, batch: Batch, facts: Facts, seed) -> Batch:
        return batch

    def counts(self, batch: Batch) -> dict[str, Array]:
        return {}

    def scores(self, sums: Metrics) -> dict[str, float]:
        return means(sums)


def means(sums: Metrics) -> dict[str, float]:
    """Every metric as a number, and the standard error of every accuracy."""
    scores = {name: value(mean) for name, mean in sums.items() if mean.total.ndim == 0}
    errors = {f"{n}_error": accuracy_error(sums[n]) for n in scores if n.endswith("accuracy")}
    return scores | errors


def total_loss(scores: dict[str, float], weights: dict[str, float]) -> float:
    """The weighted sum of the loss terms."""
    return sum(weight * scores[name] for name, weight in weights.items())
