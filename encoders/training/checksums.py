"""Checksums of arrays: the same on every layout, number of processes and version, and another for every changed bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from encoders.training.optimizer import flatten_with_paths

BLOCK_ELEMENTS = 1 << 20  # elements that are summed at a time
UNSIGNED_DTYPES = {1: "uint8", 2: "uint16", 4: "uint32"}


def compute_checksums(tree) -> dict[str, list[int]]:
    """Two sums of the bits of every leaf, by its path: of the elements u, and of u (2 i + 1) at place i, mod 2^32."""
    found = {path: leaf for path, leaf in flatten_with_paths(tree)}
    here = all(getattr(leaf, "is_fully_addressable", True) for leaf in found.values())
    if here and jax.default_backend() == "cpu":
        return {path: checksum_array(np.asarray(leaf)) for path, leaf in found.items()}
    sums = jax.device_get(checksum_on_devices(found))
    return {path: [int(each) for each in pair] for path, pair in sums.items()}


def checksum_array(array: np.ndarray) -> list[int]:
    bits = np.ascontiguousarray(array).reshape(-1).view(UNSIGNED_DTYPES[array.dtype.itemsize])
    plain = placed = 0
    odd = 2 * np.arange(min(BLOCK_ELEMENTS, bits.size), dtype=np.uint32) + 1
    for start in range(0, bits.size, BLOCK_ELEMENTS):
        block = bits[start : start + BLOCK_ELEMENTS].astype(np.uint32)
        total = int(block.sum(dtype=np.uint32))
        plain += total
        placed += int((block * odd[: block.size]).sum(dtype=np.uint32)) + total * 2 * start
    return [plain % 2**32, placed % 2**32]


@jax.jit
def checksum_on_devices(leaves_by_path: dict[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
    def checksum_leaf(x):
        bits = (
            x.astype(jnp.uint8)
            if x.dtype == bool
            else jax.lax.bitcast_convert_type(x, UNSIGNED_DTYPES[x.dtype.itemsize])
        )
        bits, place, stride = bits.astype(jnp.uint32), jnp.zeros(x.shape, jnp.uint32), 1
        for axis in reversed(range(x.ndim)):
            place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
            stride *= x.shape[axis]
        return bits.sum(dtype=jnp.uint32), (bits * (2 * place + 1)).sum(dtype=jnp.uint32)

    return jax.tree.map(checksum_leaf, leaves_by_path)


def find_changed_leaves(tree, expected_checksums: dict[str, list[int]]) -> list[str]:
    """The paths of the leaves whose sums are not the recorded ones; what was not recorded counts as sound."""
    now = compute_checksums(tree)
    return [path for path, sums in now.items() if expected_checksums.get(path, sums) != sums]
