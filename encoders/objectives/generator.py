"""Base of ELECTRA and its variants: a small masked language model fills the masks that another network reads (Clark et
al., 2020, §2 and §3.5).
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from encoders.data.batch import Batch, HostOrDeviceArray
from encoders.model.config import EncoderConfig, derive_generator_config
from encoders.model.encoder import Encoder
from encoders.model.heads import gather_hidden_states
from encoders.model.layers import ShiftedEmbedding
from encoders.objectives import masking as masks
from encoders.objectives.base import Metrics, Objective, ObjectiveModule, perplexity
from encoders.objectives.losses import compute_masked_lm_metrics
from encoders.objectives.masking import MaskedBatch, Masking
from encoders.text.tokenization import VocabInfo
from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields

# 85 % [MASK], 15 % unchanged, none random, a new mask each pass, as in the released code. Positions are drawn without
# replacement, as in the paper; the released code draws with replacement and so masks 13.8 % instead of 15 %.
ELECTRA_MASKING = Masking(split=(0.85, 0.0, 0.15), dupe_factor=None)


@no_type_check  # jax builds it with leaves of other types
class GeneratorBatch(MaskedBatch, kw_only=True):
    """A masked batch with `sampling_bits`, uint32 `[b k w]`: random words from which a masked token is sampled."""

    sampling_bits: UInt32[HostOrDeviceArray, "b k w"]


@dataclass(frozen=True)
class GeneratorObjective(Objective):
    """Base of objectives whose network reads a text in which a generator filled the masks, without a gradient."""

    generator_width: float | None = 1 / 4  # of the network's; None: uniform samples of all but special tokens
    generator_depth: float = 1.0  # of the network's
    masking: Masking = ELECTRA_MASKING
    temperature: float = 1.0
    # Shared with the network: the token embeddings, or all embeddings with their norm, as in the released code. With
    # "disentangled" the network reads the generator's token embeddings without a gradient, plus a shift (DeBERTa-v3).
    tie: Literal["none", "tokens", "embeddings", "disentangled"] = "embeddings"

    def __post_init__(self):
        is_positive = lambda value: value is None or 0 < value < math.inf
        check_fields(self, "objective.", [("generator_width generator_depth temperature", is_positive, "above 0")])
        if self.masking.mask_special:
            raise UserError("objective.masking.mask_special=True: a generator must not fill in [CLS] and [SEP]")

    @property
    def num_distinct_passes(self) -> int | None:
        return self.masking.dupe_factor

    def get_generator_config(self, config: EncoderConfig) -> EncoderConfig | None:
        """Return the generator's config for the network `config`, None without a generator. Raises `ValueError`."""
        if self.generator_width is None:
            return None
        return derive_generator_config(config, self.generator_width, self.generator_depth)

    def corrupt(self, batch: Batch, vocab: VocabInfo, seed) -> GeneratorBatch:
        masked = masks.mask_tokens(self.masking, batch, vocab, seed)
        example_keys = masks.make_example_keys(seed, masks.SAMPLE_STREAM, batch.pass_index, batch.example_index)
        keys = masks.gather_keys(masks.make_token_keys(example_keys, batch), masked.masked_positions)
        return GeneratorBatch(**masked.get_arrays(), sampling_bits=jax.random.key_data(keys))

    def scores(self, sums: Metrics) -> dict[str, float]:
        scores = super().scores(sums)
        if self.generator_width is not None:
            scores["generator_perplexity"] = perplexity(scores["generator_loss"])
        return scores


class GeneratorOutput(NamedTuple):
    """A text with filled masks, and samples, logits and hidden states of the generator at the masked positions."""

    filled_ids: Int[Array, "b l"]
    sampled_ids: Int[Array, "b k"]
    logits: Float[Array, "b k v"]  # divided by the temperature
    hidden: Float[Array, "b k d"] | None
    metrics: Metrics


