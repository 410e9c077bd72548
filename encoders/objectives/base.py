"""Base classes of objectives: a value that corrupts a batch, and a module whose metrics are sums over counts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import flax.linen as nn
import numpy as np
from jaxtyping import Array

from encoders.data.batch import Batch
from encoders.data.formats import Format
from encoders.data.store import Split
from encoders.model.config import EncoderConfig
from encoders.text.tokenization import VocabInfo
from encoders.utils.errors import UserError
from encoders.utils.metrics import Mean, binomial_standard_error, mean_value

Metrics = dict[str, Mean]
Scores = dict[str, Any]  # numbers, and dictionaries of scores where there are several, such as of each class


class Objective:
    """Base class of objectives, frozen dataclasses, which set `loss_weights` and implement at least `module`.

    `predict` and `Predictor` need these attributes of the module, which name its parameters, and these methods:

    - embed, tokens, similarity: an `Encoder` named `encoder`, or `discriminator` beside a generator; `--pool pooled`
      also a `Pooler` named `pooler`;
    - fill: a part named `tokens`, and `compute_token_logits(batch)`, which returns vocabulary logits `[b k v]` at
      `batch.masked_positions`;
    - replaced: a part named `replaced`, and `compute_replaced_logits(batch)`, which returns a logit for each token,
      `[b l]`;
    - classify: the objective is a `Classification`, and `predict_outputs(batch)["logits"]` is `[b s c]`;
    - answer: the objective is a `QAObjective`, and `predict_outputs(batch)` is what its `decode_predictions` reads.
    """

    loss_weights: ClassVar[dict[str, float]]  # of each loss term, by the name of its metric
    required_fields: ClassVar[frozenset[str]] = frozenset()  # labels that the format must provide
    best_metric: ClassVar[str] = "loss"  # selects the best checkpoint: the lowest "loss", the highest of any other
    num_distinct_passes: ClassVar[int | None] = None  # passes over the data that differ, None if all do
    frozen_params: ClassVar[tuple[str, ...]] = ()  # top-level parameters that no update changes
    compares_rows: ClassVar[bool] = False  # the loss of a row depends on the others of its batch

    def module(self, config: EncoderConfig, vocab: VocabInfo) -> ObjectiveModule:
        """Return the networks. Raises `ValueError` for an encoder that cannot learn this objective."""
        raise NotImplementedError

    def replace_mask_rate(self, mask_rate: float | None) -> Objective:
        """Return the objective with a phase's mask rate, None for its own. Raises `UserError` where it has none."""
        if mask_rate is None:
            return self
        if getattr(self, "masking", None) is None:
            needed = "an objective that masks tokens"
            raise UserError(f"phases.mask_rate={mask_rate} needs {needed}; objective={type(self).__name__} masks none")
        return replace(self, masking=replace(self.masking, mask_rate=mask_rate))

    def find_format_problem(self, row_format: Format, config: EncoderConfig) -> str | None:
        """Return why an encoder cannot learn from rows of a format, if it cannot."""
        provided = set(row_format.label_fields)
        if not (missing := sorted(self.required_fields - provided)):
            return None
        provision = f"the format {type(row_format).__name__} provides {', '.join(sorted(provided)) or 'no label'}"
        return f"the objective needs {', '.join(missing)}, and {provision}"

    def corrupt(self, batch: Batch, vocab: VocabInfo, seed) -> Batch:
        """Return what the networks read and predict: a pure function of its arguments, called once an update."""
        return batch

    def scores(self, sums: Metrics) -> dict[str, float]:
        """Return the scores of summed metrics, with baselines and standard errors (`*_error`).

        By default: the mean of each scalar metric and the error of each accuracy, without `*_mask_*` of no [MASK].
        """
        unseen = {name for name, mean in sums.items() if "_mask_" in name and not mean.count}
        scores = {name: mean_value(mean) for name, mean in sums.items() if mean.total.ndim == 0 and name not in unseen}
        errors = {f"{n}_error": binomial_standard_error(sums[n]) for n in scores if n.endswith("accuracy")}
        return scores | errors


class SupervisedObjective(Objective):
    """Base class of objectives on labelled rows, computed by `module_class`; `label_names` are its classes, if any."""

    module_class: ClassVar[type[TaskModule]]
    num_distinct_passes: ClassVar[int | None] = 1
    label_names: ClassVar[tuple[str, ...]] = ()

    def module(self, config: EncoderConfig, vocab: VocabInfo) -> TaskModule:
        return self.module_class(config, self, vocab)

    def score_outputs(self, outputs: dict[str, np.ndarray], rows: np.ndarray, split: Split) -> Scores:
        """Return the scores of `outputs`, by name `[n s ...]`, on n rows of the example table of a split."""
        raise NotImplementedError


class ObjectiveModule(nn.Module):
    """Base class of an objective's networks.

    `__call__(batch, train)` returns metrics with every loss term among them. The count of a loss term is its number of
    elements, which depends on the batch alone.
    """

    config: EncoderConfig
    objective: Objective
    vocab: VocabInfo


class TaskModule(ObjectiveModule):
    """Base class of networks for labelled rows, which also return outputs for evaluation and prediction.

    A subclass has `compute_logits(batch, train)`, `compute_metrics(logits, batch)`, `compute_outputs(logits, batch)`.
    """

    config: EncoderConfig
    objective: SupervisedObjective
    vocab: VocabInfo

    def __call__(self, batch: Batch, train: bool = False) -> Metrics:
        return self.compute_metrics(self.compute_logits(batch, train), batch)

    def predict_outputs(self, batch: Batch) -> dict[str, Array]:
        """Return the outputs of each example, `[b s ...]`, without reading labels."""
        return self.compute_outputs(self.compute_logits(batch), batch)

    def evaluate_batch(self, batch: Batch) -> tuple[Metrics, dict[str, Array]]:
        logits = self.compute_logits(batch)
        return self.compute_metrics(logits, batch), self.compute_outputs(logits, batch)


def select_numbers(scores: Scores) -> dict[str, float]:
    """Return the scores that are one number, without standard errors and baselines."""
    names = [name for name, score in scores.items() if not isinstance(score, dict)]
    return {name: scores[name] for name in names if not name.endswith(("_error", "_baseline"))}


def perplexity(loss: float) -> float:
    """Return e to the loss, finite for any loss."""
    return math.exp(min(loss, 700.0))


def total_loss(scores: dict[str, float], loss_weights: dict[str, float]) -> float:
    """Return the weighted sum of the loss terms."""
    return sum(weight * scores[name] for name, weight in loss_weights.items())
