"""Question answering: where in the text an answer starts and ends, and whether there is one (BERT §4.2 and §4.3).

Three designs of answerability behind one interface. `SpanPrediction` is BERT's: [CLS] as start and end is the answer
"none". `SpanWithClassifier` is RoBERTa's (§5.2): a classifier on [CLS], its loss added. `ConditionedSpanPrediction` is
XLNet's, which ALBERT and ELECTRA have: the end depends on the start, and a classifier reads [CLS] and the expected
start.

Each says of a window: candidates `first` and `last`, counted from the window's first token of text, with a `score`; and
`null`, which is larger the less likely the window has an answer.
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
N_BEST_SIZE = 20  # starts, and ends, that are combined: n_best_size of the released code


class QAObjective(SupervisedObjective):
    """What the three designs have in common."""

    best_metric: ClassVar[str] = "f1"

    def counts(self, batch: Batch) -> dict:
        return {name: batch.example_mask.sum() for name in self.loss_weights}

    def decode_predictions(
        self, outputs: dict[str, np.ndarray], example_table: np.ndarray, split: Split
    ) -> dict[int, QAPrediction]:
        """A verdict for each question, by its document."""
        return decode_predictions(outputs, example_table, split)

    def score_outputs(
        self, outputs: dict[str, np.ndarray], example_table: np.ndarray, split: Split
    ) -> dict[str, float]:
        return score_questions(self.decode_predictions(outputs, example_table, split), split.row_metadata)


@dataclass(frozen=True)
class SpanPrediction(QAObjective):
    """The mean of two cross-entropies, of the first and of the last token of the answer, over the example's tokens.

    A window without the answer has [CLS] as both, as in the released code.
    """

    required_fields: ClassVar[frozenset[str]] = frozenset({"first", "last"})
    loss_weights: ClassVar[dict[str, float]] = {"first_loss": 0.5, "last_loss": 0.5}

    def module(self, config: EncoderConfig, vocab: VocabInfo) -> nn.Module:
        return SpanPredictionModule(config, self, vocab)

    def decode_predictions(
        self, outputs: dict[str, np.ndarray], example_table: np.ndarray, split: Split
    ) -> dict[int, QAPrediction]:
        return {
            document: subtract_best_score(each)
            for document, each in decode_predictions(outputs, example_table, split).items()
        }


@dataclass(frozen=True)
class SpanWithClassifier(QAObjective):
    """`SpanPrediction`, and whether there is an answer from [CLS] by a linear layer, its loss added with weight 1."""

    required_fields: ClassVar[frozenset[str]] = frozenset({"first", "last", "answerable"})
    loss_weights: ClassVar[dict[str, float]] = {"first_loss": 0.5, "last_loss": 0.5, "answerable_loss": 1.0}

    def module(self, config: EncoderConfig, vocab: VocabInfo) -> nn.Module:
        return SpanPredictionModule(config, self, vocab)


@dataclass(frozen=True)
class ConditionedSpanPrediction(QAObjective):
    """An end that depends on the start, the true one in training; `beam` starts and for each as many ends are tried.

    ALBERT's by default: the model's width, tanh, a layer norm. ELECTRA's has a width of 512, gelu, no norm, no dropout,
    and a beam of 20.
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


# By the value of `FamilyConventions.answerability`; ELECTRA's differs from ALBERT's in its sizes.
ANSWERABILITY_OBJECTIVES = {
    "null_span": SpanPrediction(),
    "classifier": SpanWithClassifier(),
    "conditioned_span": ConditionedSpanPrediction(),
    "electra_conditioned_span": ConditionedSpanPrediction(
        512, "gelu", use_layer_norm=False, head_dropout=0.0, beam_size=20
    ),
}


def build_context_mask(batch: Batch, vocab: VocabInfo) -> Bool[Array, "b s l"]:
    """Which tokens are text that may hold the answer to the n-th question of the row."""
    return make_membership_mask(batch) & ((batch.token_type_ids == 1) & (batch.input_ids != vocab.sep_id))[:, None]


def mask_logits(logits: Float[Array, "b *s l"], allowed: Bool[Array, "b s l"]) -> Float[Array, "b s l"]:
    return jnp.where(allowed, logits if logits.ndim == 3 else logits[:, None], MASKED_LOGIT)


def answerable_loss(null_logits: Float[Array, "b s"], batch: Batch) -> Float[Array, "b s"]:
    """The binary cross-entropy of the logit that there is no answer."""
    return binary_cross_entropy(null_logits, 1 - batch.labels["answerable"])


def compute_span_metrics(
    start_logits: Float[Array, "b s l"], end_logits: Float[Array, "b s l"], null_logits, batch: Batch
) -> Metrics:
    """Losses, and the share of examples whose first and last token are both right."""
    valid = batch.example_mask.astype(jnp.float32)
    count = valid.sum()
    right = (start_logits.argmax(-1) == batch.labels["first"]) & (end_logits.argmax(-1) == batch.labels["last"])
    metrics = {
        "first_loss": Mean((cross_entropy(start_logits, batch.labels["first"]) * valid).sum(), count),
        "last_loss": Mean((cross_entropy(end_logits, batch.labels["last"]) * valid).sum(), count),
        "span_accuracy": Mean((right * valid).sum(), count),
    }
    if null_logits is None:
        return metrics
    said = (null_logits < 0) == (batch.labels["answerable"] == 1)
    return metrics | {
        "answerable_loss": Mean((answerable_loss(null_logits, batch) * valid).sum(), count),
        "answerable_accuracy": Mean((said * valid).sum(), count),
    }


