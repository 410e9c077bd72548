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

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from encoders.data.batch import Batch
from encoders.data.store import Split
from encoders.model.encoder import Encoder
from encoders.model.heads import gather_hidden_states, summarize_examples
from encoders.model.layers import make_membership_mask
from encoders.model.ops import ACTIVATIONS, Dropout, make_dense, make_layer_norm
from encoders.objectives.base import Metrics, Scores, SupervisedObjective, TaskModule
from encoders.objectives.losses import binary_cross_entropy, cross_entropy
from encoders.tasks.answers import QAPredictions, decode_predictions, score_questions, subtract_best_score
from encoders.text.tokenization import VocabInfo
from encoders.utils.metrics import Mean

MASKED_LOGIT = -1e30
N_BEST_SIZE = 20  # number of starts and of ends that are combined, as in the released code


def build_context_mask(batch: Batch, vocab: VocabInfo) -> Bool[Array, "b s l"]:
    """Return the mask of context tokens, which may hold the answer, for each question of the row."""
    return make_membership_mask(batch) & ((batch.token_type_ids == 1) & (batch.input_ids != vocab.sep_id))[:, None]


def mask_logits(logits: Float[Array, "b *s l"], allowed: Bool[Array, "b s l"]) -> Float[Array, "b s l"]:
    return jnp.where(allowed, logits if logits.ndim == 3 else logits[:, None], MASKED_LOGIT)


def compute_span_metrics(
    start_logits: Float[Array, "b s l"], end_logits: Float[Array, "b s l"], null_logits, batch: Batch
) -> Metrics:
    """Return losses, and accuracies of complete spans and of answerability."""
    labels, mask = batch.labels, batch.example_mask.astype(jnp.float32)
    is_correct = (start_logits.argmax(-1) == labels["first"]) & (end_logits.argmax(-1) == labels["last"])
    values = {
        "first_loss": cross_entropy(start_logits, labels["first"]),
        "last_loss": cross_entropy(end_logits, labels["last"]),
        "span_accuracy": is_correct,
    }
    if null_logits is not None:
        values["answerable_loss"] = binary_cross_entropy(null_logits, 1 - labels["answerable"])
        values["answerable_accuracy"] = (null_logits < 0) == (labels["answerable"] == 1)
    return {name: Mean((value * mask).sum(), mask.sum()) for name, value in values.items()}


def build_span_candidates(
    starts, ends, scores, null_logits, context_mask: Bool[Array, "b s l"], beam_size: int
) -> dict[str, Array]:
    """Return the `beam_size` squared candidates of each window, `[b s n]`; those of short windows score minus infinity.

    Positions are counted from the window's first context token.
    """
    context_start = context_mask.argmax(-1)[..., None]
    beams = jnp.broadcast_arrays(starts - context_start[..., None], ends - context_start[..., None], scores)
    beams = [values.reshape(*values.shape[:2], -1) for values in beams]
    padding = ((0, 0), (0, 0), (0, beam_size**2 - beams[0].shape[-1]))  # batches of all lengths are concatenated
    starts, ends, scores = (
        jnp.pad(x, padding, constant_values=y) for x, y in zip(beams, (0, 0, MASKED_LOGIT), strict=True)
    )
    return {
        "first": starts,
        "last": ends,
        "score": jnp.where(scores > MASKED_LOGIT / 2, scores, -jnp.inf),
        "null": null_logits,
    }


class SpanPredictionModule(TaskModule):
    """Module of an encoder, start and end logits of every token, and for `SpanWithClassifier` a null logit of [CLS]."""

    def setup(self):
        self.encoder = Encoder(self.config)
        if self.objective.token_head == "pooled":
            self.pooler = self.config.pooler(self.config)
        self.spans = make_dense(self.config, 2)
        if isinstance(self.objective, SpanWithClassifier):
            self.answerable = make_dense(self.config, 1)

    def compute_logits(self, batch: Batch, train: bool = False):
        """Return start and end logits of every token, `[b l 2]`, and null logits of every example, `[b s]` or None."""
        hidden = self.encoder(batch, train=train)
        read = self.pooler(hidden) if self.objective.token_head == "pooled" else hidden
        spans = self.spans(read).astype(jnp.float32)
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
        scores = starts[..., None] + ends[..., None, :]
        return build_span_candidates(first[..., None], last[..., None, :], scores, null, context, N_BEST_SIZE)


