"""Losses: cross-entropies, and the metrics of predictions at masked positions (BERT §3.1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Num

from encoders.objectives.base import Metrics
from encoders.objectives.masking import MaskedBatch
from encoders.text.tokenization import VocabInfo
from encoders.utils.metrics import Mean

cross_entropy = optax.softmax_cross_entropy_with_integer_labels  # [... v] logits, [...] labels -> [...] nats


def binary_cross_entropy(logits: Float[Array, "*axes"], labels: Num[Array, "*axes"]) -> Float[Array, "*axes"]:
    """Return log(1 + e^x) - xy in nats; `optax.sigmoid_binary_cross_entropy` differs in the last bit."""
    return jax.nn.softplus(logits) - logits * labels


def compute_masked_lm_metrics(
    logits: Float[Array, "b k v"], batch: MaskedBatch, vocab: VocabInfo, prefix: str = "mlm"
) -> Metrics:
    """Return loss and accuracy at the masked positions, as sums over their weights.

    `*_mask_accuracy` counts only positions that show [MASK], because a token that is shown is easy to predict.
    `*_mask_baseline` is the accuracy there of always predicting the most frequent token.
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
