"""Losses: cross-entropies, and the metrics of predicted classes and of predictions at masked positions (BERT §3.1)."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Num

from encoders.objectives.base import Metrics
from encoders.objectives.masking import MaskedBatch
from encoders.text.tokenization import VocabInfo
from encoders.utils.metrics import Mean

cross_entropy = optax.softmax_cross_entropy_with_integer_labels  # [... v] logits, [...] labels -> [...] nats


def binary_cross_entropy(logits: Float[Array, "*axes"], labels: Num[Array, "*axes"]) -> Float[Array, "*axes"]:
    """Return log(1 + e^x) - xy in nats; `optax.sigmoid_binary_cross_entropy` differs in the last bit."""
    return jax.nn.softplus(logits) - logits * labels


def compute_class_metrics(
    logits: Float[Array, "*axes c"], labels: Int[Array, "*axes"], weights: Float[Array, "*axes"], prefix: str
) -> Metrics:
    """Return cross-entropy and accuracy as sums over the weights, which are 0 or 1."""
    count = weights.sum()
    return {
        f"{prefix}_loss": Mean((cross_entropy(logits, labels) * weights).sum(), count),
        f"{prefix}_accuracy": Mean(((logits.argmax(-1) == labels) * weights).sum(), count),
    }


def compute_masked_lm_metrics(
    logits: Float[Array, "b k v"], batch: MaskedBatch, vocab: VocabInfo, prefix: str = "mlm"
) -> Metrics:
    """Return loss and accuracy at the masked positions, as sums over their weights.

    `*_mask_accuracy` counts only positions that show [MASK], because a token that is shown is easy to predict.
    `*_mask_baseline` is the accuracy there of always predicting the most frequent token.
    """
    labels, weights = batch.masked_labels, batch.masked_weights
    shown = jnp.take_along_axis(batch.input_ids, batch.masked_positions, axis=1)
    hidden = weights * (shown == vocab.mask_id)
    return compute_class_metrics(logits, labels, weights, prefix) | {
        f"{prefix}_mask_accuracy": Mean(((logits.argmax(-1) == labels) * hidden).sum(), hidden.sum()),
        f"{prefix}_mask_baseline": Mean(((labels == vocab.most_frequent_id) * hidden).sum(), hidden.sum()),
    }
