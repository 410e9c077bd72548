"""Masking of tokens: a pure function of (seed, pass, example index, position).

Every token has two random words, hashed from these four numbers. An example so gets the same mask in any batch, at any
padding and in a packed row. The pass is counted modulo `dupe_factor`, unless it is None (RoBERTa's dynamic masking).

Axes: b rows, s examples of a row, l length, k slots for chosen positions.
"""

from dataclasses import dataclass
from typing import Literal, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from encoders.data.batch import Batch, HostOrDeviceArray
from encoders.model.layers import make_membership_mask
from encoders.text.tokenization import VocabInfo
from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields

MASK_STREAM, ROUNDING_STREAM, SAMPLE_STREAM, DELETION_STREAM = 0, 1, 2, 3  # streams of random words


@no_type_check  # jax builds it with leaves of other types
class MaskedBatch(Batch, kw_only=True):
    """A batch whose `input_ids` are corrupted, and the tokens to predict: k slots a row, int32, weights float32."""

    masked_positions: Int[HostOrDeviceArray, "b k"]  # in the row
    masked_labels: Int[HostOrDeviceArray, "b k"]  # the tokens there before corruption
    masked_weights: Float[HostOrDeviceArray, "b k"]  # 1, or 0 for an unused slot
    clean_ids: Int[HostOrDeviceArray, "b l"]  # all tokens before corruption


@dataclass(frozen=True)
class Masking:
    """Masking scheme of a masked language model. Raises `ValueError` for a value out of range."""

    mask_rate: float = 0.15  # share of an example's tokens that are chosen, special tokens counted
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)  # of chosen tokens: to [MASK], to a random token, unchanged
    dupe_factor: int | None = 10  # different masks of an example: 10 in BERT's code, 40 in ALBERT; None: one each pass
    max_predictions: int | None = None  # most chosen tokens of an example
    unit: Literal["token", "word"] = "token"  # "word" chooses whole words, in runs of up to `max_ngram`
    max_ngram: int = 1  # run lengths are drawn with p(n) ∝ 1/n (ALBERT §3.1)
    mask_special: bool = False  # True allows [CLS] and [SEP] to be chosen
    rounding: Literal["nearest", "random"] = "nearest"  # of the rate times the length; "random" adds U[0, 1) (fairseq)
    replacements: Literal["all", "words"] = "all"  # random tokens: any (BERT's code), or no special ones (fairseq)

    def __post_init__(self):
        are_shares = lambda split: len(split) == 3 and min(split) >= 0 and abs(sum(split) - 1) <= 1e-6
        checks = (
            ("mask_rate", lambda rate: 0 < rate < 1, "above 0 and below 1"),
            ("split", are_shares, "three shares (mask, random, keep) that sum to 1"),
            ("dupe_factor max_predictions", lambda count: count is None or count >= 1, "at least 1 or None"),
            ("max_ngram", lambda count: count >= 1, "at least 1"),
        )
        check_fields(self, "", checks)
        if self.max_ngram > 1 and self.unit != "word":
            raise UserError(f"max_ngram={self.max_ngram} counts words: it needs unit='word', not {self.unit!r}")

    def count_predictions(self, sizes: np.ndarray) -> np.ndarray:
        """Return the number of chosen tokens in examples of `sizes` tokens."""
        exact = sizes * self.mask_rate
        rounded = np.floor(exact) if self.rounding == "random" else np.round(exact)
        return np.minimum(np.maximum(rounded, 1), self.max_predictions or sizes.max()).astype(np.int32)

    def max_predictions_per_row(self, length: int, num_examples: int) -> int:
        """Return the most positions that can be chosen in a row of `length` tokens and `num_examples` examples."""
        extra = 1 if self.rounding == "random" else 0
        most = min(self.count_predictions(np.array([length])).item() + extra, self.max_predictions or length, length)
        if num_examples == 1:
            return most
        return min(int(length * self.mask_rate) + num_examples, num_examples * most, length)


