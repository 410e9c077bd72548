"""Which tokens are chosen and what is shown in their place: a pure function of (seed, pass, example id, position).

Every token of an example has two random words of its own, hashed from these four numbers, so the same example gets
the same mask in another batch, at another padding or in a packed row. `pass` is `epoch mod copies`; with
`copies=None` it is the epoch, which is RoBERTa's dynamic masking.

Axes: b rows, s examples of a row, l length, k slots for chosen positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from encoders.data.batch import Batch, HostOrDeviceArray
from encoders.text.tokenization import VocabInfo

MASK_STREAM, ROUNDING_STREAM, SAMPLE_STREAM = 0, 1, 2  # streams of random words


@no_type_check  # jax builds it with leaves of other types
class MaskedBatch(Batch, kw_only=True):
    """A batch whose `input_ids` are corrupted, and the tokens to predict: k slots a row, int32, weights float32.

    `masked_positions [b k]` are positions in the row, `masked_labels [b k]` the tokens there before, `masked_weights
    [b k]` 1 or, for an unused slot, 0; `clean_ids [b l]` are the `input_ids` before corruption.
    """

    masked_positions: Int[HostOrDeviceArray, "b k"]
    masked_labels: Int[HostOrDeviceArray, "b k"]
    masked_weights: Float[HostOrDeviceArray, "b k"]
    clean_ids: Int[HostOrDeviceArray, "b l"]


@dataclass(frozen=True)
class Masking:
    """How a masked language model corrupts its input.

    `split` is the share of chosen tokens that become [MASK], a random token, and stay. `copies` is the number of
    different masks an example ever gets: 1 (the chapter's BERT), 10 (its released code), 40 (ALBERT), None (a new one
    each epoch, RoBERTa). `limit` caps the predictions of an example. With `unit="word"` whole words are chosen, in
    runs of up to `ngrams` words drawn with p(n) ∝ 1/n (ALBERT §3.1). `special`: may [CLS] and [SEP] be chosen.
    `replacements`: the random token is any entry ("all", BERT's code) or none of the special ones ("words", fairseq).
    """

    mask_rate: float = 0.15
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    dupe_factor: int | None = 10
    max_predictions: int | None = None
    unit: Literal["token", "word"] = "token"
    max_ngram: int = 1
    mask_special: bool = False
    rounding: Literal["nearest", "random"] = "nearest"  # of rate x length; "random" adds U[0, 1) first (fairseq)
    replacements: Literal["all", "words"] = "all"

    def __post_init__(self):
        if not 0 < self.mask_rate < 1:
            raise ValueError(f"mask_rate={self.mask_rate} must be above 0 and below 1")
        if len(self.split) != 3 or min(self.split) < 0 or not abs(sum(self.split) - 1) <= 1e-6:
            raise ValueError(f"split={self.split} must be three shares (mask, random, keep) that sum to 1")
        for name, least in (("dupe_factor", 1), ("max_predictions", 1), ("max_ngram", 1)):
            given = getattr(self, name)
            if given is not None and given < least:
                raise ValueError(
                    f"{name}={given} must be at least {least}" + ("" if name == "max_ngram" else " or None")
                )
        if self.max_ngram > 1 and self.unit != "word":
            raise ValueError(f"max_ngram={self.max_ngram} counts words: it needs unit='word', not {self.unit!r}")

    def count_predictions_by_length(self, max_length: int) -> np.ndarray:
        """`rate x n` rounded, at least 1 and at most `limit`, for every example length n from 0 to `length`."""
        exact = np.arange(max_length + 1) * self.mask_rate
        rounded = np.floor(exact) if self.rounding == "random" else np.round(exact)
        return np.minimum(np.maximum(rounded, 1), self.max_predictions or max_length).astype(np.int32)

    def count_predictions(self, sizes: np.ndarray) -> np.ndarray:
        """How many tokens are chosen in examples of `sizes` tokens."""
        return self.count_predictions_by_length(int(sizes.max()))[sizes]

    def max_predictions_per_row(self, length: int, num_examples: int) -> int:
        """The most positions that can be chosen in a row of `length` tokens that holds `examples` examples."""
        extra = 1 if self.rounding == "random" else 0
        one = min(int(self.count_predictions_by_length(length)[-1]) + extra, self.max_predictions or length, length)
        return (
            one if num_examples == 1 else min(int(length * self.mask_rate) + num_examples, num_examples * one, length)
        )


def make_example_keys(seed, stream: int, pass_indices: Int[Array, "b s"], ids: Int[Array, "b s"]) -> Array:
    """A random key for every example, `[b s]`, from (seed, stream, pass or epoch, example id)."""
    base = jax.random.fold_in(jax.random.key(seed), stream)
    fold_in_example = lambda time, name: jax.random.fold_in(jax.random.fold_in(base, time), name)
    return jax.vmap(jax.vmap(fold_in_example))(pass_indices, ids)


def make_token_keys(example_keys: Array, batch: Batch) -> Array:
    """Each token's key, `[b l]`: its example's key folded with its position in the example."""
    owner = jnp.maximum(batch.example_ids - 1, 0)
    mine = jax.random.wrap_key_data(
        jnp.take_along_axis(jax.random.key_data(example_keys), owner[..., None], axis=1),
        impl=jax.random.key_impl(example_keys),
    )
    return jax.vmap(jax.vmap(jax.random.fold_in))(mine, batch.position_ids)


def bits_to_uniform(random_bits: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """Random words to float32 in [0, 1), of 24 bits."""
    return (random_bits >> 8).astype(jnp.float32) * 2.0**-24


def compute_mask_pass(masking: Masking, batch: Batch) -> Int[Array, "b s"]:
    return batch.pass_index if masking.dupe_factor is None else batch.pass_index % masking.dupe_factor


def make_mask_keys(masking: Masking, batch: Batch, seed) -> Array:
    return make_example_keys(seed, MASK_STREAM, compute_mask_pass(masking, batch), batch.example_index)


def make_membership_mask(batch: Batch) -> Bool[Array, "b s l"]:
    """Which tokens belong to the n-th example of the row."""
    numbers = jnp.arange(1, batch.example_index.shape[1] + 1)
    return batch.example_ids[:, None, :] == numbers[None, :, None]


def draw_ngram_lengths(random_bits: UInt32[Array, "..."], max_ngram: int) -> Int[Array, "..."]:
    """n-gram lengths 1..`ngrams` with p(n) ∝ 1/n: 6/11, 3/11, 2/11 for three (ALBERT §3.1)."""
    shares = 1 / np.arange(1, max_ngram + 1)
    edges = np.cumsum(shares / shares.sum())[:-1].astype(np.float32)
    return 1 + (bits_to_uniform(random_bits)[..., None] >= edges).sum(-1)


def count_tokens_to_mask(masking: Masking, batch: Batch, sizes: Int[Array, "b s"], seed) -> Int[Array, "b s"]:
    """How many tokens to choose in each example, from its size, special tokens included; 0 where it has none."""
    length = batch.input_ids.shape[1]
    quota = jnp.asarray(masking.count_predictions_by_length(length))[sizes]
    if masking.rounding == "random":
        keys = make_example_keys(seed, ROUNDING_STREAM, compute_mask_pass(masking, batch), batch.example_index)
        draw = bits_to_uniform(jax.random.key_data(keys)[..., 0].astype(jnp.uint32))
        quota = jnp.clip(
            jnp.floor(sizes * masking.mask_rate + draw).astype(jnp.int32), 1, masking.max_predictions or length
        )
    return jnp.where(sizes > 0, quota, 0)


def choose_positions(
    masking: Masking, batch: Batch, vocab: VocabInfo, seed
) -> tuple[Int[Array, "b k"], Float[Array, "b k"]]:
    """Chosen positions and their weights: 1, or 0 for a slot that stays empty."""
    example, length = batch.example_ids, batch.input_ids.shape[1]
    keys = make_mask_keys(masking, batch, seed)
    words = jax.random.key_data(make_token_keys(keys, batch)).astype(jnp.uint32)
    never = () if masking.mask_special else (vocab.cls_id, vocab.sep_id, vocab.mask_id)
    candidate = (example > 0) & ~jnp.isin(batch.input_ids, jnp.array((vocab.pad_id, *never)))
    mine = make_membership_mask(batch)
    quota = count_tokens_to_mask(masking, batch, mine.sum(-1), seed)
    slots = masking.max_predictions_per_row(length, mine.shape[1])
    scores = jnp.where(mine & candidate[:, None], bits_to_uniform(words[..., 0])[:, None], -1.0)
    if masking.unit == "token":
        best, where = jax.lax.top_k(scores, min(masking.max_predictions_per_row(length, 1), length))
        weights = ((jnp.arange(best.shape[-1]) < quota[..., None]) & (best >= 0)).astype(jnp.float32)
        where, weights = (x.reshape(x.shape[0], -1) for x in (where, weights))
        if mine.shape[1] > 1:
            weights, order = jax.lax.top_k(weights, slots)
            where = jnp.take_along_axis(where, order, axis=1)
        return where, weights
    starts = jnp.asarray(vocab.compute_word_starts())[batch.input_ids] | ~jnp.pad(candidate, ((0, 0), (1, 0)))[:, :-1]
    scores, lengths = (
        jnp.where(candidate, bits_to_uniform(words[..., 0]), -1.0),
        draw_ngram_lengths(words[..., 1], masking.max_ngram),
    )
    chosen = choose_whole_words(scores, starts, lengths, mine, quota, masking.max_ngram)
    weights, where = jax.lax.top_k(chosen.astype(jnp.float32), slots)
    return where, weights


def choose_whole_words(
    scores: Float[Array, "b l"],
    word_starts: Bool[Array, "b l"],
    ngram_lengths: Int[Array, "b l"],
    membership: Bool[Array, "b s l"],
    num_to_predict: Int[Array, "b s"],
    max_ngram: int,
) -> Bool[Array, "b l"]:
    """Whole words, in runs: starts are taken in the order of their scores until each example has its `quota` of tokens.

    A run that would overflow the quota is shortened word by word, one that touches a chosen word is skipped
    (`create_masked_lm_predictions` of ALBERT; with runs of one word, BERT's whole-word masking). Scores below 0 are
    no candidates; a run covers candidates of its example only.
    """
    candidate = scores >= 0
    first = word_starts & candidate
    word = jnp.where(candidate, jnp.cumsum(first, axis=1) - 1, -1)
    owner = membership.argmax(1)
    ranked, order = jax.lax.top_k(jnp.where(first, scores, -1.0), scores.shape[1])
    take_ranked = lambda x, t: jnp.take_along_axis(x, order[:, t][:, None], axis=1)

    def has_words_left(carry):
        t, _, room = carry
        more = (room > 0).any(1) & (ranked[:, jnp.minimum(t, ranked.shape[1] - 1)] >= 0)
        return (t < ranked.shape[1]) & more.any()

    def take_next_run(carry):
        t, chosen, room = carry
        least, example = take_ranked(word, t), take_ranked(owner, t)
        left = jnp.take_along_axis(room, example, axis=1)
        run = jnp.zeros_like(chosen)
        for n in range(1, max_ngram + 1):
            longer = (word >= least) & (word < least + n) & (owner == example)
            fits = (n <= take_ranked(ngram_lengths, t)) & (longer.sum(1, keepdims=True) <= left)
            run = jnp.where(fits, longer, run)
        run &= (ranked[:, t] >= 0)[:, None] & ~(run & chosen).any(1, keepdims=True)
        slot = jnp.arange(room.shape[1]) == example
        return t + 1, chosen | run, room - slot * run.sum(1, keepdims=True)

    return jax.lax.while_loop(has_words_left, take_next_run, (jnp.int32(0), jnp.zeros_like(candidate), num_to_predict))[
        1
    ]


def mask_tokens(masking: Masking, batch: Batch, vocab: VocabInfo, seed) -> MaskedBatch:
    """`batch` with its chosen tokens replaced, and what is needed to predict them."""
    where, weights = choose_positions(masking, batch, vocab, seed)
    tokens = batch.input_ids
    take_chosen = lambda x: jnp.take_along_axis(x, where, axis=1)
    targets = take_chosen(tokens)
    # A second hash of the chosen tokens alone: what becomes of each must not depend on how it was chosen.
    again = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, 1)))(
        gather_keys(make_token_keys(make_mask_keys(masking, batch, seed), batch), where)
    )
    words = jax.random.key_data(again).astype(jnp.uint32)
    special = set(vocab.special_ids) if masking.replacements == "words" else set()
    entries = jnp.asarray(np.array([i for i in range(vocab.vocab_size) if i not in special], np.int32))
    fate = bits_to_uniform(words[..., 0])
    random = entries[words[..., 1] % len(entries)]
    as_mask, as_random = masking.split[0], masking.split[0] + masking.split[1]
    shown = jnp.where(fate < as_mask, vocab.mask_id, jnp.where(fate < as_random, random, targets))
    fields = batch.get_arrays() | {"input_ids": scatter_tokens(tokens, where, shown, weights)}
    return MaskedBatch(
        **fields, clean_ids=tokens, masked_positions=where, masked_labels=targets, masked_weights=weights
    )


def gather_keys(keys: Array, masked_positions: Int[Array, "b k"]) -> Array:
    """The keys of the tokens at `where`."""
    data = jnp.take_along_axis(jax.random.key_data(keys), masked_positions[..., None], axis=1)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(keys))


def scatter_tokens(
    input_ids: Int[Array, "b l"],
    masked_positions: Int[Array, "b k"],
    new_ids: Int[Array, "b k"],
    masked_weights: Float[Array, "b k"],
) -> Int[Array, "b l"]:
    """`tokens` with `new` at `where`; slots of weight 0 write nothing."""
    rows = jnp.arange(input_ids.shape[0])[:, None]
    masked_positions = jnp.where(masked_weights > 0, masked_positions, input_ids.shape[1])
    return input_ids.at[rows, masked_positions].set(new_ids.astype(input_ids.dtype), mode="drop")
