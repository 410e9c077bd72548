"""NeoBERT (Le Breton et al., 2025, https://arxiv.org/abs/2502.19587) and the released checkpoint.

Pre-norm layers with RMS norms and without biases, a gated feed-forward network, and rotary positions on neighbouring
pairs. The masked-token head is a dense layer of its own. transformers does not implement it. The released folder
brings its own code, and an export does not repeat that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from encoders.families.architecture import Architecture
from encoders.model import layers, rotary
from encoders.model.config import EncoderConfig, FamilyConventions
from encoders.model.heads import UntiedTokenHead
from encoders.model.layers import LayerContext
from encoders.model.ops import ACTIVATIONS, Dropout, make_dense, make_rms_norm
from encoders.utils.serialization import not_fingerprinted

CONVENTIONS = FamilyConventions("neobert", "tanh")
Hidden = Float[Array, "b l d"]


class NeoBertAttention(nn.Module):
    """Rotary self-attention on normed hidden states, and residual. One matrix holds query, key and value of each head
    beside each other."""

    config: object
    is_causal = False

    @nn.compact
    def __call__(self, x: Hidden, context: LayerContext, train: bool) -> Hidden:
        config, normed = self.config, make_rms_norm(self.config, "norm")(x)
        qkv = make_dense(config, 3 * config.hidden_size, "qkv", use_bias=False)(normed)
        query, key, value = jnp.split(qkv.reshape(*x.shape[:2], config.num_heads, -1), 3, axis=-1)
        query, key = (rotary.rotate_neighbours(heads, context.row_features) for heads in (query, key))
        mixed = layers.attend(config, query, key, value, context, train, self.is_causal)
        out = make_dense(config, config.hidden_size, "out", use_bias=False)(mixed.reshape(x.shape))
        return x + Dropout(config.hidden_dropout)(out, train)


class NeoBertFeedForward(nn.Module):
    """Gated feed-forward network on normed hidden states, and residual. One matrix holds inner features and gates."""

    config: object
    num_matrices = 3

    @nn.compact
    def __call__(self, x: Hidden, context: LayerContext, train: bool) -> Hidden:
        config, normed = self.config, make_rms_norm(self.config, "norm")(x)
        up = make_dense(config, 2 * config.intermediate_size, "up", use_bias=False)(normed)
        inner, gate = jnp.split(up, 2, axis=-1)
        inner = ACTIVATIONS[config.activation](inner) * gate
        out = make_dense(config, config.hidden_size, "down", use_bias=False)(inner)
        return x + Dropout(config.hidden_dropout)(out, train)


@dataclass(frozen=True)
class NeoBertConfig(EncoderConfig):
    """Fields of `EncoderConfig` have NeoBERT's defaults here; its `init_std` is the bound of a uniform distribution.

    `intermediate_size` is that of the matrices, two thirds of the number in config.json. `hidden_dropout` is 0 in the
    published model. It acts on the embeddings and on what a layer adds.
    """

    rope_theta: float = 10_000.0
    max_positions: int = 4096
    num_token_types: int = 0
    activation: Literal["gelu", "gelu_tanh", "silu"] = "silu"
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    layer_norm_eps: float = 1e-5
    embeddings: type = layers.WordEmbeddings
    attention: type = NeoBertAttention
    feed_forward: type = NeoBertFeedForward
    token_head: type = UntiedTokenHead
    final_norm: type | None = layers.FinalRMSNorm
    row_features: type | None = rotary.RotaryFeatures
    conventions: FamilyConventions = not_fingerprinted(CONVENTIONS)

    param_compatible_fields: ClassVar[tuple[str, ...]] = (
        *EncoderConfig.param_compatible_fields,
        *("max_positions", "rope_theta"),  # the context can be extended
    )

    fused_matrices: ClassVar[dict[str, int]] = {"up": 2}  # those of attention are apart in each head

    def __post_init__(self):
        super().__post_init__()
        rotary.check_rotary_fields(self)

    def make_initializer(self, std: float):
        return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -std, std)

    def scale_sizes(self, hidden_size: int) -> dict[str, int | None]:
        return super().scale_sizes(hidden_size) | {"intermediate_size": round_up_to_eight(8 * hidden_size // 3)}


def round_up_to_eight(size: int) -> int:
    return -(-size // 8) * 8


BASE = NeoBertConfig(vocab_size=30_522, hidden_size=768, num_layers=28, num_heads=12, intermediate_size=2048)
SIZES = {"neobert": BASE}


def read_intermediate_size(hf_config: dict) -> dict[str, Any]:
    """Return the inner width of the matrices, which xformers rounds from two thirds of the one in config.json."""
    return {"intermediate_size": round_up_to_eight(2 * hf_config.get("intermediate_size", 3072) // 3)}


def write_intermediate_size(config: NeoBertConfig) -> dict[str, Any]:
    size = -(-3 * config.intermediate_size // 2)
    return {"intermediate_size": size, "hidden_act": "SwiGLU", "decoder_init_range": config.init_std}


ARCHITECTURE = Architecture(
    name="neobert",
    class_names={"Model": "NeoBERT", "ForMaskedLM": "NeoBERTLMHead"},
    class_prefix="NeoBERT",
    root="model",
    module_names=(
        ("encoder/embed/word", "{root}.encoder"),
        ("encoder/layers/attend/norm", "{root}.transformer_encoder.{}.attention_norm"),
        ("encoder/layers/attend/qkv", "{root}.transformer_encoder.{}.qkv"),
        ("encoder/layers/attend/out", "{root}.transformer_encoder.{}.wo"),
        ("encoder/layers/transform/norm", "{root}.transformer_encoder.{}.ffn_norm"),
        ("encoder/layers/transform/up", "{root}.transformer_encoder.{}.ffn.w12"),
        ("encoder/layers/transform/down", "{root}.transformer_encoder.{}.ffn.w3"),
        ("encoder/final_norm/norm", "{root}.layer_norm"),
        ("tokens/out", "decoder"),
        ("classes/dense", "dense"),
        ("classes/out", "classifier"),
    ),
    tied_tensors=(),
    classifier_head="tanh",
    config_class=NeoBertConfig,
    config_fields=(
        ("vocab_size", "vocab_size", 30_522),
        ("hidden_size", "hidden_size", 768),
        ("num_layers", "num_hidden_layers", 28),
        ("num_heads", "num_attention_heads", 12),
        ("intermediate_size", "intermediate_size", 3072),
        ("max_positions", "max_length", 4096),
        ("layer_norm_eps", "norm_eps", 1e-5),
        ("init_std", "embedding_init_range", 0.02),
    ),
    required_values={
        "hidden_act": ("SwiGLU",),
        "rope": (True,),
        "rms_norm": (True,),
        "quantization_config": (None,),
    },
    read_nested=read_intermediate_size,
    write_nested=write_intermediate_size,
    classifier_dropout_field=("classifier_dropout", 0.1),
)
