"""Question answering: where in the text an answer starts and ends, and whether there is one (BERT §4.2 and §4.3).

Three designs of answerability behind one interface. `Spans` is BERT's: [CLS] as start and end is the answer "none".
`JudgedSpans` is RoBERTa's (§5.2): a classifier on [CLS], its loss added. `ConditionedSpans` is XLNet's, which ALBERT
and ELECTRA have: the end depends on the start, and a classifier reads [CLS] and the expected start.

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

from encoders.data.store import Split
from encoders.model.config import Model
from encoders.model.encoder import Encoder
from encoders.model.heads import gather, summary
from encoders.model.layers import ACTIVATIONS, Dropout, dense, norm
from encoders.objectives.base import Metrics, Task, TaskModule
from encoders.objectives.losses import losses
from encoders.objectives.masking import Batch, members
from encoders.tasks.answers import Verdict, question_scores, relative, verdicts
from encoders.text.tokenization import Facts
from encoders.utils.metrics import Mean

NEVER = -1e30
BEST = 20  # starts, and ends, that are combined: n_best_size of the released code


class Questions(Task):
    """What the three designs have in common."""

    goal: ClassVar[str] = "f1"

    def counts(self, batch: Batch) -> dict:
        return {name: batch["valid"].sum() for name in self.weights}

    def verdicts(self, said: dict[str, np.ndarray], rows: np.ndarray, split: Split) -> dict[int, Verdict]:
        """A verdict for each question, by its document."""
        return verdicts(said, rows, split)

    def score(self, said: dict[str, np.ndarray], rows: np.ndarray, split: Split) -> dict[str, float]:
        return question_scores(self.verdicts(said, rows, split), split.notes)


@dataclass(frozen=True)
class Spans(Questions):
    """The mean of two cross-entropies, of the first and of the last token of the answer, over the example's tokens.

    A window without the answer has [CLS] as both, as in the released code.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"first", "last"})
    weights: ClassVar[dict[str, float]] = {"first_loss": 0.5, "last_loss": 0.5}

    def module(self, model: Model, facts: Facts) -> nn.Module:
        return SpansModule(model, self, facts)

    def verdicts(self, said: dict[str, np.ndarray], rows: np.ndarray, split: Split) -> dict[int, Verdict]:
        return {document: relative(each) for document, each in verdicts(said, rows, split).items()}


@dataclass(frozen=True)
class JudgedSpans(Questions):
    """`Spans`, and whether there is an answer from [CLS] by a linear layer, its loss added with the weight 1."""

    needs: ClassVar[frozenset[str]] = frozenset({"first", "last", "answerable"})
    weights: ClassVar[dict[str, float]] = {"first_loss": 0.5, "last_loss": 0.5, "answerable_loss": 1.0}

    def module(self, model: Model, facts: Facts) -> nn.Module:
        return SpansModule(model, self, facts)


@dataclass(frozen=True)
class ConditionedSpans(Questions):
    """An end that depends on the start, the true one in training; `beam` starts and for each as many ends are tried.

    ALBERT's by default: the model's width, tanh, a layer norm. ELECTRA's has a width of 512, gelu, no norm, no dropout,
    and a beam of 20.
    """

    width: int | None = None
    activation: Literal["tanh", "gelu"] = "tanh"
    norm: bool = True
    dropout: float = 0.1
    beam: int = 5

    needs: ClassVar[frozenset[str]] = frozenset({"first", "last", "answerable"})
    weights: ClassVar[dict[str, float]] = {"first_loss": 0.5, "last_loss": 0.5, "answerable_loss": 0.5}

    def module(self, model: Model, facts: Facts) -> nn.Module:
        return ConditionedSpansModule(model, self, facts)


def text_of(batch: Batch, facts: Facts) -> Bool[Array, "b s l"]:
    """Which tokens are text that may hold the answer to the n-th question of the row."""
    return members(batch) & ((batch["segments"] == 1) & (batch["tokens"] != facts.sep))[:, None]


def among(logits: Float[Array, "b *s l"], allowed: Bool[Array, "b s l"]) -> Float[Array, "b s l"]:
    return jnp.where(allowed, logits if logits.ndim == 3 else logits[:, None], NEVER)


def answerable_loss(null: Float[Array, "b s"], batch: Batch) -> Float[Array, "b s"]:
    """The binary cross-entropy of the logit that there is no answer."""
    return jax.nn.softplus(null) - null * (1 - batch["answerable"])


def span_metrics(first: Float[Array, "b s l"], last: Float[Array, "b s l"], null, batch: Batch) -> Metrics:
    """Losses, and the share of examples whose first and last token are both right."""
    valid = batch["valid"].astype(jnp.float32)
    count = valid.sum()
    right = (first.argmax(-1) == batch["first"]) & (last.argmax(-1) == batch["last"])
    metrics = {
        "first_loss": Mean((losses(first, batch["first"]) * valid).sum(), count),
        "last_loss": Mean((losses(last, batch["last"]) * valid).sum(), count),
        "span_accuracy": Mean((right * valid).sum(), count),
    }
    if null is None:
        return metrics
    said = (null < 0) == (batch["answerable"] == 1)
    return metrics | {
        "answerable_loss": Mean((answerable_loss(null, batch) * valid).sum(), count),
        "answerable_accuracy": Mean((said * valid).sum(), count),
    }


