"""An encoder as it is: vectors to use, nothing to train. What a published checkpoint without heads becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from encoders.model.config import Model
from encoders.model.encoder import Encoder
from encoders.model.heads import Pooler, summary
from encoders.objectives.base import Metrics, Unchanged
from encoders.objectives.masking import Batch
from encoders.text.tokenization import Facts


@dataclass(frozen=True)
class Features(Unchanged):
    """No loss: the encoder, and its pooler where it has one."""

    pooler: bool = False

    needs: ClassVar[frozenset[str]] = frozenset()
    weights: ClassVar[dict[str, float]] = {}

    def module(self, model: Model, facts: Facts) -> nn.Module:
        return FeaturesModule(model, self, facts)


class FeaturesModule(nn.Module):
    """An encoder and perhaps a pooler."""

    model: Model
    objective: Features
    facts: Facts

    def setup(self):
        self.encoder = Encoder(self.model)
        if self.objective.pooler:
            self.pooler = Pooler(self.model)

    def __call__(self, batch: Batch, train: bool = False) -> Metrics:
        self.vectors(batch)
        return {}

    def vectors(self, batch: Batch) -> tuple[Float[Array, "b l d"], Float[Array, "b s d"] | None]:
        """The hidden states, and the pooled [CLS] of each example where there is a pooler."""
        hidden = self.encoder(batch["tokens"], batch["example"], batch["segments"], batch["positions"])
        return hidden, self.pooler(summary(self.model, hidden, batch)) if self.objective.pooler else None
