"""The vector of a text as a model was trained to give it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, Self, get_args

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from encoders.data.batch import Batch
from encoders.inference.packed_texts import AnyTextBatch
from encoders.inference.text_batch import TextOrPair
from encoders.model.encoder import Encoder, find_encoder_name, merge_word_tables
from encoders.model.heads import POOLER_PARAMS, embed_examples, make_pooler
from encoders.model.ops import ACTIVATIONS
from encoders.run.folder import RunError
from encoders.utils.field_checks import check_fields

Pooling = Literal["cls", "mean", "last", "pooled", "attention"]
Similarity = Literal["cosine", "dot"]
RECORD_KEY = "sentence_embedding"  # of a run's record
DENSE_PARAMS = "sentence_dense"  # top-level parameters of the dense layers, by their number
ENCODER_PARAMS = ("encoder", *POOLER_PARAMS.values())  # the other top-level parameters that give a vector
DENSE_ACTIVATIONS: dict[str, Callable] = {
    "identity": lambda x: x,
    "tanh": jnp.tanh,
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
    "gelu": ACTIVATIONS["gelu"],
    "silu": nn.silu,
}
# Names that sentence-transformers looks for, in this order, for the prompts of two sides of a search.
PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}


@dataclass(frozen=True)
class SentenceEmbedding:
    """Pooling of the last layer, dense layers behind it, size, scaling to length 1, and what is read of a text.

    `pooling` is the hidden state of [CLS] ("cls") or of the last token, [SEP] included ("last"), the mean over tokens
    ("mean"), or the pooler's vector ("pooled"). "attention" is a mean whose weights are learned. `dense` has the
    activation of each dense layer. Vectors are cut to the first `size` numbers before they are scaled (Matryoshka:
    Kusupati et al., 2022, https://arxiv.org/abs/2205.13147). `max_length` counts tokens, special ones included.
    `prompts` are texts by name that are put in front of a text.
    """

    pooling: Pooling = "mean"
    normalize: bool = False
    max_length: int | None = None  # None: the model's positions
    size: int | None = None  # None: all numbers
    prompts: Mapping[str, str] = field(default_factory=dict, hash=False)
    default_prompt: str | None = None
    similarity: Similarity = "cosine"  # of two vectors
    dense: tuple[str, ...] = ()

    def __post_init__(self):
        is_prompt = lambda name: name is None or name in self.prompts
        checks = [
            ("pooling", lambda name: name in get_args(Pooling), " or ".join(get_args(Pooling))),
            ("similarity", lambda name: name in get_args(Similarity), " or ".join(get_args(Similarity))),
            ("size", lambda size: size is None or (type(size) is int and size > 0), "an integer from 1, or None"),
            ("default_prompt", is_prompt, f"None or one of {', '.join(self.prompts) or 'no prompts'}"),
            ("dense", lambda names: DENSE_ACTIVATIONS.keys() >= set(names), f"of {', '.join(DENSE_ACTIVATIONS)}"),
        ]
        check_fields(self, "", checks)

    @classmethod
    def choose_settings(cls, record: dict, objective: object) -> Self:
        """Return the one in a run's record, else that of an objective that trains vectors, else the default."""
        values = record.get(RECORD_KEY) or getattr(objective, "embedding_settings", None) or {}
        return cls(**values | {"dense": tuple(values.get("dense", ()))})

    def to_record(self) -> dict:
        """Return the fields of a run's record: none for the default."""
        return {} if self == SentenceEmbedding() else {RECORD_KEY: asdict(self)}

    def describe_settings(self) -> str:
        """Return the fields that differ from the default, and always the pooling."""
        values, default = asdict(self), asdict(SentenceEmbedding())
        return ", ".join(
            f"{name}={values[name]}" for name in values if name == "pooling" or values[name] != default[name]
        )

    def adapt_settings(self, pooling: Pooling | None, size: int | None) -> Self:
        """Return it with another pooling, whose vectors are neither projected, cut nor scaled, or with another size."""
        adapted = self if pooling is None else replace(self, pooling=pooling, normalize=False, size=None, dense=())
        return adapted if size is None else replace(adapted, size=size)

    def get_prompt(self, name: str | None) -> str:
        """Return the text of a prompt, by default of the default prompt; the name "" means none.

        Raises `RunError` for another name.
        """
        name = self.default_prompt if name is None else name
        if not name:
            return ""
        if name not in self.prompts:
            accepted = f"one of {', '.join(self.prompts)}" if self.prompts else 'no name: the run has no prompts, or ""'
            raise RunError(f"prompt={name!r} must be {accepted}")
        return self.prompts[name]

    def find_prompt_name(self, side: str) -> str | None:
        """Return the name of the prompt of "query" or "document", or None without one."""
        return next((name for name in PROMPT_NAMES[side] if name in self.prompts), None)

    def get_vector_size(self, config, params: Mapping) -> int:
        """Return the numbers of a vector of a run. Raises `RunError` for a size above those before the cut."""
        width = config.hidden_size
        if self.dense:
            width = params[DENSE_PARAMS][str(len(self.dense) - 1)]["kernel"].shape[1]
        if self.size is not None and self.size > width:
            raise RunError(f"size={self.size} must be from 1 to {width}, the numbers of a vector")
        return self.size or width

    def finish_vector(self, vector: np.ndarray) -> np.ndarray:
        """Return a vector cut to its size, then scaled."""
        vector = vector[: self.size]
        return normalize_vector(vector) if self.normalize else vector


def compute_vectors(
    config, params: Mapping, batch: AnyTextBatch, layer: int, pooling: Pooling, dense: tuple[str, ...]
) -> Float[Array, "b *s d"]:
    """Return one vector of each text, of packed texts by row and slot; `dense` are activations of dense layers."""
    rows = batch.to_batch()
    hidden = compute_layer_states(config, params, rows, layer)
    pooler = lambda *inputs: make_pooler(config, pooling).apply({"params": params[POOLER_PARAMS[pooling]]}, *inputs)
    vectors = apply_dense_layers(params, dense, embed_examples(config, pooler, hidden, rows, pooling))
    return vectors.reshape(*batch.lengths.shape, -1)


def compute_layer_states(config, params: Mapping, rows: Batch, layer: int) -> Float[Array, "b l d"]:
    """Return the hidden states of a layer: 0 is the embedding, -1 the last layer. Rows may be packed."""
    if config.attention_impl == "cudnn" and rows.cls_positions.shape[1] > 1:
        config = replace(config, attention_impl="cudnn_packed")
    params, is_last = merge_word_tables(params), layer in (-1, config.num_layers)
    encoder_params = {"params": params[find_encoder_name(params)]}
    hidden = Encoder(config).apply(encoder_params, rows, output_hidden_states=not is_last)
    return hidden if is_last else hidden[layer]


def apply_dense_layers(
    params: Mapping, activations: tuple[str, ...], vectors: Float[Array, "b s d"]
) -> Float[Array, "b s e"]:
    """Return the vectors behind the dense layers of a run, each with its activation."""
    for number, activation in enumerate(activations):
        layer = params[DENSE_PARAMS][str(number)]
        vectors = DENSE_ACTIVATIONS[activation](vectors @ layer["kernel"] + layer.get("bias", 0.0))
    return vectors


def add_prompt(prompt: str, text: TextOrPair) -> TextOrPair:
    """Return a text, or a pair of texts, with a prompt in front."""
    return prompt + text if isinstance(text, str) else (prompt + text[0], text[1])


def normalize_vector(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
