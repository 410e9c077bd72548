"""The encoder of all families: batch to hidden states.

Layers run in one scan. A part in `config.shared_parts` has `num_groups` stacked parameter sets under `shared/`, which
every layer reads; any other part has one set a layer, stacked under `layers/`.
"""

import re
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from encoders.model.config import LAYER_PARTS, EncoderConfig
from encoders.model.layers import Embeddings, EncoderInputs, LayerContext, MemoryAttention
from encoders.model.ops import make_dense, shard_rows

REMAT_POLICIES = {"dots": jax.checkpoint_policies.save_only_these_names("dense"), "full": None}


def find_encoder_name(params: Mapping) -> str:
    """Return the name of the encoder that fine-tuning starts from: the discriminator's where there is a generator."""
    return "discriminator" if "discriminator" in params else "encoder"


def merge_word_tables(params: Mapping) -> dict:
    """Return parameters in which the discriminator has a word table of its own, also where it shifts the generator's.

    Under `jax.eval_shape` these are shapes.
    """
    if "words" not in params:
        return dict(params)
    encoder = params["discriminator"]
    table = params["generator"]["embed"]["word"]["embedding"] + params["words"]["shift"]
    encoder = encoder | {"embed": encoder["embed"] | {"word": {"embedding": table}}}
    return {name: tree for name, tree in params.items() if name != "words"} | {"discriminator": encoder}


def is_stacked(path: str) -> bool:
    """Return True where the first axis of the leaf at `path` counts layers, or groups that share parameters."""
    return re.search(r"(^|/)(layers|shared)/", path) is not None


class EncoderLayer(nn.Module):
    """One layer: attention, then feed-forward, with its own or with shared parameters.

    Layers hand on hidden states `[b l d]`, or the pytree of `config.begin_layers`. In a decoder `MemoryAttention` comes
    between the two parts.
    """

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, x, context: LayerContext, shared_params: Mapping, train: bool, output_hidden_states: bool, layer_index
    ):
        context = context.replace(layer_index=layer_index)
        group_index = layer_index * self.config.num_groups // self.config.num_layers
        for field, name in LAYER_PARTS.items():
            part = getattr(self.config, field)
            if name in shared_params:
                select_group = lambda stack: stack[group_index] if len(stack) > 1 else stack[0]
                params = jax.tree.map(select_group, shared_params[name])
                rngs = {"dropout": self.make_rng("dropout")} if self.has_rng("dropout") else {}
                with jax.named_scope(name):  # as modules have, for the parts of a profile
                    x = part(self.config, parent=None).apply({"params": params}, x, context, train, rngs=rngs)
            else:
                x = part(self.config, name=name)(x, context, train)
            if field == "attention" and context.memory is not None:
                hidden = self.config.get_hidden_states(x)
                hidden = MemoryAttention(self.config, name="memory")(hidden, context, train)
                x = self.config.replace_hidden_states(x, hidden)
        x = jax.tree.map(shard_rows, x)
        return x, (self.config.get_hidden_states(x) if output_hidden_states else None)


