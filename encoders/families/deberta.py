"""DeBERTa-v3 (He et al., 2021, https://arxiv.org/abs/2111.09543), with the encoder of DeBERTa-v2 (2020,
https://arxiv.org/abs/2006.03654, §3.1), and the released checkpoints, mDeBERTa's among them.

Positions enter attention alone, as distances: the score of a pair of tokens adds content to content, content to
distance, and distance to content. Distances beyond half the buckets share logarithmic ones.

Left out: the enhanced mask decoder (2020, §3.2), which is in no released encoder and which transformers lacks, so the
generator here predicts masked tokens as BERT does; and the convolution of v2's xlarge and xxlarge, which no v3 has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from encoders.families.architecture import (
    CONFIG_FIELDS,
    LAYER_NAMES,
    SHARED_NAMES,
    Architecture,
    check_number_or_text,
    tie_decoder,
)
from encoders.model import heads, layers
from encoders.model.attention import average_values, make_attention_mask
from encoders.model.config import EncoderConfig, FamilyConventions
from encoders.model.layers import EncoderInputs, LayerContext
from encoders.model.ops import ACTIVATIONS, Dropout, make_dense, make_initializer, make_layer_norm
from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields
from encoders.utils.serialization import not_fingerprinted

CONVENTIONS = FamilyConventions("deberta")


class DebertaEmbeddings(layers.Embeddings):
    """Word embeddings, layer norm and dropout; positions are in attention alone."""

    has_positions = False


class RelativeTable(NamedTuple):
    """Embeddings of distances, and the row of each distance i - j of tokens i and j, from 1 - l to l - 1."""

    embeddings: Float[Array, "s d"]
    buckets: Int[np.ndarray, " r"]


def bucket_distances(distances: Int[np.ndarray, " r"], num_buckets: int, max_distance: int) -> Int[np.ndarray, " r"]:
    """Return the row of each distance in a table of `2 * num_buckets`, whose middle is the distance 0.

    Distances up to `num_buckets // 2` have rows of their own, and longer ones share rows, whose sizes grow
    exponentially up to `max_distance`. Computed in float32, as transformers does, for the edges to be the same.
    """
    middle = num_buckets // 2
    size = np.maximum(np.abs(distances), middle).astype(np.float32) / np.float32(middle)
    largest = np.log(np.float32(max(max_distance - 1, middle + 1) / middle))
    shared = np.ceil(np.log(size) / largest * np.float32(middle - 1)).astype(int) + middle
    rows = np.where(np.abs(distances) <= middle, distances, shared * np.sign(distances))
    return np.clip(rows + num_buckets, 0, 2 * num_buckets - 1)


class RelativePositions(nn.Module):
    """The table of distances, which all layers read through their own projections, and its layer norm."""

    config: object

    @nn.compact
    def __call__(self, context: LayerContext) -> RelativeTable:
        config, length = self.config, context.position_ids.shape[-1]
        shape = 2 * config.position_buckets, config.hidden_size
        table = nn.Embed(*shape, embedding_init=make_initializer(config), name="distance").embedding
        # The tokens of an example are neighbours, so the distance in a row is that in the example.
        distances = np.arange(1 - length, length)
        buckets = bucket_distances(distances, config.position_buckets, config.max_distance)
        return RelativeTable(make_layer_norm(config, "norm")(table).astype(jnp.dtype(config.dtype)), buckets)


def align_distances(scores: Float[Array, "b h l r"]) -> Float[Array, "b h l l"]:
    """Return the score of query i and key j in column l - 1 - i + j of `scores`, for r = 2 l - 1 distances.

    Rows one column longer, laid end to end and cut from the column l - 1 into rows of r, are shifted by one each. This
    needs no gather of single scores, and no scatter as its gradient.
    """
    length, count = scores.shape[-2:]
    flat = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (0, 1))).reshape(*scores.shape[:2], -1)
    flat = flat[..., length - 1 : length - 1 + length * count]
    return flat.reshape(*scores.shape[:3], count)[..., :length]


class DisentangledAttention(nn.Module):
    """Self-attention by contents and distances (2020, §3.1), residual and layer norm after it.

    The projections of queries and keys are also those of the table of distances.
    """

    config: object
    is_causal = False

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], context: LayerContext, train: bool) -> Float[Array, "b l d"]:
        config = self.config
        split_heads = lambda y: y.reshape(*y.shape[:-1], config.num_heads, -1)
        projections = [make_dense(config, config.hidden_size, name) for name in ("query", "key", "value")]
        query, key, value = (split_heads(project(x)) for project in projections)
        table, buckets = context.row_features
        table = Dropout(config.hidden_dropout)(table, train)
        far_query, far_key = (split_heads(project(table))[buckets] for project in projections[:2])
        multiply = lambda spec, a, b: jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)
        scores = multiply("blhk,bmhk->bhlm", query, key)
        scores += align_distances(multiply("blhk,rhk->bhlr", query, far_key[::-1]))
        scores += align_distances(multiply("bmhk,rhk->bhmr", key, far_query)).swapaxes(-1, -2)
        scores /= (3 * query.shape[-1]) ** 0.5
        mask = make_attention_mask(context.example_ids, self.is_causal or context.is_causal)
        mixed = average_values(scores, value, mask, Dropout(config.attention_dropout).draw_dropout(train))
        out = make_dense(config, config.hidden_size, "out")(mixed.reshape(x.shape))
        return make_layer_norm(config, "norm")(x + Dropout(config.hidden_dropout)(out, train))


class DebertaReplacedTokenHead(nn.Module):
    """Layer norm of a token's and its [CLS]'s hidden states together, dense d → d, activation, dense d → 1.

    As `mask_predictions` of https://github.com/microsoft/DeBERTa.
    """

    config: object

    @nn.compact
    def __call__(self, hidden: Float[Array, "b l d"], batch: EncoderInputs) -> Float[Array, "b l"]:
        config = self.config
        positions = jnp.take_along_axis(batch.cls_positions, jnp.maximum(batch.example_ids - 1, 0), axis=1)
        x = make_layer_norm(config, "norm")(heads.gather_hidden_states(hidden, positions) + hidden)
        x = ACTIVATIONS[config.activation](make_dense(config, config.hidden_size, "dense")(x))
        return make_dense(config, 1, "out")(x)[..., 0].astype(jnp.float32)


@dataclass(frozen=True)
class DebertaConfig(EncoderConfig):
    """Fields of `EncoderConfig` have DeBERTa-v3's defaults here."""

    position_buckets: int = 256  # of distances to either side
    max_relative_positions: int | None = None  # the distance at which buckets end; None: `max_positions`
    num_token_types: int = 0
    layer_norm_eps: float = 1e-7
    truncated_init: bool = False
    embeddings: type = DebertaEmbeddings
    attention: type = DisentangledAttention
    pooler: type = heads.GeluPooler
    replaced_head: type = DebertaReplacedTokenHead
    row_features: type | None = RelativePositions
    conventions: FamilyConventions = not_fingerprinted(CONVENTIONS)

    param_compatible_fields: ClassVar[tuple[str, ...]] = EncoderConfig.param_compatible_fields

    def __post_init__(self):
        super().__post_init__()
        checks = (
            ("position_buckets", lambda size: size >= 2, "at least 2"),
            ("max_relative_positions", lambda size: size is None or size >= 1, "at least 1, or None"),
            ("attention_impl", lambda name: name == "xla", "'xla': no fused attention knows distances"),
        )
        check_fields(self, "model.", checks)

    @property
    def max_distance(self) -> int:
        return self.max_relative_positions or self.max_positions

    @property
    def num_attention_products(self) -> int:
        return 6  # scores of 2 l distances from either side