def make_example_keys(seed, stream: int, pass_indices: Int[Array, "b s"], ids: Int[Array, "b s"]) -> Array:
    """Return a random key for every example, `[b s]`, from (seed, stream, pass, example index)."""
    base = jax.random.fold_in(jax.random.key(seed), stream)
    fold_in_example = lambda time, name: jax.random.fold_in(jax.random.fold_in(base, time), name)
    return jax.vmap(jax.vmap(fold_in_example))(pass_indices, ids)


def make_token_keys(example_keys: Array, batch: Batch) -> Array:
    """Return a key for every token, `[b l]`: the key of its example folded with its position there."""
    token_example_keys = gather_keys(example_keys, jnp.maximum(batch.example_ids - 1, 0))
    return jax.vmap(jax.vmap(jax.random.fold_in))(token_example_keys, batch.position_ids)


def gather_keys(keys: Array, positions: Int[Array, "b k"]) -> Array:
    """Return the keys at `positions` of each row."""
    data = jnp.take_along_axis(jax.random.key_data(keys), positions[..., None], axis=1)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(keys))


def bits_to_uniform(random_bits: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """Return float32 numbers in [0, 1) from the upper 24 bits of random words."""
    return (random_bits >> 8).astype(jnp.float32) * 2.0**-24


def compute_mask_pass(masking: Masking, batch: Batch) -> Int[Array, "b s"]:
    return batch.pass_index if masking.dupe_factor is None else batch.pass_index % masking.dupe_factor


def draw_ngram_lengths(random_bits: UInt32[Array, "..."], max_ngram: int) -> Int[Array, "..."]:
    """Return n-gram lengths 1..`max_ngram` with p(n) ∝ 1/n: 6/11, 3/11, 2/11 for three (ALBERT §3.1)."""
    shares = 1 / np.arange(1, max_ngram + 1)
    edges = np.cumsum(shares / shares.sum())[:-1].astype(np.float32)
    return 1 + (bits_to_uniform(random_bits)[..., None] >= edges).sum(-1)


def count_tokens_to_mask(masking: Masking, batch: Batch, sizes: Int[Array, "b s"], seed) -> Int[Array, "b s"]:
    """Return the number of tokens to choose in each example of `sizes` tokens; 0 for an empty one."""
    length = batch.input_ids.shape[1]
    quota = jnp.asarray(masking.count_predictions(np.arange(length + 1)))[sizes]
    if masking.rounding == "random":
        keys = make_example_keys(seed, ROUNDING_STREAM, compute_mask_pass(masking, batch), batch.example_index)
        draw = bits_to_uniform(jax.random.key_data(keys)[..., 0].astype(jnp.uint32))
        rounded = jnp.floor(sizes * masking.mask_rate + draw).astype(jnp.int32)
        quota = jnp.clip(rounded, 1, masking.max_predictions or length)
    return jnp.where(sizes > 0, quota, 0)


def choose_positions(
    masking: Masking, batch: Batch, vocab: VocabInfo, token_keys: Array, seed
) -> tuple[Int[Array, "b k"], Float[Array, "b k"]]:
    """Return the chosen positions and their weights: 1, or 0 for an unused slot."""
    length, words = batch.input_ids.shape[1], jax.random.key_data(token_keys).astype(jnp.uint32)
    never = () if masking.mask_special else (vocab.cls_id, vocab.sep_id, vocab.mask_id)
    candidate = (batch.example_ids > 0) & ~jnp.isin(batch.input_ids, jnp.array((vocab.pad_id, *never)))
    membership = make_membership_mask(batch)
    quota = count_tokens_to_mask(masking, batch, membership.sum(-1), seed)
    slots = masking.max_predictions_per_row(length, membership.shape[1])
    scores = jnp.where(candidate, bits_to_uniform(words[..., 0]), -1.0)
    if masking.unit == "token":
        example_scores = jnp.where(membership, scores[:, None], -1.0)
        best, where = jax.lax.top_k(example_scores, min(masking.max_predictions_per_row(length, 1), length))
        weights = ((jnp.arange(best.shape[-1]) < quota[..., None]) & (best >= 0)).astype(jnp.float32)
        where, weights = (x.reshape(x.shape[0], -1) for x in (where, weights))
        if membership.shape[1] > 1:
            weights, order = jax.lax.top_k(weights, slots)
            where = jnp.take_along_axis(where, order, axis=1)
        return where, weights
    starts = jnp.asarray(vocab.compute_word_starts())[batch.input_ids] | ~jnp.pad(candidate, ((0, 0), (1, 0)))[:, :-1]
    lengths = draw_ngram_lengths(words[..., 1], masking.max_ngram)
    chosen = choose_whole_words(scores, starts, lengths, membership, quota, masking.max_ngram)
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
    """Return True at the tokens of whole words, chosen in runs from the highest score of a first token down.

    A run that exceeds what remains of `num_to_predict` is shortened word by word; one that touches a chosen word is
    skipped (`create_masked_lm_predictions` of ALBERT; with runs of one word, BERT's whole-word masking). Tokens with a
    score below 0 are never chosen, and a run stays within its example.
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

    carry = (jnp.int32(0), jnp.zeros_like(candidate), num_to_predict)
    return jax.lax.while_loop(has_words_left, take_next_run, carry)[1]


def mask_tokens(masking: Masking, batch: Batch, vocab: VocabInfo, seed) -> MaskedBatch:
    """Return `batch` with the chosen tokens replaced, and their positions, labels and weights."""
    keys = make_example_keys(seed, MASK_STREAM, compute_mask_pass(masking, batch), batch.example_index)
    token_keys = make_token_keys(keys, batch)
    positions, weights = choose_positions(masking, batch, vocab, token_keys, seed)
    # A second hash, of the chosen tokens only: the replacement must not depend on the choice.
    hash_again = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, 1)))
    words = jax.random.key_data(hash_again(gather_keys(token_keys, positions))).astype(jnp.uint32)
    return replace_tokens(masking, batch, vocab, positions, weights, words)


def replace_tokens(
    masking: Masking,
    batch: Batch,
    vocab: VocabInfo,
    positions: Int[Array, "b k"],
    weights: Float[Array, "b k"],
    random_bits: UInt32[Array, "b k w"],
) -> MaskedBatch:
    """Return `batch` with the tokens at the positions of weight above 0 replaced, in the shares of `masking.split`.

    Of the random words of a position the first decides between [MASK], a random token and no change, and the second is
    the random token.
    """
    tokens = batch.input_ids
    targets = jnp.take_along_axis(tokens, positions, axis=1)
    special = vocab.special_ids if masking.replacements == "words" else ()
    entries = jnp.asarray(np.setdiff1d(np.arange(vocab.vocab_size, dtype=np.int32), special))
    fate = bits_to_uniform(random_bits[..., 0])
    random = entries[random_bits[..., 1] % len(entries)]
    as_mask, as_random = masking.split[0], masking.split[0] + masking.split[1]
    shown = jnp.where(fate < as_mask, vocab.mask_id, jnp.where(fate < as_random, random, targets))
    fields = batch.get_arrays() | {"input_ids": scatter_tokens(tokens, positions, shown, weights)}
    return MaskedBatch(
        **fields, clean_ids=tokens, masked_positions=positions, masked_labels=targets, masked_weights=weights
    )


def scatter_tokens(
    input_ids: Int[Array, "b l"],
    masked_positions: Int[Array, "b k"],
    new_ids: Int[Array, "b k"],
    masked_weights: Float[Array, "b k"],
) -> Int[Array, "b l"]:
    """Return `input_ids` with `new_ids` at the masked positions of weight above 0."""
    rows = jnp.arange(input_ids.shape[0])[:, None]
    masked_positions = jnp.where(masked_weights > 0, masked_positions, input_ids.shape[1])
    return input_ids.at[rows, masked_positions].set(new_ids.astype(input_ids.dtype), mode="drop")
