"""Sentence-pair tasks: next-sentence prediction (BERT §3.1) and sentence-order prediction (ALBERT §3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from encoders.data.batch import Batch
from encoders.objectives.base import Metrics
from encoders.objectives.losses import cross_entropy
from encoders.utils.metrics import Mean


@dataclass(frozen=True)
class NextSentencePrediction:
    """Next-sentence prediction; label 1 if the second text is random, as in the released code."""

    metric_prefix: ClassVar[str] = "nsp"
    label_field: ClassVar[str] = "next_sentence"


@dataclass(frozen=True)
class SentenceOrderPrediction:
    """Sentence-order prediction for two consecutive segments; label 1 if swapped, as in the released code."""

    metric_prefix: ClassVar[str] = "sop"
    label_field: ClassVar[str] = "sentence_order"


def compute_sentence_pair_metrics(logits: Float[Array, "b s 2"], batch: Batch, sentence_task) -> Metrics:
    """Return loss, accuracy and number of positive labels, summed over the examples of a batch."""
    labels, valid = batch.labels[sentence_task.label_field], batch.example_mask.astype(jnp.float32)
    count = valid.sum()
    return {
        f"{sentence_task.metric_prefix}_loss": Mean((cross_entropy(logits, labels) * valid).sum(), count),
        f"{sentence_task.metric_prefix}_accuracy": Mean(((logits.argmax(-1) == labels) * valid).sum(), count),
        f"{sentence_task.metric_prefix}_positives": Mean((labels * valid).sum(), count),
    }
