"""What a layer is made of: dense layers, dropout, attention, and the three parts of a config.

Axes: b batch, l length, m length attended to, d hidden, e embedding, h heads, k head size.
Every part takes its sizes from a `EncoderConfig` and keeps its parameters in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

BATCH_AXES = ("data", "fsdp")  # the axes of a mesh of devices that split a batch
ACTIVATIONS: dict[str, Callable] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
}


@runtime_checkable
class EncoderInputs(Protocol):
    """Rows of tokens as an encoder and its heads read them, such as `encoders.data.batch.Batch`, which gives shapes."""

    input_ids: Any
    example_ids: Any
    token_type_ids: Any
    position_ids: Any
    cls_positions: Any


class LayerContext(struct.PyTreeNode):
    """The rows, apart from their hidden states, as the parts of a layer see them.

    `example_ids`, `token_type_ids` and `position_ids` are int32 `[b l]` as in `Batch`; `layer_index` counts from 0.
    """

    example_ids: Any
    token_type_ids: Any
    position_ids: Any
    layer_index: Any


def make_initializer(config):
    """The weight initialiser of `model`."""
    if config.truncated_init:
        return nn.initializers.truncated_normal(config.init_std)
    return nn.initializers.normal(config.init_std)


def dense_dot_general(x: Float[Array, "n i"], w: Float[Array, "i o"], *_, **__) -> Float[Array, "n o"]:
    """`x w`, in the place of `lax.dot_general` for these axes."""
    return transposed_grad_matmul(x, w) if jax.default_backend() == "cpu" else x @ w


@jax.custom_vjp
def transposed_grad_matmul(x: Float[Array, "n i"], w: Float[Array, "i o"]) -> Float[Array, "n o"]:
    """`x w` whose gradient xᵀ dy reads xᵀ as an array of its own: from a view XLA's CPU code has half the speed.

    Where dy is the narrower of the two it is turned instead, and the product is (dyᵀ x)ᵀ.
    """
    return x @ w


def transposed_grad_matmul_bwd(residuals, dy):
    x, w = residuals
    apart = jax.lax.optimization_barrier  # or the turns are folded into the product again
    transposed_matmul = lambda a, b: apart(apart(a.T) @ b)
    return dy @ w.T, transposed_matmul(x, dy) if x.shape[1] <= dy.shape[1] else transposed_matmul(dy, x).T


transposed_grad_matmul.defvjp(lambda x, w: (x @ w, (x, w)), transposed_grad_matmul_bwd)


class Dense(nn.Dense):
    """A dense layer applied to `[tokens, features]`: on CPU a fifth faster than on `[b, l, features]`."""

    dot_general: Callable = dense_dot_general

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.features)


def make_dense(config, features: int, name: str | None = None, kernel_init=None, use_bias: bool = True) -> Dense:
    """A `Dense` with the initialiser and the compute dtype of `model`."""
    init = kernel_init or make_initializer(config)
    return Dense(features, use_bias=use_bias, dtype=jnp.dtype(config.dtype), kernel_init=init, name=name)


class LayerNorm(nn.LayerNorm):
    """Layer norm with float32 statistics, handed on in the dtype it came in."""

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        return super().__call__(x.astype(jnp.float32)).astype(x.dtype)


def make_layer_norm(config, name: str | None = None) -> LayerNorm:
    return LayerNorm(epsilon=config.layer_norm_eps, dtype=jnp.float32, name=name)


def shard_rows(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """`x` with its rows where those of the batch are and its other axes whole; as it is outside a mesh of devices.

    Left to itself XLA splits hidden states as it finds the parameters split: by width, where all rows are everywhere.
    """
    mesh = jax.typeof(x).sharding.mesh
    if mesh.size < 2 or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(BATCH_AXES)))


def make_embedding_table(config, num_embeddings: int) -> nn.Embed:
    return nn.Embed(num_embeddings, config.embedding_size, embedding_init=make_initializer(config))


class Dropout(nn.Module):
    """Dropout that draws 16 random bits an element and scales by the keep rate these bits can express."""

    rate: float

    def __call__(self, x: Float[Array, "..."], train: bool) -> Float[Array, "..."]:
        if not train or self.rate == 0.0:
            return x
        threshold = round(self.rate * 65536)
        keep = 1 - threshold / 65536
        key, size = self.make_rng("dropout"), x.shape[-1]
        # Two elements share a 32-bit word: the generator works in 32-bit words whatever is asked of it.
        words = jax.random.bits(key, (*x.shape[:-1], (size + 1) // 2), jnp.uint32)
        bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*x.shape[:-1], -1)[..., :size]
        return jnp.where(bits >= threshold, x / jnp.asarray(keep, x.dtype), jnp.zeros((), x.dtype))


def dot_product_attention(
    query: Float[Array, "b l h k"],
    key: Float[Array, "b m h k"],
    value: Float[Array, "b m h k"],
    example_ids: Int[Array, "b m"],
    dropout_fn: Callable[[Array], Array] = lambda weights: weights,
    implementation: str = "xla",
    is_causal: bool = False,
) -> Float[Array, "b l h k"]:
    """Softmax attention, with float32 scores, of every token over the tokens of its own example.

    With `causal` no token attends to later ones. `how` is one of `ATTENTION`; what padding (example 0) gets differs
    between them, and nothing reads it.
    """
    return ATTENTION_IMPLS[implementation](query, key, value, example_ids, dropout_fn, is_causal)


def make_attention_mask(example_ids: Int[Array, "b l"], is_causal: bool) -> Bool[Array, "b 1 l l"]:
    """Which tokens each token attends to. Padding attends to padding, so no row lacks a key."""
    same = example_ids[:, None, :, None] == example_ids[:, None, None, :]
    return jnp.tril(same) if is_causal else same


def unfused_attention(query, key, value, example_ids, dropout_fn, is_causal):
    """With the weights as an array, to which `drop` is applied."""
    scores = jnp.einsum("blhk,bmhk->bhlm", query, key, preferred_element_type=jnp.float32) / query.shape[-1] ** 0.5
    weights = jax.nn.softmax(
        jnp.where(make_attention_mask(example_ids, is_causal), scores, jnp.finfo(jnp.float32).min)
    ).astype(query.dtype)
    return jnp.einsum("bhlm,bmhk->blhk", dropout_fn(weights), value)


def fused_attention(query, key, value, **mask_kwargs):
    """cuDNN's on a GPU; elsewhere what XLA makes of the same, so that a run can be opened anywhere."""
    how = "cudnn" if jax.default_backend() == "gpu" else "xla"
    return jax.nn.dot_product_attention(query, key, value, implementation=how, **mask_kwargs)


