"""Question answering: where in the text an answer starts and ends (BERT §4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from encoders.metrics import Mean
from encoders.model.config import Model
from encoders.model.encoder import Encoder
from encoders.model.parts import dense
from encoders.objectives.masking import Batch, members
from encoders.objectives.mlm import losses
from encoders.objectives.objective import Metrics, Unchanged
from encoders.text.vocab import Facts


@dataclass(frozen=True)
class Spans(Unchanged):
    """The mean of two cross-entropies, of the first and of the last token of the answer, over the example's tokens.

    A window without the answer has [CLS] as both, as in the released code.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"first", "last"})
    weights: ClassVar[dict[str, float]] = {"first_loss": 0.5, "last_loss": 0.5}

    def module(self, model: Model, facts: Facts) -> nn.Module:
        return SpansModule(model, self, facts)

    def counts(self, batch: Batch) -> dict:
        return {name: batch["valid"].sum() for name in self.weights}


class SpansModule(nn.Module):
    """An encoder and a linear layer to two numbers a token."""

    model: Model
    objective: Spans
    facts: Facts

    def setup(self):
        self.encoder = Encoder(self.model)
        self.spans = dense(self.model, 2)

    def __call__(self, batch: Batch, train: bool = False) -> Metrics:
        logits, valid = self.logits(batch, train), batch["valid"].astype(jnp.float32)
        count, right, metrics = valid.sum(), jnp.ones(valid.shape, bool), {}
        mine = members(batch)
        for i, name in enumerate(("first", "last")):
            among = jnp.where(mine, logits[:, None, :, i], jnp.finfo(jnp.float32).min)
            metrics[f"{name}_loss"] = Mean((losses(among, batch[name]) * valid).sum(), count)
            right &= among.argmax(-1) == batch[name]
        return metrics | {"span_accuracy": Mean((right * valid).sum(), count)}

    def logits(self, batch: Batch, train: bool = False) -> Float[Array, "b l 2"]:
        """For every token, how likely an answer starts and how likely it ends there."""
        hidden = self.encoder(batch["tokens"], batch["example"], batch["segments"], batch["positions"], train=train)
        return self.spans(hidden).astype(jnp.float32)