def candidates(first, last, score, null, text: Bool[Array, "b s l"]) -> dict[str, Array]:
    """What is said of each window, `[b s n]`, with places counted from its first token of text."""
    flat = lambda x: x.reshape(*x.shape[:2], -1)
    origin = text.argmax(-1)[..., None]
    score = jnp.where(score > NEVER / 2, score, -jnp.inf)
    return {"first": flat(first) - origin, "last": flat(last) - origin, "score": flat(score), "null": null}


class SpansModule(TaskModule):
    """An encoder, a linear layer to two numbers a token, and for `JudgedSpans` one from [CLS] to one."""

    model: Model
    objective: Spans | JudgedSpans
    facts: Facts

    def setup(self):
        self.encoder = Encoder(self.model)
        self.spans = dense(self.model, 2)
        if isinstance(self.objective, JudgedSpans):
            self.answerable = dense(self.model, 1)

    def logits(self, batch: Batch, train: bool = False) -> tuple[Float[Array, "b l 2"], Float[Array, "b s"] | None]:
        """For every token, how likely an answer starts and how likely it ends there; and that there is none."""
        hidden = self.encoder(batch["tokens"], batch["example"], batch["segments"], batch["positions"], train=train)
        spans = self.spans(hidden).astype(jnp.float32)
        if not isinstance(self.objective, JudgedSpans):
            return spans, None
        return spans, self.answerable(summary(self.model, hidden, batch))[..., 0].astype(jnp.float32)

    def metrics(self, logits, batch: Batch) -> Metrics:
        spans, null = logits
        mine = members(batch)
        return span_metrics(among(spans[..., 0], mine), among(spans[..., 1], mine), null, batch)

    def said(self, logits, batch: Batch) -> dict[str, Array]:
        spans, null = logits
        text = text_of(batch, self.facts)
        count = min(BEST, text.shape[-1])
        (starts, first), (ends, last) = (jax.lax.top_k(among(spans[..., i], text), count) for i in (0, 1))
        if null is None:
            null = gather(spans, batch["start"]).sum(-1)
        pairs = jnp.broadcast_arrays(first[..., None], last[..., None, :], starts[..., None] + ends[..., None, :])
        return candidates(*pairs, null, text)


class ConditionedSpansModule(TaskModule):
    """An encoder and three heads: start, end given a start, and whether there is an answer."""

    model: Model
    objective: ConditionedSpans
    facts: Facts

    def setup(self):
        model, objective = self.model, self.objective
        width = objective.width or model.hidden
        self.encoder = Encoder(model)
        self.start = dense(model, 1)
        # One dense layer on a token and the start beside each other, as two.
        self.end_token, self.end_start = dense(model, width), dense(model, width, bias=False)
        self.end_norm = norm(model) if objective.norm else lambda x: x
        self.end = dense(model, 1)
        self.answer = dense(model, width)
        self.answerable = dense(model, 1, bias=not objective.norm)  # ALBERT's has none
        self.drop = Dropout(objective.dropout)

    def act(self, x):
        return jnp.tanh(x) if self.objective.activation == "tanh" else ACTIVATIONS["gelu"](x)

    def logits(self, batch: Batch, train: bool = False):
        """The hidden states, the logit of every start, and the one that there is no answer."""
        hidden = self.encoder(batch["tokens"], batch["example"], batch["segments"], batch["positions"], train=train)
        starts = self.start(hidden)[..., 0].astype(jnp.float32)
        first = among(starts, self.allowed(batch))
        expected = jnp.einsum("bsl,bld->bsd", jax.nn.softmax(first).astype(hidden.dtype), hidden)
        both = jnp.concatenate([expected, summary(self.model, hidden, batch)], axis=-1)
        null = self.answerable(self.drop(self.act(self.answer(both)), train))[..., 0].astype(jnp.float32)
        if self.is_initializing():
            self.ends(hidden, batch["start"], batch)
        return hidden, first, null

    def allowed(self, batch: Batch) -> Bool[Array, "b s l"]:
        """Where an answer may start and end: in the text, or at [CLS] for none."""
        cls = jnp.arange(batch["tokens"].shape[1]) == batch["start"][..., None]
        return text_of(batch, self.facts) | cls

    def ends(self, hidden: Float[Array, "b l d"], first: Int[Array, "b n"], batch: Batch) -> Float[Array, "b n l"]:
        """The logit of every end given each of n starts, before those that cannot be are left out."""
        given = self.end_start(gather(hidden, first))[:, :, None]
        x = self.end_norm(self.act(self.end_token(hidden)[:, None] + given))
        return self.end(x)[..., 0].astype(jnp.float32)

    def metrics(self, logits, batch: Batch) -> Metrics:
        hidden, first, null = logits
        last = among(self.ends(hidden, batch["first"], batch), self.allowed(batch))
        return span_metrics(first, last, null, batch)

    def said(self, logits, batch: Batch) -> dict[str, Array]:
        hidden, first, null = logits
        text, (b, s, _) = text_of(batch, self.facts), first.shape
        count = min(self.objective.beam, text.shape[-1])
        chance = jnp.where(text, jax.nn.log_softmax(first), NEVER)
        starts, where = jax.lax.top_k(chance, count)
        ends = self.ends(hidden, where.reshape(b, -1), batch).reshape(b, s, count, -1)
        ends = jax.nn.log_softmax(jnp.where(self.allowed(batch)[:, :, None], ends, NEVER))
        stops, last = jax.lax.top_k(jnp.where(text[:, :, None], ends, NEVER), count)
        pairs = jnp.broadcast_arrays(where[..., None], last, starts[..., None] + stops)
        return candidates(*pairs, null, text)
