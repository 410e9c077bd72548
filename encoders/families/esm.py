"""ESM-2, a language model of proteins (Lin et al., 2023, https://doi.org/10.1126/science.ade2574).

Pre-norm layers with biases, rotary positions, and a norm after the last layer. Its tokens are amino acids, and the
embeddings of an example are scaled by the share of its masked ones (`EsmConfig.token_dropout`).

The head that predicts contacts in the published files, a regression on attention weights, is kept for an export.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from reprlib import repr as shorten
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from encoders.families.architecture import LAYER_MODULES, Architecture
from encoders.model import layers, rotary
from encoders.model.config import EncoderConfig, FamilyConventions
from encoders.model.layers import EncoderInputs, LayerContext, make_membership_mask
from encoders.model.ops import ACTIVATIONS, Dropout, make_dense, make_embedding_table, make_layer_norm, shard_rows
from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields
from encoders.utils.serialization import not_fingerprinted

CONVENTIONS = FamilyConventions("esm", "tanh")
# Share of tokens that pre-training replaces by <mask>: 80 % of 15 %. It is a constant in the released code.
TRAINING_MASK_SHARE = 0.15 * 0.8
Hidden = Float[Array, "b l d"]


class EsmEmbeddings(layers.Embeddings):
    """Word embeddings without norm and dropout, scaled by `compute_token_scale`; zero on padding."""

    has_positions = False

    def setup(self):
        if self.tied_word_embedding is None:
            self.word = make_embedding_table(self.config, self.config.vocab_size)

    def __call__(self, batch: EncoderInputs, train: bool) -> Float[Array, "b l e"]:
        x = shard_rows(self.word_embedding(batch.input_ids))
        if self.config.token_dropout:
            scale = compute_token_scale(batch, self.config.mask_token_id)
        else:
            scale = batch.example_ids > 0
        return (x * scale[..., None]).astype(jnp.dtype(self.config.dtype))


def compute_token_scale(batch: EncoderInputs, mask_token_id: int) -> Float[Array, "b l"]:
    """Return the factor of each token's embedding: 0 on <mask> and padding, else (1 - 0.12) / (1 - r).

    r is the share of <mask> among the tokens of the example. Training and evaluation have the same mean so.
    """
    is_mask = batch.input_ids == mask_token_id
    belongs = make_membership_mask(batch)
    sizes, num_masks = belongs.sum(-1), (belongs & is_mask[:, None]).sum(-1)
    shares = num_masks / jnp.maximum(sizes, 1)
    example_scales = (1 - TRAINING_MASK_SHARE) / jnp.where(shares < 1, 1 - shares, 1)
    scales = jnp.einsum("bs,bsl->bl", example_scales, belongs.astype(jnp.float32))
    return jnp.where(is_mask, 0.0, scales)


class EsmRotary(nn.Module):
    """The rotary table of all layers."""

    config: object

    def __call__(self, context: LayerContext) -> rotary.RotaryTable:
        frequencies = jnp.asarray(compute_stored_frequencies(self.config))
        return rotary.make_frequency_table(context.position_ids, frequencies, jnp.dtype(self.config.dtype))


def compute_stored_frequencies(config: EsmConfig) -> np.ndarray:
    """Return the float32 frequencies of a head's pairs, rounded to `config.rotary_precision`."""
    exponents = np.arange(0, config.hidden_size // config.num_heads, 2, dtype=np.float32)
    frequencies = 1 / np.float32(config.rope_theta) ** (exponents / np.float32(2 * len(exponents)))
    return frequencies.astype(config.rotary_precision).astype(np.float32)


class EsmAttention(nn.Module):
    """Layer norm, rotary self-attention, and residual (pre-LN)."""

    config: object
    is_causal = False

    @nn.compact
    def __call__(self, x: Hidden, context: LayerContext, train: bool) -> Hidden:
        config = self.config
        normed = make_layer_norm(config, "norm")(x)
        project = lambda name: make_dense(config, config.hidden_size, name)(normed)
        split_heads = lambda y: y.reshape(*x.shape[:2], config.num_heads, -1)
        query, key, value = (split_heads(project(name)) for name in ("query", "key", "value"))
        query, key = (rotary.rotate_heads(y, context.row_features) for y in (query, key))
        mixed = layers.attend(config, query, key, value, context, train, self.is_causal)
        out = make_dense(config, config.hidden_size, "out")(mixed.reshape(x.shape))
        return x + Dropout(config.hidden_dropout)(out, train)


class EsmFeedForward(nn.Module):
    """Layer norm, the feed-forward network, and residual (pre-LN)."""

    config: object
    num_matrices = 2

    @nn.compact
    def __call__(self, x: Hidden, context: LayerContext, train: bool) -> Hidden:
        config = self.config
        normed = make_layer_norm(config, "norm")(x)
        inner = ACTIVATIONS[config.activation](make_dense(config, config.intermediate_size, "up")(normed))
        out = make_dense(config, config.hidden_size, "down")(inner)
        return x + Dropout(config.hidden_dropout)(out, train)


class EsmFinalNorm(nn.Module):
    """Layer norm after the last layer."""

    config: object

    @nn.compact
    def __call__(self, x: Hidden) -> Hidden:
        return make_layer_norm(self.config, "norm")(x)


@dataclass(frozen=True)
class EsmConfig(EncoderConfig):
    """Fields of `EncoderConfig` have ESM-2's defaults here.

    With `token_dropout` the embedding of the token `mask_token_id` is zero, and the others are scaled by the share of
    masked tokens of their example. The vocabulary must have its mask under this id. `rotary_precision` is that to which
    the frequencies of positions are rounded; in the published files it is float16, in which they were trained.
    """

    rope_theta: float = 10_000.0
    token_dropout: bool = True
    mask_token_id: int = 32
    rotary_precision: Literal["float32", "float16"] = "float32"
    max_positions: int = 1026
    num_token_types: int = 0
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    layer_norm_eps: float = 1e-5
    truncated_init: bool = False
    embeddings: type = EsmEmbeddings
    attention: type = EsmAttention
    feed_forward: type = EsmFeedForward
    final_norm: type | None = EsmFinalNorm
    row_features: type | None = EsmRotary
    conventions: FamilyConventions = not_fingerprinted(CONVENTIONS)

    param_compatible_fields: ClassVar[tuple[str, ...]] = (
        *EncoderConfig.param_compatible_fields,
        *("max_positions", "rope_theta", "rotary_precision"),  # the context can be extended
    )

    def __post_init__(self):
        super().__post_init__()
        is_token = lambda id: 0 <= id < self.vocab_size
        check_fields(self, "model.", [("mask_token_id", is_token, f"a token of the {self.vocab_size}")])
        rotary.check_rotary_fields(self)

    def find_vocabulary_problem(self, vocab) -> str | None:
        if self.token_dropout and vocab.mask_id != self.mask_token_id:
            return f"model.mask_token_id={self.mask_token_id} must be the id of the vocabulary's mask, {vocab.mask_id}"
        return super().find_vocabulary_problem(vocab)


def make_esm_config(hidden_size: int, num_layers: int, num_heads: int = 20, **fields) -> EsmConfig:
    """Return a size with a feed-forward network four times as wide, and ESM-2's alphabet of 33 tokens."""
    values: dict[str, Any] = dict(vocab_size=33, num_heads=num_heads, intermediate_size=4 * hidden_size)
    return EsmConfig(hidden_size=hidden_size, num_layers=num_layers, **values | fields)


SIZES = {
    "esm2-8m": make_esm_config(320, 6),
    "esm2-35m": make_esm_config(480, 12),
    "esm2-150m": make_esm_config(640, 30),
    "esm2-650m": make_esm_config(1280, 33),
    "esm2-3b": make_esm_config(2560, 36, num_heads=40),
}

# Exchange

FREQUENCIES = "rotary_embeddings.inv_freq"
BUFFERS = r"(^|\.)(embeddings\.position_ids|rotary_embeddings\.inv_freq)$"
UNREAD_TENSORS = r"(^|\.)embeddings\.position_embeddings\.weight$"
# Our module of a layer, and theirs: as BERT's, with the norm of attention before it.
LAYER_NAMES = {ours: theirs for ours, theirs, _ in LAYER_MODULES} | {
    "attend/norm": "attention.LayerNorm",
    "transform/norm": "LayerNorm",
}


def read_esm_fields(hf_config: dict) -> dict[str, Any]:
    """Return `token_dropout` and `mask_token_id`. Raises `UserError` for positions that are not rotary."""
    position_type = hf_config.get("position_embedding_type", "absolute")
    if position_type != "rotary":
        raise UserError(f"position_embedding_type={shorten(position_type)} is not supported; only 'rotary' (ESM-2) is")
    token_dropout, mask_id = hf_config.get("token_dropout") or False, hf_config.get("mask_token_id")
    if not isinstance(token_dropout, bool):
        raise UserError(f"token_dropout={shorten(token_dropout)} is not true or false")
    if mask_id is None and not token_dropout:
        return {"token_dropout": False}
    if type(mask_id) is not int or mask_id < 0:
        raise UserError(f"mask_token_id={shorten(mask_id)} is not a token id; it must be an integer from 0")
    return {"token_dropout": token_dropout, "mask_token_id": mask_id}


def write_esm_fields(config: EsmConfig) -> dict[str, Any]:
    return {
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "token_dropout": config.token_dropout,
        "mask_token_id": config.mask_token_id,
    }


def read_frequencies(config: EsmConfig, tensors: Mapping[str, Any]) -> EsmConfig:
    """Return `config` with the precision of the frequencies in a file. Raises `UserError` for other frequencies."""
    stored = {name: tensor for name, tensor in tensors.items() if re.search(rf"(^|\.){FREQUENCIES}$", name)}
    for name, tensor in stored.items():
        for precision in ("float32", "float16"):
            config = replace(config, rotary_precision=precision)
            has_size = tensor.shape == (config.hidden_size // config.num_heads // 2,)
            if has_size and np.allclose(tensor.read(), compute_stored_frequencies(config), rtol=1e-6, atol=0):
                break
        else:
            raise UserError(f"{name} is not of rope_theta={config.rope_theta} in float32 or float16")
    return config


def write_frequencies(config: EsmConfig) -> dict[str, np.ndarray]:
    return {f"esm.{FREQUENCIES}": compute_stored_frequencies(config)}


ARCHITECTURE = Architecture(
    name="esm",
    module_names=(
        ("encoder/embed/word", "{root}.embeddings.word_embeddings"),
        *((f"encoder/layers/{ours}", "{root}.encoder.layer.{}." + theirs) for ours, theirs in LAYER_NAMES.items()),
        ("encoder/final_norm/norm", "{root}.encoder.emb_layer_norm_after"),
        ("pooler/dense", "{root}.pooler.dense"),
        ("contacts", "{root}.contact_head.regression"),
        ("tokens/dense", "lm_head.dense"),
        ("tokens/norm", "lm_head.layer_norm"),
        ("tokens", "lm_head"),
        ("classes/dense", "classifier.dense"),
        ("classes/out", "classifier.out_proj"),
        ("tags", "classifier"),
    ),
    tied_tensors=(("lm_head.decoder.weight", "esm.embeddings.word_embeddings.weight"),),
    classifier_head="tanh",
    kept_heads={"contacts": lambda config: (config.num_layers * config.num_heads, 1)},
    config_class=EsmConfig,
    config_fields=(
        ("vocab_size", "vocab_size", 33),
        ("hidden_size", "hidden_size", 768),
        ("num_layers", "num_hidden_layers", 12),
        ("num_heads", "num_attention_heads", 12),
        ("intermediate_size", "intermediate_size", 3072),
        ("max_positions", "max_position_embeddings", 1026),
        ("hidden_dropout", "hidden_dropout_prob", 0.1),
        ("attention_dropout", "attention_probs_dropout_prob", 0.1),
        ("layer_norm_eps", "layer_norm_eps", 1e-12),
        ("init_std", "initializer_range", 0.02),
        ("activation", "hidden_act", "gelu"),
        ("rope_theta", "rope_theta", 10_000.0),
    ),
    required_values={
        "hidden_act": ("gelu",),  # transformers computes exact GELU whatever it says
        "emb_layer_norm_before": (False, None),
        "is_folding_model": (False,),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
        "quantization_config": (None,),
    },
    read_nested=read_esm_fields,
    write_nested=write_esm_fields,
    buffers=BUFFERS,
    unread_tensors=UNREAD_TENSORS,
    read_buffers=read_frequencies,
    write_buffers=write_frequencies,
)
