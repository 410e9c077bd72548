"""Training of sentence embeddings: one vector for each text, and a loss that compares the vectors of a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from encoders.data.batch import Batch
from encoders.data.formats import Format
from encoders.data.store import Split
from encoders.model.encoder import Encoder
from encoders.model.heads import embed_examples
from encoders.model.ops import make_dense
from encoders.objectives.base import Metrics, Scores, SupervisedObjective, TaskModule
from encoders.objectives.embedding_losses import EmbeddingLoss, InfoNCE, TextRelations
from encoders.tasks.scores import score_pearson, score_positive_ranks, score_spearman
from encoders.utils.errors import UserError


class ContrastiveModule(TaskModule):
    """Module of an encoder, a pooler for the pooling "pooled", a projection, and a scale of cosines if it is learned.

    The outputs that other tasks name logits are vectors here.
    """

    def setup(self):
        self.encoder = Encoder(self.config)
        if self.objective.pooling == "pooled":
            self.pooler = self.config.pooler(self.config)
        if self.objective.projection_size:
            self.projection = make_dense(self.config, self.objective.projection_size)
        if self.objective.loss.initial_scale:
            initial = nn.initializers.constant(math.log(self.objective.loss.initial_scale))
            self.log_scale = self.param("log_scale", initial, ())

    def compute_logits(self, batch: Batch, train: bool = False) -> Float[Array, "b s d"]:
        """Return the vector of each text; in training behind the projection."""
        hidden, config = self.encoder(batch, train=train), self.config
        pooler = self.pooler if self.objective.pooling == "pooled" else None
        vectors = embed_examples(config, pooler, hidden, batch, self.objective.pooling)
        if self.objective.projection_size and (train or self.is_initializing()):
            vectors = jnp.tanh(self.projection(vectors))
        return vectors.astype(jnp.float32)

    def compute_metrics(self, logits: Float[Array, "b s d"], batch: Batch) -> Metrics:
        loss = self.objective.loss
        scale = jnp.exp(self.log_scale) if loss.initial_scale else None
        return loss.compute_metrics(logits, TextRelations.from_batch(batch), scale)

    def compute_outputs(self, logits: Float[Array, "b s d"], batch: Batch) -> dict[str, Array]:
        return {"vectors": logits}


@dataclass(frozen=True)
class Contrastive(SupervisedObjective):
    """Training of an encoder for the cosine of the vectors of its texts, by `loss`.

    A vector is the hidden state of [CLS] ("cls") or of the last token ("last"), the mean over tokens ("mean"), or the
    pooler's ("pooled"). `projection_size` adds a dense layer of that size and tanh, in training only (SimCSE,
    https://arxiv.org/abs/2104.08821, §6.3).

    The loss compares all rows of the batch, on all devices and processes. `grad_accum_steps` bounds the memory, not the
    negatives: rows are encoded in so many chunks, and encoded again for their gradients (Gao et al., 2021,
    https://arxiv.org/abs/2101.06983), which are those of the whole batch.

    Held-out scores are `spearman` and `pearson` of scored rows. Of other rows they are `accuracy`, the share of anchors
    whose positive text is nearest among the texts of the split, and `mrr`, the mean reciprocal rank. `best_score`
    selects the best checkpoint. `prompts` are names and texts that the rows were read with, for use afterwards.
    """

    loss: EmbeddingLoss = InfoNCE()
    pooling: Literal["cls", "mean", "last", "pooled"] = "mean"
    projection_size: int | None = None
    best_score: Literal["spearman", "accuracy", "mrr"] = "accuracy"
    prompts: tuple[tuple[str, str], ...] = field(default=(), metadata={"not_fingerprinted": True})

    module_class: ClassVar[type[TaskModule]] = ContrastiveModule
    required_fields: ClassVar[frozenset[str]] = frozenset({"text_id", "group_id", "similarity"})
    loss_weights: ClassVar[dict[str, float]] = {"contrastive_loss": 1.0}
    compares_rows: ClassVar[bool] = True

    def __post_init__(self):
        if self.projection_size is not None and self.projection_size < 1:
            raise UserError(f"objective.projection_size={self.projection_size} must be at least 1, or None")

    @property
    def best_metric(self) -> str:
        return self.best_score

    @property
    def embedding_settings(self) -> dict:
        """Fields of `SentenceEmbedding`: how the trained encoder gives the vector of a text."""
        return {"pooling": self.pooling, "normalize": True, "prompts": dict(self.prompts)}

    def find_format_problem(self, row_format: Format) -> str | None:
        if problem := super().find_format_problem(row_format):
            return problem
        needed, num_texts = self.loss.min_texts, row_format.num_texts
        if num_texts >= needed:
            return None
        loss = type(self.loss).__name__
        return f"objective.loss={loss} needs rows of {needed} texts, and phases.format.num_texts={num_texts}"

    def scores(self, sums: Metrics) -> dict[str, float]:
        """Return the scores of metrics that were counted: scored rows alone have no contrastive loss."""
        return super().scores({name: mean for name, mean in sums.items() if mean.count})

    def score_outputs(self, outputs: dict[str, np.ndarray], rows: np.ndarray, split: Split) -> Scores:
        vectors = outputs["vectors"].astype(np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        similarity = split.label_columns["similarity"][rows["document"][:, 0]]
        is_scored = ~np.isnan(similarity)
        scores = {}
        if is_scored.any():
            cosines = (vectors[is_scored, 0] * vectors[is_scored, 1]).sum(-1)
            similarity = similarity[is_scored]
            scores |= {name: f(cosines, similarity) for name, f in SIMILARITY_SCORES.items()}
        if not is_scored.all():
            has_text, text_ids = rows["a_end"] > rows["a_start"], rows["label"]
            scores |= score_positive_ranks(vectors[~is_scored], has_text[~is_scored], text_ids[~is_scored])
        return scores


SIMILARITY_SCORES = {"spearman": score_spearman, "pearson": score_pearson}
