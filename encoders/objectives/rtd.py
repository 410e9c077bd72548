"""ELECTRA's replaced-token detection: a generator fills masks, a discriminator judges every token (§2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from encoders.metrics import Mean, auc
from encoders.model.config import Model, narrowed
from encoders.model.encoder import Encoder
from encoders.model.heads import MaskedTokenHead, ReplacedTokenHead, gather
from encoders.objectives.masking import (
    SAMPLES,
    Batch,
    Masking,
    corrupt,
    example_keys,
    of_tokens,
    scatter,
    take_keys,
    uniform,
)
from encoders.objectives.mlm import masked_token_metrics
from encoders.objectives.objective import Metrics, Objectives, means
from encoders.text.vocab import Facts

BINS = 1024  # of the discriminator's probability, for the ROC curve

# 85 % [MASK], 15 % kept, none random, a new mask each epoch, as in the released code; positions are drawn without
# replacement, as in the paper (the code draws with replacement and so masks 13.8 % where it says 15 %).
MASKING = Masking(split=(0.85, 0.0, 0.15), copies=None)


@dataclass(frozen=True)
class ReplacedTokens(Objectives):
    """λ times the discriminator's loss over all tokens that are no padding, plus the generator's masked-token loss.

    The generator is the discriminator narrowed to `width` and `depth` of its own; with `width=None` there is none, and
    every ordinary token is as likely to take a chosen one's place. `tie` says which tables the generator reads of the
    discriminator's: none, the token embeddings, or all embeddings (word, position, segment and their layer norm, as
    the released code does). Its samples carry no gradient; a sample equal to the original token is labelled original.
    """

    width: float | None = 1 / 4
    depth: float = 1.0
    tokens: Masking = MASKING
    weight: float = 50.0
    temperature: float = 1.0
    tie: Literal["none", "tokens", "embeddings"] = "embeddings"

    def __post_init__(self):
        for name in ("width", "depth", "temperature"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"objective.{name}={getattr(self, name)} must be above 0")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"objective.weight={self.weight} must be at least 0")
        if self.tokens.special:
            raise ValueError("objective.tokens.special=True: a generator must not fill in [CLS] and [SEP]")

    body: ClassVar[str] = "discriminator"
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def weights(self) -> dict[str, float]:
        return ({} if self.width is None else {"generator_loss": 1.0}) | {"rtd_loss": self.weight}

    @property
    def copies(self) -> int | None:
        return self.tokens.copies

    def generator(self, model: Model) -> Model | None:
        """The generator that belongs to the discriminator `model`, if there is one."""
        return None if self.width is None else narrowed(model, self.width, self.depth)

    def module(self, model: Model, facts: Facts) -> nn.Module:
        return ReplacedTokensModule(model, self, facts)

    def corrupt(self, batch: Batch, facts: Facts, seed) -> Batch:
        masked = corrupt(self.tokens, batch, facts, seed)
        keys = of_tokens(example_keys(seed, SAMPLES, batch["epoch"], batch["id"]), batch)
        return masked | {"noise": jax.random.key_data(take_keys(keys, masked["picked"]))}

    def counts(self, batch: Batch) -> dict:
        terms = {"generator_loss": batch["weights"].sum(), "rtd_loss": (batch["example"] > 0).sum()}
        return {name: terms[name] for name in self.weights}

    def scores(self, sums: Metrics) -> dict[str, float]:
        scores = means(sums)
        if self.width is not None:
            scores["generator_perplexity"] = math.exp(min(scores["generator_loss"], 700.0))
        scores["rtd_baseline"] = 1 - scores["rtd_replaced"]  # always "original"
        if "rtd_histogram" in sums:
            scores["rtd_auc"], scores["rtd_auc_error"] = auc(sums["rtd_histogram"].total)
        return scores

    def ailments(self, scores: dict[str, float]) -> list[str]:
        found = []
        if scores["rtd_replaced"] < 0.02:
            found.append(
                f"only {scores['rtd_replaced']:.1%} of the tokens are replaced, too few to learn from: a lower "
                "objective.width or objective.depth, a higher objective.temperature or mask rate may help"
            )
        if scores["rtd_accuracy"] <= scores["rtd_baseline"]:
            found.append(
                f"the discriminator is right for {scores['rtd_accuracy']:.2%} of the tokens, and always saying "
                f"'original' would be for {scores['rtd_baseline']:.2%}: more steps, a higher optimizer.rate or a "
                "smaller generator (objective.width) may help"
            )
        if self.width is not None and scores["generator_mask_accuracy"] <= scores["generator_mask_baseline"]:
            found.append(
                f"the generator finds {scores['generator_mask_accuracy']:.2%} of the masked tokens, and the commonest "
                f"token alone would be {scores['generator_mask_baseline']:.2%}: a higher optimizer.rate, or a lower "
                "objective.weight of the discriminator, may help"
            )
        return found


class ReplacedTokensModule(nn.Module):
    """Discriminator and, if it has one, generator; the tables that are tied live in the discriminator."""

    model: Model
    objective: ReplacedTokens
    facts: Facts

    def setup(self):
        tie, generator = self.objective.tie, self.objective.generator(self.model)
        self.discriminator = Encoder(self.model)
        self.replaced = ReplacedTokenHead(self.model)
        if generator is None:
            return
        embed = self.discriminator.embed
        self.generator = Encoder(
            generator,
            lent_embed=embed if tie == "embeddings" else None,
            lent_word=embed.words if tie == "tokens" else None,
        )
        self.tokens = MaskedTokenHead(generator)

    def __call__(self, batch: Batch, train: bool = False) -> Metrics:
        if self.objective.width is None:
            metrics, logits = {}, jnp.asarray(ordinary(self.facts))
        else:
            logits = self.predict(batch, train)
            metrics = masked_token_metrics(logits, batch, self.facts, prefix="generator")
        samples = sample(logits / self.objective.temperature, batch["noise"])
        tokens = scatter(batch["original"], batch["picked"], samples, batch["weights"])
        labels = (tokens != batch["original"]).astype(jnp.int32)
        verdict = self.judge(batch | {"tokens": tokens}, train)
        return metrics | replaced_token_metrics(verdict, labels, batch, roc=not train)

    def judge(self, batch: Batch, train: bool = False) -> Float[Array, "b l"]:
        """The discriminator's logit, for every token, that it was replaced."""
        rest = (batch["example"], batch["segments"], batch["positions"])
        return self.replaced(self.discriminator(batch["tokens"], *rest, train=train))

    def predict(self, batch: Batch, train: bool = False) -> Float[Array, "b k v"]:
        """The generator's vocabulary logits at `picked` (fill-in)."""
        rest = (batch["example"], batch["segments"], batch["positions"])
        hidden = self.generator(batch["tokens"], *rest, train=train)
        return self.tokens(gather(hidden, batch["picked"]), self.generator.embeddings.words.embedding)


