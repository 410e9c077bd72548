"""EuroBERT (Boizard et al., 2025, https://arxiv.org/abs/2503.05500) and the released checkpoints.

Llama's layers without the causal mask: pre-norm with RMS norms, no biases, a gated feed-forward network, rotary
positions, and key heads that serve several query heads. The masked-token head is not tied to the word table.
"""

from __future__ import annotations

from dataclasses import dataclass
from reprlib import repr as shorten
from typing import Any, ClassVar, Literal

import flax.linen as nn
from jaxtyping import Array, Float

from encoders.families.architecture import Architecture, check_number_or_text, read_rope_theta
from encoders.model import heads, layers, rotary
from encoders.model.config import EncoderConfig, FamilyConventions
from encoders.model.layers import LayerContext
from encoders.model.ops import ACTIVATIONS, Dropout, make_dense, make_rms_norm
from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields
from encoders.utils.serialization import not_fingerprinted

CONVENTIONS = FamilyConventions("eurobert")
Hidden = Float[Array, "b l d"]


class EuroBertAttention(nn.Module):
    """Rotary self-attention on normed hidden states, and residual."""

    config: object
    is_causal = False

    @nn.compact
    def __call__(self, x: Hidden, context: LayerContext, train: bool) -> Hidden:
        config, normed = self.config, make_rms_norm(self.config, "norm")(x)

        def project(name: str, num_heads: int) -> Float[Array, "b l h k"]:
            size = config.hidden_size // config.num_heads
            projected = make_dense(config, num_heads * size, name, use_bias=False)(normed)
            return projected.reshape(*x.shape[:2], num_heads, size)

        query = rotary.rotate_heads(project("query", config.num_heads), context.row_features)
        key = rotary.rotate_heads(project("key", config.num_key_heads), context.row_features)
        value = project("value", config.num_key_heads)
        mixed = layers.attend(config, query, key, value, context, train, self.is_causal)
        out = make_dense(config, config.hidden_size, "out", use_bias=False)(mixed.reshape(x.shape))
        return x + Dropout(config.hidden_dropout)(out, train)


class EuroBertFeedForward(nn.Module):
    """Gated feed-forward network on normed hidden states, and residual."""

    config: object
    num_matrices = 3

    @nn.compact
    def __call__(self, x: Hidden, context: LayerContext, train: bool) -> Hidden:
        config, normed = self.config, make_rms_norm(self.config, "norm")(x)
        expand = lambda name: make_dense(config, config.intermediate_size, name, use_bias=False)(normed)
        inner = ACTIVATIONS[config.activation](expand("gate")) * expand("up")
        out = make_dense(config, config.hidden_size, "down", use_bias=False)(inner)
        return x + Dropout(config.hidden_dropout)(out, train)


class EuroBertTokenHead(heads.UntiedTokenHead):
    """Dense d → v without a bias."""

    has_bias = False


@dataclass(frozen=True)
class EuroBertConfig(EncoderConfig):
    """`num_key_heads` heads of keys and values serve `num_heads` heads of queries.

    Fields of `EncoderConfig` have EuroBERT's defaults here. `hidden_dropout` is 0 in the published models. It acts
    on the embeddings and on what a layer adds.
    """

    num_key_heads: int | None = None  # as many as `num_heads` by default
    rope_theta: float = 250_000.0
    max_positions: int = 8192
    num_token_types: int = 0
    activation: Literal["gelu", "gelu_tanh", "silu"] = "silu"
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    layer_norm_eps: float = 1e-5
    truncated_init: bool = False
    embeddings: type = layers.WordEmbeddings
    attention: type = EuroBertAttention
    feed_forward: type = EuroBertFeedForward
    token_head: type = EuroBertTokenHead
    pooler: type = heads.GeluPooler
    final_norm: type | None = layers.FinalRMSNorm
    row_features: type | None = rotary.RotaryFeatures
    pooling: Literal["cls", "mean", "late"] = "late"
    conventions: FamilyConventions = not_fingerprinted(CONVENTIONS)

    param_compatible_fields: ClassVar[tuple[str, ...]] = (
        *EncoderConfig.param_compatible_fields,
        *("max_positions", "rope_theta"),  # the context can be extended
    )

    def __post_init__(self):
        if self.num_key_heads is None:
            object.__setattr__(self, "num_key_heads", self.num_heads)  # the dataclass is frozen
        super().__post_init__()
        check_fields(self, "model.", [("num_key_heads", lambda count: count >= 1, "at least 1")])
        if self.num_heads % self.num_key_heads:
            raise UserError(
                f"model.num_heads={self.num_heads} is not a multiple of model.num_key_heads={self.num_key_heads}"
            )
        rotary.check_rotary_fields(self)

    def count_projection_weights(self) -> int:
        return 2 * self.hidden_size**2 * (self.num_heads + self.num_key_heads) // self.num_heads

    def scale_sizes(self, hidden_size: int) -> dict[str, int | None]:
        intermediate_size = max(1, round(self.intermediate_size * hidden_size / self.hidden_size))
        return super().scale_sizes(hidden_size) | {"intermediate_size": intermediate_size, "num_key_heads": None}