class GeneratorObjectiveModule(ObjectiveModule):
    """The network, which owns the tied tables, and its generator if there is one.

    A disentangled table is the generator's, and `words` holds the network's shift of it.
    """

    def setup(self):
        tie, generator = self.objective.tie, self.objective.get_generator_config(self.config)
        if generator is not None:
            self.tokens = generator.token_head(generator)
        if generator is not None and tie == "disentangled":
            self.generator = Encoder(generator)
            self.words = ShiftedEmbedding(self.generator.embed.word_embedding)
            self.discriminator = Encoder(self.config, tied_word_embedding=self.words)
            return
        self.discriminator = Encoder(self.config)
        if generator is None:
            return
        embed = self.discriminator.embed
        self.generator = Encoder(
            generator,
            tied_embeddings=embed if tie == "embeddings" else None,
            tied_word_embedding=embed.word_embedding if tie == "tokens" else None,
        )

    def fill_masks(self, batch: GeneratorBatch, train: bool = False) -> GeneratorOutput:
        """Return the text that the network reads, and the generator's metrics."""
        if self.objective.generator_width is None:
            hidden, logits, metrics = None, np.zeros((1, 1, self.vocab.vocab_size), np.float32), {}
            logits[..., list(self.vocab.special_ids)] = -np.inf
        else:
            hidden, logits = self.predict_masked_tokens(batch, train)
            metrics = compute_masked_lm_metrics(logits, batch, self.vocab, prefix="generator")
        logits = jnp.asarray(logits) / self.objective.temperature
        samples = sample_tokens(logits, batch.sampling_bits)
        tokens = masks.scatter_tokens(batch.clean_ids, batch.masked_positions, samples, batch.masked_weights)
        return GeneratorOutput(tokens, samples, logits, hidden, metrics)

    def predict_masked_tokens(self, batch: MaskedBatch, train: bool) -> tuple[Array, Float[Array, "b k v"]]:
        """Return the generator's hidden states and vocabulary logits at the masked positions."""
        hidden = gather_hidden_states(self.generator(batch, train=train), batch.masked_positions)
        return hidden, self.tokens(hidden, self.generator.active_embeddings.word_embedding.embedding)

    def compute_token_logits(self, batch: MaskedBatch, train: bool = False) -> Float[Array, "b k v"]:
        return self.predict_masked_tokens(batch, train)[1]


def sample_tokens(logits: Float[Array, "#b #k v"], noise: Array) -> Int[Array, "b k"]:
    """Return one token a position from softmax(logits), by inverting its distribution function, without gradient.

    The search is first over sums of about √v tokens, then within one of them. Gumbel noise would need a random word for
    each entry of the vocabulary.
    """
    size = math.isqrt(logits.shape[-1] - 1) + 1
    logits = jax.lax.stop_gradient(logits)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    weights = jnp.pad(weights, ((0, 0), (0, 0), (0, size**2 - weights.shape[-1])))
    weights = jnp.broadcast_to(weights.reshape(*weights.shape[:2], size, size), (*noise.shape[:2], size, size))
    sums = weights.sum(-1)
    block, left = find_interval(sums, masks.bits_to_uniform(noise[..., 0]) * sums.sum(-1))
    inner, _ = find_interval(jnp.take_along_axis(weights, block[..., None, None], axis=2)[..., 0, :], left)
    return block * size + inner


def find_interval(
    interval_lengths: Float[Array, "b k n"], point: Float[Array, "b k"]
) -> tuple[Int[Array, "b k"], Float[Array, "b k"]]:
    """Return the index of the interval of a partition that holds `point`, never an empty one, and the offset in it."""
    ends = jnp.cumsum(interval_lengths, axis=-1)
    beyond = ends > point[..., None]
    index = jnp.where(beyond.any(-1), beyond.argmax(-1), interval_lengths.argmax(-1))
    take_interval = lambda x: jnp.take_along_axis(x, index[..., None], axis=-1)[..., 0]
    return index, jnp.maximum(point - (take_interval(ends) - take_interval(interval_lengths)), 0)