def make_deberta_config(hidden_size: int, num_layers: int, **fields) -> DebertaConfig:
    """Return a size with heads of 64 and, unless `fields` say otherwise, v3's vocabulary."""
    sizes = dict(hidden_size=hidden_size, num_layers=num_layers, intermediate_size=4 * hidden_size)
    return DebertaConfig(**{"vocab_size": 128_100, **sizes, "num_heads": hidden_size // 64, **fields})


BASE = make_deberta_config(768, 12)

SIZES = {
    "deberta-v3-xsmall": make_deberta_config(384, 12),
    "deberta-v3-small": make_deberta_config(768, 6),
    "deberta-v3-base": BASE,
    "deberta-v3-large": make_deberta_config(1024, 24),
    "mdeberta-v3-base": make_deberta_config(768, 12, vocab_size=251_000),
}


def read_positions(hf_config: dict) -> dict[str, Any]:
    """Return the fields of distances in config.json. Raises `UserError` for widths that differ."""
    for name in ("embedding_size", "pooler_hidden_size"):
        width = hf_config.get("hidden_size", 1536)
        if hf_config.get(name, width) != width:
            raise UserError(f"{name}={hf_config[name]!r} is not supported; only hidden_size={width!r} is")
    buckets, largest = hf_config.get("position_buckets", -1), hf_config.get("max_relative_positions", -1)
    check_number_or_text("position_buckets", buckets, "int")
    if largest == -1:
        return {"position_buckets": buckets, "max_relative_positions": None}
    check_number_or_text("max_relative_positions", largest, "int")
    return {"position_buckets": buckets, "max_relative_positions": largest}


# Without these values transformers computes another attention, and none of them is its default.
V3_VALUES = {
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": "p2c|c2p",
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
}
BOTH_KINDS = ("c2p|p2c", ["p2c", "c2p"], ["c2p", "p2c"])


def write_positions(config: DebertaConfig) -> dict[str, Any]:
    return V3_VALUES | {
        "position_buckets": config.position_buckets,
        "max_relative_positions": config.max_relative_positions or -1,
        "type_vocab_size": 0,
        "pooler_hidden_act": "gelu",
        "pooler_dropout": 0.0,
        "pooler_hidden_size": config.hidden_size,
    }


def name_projection(module: str, hf_module: str) -> tuple[str, str]:
    """Return a row of `LAYER_NAMES` with the names of DeBERTa's projections, such as query_proj."""
    return module, hf_module + "_proj" if ".self." in hf_module else hf_module


ARCHITECTURE = Architecture(
    name="deberta-v2",
    class_prefix="DebertaV2",
    root="deberta",
    module_names=(
        *(row for row in SHARED_NAMES if row[0] not in ("encoder/embed/position", "encoder/embed/segment")),
        *(name_projection(*row) for row in LAYER_NAMES),
        ("encoder/row_features/distance", "{root}.encoder.rel_embeddings"),
        ("encoder/row_features/norm", "{root}.encoder.LayerNorm"),
        ("tokens/dense", "cls.predictions.transform.dense"),
        ("tokens/norm", "cls.predictions.transform.LayerNorm"),
        ("tokens", "cls.predictions"),
        ("replaced/norm", "mask_predictions.LayerNorm"),
        ("replaced/dense", "mask_predictions.dense"),
        ("replaced/out", "mask_predictions.classifier"),
        ("pooler/dense", "pooler.dense"),
        ("classes/out", "classifier"),
        ("tags", "classifier"),
    ),
    # The layout of the released files, and of transformers with `legacy=False`.
    former_names=(
        (r"^lm_predictions\.lm_head\.bias$", "cls.predictions.bias"),
        (r"^lm_predictions\.lm_head\.(dense|LayerNorm)\.", r"cls.predictions.transform.\1."),
    ),
    tied_tensors=tie_decoder("cls.predictions", "deberta"),
    # Of the generator's mask decoder alone.
    unread_tensors=r"^deberta\.embeddings\.position_embeddings\.weight$",
    classifier_head="pooled",
    classifier_dropout_field=("cls_dropout", None),
    replaced_class="Model",  # no class of transformers has this head, and files name none
    config_class=DebertaConfig,
    config_fields=tuple(row for row in CONFIG_FIELDS if row[0] != "num_token_types"),
    hf_defaults={
        "vocab_size": 128_100,
        "hidden_size": 1536,
        "num_hidden_layers": 24,
        "num_attention_heads": 24,
        "intermediate_size": 6144,
        "layer_norm_eps": 1e-7,
        **{"relative_attention": False, "position_biased_input": True, "pos_att_type": None},
        **{"share_att_key": False, "norm_rel_ebd": "none"},
    },
    required_values={
        **{name: (value,) for name, value in V3_VALUES.items()},
        "pos_att_type": (V3_VALUES["pos_att_type"], *BOTH_KINDS),
        "type_vocab_size": (0,),
        "conv_kernel_size": (0,),
        "pooler_hidden_act": ("gelu",),
        "pooler_dropout": (0,),
        "tie_word_embeddings": (True,),
        "quantization_config": (None,),
    },
    read_nested=read_positions,
    write_nested=write_positions,
)
