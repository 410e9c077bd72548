"""Parts of an encoder: embeddings, self-attention and feed-forward, each with residual and norm.

Axes: b rows, l tokens of a row, d hidden, e embedding.
"""

from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from encoders.model.attention import dot_product_attention
from encoders.model.ops import (
    ACTIVATIONS,
    Dropout,
    make_dense,
    make_embedding_table,
    make_layer_norm,
    make_rms_norm,
    shard_rows,
)
from encoders.model.rotary import rotate_heads


@runtime_checkable
class EncoderInputs(Protocol):
    """Rows of tokens as an encoder and its heads read them, such as `encoders.data.batch.Batch`, which gives shapes."""

    input_ids: Any
    example_ids: Any
    token_type_ids: Any
    position_ids: Any
    cls_positions: Any


def make_membership_mask(batch: EncoderInputs) -> Bool[Array, "b s l"]:
    """Return True at the tokens of the n-th example of a row."""
    return batch.example_ids[:, None, :] == jnp.arange(1, batch.cls_positions.shape[1] + 1)[:, None]


class LayerContext(struct.PyTreeNode):
    """The rows, apart from their hidden states, as the parts of a layer see them: int32 `[b l]` as in `Batch`."""

    example_ids: Any
    token_type_ids: Any
    position_ids: Any
    layer_index: Any  # from 0
    row_features: Any = None  # what `config.row_features` returns
    memory: Any = None  # the vector that each token reads beside its row in a decoder, `[b l d]`
    window: int | None = struct.field(pytree_node=False, default=None)  # of the layer's attention; None: all tokens
    is_causal: bool = struct.field(pytree_node=False, default=False)  # True if no token attends to later ones


class Embeddings(nn.Module):
    """Sum of word, position and token-type embeddings, layer norm and dropout (BERT §3.2), `[b l e]`.

    Positions are left out where `config.row_features` gives them to the layers.
    """

    config: object
    tied_word_embedding: nn.Module | None = None  # the word table of another network (ELECTRA's tied token embeddings)
    norm_has_bias = True
    projection_init = None  # of the encoder's projection e → d; None selects that of the config

    def setup(self):
        config = self.config
        if self.tied_word_embedding is None:
            self.word = make_embedding_table(config, config.vocab_size)
        if self.has_positions:
            self.position = make_embedding_table(config, config.max_positions + config.position_offset)
        if config.num_token_types:
            self.segment = make_embedding_table(config, config.num_token_types)
        self.norm = make_layer_norm(config, use_bias=self.norm_has_bias)
        self.drop = Dropout(config.hidden_dropout)

    @property
    def has_positions(self) -> bool:
        """True if a learned table of positions is added."""
        return self.config.row_features is None

    @property
    def word_embedding(self) -> nn.Module:
        """The word table, own or tied."""
        return self.word if self.tied_word_embedding is None else self.tied_word_embedding

    def __call__(self, batch: EncoderInputs, train: bool) -> Float[Array, "b l e"]:
        x = self.word_embedding(batch.input_ids)
        if self.has_positions:
            offset = self.config.position_offset
            position_ids = jnp.where(batch.example_ids > 0, batch.position_ids + offset, max(offset - 1, 0))
            x = x + self.position(position_ids)
        if self.config.num_token_types:
            x = x + self.segment(jnp.minimum(batch.token_type_ids, self.config.num_token_types - 1))
        return self.drop(self.norm(shard_rows(x)), train).astype(jnp.dtype(self.config.dtype))


class WordEmbeddings(Embeddings):
    """Word embeddings and dropout alone, `[b l e]`: for layers that have their norms before."""

    has_positions = False

    def __call__(self, batch: EncoderInputs, train: bool) -> Float[Array, "b l e"]:
        x = shard_rows(self.word_embedding(batch.input_ids))
        return self.drop(x, train).astype(jnp.dtype(self.config.dtype))