class ConditionedSpanModule(TaskModule):
    """Module of an encoder and three heads: start, end given a start, and answerability."""

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
        self.activation = {"tanh": jnp.tanh, "gelu": ACTIVATIONS["gelu"]}[objective.activation]

    def compute_logits(self, batch: Batch, train: bool = False):
        """Return the hidden states, masked start logits `[b s l]`, and null logits `[b s]`."""
        hidden = self.encoder(batch, train=train)
        first = mask_logits(self.start(hidden)[..., 0].astype(jnp.float32), self.build_answer_mask(batch))
        expected_start = jnp.einsum("bsl,bld->bsd", jax.nn.softmax(first).astype(hidden.dtype), hidden)
        x = jnp.concatenate([expected_start, summarize_examples(self.config, hidden, batch)], axis=-1)
        x = self.drop(self.activation(self.answer(x)), train)
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
        x = self.end_norm(self.activation(self.end_token(hidden)[:, None] + starts))
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
        scores, beam_size = start_scores[..., None] + end_scores, self.objective.beam_size
        return build_span_candidates(starts[..., None], last, scores, null, context, beam_size)


class QAObjective(SupervisedObjective):
    """Base of the three objectives."""

    module_class: ClassVar[type[TaskModule]] = SpanPredictionModule
    token_head: ClassVar[str] = "linear"
    best_metric: ClassVar[str] = "f1"
    required_fields: ClassVar[frozenset[str]] = frozenset({"first", "last", "answerable"})

    def decode_predictions(self, outputs: dict[str, np.ndarray], rows: np.ndarray, split: Split) -> QAPredictions:
        """Return the prediction for each question, by its document."""
        return decode_predictions(outputs, rows, split)

    def score_outputs(self, outputs: dict[str, np.ndarray], rows: np.ndarray, split: Split) -> Scores:
        return score_questions(self.decode_predictions(outputs, rows, split), split.row_metadata)


@dataclass(frozen=True)
class SpanPrediction(QAObjective):
    """Mean of the cross-entropies of the answer's first and last token, over the example's tokens.

    Both are [CLS] in a window without the answer, as in the released code. With `token_head="pooled"` every token goes
    through the pooler first (ModernBERT).
    """

    token_head: Literal["linear", "pooled"] = "linear"

    required_fields: ClassVar[frozenset[str]] = frozenset({"first", "last"})
    loss_weights: ClassVar[dict[str, float]] = {"first_loss": 0.5, "last_loss": 0.5}

    def decode_predictions(self, outputs: dict[str, np.ndarray], rows: np.ndarray, split: Split) -> QAPredictions:
        predictions = decode_predictions(outputs, rows, split)
        return {document: subtract_best_score(prediction) for document, prediction in predictions.items()}


@dataclass(frozen=True)
class SpanWithClassifier(QAObjective):
    """`SpanPrediction` plus a linear classifier of answerability on [CLS], whose loss has weight 1."""

    loss_weights: ClassVar[dict[str, float]] = {"first_loss": 0.5, "last_loss": 0.5, "answerable_loss": 1.0}


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

    module_class: ClassVar[type[TaskModule]] = ConditionedSpanModule
    loss_weights: ClassVar[dict[str, float]] = {"first_loss": 0.5, "last_loss": 0.5, "answerable_loss": 0.5}


# By the value of `FamilyConventions.answerability`; ELECTRA's head differs from ALBERT's in size.
ANSWERABILITY_OBJECTIVES = {
    "null_span": SpanPrediction(),
    "pooled_null_span": SpanPrediction("pooled"),
    "classifier": SpanWithClassifier(),
    "conditioned_span": ConditionedSpanPrediction(),
    "electra_conditioned_span": ConditionedSpanPrediction(512, "gelu", False, head_dropout=0.0, beam_size=20),
}
