"""ModernBERT (Warner et al., 2024, https://arxiv.org/abs/2412.13663), §2 and the released checkpoints.

Pre-norm layers without biases, a gated feed-forward network, rotary positions, and attention that is global in every
third layer and else within a window. Ettin (https://arxiv.org/abs/2507.11412) and mmBERT
(https://arxiv.org/abs/2509.06888) are sizes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from reprlib import repr as shorten
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from encoders.families.architecture import Architecture, check_number_or_text, read_rope_theta
from encoders.model import heads, layers, rotary
from encoders.model.config import EncoderConfig, FamilyConventions
from encoders.model.layers import LayerContext
from encoders.model.ops import ACTIVATIONS, Dropout, make_dense, make_initializer, make_layer_norm
from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields
from encoders.utils.serialization import not_fingerprinted

CONVENTIONS = FamilyConventions("modernbert", token_classifier_head="pooled", answerability="pooled_null_span")
Hidden = Float[Array, "b l d"]


class ModernBertEmbeddings(layers.Embeddings):
    """Word embeddings, layer norm without bias, dropout."""

    has_positions = False
    norm_has_bias = False


class ModernBertRotary(nn.Module):
    """The rotary tables of global and of local layers."""

    config: object

    def __call__(self, context: LayerContext) -> dict[str, rotary.RotaryTable]:
        config = self.config
        size = config.hidden_size // config.num_heads
        thetas = {"global": config.rope_theta, "local": config.local_rope_theta}
        make_table = lambda theta: rotary.make_rotary_table(context.position_ids, size, theta, jnp.dtype(config.dtype))
        return {kind: make_table(theta) for kind, theta in thetas.items()}


def make_output_dense(config, name: str):
    """Return the dense layer that adds to the residual stream: without bias, its deviation divided by √(2 layers)."""
    init = make_initializer(config, (2 * config.num_layers) ** -0.5)
    return make_dense(config, config.hidden_size, name, kernel_init=init, use_bias=False)


class ModernBertAttention(nn.Module):
    """Rotary self-attention on hidden states that are normed already, and residual."""

    config: object
    is_causal = False

    @nn.compact
    def __call__(self, carried: tuple[Hidden, Hidden], context: LayerContext, train: bool) -> tuple[Hidden, Hidden]:
        x, normed = carried
        config = self.config
        qkv = make_dense(config, 3 * config.hidden_size, "qkv", use_bias=False)(normed)
        query, key, value = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, config.num_heads, -1), 2, 0)
        table = context.row_features["global" if context.window is None else "local"]
        query, key = rotary.rotate_heads(query, table), rotary.rotate_heads(key, table)
        mixed = layers.attend(config, query, key, value, context, train, self.is_causal)
        out = make_output_dense(config, "out")(mixed.reshape(x.shape))
        return x + Dropout(config.attention_out_dropout)(out, train), normed


class ModernBertFeedForward(nn.Module):
    """Gated feed-forward network with its norm before it, and residual; then the norm that the next layer reads.

    The norm of attention in the first layer, which does not exist, and the one after the last layer make one stack so.
    """

    config: object
    num_matrices = 3

    @nn.compact
    def __call__(self, carried: tuple[Hidden, Hidden], context: LayerContext, train: bool) -> tuple[Hidden, Hidden]:
        x, _ = carried
        config = self.config
        normed = make_layer_norm(config, "norm", use_bias=False)(x)
        up = make_dense(config, 2 * config.intermediate_size, "up", use_bias=False)(normed)
        inner, gate = jnp.split(up, 2, axis=-1)
        inner = Dropout(config.mlp_dropout)(ACTIVATIONS[config.activation](inner) * gate, train)
        x = x + make_output_dense(config, "down")(inner)
        return x, make_layer_norm(config, "next_norm", use_bias=False)(x)


class ModernBertTokenHead(heads.MaskedTokenHead):
    """As BERT's, its dense layer and norm without biases."""

    has_biases = False