def build_span_candidates(starts, ends, scores, null_logits, context_mask: Bool[Array, "b s l"]) -> dict[str, Array]:
    """What is said of each window, `[b s n]`, with places counted from its first token of text."""
    flatten_beams = lambda x: x.reshape(*x.shape[:2], -1)
    origin = context_mask.argmax(-1)[..., None]
    scores = jnp.where(scores > MASKED_LOGIT / 2, scores, -jnp.inf)
    return {
        "first": flatten_beams(starts) - origin,
        "last": flatten_beams(ends) - origin,
        "score": flatten_beams(scores),
        "null": null_logits,
    }


class SpanPredictionModule(TaskModule):
    """An encoder, a linear layer to two numbers a token, and for `SpanWithClassifier` one from [CLS] to one."""

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
        """For every token, how likely an answer starts and how likely it ends there; and that there is none."""
        hidden = self.encoder(batch, train=train)
        spans = self.spans(hidden).astype(jnp.float32)
        if not isinstance(self.objective, SpanWithClassifier):
            return spans, None
        return spans, self.answerable(summarize_examples(self.config, hidden, batch))[..., 0].astype(jnp.float32)

    def compute_metrics(self, logits, batch: Batch) -> Metrics:
        spans, null = logits
        mine = make_membership_mask(batch)
        return compute_span_metrics(mask_logits(spans[..., 0], mine), mask_logits(spans[..., 1], mine), null, batch)

    def compute_outputs(self, logits, batch: Batch) -> dict[str, Array]:
        spans, null = logits
        text = build_context_mask(batch, self.vocab)
        count = min(N_BEST_SIZE, text.shape[-1])
        (starts, first), (ends, last) = (jax.lax.top_k(mask_logits(spans[..., i], text), count) for i in (0, 1))
        if null is None:
            null = gather_hidden_states(spans, batch.cls_positions).sum(-1)
        pairs = jnp.broadcast_arrays(first[..., None], last[..., None, :], starts[..., None] + ends[..., None, :])
        return build_span_candidates(*pairs, null, text)


class ConditionedSpanModule(TaskModule):
    """An encoder and three heads: start, end given a start, and whether there is an answer."""

    config: EncoderConfig
    objective: ConditionedSpanPrediction
    vocab: VocabInfo

    def setup(self):
        model, objective = self.config, self.objective
        width = objective.head_hidden_size or model.hidden_size
        self.encoder = Encoder(model)
        self.start = make_dense(model, 1)
        # One dense layer on a token and the start beside each other, as two.
        self.end_token, self.end_start = make_dense(model, width), make_dense(model, width, use_bias=False)
        self.end_norm = make_layer_norm(model) if objective.use_layer_norm else lambda x: x
        self.end = make_dense(model, 1)
        self.answer = make_dense(model, width)
        self.answerable = make_dense(model, 1, use_bias=not objective.use_layer_norm)  # ALBERT's has none
        self.drop = Dropout(objective.head_dropout)

    def apply_activation(self, x):
        return jnp.tanh(x) if self.objective.activation == "tanh" else ACTIVATIONS["gelu"](x)

    def compute_logits(self, batch: Batch, train: bool = False):
        """The hidden states, the logit of every start, and the one that there is no answer."""
        hidden = self.encoder(batch, train=train)
        starts = self.start(hidden)[..., 0].astype(jnp.float32)
        first = mask_logits(starts, self.build_answer_mask(batch))
        expected = jnp.einsum("bsl,bld->bsd", jax.nn.softmax(first).astype(hidden.dtype), hidden)
        both = jnp.concatenate([expected, summarize_examples(self.config, hidden, batch)], axis=-1)
        null = self.answerable(self.drop(self.apply_activation(self.answer(both)), train))[..., 0].astype(jnp.float32)
        if self.is_initializing():
            self.compute_end_logits(hidden, batch.cls_positions, batch)
        return hidden, first, null

    def build_answer_mask(self, batch: Batch) -> Bool[Array, "b s l"]:
        """Where an answer may start and end: in the text, or at [CLS] for none."""
        cls = jnp.arange(batch.input_ids.shape[1]) == batch.cls_positions[..., None]
        return build_context_mask(batch, self.vocab) | cls

    def compute_end_logits(
        self, hidden: Float[Array, "b l d"], start_positions: Int[Array, "b n"], batch: Batch
    ) -> Float[Array, "b n l"]:
        """The logit of every end given each of n starts, before those that cannot be are left out."""
        given = self.end_start(gather_hidden_states(hidden, start_positions))[:, :, None]
        x = self.end_norm(self.apply_activation(self.end_token(hidden)[:, None] + given))
        return self.end(x)[..., 0].astype(jnp.float32)

    def compute_metrics(self, logits, batch: Batch) -> Metrics:
        hidden, first, null = logits
        last = mask_logits(self.compute_end_logits(hidden, batch.labels["first"], batch), self.build_answer_mask(batch))
        return compute_span_metrics(first, last, null, batch)

    def compute_outputs(self, logits, batch: Batch) -> dict[str, Array]:
        hidden, first, null = logits
        text, (b, s, _) = build_context_mask(batch, self.vocab), first.shape
        count = min(self.objective.beam_size, text.shape[-1])
        chance = jnp.where(text, jax.nn.log_softmax(first), MASKED_LOGIT)
        starts, where = jax.lax.top_k(chance, count)
        ends = self.compute_end_logits(hidden, where.reshape(b, -1), batch).reshape(b, s, count, -1)
        ends = jax.nn.log_softmax(jnp.where(self.build_answer_mask(batch)[:, :, None], ends, MASKED_LOGIT))
        stops, last = jax.lax.top_k(jnp.where(text[:, :, None], ends, MASKED_LOGIT), count)
        pairs = jnp.broadcast_arrays(where[..., None], last, starts[..., None] + stops)
        return build_span_candidates(*pairs, null, text)
