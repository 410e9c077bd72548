"""Matrix-product FLOPs of the forward pass, two for each multiply-add."""

import numpy as np

from encoders.model.config import EncoderConfig


def forward_flops(config: EncoderConfig, sizes: np.ndarray) -> np.ndarray:
    """Return the FLOPs of the encoder for examples of `sizes` tokens: dense layers and attention."""
    d, f = config.hidden_size, config.intermediate_size
    projection = 2 * config.embedding_size * d if config.has_embedding_projection else 0
    products = 2.0 * (config.count_projection_weights() + config.feed_forward.num_matrices * d * f)
    windows = config.layer_windows
    seen = windows.count(None) * sizes
    for window in {*windows} - {None}:
        seen = seen + windows.count(window) * np.minimum(sizes, window + 1)
    attention = 2 * config.num_attention_products * seen * d
    return sizes * (projection + config.num_layers * products + attention)


def masked_token_head_flops(config: EncoderConfig, num_tokens: np.ndarray) -> np.ndarray:
    """Return the FLOPs of the masked-token head at `num_tokens` positions."""
    return num_tokens * 2.0 * config.token_head.count_weights(config)
