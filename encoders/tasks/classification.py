"""Classification and regression of one text or two, from [CLS] (BERT §4.1; RoBERTa §5.1; ELECTRA appendix A)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from encoders.data.formats import LABEL
from encoders.data.store import Split
from encoders.model.config import Model
from encoders.model.encoder import Encoder
from encoders.model.heads import ClassHead, Pooler, summary
from encoders.objectives.base import Metrics, Task, TaskModule
from encoders.objectives.losses import losses
from encoders.objectives.masking import Batch
from encoders.tasks.scores import CLASSES, NUMBERS
from encoders.text.tokenization import Facts
from encoders.utils.metrics import Mean


@dataclass(frozen=True)
class Classification(Task):
    """One of `labels` for each example, or a number where there is one label only, judged by `scores`.

    `head`: a linear layer on the pooled [CLS] (BERT, ALBERT), on [CLS] itself ("linear", Google's ELECTRA), or after a
    dense layer of its own and tanh (RoBERTa) or gelu (Hugging Face's ELECTRA).
    """

    labels: tuple[str, ...]
    head: Literal["pooled", "linear", "tanh", "gelu"] = "pooled"
    dropout: float = 0.1
    judged_by: tuple[str, ...] = ()  # of accuracy, f1, matthews; of numbers pearson, spearman; the first is the goal

    needs: ClassVar[frozenset[str]] = frozenset({"label"})
    weights: ClassVar[dict[str, float]] = {"label_loss": 1.0}

    def __post_init__(self):
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"objective.labels={self.labels} must be one or more names, each once")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"objective.dropout={self.dropout} must be at least 0 and below 1")
        if unknown := set(self.judged_by) - set(self.known):
            raise ValueError(f"objective.judged_by={sorted(unknown)} is none of {', '.join(self.known)}")

    @property
    def known(self) -> dict:
        """The scores that there are."""
        return CLASSES if len(self.labels) > 1 else NUMBERS

    @property
    def answers(self) -> tuple[str, ...]:
        return self.labels if len(self.labels) > 1 else ()

    @property
    def goal(self) -> str:
        return next(iter(self.judged_by or self.known))

    def score(self, said: dict[str, np.ndarray], rows: np.ndarray, split: Split) -> dict[str, float]:
        numbers, labels = said["logits"][:, 0], split.columns["label"][rows[:, 0, LABEL]]
        numbers = numbers.argmax(-1) if len(self.labels) > 1 else numbers[:, 0]
        return {name: self.known[name](numbers, labels) for name in self.judged_by or self.known}

    def module(self, model: Model, facts: Facts) -> nn.Module:
        return ClassificationModule(model, self, facts)

    def counts(self, batch: Batch) -> dict:
        return {"label_loss": batch["valid"].sum()}


class ClassificationModule(TaskModule):
    """An encoder, a pooler where the head reads it, and the head."""

    model: Model
    objective: Classification
    facts: Facts

    def setup(self):
        objective = self.objective
        self.encoder = Encoder(self.model)
        if objective.head == "pooled":
            self.pooler = Pooler(self.model)
        activation = objective.head if objective.head in ("tanh", "gelu") else "none"
        self.classes = ClassHead(self.model, len(objective.labels), objective.dropout, activation)

    def metrics(self, logits: Float[Array, "b s c"], batch: Batch) -> Metrics:
        labels = batch["label"]
        valid = batch["valid"].astype(jnp.float32)
        count = valid.sum()
        if len(self.objective.labels) == 1:
            return {"label_loss": Mean((jnp.square(logits[..., 0] - labels) * valid).sum(), count)}
        return {
            "label_loss": Mean((losses(logits, labels) * valid).sum(), count),
            "label_accuracy": Mean(((logits.argmax(-1) == labels) * valid).sum(), count),
        }

    def logits(self, batch: Batch, train: bool = False) -> Float[Array, "b s c"]:
        """A number for each label of each example."""
        hidden = self.encoder(batch["tokens"], batch["example"], batch["segments"], batch["positions"], train=train)
        vector = summary(self.model, hidden, batch)
        return self.classes(self.pooler(vector) if self.objective.head == "pooled" else vector, train)

    def said(self, logits: Float[Array, "b s c"], batch: Batch) -> dict[str, Array]:
        return {"logits": logits}
