"""Heads on hidden states: tied vocabulary logits, pooler, classes, spans, replaced token.

Axes: b batch, s examples of a row, k chosen positions, l length, d hidden, e embedding, v vocabulary, c classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from encoders.model.layers import ACTIVATIONS, Dropout, dense, norm


def gather(hidden: Float[Array, "b l d"], positions: Int[Array, "b k"]) -> Float[Array, "b k d"]:
    """The hidden states at `positions`."""
    return jnp.take_along_axis(hidden, positions[..., None], axis=1)


def summary(model, hidden: Float[Array, "b l d"], batch: Mapping[str, Array]) -> Float[Array, "b s d"]:
    """The hidden state that stands for each example: of [CLS], its first token; of its last where attention is causal.

    From left to right [CLS] sees nothing of the example, and its last token all.
    """
    start = batch["start"]
    if not model.attend.causal:
        return gather(hidden, start)
    numbers = jnp.arange(1, start.shape[1] + 1)[:, None]
    sizes = (batch["example"][:, None] == numbers).sum(-1)
    return gather(hidden, jnp.maximum(start + sizes - 1, 0))


class MaskedTokenHead(nn.Module):
    """Dense d → e, activation, layer norm, product with the word table, free bias (BERT's `cls/predictions`)."""

    model: object

    @nn.compact
    def __call__(self, hidden: Float[Array, "b k d"], table: Float[Array, "v e"]) -> Float[Array, "b k v"]:
        model = self.model
        x = ACTIVATIONS[model.activation](dense(model, model.embedding, "dense")(hidden))
        x = norm(model, "norm")(x)
        bias = self.param("bias", nn.initializers.zeros, (table.shape[0],))
        flat = x.reshape(-1, x.shape[-1])
        logits = jnp.einsum("ne,ve->nv", flat, table.astype(flat.dtype), preferred_element_type=jnp.float32) + bias
        return logits.reshape(*x.shape[:-1], -1)


class Pooler(nn.Module):
    """Dense d → d and tanh on [CLS], trained by BERT's and ALBERT's sentence tasks."""

    model: object

    @nn.compact
    def __call__(self, hidden: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        return jnp.tanh(dense(self.model, self.model.hidden, "dense")(hidden))


class ClassHead(nn.Module):
    """From the vector of [CLS], pooled or not, to `count` numbers: dropout and a linear layer.

    With an `activation` a dense layer d → d, the activation and dropout come between (RoBERTa's tanh; Hugging Face's
    ELECTRA has gelu, Google's has no such layer).
    """

    model: object
    count: int
    dropout: float = 0.0
    activation: Literal["none", "tanh", "gelu"] = "none"

    @nn.compact
    def __call__(self, hidden: Float[Array, "b s d"], train: bool = False) -> Float[Array, "b s c"]:
        x = Dropout(self.dropout)(hidden, train)
        if self.activation != "none":
            x = dense(self.model, self.model.hidden, "dense")(x)
            x = Dropout(self.dropout)(jnp.tanh(x) if self.activation == "tanh" else ACTIVATIONS["gelu"](x), train)
        return dense(self.model, self.count, "out")(x).astype(jnp.float32)


class ReplacedTokenHead(nn.Module):
    """Dense d → d, activation, dense d → 1, for every token (ELECTRA; the last layer's init is Glorot there)."""

    model: object

    @nn.compact
    def __call__(self, hidden: Float[Array, "b l d"]) -> Float[Array, "b l"]:
        model = self.model
        x = ACTIVATIONS[model.activation](dense(model, model.hidden, "dense")(hidden))
        out = dense(model, 1, "out", kernel_init=nn.initializers.glorot_uniform())(x)
        return out[..., 0].astype(jnp.float32)
