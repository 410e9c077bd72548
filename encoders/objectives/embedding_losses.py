"""Losses of vectors: contrastive losses of texts that belong together, and regressions on the similarity of two texts.

Axes: b rows, s texts of a row, d size of a vector. The first text of a row is its anchor, the second one its positive
text, and the others are hard negatives. A scored row is two texts and their similarity. A packed row of the batch is
several rows here. Every loss reads the vectors of the whole batch, so its value does not depend on the devices that
hold them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from encoders.data.batch import Batch
from encoders.objectives.base import Metrics
from encoders.utils.field_checks import check_fields
from encoders.utils.metrics import Mean

MASKED_LOGIT = -1e30  # of a text that is not a negative; finite, so that gradients are
EPSILON = 1e-12  # least length of a vector that is scaled


class TextRelations(NamedTuple):
    """Relations between the texts of a batch.

    - `has_text`: true where a slot holds a text.
    - `text_ids`: equal for equal texts.
    - `group_ids`: equal for rows whose texts belong together, 0 for rows of no group.
    - `similarity`: of the two texts of a scored row, NaN for other rows.
    - `teacher_vectors`: of the first text of each row, 0 where it is unknown; None without a teacher.
    """

    has_text: Bool[Array, "b s"]
    text_ids: Int[Array, "b s"]
    group_ids: Int[Array, " b"]
    similarity: Float[Array, " b"]
    teacher_vectors: Float[Array, "b o t"] | None = None

    @property
    def is_scored(self) -> Bool[Array, " b"]:
        return ~jnp.isnan(self.similarity)

    @classmethod
    def from_batch(cls, batch: Batch) -> TextRelations:
        labels, num_groups = batch.labels, batch.labels["group_id"].size
        has_text, text_ids = (field.reshape(num_groups, -1) for field in (batch.example_mask > 0, labels["text_id"]))
        group_ids = jnp.where(has_text[:, 0], labels["group_id"].reshape(-1), 0)
        similarity = jnp.where(has_text[:, 0], labels["similarity"].reshape(-1), jnp.nan)
        teacher_vectors = labels.get("teacher_vector")
        if teacher_vectors is not None:
            teacher_vectors = teacher_vectors.reshape(num_groups, 1, -1).astype(jnp.float32)
        return cls(has_text, text_ids, group_ids, similarity.astype(jnp.float32), teacher_vectors)


def normalize_vectors(vectors: Float[Array, "*axes d"]) -> Float[Array, "*axes d"]:
    """Return vectors of length 1; a vector of zeros stays one, with finite gradients."""
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.square(vectors).sum(-1, keepdims=True), EPSILON**2))


def compare_first_two(vectors: Float[Array, "b s d"]) -> Float[Array, " b"]:
    """Return the cosine of the first two texts of each row."""
    vectors = normalize_vectors(vectors)
    return jnp.einsum("bod,bpd->b", vectors[:, :1], vectors[:, 1:2])


class EmbeddingLoss:
    """Base class of losses, frozen dataclasses.

    `min_texts` is the number of texts that a row needs. In training the vectors of `layers` have the loss too, beside
    those of the last layer. `needs_teacher` is true of a loss that reads a teacher's vectors, and `compares_vectors` of
    one that reads those of the batch.
    """

    min_texts: ClassVar[int] = 2
    compares_vectors: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = False
    initial_scale: ClassVar[float | None] = None  # of a scale that is learned, beside the encoder
    layers: ClassVar[tuple[int, ...]] = ()

    def find_size_problem(self, num_layers: int, vector_size: int) -> str | None:
        """Return why an encoder of so many layers, or vectors of that size, cannot have the loss, if they cannot."""
        return None

    def compute_metrics(self, vectors: Float[Array, "b s d"], rows: TextRelations, scale: Array | None) -> Metrics:
        """Return the metric `contrastive_loss` and others. The count of a loss depends on `rows` alone."""
        raise NotImplementedError


@dataclass(frozen=True)
class NoComparison(EmbeddingLoss):
    """No loss of vectors: the encoder learns from tokens alone, as TSDAE."""

    min_texts: ClassVar[int] = 1
    compares_vectors: ClassVar[bool] = False

    def compute_metrics(self, vectors: Float[Array, "b s d"], rows: TextRelations, scale: Array | None) -> Metrics:
        return {}


@dataclass(frozen=True)
class InfoNCE(EmbeddingLoss):
    """Cross-entropy of the positive text among all texts of the batch (van den Oord et al., 2018,
    https://arxiv.org/abs/1807.03748, eq. 4; SimCSE, https://arxiv.org/abs/2104.08821, eq. 1 and 5).

    The logits of an anchor are its cosines with the positive texts and hard negatives of all rows, over `temperature`,
    which is learned with `learn_temperature` (CLIP, https://arxiv.org/abs/2103.00020, §2.5). `symmetric` adds the
    cross-entropy of the anchor among all anchors, and halves the sum. With `mask_equal_texts` a text is not a negative
    where it equals the anchor or its positive text, nor one of a row with the same anchor or group. Scored rows have no
    positive text.
    """

    temperature: float = 0.05
    learn_temperature: bool = False
    symmetric: bool = False
    mask_equal_texts: bool = True

    def __post_init__(self):
        is_positive = lambda temperature: 0 < temperature < math.inf
        check_fields(self, "objective.loss.", [("temperature", is_positive, "above 0")])

    @property
    def initial_scale(self) -> float | None:
        return 1 / self.temperature if self.learn_temperature else None

    def compute_metrics(self, vectors: Float[Array, "b s d"], rows: TextRelations, scale: Array | None) -> Metrics:
        scale = 1 / self.temperature if scale is None else scale
        vectors = normalize_vectors(vectors)
        anchors, texts = vectors[:, 0], vectors[:, 1:]
        is_pair = rows.has_text[:, 0] & rows.has_text[:, 1:2].any(1) & ~rows.is_scored
        weights = is_pair.astype(jnp.float32)
        positive = jnp.einsum("bd,bpd->b", anchors, texts[:, :1]) * scale
        logits = jnp.einsum("bd,csd->bcs", anchors, texts) * scale
        logits = jnp.where(self.find_negatives(rows), logits, MASKED_LOGIT).reshape(len(logits), -1)
        loss = cross_entropy_of_first(positive, logits)
        if self.symmetric:
            other_anchors = jnp.einsum("bpd,cd->bc", texts[:, :1], anchors) * scale
            is_negative = self.find_negative_anchors(rows)
            loss = (loss + cross_entropy_of_first(positive, jnp.where(is_negative, other_anchors, MASKED_LOGIT))) / 2
        is_first = positive > logits.max(-1, initial=MASKED_LOGIT)
        metrics = {
            "contrastive_loss": Mean((loss * weights).sum(), weights.sum()),
            "contrastive_accuracy": Mean((is_first * weights).sum(), weights.sum()),
        }
        if self.learn_temperature:
            metrics["temperature"] = Mean(1 / scale, jnp.ones(()))
        return metrics

    def find_negatives(self, rows: TextRelations) -> Bool[Array, "b c n"]:
        """Return which texts of row c, behind its anchor, are negatives of the anchor of row b."""
        num_rows, num_slots = rows.has_text.shape
        is_negative = jnp.broadcast_to(rows.has_text[None, :, 1:], (num_rows, num_rows, num_slots - 1))
        is_own_positive = jnp.eye(num_rows, dtype=bool)[:, :, None] & (jnp.arange(num_slots - 1) == 0)
        is_negative &= ~is_own_positive
        if not self.mask_equal_texts:
            return is_negative
        equals_own = (rows.text_ids[:, None, None, :2] == rows.text_ids[None, :, 1:, None]).any(-1)
        other_belongs = (self.have_equal_groups(rows) & ~jnp.eye(num_rows, dtype=bool))[:, :, None]
        is_other_positive = jnp.arange(num_slots - 1) == 0
        return is_negative & ~equals_own & ~(other_belongs & is_other_positive)

    def find_negative_anchors(self, rows: TextRelations) -> Bool[Array, "b c"]:
        """Return which anchors of rows c are negatives of the positive text of row b."""
        is_negative = rows.has_text[None, :, 0] & ~jnp.eye(len(rows.has_text), dtype=bool)
        if not self.mask_equal_texts:
            return is_negative
        equals_own = (rows.text_ids[:, None, :2] == rows.text_ids[None, :, :1]).any(-1)
        have_equal_positives = (rows.text_ids[:, None, 1:2] == rows.text_ids[None, :, 1:2]).any(-1)
        return is_negative & ~equals_own & ~have_equal_positives & ~self.have_equal_groups(rows)

    @staticmethod
    def have_equal_groups(rows: TextRelations) -> Bool[Array, "b c"]:
        """Return which rows have the same anchor, or are of the same group."""
        have_equal_anchors = rows.text_ids[:, None, 0] == rows.text_ids[None, :, 0]
        groups = rows.group_ids
        return have_equal_anchors | ((groups[:, None] == groups[None, :]) & (groups != 0))


def cross_entropy_of_first(first: Float[Array, " b"], others: Float[Array, "b n"]) -> Float[Array, " b"]:
    """Return the cross-entropy in nats of the logit `first` beside `others`."""
    return jax.nn.logsumexp(jnp.concatenate([first[:, None], others], axis=1), axis=1) - first


@dataclass(frozen=True)
class TripletLoss(EmbeddingLoss):
    """max(0, d(anchor, positive) - d(anchor, negative) + margin), the mean over negatives (Sentence-BERT, Reimers and
    Gurevych, 2019, https://arxiv.org/abs/1908.10084, §3). The distance d is Euclidean, or 1 - cosine."""

    margin: float = 5.0
    distance: Literal["euclidean", "cosine"] = "euclidean"

    min_texts: ClassVar[int] = 3

    def __post_init__(self):
        check_fields(self, "objective.loss.", [("margin", lambda margin: 0 <= margin < math.inf, "at least 0")])

    def compute_metrics(self, vectors: Float[Array, "b s d"], rows: TextRelations, scale: Array | None) -> Metrics:
        distances = self.measure_distances(vectors[:, :1], vectors[:, 1:])
        is_triplet = rows.has_text[:, :1] & rows.has_text[:, 1:2] & rows.has_text[:, 2:]
        weights = is_triplet.astype(jnp.float32)
        losses = jax.nn.relu(distances[:, :1] - distances[:, 1:] + self.margin)
        is_closer = (distances[:, :1] < distances[:, 1:]).astype(jnp.float32)
        return {
            "contrastive_loss": Mean((losses * weights).sum(), weights.sum()),
            "contrastive_accuracy": Mean((is_closer * weights).sum(), weights.sum()),
        }

    def measure_distances(self, anchors: Float[Array, "b o d"], texts: Float[Array, "b n d"]) -> Float[Array, "b n"]:
        if self.distance == "cosine":
            return 1 - jnp.einsum("bod,bnd->bn", normalize_vectors(anchors), normalize_vectors(texts))
        # The small number keeps the gradient of a distance of 0 finite: torch adds it to the difference.
        return jnp.sqrt(jnp.square(anchors - texts + 1e-6).sum(-1))


@dataclass(frozen=True)
class CosineMSE(EmbeddingLoss):
    """Mean squared difference of the cosine and the similarity (Sentence-BERT, §3)."""

    def compute_metrics(self, vectors: Float[Array, "b s d"], rows: TextRelations, scale: Array | None) -> Metrics:
        weights = rows.is_scored.astype(jnp.float32)
        similarity = jnp.where(rows.is_scored, rows.similarity, 0.0)
        errors = jnp.square(compare_first_two(vectors) - similarity) * weights
        return {"contrastive_loss": Mean(errors.sum(), weights.sum())}


def compute_order_loss(values: Float[Array, " b"], rows: TextRelations, scale: float) -> Metrics:
    """Return log(1 + Σ exp(scale (value i - value j))) over the scored rows i of lower similarity than j: one number a
    batch."""
    values = values * scale
    is_lower = rows.similarity[:, None] < rows.similarity[None, :]  # false for NaN
    differences = jnp.where(is_lower, values[:, None] - values[None, :], MASKED_LOGIT)
    loss = jax.nn.logsumexp(jnp.append(differences.reshape(-1), 0.0))
    count = rows.is_scored.any().astype(jnp.float32)
    return {"contrastive_loss": Mean(loss * count, count)}


@dataclass(frozen=True)
class CoSENT(EmbeddingLoss):
    """Order of the cosines of scored rows (Su, 2022, https://kexue.fm/archives/8847). The similarity has any scale."""

    scale: float = 20.0

    def compute_metrics(self, vectors: Float[Array, "b s d"], rows: TextRelations, scale: Array | None) -> Metrics:
        return compute_order_loss(compare_first_two(vectors), rows, self.scale)


@dataclass(frozen=True)
class AnglE(EmbeddingLoss):
    """Order of the differences of angles in complex space (Li and Li, 2024, https://arxiv.org/abs/2309.12871, §3.4).

    The halves of a vector are the real and imaginary parts; a vector of odd size is padded with 0.
    """

    scale: float = 20.0

    def compute_metrics(self, vectors: Float[Array, "b s d"], rows: TextRelations, scale: Array | None) -> Metrics:
        vectors = normalize_vectors(vectors)
        vectors = jnp.pad(vectors, ((0, 0), (0, 0), (0, vectors.shape[-1] % 2)))
        real, imaginary = jnp.split(vectors, 2, axis=-1)
        sines = imaginary[:, :1] * real[:, 1:2] - real[:, :1] * imaginary[:, 1:2]
        angles = jnp.abs(compare_first_two(vectors) + sines.sum((1, 2)))
        return compute_order_loss(angles, rows, self.scale)


@dataclass(frozen=True)
class Distillation(EmbeddingLoss):
    """Mean squared difference of each number of a vector from a teacher's vector of the first text of the row (Reimers
    and Gurevych, 2020, https://arxiv.org/abs/2004.09813, eq. 1). All texts of the row learn it, such as a translation.
    """

    needs_teacher: ClassVar[bool] = True

    def compute_metrics(self, vectors: Float[Array, "b s d"], rows: TextRelations, scale: Array | None) -> Metrics:
        is_known = (rows.teacher_vectors != 0).any(-1)
        weights = (is_known & rows.has_text).astype(jnp.float32)
        errors = jnp.square(vectors - rows.teacher_vectors[..., : vectors.shape[-1]]).mean(-1)
        return {"contrastive_loss": Mean((errors * weights).sum(), weights.sum())}


@dataclass(frozen=True)
class Matryoshka(EmbeddingLoss):
    """The weighted sum of `loss` of the first numbers of each vector, for each of `sizes` (Kusupati et al., 2022,
    https://arxiv.org/abs/2205.13147, eq. 1); () is the whole vector alone. `weights` are 1 by default.

    In training the vectors of `layers`, from 1, have the same sum beside the last one, so that an earlier layer gives
    vectors too (Li et al., 2024, https://arxiv.org/abs/2402.14776, §3.2). Other metrics are those of the largest size
    of the last layer.
    """

    loss: EmbeddingLoss
    sizes: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    layers: tuple[int, ...] = ()

    def __post_init__(self):
        is_sizes = lambda sizes: all(size >= 1 for size in sizes) and (sizes or self.layers)
        is_weights = lambda weights: len(weights) in (0, len(self.sizes)) and all(0 < w < math.inf for w in weights)
        check_fields(
            self,
            "objective.loss.",
            [
                ("sizes", is_sizes, "one or more sizes, each at least 1, or () with layers"),
                ("weights", is_weights, f"above 0, one for each of sizes={self.sizes}, or ()"),
                ("loss", lambda loss: not isinstance(loss, Matryoshka | NoComparison), "a loss of whole vectors"),
            ],
        )

    @property
    def min_texts(self) -> int:
        return self.loss.min_texts

    @property
    def needs_teacher(self) -> bool:
        return self.loss.needs_teacher

    @property
    def initial_scale(self) -> float | None:
        return self.loss.initial_scale

    def find_size_problem(self, num_layers: int, vector_size: int) -> str | None:
        if any(size > vector_size for size in self.sizes):
            return f"objective.loss.sizes={self.sizes} must be at most {vector_size}, the numbers of a vector"
        if not all(1 <= layer < num_layers for layer in self.layers):
            return f"objective.loss.layers={self.layers} must be from 1 to {num_layers - 1}, below the last layer"
        return self.loss.find_size_problem(num_layers, vector_size)

    def compute_metrics(self, vectors: Float[Array, "b s d"], rows: TextRelations, scale: Array | None) -> Metrics:
        sizes = self.sizes or (vectors.shape[-1],)
        by_size = {size: self.loss.compute_metrics(vectors[..., :size], rows, scale) for size in sizes}
        weights = self.weights or (1.0,) * len(sizes)
        total = sum(w * metrics["contrastive_loss"].total for w, metrics in zip(weights, by_size.values(), strict=True))
        metrics = by_size[max(sizes)]
        return metrics | {"contrastive_loss": Mean(total, metrics["contrastive_loss"].count)}
