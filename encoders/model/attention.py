"""Softmax attention within examples, in three implementations.

Axes: b rows, l queries, m keys, h heads, k size of a head.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from encoders.model.ops import keep_elements

MIN_BLOCKED_LENGTH, QUERY_BLOCK = 1024, 256
MAX_MASKED_WINDOWS = 4  # in a row that TPUs do not cut: by XLA's estimate moving its blocks costs more than they save
DROP_NOTHING = Partial(keep_elements)


def dot_product_attention(
    query: Float[Array, "b l h k"],
    key: Float[Array, "b m h k"],
    value: Float[Array, "b m h k"],
    example_ids: Int[Array, "b m"],
    dropout_fn: Partial = DROP_NOTHING,
    implementation: str = "xla",
    is_causal: bool = False,
    window: int | None = None,
) -> Float[Array, "b l h k"]:
    """Return softmax attention with float32 scores over the query's example; undefined on padding (example 0).

    With `is_causal` no token attends to later ones. With a `window`, an even number, a token attends to those at most
    `window // 2` before and after it. `implementation` is a key of `ATTENTION_IMPLS`.
    `dropout_fn`, as of `Dropout.draw_dropout`, acts on the weights, and on their gradient in the same way.
    """
    if window is not None:
        return local_attention(query, key, value, example_ids, dropout_fn, implementation, is_causal, window)
    return ATTENTION_IMPLS[implementation](query, key, value, example_ids, dropout_fn, is_causal)


def make_attention_mask(example_ids: Int[Array, "b l"], is_causal: bool) -> Bool[Array, "b 1 l l"]:
    """Return True where a query may attend to a key. Padding attends to padding, so every query has a key."""
    same = example_ids[:, None, :, None] == example_ids[:, None, None, :]
    return jnp.tril(same) if is_causal else same


def unfused_attention(query, key, value, example_ids, dropout_fn, is_causal):
    """Compute attention with the weights as an array, on which `dropout_fn` acts; without dropout long rows in blocks.

    Blocks of queries read all keys, and the backward pass computes their weights again: the memory grows with the
    length and not its square. On a CPU a block is of one row and head, so that its weights stay in the cache.
    """
    if query.shape[1] >= MIN_BLOCKED_LENGTH and dropout_fn.func is keep_elements:
        on_cpu = attend_by_head if jax.typeof(query).sharding.mesh.size < 2 else attend_in_blocks  # rows may be sharded
        attend = partial(jax.lax.platform_dependent, cpu=on_cpu, default=attend_in_blocks)
        return jax.checkpoint(attend)(query, key, value, example_ids, jnp.asarray(is_causal))
    return unfused_masked_attention(query, key, value, make_attention_mask(example_ids, is_causal), dropout_fn)


def unfused_masked_attention(query, key, value, mask: Bool[Array, "b 1 l m"], dropout_fn):
    scores = jnp.einsum("blhk,bmhk->bhlm", query, key, preferred_element_type=jnp.float32) / query.shape[-1] ** 0.5
    return average_values(scores, value, mask, dropout_fn)


def attend_by_head(query, key, value, example_ids, is_causal):
    """Compute attention of one row and head at a time, in blocks of queries."""
    num_heads = query.shape[2]
    split_heads = lambda x: x.swapaxes(1, 2).reshape(-1, x.shape[1], 1, x.shape[3])
    attend_row = lambda row: attend_in_blocks(*(x[None] for x in row), is_causal)[0]
    heads = (*map(split_heads, (query, key, value)), jnp.repeat(example_ids, num_heads, axis=0))
    out = jax.lax.map(attend_row, heads)
    return out.reshape(-1, num_heads, *out.shape[1::2]).swapaxes(1, 2)


def attend_in_blocks(query, key, value, example_ids, is_causal):
    """Compute attention of `QUERY_BLOCK` queries at a time."""
    length, positions = query.shape[1], jnp.arange(query.shape[1])[None]

    def cut(x):  # the fillers of the last block are left out of the result
        x = jnp.pad(x, ((0, 0), (0, -length % QUERY_BLOCK), *[(0, 0)] * (x.ndim - 2)))
        return x.reshape(x.shape[0], -1, QUERY_BLOCK, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def attend_block(block):
        query, query_ids, query_positions = block
        mask = query_ids[..., None] == example_ids[:, None]
        mask &= (positions[:, None] <= query_positions[..., None]) | ~is_causal
        return unfused_masked_attention(query, key, value, mask[:, None], DROP_NOTHING)

    out = jax.lax.map(attend_block, (cut(query), cut(example_ids), cut(positions))).swapaxes(0, 1)
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :length]


def average_values(
    scores: Float[Array, "b h l m"], value: Float[Array, "b m h k"], mask: Bool[Array, "b 1 l m"], dropout_fn: Partial
) -> Float[Array, "b l h k"]:
    """Return the average of the values, weighted by the softmax of float32 scores where `mask` is True."""
    average = compute_average if value.dtype == jnp.float32 else average_rounded_values
    return average(scores, value, mask, dropout_fn)[0]


def compute_average(scores, value, mask, dropout_fn):
    """Return the average and the weights, in the dtype of the values, before dropout."""
    weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min)).astype(value.dtype)
    return jnp.einsum("bhlm,bmhk->blhk", dropout_fn(weights), value), weights


@jax.custom_vjp
def average_rounded_values(scores, value, mask, dropout_fn):
    """Return `compute_average` below float32, where the gradient reads the rounded weights and none in float32.

    The gradient of a softmax subtracts a mean over all keys. It is the product of the average and its gradient
    (Dao et al., 2022, https://arxiv.org/abs/2205.14135, appendix B.2), so that scores need one pass.
    """
    return compute_average(scores, value, mask, dropout_fn)


def average_rounded_values_fwd(scores, value, mask, dropout_fn):
    average, weights = compute_average(scores, value, mask, dropout_fn)
    return (average, weights), (average, weights, value, dropout_fn)


def average_rounded_values_bwd(residuals, gradients):
    (average, weights, value, dropout_fn), (d_average, _) = residuals, gradients
    d_value = jnp.einsum("bhlm,blhk->bmhk", dropout_fn(weights), d_average)
    d_weights = dropout_fn(jnp.einsum("blhk,bmhk->bhlm", d_average, value)).astype(jnp.float32)
    mean = jnp.einsum("blhk,blhk->bhl", average, d_average, preferred_element_type=jnp.float32)
    d_scores = (weights * (d_weights - mean[..., None])).astype(value.dtype)
    return jax.lax.optimization_barrier(d_scores).astype(jnp.float32), d_value, None, None  # two products read it


average_rounded_values.defvjp(average_rounded_values_fwd, average_rounded_values_bwd)


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


def local_attention(query, key, value, example_ids, dropout_fn, implementation, is_causal, window):
    """Compute attention within `window`: in blocks, and on a TPU under a mask where a row has few windows."""
    in_blocks = partial(local_attention_in_blocks, dropout_fn, implementation, is_causal, window)
    is_short = query.shape[1] <= MAX_MASKED_WINDOWS * window
    if is_short and implementation == "xla" and dropout_fn.func is keep_elements:
        under_mask = partial(local_attention_under_mask, is_causal, window)
        return jax.lax.platform_dependent(query, key, value, example_ids, tpu=under_mask, default=in_blocks)
    return in_blocks(query, key, value, example_ids)


def local_attention_under_mask(is_causal, window, query, key, value, example_ids):
    positions = jnp.arange(query.shape[1])
    is_near = jnp.abs(positions[:, None] - positions) <= window // 2
    return unfused_masked_attention(
        query, key, value, make_attention_mask(example_ids, is_causal) & is_near, DROP_NOTHING
    )


def local_attention_in_blocks(dropout_fn, implementation, is_causal, window, query, key, value, example_ids):
    """Compute attention in blocks: `window` queries read 2 * `window` keys, whatever the length.

    Keys are padded by half a window at both ends and cut into blocks, and each block is put beside the next.
    """
    length, half = query.shape[1], window // 2
    num_blocks = -(-length // window)
    rest = num_blocks * window - length

    def cut_queries(x, filler=0):
        x = jnp.pad(x, ((0, 0), (0, rest), *[(0, 0)] * (x.ndim - 2)), constant_values=filler)
        return x.reshape(-1, window, *x.shape[2:])

    def cut_keys(x, filler=0):
        x = jnp.pad(x, ((0, 0), (half, rest + half), *[(0, 0)] * (x.ndim - 2)), constant_values=filler)
        x = x.reshape(-1, num_blocks + 1, window, *x.shape[2:])
        return jnp.concatenate([x[:, :-1], x[:, 1:]], axis=2).reshape(-1, 2 * window, *x.shape[3:])

    # The fillers are an example of their own, so that every query has a key.
    same_example = cut_queries(example_ids, -1)[:, :, None] == cut_keys(example_ids, -1)[:, None, :]
    distance = jnp.arange(2 * window) - half - jnp.arange(window)[:, None]
    visible = (jnp.abs(distance) <= half) & ((distance <= 0) | (not is_causal))
    mask = (same_example & visible)[:, None]
    blocks = cut_queries(query), cut_keys(key), cut_keys(value)
    if implementation == "xla":
        mixed = unfused_masked_attention(*blocks, mask, dropout_fn)
    else:
        mixed = fused_attention(*blocks, mask=mask)
    return mixed.reshape(query.shape[0], -1, *query.shape[2:])[:, :length]


ATTENTION_IMPLS = {
    "xla": unfused_attention,
    "cudnn": fused_attention_by_length,
    "cudnn_packed": fused_attention_by_mask,
}
