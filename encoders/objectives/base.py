"""What every objective is: a value that corrupts a batch, and a module whose metrics are sums over global counts."""

from __future__ import annotations

import math
from typing import ClassVar, Protocol

import flax.linen as nn
import numpy as np
from jaxtyping import Array

from encoders.data.batch import Batch
from encoders.data.store import Split
from encoders.model.config import EncoderConfig
from encoders.model.flops import forward_flops
from encoders.text.tokenization import VocabInfo
from encoders.utils.metrics import Mean, binomial_standard_error, mean_value

Metrics = dict[str, Mean]


class Objective(Protocol):
    """A frozen dataclass. `needs` are the batch fields that a format must provide beyond the common ones;
    `weights` the loss terms, by the name of their metric; `copies` how many passes over the data differ (None: all);
    `body` the part of the parameters that is the encoder which other objectives begin with; `frozen` the parts that
    stay as they began; `answers` what its heads stand for, the classes of a classifier, if that is not always the same;
    `goal` the score by which a checkpoint is the best, which is the lowest for "loss" and else the highest.
    """

    encoder_name: str
    frozen_params: tuple[str, ...]
    label_names: tuple[str, ...]
    best_metric: str
    required_fields: frozenset[str]
    loss_weights: dict[str, float]
    num_distinct_passes: int | None

    def module(self, config: EncoderConfig, vocab: VocabInfo) -> nn.Module:
        """The networks; `__call__(batch, train)` gives metrics, each loss term of `weights` among them."""

    def corrupt(self, batch: Batch, vocab: VocabInfo, seed) -> Batch:
        """What the networks are shown and have to predict: pure, and done once for all micro-steps."""

    def counts(self, batch: Batch) -> dict[str, Array]:
        """The number of elements of each loss term in a corrupted batch."""

    def scores(self, sums: Metrics) -> dict[str, float]:
        """Final scores from summed metrics, baselines and standard errors (`*_error`) included."""


class BaseObjective:
    """What most objectives have in common."""

    encoder_name: ClassVar[str] = "encoder"
    frozen_params: ClassVar[tuple[str, ...]] = ()
    label_names: ClassVar[tuple[str, ...]] = ()
    best_metric: ClassVar[str] = "loss"

    def check(self, config: EncoderConfig) -> None:
        """Raises `ValueError` for a model that cannot learn this."""

    def transfer_params(self, source_objective: BaseObjective, source_params: dict) -> dict:
        """The parts of parameters found under the objective `before` that mean the same here, by their names here."""
        # Under another body, or for other classes, heads of the same name need not mean the same.
        if source_objective.encoder_name != self.encoder_name or (
            source_objective.label_names and source_objective.label_names != self.label_names
        ):
            return {self.encoder_name: source_params[source_objective.encoder_name]} | {
                name: source_params[name] for name in source_params if name == "pooler"
            }
        return source_params

    def trained_configs(self, config: EncoderConfig) -> list[EncoderConfig]:
        """The encoders that a step trains."""
        return [config]

    def forward_flops_by_part(self, config: EncoderConfig, sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Matrix-product FLOPs of the forward pass for examples of `sizes` tokens, by the part that does them.

        Small heads, to a few numbers, count nothing.
        """
        return {self.encoder_name: forward_flops(config, sizes)}

    def checkpoint_cost(self, scores: dict[str, float]) -> float:
        """What is lowest at the best checkpoint."""
        return scores["loss"] if self.best_metric == "loss" else -scores[self.best_metric]

    def diagnose(self, scores: dict[str, float]) -> list[str]:
        """What is amiss with the scores of a run that is no longer young, each with what to change."""
        return []


class UncorruptedObjective(BaseObjective):
    """What objectives have in common that show their networks each example as it is."""

    num_distinct_passes: ClassVar[int | None] = 1

    def corrupt(self, batch: Batch, vocab: VocabInfo, seed) -> Batch:
        return batch

    def counts(self, batch: Batch) -> dict[str, Array]:
        return {}

    def scores(self, sums: Metrics) -> dict[str, float]:
        return compute_mean_scores(sums)


class SupervisedObjective(UncorruptedObjective):
    """What objectives on labelled rows have in common: `score` of what their networks said of every row."""

    def score_outputs(self, outputs: dict[str, np.ndarray], rows: np.ndarray, split: Split) -> dict[str, float]:
        """Scores of `said`, by name `[rows, examples, ...]`, on the rows of an example table, `[rows, examples, 5]`."""
        raise NotImplementedError


class TaskModule(nn.Module):
    """Networks for labelled rows: loss and scores when trained, what they say when evaluated or used.

    A subclass has `compute_logits(batch, train)`, `compute_metrics(logits, batch)` and
    `compute_outputs(logits, batch)`.
    """

    def __call__(self, batch: Batch, train: bool = False) -> Metrics:
        return self.compute_metrics(self.compute_logits(batch, train), batch)

    def predict_outputs(self, batch: Batch) -> dict[str, Array]:
        """What is said of each example, `[b s ...]`; labels are not needed."""
        return self.compute_outputs(self.compute_logits(batch), batch)

    def evaluate_batch(self, batch: Batch) -> tuple[Metrics, dict[str, Array]]:
        logits = self.compute_logits(batch)
        return self.compute_metrics(logits, batch), self.compute_outputs(logits, batch)


def compute_mean_scores(sums: Metrics) -> dict[str, float]:
    """Every metric as a number, and the standard error of every accuracy; none at [MASK] where there was no [MASK]."""
    unseen = {name for name, mean in sums.items() if "_mask_" in name and not mean.count}
    scores = {name: mean_value(mean) for name, mean in sums.items() if mean.total.ndim == 0 and name not in unseen}
    errors = {f"{n}_error": binomial_standard_error(sums[n]) for n in scores if n.endswith("accuracy")}
    return scores | errors


def perplexity(loss: float) -> float:
    """e to the loss, a number still where that is beyond all bounds."""
    return math.exp(min(loss, 700.0))


def total_loss(scores: dict[str, float], loss_weights: dict[str, float]) -> float:
    """The weighted sum of the loss terms."""
    return sum(weight * scores[name] for name, weight in loss_weights.items())
