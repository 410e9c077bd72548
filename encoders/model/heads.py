"""Heads on hidden states: tied vocabulary logits, pooler, classes, spans, replaced token.

Axes: b batch, s examples of a row, k chosen positions, l length, d hidden, e embedding, v vocabulary, c classes.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from encoders.model.layers import EncoderInputs, make_membership_mask
from encoders.model.ops import ACTIVATIONS, Dropout, make_dense, make_layer_norm


def gather_hidden_states(hidden: Float[Array, "b l d"], positions: Int[Array, "b k"]) -> Float[Array, "b k d"]:
    return jnp.take_along_axis(hidden, positions[..., None], axis=1)


def compute_vocabulary_logits(
    head, encoder, hidden: Float[Array, "b l d"], positions: Int[Array, "b k"]
) -> Float[Array, "b k v"]:
    """Return the logits of a token head at `positions`, whose output table is the word embedding of `encoder`."""
    return head(gather_hidden_states(hidden, positions), encoder.active_embeddings.word_embedding.embedding)


def summarize_examples(
    config, hidden: Float[Array, "b l d"], batch: EncoderInputs, pooling: str | None = None
) -> Float[Array, "b s d"]:
    """Return one vector for each example: the hidden state of [CLS], or with causal attention of its last token.

    With the pooling "mean", by default that of the config, it is the mean of the hidden states of its tokens.
    """
    if config.attention.is_causal:
        return gather_last_tokens(hidden, batch)
    if (pooling or config.pooling) == "cls":
        return gather_hidden_states(hidden, batch.cls_positions)
    return average_examples(hidden, batch).astype(hidden.dtype)


def average_examples(hidden: Float[Array, "b l d"], batch: EncoderInputs) -> Float[Array, "b s d"]:
    """Return the mean in float32 of the hidden states of each example's tokens; without an example it is 0."""
    belongs = make_membership_mask(batch)
    sums = jnp.einsum("bsl,bld->bsd", belongs.astype(hidden.dtype), hidden, preferred_element_type=jnp.float32)
    return sums / jnp.maximum(belongs.sum(-1), 1)[..., None]


def gather_last_tokens(hidden: Float[Array, "b l d"], batch: EncoderInputs) -> Float[Array, "b s d"]:
    """Return the hidden state of the last token of each example."""
    sizes = make_membership_mask(batch).sum(-1)
    return gather_hidden_states(hidden, jnp.maximum(batch.cls_positions + sizes - 1, 0))


def pool_examples(config, pooler, hidden: Float[Array, "b l d"], batch: EncoderInputs) -> Float[Array, "b s d"]:
    """Return `pooler` of one vector for each example, or with the pooling "late" the mean of `pooler` of its tokens."""
    if config.pooling == "late":
        return summarize_examples(config, pooler(hidden), batch, "mean")
    return pooler(summarize_examples(config, hidden, batch))


def embed_examples(
    config, pooler, hidden: Float[Array, "b l d"], batch: EncoderInputs, pooling: str
) -> Float[Array, "b s d"]:
    """Return the vector of each example: its mean, its last token, or [CLS].

    With the pooling "pooled" it is `pooler` of one vector, and with "attention" what an `AttentionPooler` gives.
    """
    match pooling:
        case "mean":
            return average_examples(hidden, batch)
        case "last":
            return gather_last_tokens(hidden, batch)
        case "pooled":
            return pool_examples(config, pooler, hidden, batch)
        case "attention":
            return pooler(hidden, batch)
        case _:
            return summarize_examples(config, hidden, batch, pooling)


class MaskedTokenHead(nn.Module):
    """Dense d → e, activation, layer norm, product with the word table, bias (BERT's `cls/predictions`)."""

    config: object
    has_biases = True  # of the dense layer and the norm

    @staticmethod
    def count_weights(config) -> int:
        """Return the weights of its matrices, the word table among them."""
        return config.hidden_size * config.embedding_size + config.embedding_size * config.vocab_size

    @nn.compact
    def __call__(self, hidden: Float[Array, "b k d"], embedding_table: Float[Array, "v e"]) -> Float[Array, "b k v"]:
        config = self.config
        x = ACTIVATIONS[config.activation](
            make_dense(config, config.embedding_size, "dense", use_bias=self.has_biases)(hidden)
        )
        x = make_layer_norm(config, "norm", use_bias=self.has_biases)(x)
        bias = self.param("bias", nn.initializers.zeros, (embedding_table.shape[0],))
        flat, table = x.reshape(-1, x.shape[-1]), embedding_table.astype(x.dtype)
        logits = jnp.einsum("ne,ve->nv", flat, table, preferred_element_type=jnp.float32) + bias
        return logits.reshape(*x.shape[:-1], -1)