class Encoder(nn.Module):
    """Transformer encoder: a batch to hidden states `[b l d]`. The projection to the hidden width is never tied."""

    config: EncoderConfig
    tied_embeddings: Embeddings | None = None  # the embedding block of another network (ELECTRA)
    tied_word_embedding: nn.Module | None = None  # its word table alone

    def setup(self):
        config = self.config
        if self.tied_embeddings is None:
            self.embed = config.embeddings(config, tied_word_embedding=self.tied_word_embedding)
        if config.has_embedding_projection:
            self.project = make_dense(config, config.hidden_size, kernel_init=config.embeddings.projection_init)
        if config.row_features is not None:
            self.row_features = config.row_features(config)
        if config.final_norm is not None:
            self.final_norm = config.final_norm(config)
        self.shared = self.param("shared", self.init_shared_params) if config.shared_parts else {}
        body = EncoderLayer
        if config.remat != "none":
            body = nn.remat(body, policy=REMAT_POLICIES[config.remat], prevent_cse=False, static_argnums=(4, 5))
        # Only a loop keeps what is computed again apart: XLA merges it with the first time where layers are unrolled.
        is_unrolled = config.unroll_layers and config.remat == "none"
        self.layers = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(*[nn.broadcast] * 4, 0),
            length=config.num_layers,
            unroll=config.num_layers if is_unrolled else 1,
        )(config)

    def init_shared_params(self, key) -> dict:
        """Return the parameters of the shared parts by name, each a stack of `num_groups` sets."""
        config, ones, stacks = self.config, jnp.ones((1, 1), int), {}
        x = config.begin_layers(jnp.zeros((1, 1, config.hidden_size), config.dtype))
        context = LayerContext(ones, ones, ones, 0)
        if config.row_features is not None:
            features, _ = config.row_features(config, parent=None).init_with_output(key, context)
            context = context.replace(row_features=features)
        for i, (field, name) in enumerate(LAYER_PARTS.items()):
            if field in config.shared_parts:
                part = getattr(config, field)(config, parent=None)
                init_set = lambda key, part=part: part.init(key, x, context, False)["params"]
                stacks[name] = jax.vmap(init_set)(jax.random.split(jax.random.fold_in(key, i), config.num_groups))
        return stacks

    def make_layer_context(self, *rows) -> LayerContext:
        """Return what the layers see of rows, with the features that are computed once for all of them."""
        context = LayerContext(*rows, 0)
        if self.config.row_features is None:
            return context
        return context.replace(row_features=self.row_features(context))

    @property
    def active_embeddings(self) -> Embeddings:
        """The embedding block, own or tied."""
        return self.embed if self.tied_embeddings is None else self.tied_embeddings

    def __call__(
        self, batch: EncoderInputs, *, train: bool = False, output_hidden_states: bool = False
    ) -> Float[Array, "b l d"] | Float[Array, "n b l d"]:
        """Return the last layer's hidden states, or with `output_hidden_states` the embedding's and every layer's."""
        config = self.config
        x, context = self.begin_rows(batch, train)
        run_layers = self.layers
        if len(config.attention_windows) > 1 and not self.is_initializing():
            run_layers = self.run_periods
        args = context, self.shared, train, output_hidden_states, jnp.arange(config.num_layers)
        last, outputs = run_layers(config.begin_layers(x), *args)
        last = self.end_rows(last)
        return jnp.concatenate([x[None], outputs[:-1], last[None]]) if output_hidden_states else last

    def begin_rows(self, batch: EncoderInputs, train: bool) -> tuple[Float[Array, "b l d"], LayerContext]:
        """Return the embeddings at the hidden width, and what the layers see of the rows."""
        x = self.active_embeddings(batch, train)
        if self.config.has_embedding_projection:
            x = self.project(x)
        rows = map(jnp.asarray, (batch.example_ids, batch.token_type_ids, batch.position_ids))
        return x, self.make_layer_context(*rows)

    def end_rows(self, carried) -> Float[Array, "b l d"]:
        """Return the encoder's hidden states from what the last layer returns."""
        last = self.config.end_layers(carried)
        return last if self.config.final_norm is None else self.final_norm(last)

    def init_memory_params(self, key) -> dict:
        """Return the parameters that `decode` adds to each layer, stacked as those of the layers."""
        part, x = MemoryAttention(self.config, parent=None), jnp.zeros((1, 1, self.config.hidden_size))
        context = LayerContext(*[jnp.ones((1, 1), int)] * 3, 0, memory=x)
        init_layer = lambda key: part.init(key, x, context, False)["params"]
        return {"memory": jax.vmap(init_layer)(jax.random.split(key, self.config.num_layers))}

    def decode(
        self, batch: EncoderInputs, vectors: Float[Array, "b s d"], memory_params: Mapping, train: bool = False
    ) -> Float[Array, "b l d"]:
        """Return the last layer's hidden states of the layers as a decoder.

        A token reads itself, the earlier ones of its example, and the vector of its example. Parameters are those of
        the encoder, and `memory_params` of `init_memory_params`.
        """
        config = self.config
        x, context = self.begin_rows(batch, train)
        example = jnp.maximum(batch.example_ids - 1, 0)
        memory = jnp.take_along_axis(vectors, example[..., None], axis=1).astype(x.dtype)
        context = context.replace(memory=memory, is_causal=True)
        args = context, self.shared, train, False, jnp.arange(config.num_layers), memory_params
        last, _ = self.run_periods(config.begin_layers(x), *args)
        return self.end_rows(last)

    def run_periods(
        self,
        x,
        context: LayerContext,
        shared_params,
        train: bool,
        output_hidden_states: bool,
        indices,
        further_params: Mapping = {},
    ):
        """Run layers whose windows repeat: one scan over periods, in each of which the windows are static.

        Parameters are those of `self.layers`, whose scan initialises them, and a stack of further parts.
        """
        config, stack = self.config, self.layers.variables.get("params", {})  # none where all parts are shared
        stack = {**stack, **further_params}
        dropout_key = self.make_rng("dropout") if self.has_rng("dropout") else None

        def run_layer(x, params, index, window):
            rngs = {} if dropout_key is None else {"dropout": jax.random.fold_in(dropout_key, index)}
            layer, layer_context = EncoderLayer(config, parent=None), context.replace(window=window)
            args = x, layer_context, shared_params, train, output_hidden_states, index
            return layer.apply({"params": params}, *args, rngs=rngs)

        if config.remat != "none":
            policy = REMAT_POLICIES[config.remat]
            run_layer = jax.checkpoint(run_layer, policy=policy, prevent_cse=False, static_argnums=3)

        def run_period(x, period):
            outputs = []
            for i, window in enumerate(config.attention_windows[: len(period[1])]):
                x, output = run_layer(x, *jax.tree.map(lambda leaf, i=i: leaf[i], period), window)
                outputs.append(output)
            return x, jnp.stack(outputs) if output_hidden_states else None

        size = len(config.attention_windows)
        num_in_periods = config.num_layers // size * size
        split_periods = lambda leaf: leaf[:num_in_periods].reshape(-1, size, *leaf.shape[1:])
        unroll = config.unroll_layers and config.remat == "none"
        x, outputs = jax.lax.scan(run_period, x, jax.tree.map(split_periods, (stack, indices)), unroll=unroll)
        if num_in_periods == config.num_layers:
            return x, outputs.reshape(-1, *outputs.shape[2:]) if output_hidden_states else None
        x, rest = run_period(x, jax.tree.map(lambda leaf: leaf[num_in_periods:], (stack, indices)))
        if output_hidden_states:
            outputs = jnp.concatenate([outputs.reshape(-1, *rest.shape[1:]), rest])
        return x, outputs