def ordinary(facts: Facts) -> np.ndarray:
    """Log-probabilities up to a constant, `[1 1 v]`, of a generator to which all but special tokens are the same."""
    logits = np.zeros((1, 1, facts.size), np.float32)
    logits[..., list(facts.special)] = -np.inf
    return logits


def sample(logits: Float[Array, "b k v"], noise: Array) -> Int[Array, "b k"]:
    """One token a position from softmax(logits), by each position's own random number in [0, 1), without gradient.

    The token under which the number falls when probabilities lie side by side: found first among sums of about √v
    tokens, then within one of them. Gumbel noise, the same distribution, needs a random word for every entry.
    """
    size = math.isqrt(logits.shape[-1] - 1) + 1
    logits = jax.lax.stop_gradient(logits)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    weights = jnp.pad(weights, ((0, 0), (0, 0), (0, size**2 - weights.shape[-1])))
    weights = jnp.broadcast_to(weights.reshape(*weights.shape[:2], size, size), (*noise.shape[:2], size, size))
    sums = weights.sum(-1)
    block, left = under(sums, uniform(noise[..., 0]) * sums.sum(-1))
    inner, _ = under(jnp.take_along_axis(weights, block[..., None, None], axis=2)[..., 0, :], left)
    return block * size + inner


def under(parts: Float[Array, "b k n"], number: Float[Array, "b k"]) -> tuple[Int[Array, "b k"], Float[Array, "b k"]]:
    """Under which of the `parts`, side by side, a number falls, and how far into it; never under an empty one."""
    ends = jnp.cumsum(parts, axis=-1)
    beyond = ends > number[..., None]
    found = jnp.where(beyond.any(-1), beyond.argmax(-1), parts.argmax(-1))
    take = lambda x: jnp.take_along_axis(x, found[..., None], axis=-1)[..., 0]
    return found, jnp.maximum(number - (take(ends) - take(parts)), 0)


def replaced_token_metrics(verdict: Float[Array, "b l"], labels: Int[Array, "b l"], batch: Batch, roc: bool) -> Metrics:
    """Binary cross-entropy over all tokens that are no padding; accuracy, recall on the replaced, their fraction."""
    real = (batch["example"] > 0).astype(jnp.float32)
    count, replaced = real.sum(), (labels * real).sum()
    nll = jax.nn.softplus(verdict) - verdict * labels
    said = (verdict > 0).astype(jnp.int32)
    metrics = {
        "rtd_loss": Mean((nll * real).sum(), count),
        "rtd_accuracy": Mean(((said == labels) * real).sum(), count),
        "rtd_recall": Mean((said * labels * real).sum(), replaced),
        "rtd_replaced": Mean(replaced, count),
    }
    if roc:
        bins = jnp.minimum((jax.nn.sigmoid(verdict) * BINS).astype(jnp.int32), BINS - 1)
        metrics["rtd_histogram"] = Mean(jnp.zeros((2, BINS)).at[labels, bins].add(real), count)
    return metrics
