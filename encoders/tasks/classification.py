"""Classification and regression of one or two texts, from [CLS] (BERT §4.1; RoBERTa §5.1; ELECTRA appendix A)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from encoders.data.batch import Batch
from encoders.data.store import Split
from encoders.model.encoder import Encoder
from encoders.model.heads import ClassificationHead, pool_examples, summarize_examples
from encoders.objectives.base import Metrics, Scores, SupervisedObjective, TaskModule
from encoders.objectives.losses import cross_entropy
from encoders.tasks.scores import CLASSIFICATION_SCORES, REGRESSION_SCORES, score_classes, score_macro_f1
from encoders.utils.errors import UserError
from encoders.utils.metrics import Mean


def compute_label_metrics(
    prefix: str, logits: Float[Array, "*axes c"], labels: Array, mask: Float[Array, "*axes"]
) -> Metrics:
    """Return cross-entropy and accuracy as sums over a mask, by the names `PREFIX_loss` and `PREFIX_accuracy`."""
    count = mask.sum()
    return {
        f"{prefix}_loss": Mean((cross_entropy(logits, labels) * mask).sum(), count),
        f"{prefix}_accuracy": Mean(((logits.argmax(-1) == labels) * mask).sum(), count),
    }


class ClassificationModule(TaskModule):
    """Module of an encoder, a pooler for the head "pooled", and the classification head."""

    head_name: ClassVar[str] = "classes"  # the attribute names the head's parameters

    @property
    def num_logits(self) -> int:
        return len(self.objective.labels)

    def setup(self):
        head, dropout = self.objective.head, self.objective.head_dropout
        self.encoder = Encoder(self.config)
        if head == "pooled":
            self.pooler = self.config.pooler(self.config)
        activation = head if head in ("tanh", "gelu") else "none"
        setattr(self, self.head_name, ClassificationHead(self.config, self.num_logits, dropout, activation))

    def compute_logits(self, batch: Batch, train: bool = False) -> Float[Array, "b s c"]:
        """Return a logit for each label of each example."""
        hidden, head = self.encoder(batch, train=train), getattr(self, self.head_name)
        if self.objective.head == "pooled":
            return head(pool_examples(self.config, self.pooler, hidden, batch), train)
        return head(summarize_examples(self.config, hidden, batch), train)

    def compute_metrics(self, logits: Float[Array, "b s c"], batch: Batch) -> Metrics:
        labels, mask = batch.labels["label"], batch.example_mask.astype(jnp.float32)
        if self.num_logits > 1:
            return compute_label_metrics("label", logits, labels, mask)
        return {"label_loss": Mean((jnp.square(logits[..., 0] - labels) * mask).sum(), mask.sum())}

    def compute_outputs(self, logits: Float[Array, "b s *c"], batch: Batch) -> dict[str, Array]:
        return {"logits": logits}


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

    module_class: ClassVar[type[TaskModule]] = ClassificationModule
    required_fields: ClassVar[frozenset[str]] = frozenset({"label"})
    loss_weights: ClassVar[dict[str, float]] = {"label_loss": 1.0}

    def __post_init__(self):
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise UserError(f"objective.labels={self.labels} must be one or more different names")
        if not 0 <= self.head_dropout < 1:
            raise UserError(f"objective.head_dropout={self.head_dropout} must be at least 0 and below 1")
        if unknown := sorted(set(self.score_names) - set(self.score_functions)):
            known = ", ".join(self.score_functions)
            raise UserError(f"objective.score_names={self.score_names}: {unknown} must be among {known}")

    @property
    def score_functions(self) -> dict:
        """Score functions for classes or for numbers, by name; of three and more classes "f1" is the mean."""
        if len(self.labels) == 1:
            return REGRESSION_SCORES
        return CLASSIFICATION_SCORES | ({"f1": score_macro_f1} if len(self.labels) > 2 else {})

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.labels if len(self.labels) > 1 else ()

    @property
    def best_metric(self) -> str:
        return next(iter(self.score_names or self.score_functions))

    def score_outputs(self, outputs: dict[str, np.ndarray], rows: np.ndarray, split: Split) -> Scores:
        logits, labels = outputs["logits"][:, 0], split.label_columns["label"][rows["document"][:, 0]]
        predictions = logits.argmax(-1) if len(self.labels) > 1 else logits[:, 0]
        scores = {n: self.score_functions[n](predictions, labels) for n in self.score_names or self.score_functions}
        return scores | (score_classes(predictions, labels, self.labels) if self.label_names else {})
