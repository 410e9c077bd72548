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
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from encoders.model.layers import ROWS
from encoders.training.optimizer import paths, stacked

AXES = ("data", "fsdp", "model")

# The first row whose regex is found in the path; trailing axes; a stack's first axis stays whole.
TABLE = (
    (r"(query|key|value|up)/kernel$", P("fsdp", "model")),
    (r"(query|key|value|up)/bias$", P("model")),
    (r"(attend/out|transform/down)/kernel$", P("model", "fsdp")),
    (r"word/embedding$", P("model", "fsdp")),
    (r"(position|segment)/embedding$", P(None, "fsdp")),
    (r"(tokens|restored)/bias$", P("model")),  # of the vocabulary, as the rows of the word table
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
        devices = present() if devices is None else list(devices)
        sizes = astuple(self)
        given = math.prod(size for size in sizes if size != -1)
        if len(devices) % given or (-1 not in sizes and given != len(devices)):
            axes = ", ".join(f"mesh.{name}={size}" for name, size in zip(AXES, sizes, strict=True))
            needed = f"a multiple of {given}" if -1 in sizes else f"exactly {given}"
            raise ValueError(f"{axes} needs {needed} devices and there are {len(devices)}; -1 takes the rest")
        shape = tuple(len(devices) // given if size == -1 else size for size in sizes)
        return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)

    def abstract(self, devices: int) -> AbstractMesh:
        """The mesh for reckoning, where there need not be as many devices: -1 is what they leave, or 1."""
        given = math.prod(size for size in astuple(self) if size != -1)
        sizes = tuple(max(devices // given, 1) if size == -1 else size for size in astuple(self))
        return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def present() -> list:
    """The devices there are. Raises `ValueError` where `JAX_PLATFORMS` names none of this machine."""
    try:
        return jax.devices()
    except (AssertionError, RuntimeError) as error:
        reason = f" ({str(error).splitlines()[0][:200]})" if str(error) else ""
        raise ValueError(
            f"JAX_PLATFORMS={jax.config.jax_platforms} has no device here{reason}; unset it to take what there is, or "
            "install the extra gpu or tpu"
        ) from None


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
    return NamedSharding(mesh, P(*[None] * leading, ROWS))


def local_rows(mesh, batch: int) -> np.ndarray:
    """Which of the `batch` rows of a global batch this process's devices hold, in order."""
    places = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    return np.unique(np.concatenate([np.arange(batch)[place] for place in places]))


def shards(mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def place(batch: dict[str, np.ndarray], mesh) -> dict[str, jax.Array]:
    """The global batch on the devices, from the rows that this process holds: those of `local_rows`."""
    sharding, parts = batch_sharding(mesh), shards(mesh)
    held = len(next(iter(batch.values())))
    size = held // len(local_rows(mesh, parts)) * parts
    rows = local_rows(mesh, size)

    def whole(mine: np.ndarray) -> jax.Array:
        def part(index) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            at = int(np.searchsorted(rows, start))
            return mine[at : at + stop - start]

        return jax.make_array_from_callback((size, *mine.shape[1:]), sharding, part)

    return jax.tree.map(whole, batch)


# Inside a jitted function ---------------------------------------------------------------------------------------------


def mesh_of(tree):
    """The mesh that the arguments of the function are on; None for one device."""
    mesh = jax.typeof(jax.tree.leaves(tree)[0]).sharding.mesh
    return mesh if mesh.size > 1 else None


def kept(tree):
    """Parameters, moments or a whole state with every leaf where `TABLE` has it."""
    mesh = mesh_of(tree)
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


def gathered(params):
    """Parameters as they are used, no longer split over `fsdp`; those of layers are gathered each in its turn."""
    mesh = mesh_of(params)
    if mesh is None:
        return params

    def place(path, leaf):
        spec = [None if name == "fsdp" else name for name in layout(path, leaf.shape, mesh)[0]]
        return leaf if stacked(path) else jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, P(*spec)))

    return jax.tree.map(place, paths(params), params)


def row_by_row(function, batch):
    """`function(batch)`, which treats each row by itself, computed where the rows are."""
    mesh = mesh_of(batch)
    if mesh is None:
        return function(batch)
    return jax.shard_map(function, mesh=mesh, in_specs=P(ROWS), out_specs=P(ROWS), check_vma=False)(batch)