def make_eurobert_config(
    hidden_size: int, num_layers: int, num_heads: int, intermediate_size: int, **fields
) -> EuroBertConfig:
    sizes = dict(hidden_size=hidden_size, num_layers=num_layers, intermediate_size=intermediate_size)
    return EuroBertConfig(**{"vocab_size": 128_256, **sizes, "num_heads": num_heads, **fields})


SIZES = {
    "eurobert-210m": make_eurobert_config(768, 12, 12, 3072),
    "eurobert-610m": make_eurobert_config(1152, 26, 18, 4096, num_key_heads=6),
    "eurobert-2.1b": make_eurobert_config(2304, 32, 18, 6144, num_key_heads=6),
}

DEFAULT_THETA = 10_000.0  # of a config.json that names none, in transformers; the released ones name 250,000
POOLING_NAMES = {"late": "late", "mean": "mean", "bos": "cls"}  # theirs: ours


def read_attention(hf_config: dict) -> dict[str, Any]:
    """Return the fields of ours that config.json nests, omits, or had under another name in earlier files."""
    num_heads = hf_config.get("num_attention_heads", 12)
    num_key_heads = hf_config.get("num_key_value_heads")
    pooling = hf_config.get("classifier_pooling", hf_config.get("clf_pooling", "late"))
    if not isinstance(pooling, str) or pooling not in POOLING_NAMES:
        raise UserError(f"classifier_pooling={shorten(pooling)} is not one of {', '.join(POOLING_NAMES)}")
    check_number_or_text("num_key_value_heads", num_heads if num_key_heads is None else num_key_heads, "int")
    head_size = hf_config.get("head_dim")
    if head_size is not None and head_size * num_heads != hf_config.get("hidden_size", 768):
        raise UserError(f"head_dim={head_size!r} is not supported; only hidden_size / num_attention_heads is")
    return {
        "num_key_heads": num_key_heads,
        "rope_theta": read_rope_theta(
            "rope_theta", hf_config.get("rope_parameters"), hf_config.get("rope_theta", DEFAULT_THETA)
        ),
        "pooling": POOLING_NAMES[pooling],
    }


def write_attention(config: EuroBertConfig) -> dict[str, Any]:
    pooling_names = {ours: name for name, ours in POOLING_NAMES.items()}
    return {
        "num_key_value_heads": config.num_key_heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "classifier_pooling": pooling_names[config.pooling],
        "tie_word_embeddings": False,
    }


ARCHITECTURE = Architecture(
    name="eurobert",
    class_prefix="EuroBert",
    root="model",
    module_names=(
        ("encoder/embed/word", "{root}.embed_tokens"),
        ("encoder/layers/attend/norm", "{root}.layers.{}.input_layernorm"),
        ("encoder/layers/attend/query", "{root}.layers.{}.self_attn.q_proj"),
        ("encoder/layers/attend/key", "{root}.layers.{}.self_attn.k_proj"),
        ("encoder/layers/attend/value", "{root}.layers.{}.self_attn.v_proj"),
        ("encoder/layers/attend/out", "{root}.layers.{}.self_attn.o_proj"),
        ("encoder/layers/transform/norm", "{root}.layers.{}.post_attention_layernorm"),
        ("encoder/layers/transform/gate", "{root}.layers.{}.mlp.gate_proj"),
        ("encoder/layers/transform/up", "{root}.layers.{}.mlp.up_proj"),
        ("encoder/layers/transform/down", "{root}.layers.{}.mlp.down_proj"),
        ("encoder/final_norm/norm", "{root}.norm"),
        ("tokens/out", "lm_head"),
        ("pooler/dense", "dense"),
        ("classes/out", "classifier"),
        ("tags", "classifier"),
    ),
    tied_tensors=(),
    classifier_head="pooled",
    config_class=EuroBertConfig,
    config_fields=(
        ("vocab_size", "vocab_size", 128_256),
        ("hidden_size", "hidden_size", 768),
        ("num_layers", "num_hidden_layers", 12),
        ("num_heads", "num_attention_heads", 12),
        ("intermediate_size", "intermediate_size", 3072),
        ("max_positions", "max_position_embeddings", 8192),
        ("attention_dropout", "attention_dropout", 0.0),
        ("layer_norm_eps", "rms_norm_eps", 1e-5),
        ("init_std", "initializer_range", 0.02),
        ("activation", "hidden_act", "silu"),
    ),
    required_values={
        **{name: (False,) for name in ("tie_word_embeddings", "attention_bias", "mlp_bias")},
        **{name: (None,) for name in ("quantization_config", "rope_scaling")},
        "pretraining_tp": (1,),
    },
    read_nested=read_attention,
    write_nested=write_attention,
    classifier_dropout_field=("classifier_dropout", 0.0),
    token_id_fields=(("bos_token_id", "cls_id"), ("eos_token_id", "sep_id"), ("mask_token_id", "mask_id")),
)
