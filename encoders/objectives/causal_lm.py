"""Next-token prediction from left to right: BERT's "LTR & No NSP" (Devlin et al., 2019, §5.1 and table 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from encoders.model.config import Model
from encoders.model.encoder import Encoder
from encoders.model.flops import vocabulary_flops
from encoders.model.heads import MaskedTokenHead, gather
from encoders.objectives.base import Metrics, Objectives, means, perplexity
from encoders.objectives.losses import losses
from encoders.objectives.masking import Batch
from encoders.text.tokenization import Facts
from encoders.utils.metrics import Mean


@dataclass(frozen=True)
class NextToken(Objectives):
    """Every token of an example but its first, predicted from those before it, by a model whose attention is causal."""

    needs: ClassVar[frozenset[str]] = frozenset()
    weights: ClassVar[dict[str, float]] = {"clm_loss": 1.0}
    copies: ClassVar[int | None] = 1

    def check(self, model: Model) -> None:
        if not model.attend.causal:
            raise ValueError(
                f"the objective NextToken would see what it has to predict: it needs model.attend=CausalAttend, "
                f"not {model.attend.__name__}"
            )

    def module(self, model: Model, facts: Facts) -> nn.Module:
        return NextTokenModule(model, self, facts)

    def corrupt(self, batch: Batch, facts: Facts, seed) -> Batch:
        tokens, example = batch["tokens"], batch["example"]
        follows = (example[:, 1:] > 0) & (example[:, 1:] == example[:, :-1])
        places = jnp.broadcast_to(jnp.arange(1, tokens.shape[1]), follows.shape)
        targets = {"picked": places, "targets": tokens[:, 1:], "weights": follows.astype(jnp.float32)}
        return batch | {"original": tokens} | targets

    def counts(self, batch: Batch) -> dict:
        return {"clm_loss": batch["weights"].sum()}

    def flops(self, model: Model, sizes: np.ndarray) -> dict[str, np.ndarray]:
        return super().flops(model, sizes) | {"tokens": vocabulary_flops(model, sizes - 1)}

    def scores(self, sums: Metrics) -> dict[str, float]:
        scores = means(sums)
        scores["clm_perplexity"] = perplexity(scores["clm_loss"])
        return scores


class NextTokenModule(nn.Module):
    """An encoder and its masked-token head, which answers for the token after the one that it reads."""

    model: Model
    objective: NextToken
    facts: Facts

    def setup(self):
        self.encoder = Encoder(self.model)
        self.tokens = MaskedTokenHead(self.model)

    def __call__(self, batch: Batch, train: bool = False) -> Metrics:
        return next_token_metrics(self.predict(batch, train), batch["targets"], batch["weights"], self.facts)

    def predict(self, batch: Batch, train: bool = False) -> Float[Array, "b k v"]:
        """Vocabulary logits at `picked`, each from the tokens before it (fill-in)."""
        hidden = self.encoder(batch["tokens"], batch["example"], batch["segments"], batch["positions"], train=train)
        before = gather(hidden, jnp.maximum(batch["picked"] - 1, 0))
        return self.tokens(before, self.encoder.embeddings.words.embedding)


def next_token_metrics(
    logits: Float[Array, "b k v"], targets: Int[Array, "b k"], weights: Float[Array, "b k"], facts: Facts
) -> Metrics:
    """Loss and accuracy; `clm_baseline` is what always answering the most frequent token would reach."""
    count = weights.sum()
    return {
        "clm_loss": Mean((losses(logits, targets) * weights).sum(), count),
        "clm_accuracy": Mean(((logits.argmax(-1) == targets) * weights).sum(), count),
        "clm_baseline": Mean(((targets == facts.common) * weights).sum(), count),
    }
