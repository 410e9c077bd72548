"""Sentence-pair tasks: next-sentence prediction (BERT §3.1) and sentence-order prediction (ALBERT §3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from encoders.objectives.base import Metrics
from encoders.objectives.losses import losses
from encoders.objectives.masking import Batch
from encoders.utils.metrics import Mean


@dataclass(frozen=True)
class NextSentence:
    """Label 1: B is random, as in the released code."""

    name: ClassVar[str] = "nsp"
    label: ClassVar[str] = "next_sentence"


@dataclass(frozen=True)
class SentenceOrder:
    """Two consecutive segments, in order or swapped. Label 1: swapped, as in the released code."""

    name: ClassVar[str] = "sop"
    label: ClassVar[str] = "sentence_order"


def pair_metrics(logits: Float[Array, "b s 2"], batch: Batch, task) -> Metrics:
    """Loss and accuracy over the valid examples; the baseline is the larger of the two classes' shares."""
    labels, valid = batch[task.label], batch["valid"].astype(jnp.float32)
    count = valid.sum()
    return {
        f"{task.name}_loss": Mean((losses(logits, labels) * valid).sum(), count),
        f"{task.name}_accuracy": Mean(((logits.argmax(-1) == labels) * valid).sum(), count),
        f"{task.name}_positives": Mean((labels * valid).sum(), count),
    }
