"""Sharding of arrays: a mesh of devices, and rules from parameter paths to the mesh axes that split them.

The axis `data` splits the batch, `fsdp` the batch and the parameters, and `model` the parameters inside a layer:
attention by heads, feed-forward by inner features, the vocabulary by rows (Shoeybi et al., 2019,
https://arxiv.org/abs/1909.08053). Speed and memory depend on the mesh; numbers do not.
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

# The first rule whose regex matches holds, for the trailing axes; the first axis of stacked layers is never split.
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
    """Devices along each axis; -1, for at most one axis, is the number that the others leave."""

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
        """Return the mesh over `devices`, by default all of them.

        Raises `ValueError` where the axes do not use every device.
        """
        devices = list_devices() if devices is None else list(devices)
        sizes = astuple(self)
        fixed = math.prod(size for size in sizes if size != -1)
        if len(devices) % fixed or (-1 not in sizes and fixed != len(devices)):
            axes = ", ".join(f"mesh.{name}={size}" for name, size in zip(MESH_AXES, sizes, strict=True))
            needed = f"a multiple of {fixed}" if -1 in sizes else f"exactly {fixed}"
            raise ValueError(f"{axes} needs {needed} devices and there are {len(devices)}; -1 takes the rest")
        shape = tuple(len(devices) // fixed if size == -1 else size for size in sizes)
        return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)

    def build_abstract(self, num_devices: int) -> AbstractMesh:
        """Return the mesh of `num_devices` without the devices, for estimates; -1 is what they leave, at least 1."""
        fixed = math.prod(size for size in astuple(self) if size != -1)
        sizes = tuple(max(num_devices // fixed, 1) if size == -1 else size for size in astuple(self))
        return AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def list_devices() -> list:
    """Return all devices. Raises `ValueError` where this machine has none of the platform in `JAX_PLATFORMS`."""
    try:
        return jax.devices()
    except (AssertionError, RuntimeError) as error:
        reason = f" ({str(error).splitlines()[0][:200]})" if str(error) else ""
        raise ValueError(
            f"JAX_PLATFORMS={jax.config.jax_platforms} finds no device{reason}; unset it to use any device, or install "
            "the extra gpu or tpu"
        ) from None


def choose_partition_spec(path: str, shape: tuple[int, ...], mesh) -> tuple[P, list[str]]:
    """Return how the leaf at `path` is split, and a note for every mesh axis that `PARTITION_RULES` place elsewhere.

    A mesh axis that does not divide its array axis moves to a later free axis, then to an earlier one.
    """
    first_axis = min(int(is_stacked(path)), len(shape))
    num_axes = len(shape) - first_axis
    rule = (
        next(tuple(spec) for regex, spec in PARTITION_RULES if re.search(regex, path))[-num_axes:] if num_axes else ()
    )
    wanted = [None] * (len(shape) - len(rule)) + [name if name and mesh.shape[name] > 1 else None for name in rule]
    assigned, notes = [None] * len(shape), []
    for axis, name in enumerate(wanted):
        if name is None:
            continue
        size = mesh.shape[name]
        alternatives = (*range(axis + 1, len(shape)), *range(first_axis, axis))
        free = [i for i in alternatives if wanted[i] is None and assigned[i] is None]
        chosen = next((i for i in (axis, *free) if shape[i] % size == 0), None)
        if chosen is not None:
            assigned[chosen] = name
        if chosen != axis:
            outcome = "it stays whole" if chosen is None else f"axis {chosen} is split instead"
            notes.append(f"{path} {list(shape)}: axis {axis} is not a multiple of mesh.{name}={size}; {outcome}")
    while assigned and assigned[-1] is None:
        assigned.pop()
    return P(*assigned), notes


def infer_shardings(tree, mesh):
    """Return a `NamedSharding` for every leaf of a tree of arrays or shapes: parameters, moments or a state."""
    infer_leaf_sharding = lambda path, leaf: NamedSharding(mesh, choose_partition_spec(path, leaf.shape, mesh)[0])
    return jax.tree.map(infer_leaf_sharding, tree_paths(tree), tree)


def describe_unsplit_axes(tree, mesh) -> list[str]:
    """Return a line for every axis that cannot be split as in `PARTITION_RULES`, with its replacement."""
    notes = jax.tree.map(lambda path, leaf: choose_partition_spec(path, leaf.shape, mesh)[1], tree_paths(tree), tree)
    return jax.tree.leaves(notes)


def make_batch_sharding(mesh, num_leading_axes: int = 0) -> NamedSharding:
    """Return the sharding of rows over `data` and `fsdp`, after leading axes that are not split."""
    return NamedSharding(mesh, P(*[None] * num_leading_axes, BATCH_AXES))


def find_local_rows(mesh, batch_size: int) -> np.ndarray:
    """Return the rows of a global batch that this process's devices hold, in ascending order."""
    indices = make_batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))


def count_batch_shards(mesh) -> int:
    """Return the number of shards that the rows of a batch are split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def shard_batch(batch, mesh):
    """Return the global batch on the devices, from the rows of this process, which are those of `find_local_rows`."""
    sharding, num_shards = make_batch_sharding(mesh), count_batch_shards(mesh)
    num_local = len(jax.tree.leaves(batch)[0])
    batch_size = num_local // len(find_local_rows(mesh, num_shards)) * num_shards
    rows = find_local_rows(mesh, batch_size)

    def make_global_array(host_array: np.ndarray) -> jax.Array:
        def read_shard(shard_index) -> np.ndarray:
            start, stop, _ = shard_index[0].indices(batch_size)
            offset = int(np.searchsorted(rows, start))
            return host_array[offset : offset + stop - start]

        return jax.make_array_from_callback((batch_size, *host_array.shape[1:]), sharding, read_shard)

    return jax.tree.map(make_global_array, batch)


# Inside a jitted function ---------------------------------------------------------------------------------------------


def infer_mesh(tree):
    """Return the mesh of the arguments of a jitted function; None for one device."""
    mesh = jax.typeof(jax.tree.leaves(tree)[0]).sharding.mesh
    return mesh if mesh.size > 1 else None


def constrain_to_mesh(tree):
    """Constrain parameters, moments or a state to the shardings of `PARTITION_RULES`."""
    mesh = infer_mesh(tree)
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, infer_shardings(tree, mesh))


def unshard_fsdp(params):
    """Gather parameters over `fsdp` for their use; stacked layers are gathered one by one inside the scan."""
    mesh = infer_mesh(params)
    if mesh is None:
        return params

    def unshard_leaf(path, leaf):
        spec = [None if name == "fsdp" else name for name in choose_partition_spec(path, leaf.shape, mesh)[0]]
        return leaf if is_stacked(path) else jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, P(*spec)))

    return jax.tree.map(unshard_leaf, tree_paths(params), params)


def map_rows(function, batch):
    """Return `function(batch)`, which treats each row by itself, computed on the devices that hold the rows."""
    mesh = infer_mesh(batch)
    if mesh is None:
        return function(batch)
    return jax.shard_map(function, mesh=mesh, in_specs=P(BATCH_AXES), out_specs=P(BATCH_AXES), check_vma=False)(batch)
