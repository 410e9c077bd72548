"""Classification and regression of one or two texts, from [CLS] (BERT §4.1; RoBERTa §5.1; ELECTRA appendix A)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from encoders.data.batch import Batch
from encoders.data.store import Split
from encoders.model.config import EncoderConfig
from encoders.model.encoder import Encoder
from encoders.model.heads import ClassificationHead, Pooler, summarize_examples
from encoders.objectives.base import Metrics, SupervisedObjective, TaskModule
from encoders.objectives.losses import cross_entropy
from encoders.tasks.scores import CLASSIFICATION_SCORES, REGRESSION_SCORES
from encoders.text.tokenization import VocabInfo
from encoders.utils.metrics import Mean


@dataclass(frozen=True)
class Classification(SupervisedObjective):
    """Prediction of one of `labels` for each example, or of a number where there is only one label.

    `head`: a linear layer on the pooled [CLS] ("pooled": BERT, ALBERT), on [CLS] itself ("linear": Google's ELECTRA),
    or after a dense layer and an activation ("tanh": RoBERTa, "gelu": Hugging Face's ELECTRA). `score_names` are
    accuracy, f1, matthews, or of numbers pearson, spearman, by default all. The first selects the best checkpoint.
    """

    labels: tuple[str, ...]
    head: Literal["pooled", "linear", "tanh", "gelu"] = "pooled"
    head_dropout: float = 0.1
    score_names: tuple[str, ...] = ()

    required_fields: ClassVar[frozenset[str]] = frozenset({"label"})
    loss_weights: ClassVar[dict[str, float]] = {"label_loss": 1.0}

    def __post_init__(self):
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"objective.labels={self.labels} must be one or more different names")
        if not 0 <= self.head_dropout < 1:
            raise ValueError(f"objective.head_dropout={self.head_dropout} must be at least 0 and below 1")
        if unknown := set(self.score_names) - set(self.score_functions):
            raise ValueError(
                f"objective.score_names={self.score_names}: {sorted(unknown)} must be among "
                f"{', '.join(self.score_functions)}"
            )

    @property
    def score_functions(self) -> dict:
        """Score functions for classes or for numbers, by name."""
        return CLASSIFICATION_SCORES if len(self.labels) > 1 else REGRESSION_SCORES

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.labels if len(self.labels) > 1 else ()

    @property
    def best_metric(self) -> str:
        return next(iter(self.score_names or self.score_functions))

    def score_outputs(
        self, outputs: dict[str, np.ndarray], example_table: np.ndarray, split: Split
    ) -> dict[str, float]:
        logits, labels = outputs["logits"][:, 0], split.label_columns["label"][example_table["document"][:, 0]]
        predictions = logits.argmax(-1) if len(self.labels) > 1 else logits[:, 0]
        score_names = self.score_names or self.score_functions
        return {name: self.score_functions[name](predictions, labels) for name in score_names}

    def module(self, config: EncoderConfig, vocab: VocabInfo) -> nn.Module:
        return ClassificationModule(config, self, vocab)


class ClassificationModule(TaskModule):
    """Module of an encoder, a pooler for the head "pooled", and the classification head."""

    config: EncoderConfig
    objective: Classification
    vocab: VocabInfo

    def setup(self):
        objective = self.objective
        self.encoder = Encoder(self.config)
        if objective.head == "pooled":
            self.pooler = Pooler(self.config)
        activation = objective.head if objective.head in ("tanh", "gelu") else "none"
        self.classes = ClassificationHead(self.config, len(objective.labels), objective.head_dropout, activation)

    def compute_metrics(self, logits: Float[Array, "b s c"], batch: Batch) -> Metrics:
        labels = batch.labels["label"]
        example_mask = batch.example_mask.astype(jnp.float32)
        count = example_mask.sum()
        if len(self.objective.labels) == 1:
            return {"label_loss": Mean((jnp.square(logits[..., 0] - labels) * example_mask).sum(), count)}
        return {
            "label_loss": Mean((cross_entropy(logits, labels) * example_mask).sum(), count),
            "label_accuracy": Mean(((logits.argmax(-1) == labels) * example_mask).sum(), count),
        }

    def compute_logits(self, batch: Batch, train: bool = False) -> Float[Array, "b s c"]:
        """Return a logit for each label of each example."""
        hidden = self.encoder(batch, train=train)
        vector = summarize_examples(self.config, hidden, batch)
        return self.classes(self.pooler(vector) if self.objective.head == "pooled" else vector, train)

    def compute_outputs(self, logits: Float[Array, "b s c"], batch: Batch) -> dict[str, Array]:
        return {"logits": logits}
