"""Masked language modelling with or without a sentence-pair task: the objective of BERT, RoBERTa and ALBERT."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from encoders.data.batch import Batch
from encoders.model.config import EncoderConfig
from encoders.model.encoder import Encoder
from encoders.model.heads import ClassificationHead, compute_vocabulary_logits, pool_examples
from encoders.objectives.base import Metrics, Objective, ObjectiveModule, perplexity
from encoders.objectives.losses import compute_class_metrics, compute_masked_lm_metrics
from encoders.objectives.masking import MaskedBatch, Masking, mask_tokens
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.text.tokenization import VocabInfo
from encoders.utils.field_checks import check_fields
from encoders.utils.metrics import Mean


@dataclass(frozen=True)
class MaskedLM(Objective):
    """The masked-token loss plus, unless `sentence_task` is None, a sentence-pair loss.

    `z_loss_weight`, for instance 1e-4, adds the mean square of log Σ exp(logits) at the masked positions, which keeps
    logits small (Chowdhery et al., 2022, https://arxiv.org/abs/2204.02311, §5). Raises `ValueError` for one below 0.
    """

    masking: Masking = Masking()
    sentence_task: NextSentencePrediction | SentenceOrderPrediction | None = None
    z_loss_weight: float = 0.0

    def __post_init__(self):
        is_weight = lambda weight: 0 <= weight < math.inf
        check_fields(self, "objective.", [("z_loss_weight", is_weight, "at least 0")])

    @property
    def required_fields(self) -> frozenset[str]:
        return frozenset({self.sentence_task.label_field} if self.sentence_task else ())

    @property
    def loss_weights(self) -> dict[str, float]:
        terms = {"mlm_loss": 1.0} | ({"z_loss": self.z_loss_weight} if self.z_loss_weight else {})
        return terms | ({f"{self.sentence_task.metric_prefix}_loss": 1.0} if self.sentence_task else {})

    @property
    def num_distinct_passes(self) -> int | None:
        return self.masking.dupe_factor

    def module(self, config: EncoderConfig, vocab: VocabInfo) -> ObjectiveModule:
        return MaskedLMModule(config, self, vocab)

    def corrupt(self, batch: Batch, vocab: VocabInfo, seed) -> MaskedBatch:
        return mask_tokens(self.masking, batch, vocab, seed)

    def scores(self, sums: Metrics) -> dict[str, float]:
        scores = super().scores(sums)
        scores["mlm_perplexity"] = perplexity(scores["mlm_loss"])
        if self.sentence_task:
            name = self.sentence_task.metric_prefix
            share = scores.pop(f"{name}_positives")
            scores[f"{name}_baseline"] = max(share, 1 - share)
        return scores


class MaskedLMModule(ObjectiveModule):
    """An encoder and its masked-token head, with a pooler and a two-class head for a sentence task."""

    def setup(self):
        self.encoder = Encoder(self.config)
        self.tokens = self.config.token_head(self.config)
        if self.objective.sentence_task:
            self.pooler = self.config.pooler(self.config)
            self.pair = ClassificationHead(self.config, 2)

    def __call__(self, batch: MaskedBatch, train: bool = False) -> Metrics:
        hidden = self.encoder(batch, train=train)
        logits = self.predict_tokens(hidden, batch)
        metrics = compute_masked_lm_metrics(logits, batch, self.vocab)
        if self.objective.z_loss_weight:
            squares = jnp.square(jax.nn.logsumexp(logits, axis=-1)) * batch.masked_weights
            metrics["z_loss"] = Mean(squares.sum(), batch.masked_weights.sum())
        if task := self.objective.sentence_task:
            classes = self.pair(pool_examples(self.config, self.pooler, hidden, batch))
            labels, weights = batch.labels[task.label_field], batch.example_mask.astype(jnp.float32)
            metrics |= compute_class_metrics(classes, labels, weights, task.metric_prefix)
            metrics[f"{task.metric_prefix}_positives"] = Mean((labels * weights).sum(), weights.sum())
        return metrics

    def predict_tokens(self, hidden: Float[Array, "b l d"], batch: MaskedBatch) -> Float[Array, "b k v"]:
        return compute_vocabulary_logits(self.tokens, self.encoder, hidden, batch.masked_positions)

    def compute_token_logits(self, batch: MaskedBatch) -> Float[Array, "b k v"]:
        """Return vocabulary logits at the masked positions."""
        return self.predict_tokens(self.encoder(batch), batch)
