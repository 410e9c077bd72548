"""Training of sentence embeddings: one vector for each text, and a loss that compares the vectors of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple, no_type_check

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from encoders.data.batch import Batch
from encoders.data.formats import Format
from encoders.data.store import Split
from encoders.model.config import EncoderConfig
from encoders.model.encoder import Encoder
from encoders.model.heads import POOLER_PARAMS, compute_vocabulary_logits, embed_examples, make_pooler
from encoders.model.ops import make_dense
from encoders.objectives.base import Metrics, Scores, SupervisedObjective, TaskModule
from encoders.objectives.causal_lm import choose_next_tokens
from encoders.objectives.deletion import delete_tokens
from encoders.objectives.embedding_losses import EmbeddingLoss, InfoNCE, TextRelations
from encoders.objectives.losses import compute_class_metrics, compute_masked_lm_metrics
from encoders.objectives.masking import MaskedBatch, Masking, mask_tokens
from encoders.tasks.scores import score_pearson, score_positive_ranks, score_spearman
from encoders.text.tokenization import VocabInfo
from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields
from encoders.utils.metrics import Mean


class EncodedTexts(NamedTuple):
    """Outputs that the losses read, row by row, so that parts of a batch can be encoded one after another.

    - `vectors`: of each text, from the last layer.
    - `layer_vectors`: from each of `loss.layers`, in training.
    - `row_metrics`: metrics of the tokens of each row that are predicted, `[b]`.
    """

    vectors: Float[Array, "b s d"]
    layer_vectors: tuple[Float[Array, "b s d"], ...]
    row_metrics: Metrics


@no_type_check  # jax builds it with leaves of other types
class ShortenedBatch(MaskedBatch, kw_only=True):
    """A batch whose tokens are to predict from the vectors of `shortened`, the same rows without a share of them."""

    shortened: Batch


class ContrastiveModule(TaskModule):
    """Module of an encoder and, where the objective needs them, a pooler, a projection and a scale of cosines.

    The outputs that other tasks name logits are `EncodedTexts` here.
    """

    def setup(self):
        objective = self.objective
        self.encoder = Encoder(self.config)
        if objective.pooling in POOLER_PARAMS:
            setattr(self, POOLER_PARAMS[objective.pooling], make_pooler(self.config, objective.pooling))
        if objective.projection_size:
            self.projection = make_dense(self.config, objective.projection_size)
        if objective.loss.initial_scale:
            initial = nn.initializers.constant(math.log(objective.loss.initial_scale))
            self.log_scale = self.param("log_scale", initial, ())

    def compute_logits(self, batch: Batch, train: bool = False) -> EncodedTexts:
        """Return the vectors of the texts, in training behind the projection, and metrics of tokens to predict."""
        clean = batch.replace(input_ids=batch.clean_ids) if isinstance(batch, MaskedBatch) else batch
        embed = partial(self.embed_texts, batch=clean, train=train)
        layers = self.objective.loss.layers if train else ()
        hidden = self.encoder(clean, train=train, output_hidden_states=bool(layers))
        row_metrics = self.predict_tokens(batch, train) if isinstance(batch, MaskedBatch) else {}
        if not layers:
            return EncodedTexts(embed(hidden), (), row_metrics)
        return EncodedTexts(embed(hidden[-1]), tuple(embed(hidden[layer]) for layer in layers), row_metrics)

    def embed_texts(self, hidden: Float[Array, "b l d"], batch: Batch, train: bool) -> Float[Array, "b s e"]:
        """Return the vector of each text from the hidden states of a layer, in training behind the projection."""
        vectors = self.pool_texts(hidden, batch)
        if self.objective.projection_size and (train or self.is_initializing()):
            vectors = jnp.tanh(self.projection(vectors))
        return vectors.astype(jnp.float32)

    def pool_texts(self, hidden: Float[Array, "b l d"], batch: Batch) -> Float[Array, "b s d"]:
        """Return the vector of each text from the hidden states of a layer."""
        pooling = self.objective.pooling
        pooler = getattr(self, POOLER_PARAMS[pooling]) if pooling in POOLER_PARAMS else None
        return embed_examples(self.config, pooler, hidden, batch, pooling)

    def predict_tokens(self, batch: MaskedBatch, train: bool) -> Metrics:
        """Return the metrics of the tokens of each row that are predicted, `[b]`."""
        raise NotImplementedError

    def compute_metrics(self, logits: EncodedTexts, batch: Batch) -> Metrics:
        loss, rows = self.objective.loss, TextRelations.from_batch(batch)
        scale = jnp.exp(self.log_scale) if loss.initial_scale else None
        compare = lambda vectors: loss.compute_metrics(vectors.reshape(*rows.has_text.shape, -1), rows, scale)
        metrics = compare(logits.vectors)
        for vectors in logits.layer_vectors:
            total = compare(vectors)["contrastive_loss"].total
            last = metrics["contrastive_loss"]
            metrics["contrastive_loss"] = Mean(last.total + total, last.count)
        return metrics | {name: Mean(mean.total.sum(), mean.count.sum()) for name, mean in logits.row_metrics.items()}

    def compute_outputs(self, logits: EncodedTexts, batch: Batch) -> dict[str, Array]:
        num_rows, num_groups = batch.labels["group_id"].shape
        return {"vectors": logits.vectors.reshape(num_rows, num_groups, -1, logits.vectors.shape[-1])}


class MaskingContrastiveModule(ContrastiveModule):
    """Module that also predicts masked tokens, in a second pass."""

    def setup(self):
        super().setup()
        self.tokens = self.config.token_head(self.config)

    def predict_tokens(self, batch: MaskedBatch, train: bool) -> Metrics:
        score = lambda logits, row: compute_masked_lm_metrics(logits, row, self.vocab)
        return compute_row_metrics(score, self.compute_token_logits(batch, train), batch)

    def compute_token_logits(self, batch: MaskedBatch, train: bool = False) -> Float[Array, "b k v"]:
        """Return vocabulary logits at the masked positions."""
        hidden = self.encoder(batch, train=train)
        return compute_vocabulary_logits(self.tokens, self.encoder, hidden, batch.masked_positions)


class DenoisingModule(ContrastiveModule):
    """Module that also predicts texts from the vectors of shortened ones, by a decoder made of the encoder."""

    def setup(self):
        super().setup()
        self.tokens = self.config.token_head(self.config)
        self.decoder = self.param("decoder", lambda key: {"layers": self.encoder.init_memory_params(key)})

    def predict_tokens(self, batch: ShortenedBatch, train: bool) -> Metrics:
        vectors = self.pool_texts(self.encoder(batch.shortened, train=train), batch.shortened)
        hidden = self.encoder.decode(batch, vectors, self.decoder["layers"], train)
        logits = compute_vocabulary_logits(self.tokens, self.encoder, hidden, batch.masked_positions - 1)
        score = lambda logits, row: compute_class_metrics(
            logits, row.masked_labels, row.masked_weights, "reconstruction"
        )
        return compute_row_metrics(score, logits, batch)


def compute_row_metrics(score: Callable[..., Metrics], logits: Float[Array, "b k v"], batch: MaskedBatch) -> Metrics:
    """Return the metrics of `score` of each row, `[b]`."""
    score_row = lambda *row: score(*jax.tree.map(lambda x: x[None], row))
    return jax.vmap(score_row)(logits, batch)


@dataclass(frozen=True)
class Contrastive(SupervisedObjective):
    """Training of an encoder for the cosine of the vectors of its texts, by `loss`.

    A vector is the hidden state of [CLS] ("cls") or of the last token ("last"), the mean over tokens ("mean"), or the
    pooler's ("pooled"). "attention" is a mean whose weights are learned. `projection_size` adds a dense layer of
    that size and tanh, in training only (SimCSE, https://arxiv.org/abs/2104.08821, §6.3).

    With `masking` a second pass reads the texts with masked tokens, and `masked_lm_weight` times their masked-token
    loss is added (SimCSE, appendix D). With `deletion_rate` that share of the tokens is deleted instead, and a decoder
    predicts the whole text from the vector of what is left. `reconstruction_weight` times its loss is added. The
    decoder is the encoder's layers, which also read the vector. With the loss `NoComparison`, this is TSDAE (Wang et
    al., 2021, https://arxiv.org/abs/2104.06979, §3).

    The loss compares all rows of the batch, on all devices and processes. `grad_accum_steps` bounds the memory, not the
    negatives: rows are encoded in so many chunks, and encoded again for their gradients (Gao et al., 2021,
    https://arxiv.org/abs/2101.06983), which are those of the whole batch.

    Held-out scores are `spearman` and `pearson` of scored rows. Of other rows they are `accuracy`, the share of anchors
    whose positive text is nearest among the texts of the split, and `mrr`, the mean reciprocal rank. `best_score`
    selects the best checkpoint. `prompts` are names and texts that the rows were read with, for use afterwards.
    """

    loss: EmbeddingLoss = InfoNCE()
    pooling: Literal["cls", "mean", "last", "pooled", "attention"] = "mean"
    projection_size: int | None = None
    best_score: Literal["spearman", "accuracy", "mrr"] = "accuracy"
    prompts: tuple[tuple[str, str], ...] = field(default=(), metadata={"not_fingerprinted": True})
    masking: Masking | None = None
    masked_lm_weight: float = 0.1
    deletion_rate: float | None = None
    reconstruction_weight: float = 1.0

    def __post_init__(self):
        is_size = lambda size: size is None or size >= 1
        checks: list[tuple[str, Callable, str]] = [
            ("projection_size", is_size, "at least 1, or None"),
            ("masked_lm_weight reconstruction_weight", lambda weight: 0 < weight < math.inf, "above 0"),
            ("deletion_rate", lambda rate: rate is None or 0 < rate < 1, "above 0 and below 1, or None"),
        ]
        check_fields(self, "objective.", checks)
        if self.masking and self.deletion_rate:
            given = f"objective.masking={self.masking} and objective.deletion_rate={self.deletion_rate}"
            raise UserError(f"{given}: give one of them, since both are losses of the same tokens")
        if not self.loss_weights:
            raise UserError("objective.loss=NoComparison needs objective.deletion_rate or objective.masking")

    @property
    def module_class(self) -> type[TaskModule]:
        if self.deletion_rate:
            return DenoisingModule
        return MaskingContrastiveModule if self.masking else ContrastiveModule

    @property
    def compares_rows(self) -> bool:
        return self.loss.compares_vectors

    @property
    def loss_weights(self) -> dict[str, float]:
        weights = {"contrastive_loss": 1.0} if self.loss.compares_vectors else {}
        weights |= {"mlm_loss": self.masked_lm_weight} if self.masking else {}
        return weights | ({"reconstruction_loss": self.reconstruction_weight} if self.deletion_rate else {})

    @property
    def required_fields(self) -> frozenset[str]:
        return frozenset(
            {"text_id", "group_id", "similarity", *(["teacher_vector"] if self.loss.needs_teacher else [])}
        )

    @property
    def num_distinct_passes(self) -> int | None:
        if self.deletion_rate:
            return None
        return self.masking.dupe_factor if self.masking else 1

    @property
    def best_metric(self) -> str:
        return self.best_score

    @property
    def embedding_settings(self) -> dict:
        """Fields of `SentenceEmbedding`: how the trained encoder gives the vector of a text."""
        return {"pooling": self.pooling, "normalize": True, "prompts": dict(self.prompts)}

    def module(self, config: EncoderConfig, vocab: VocabInfo) -> TaskModule:
        """Return the networks. Raises `UserError` for a layer or a size that the encoder lacks."""
        if problem := self.loss.find_size_problem(config.num_layers, self.projection_size or config.hidden_size):
            raise UserError(problem)
        return super().module(config, vocab)

    def corrupt(self, batch: Batch, vocab: VocabInfo, seed) -> Batch:
        if self.deletion_rate:
            shortened = delete_tokens(self.deletion_rate, batch, vocab, seed)
            return ShortenedBatch(**choose_next_tokens(batch).get_arrays(), shortened=shortened)
        return mask_tokens(self.masking, batch, vocab, seed) if self.masking else batch

    def find_format_problem(self, row_format: Format, config: EncoderConfig) -> str | None:
        if problem := super().find_format_problem(row_format, config):
            return problem
        loss = f"objective.loss={type(self.loss).__name__}"
        needed, num_texts = self.loss.min_texts, row_format.num_texts
        if num_texts < needed:
            return f"{loss} needs rows of {needed} texts, and phases.format.num_texts={num_texts}"
        size, vector_size = self.projection_size or config.hidden_size, row_format.vector_size
        if self.loss.needs_teacher and vector_size != size:
            return f"{loss} needs phases.format.vector_size={size}, as the encoder's vectors, and it is {vector_size}"
        return None

    def scores(self, sums: Metrics) -> dict[str, float]:
        """Return the scores of metrics that were counted: scored rows alone have no contrastive loss."""
        return super().scores({name: mean for name, mean in sums.items() if mean.count})

    def score_outputs(self, outputs: dict[str, np.ndarray], rows: np.ndarray, split: Split) -> Scores:
        vectors = np.concatenate(outputs["vectors"]).astype(np.float64)  # [groups s d]
        rows = rows.reshape(vectors.shape[:2])
        is_group = rows["a_end"][:, 0] > rows["a_start"][:, 0]
        vectors, rows = vectors[is_group], rows[is_group]
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
