"""The vector of a text as a model was trained to give it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Pooling = Literal["cls", "mean", "pooled"]
RECORD_KEY = "sentence_embedding"  # of a run's record


@dataclass(frozen=True)
class SentenceEmbedding:
    """Pooling of the last layer, scaling to length 1, and the longest text in tokens, special ones included."""

    pooling: Pooling = "mean"
    normalize: bool = False
    max_length: int | None = None  # None: the model's positions

    @classmethod
    def from_record(cls, record: dict) -> SentenceEmbedding:
        """Return the one in a run's record, or the default."""
        return cls(**record.get(RECORD_KEY, {}))

    def to_record(self) -> dict:
        """Return the fields of a run's record: none for the default."""
        return {} if self == SentenceEmbedding() else {RECORD_KEY: asdict(self)}


def average_tokens(hidden: Float[Array, "... b l d"], is_token: Bool[Array, "b l"]) -> Float[Array, "... b d"]:
    """Return the mean over the tokens of each row; a row of padding gives 0."""
    is_token = is_token[..., None]
    return (hidden * is_token).sum(-2) / jnp.maximum(is_token.sum(-2), 1)


def normalize_vector(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
