"""BERT's, RoBERTa's and ALBERT's objective: masked tokens, and perhaps a sentence task, on one encoder."""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float

from encoders.model.config import Model
from encoders.model.encoder import Encoder
from encoders.model.flops import vocabulary_flops
from encoders.model.heads import ClassHead, MaskedTokenHead, Pooler, gather, summary
from encoders.objectives.base import Metrics, Objectives, means, perplexity
from encoders.objectives.losses import masked_token_metrics
from encoders.objectives.masking import Batch, Masking, corrupt
from encoders.objectives.sentence_pair import NextSentence, SentenceOrder, pair_metrics
from encoders.text.tokenization import Facts


@dataclass(frozen=True)
class Joint(Objectives):
    """The sum of the masked-token loss and, unless `sentences` is None, of a sentence-pair loss."""

    tokens: Masking = Masking()
    sentences: NextSentence | SentenceOrder | None = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.sentences.label} if self.sentences else ())

    @property
    def weights(self) -> dict[str, float]:
        return {"mlm_loss": 1.0} | ({f"{self.sentences.name}_loss": 1.0} if self.sentences else {})

    @property
    def copies(self) -> int | None:
        return self.tokens.copies

    def module(self, model: Model, facts: Facts) -> nn.Module:
        return JointModule(model, self, facts)

    def corrupt(self, batch: Batch, facts: Facts, seed) -> Batch:
        return corrupt(self.tokens, batch, facts, seed)

    def counts(self, batch: Batch) -> dict:
        terms = {"mlm_loss": batch["weights"].sum()}
        return terms | ({f"{self.sentences.name}_loss": batch["valid"].sum()} if self.sentences else {})

    def flops(self, model: Model, sizes: np.ndarray) -> dict[str, np.ndarray]:
        return super().flops(model, sizes) | {"tokens": vocabulary_flops(model, self.tokens.chosen(sizes))}

    def scores(self, sums: Metrics) -> dict[str, float]:
        scores = means(sums)
        scores["mlm_perplexity"] = perplexity(scores["mlm_loss"])
        if self.sentences:
            name = self.sentences.name
            share = scores.pop(f"{name}_positives")
            scores[f"{name}_baseline"] = max(share, 1 - share)
        return scores


class JointModule(nn.Module):
    """An encoder, its masked-token head, and a pooler and two classes where there is a sentence task."""

    model: Model
    objective: Joint
    facts: Facts

    def setup(self):
        self.encoder = Encoder(self.model)
        self.tokens = MaskedTokenHead(self.model)
        if self.objective.sentences:
            self.pooler = Pooler(self.model)
            self.pair = ClassHead(self.model, 2)

    def __call__(self, batch: Batch, train: bool = False) -> Metrics:
        hidden = self.encoder(batch["tokens"], batch["example"], batch["segments"], batch["positions"], train=train)
        logits = self.tokens(gather(hidden, batch["picked"]), self.encoder.embeddings.words.embedding)
        metrics = masked_token_metrics(logits, batch, self.facts)
        if self.objective.sentences:
            classes = self.pair(self.pooler(summary(self.model, hidden, batch)))
            metrics |= pair_metrics(classes, batch, self.objective.sentences)
        return metrics

    def predict(self, batch: Batch) -> Float[Array, "b k v"]:
        """Vocabulary logits at `picked` (fill-in)."""
        hidden = self.encoder(batch["tokens"], batch["example"], batch["segments"], batch["positions"])
        return self.tokens(gather(hidden, batch["picked"]), self.encoder.embeddings.words.embedding)
