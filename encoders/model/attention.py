"""Softmax attention within examples, in three implementations.

Axes: b rows, l queries, m keys, h heads, k size of a head.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def dot_product_attention(
    query: Float[Array, "b l h k"],
    key: Float[Array, "b m h k"],
    value: Float[Array, "b m h k"],
    example_ids: Int[Array, "b m"],
    dropout_fn: Callable[[Array], Array] = lambda weights: weights,
    implementation: str = "xla",
    is_causal: bool = False,
) -> Float[Array, "b l h k"]:
    """Return softmax attention with float32 scores over the query's example; undefined on padding (example 0).

    With `is_causal` no token attends to later ones. `implementation` is a key of `ATTENTION_IMPLS`.
    """
    return ATTENTION_IMPLS[implementation](query, key, value, example_ids, dropout_fn, is_causal)


def make_attention_mask(example_ids: Int[Array, "b l"], is_causal: bool) -> Bool[Array, "b 1 l l"]:
    """Return True where a query may attend to a key. Padding attends to padding, so every query has a key."""
    same = example_ids[:, None, :, None] == example_ids[:, None, None, :]
    return jnp.tril(same) if is_causal else same


def unfused_attention(query, key, value, example_ids, dropout_fn, is_causal):
    """Compute attention with the weights as an array, on which `dropout_fn` acts."""
    scores = jnp.einsum("blhk,bmhk->bhlm", query, key, preferred_element_type=jnp.float32) / query.shape[-1] ** 0.5
    mask = make_attention_mask(example_ids, is_causal)
    weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min)).astype(query.dtype)
    return jnp.einsum("bhlm,bmhk->blhk", dropout_fn(weights), value)


def fused_attention(query, key, value, **mask_kwargs):
    """Compute attention by cuDNN on a GPU, and elsewhere by XLA, so that a run can be opened on any device."""
    how = "cudnn" if jax.default_backend() == "gpu" else "xla"
    return jax.nn.dot_product_attention(query, key, value, implementation=how, **mask_kwargs)


def fused_attention_by_length(query, key, value, example_ids, dropout_fn, is_causal):
    """Compute fused attention for rows of one example each, padded at the end."""
    count = jnp.maximum((example_ids > 0).sum(-1), 1).astype(jnp.int32)  # without a key the result is not finite
    return fused_attention(query, key, value, query_seq_lengths=count, key_value_seq_lengths=count, is_causal=is_causal)


def fused_attention_by_mask(query, key, value, example_ids, dropout_fn, is_causal):
    """Compute fused attention for any rows, by a mask of every pair of tokens."""
    return fused_attention(query, key, value, mask=make_attention_mask(example_ids, is_causal))


ATTENTION_IMPLS = {
    "xla": unfused_attention,
    "cudnn": fused_attention_by_length,
    "cudnn_packed": fused_attention_by_mask,
}