class ModernBertPooler(nn.Module):
    """Dense d → d, gelu and layer norm without biases, before the classifiers of texts and of tokens."""

    config: object

    @nn.compact
    def __call__(self, hidden: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        x = make_dense(self.config, self.config.hidden_size, "dense", use_bias=False)(hidden)
        return make_layer_norm(self.config, "norm", use_bias=False)(ACTIVATIONS["gelu"](x))


@dataclass(frozen=True)
class ModernBertConfig(EncoderConfig):
    """Layers 0, `global_every`, 2 `global_every`, ... attend to the whole example, the others within `local_window`.

    Fields of `EncoderConfig` have ModernBERT's defaults here; `hidden_dropout` is that of the embeddings.
    """

    rope_theta: float = 160_000.0  # of global layers; 10,000 before the context was extended (§2.2)
    local_rope_theta: float = 10_000.0
    local_window: int = 128
    global_every: int = 3
    attention_out_dropout: float = 0.0
    mlp_dropout: float = 0.0
    max_positions: int = 8192
    num_token_types: int = 0
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    layer_norm_eps: float = 1e-5
    embeddings: type = ModernBertEmbeddings
    attention: type = ModernBertAttention
    feed_forward: type = ModernBertFeedForward
    token_head: type = ModernBertTokenHead
    pooler: type = ModernBertPooler
    row_features: type | None = ModernBertRotary
    conventions: FamilyConventions = not_fingerprinted(CONVENTIONS)

    param_compatible_fields: ClassVar[tuple[str, ...]] = (
        *EncoderConfig.param_compatible_fields,
        *("attention_out_dropout", "mlp_dropout"),
        *("max_positions", "rope_theta", "local_rope_theta"),  # the context can be extended
    )

    fused_matrices: ClassVar[dict[str, int]] = {"qkv": 3, "up": 2}
    leading_norms: ClassVar[tuple[str, ...]] = ("next_norm",)

    def __post_init__(self):
        super().__post_init__()
        checks = (
            ("local_rope_theta", lambda theta: theta > 0, "above 0"),
            ("local_window", lambda size: size >= 2 and size % 2 == 0, "an even number of tokens"),
            ("global_every", lambda count: count >= 1, "at least 1"),
            ("attention_out_dropout mlp_dropout", lambda rate: 0 <= rate < 1, "at least 0 and below 1"),
        )
        check_fields(self, "model.", checks)
        rotary.check_rotary_fields(self)

    @property
    def attention_windows(self) -> tuple[int | None, ...]:
        return (None, *[self.local_window] * (self.global_every - 1))

    @property
    def has_norms_first(self) -> bool:
        return True

    def scale_sizes(self, hidden_size: int) -> dict[str, int | None]:
        intermediate_size = max(1, round(self.intermediate_size * hidden_size / self.hidden_size))
        return super().scale_sizes(hidden_size) | {"intermediate_size": intermediate_size}

    def begin_layers(self, x: Hidden) -> tuple[Hidden, Hidden]:
        return x, x

    def get_hidden_states(self, carried: tuple[Hidden, Hidden]) -> Hidden:
        return carried[0]

    def replace_hidden_states(self, carried: tuple[Hidden, Hidden], x: Hidden) -> tuple[Hidden, Hidden]:
        return x, carried[1]

    def end_layers(self, carried: tuple[Hidden, Hidden]) -> Hidden:
        return carried[1]


def make_config(hidden_size: int, num_layers: int, intermediate_size: int, **fields) -> ModernBertConfig:
    """Return a size with heads of 64 and, unless `fields` say otherwise, ModernBERT's vocabulary."""
    sizes = dict(hidden_size=hidden_size, num_layers=num_layers, intermediate_size=intermediate_size)
    return ModernBertConfig(**{"vocab_size": 50_368, **sizes, "num_heads": hidden_size // 64, **fields})


BASE, LARGE = make_config(768, 22, 1152, pooling="mean"), make_config(1024, 28, 2624, pooling="mean")
ETTIN = dict(max_positions=7999, local_rope_theta=160_000.0)
MMBERT = dict(vocab_size=256_000, local_rope_theta=160_000.0, pooling="mean")

SIZES = {
    "modernbert-base": BASE,
    "modernbert-large": LARGE,
    "ettin-encoder-17m": make_config(256, 7, 384, **ETTIN),
    "ettin-encoder-32m": make_config(384, 10, 576, **ETTIN),
    "ettin-encoder-68m": make_config(512, 19, 768, **ETTIN),
    "ettin-encoder-150m": make_config(768, 22, 1152, **ETTIN),
    "ettin-encoder-400m": make_config(1024, 28, 2624, **ETTIN),
    "ettin-encoder-1b": make_config(1792, 28, 3840, **ETTIN),
    "mmbert-small": make_config(384, 22, 1152, **MMBERT),
    "mmbert-base": make_config(768, 22, 1152, **MMBERT),
}


def name_next_norm(layer: int, num_layers: int) -> str:
    """Return their name of the norm that follows a layer."""
    return "{root}.final_norm" if layer == num_layers - 1 else f"{{root}}.layers.{layer + 1}.attn_norm"


KINDS = {"full_attention": ("rope_theta", "global_rope_theta"), "sliding_attention": ("local_rope_theta",) * 2}


def read_layers(hf_config: dict) -> dict[str, Any]:
    """Return the fields of ours that config.json has as `layer_types` and `rope_parameters`, or under the names of
    transformers 4."""
    parameters = hf_config.get("rope_parameters") or {}
    # Theirs is of the attention's weights and of its output.
    values: dict[str, Any] = {"attention_out_dropout": hf_config.get("attention_dropout", 0.0)}
    for kind, (name, old_name) in KINDS.items():
        entry = parameters.get(kind) if isinstance(parameters, dict) else None
        old_theta = hf_config.get(old_name, ModernBertConfig.__dataclass_fields__[name].default)
        values[name] = read_rope_theta(f"rope_theta of {kind}", entry, old_theta)
    values["global_every"] = hf_config.get("global_attn_every_n_layers", 3)
    check_number_or_text("global_attn_every_n_layers", values["global_every"], "int")
    if "layer_types" in hf_config:
        values["global_every"] = find_global_period(hf_config["layer_types"], values["global_every"])
    return values


def find_global_period(layer_types: Any, expected: int) -> int:
    """Return the period of global layers. Raises `UserError` for layers that do not repeat with the first global."""
    size = len(layer_types) if isinstance(layer_types, list) else 0
    for period in (expected, *range(1, size + 1)):
        if layer_types == list_layer_types(size, period):
            return period
    raise UserError(f"layer_types={shorten(layer_types)} must repeat one full_attention and then sliding_attention")


def list_layer_types(num_layers: int, global_every: int) -> list[str]:
    return ["sliding_attention" if i % global_every else "full_attention" for i in range(num_layers)]


def write_layers(config: ModernBertConfig) -> dict[str, Any]:
    thetas = {kind: getattr(config, name) for kind, (name, _) in KINDS.items()}
    return {
        "layer_types": list_layer_types(config.num_layers, config.global_every),
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()},
        "global_attn_every_n_layers": config.global_every,
        **{old_name: thetas[kind] for kind, (_, old_name) in KINDS.items()},
    }


ARCHITECTURE = Architecture(
    name="modernbert",
    class_prefix="ModernBert",
    root="model",
    module_names=(
        ("encoder/embed/word", "{root}.embeddings.tok_embeddings"),
        ("encoder/embed/norm", "{root}.embeddings.norm"),
        ("encoder/layers/attend/qkv", "{root}.layers.{}.attn.Wqkv"),
        ("encoder/layers/attend/out", "{root}.layers.{}.attn.Wo"),
        ("encoder/layers/transform/norm", "{root}.layers.{}.mlp_norm"),
        ("encoder/layers/transform/up", "{root}.layers.{}.mlp.Wi"),
        ("encoder/layers/transform/down", "{root}.layers.{}.mlp.Wo"),
        ("encoder/layers/transform/next_norm", name_next_norm),
        ("tokens/dense", "head.dense"),
        ("tokens/norm", "head.norm"),
        ("tokens", "decoder"),
        ("pooler/dense", "head.dense"),
        ("pooler/norm", "head.norm"),
        ("classes/out", "classifier"),
        ("tags", "classifier"),
        ("spans", "classifier"),
    ),
    tied_tensors=(("decoder.weight", "model.embeddings.tok_embeddings.weight"),),
    classifier_head="pooled",
    token_classifier_head="pooled",
    config_class=ModernBertConfig,
    config_fields=(
        ("vocab_size", "vocab_size", 50_368),
        ("hidden_size", "hidden_size", 768),
        ("num_layers", "num_hidden_layers", 22),
        ("num_heads", "num_attention_heads", 12),
        ("intermediate_size", "intermediate_size", 1152),
        ("max_positions", "max_position_embeddings", 8192),
        ("hidden_dropout", "embedding_dropout", 0.0),
        ("mlp_dropout", "mlp_dropout", 0.0),
        ("attention_dropout", "attention_dropout", 0.0),
        ("layer_norm_eps", "norm_eps", 1e-5),
        ("init_std", "initializer_range", 0.02),
        ("activation", "hidden_activation", "gelu"),
        ("local_window", "local_attention", 128),
        ("pooling", "classifier_pooling", "cls"),
    ),
    required_values={
        **{name: (False,) for name in ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias")},
        **{name: (True,) for name in ("decoder_bias", "tie_word_embeddings")},
        "classifier_activation": ("gelu",),
        **{name: (None,) for name in ("quantization_config", "rope_scaling")},
    },
    read_nested=read_layers,
    write_nested=write_layers,
    classifier_dropout_field=("classifier_dropout", 0.0),
    token_id_fields=(("cls_token_id", "cls_id"), ("sep_token_id", "sep_id")),
    gelu_heads=("tokens",),
)
