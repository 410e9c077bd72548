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

from encoders.model.ops import BATCH_AXES
from encoders.training.optimizer import is_stacked, tree_paths

MESH_AXES = ("data", "fsdp", "model")

# The first row whose regex is found in the path; trailing axes; a stack's first axis stays whole.
PARTITION_RULES = (
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
        for name in MESH_AXES:
            size = getattr(self, name)
            if type(size) is not int or (size < 1 and size != -1):
                raise ValueError(f"mesh.{name}={size!r} must be at least 1, or -1 for the rest of the devices")
        if astuple(self).count(-1) > 1:
            raise ValueError(f"{self}: only one axis may be -1")

    def build(self, devices=None) -> jax.sharding.Mesh:
        """The mesh over `devices`, by default all of them; every device has a place in it."""
        devices = list_devices() if devices is None else list(devices)
        sizes = astuple(self)
        given = math.prod(size for size in sizes if size != -1)
        if len(devices) % given or (-1 not in sizes and given != len(devices)):
            axes = ", ".join(f"mesh.{name}={size}" for name, size in zip(MESH_AXES, sizes, strict=True))
            needed = f"a multiple of {given}" if -1 in sizes else f"exactly {given}"
            raise ValueError(f"{axes} needs {needed} devices and there are {len(devices)}; -1 takes the rest")
        shape = tuple(len(devices) // given if size == -1 else size for size in sizes)
        return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)

    def build_abstract(self, num_devices: int) -> AbstractMesh:
        """The mesh for reckoning, where there need not be as many devices: -1 is what they leave, or 1."""
        given = math.prod(size for size in astuple(self) if size != -1)
        sizes = tuple(max(num_devices // given, 1) if size == -1 else size for size in astuple(self))
        return AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def list_devices() -> list:
    """The devices there are. Raises `ValueError` where `JAX_PLATFORMS` names none of this machine."""
    try:
        return jax.devices()
    except (AssertionError, RuntimeError) as error:
        reason = f" ({str(error).splitlines()[0][:200]})" if str(error) else ""
        raise ValueError(
            f"JAX_PLATFORMS={jax.config.jax_platforms} has no device here{reason}; unset it to take what there is, or "
            "install the extra gpu or tpu"
        ) from None


def choose_partition_spec(path: str, shape: tuple[int, ...], mesh) -> tuple[P, list[str]]:
    """How the leaf at `path` is split, and a note for every mesh axis that could not go where `TABLE` has it."""
    start = min(int(is_stacked(path)), len(shape))
    free = len(shape) - start
    row = next(tuple(row) for pattern, row in PARTITION_RULES if re.search(pattern, path))[-free:] if free else ()
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


def infer_shardings(tree, mesh):
    """A `NamedSharding` for every leaf of a tree of arrays or shapes: parameters, moments or a whole state."""
    infer_leaf_sharding = lambda path, leaf: NamedSharding(mesh, choose_partition_spec(path, leaf.shape, mesh)[0])
    return jax.tree.map(infer_leaf_sharding, tree_paths(tree), tree)


def describe_unsplit_axes(tree, mesh) -> list[str]:
    """What could not be split as `TABLE` has it, and what happens instead; empty when everything divides."""
    found = jax.tree.map(lambda path, leaf: choose_partition_spec(path, leaf.shape, mesh)[1], tree_paths(tree), tree)
    return jax.tree.leaves(found)


def make_batch_sharding(mesh, num_leading_axes: int = 0) -> NamedSharding:
    """Rows over `data` and `fsdp`, after `leading` whole axes (those of accumulated micro-steps)."""
    return NamedSharding(mesh, P(*[None] * num_leading_axes, BATCH_AXES))


def find_local_rows(mesh, batch_size: int) -> np.ndarray:
    """Which of the `batch` rows of a global batch this process's devices hold, in order."""
    places = make_batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[place] for place in places]))


def count_batch_shards(mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def shard_batch(batch, mesh):
    """The global batch on the devices, from the rows that this process holds: those of `local_rows`."""
    sharding, parts = make_batch_sharding(mesh), count_batch_shards(mesh)
    held = len(jax.tree.leaves(batch)[0])
    size = held // len(find_local_rows(mesh, parts)) * parts
    rows = find_local_rows(mesh, size)

    def make_global_array(host_array: np.ndarray) -> jax.Array:
        def read_shard(shard_index) -> np.ndarray:
            start, stop, _ = shard_index[0].indices(size)
            at = int(np.searchsorted(rows, start))
            return host_array[at : at + stop - start]

        return jax.make_array_from_callback((size, *host_array.shape[1:]), sharding, read_shard)

    return jax.tree.map(make_global_array, batch)


# Inside a jitted function ---------------------------------------------------------------------------------------------


def infer_mesh(tree):
    """The mesh that the arguments of the function are on; None for one device."""
    mesh = jax.typeof(jax.tree.leaves(tree)[0]).sharding.mesh
    return mesh if mesh.size > 1 else None


def constrain_to_mesh(tree):
    """Parameters, moments or a whole state with every leaf where `TABLE` has it."""
    mesh = infer_mesh(tree)
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, infer_shardings(tree, mesh))


def unshard_fsdp(params):
    """Parameters as they are used, no longer split over `fsdp`; those of layers are gathered each in its turn."""
    mesh = infer_mesh(params)
    if mesh is None:
        return params

    def unshard_leaf(path, leaf):
        spec = [None if name == "fsdp" else name for name in choose_partition_spec(path, leaf.shape, mesh)[0]]
        return leaf if is_stacked(path) else jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, P(*spec)))

    return jax.tree.map(unshard_leaf, tree_paths(params), params)


def map_rows(function, batch):
    """`function(batch)`, which treats each row by itself, computed where the rows are."""
    mesh = infer_mesh(batch)
    if mesh is None:
        return function(batch)
    return jax.shard_map(function, mesh=mesh, in_specs=P(BATCH_AXES), out_specs=P(BATCH_AXES), check_vma=False)(batch)
