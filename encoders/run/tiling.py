"""Parameters of a large encoder from those of a smaller one of its family, by tiling.

ModernBERT-large starts from ModernBERT-base so (Warner et al., 2024, https://arxiv.org/abs/2412.13663, appendix A). A
layer of the large model takes that of the small one at the same relative depth. Every matrix is put into the middle of
the larger one, whose margins wrap around.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from encoders.model.config import EncoderConfig
from encoders.model.encoder import is_stacked
from encoders.training.optimizer import flatten_with_paths
from encoders.utils.errors import UserError

# Sizes in which the models may differ.
TILED_FIELDS = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "embedding_size")


def check_sizes(small: EncoderConfig, large: EncoderConfig) -> None:
    """Raise `UserError` for a size that shrinks."""
    for name in TILED_FIELDS:
        if getattr(large, name) < getattr(small, name):
            raise UserError(
                f"model.{name}={getattr(large, name)} is below the {getattr(small, name)} of init_from; with "
                "init_by=tiling no size may shrink"
            )


def tile_params(params: dict, shapes: dict, config: EncoderConfig) -> dict:
    """Return `params` tiled to a tree of `shapes`, with the same paths. `config` is that of the large model.

    Raises `UserError` for another tree.
    """
    leaves, paths = dict(flatten_with_paths(params)), [path for path, _ in flatten_with_paths(shapes)]
    if differing := sorted(leaves.keys() ^ {*paths}):
        raise UserError(f"the parameters differ in {differing[0]}; a model is tiled from one of the same parts")
    tiled = [tile_leaf(path, leaves[path], shape.shape, config) for path, shape in flatten_with_paths(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), tiled)


def tile_leaf(path: str, leaf: jax.Array, shape: tuple[int, ...], config: EncoderConfig) -> jax.Array:
    """Return the leaf at `path` of the tree in another shape; of a stack, every layer apart."""
    module = path.rpartition("/")[0].rpartition("/")[2]
    num_parts = config.fused_matrices.get(module, 1)
    if not is_stacked(path):
        return tile_array(leaf, shape, num_parts)
    layers = choose_layers(len(leaf), shape[0], module in config.leading_norms)
    return jax.vmap(partial(tile_array, shape=shape[1:], num_parts=num_parts))(leaf[layers])


def choose_layers(num_layers: int, num_large_layers: int, leads: bool = False) -> np.ndarray:
    """Return for each layer of the large model the layer of the small one at its relative depth, halves to even.

    A norm that leads to the next layer goes with that layer.
    """
    indices = np.arange(num_large_layers) + leads
    return np.clip(np.rint(indices * num_layers / num_large_layers).astype(int) - leads, 0, num_layers - 1)


def tile_array(array: jax.Array, shape: tuple[int, ...], num_parts: int = 1) -> jax.Array:
    """Return an array in the middle of one of `shape`, whose margins wrap around. Of a last axis that holds `num_parts`
    matrices beside one another, each is tiled apart."""
    size = shape[-1] // num_parts
    parts = [pad_around(part, (*shape[:-1], size)) for part in jnp.split(array, num_parts, axis=-1)]
    return jnp.concatenate(parts, axis=-1)


def pad_around(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    margins = [large - small for large, small in zip(shape, array.shape, strict=True)]
    return jnp.pad(array, [(margin // 2, margin - margin // 2) for margin in margins], mode="wrap")
