"""What ELECTRA and its stepping stones share: a small masked language model fills the masks of another network's text
(Clark et al., 2020, §2 and §3.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from encoders.model.config import Model, narrowed
from encoders.model.encoder import Encoder
from encoders.model.flops import forward_flops, vocabulary_flops
from encoders.model.heads import MaskedTokenHead, gather
from encoders.objectives.base import Metrics, Objectives, means, perplexity
from encoders.objectives.losses import masked_token_metrics
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
from encoders.text.tokenization import Facts

# 85 % [MASK], 15 % kept, none random, a new mask each epoch, as in the released code; positions are drawn without
# replacement, as in the paper (the code draws with replacement and so masks 13.8 % where it says 15 %).
MASKING = Masking(split=(0.85, 0.0, 0.15), copies=None)


@dataclass(frozen=True)
class Generating(Objectives):
    """What objectives have in common that show their network a text whose masks a generator has filled.

    The generator is the network narrowed to `width` and `depth` of its own; with `width=None` there is none, and every
    ordinary token is as likely to take a chosen one's place. `tie` says which tables the generator reads of the
    network's: none, the token embeddings, or all embeddings (word, position, segment and their layer norm, as the
    released code does). Its samples carry no gradient.
    """

    width: float | None = 1 / 4
    depth: float = 1.0
    tokens: Masking = MASKING
    temperature: float = 1.0
    tie: Literal["none", "tokens", "embeddings"] = "embeddings"

    def __post_init__(self):
        for name in ("width", "depth", "temperature"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"objective.{name}={getattr(self, name)} must be above 0")
        if self.tokens.special:
            raise ValueError("objective.tokens.special=True: a generator must not fill in [CLS] and [SEP]")

    body: ClassVar[str] = "discriminator"
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def copies(self) -> int | None:
        return self.tokens.copies

    def generator(self, model: Model) -> Model | None:
        """The generator that belongs to the network `model`, if there is one."""
        return None if self.width is None else narrowed(model, self.width, self.depth)

    def check(self, model: Model) -> None:
        self.generator(model)

    def networks(self, model: Model) -> list[Model]:
        return [model] if self.width is None else [model, self.generator(model)]

    def flops(self, model: Model, sizes: np.ndarray) -> dict[str, np.ndarray]:
        parts, generator = super().flops(model, sizes), self.generator(model)
        if generator is None:
            return parts
        head = vocabulary_flops(generator, self.tokens.chosen(sizes))
        return parts | {"generator": forward_flops(generator, sizes), "tokens": head}

    def corrupt(self, batch: Batch, facts: Facts, seed) -> Batch:
        masked = corrupt(self.tokens, batch, facts, seed)
        keys = of_tokens(example_keys(seed, SAMPLES, batch["epoch"], batch["id"]), batch)
        return masked | {"noise": jax.random.key_data(take_keys(keys, masked["picked"]))}

    def scores(self, sums: Metrics) -> dict[str, float]:
        scores = means(sums)
        if self.width is not None:
            scores["generator_perplexity"] = perplexity(scores["generator_loss"])
        return scores


class Filled(NamedTuple):
    """A text without masks, and how the generator came to it, at the chosen positions."""

    tokens: Int[Array, "b l"]
    samples: Int[Array, "b k"]
    logits: Float[Array, "b k v"]  # of which they are samples
    hidden: Float[Array, "b k d"] | None
    metrics: Metrics


class GeneratingModule(nn.Module):
    """The network and, if there is one, its generator; the tables that are tied live in the network."""

    model: Model
    objective: Generating
    facts: Facts

    def setup(self):
        tie, generator = self.objective.tie, self.objective.generator(self.model)
        self.discriminator = Encoder(self.model)
        if generator is None:
            return
        embed = self.discriminator.embed
        self.generator = Encoder(
            generator,
            lent_embed=embed if tie == "embeddings" else None,
            lent_word=embed.words if tie == "tokens" else None,
        )
        self.tokens = MaskedTokenHead(generator)

    def fill(self, batch: Batch, train: bool = False) -> Filled:
        """The text that the network is shown, and the generator's metrics."""
        if self.objective.width is None:
            hidden, logits, metrics = None, jnp.asarray(ordinary(self.facts)), {}
        else:
            hidden = self.read(batch, train)
            logits = self.guess(hidden)
            metrics = masked_token_metrics(logits, batch, self.facts, prefix="generator")
        logits = logits / self.objective.temperature
        samples = sample(logits, batch["noise"])
        tokens = scatter(batch["original"], batch["picked"], samples, batch["weights"])
        return Filled(tokens, samples, logits, hidden, metrics)

    def read(self, batch: Batch, train: bool = False) -> Float[Array, "b k d"]:
        """The generator's hidden states at `picked`."""
        rest = (batch["example"], batch["segments"], batch["positions"])
        return gather(self.generator(batch["tokens"], *rest, train=train), batch["picked"])

    def guess(self, hidden: Float[Array, "b k d"]) -> Float[Array, "b k v"]:
        return self.tokens(hidden, self.generator.embeddings.words.embedding)

    def predict(self, batch: Batch, train: bool = False) -> Float[Array, "b k v"]:
        """The generator's vocabulary logits at `picked` (fill-in)."""
        return self.guess(self.read(batch, train))


def ordinary(facts: Facts) -> np.ndarray:
    """Log-probabilities up to a constant, `[1 1 v]`, of a generator to which all but special tokens are the same."""
    logits = np.zeros((1, 1, facts.size), np.float32)
    logits[..., list(facts.special)] = -np.inf
    return logits


def sample(logits: Float[Array, "#b #k v"], noise: Array) -> Int[Array, "b k"]:
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
