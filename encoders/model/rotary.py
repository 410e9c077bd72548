"""Rotary position embeddings (Su et al., 2021, https://arxiv.org/abs/2104.09864), on the two halves of a head.

Axes: b rows, l tokens, h heads, k size of a head, p = k / 2 pairs.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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


def rotate_heads(x: Float[Array, "b l h k"], table: RotaryTable) -> Float[Array, "b l h k"]:
    """Return `x` with the pairs (t, t + k/2) of each head rotated, computed in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = (part.astype(jnp.float32) for part in table)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
