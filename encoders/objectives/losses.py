"""Masked language modelling: the loss and the scores of predictions at chosen positions (BERT §3.1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from encoders.objectives.base import Metrics
from encoders.objectives.masking import MaskedBatch
from encoders.text.tokenization import VocabInfo
from encoders.utils.metrics import Mean


def cross_entropy(logits: Float[Array, "... v"], labels: Int[Array, "..."]) -> Float[Array, "..."]:
    """Cross-entropy in nats."""
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]


def compute_masked_lm_metrics(
    logits: Float[Array, "b k v"], batch: MaskedBatch, vocab: VocabInfo, prefix: str = "mlm"
) -> Metrics:
    """Loss and accuracy at the chosen positions.

    `*_mask_accuracy` counts only those that show [MASK] (the share that keeps its token flatters the whole);
    `*_mask_baseline` is what always answering the most frequent token would reach there.
    """
    targets, weights = batch.masked_labels, batch.masked_weights
    shown = jnp.take_along_axis(batch.input_ids, batch.masked_positions, axis=1)
    masked = weights * (shown == vocab.mask_id)
    right = logits.argmax(-1) == targets
    count, hidden = weights.sum(), masked.sum()
    return {
        f"{prefix}_loss": Mean((cross_entropy(logits, targets) * weights).sum(), count),
        f"{prefix}_accuracy": Mean((right * weights).sum(), count),
        f"{prefix}_mask_accuracy": Mean((right * masked).sum(), hidden),
        f"{prefix}_mask_baseline": Mean(((targets == vocab.most_frequent_id) * masked).sum(), hidden),
    }
