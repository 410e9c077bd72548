"""Next-sentence prediction (BERT §3.1): does segment B follow segment A, or come from another document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from encoders.metrics import Mean
from encoders.objectives.masking import Batch
from encoders.objectives.mlm import losses
from encoders.objectives.objective import Metrics


@dataclass(frozen=True)
class NextSentence:
    """Label 1: B is random, as in the released code."""

    name: ClassVar[str] = "nsp"
    label: ClassVar[str] = "next_sentence"


def pair_metrics(logits: Float[Array, "b s 2"], batch: Batch, task) -> Metrics:
    """Loss and accuracy over the valid examples; the baseline is the larger of the two classes' shares."""
    labels, valid = batch[task.label], batch["valid"].astype(jnp.float32)
    count = valid.sum()
    return {
        f"{task.name}_loss": Mean((losses(logits, labels) * valid).sum(), count),
        f"{task.name}_accuracy": Mean(((logits.argmax(-1) == labels) * valid).sum(), count),
        f"{task.name}_positives": Mean((labels * valid).sum(), count),
    }
