"""Sharding of arrays: a mesh of devices, and rules from parameter paths to the mesh axes that split them.

The axis `data` splits the batch, `fsdp` the batch and the parameters, and `model` the parameters inside a layer:
attention by heads, feed-forward by inner features, the vocabulary by rows (Shoeybi et al., 2019,
https://arxiv.org/abs/1909.08053). Speed and memory depend on the mesh; numbers do not.
"""

import math
import re
from dataclasses import astuple, dataclass
from functools import partial

import jax
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from encoders.model.encoder import is_stacked
from encoders.model.ops import BATCH_AXES
from encoders.training.optimizer import tree_paths
from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields

MESH_AXES = ("data", "fsdp", "model")

# The first rule whose regex matches holds, for the trailing axes; the first axis of stacked layers is never split.
PARTITION_RULES = (
    (r"(query|key|value|qkv|up)/kernel$", P("fsdp", "model")),
    (r"(query|key|value|up)/bias$", P("model")),
    (r"(attend/out|transform/down)/kernel$", P("model", "fsdp")),
    (r"(word/embedding|words/shift)$", P("model", "fsdp")),
    (r"(position|segment)/embedding$", P(None, "fsdp")),
    (r"(tokens|restored)/(out/)?bias$", P("model")),  # of the vocabulary, as the rows of the word table
    (r"(tokens|restored)/out/kernel$", P("fsdp", "model")),  # of a masked-token head of its own
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
        is_size = lambda size: type(size) is int and (size >= 1 or size == -1)
        check_fields(self, "mesh.", [("data fsdp model", is_size, "at least 1, or -1 for the rest of the devices")])
        if astuple(self).count(-1) > 1:
            raise UserError(f"{self}: only one axis may be -1")

    def build(self, devices=None) -> jax.sharding.Mesh:
        """Return the mesh over `devices`, by default all. Raises `ValueError` where it does not use every device.

        Over several slices, or nodes of GPUs, the axis `data` goes across them where their number divides it.
        """
        devices = list_devices() if devices is None else list(devices)
        sizes = astuple(self)
        fixed = math.prod(size for size in sizes if size != -1)
        if len(devices) % fixed or (-1 not in sizes and fixed != len(devices)):
            axes = ", ".join(f"mesh.{name}={size}" for name, size in zip(MESH_AXES, sizes, strict=True))
            needed = f"a multiple of {fixed}" if -1 in sizes else f"exactly {fixed}"
            raise UserError(f"{axes} needs {needed} devices and there are {len(devices)}; -1 takes the rest")
        shape, axis_types = self.build_abstract(len(devices)).axis_sizes, (AxisType.Auto,) * len(MESH_AXES)
        num_slices = len({getattr(device, "slice_index", 0) for device in devices})
        if num_slices > 1 and shape[0] % num_slices == 0:  # only gradients cross the slow network between slices
            inside, between = (shape[0] // num_slices, *shape[1:]), (num_slices, 1, 1)
            grid = create_hybrid_device_mesh(inside, between, devices)
            return jax.sharding.Mesh(grid, MESH_AXES, axis_types)
        return jax.make_mesh(shape, MESH_AXES, axis_types=axis_types, devices=devices)

    def build_abstract(self, num_devices: int) -> AbstractMesh:
        """Return the mesh of `num_devices` without the devices, for estimates; -1 is what they leave, at least 1."""
        fixed = math.prod(size for size in astuple(self) if size != -1)
        sizes = tuple(max(num_devices // fixed, 1) if size == -1 else size for size in astuple(self))
        return AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def list_devices() -> list[jax.Device]:
    """Return all devices. Raises `UserError` where this machine has none of the platform in `JAX_PLATFORMS`."""
    try:
        return jax.devices()
    except (AssertionError, RuntimeError) as error:
        reason = f" ({str(error).splitlines()[0][:200]})" if str(error) else ""
        raise UserError(
            f"JAX_PLATFORMS={jax.config.jax_platforms} finds no device{reason}; unset it to use any device, or install "
            "the extra gpu or tpu"
        ) from None


def choose_partition_spec(path: str, shape: tuple[int, ...], mesh) -> P:
    """Return how `PARTITION_RULES` split the leaf at `path`.

    A mesh axis that does not divide its array axis moves to a later free axis, then to an earlier one.
    """
    first_axis = min(int(is_stacked(path)), len(shape))
    rule = next(tuple(spec) for regex, spec in PARTITION_RULES if re.search(regex, path))
    rule = rule[max(len(rule) - len(shape) + first_axis, 0) :]
    wanted = [None] * (len(shape) - len(rule)) + [name if name and mesh.shape[name] > 1 else None for name in rule]
    assigned = [None] * len(shape)
    for axis, name in enumerate(wanted):
        if name is not None:
            others = (*range(axis + 1, len(shape)), *range(first_axis, axis))
            free = (axis, *(i for i in others if wanted[i] is None and assigned[i] is None))
            chosen = next((i for i in free if shape[i] % mesh.shape[name] == 0), None)
            if chosen is not None:
                assigned[chosen] = name
    while assigned and assigned[-1] is None:
        assigned.pop()
    return P(*assigned)


def infer_shardings(tree, mesh):
    """Return a `NamedSharding` for every leaf of a tree of arrays or shapes: parameters, moments or a state."""
    infer_leaf_sharding = lambda path, leaf: NamedSharding(mesh, choose_partition_spec(path, leaf.shape, mesh))
    return jax.tree.map(infer_leaf_sharding, tree_paths(tree), tree)


def make_batch_sharding(mesh) -> NamedSharding:
    """Return the sharding of rows over `data` and `fsdp`."""
    return NamedSharding(mesh, P(BATCH_AXES))


def find_local_rows(mesh, batch_size: int) -> np.ndarray:
    """Return the rows of a global batch that this process's devices hold, in ascending order."""
    indices = make_batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))


def count_batch_shards(mesh) -> int:
    """Return the number of shards that the rows of a batch are split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def shard_batch(batch, mesh):
    """Return the global batch on the devices, from the rows of this process, which are those of `find_local_rows`."""
    return jax.tree.map(partial(jax.make_array_from_process_local_data, make_batch_sharding(mesh)), batch)


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
        spec = [None if name == "fsdp" else name for name in choose_partition_spec(path, leaf.shape, mesh)]
        return leaf if is_stacked(path) else jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, P(*spec)))

    return jax.tree.map(unshard_leaf, tree_paths(params), params)


def map_rows(function, batch):
    """Return `function(batch)`, which treats each row by itself, computed on the devices that hold the rows."""
    mesh = infer_mesh(batch)
    if mesh is None:
        return function(batch)
    return jax.shard_map(function, mesh=mesh, in_specs=P(BATCH_AXES), out_specs=P(BATCH_AXES), check_vma=False)(batch)
