"""BATCH → HIDDEN STATES: the one encoder that all four families use.

A part named in `model.share` is created once, as a stack of `model.groups` parameter sets under `shared/`, and
lent to every layer of the scan; the others are stacks of one set a layer under `layers/`.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from encoders.model.config import Model
from encoders.model.layers import Embeddings, by_rows, dense

PARTS = ("attend", "transform")
REMAT = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


class Layer(nn.Module):
    """One layer: attend, then transform, each with parameters of its own or with those it is lent."""

    model: Model

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], example, lent: Mapping, train: bool, collect: bool, group):
        for name in PARTS:
            part = getattr(self.model, name)
            if name in lent:
                params = jax.tree.map(lambda stack: stack[group] if len(stack) > 1 else stack[0], lent[name])
                rngs = {"dropout": self.make_rng("dropout")} if self.has_rng("dropout") else {}
                x = part(self.model, parent=None).apply({"params": params}, x, example, train, rngs=rngs)
            else:
                x = part(self.model, name=name)(x, example, train)
        x = by_rows(x)
        return x, (x if collect else None)


class Encoder(nn.Module):
    """Tokens to contextual vectors, `[b l d]`.

    `lent_embed` is a whole embedding block, `lent_word` only a word table, of another network (ELECTRA's ties).
    The projection from width `e` to `d`, where there is one, is always the encoder's own.
    """

    model: Model
    lent_embed: Embeddings | None = None
    lent_word: nn.Embed | None = None

    def setup(self):
        model = self.model
        if self.lent_embed is None:
            self.embed = model.embed(model, lent_word=self.lent_word)
        if model.projects:
            self.project = dense(model, model.hidden, kernel_init=model.embed.project_init)
        self.shared = self.param("shared", self.init_shared) if model.share else {}
        body = Layer
        if model.remat != "none":
            body = nn.remat(Layer, policy=REMAT[model.remat], prevent_cse=False, static_argnums=(4, 5))
        self.layers = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast, 0),
            length=model.layers,
            unroll=model.layers if model.unroll else 1,
        )(model)

    def init_shared(self, key) -> dict:
        """`{part: parameters}` of the shared parts, each a stack of `model.groups` sets."""
        model, one = self.model, jnp.ones((1, 1), int)
        x = jnp.zeros((1, 1, model.hidden), model.dtype)

        def stack(name, key):
            part = getattr(model, name)(model, parent=None)
            return jax.vmap(lambda k: part.init(k, x, one, False)["params"])(jax.random.split(key, model.groups))

        return {name: stack(name, jax.random.fold_in(key, PARTS.index(name))) for name in model.share}

    @property
    def embeddings(self) -> Embeddings:
        """The embedding block in use, own or lent."""
        return self.embed if self.lent_embed is None else self.lent_embed

    def __call__(
        self,
        tokens: Int[Array, "b l"],
        example: Int[Array, "b l"],
        segments: Int[Array, "b l"],
        positions: Int[Array, "b l"],
        *,
        train: bool = False,
        collect: bool = False,
    ) -> Float[Array, "b l d"] | Float[Array, "n b l d"]:
        """Hidden states of the last layer; with `collect` those of the embedding and of every layer, stacked.

        `example` is 0 on padding and n on the tokens of the n-th example of the row; `positions` restart with it.
        """
        model = self.model
        x = self.embeddings(tokens, example, segments, positions, train)
        if model.projects:
            x = self.project(x)
        group = jnp.arange(model.layers) * model.groups // model.layers
        last, each = self.layers(x, example, self.shared, train, collect, group)
        return jnp.concatenate([x[None], each]) if collect else last
