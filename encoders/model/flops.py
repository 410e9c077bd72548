"""What networks cost in products of matrices: multiply-adds x 2 of the forward pass."""

from __future__ import annotations

import numpy as np

from encoders.model.config import Model


def forward_flops(model: Model, sizes: np.ndarray) -> np.ndarray:
    """Of the encoder for examples of `sizes` tokens: dense layers, and attention within each."""
    d, f = model.hidden, model.intermediate
    projection = 2 * model.embedding * d if model.projects else 0
    return sizes * (projection + model.layers * (2.0 * (4 * d * d + 2 * d * f) + 4 * sizes * d))


def vocabulary_flops(model: Model, tokens: np.ndarray) -> np.ndarray:
    """Of the masked-token head at so many `tokens`."""
    return tokens * 2.0 * (model.hidden * model.embedding + model.embedding * model.vocab)
