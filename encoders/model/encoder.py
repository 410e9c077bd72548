"""BATCH → HIDDEN STATES: the one encoder that all four families use.

A part named in `model.shared_parts` is created once, as a stack of `model.num_groups` parameter sets under `shared/`, and
lent to every layer of the scan; the others are stacks of one set a layer under `layers/`.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from encoders.model.config import LAYER_PARTS, EncoderConfig
from encoders.model.layers import Embeddings, make_dense, shard_rows

REMAT_POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


class EncoderLayer(nn.Module):
    """One layer: attention, then feed-forward, each with parameters of its own or with shared ones."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l d"],
        example_ids,
        shared_params: Mapping,
        train: bool,
        output_hidden_states: bool,
        group_index,
    ):
        for field, name in LAYER_PARTS.items():
            part = getattr(self.config, field)
            if name in shared_params:
                params = jax.tree.map(
                    lambda stack: stack[group_index] if len(stack) > 1 else stack[0], shared_params[name]
                )
                rngs = {"dropout": self.make_rng("dropout")} if self.has_rng("dropout") else {}
                x = part(self.config, parent=None).apply({"params": params}, x, example_ids, train, rngs=rngs)
            else:
                x = part(self.config, name=name)(x, example_ids, train)
        x = shard_rows(x)
        return x, (x if output_hidden_states else None)


class Encoder(nn.Module):
    """Tokens to contextual vectors, `[b l d]`.

    `tied_embeddings` is a whole embedding block, `tied_word_embedding` only a word table, of another network (ELECTRA).
    The projection from width `e` to `d`, where there is one, is always the encoder's own.
    """

    config: EncoderConfig
    tied_embeddings: Embeddings | None = None
    tied_word_embedding: nn.Embed | None = None

    def setup(self):
        config = self.config
        if self.tied_embeddings is None:
            self.embed = config.embeddings(config, tied_word_embedding=self.tied_word_embedding)
        if config.has_embedding_projection:
            self.project = make_dense(config, config.hidden_size, kernel_init=config.embeddings.projection_init)
        self.shared = self.param("shared", self.init_shared_params) if config.shared_parts else {}
        body = EncoderLayer
        if config.remat != "none":
            body = nn.remat(EncoderLayer, policy=REMAT_POLICIES[config.remat], prevent_cse=False, static_argnums=(4, 5))
        self.layers = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast, 0),
            length=config.num_layers,
            unroll=config.num_layers if config.unroll_layers else 1,
        )(config)

    def init_shared_params(self, key) -> dict:
        """`{part: parameters}` of the shared parts, each a stack of `model.num_groups` sets."""
        config, one = self.config, jnp.ones((1, 1), int)
        x = jnp.zeros((1, 1, config.hidden_size), config.dtype)

        def init_param_stack(field, key):
            part = getattr(config, field)(config, parent=None)
            return jax.vmap(lambda k: part.init(k, x, one, False)["params"])(jax.random.split(key, config.num_groups))

        return {
            name: init_param_stack(field, jax.random.fold_in(key, i))
            for i, (field, name) in enumerate(LAYER_PARTS.items())
            if field in config.shared_parts
        }

    @property
    def active_embeddings(self) -> Embeddings:
        """The embedding block in use, own or tied."""
        return self.embed if self.tied_embeddings is None else self.tied_embeddings

    def __call__(
        self,
        input_ids: Int[Array, "b l"],
        example_ids: Int[Array, "b l"],
        token_type_ids: Int[Array, "b l"],
        position_ids: Int[Array, "b l"],
        *,
        train: bool = False,
        output_hidden_states: bool = False,
    ) -> Float[Array, "b l d"] | Float[Array, "n b l d"]:
        """Hidden states of the last layer; with `collect` those of the embedding and of every layer, stacked.

        `example` is 0 on padding and n on the tokens of the n-th example of the row; `positions` restart with it.
        """
        config = self.config
        x = self.active_embeddings(input_ids, example_ids, token_type_ids, position_ids, train)
        if config.has_embedding_projection:
            x = self.project(x)
        group = jnp.arange(config.num_layers) * config.num_groups // config.num_layers
        last, each = self.layers(x, example_ids, self.shared, train, output_hidden_states, group)
        return jnp.concatenate([x[None], each]) if output_hidden_states else last
