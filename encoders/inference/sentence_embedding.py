"""The vector of a text as a model was trained to give it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

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


def normalize_vector(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
