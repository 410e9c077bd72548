"""Guide: an objective. Span masking as in SpanBERT (Joshi et al., 2020, §3.1), without its boundary objective.

    python launch.py train experiments/guides/span_masking.py
    python launch.py predict runs/span-masking fill "the [MASK] of the array" --code experiments/guides/span_masking.py

Spans of whole words are chosen until 15 % of an example is covered. Span lengths are geometric and cut at ten words.
One draw decides for a whole span: [MASK] in 80 %, random tokens in 10 %, unchanged in 10 %.
Cost and score: not measured here beyond the test that trains it for a few steps.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

import encoders
from encoders.objectives import masking as masks
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import MaskedBatch, Masking

SPAN_STREAM = 7  # of random keys; the library's own streams are below


@encoders.register
@dataclass(frozen=True)
class SpanMaskedLM(MaskedLM):
    """Masked language modelling on spans. Raises `ValueError` for a probability or a length out of range."""

    masking: Masking = Masking(unit="word", dupe_factor=None)
    stop_probability: float = 0.2  # of the geometric distribution of span lengths
    max_span: int = 10  # words

    def __post_init__(self):
        if not 0 < self.stop_probability < 1:
            raise ValueError(f"objective.stop_probability={self.stop_probability} must be above 0 and below 1")
        if self.max_span < 1:
            raise ValueError(f"objective.max_span={self.max_span} must be at least 1")

    def corrupt(self, batch, vocab, seed) -> MaskedBatch:
        """Return the batch with its spans replaced: a pure function of (seed, pass, example, position)."""
        example_keys = masks.make_example_keys(
            seed, SPAN_STREAM, masks.compute_mask_pass(self.masking, batch), batch.example_index
        )
        bits = jax.random.key_data(masks.make_token_keys(example_keys, batch)).astype(jnp.uint32)
        membership = masks.make_membership_mask(batch)
        is_special = jnp.isin(batch.input_ids, jnp.array([vocab.pad_id, vocab.cls_id, vocab.sep_id, vocab.mask_id]))
        is_candidate = (batch.example_ids > 0) & ~is_special
        follows_special = ~jnp.pad(is_candidate, ((0, 0), (1, 0)))[:, :-1]
        word_starts = jnp.asarray(vocab.compute_word_starts())[batch.input_ids] | follows_special
        scores = jnp.where(is_candidate, masks.bits_to_uniform(bits[..., 0]), -1.0)
        num_to_predict = masks.count_tokens_to_mask(self.masking, batch, membership.sum(-1), seed)
        is_chosen = masks.choose_whole_words(
            scores, word_starts, self.draw_span_lengths(bits[..., 1]), membership, num_to_predict, self.max_span
        )

        num_slots = self.masking.max_predictions_per_row(batch.input_ids.shape[1], membership.shape[1])
        weights, positions = jax.lax.top_k(is_chosen.astype(jnp.float32), num_slots)
        # The draw of a span is that of its first token, so that the whole span has one fate.
        starts_span = is_chosen & ~jnp.pad(is_chosen, ((0, 0), (1, 0)))[:, :-1]
        columns = jnp.arange(batch.input_ids.shape[1])
        span_start = jax.lax.cummax(jnp.where(starts_span, columns, 0), axis=1)
        fate_bits = jnp.take_along_axis(bits[..., 0] ^ bits[..., 1], span_start, axis=1)
        random_bits = jnp.stack([fate_bits, bits[..., 1]], axis=-1)
        random_bits = jnp.take_along_axis(random_bits, positions[..., None], axis=1)
        return masks.replace_tokens(self.masking, batch, vocab, positions, weights, random_bits)

    def draw_span_lengths(self, random_bits):
        """Return span lengths in words, 1 to `max_span`, with p(n) ∝ p (1 - p)^(n - 1)."""
        shares = (1 - self.stop_probability) ** np.arange(self.max_span)
        edges = np.cumsum(shares / shares.sum())[:-1].astype(np.float32)
        return 1 + (masks.bits_to_uniform(random_bits)[..., None] >= edges).sum(-1)


first = encoders.load_experiments("first")["first"]
experiments = [replace(first, name="span-masking", objective=SpanMaskedLM())]
