"""Where arrays live: a mesh of devices, and a table from parameter paths to the mesh axes that split them.

`data` splits the batch, `fsdp` the batch and the parameters, `model` the parameters inside a layer: attention by
heads, the transform by its inner features, the vocabulary by rows (Shoeybi et al., 2019,
https://arxiv.org/abs/1909.08053). Only speed and memory depend on the mesh; the numbers do not.
"""

from __future__ import annotations

import math
import re
from dataclasses import astuple, dataclass

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from encoders.training.optimizer import paths, stacked

AXES = ("data", "fsdp", "model")
BATCH = ("data", "fsdp")

# The first row whose regex is found in the path; trailing axes; a stack's first axis stays whole.
TABLE = (
    (r"(query|key|value|up)/kernel$", P("fsdp", "model")),
    (r"(query|key|value|up)/bias$", P("model")),
    (r"(attend/out|transform/down)/kernel$", P("model", "fsdp")),
    (r"word/embedding$", P("model", "fsdp")),
    (r"(position|segment)/embedding$", P(None, "fsdp")),
    (r"tokens/bias$", P("model")),  # of the vocabulary, as the rows of the word table
    (r"kernel$", P("fsdp", None)),  # the projection e → d, and heads
    (r"", P()),  # norms, other biases, scalars
)


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis; -1, for at most one axis, is what the others leave."""

    data: int = -1
    fsdp: int = 1
    model: int = 1

    def __post_init__(self):
        for name in AXES:
            size = getattr(self, name)
            if type(size) is not int or (size < 1 and size != -1):
                raise ValueError(f"mesh.{name}={size!r} must be at least 1, or -1 for the rest of the devices")
        if astuple(self).count(-1) > 1:
            raise ValueError(f"{self}: only one axis may be -1")

    def build(self, devices=None) -> jax.sharding.Mesh:
        """The mesh over `devices`, by default all of them; every device has a place in it."""
        devices = jax.devices() if devices is None else list(devices)
        sizes = astuple(self)
        given = math.prod(size for size in sizes if size != -1)
        if len(devices) % given or (-1 not in sizes and given != len(devices)):
            axes = ", ".join(f"mesh.{name}={size}" for name, size in zip(AXES, sizes, strict=True))
            needed = f"a multiple of {given}" if -1 in sizes else f"exactly {given}"
            raise ValueError(f"{axes} needs {needed} devices and there are {len(devices)}; -1 takes the rest")
        shape = tuple(len(devices) // given if size == -1 else size for size in sizes)
        return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def layout(path: str, shape: tuple[int, ...], mesh) -> tuple[P, list[str]]:
    """How the leaf at `path` is split, and a note for every mesh axis that could not go where `TABLE` has it."""
    start = min(int(stacked(path)), len(shape))
    free = len(shape) - start
    row = next(tuple(row) for pattern, row in TABLE if re.search(pattern, path))[-free:] if free else ()
    wanted = [None] * (len(shape) - len(row)) + [name if name and mesh.shape[name] > 1 else None for name in row]
    placed, notes = [None] * len(shape), []
    for axis, name in enumerate(wanted):
        if name is None:
            continue
        size = mesh.shape[name]
        others = (*range(axis + 1, len(shape)), *range(start, axis))  # those after it, then those before it
        unassigned = [i for i in others if wanted[i] is None and placed[i] is None]
        chosen = next((i for i in (axis, *unassigned) if shape[i] % size == 0), None)
        if chosen is not None:
            placed[chosen] = name
        if chosen != axis:
            instead = "it stays whole" if chosen is None else f"axis {chosen} is split instead"
            notes.append(f"{path} {list(shape)}: axis {axis} is not a multiple of mesh.{name}={size}; {instead}")
    while placed and placed[-1] is None:
        placed.pop()
    return P(*placed), notes


def shardings(tree, mesh):
    """A `NamedSharding` for every leaf of a tree of arrays or shapes: parameters, moments or a whole state."""
    place = lambda path, leaf: NamedSharding(mesh, layout(path, leaf.shape, mesh)[0])
    return jax.tree.map(place, paths(tree), tree)


def notes(tree, mesh) -> list[str]:
    """What could not be split as `TABLE` has it, and what happens instead; empty when everything divides."""
    found = jax.tree.map(lambda path, leaf: layout(path, leaf.shape, mesh)[1], paths(tree), tree)
    return jax.tree.leaves(found)


def batch_sharding(mesh, leading: int = 0) -> NamedSharding:
    """Rows over `data` and `fsdp`, after `leading` whole axes (those of accumulated micro-steps)."""
    return NamedSharding(mesh, P(*[None] * leading, BATCH))


def place(batch: dict[str, np.ndarray], mesh) -> dict[str, jax.Array]:
    """The global batch on the devices, from the rows that this process holds."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
