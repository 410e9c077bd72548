"""What a layer is made of: dense layers, dropout, attention, and the three parts of a model.

Axes: b batch, l length, m length attended to, d hidden, e embedding, h heads, k head size.
Every part takes its sizes from a `Model` and keeps its parameters in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

ROWS = ("data", "fsdp")  # the axes of a mesh of devices that split a batch
ACTIVATIONS: dict[str, Callable] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
}


def initializer(model):
    """The weight initialiser of `model`."""
    if model.truncated:
        return nn.initializers.truncated_normal(model.deviation)
    return nn.initializers.normal(model.deviation)


def product(x: Float[Array, "n i"], w: Float[Array, "i o"], *_, **__) -> Float[Array, "n o"]:
    """`x w`, in the place of `lax.dot_general` for these axes."""
    return turned_product(x, w) if jax.default_backend() == "cpu" else x @ w


@jax.custom_vjp
def turned_product(x: Float[Array, "n i"], w: Float[Array, "i o"]) -> Float[Array, "n o"]:
    """`x w` whose gradient xᵀ dy reads xᵀ as an array of its own: from a view XLA's CPU code has half the speed.

    Where dy is the narrower of the two it is turned instead, and the product is (dyᵀ x)ᵀ.
    """
    return x @ w


def turned_gradient(saved, dy):
    x, w = saved
    apart = jax.lax.optimization_barrier  # or the turns are folded into the product again
    turned = lambda a, b: apart(apart(a.T) @ b)
    return dy @ w.T, turned(x, dy) if x.shape[1] <= dy.shape[1] else turned(dy, x).T


turned_product.defvjp(lambda x, w: (x @ w, (x, w)), turned_gradient)


class Dense(nn.Dense):
    """A dense layer applied to `[tokens, features]`: on CPU a fifth faster than on `[b, l, features]`."""

    dot_general: Callable = product

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.features)


def dense(model, features: int, name: str | None = None, kernel_init=None, bias: bool = True) -> Dense:
    """A `Dense` with the initialiser and the compute dtype of `model`."""
    init = kernel_init or initializer(model)
    return Dense(features, use_bias=bias, dtype=jnp.dtype(model.dtype), kernel_init=init, name=name)


class Norm(nn.LayerNorm):
    """Layer norm with float32 statistics, handed on in the dtype it came in."""

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        return super().__call__(x.astype(jnp.float32)).astype(x.dtype)


def norm(model, name: str | None = None) -> Norm:
    return Norm(epsilon=model.norm_epsilon, dtype=jnp.float32, name=name)


def by_rows(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """`x` with its rows where those of the batch are and its other axes whole; as it is outside a mesh of devices.

    Left to itself XLA splits hidden states as it finds the parameters split: by width, where all rows are everywhere.
    """
    mesh = jax.typeof(x).sharding.mesh
    if mesh.size < 2 or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(ROWS)))


def table(model, rows: int) -> nn.Embed:
    return nn.Embed(rows, model.embedding, embedding_init=initializer(model))


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


def attention(
    query: Float[Array, "b l h k"],
    key: Float[Array, "b m h k"],
    value: Float[Array, "b m h k"],
    example: Int[Array, "b m"],
    drop: Callable[[Array], Array] = lambda weights: weights,
    how: str = "xla",
    causal: bool = False,
) -> Float[Array, "b l h k"]:
    """Softmax attention, with float32 scores, of every token over the tokens of its own example.

    With `causal` no token attends to later ones. `how` is one of `ATTENTION`; what padding (example 0) gets differs
    between them, and nothing reads it.
    """
    return ATTENTION[how](query, key, value, example, drop, causal)


def seen(example: Int[Array, "b l"], causal: bool) -> Bool[Array, "b 1 l l"]:
    """Which tokens each token attends to. Padding attends to padding, so no row lacks a key."""
    same = example[:, None, :, None] == example[:, None, None, :]
    return jnp.tril(same) if causal else same


def in_parts(query, key, value, example, drop, causal):
    """With the weights as an array, to which `drop` is applied."""
    scores = jnp.einsum("blhk,bmhk->bhlm", query, key, preferred_element_type=jnp.float32) / query.shape[-1] ** 0.5
    weights = jax.nn.softmax(jnp.where(seen(example, causal), scores, jnp.finfo(jnp.float32).min)).astype(query.dtype)
    return jnp.einsum("bhlm,bmhk->blhk", drop(weights), value)


def fused(query, key, value, **which):
    """cuDNN's on a GPU; elsewhere what XLA makes of the same, so that a run can be opened anywhere."""
    how = "cudnn" if jax.default_backend() == "gpu" else "xla"
    return jax.nn.dot_product_attention(query, key, value, implementation=how, **which)


