"""Rotary position embeddings (Su et al., 2021, https://arxiv.org/abs/2104.09864), on the two halves of a head.

Axes: b rows, l tokens, h heads, k size of a head, p = k / 2 pairs.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields


class RotaryTable(NamedTuple):
    """Cosines and sines of each token's angles."""

    cos: Float[Array, "b l 1 p"]
    sin: Float[Array, "b l 1 p"]


def make_rotary_table(position_ids: Int[Array, "b l"], head_size: int, theta: float, dtype) -> RotaryTable:
    """Return the table of angles `position * theta ** (-2 t / head_size)` for the pairs t, in float32 until the end."""
    frequencies = 1.0 / theta ** (jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    return make_frequency_table(position_ids, frequencies, dtype)


def make_frequency_table(position_ids: Int[Array, "b l"], frequencies: Float[Array, " p"], dtype) -> RotaryTable:
    """Return the table of angles `position * frequency`, computed in float32."""
    angles = (jnp.asarray(position_ids)[..., None].astype(jnp.float32) * frequencies)[:, :, None]
    return RotaryTable(jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype))


class RotaryFeatures(nn.Module):
    """The rotary table of all layers; a part of the config as `row_features`.

    The base is `config.rope_theta`, or 10,000 in configs without that field. Raises `UserError` for heads of an odd
    size.
    """

    config: object

    def __call__(self, context) -> RotaryTable:
        config = self.config
        check_head_size(config)
        head_size = config.hidden_size // config.num_heads
        theta = getattr(config, "rope_theta", 10_000.0)
        return make_rotary_table(context.position_ids, head_size, theta, jnp.dtype(config.dtype))


def check_rotary_fields(config) -> None:
    """Raise `UserError` for a base that is not above 0, and for heads of an odd size."""
    check_fields(config, "model.", [("rope_theta", lambda theta: theta > 0, "above 0")])
    check_head_size(config)


def check_head_size(config) -> None:
    """Raise `UserError` for heads of an odd size, whose entries make no pairs."""
    if config.hidden_size // config.num_heads % 2:
        raise UserError(
            f"model.hidden_size={config.hidden_size} and model.num_heads={config.num_heads} make heads of "
            f"{config.hidden_size // config.num_heads}; rotary positions need an even size"
        )


def rotate_neighbours(x: Float[Array, "b l h k"], table: RotaryTable) -> Float[Array, "b l h k"]:
    """Return `x` with the pairs (2t, 2t + 1) of each head rotated, computed in float32."""
    first, second = jnp.moveaxis(x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2), -1, 0)
    cos, sin = (part.astype(jnp.float32) for part in table)
    rotated = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)


def rotate_heads(x: Float[Array, "b l h k"], table: RotaryTable) -> Float[Array, "b l h k"]:
    """Return `x` with the pairs (t, t + k/2) of each head rotated, computed in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = (part.astype(jnp.float32) for part in table)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