class ShiftedEmbedding(nn.Module):
    """The word table of another network plus a shift that starts at zero; only the shift has a gradient.

    Gradient-disentangled embedding sharing (He et al., 2021, https://arxiv.org/abs/2111.09543, §3.3).
    """

    base: nn.Embed

    def setup(self):
        self.shift = self.param("shift", nn.initializers.zeros, (self.base.num_embeddings, self.base.features))

    @property
    def embedding(self) -> Float[Array, "v e"]:
        """The whole table."""
        return jax.lax.stop_gradient(self.base.embedding) + self.shift

    def __call__(self, input_ids: Any) -> Float[Array, "b l e"]:
        return jax.lax.stop_gradient(self.base(input_ids)) + jnp.take(self.shift, input_ids, axis=0)


def attend(config, query, key, value, context: LayerContext, train: bool, is_causal=False) -> Float[Array, "b l h k"]:
    """Return attention within examples, and within the layer's window, with dropout of the weights.

    A key head serves `query heads / key heads` query heads in a row.
    """
    drop_weights = Dropout(config.attention_dropout).draw_dropout(train)
    key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    is_causal = is_causal or context.is_causal
    args = context.example_ids, drop_weights, config.attention_impl, is_causal, context.window
    return dot_product_attention(query, key, value, *args)


class SelfAttention(nn.Module):
    """Multi-head self-attention, residual and layer norm after it (post-LN).

    Queries and keys are rotated where `config.row_features` gives a rotary table.
    """

    config: object
    is_causal = False  # True if a token attends only to itself and earlier ones

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], context: LayerContext, train: bool) -> Float[Array, "b l d"]:
        config = self.config
        project = lambda name: make_dense(config, config.hidden_size, name)(x)
        shape = *x.shape[:2], config.num_heads, -1
        query, key, value = (project(name).reshape(shape) for name in ("query", "key", "value"))
        if (table := context.row_features) is not None:
            query, key = rotate_heads(query, table), rotate_heads(key, table)
        mixed = attend(config, query, key, value, context, train, self.is_causal)
        out = make_dense(config, config.hidden_size, "out")(mixed.reshape(x.shape))
        return make_layer_norm(config, "norm")(x + Dropout(config.hidden_dropout)(out, train))


class FeedForward(nn.Module):
    """The feed-forward network, residual and layer norm after it (post-LN)."""

    config: object
    num_matrices = 2  # of d x intermediate size

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], context: LayerContext, train: bool) -> Float[Array, "b l d"]:
        config = self.config
        inner = ACTIVATIONS[config.activation](make_dense(config, config.intermediate_size, "up")(x))
        out = make_dense(config, config.hidden_size, "down")(inner)
        return make_layer_norm(config, "norm")(x + Dropout(config.hidden_dropout)(out, train))


class MemoryAttention(nn.Module):
    """Attention of every token to one vector, `context.memory`, with residual, and layer norm after it (post-LN).

    The softmax over one key is 1, so that queries and keys do not matter: what is added is the projected vector (TSDAE,
    Wang et al., 2021, https://arxiv.org/abs/2104.06979, §3). Families with their norms before a part have none here.
    """

    config: object

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], context: LayerContext, train: bool) -> Float[Array, "b l d"]:
        config = self.config
        value = make_dense(config, config.hidden_size, "value")(context.memory)
        out = make_dense(config, config.hidden_size, "out")(value)
        x = x + Dropout(config.hidden_dropout)(out, train)
        return x if config.has_norms_first else make_layer_norm(config, "norm")(x)


class FinalRMSNorm(nn.Module):
    """RMS norm after the last layer, for layers that have their norms before."""

    config: object

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        return make_rms_norm(self.config, "norm")(x)


class CausalSelfAttention(SelfAttention):
    """`SelfAttention` over a token and the earlier ones of its example: BERT's "LTR & No NSP" (§5.1)."""

    is_causal = True