class UntiedTokenHead(nn.Module):
    """Dense d → v with a matrix of its own, on the encoder's hidden states."""

    config: object
    has_bias = True

    @staticmethod
    def count_weights(config) -> int:
        """Return the weights of its matrix."""
        return config.hidden_size * config.vocab_size

    @nn.compact
    def __call__(self, hidden: Float[Array, "b k d"], embedding_table: Float[Array, "v e"]) -> Float[Array, "b k v"]:
        dense = make_dense(self.config, embedding_table.shape[0], "out", use_bias=self.has_bias)
        return dense(hidden).astype(jnp.float32)


class Pooler(nn.Module):
    """Dense d → d and tanh on [CLS], trained by BERT's and ALBERT's sentence tasks."""

    config: object
    activation = staticmethod(jnp.tanh)

    @nn.compact
    def __call__(self, hidden: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        return self.activation(make_dense(self.config, self.config.hidden_size, "dense")(hidden))


class GeluPooler(Pooler):
    """Dense d → d and exact gelu, before DeBERTa's and EuroBERT's classifiers of texts."""

    activation = staticmethod(ACTIVATIONS["gelu"])


class AttentionPooler(nn.Module):
    """Mean in float32 of the hidden states of each example's tokens, weighted by the softmax of one score a token.

    The score is a dense layer d → 1 (Yang et al., 2016, https://aclanthology.org/N16-1174, §2.2, without the inner
    layer). The layer starts at 0, and the weights as those of the plain mean.
    """

    config: object

    @nn.compact
    def __call__(self, hidden: Float[Array, "b l d"], batch: EncoderInputs) -> Float[Array, "b s d"]:
        dense = make_dense(self.config, 1, "score", use_bias=False, kernel_init=nn.initializers.zeros)
        scores = dense(hidden)[..., 0].astype(jnp.float32)
        belongs = make_membership_mask(batch)
        weights = nn.softmax(jnp.where(belongs, scores[:, None], -1e30)) * belongs  # 0 without an example
        return jnp.einsum("bsl,bld->bsd", weights, hidden.astype(jnp.float32))


# The top-level parameters of the poolings that have some.
POOLER_PARAMS = {"pooled": "pooler", "attention": "attention_pooler"}


def make_pooler(config, pooling: str) -> nn.Module:
    """Return the module of a pooling of `POOLER_PARAMS`."""
    return AttentionPooler(config) if pooling == "attention" else config.pooler(config)


class ClassificationHead(nn.Module):
    """Dropout and a linear layer from a vector for each example to `num_outputs` logits.

    An `activation` adds a dense layer d → d, the activation and dropout before: tanh in RoBERTa, gelu in Hugging Face's
    ELECTRA.
    """

    config: object
    num_outputs: int
    dropout: float = 0.0
    activation: Literal["none", "tanh", "gelu"] = "none"

    @nn.compact
    def __call__(self, hidden: Float[Array, "b s d"], train: bool = False) -> Float[Array, "b s c"]:
        x = Dropout(self.dropout)(hidden, train)
        if self.activation != "none":
            x = make_dense(self.config, self.config.hidden_size, "dense")(x)
            x = Dropout(self.dropout)(jnp.tanh(x) if self.activation == "tanh" else ACTIVATIONS["gelu"](x), train)
        return make_dense(self.config, self.num_outputs, "out")(x).astype(jnp.float32)


class ReplacedTokenHead(nn.Module):
    """Dense d → d, activation, dense d → 1, for every token (ELECTRA; the last layer's init is Glorot there)."""

    config: object

    @nn.compact
    def __call__(self, hidden: Float[Array, "b l d"], batch: EncoderInputs) -> Float[Array, "b l"]:
        config = self.config
        x = ACTIVATIONS[config.activation](make_dense(config, config.hidden_size, "dense")(hidden))
        out = make_dense(config, 1, "out", kernel_init=nn.initializers.glorot_uniform())(x)
        return out[..., 0].astype(jnp.float32)
