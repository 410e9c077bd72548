"""Encoder without a training objective, for its vectors: imported checkpoints without heads have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from encoders.data.batch import Batch
from encoders.model.config import EncoderConfig
from encoders.model.encoder import Encoder
from encoders.model.heads import pool_examples
from encoders.objectives.base import Metrics, Objective
from encoders.text.tokenization import VocabInfo


@dataclass(frozen=True)
class EncoderOnly(Objective):
    """Objective without a loss: an encoder, optionally with its pooler."""

    has_pooler: bool = False

    loss_weights: ClassVar[dict[str, float]] = {}

    def module(self, config: EncoderConfig, vocab: VocabInfo) -> nn.Module:
        return EncoderOnlyModule(config, self, vocab)


class EncoderOnlyModule(nn.Module):
    """Module of an encoder and an optional pooler."""

    config: EncoderConfig
    objective: EncoderOnly
    vocab: VocabInfo

    def setup(self):
        self.encoder = Encoder(self.config)
        if self.objective.has_pooler:
            self.pooler = self.config.pooler(self.config)

    def __call__(self, batch: Batch, train: bool = False) -> Metrics:
        self.encode_batch(batch)
        return {}

    def encode_batch(self, batch: Batch) -> tuple[Float[Array, "b l d"], Float[Array, "b s d"] | None]:
        """Return the hidden states, and with a pooler the pooled [CLS] of each example."""
        hidden = self.encoder(batch)
        return hidden, pool_examples(self.config, self.pooler, hidden, batch) if self.objective.has_pooler else None
