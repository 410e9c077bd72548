"""Question answering: start and end of an answer in the context, and answerability (BERT §4.2 and §4.3).

Three objectives have one interface. `SpanPrediction` is BERT's: [CLS] as start and end means no answer.
`SpanWithClassifier` is RoBERTa's (§5.2): a classifier on [CLS], with its own loss. `ConditionedSpanPrediction` is
XLNet's, used by ALBERT and ELECTRA: the end depends on the start, and a classifier reads [CLS] and the expected start.

Their outputs for a window are candidates `first` and `last`, counted from the window's first context token, with a
`score`; and `null`, larger for a window that is less likely to hold an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from encoders.data.batch import Batch
from encoders.data.store import Split
from encoders.model.config import EncoderConfig
from encoders.model.encoder import Encoder
from encoders.model.heads import gather_hidden_states, summarize_examples
from encoders.model.ops import ACTIVATIONS, Dropout, make_dense, make_layer_norm
from encoders.objectives.base import Metrics, SupervisedObjective, TaskModule
from encoders.objectives.losses import binary_cross_entropy, cross_entropy
from encoders.objectives.masking import make_membership_mask
from encoders.tasks.answers import QAPrediction, decode_predictions, score_questions, subtract_best_score
from encoders.text.tokenization import VocabInfo
from encoders.utils.metrics import Mean

MASKED_LOGIT = -1e30
N_BEST_SIZE = 20  # number of starts and of ends that are combined, as in the released code


class QAObjective(SupervisedObjective):
    """Base of the three objectives."""

    best_metric: ClassVar[str] = "f1"

    def decode_predictions(
        self, outputs: dict[str, np.ndarray], example_table: np.ndarray, split: Split
    ) -> dict[int, QAPrediction]:
        """Return the prediction for each question, by its document."""
        return decode_predictions(outputs, example_table, split)

    def score_outputs(
        self, outputs: dict[str, np.ndarray], example_table: np.ndarray, split: Split
    ) -> dict[str, float]:
        return score_questions(self.decode_predictions(outputs, example_table, split), split.row_metadata)


@dataclass(frozen=True)
class SpanPrediction(QAObjective):
    """Mean of the cross-entropies of the answer's first and last token, over the example's tokens.

    Both are [CLS] in a window without the answer, as in the released code.
    """

    required_fields: ClassVar[frozenset[str]] = frozenset({"first", "last"})
    loss_weights: ClassVar[dict[str, float]] = {"first_loss": 0.5, "last_loss": 0.5}

    def module(self, config: EncoderConfig, vocab: VocabInfo) -> nn.Module:
        return SpanPredictionModule(config, self, vocab)

    def decode_predictions(
        self, outputs: dict[str, np.ndarray], example_table: np.ndarray, split: Split
    ) -> dict[int, QAPrediction]:
        predictions = decode_predictions(outputs, example_table, split)
        return {document: subtract_best_score(prediction) for document, prediction in predictions.items()}


@dataclass(frozen=True)
class SpanWithClassifier(QAObjective):
    """`SpanPrediction` plus a linear classifier of answerability on [CLS], whose loss has weight 1."""

    required_fields: ClassVar[frozenset[str]] = frozenset({"first", "last", "answerable"})
    loss_weights: ClassVar[dict[str, float]] = {"first_loss": 0.5, "last_loss": 0.5, "answerable_loss": 1.0}

    def module(self, config: EncoderConfig, vocab: VocabInfo) -> nn.Module:
        return SpanPredictionModule(config, self, vocab)


@dataclass(frozen=True)
class ConditionedSpanPrediction(QAObjective):
    """Span prediction whose end depends on the start, the true one in training.

    Prediction combines the `beam_size` likeliest starts with as many ends each. The defaults are ALBERT's: the
    encoder's hidden size, tanh, a layer norm.
    """

    head_hidden_size: int | None = None
    activation: Literal["tanh", "gelu"] = "tanh"
    use_layer_norm: bool = True
    head_dropout: float = 0.1
    beam_size: int = 5

    required_fields: ClassVar[frozenset[str]] = frozenset({"first", "last", "answerable"})
    loss_weights: ClassVar[dict[str, float]] = {"first_loss": 0.5, "last_loss": 0.5, "answerable_loss": 0.5}

    def module(self, config: EncoderConfig, vocab: VocabInfo) -> nn.Module:
        return ConditionedSpanModule(config, self, vocab)


# By the value of `FamilyConventions.answerability`; ELECTRA's head differs from ALBERT's in size.
ANSWERABILITY_OBJECTIVES = {
    "null_span": SpanPrediction(),
    "classifier": SpanWithClassifier(),
    "conditioned_span": ConditionedSpanPrediction(),
    "electra_conditioned_span": ConditionedSpanPrediction(
        512, "gelu", use_layer_norm=False, head_dropout=0.0, beam_size=20
    ),
}


def build_context_mask(batch: Batch, vocab: VocabInfo) -> Bool[Array, "b s l"]:
    """Return the mask of context tokens, which may hold the answer, for each question of the row."""
    return make_membership_mask(batch) & ((batch.token_type_ids == 1) & (batch.input_ids != vocab.sep_id))[:, None]


def mask_logits(logits: Float[Array, "b *s l"], allowed: Bool[Array, "b s l"]) -> Float[Array, "b s l"]:
    return jnp.where(allowed, logits if logits.ndim == 3 else logits[:, None], MASKED_LOGIT)


def compute_answerable_loss(null_logits: Float[Array, "b s"], batch: Batch) -> Float[Array, "b s"]:
    """Return the binary cross-entropy of the logits of being unanswerable."""
    return binary_cross_entropy(null_logits, 1 - batch.labels["answerable"])


def compute_span_metrics(
    start_logits: Float[Array, "b s l"], end_logits: Float[Array, "b s l"], null_logits, batch: Batch
) -> Metrics:
    """Return losses, and accuracies of complete spans and of answerability."""
    example_mask = batch.example_mask.astype(jnp.float32)
    count = example_mask.sum()
    is_correct = (start_logits.argmax(-1) == batch.labels["first"]) & (end_logits.argmax(-1) == batch.labels["last"])
    metrics = {
        "first_loss": Mean((cross_entropy(start_logits, batch.labels["first"]) * example_mask).sum(), count),
        "last_loss": Mean((cross_entropy(end_logits, batch.labels["last"]) * example_mask).sum(), count),
        "span_accuracy": Mean((is_correct * example_mask).sum(), count),
    }
    if null_logits is None:
        return metrics
    is_correct = (null_logits < 0) == (batch.labels["answerable"] == 1)
    return metrics | {
        "answerable_loss": Mean((compute_answerable_loss(null_logits, batch) * example_mask).sum(), count),
        "answerable_accuracy": Mean((is_correct * example_mask).sum(), count),
    }


def build_span_candidates(starts, ends, scores, null_logits, context_mask: Bool[Array, "b s l"]) -> dict[str, Array]:
    """Return the candidates of each window, `[b s n]`, with positions counted from its first context token."""
    context_start = context_mask.argmax(-1)[..., None]
    starts, ends, scores = (beams.reshape(*beams.shape[:2], -1) for beams in (starts, ends, scores))
    return {
        "first": starts - context_start,
        "last": ends - context_start,
        "score": jnp.where(scores > MASKED_LOGIT / 2, scores, -jnp.inf),
        "null": null_logits,
    }


class SpanPredictionModule(TaskModule):
    """Module of an encoder, start and end logits of every token, and for `SpanWithClassifier` a null logit of [CLS]."""

    config: EncoderConfig
    objective: SpanPrediction | SpanWithClassifier
    vocab: VocabInfo

    def setup(self):
        self.encoder = Encoder(self.config)
        self.spans = make_dense(self.config, 2)
        if isinstance(self.objective, SpanWithClassifier):
            self.answerable = make_dense(self.config, 1)

    def compute_logits(
        self, batch: Batch, train: bool = False
    ) -> tuple[Float[Array, "b l 2"], Float[Array, "b s"] | None]:
        """Return start and end logits of every token, and null logits of every example."""
        hidden = self.encoder(batch, train=train)
        spans = self.spans(hidden).astype(jnp.float32)
        if not isinstance(self.objective, SpanWithClassifier):
            return spans, None
        return spans, self.answerable(summarize_examples(self.config, hidden, batch))[..., 0].astype(jnp.float32)

    def compute_metrics(self, logits, batch: Batch) -> Metrics:
        spans, null = logits
        mask = make_membership_mask(batch)
        return compute_span_metrics(mask_logits(spans[..., 0], mask), mask_logits(spans[..., 1], mask), null, batch)

    def compute_outputs(self, logits, batch: Batch) -> dict[str, Array]:
        spans, null = logits
        context = build_context_mask(batch, self.vocab)
        count = min(N_BEST_SIZE, context.shape[-1])
        starts, first = jax.lax.top_k(mask_logits(spans[..., 0], context), count)
        ends, last = jax.lax.top_k(mask_logits(spans[..., 1], context), count)
        if null is None:
            null = gather_hidden_states(spans, batch.cls_positions).sum(-1)
        pairs = jnp.broadcast_arrays(first[..., None], last[..., None, :], starts[..., None] + ends[..., None, :])
        return build_span_candidates(*pairs, null, context)


class ConditionedSpanModule(TaskModule):
    """Module of an encoder and three heads: start, end given a start, and answerability."""

    config: EncoderConfig
    objective: ConditionedSpanPrediction
    vocab: VocabInfo

    def setup(self):
        config, objective = self.config, self.objective
        width = objective.head_hidden_size or config.hidden_size
        self.encoder = Encoder(config)
        self.start = make_dense(config, 1)
        # Together one dense layer on the concatenation of a token and the start.
        self.end_token = make_dense(config, width)
        self.end_start = make_dense(config, width, use_bias=False)
        self.end_norm = make_layer_norm(config) if objective.use_layer_norm else lambda x: x
        self.end = make_dense(config, 1)
        self.answer = make_dense(config, width)
        self.answerable = make_dense(config, 1, use_bias=not objective.use_layer_norm)  # ALBERT's lacks a bias
        self.drop = Dropout(objective.head_dropout)

    def apply_activation(self, x):
        return jnp.tanh(x) if self.objective.activation == "tanh" else ACTIVATIONS["gelu"](x)

    def compute_logits(self, batch: Batch, train: bool = False):
        """Return the hidden states, masked start logits `[b s l]`, and null logits `[b s]`."""
        hidden = self.encoder(batch, train=train)
        starts = self.start(hidden)[..., 0].astype(jnp.float32)
        first = mask_logits(starts, self.build_answer_mask(batch))
        expected_start = jnp.einsum("bsl,bld->bsd", jax.nn.softmax(first).astype(hidden.dtype), hidden)
        x = jnp.concatenate([expected_start, summarize_examples(self.config, hidden, batch)], axis=-1)
        x = self.drop(self.apply_activation(self.answer(x)), train)
        null = self.answerable(x)[..., 0].astype(jnp.float32)
        if self.is_initializing():
            self.compute_end_logits(hidden, batch.cls_positions, batch)
        return hidden, first, null

    def build_answer_mask(self, batch: Batch) -> Bool[Array, "b s l"]:
        """Return the mask of tokens where an answer may start and end: the context, and [CLS] for none."""
        cls = jnp.arange(batch.input_ids.shape[1]) == batch.cls_positions[..., None]
        return build_context_mask(batch, self.vocab) | cls

    def compute_end_logits(
        self, hidden: Float[Array, "b l d"], start_positions: Int[Array, "b n"], batch: Batch
    ) -> Float[Array, "b n l"]:
        """Return the unmasked logit of every end given each of n starts."""
        starts = self.end_start(gather_hidden_states(hidden, start_positions))[:, :, None]
        x = self.end_norm(self.apply_activation(self.end_token(hidden)[:, None] + starts))
        return self.end(x)[..., 0].astype(jnp.float32)

    def compute_metrics(self, logits, batch: Batch) -> Metrics:
        hidden, first, null = logits
        last = mask_logits(self.compute_end_logits(hidden, batch.labels["first"], batch), self.build_answer_mask(batch))
        return compute_span_metrics(first, last, null, batch)

    def compute_outputs(self, logits, batch: Batch) -> dict[str, Array]:
        hidden, first, null = logits
        context, (b, s, _) = build_context_mask(batch, self.vocab), first.shape
        count = min(self.objective.beam_size, context.shape[-1])
        start_scores, starts = jax.lax.top_k(jnp.where(context, jax.nn.log_softmax(first), MASKED_LOGIT), count)
        ends = self.compute_end_logits(hidden, starts.reshape(b, -1), batch).reshape(b, s, count, -1)
        ends = jax.nn.log_softmax(jnp.where(self.build_answer_mask(batch)[:, :, None], ends, MASKED_LOGIT))
        end_scores, last = jax.lax.top_k(jnp.where(context[:, :, None], ends, MASKED_LOGIT), count)
        pairs = jnp.broadcast_arrays(starts[..., None], last, start_scores[..., None] + end_scores)
        return build_span_candidates(*pairs, null, context)