def fused_attention_by_length(query, key, value, example_ids, dropout_fn, is_causal):
    """Without the weights as an array: for rows of one example each, padded at the end."""
    count = jnp.maximum((example_ids > 0).sum(-1), 1).astype(jnp.int32)  # a row without a key would not be finite
    return fused_attention(query, key, value, query_seq_lengths=count, key_value_seq_lengths=count, is_causal=is_causal)


def fused_attention_by_mask(query, key, value, example_ids, dropout_fn, is_causal):
    """Without the weights as an array, over any rows: reads a mask of every pair of tokens."""
    return fused_attention(query, key, value, mask=make_attention_mask(example_ids, is_causal))


ATTENTION_IMPLS = {
    "xla": unfused_attention,
    "cudnn": fused_attention_by_length,
    "cudnn_packed": fused_attention_by_mask,
}


class Embeddings(nn.Module):
    """Word + position + segment tables, layer norm of width `e`, dropout (BERT §3.2; ALBERT and ELECTRA at width E).

    `tied_word_embedding` is the table of another network (ELECTRA's tied token embeddings).
    """

    config: object
    tied_word_embedding: nn.Embed | None = None
    projection_init = None  # of the encoder's projection e → d; None is the model's own

    def setup(self):
        config = self.config
        if self.tied_word_embedding is None:
            self.word = make_embedding_table(config, config.vocab_size)
        self.position = make_embedding_table(config, config.max_positions + config.position_offset)
        if config.num_token_types:
            self.segment = make_embedding_table(config, config.num_token_types)
        self.norm = make_layer_norm(config)
        self.drop = Dropout(config.hidden_dropout)

    @property
    def word_embedding(self) -> nn.Embed:
        """The word table in use, own or tied."""
        return self.word if self.tied_word_embedding is None else self.tied_word_embedding

    def __call__(self, batch: EncoderInputs, train: bool) -> Float[Array, "b l e"]:
        offset = self.config.position_offset
        position_ids = jnp.where(batch.example_ids > 0, batch.position_ids + offset, max(offset - 1, 0))
        x = self.word_embedding(batch.input_ids) + self.position(position_ids)
        if self.config.num_token_types:
            x = x + self.segment(jnp.minimum(batch.token_type_ids, self.config.num_token_types - 1))
        return self.drop(self.norm(shard_rows(x)), train).astype(jnp.dtype(self.config.dtype))


class SelfAttention(nn.Module):
    """Multi-head self-attention, residual and layer norm after it (post-LN)."""

    config: object
    is_causal = False  # whether a token sees only itself and earlier ones

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], context: LayerContext, train: bool) -> Float[Array, "b l d"]:
        config = self.config
        project_heads = lambda name: make_dense(config, config.hidden_size, name)(x).reshape(
            *x.shape[:2], config.num_heads, -1
        )
        query, key, value = project_heads("query"), project_heads("key"), project_heads("value")
        drop = Dropout(config.attention_dropout)
        drop_weights = lambda weights: drop(weights, train)
        mixed = dot_product_attention(
            query, key, value, context.example_ids, drop_weights, config.attention_impl, self.is_causal
        )
        out = make_dense(config, config.hidden_size, "out")(mixed.reshape(x.shape))
        return make_layer_norm(config, "norm")(x + Dropout(config.hidden_dropout)(out, train))


class FeedForward(nn.Module):
    """The feed-forward network, residual and layer norm after it (post-LN)."""

    config: object

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], context: LayerContext, train: bool) -> Float[Array, "b l d"]:
        config = self.config
        inner = ACTIVATIONS[config.activation](make_dense(config, config.intermediate_size, "up")(x))
        out = make_dense(config, config.hidden_size, "down")(inner)
        return make_layer_norm(config, "norm")(x + Dropout(config.hidden_dropout)(out, train))


class CausalSelfAttention(SelfAttention):
    """`SelfAttention` in which a token sees itself and the earlier tokens of its example.

    The masks differ, the parameters are the same. BERT's "LTR & No NSP" (Devlin et al., 2019, §5.1).
    """

    is_causal = True
