"""Two of the steps between BERT and ELECTRA: as ELECTRA, but the network says which token stood there (Clark et al.,
2020, §3.5 and table 5): "Replace MLM" for the chosen tokens, "All-Tokens MLM" for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from encoders.model.config import Model
from encoders.model.flops import vocabulary_flops
from encoders.model.heads import MaskedTokenHead, gather
from encoders.model.layers import dense
from encoders.objectives.base import Metrics
from encoders.objectives.generator import Generating, GeneratingModule
from encoders.objectives.losses import losses
from encoders.objectives.masking import Batch
from encoders.text.tokenization import Facts
from encoders.utils.metrics import Mean


@dataclass(frozen=True)
class RestoredTokens(Generating):
    """The loss of the original tokens, given a text that the generator has filled, plus the generator's own loss.

    Each has the weight 1, of which the paper says nothing. Over all tokens the network has a copy mechanism: the
    probability of a token is D if it is the one shown, plus 1 - D times its share of the softmax, and D is a sigmoid
    of a linear layer on the hidden state.
    """

    over: Literal["all", "chosen"] = "all"

    @property
    def weights(self) -> dict[str, float]:
        return ({} if self.width is None else {"generator_loss": 1.0}) | {"restored_loss": 1.0}

    def flops(self, model: Model, sizes: np.ndarray) -> dict[str, np.ndarray]:
        tokens = sizes if self.over == "all" else self.tokens.chosen(sizes)
        return super().flops(model, sizes) | {"restored": vocabulary_flops(model, tokens)}

    def module(self, model: Model, facts: Facts) -> nn.Module:
        return RestoredTokensModule(model, self, facts)

    def counts(self, batch: Batch) -> dict:
        chosen = batch["weights"].sum()
        restored = (batch["example"] > 0).sum() if self.over == "all" else chosen
        return dict.fromkeys(self.weights, chosen) | {"restored_loss": restored}


class RestoredTokensModule(GeneratingModule):
    """A network with a masked-token head, that head's gate where it reads all tokens, and a generator."""

    objective: RestoredTokens

    def setup(self):
        super().setup()
        self.restored = MaskedTokenHead(self.model)
        if self.objective.over == "all":
            self.gate = dense(self.model, 1)

    def __call__(self, batch: Batch, train: bool = False) -> Metrics:
        filled = self.fill(batch, train)
        rest = (batch["example"], batch["segments"], batch["positions"])
        hidden = self.discriminator(filled.tokens, *rest, train=train)
        at_chosen = lambda x: jnp.take_along_axis(x, batch["picked"], axis=1)
        chosen, table = batch["weights"], self.discriminator.embeddings.words.embedding
        if self.objective.over == "chosen":
            logits = self.restored(gather(hidden, batch["picked"]), table)
            nll, weights, right, copied = losses(logits, batch["targets"]), chosen, logits.argmax(-1), {}
        else:
            logits, gate = self.restored(hidden, table), self.gate(hidden)[..., 0].astype(jnp.float32)
            weights = (batch["example"] > 0).astype(jnp.float32)
            nll = -log_chance(logits, gate, filled.tokens, batch["original"])
            right = at_chosen(likeliest(logits, gate, filled.tokens))
            copied = {"restored_copied": Mean((jax.nn.sigmoid(gate) * weights).sum(), weights.sum())}
        shown = at_chosen(filled.tokens)
        return (
            filled.metrics
            | copied
            | {
                "restored_loss": Mean((nll * weights).sum(), weights.sum()),
                "restored_accuracy": Mean(((right == batch["targets"]) * chosen).sum(), chosen.sum()),
                # What always answering the token shown would reach.
                "restored_baseline": Mean(((shown == batch["targets"]) * chosen).sum(), chosen.sum()),
            }
        )


def log_chance(
    logits: Float[Array, "b l v"], gate: Float[Array, "b l"], shown: Int[Array, "b l"], tokens: Int[Array, "b l"]
) -> Float[Array, "b l"]:
    """The logarithm of the probability of `tokens` under the copy mechanism."""
    copied = jnp.where(shown == tokens, jax.nn.log_sigmoid(gate), -jnp.inf)
    return jnp.logaddexp(copied, jax.nn.log_sigmoid(-gate) - losses(logits, tokens))


def likeliest(logits: Float[Array, "b l v"], gate: Float[Array, "b l"], shown: Int[Array, "b l"]) -> Int[Array, "b l"]:
    """The likeliest token under the copy mechanism: that shown, or the likeliest of the softmax."""
    best = logits.argmax(-1)
    kept = log_chance(logits, gate, shown, shown) >= log_chance(logits, gate, shown, best)
    return jnp.where(kept, shown, best)