def fused_by_length(query, key, value, example, drop, causal):
    """Without the weights as an array: for rows of one example each, padded at the end."""
    count = jnp.maximum((example > 0).sum(-1), 1).astype(jnp.int32)  # a row without a key would not be finite
    return fused(query, key, value, query_seq_lengths=count, key_value_seq_lengths=count, is_causal=causal)


def fused_by_mask(query, key, value, example, drop, causal):
    """Without the weights as an array, over any rows: reads a mask of every pair of tokens."""
    return fused(query, key, value, mask=seen(example, causal))


ATTENTION = {"xla": in_parts, "cudnn": fused_by_length, "cudnn_packed": fused_by_mask}


class Embeddings(nn.Module):
    """Word + position + segment tables, layer norm of width `e`, dropout (BERT §3.2; ALBERT and ELECTRA at width E).

    `lent_word` is the table of another network (ELECTRA's tied token embeddings).
    """

    model: object
    lent_word: nn.Embed | None = None
    project_init = None  # of the encoder's projection e → d; None is the model's own

    def setup(self):
        model = self.model
        if self.lent_word is None:
            self.word = table(model, model.vocab)
        self.position = table(model, model.positions + model.position_offset)
        if model.segments:
            self.segment = table(model, model.segments)
        self.norm = norm(model)
        self.drop = Dropout(model.dropout)

    @property
    def words(self) -> nn.Embed:
        """The word table in use, own or lent."""
        return self.word if self.lent_word is None else self.lent_word

    def __call__(
        self,
        tokens: Int[Array, "b l"],
        example: Int[Array, "b l"],
        segments: Int[Array, "b l"],
        positions: Int[Array, "b l"],
        train: bool,
    ) -> Float[Array, "b l e"]:
        offset = self.model.position_offset
        x = self.words(tokens) + self.position(jnp.where(example > 0, positions + offset, max(offset - 1, 0)))
        if self.model.segments:
            x = x + self.segment(jnp.minimum(segments, self.model.segments - 1))
        return self.drop(self.norm(by_rows(x)), train).astype(jnp.dtype(self.model.dtype))


class Attend(nn.Module):
    """Multi-head self-attention, residual and layer norm after it (post-LN)."""

    model: object
    causal = False  # whether a token sees only itself and earlier ones

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], example: Int[Array, "b l"], train: bool) -> Float[Array, "b l d"]:
        model = self.model
        heads = lambda name: dense(model, model.hidden, name)(x).reshape(*x.shape[:2], model.heads, -1)
        query, key, value = heads("query"), heads("key"), heads("value")
        drop = Dropout(model.attention_dropout)
        dropped = lambda weights: drop(weights, train)
        mixed = attention(query, key, value, example, dropped, model.attention, self.causal)
        out = dense(model, model.hidden, "out")(mixed.reshape(x.shape))
        return norm(model, "norm")(x + Dropout(model.dropout)(out, train))


class Transform(nn.Module):
    """The feed-forward network, residual and layer norm after it (post-LN)."""

    model: object

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], example: Int[Array, "b l"], train: bool) -> Float[Array, "b l d"]:
        model = self.model
        inner = ACTIVATIONS[model.activation](dense(model, model.intermediate, "up")(x))
        out = dense(model, model.hidden, "down")(inner)
        return norm(model, "norm")(x + Dropout(model.dropout)(out, train))


class CausalAttend(Attend):
    """`Attend` in which a token sees itself and the earlier tokens of its example: other masks, the same parameters.

    BERT's "LTR & No NSP" (Devlin et al., 2019, §5.1).
    """

    causal = True
