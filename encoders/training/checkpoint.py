"""Checkpoints of a run: Orbax behind one class, and checksums of every array."""

import gc
import io
import logging
import math
import secrets
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, suppress
from functools import cache
from pathlib import Path
from types import CoroutineType
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from encoders.training import distributed
from encoders.training.metric_log import DAMAGED_FOLDER
from encoders.training.optimizer import flatten_with_paths
from encoders.utils.buckets import make_absolute, move_folder
from encoders.utils.errors import UserError
from encoders.utils.files import NUMBER, read_signed_json, sign_json, write_signed_json

T = TypeVar("T")
COMMITTED_FILE = "commit_success.txt"  # with which Orbax ends a checkpoint, and each of its parts, in a bucket
SAVED_STEPS_FILE = "saved_steps.json"  # beside the folder of checkpoints: the latest and the best step on the disk
CHUNK_BYTES = 64 << 20  # compressed and written at a time; by default whole arrays, in files of 2 GB
BLOCK_ELEMENTS = 1 << 20  # summed at a time for a checksum


class CheckpointDamaged(UserError):
    """A checkpoint that cannot be read, or whose numbers differ from those that were saved."""


class Checkpoints:
    """The checkpoints of a run: the newest `keep_checkpoints`, and the best one, which has the lowest cost.

    Each holds the parameters, which can be read alone; the rest of the state; and `notes`, a small JSON value with the
    sums that are not logged yet. With `keep_checkpoints=None` nothing is written or removed.

    The notes are signed and hold the step, the cost, the checksums of all arrays and `owner`, the fingerprint of the
    run. Checkpoints of earlier versions have no `owner`, and what their notes lack is not verified.
    """

    def __init__(self, folder: Path, keep_checkpoints: int | None = None, owner: str | None = None):
        handlers = {name: ocp.StandardCheckpointHandler() for name in ("params", "rest")}
        handlers["notes"] = ocp.JsonCheckpointHandler()
        self.folder, self.owner = make_absolute(folder), owner
        self.run_folder = self.folder.parent
        self.executor, self.finishing = ThreadPoolExecutor(1, "checkpoints"), None
        is_writer = keep_checkpoints is not None
        with quiet_orbax():
            best = policies.BestN(get_metric_fn=get_cost, reverse=True, n=1, keep_checkpoints_without_metrics=False)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep_checkpoints), best]),
                best_fn=get_cost,
                best_mode="min",
                cleanup_tmp_directories=is_writer,
                read_only=not is_writer,
            )
            try:
                self.manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
            except (ValueError, RecursionError) as error:  # of the file that Orbax writes beside each step
                raise CheckpointDamaged(f"the metadata in {self.folder} cannot be read: {error}") from error

    def save(self, step: int, state, notes: dict, cost: float | None) -> None:
        """Write in the background; `cost` is lowest at the best step, and None where it was not measured."""
        items = {"params": state.params, "rest": get_rest(state)}
        checksums = {name: compute_checksums(item) for name, item in items.items()}
        notes = notes | {"step": step, "owner": self.owner, "cost": cost, "checksums": checksums}
        saved = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        args = ocp.args.Composite(**saved, notes=ocp.args.JsonSave(sign_json(notes)))
        with quiet_orbax():
            self.wait_until_finished()
            self.manager.save(step, args=args, metrics=None if cost is None else {"cost": cost})
            self.finishing = self.executor.submit(self.finish_save, step)

    def finish_save(self, step: int) -> None:
        """Wait until a checkpoint is whole, and then record it: one that is recorded is never taken for lost."""
        self.manager.wait_until_finished()
        self.record_saved_step(step)

    def wait_until_finished(self) -> None:
        """Wait for the checkpoint that is being written, and raise what went wrong with it."""
        finishing, self.finishing = self.finishing, None
        if finishing:
            finishing.result()

    def record_saved_step(self, step: int) -> None:
        if distributed.is_primary():
            steps = {"latest": step, "best": self.best_step()}
            write_signed_json(self.run_folder / SAVED_STEPS_FILE, steps)

    def read_saved_steps(self) -> dict[str, int]:
        """Return the latest and the best step that were ever on the disk, {} before the first. Raises `DamagedFile`."""
        path = self.run_folder / SAVED_STEPS_FILE
        return read_signed_json(path) if path.exists() else {}

    def latest_step(self) -> int | None:
        return self.manager.latest_step()

    def all_steps(self) -> list[int]:
        return sorted(self.manager.all_steps())

    def best_step(self) -> int | None:
        """Return the step with the lowest cost, or the latest where none was measured."""
        step = self.manager.best_step()
        return self.latest_step() if step is None else step

    def restore(self, step: int, abstract_state) -> tuple:
        """Return state and notes of `step`, placed as `abstract_state` says. Raises `CheckpointDamaged`."""
        args = ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract_state.params),
            rest=ocp.args.StandardRestore(get_rest(abstract_state)),
        )
        notes = self.read_notes(step)
        saved = read_or_raise(step, lambda: self.manager.restore(step, args=args))
        for item, checksums in notes.get("checksums", {}).items():
            verify_checksums(step, saved[item], checksums)
        return abstract_state.replace(params=saved["params"], **saved["rest"]), notes

    def read_notes(self, step: int) -> dict:
        """Return the notes of `step`. Raises `CheckpointDamaged` where they are not those of this step and run."""
        path = self.folder / str(step) / "notes" / "metadata"  # Orbax's name
        if self.owner is None and not path.exists():  # imported by an earlier version
            return {}
        notes = read_or_raise(step, lambda: read_signed_json(path))
        if self.owner is not None:
            found = {"step": notes.get("step"), "owner": notes.get("owner"), "cost": notes.get("cost")}
            saved_metrics = read_or_raise(step, lambda: self.manager.metrics(step))
            cost = saved_metrics.get("cost") if isinstance(saved_metrics, dict) else saved_metrics
            expected = {"step": step, "owner": self.owner, "cost": cost}
            if changed := [f"{name} {found[name]}" for name in found if str(found[name]) != str(expected[name])]:
                wanted = ", ".join(f"{name} {value}" for name, value in expected.items())
                raise CheckpointDamaged(f"checkpoint {step} holds {', '.join(changed)}, and should hold {wanted}")
        return notes

    def restore_params(self, step: int, infer_shardings: Callable) -> dict:
        """Return the parameters of `step` alone, placed by `infer_shardings(shapes)`. Raises `CheckpointDamaged`."""

        def read_params() -> dict:
            metadata = self.manager.item_metadata(step)["params"].tree
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), metadata)
            args = ocp.args.StandardRestore(build_abstract_state(shapes, infer_shardings(shapes)))
            # At most the largest of the arrays is in memory beside those that are placed.
            handler = ocp.StandardCheckpointHandler(restore_concurrent_gb=compute_largest_array_gb(shapes))
            with ocp.Checkpointer(handler) as checkpointer:
                return checkpointer.restore(self.folder / str(step) / "params", args=args)

        notes = self.read_notes(step)
        params = read_or_raise(step, read_params)
        verify_checksums(step, params, notes.get("checksums", {}).get("params", {}))
        return params

    def move_damaged(self, steps: list[int]) -> Path:
        """Move damaged steps away, so that they can be written again, and return their new folder."""
        folder = self.run_folder / DAMAGED_FOLDER
        folder.mkdir(exist_ok=True)
        for step in steps:
            with suppress(FileNotFoundError):  # another process has moved it
                move_folder(self.folder / str(step), folder / f"{step}-{secrets.token_hex(4)}")
        self.manager.reload()
        return folder

    def close(self) -> None:
        """Wait until everything is on disk."""
        try:
            self.wait_until_finished()
        finally:
            self.executor.shutdown()
            self.manager.close()


def get_cost(metrics) -> float:
    """Return the cost in Orbax's metrics; the notes tell whether it is the one that was saved."""
    cost = metrics.get("cost") if isinstance(metrics, dict) else None
    return cost if isinstance(cost, NUMBER) else math.inf


def get_rest(state) -> dict:
    return {"step": state.step, "moments": state.moments, "update_guard": state.update_guard}


def build_abstract_state(shapes, shardings):
    """Return shapes, dtypes and shardings in one tree, as `restore` takes them."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


@contextmanager
def quiet_orbax() -> Iterator[None]:
    """Log nothing of Orbax: its warnings concern options that are meant so, and its errors are raised as well.

    After a failure it stays quiet, since threads of Orbax and TensorStore end later. They log the error once more, and
    Python prints what they cannot raise: reports of a closed event loop, and coroutines that Orbax drops.
    """
    levels = {logger: logger.level for logger in (logging.getLogger("absl"), logging.getLogger("asyncio"))}
    print_unraisable = sys.unraisablehook
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = build_unraisable_hook(print_unraisable)
    yield
    sys.unraisablehook = print_unraisable
    for logger, level in levels.items():
        logger.setLevel(level)


@cache  # A thread of TensorStore may still be calling a hook that was replaced: none is ever freed.
def build_unraisable_hook(print_unraisable: Callable) -> Callable:
    def print_others(unraisable) -> None:
        is_dropped = isinstance(unraisable.object, CoroutineType)  # only Orbax and asyncio make any here
        if not is_dropped and "Event loop is closed" not in str(unraisable.exc_value):
            print_unraisable(unraisable)

    return print_others


def read_or_raise(step: int, read: Callable[[], T]) -> T:
    """Return `read()`, or raise `CheckpointDamaged` with the first line of the error."""
    with quiet_orbax(), redirect_stderr(io.StringIO()):
        try:
            return read()
        except Exception as error:  # Orbax and TensorStore raise many types
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                raise
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
        # Orbax drops its other reads, and Python prints their errors when it frees them: here, where nothing is shown.
        gc.collect()
    raise CheckpointDamaged(f"checkpoint {step} cannot be read: {reason[:200]}")


def save_params(folder: Path, params, owner: str) -> None:
    """Write step 0 of a run that has parameters only, whose fingerprint is `owner`, into its folder of checkpoints."""
    save_args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), params)
    args = ocp.args.PyTreeSave(params, save_args, ocdbt_target_data_file_size=CHUNK_BYTES)
    handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=compute_largest_array_gb(params))
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder.resolve() / "0" / "params", args=args)
    notes = {"step": 0, "owner": owner, "checksums": {"params": compute_checksums(params)}}
    path = folder / "0" / "notes" / "metadata"
    path.parent.mkdir()
    write_signed_json(path, notes)


def compute_largest_array_gb(tree) -> float:
    """Return the size of the largest array in GB, with a margin of a tenth."""
    return 1.1 * max(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) / 1e9


def compute_checksums(tree) -> dict[str, list[int]]:
    """Return two sums mod 2^32 of every leaf, by its path: of its bits u_i as unsigned numbers, and of u_i (2 i + 1).

    They change with any bit and with the order of elements, and are the same on every layout and number of processes.
    """
    leaves = dict(flatten_with_paths(tree))
    is_addressable = all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves.values())
    if is_addressable and jax.default_backend() == "cpu":
        return {path: checksum_array(np.asarray(leaf)) for path, leaf in leaves.items()}
    checksums = jax.device_get(checksum_on_devices(leaves))
    return {path: [int(plain), int(weighted)] for path, (plain, weighted) in checksums.items()}


def checksum_array(array: np.ndarray) -> list[int]:
    """Return the two sums of an array on the host, block by block."""
    bits = np.ascontiguousarray(array).reshape(-1).view(f"uint{8 * array.dtype.itemsize}")
    plain = weighted = 0
    weights = 2 * np.arange(min(BLOCK_ELEMENTS, bits.size), dtype=np.uint32) + 1
    for start in range(0, bits.size, BLOCK_ELEMENTS):
        block = bits[start : start + BLOCK_ELEMENTS].astype(np.uint32)
        total = int(block.sum(dtype=np.uint32))
        plain += total
        weighted += int((block * weights[: block.size]).sum(dtype=np.uint32)) + total * 2 * start
    return [plain % 2**32, weighted % 2**32]


@jax.jit
def checksum_on_devices(leaves: dict[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Return the two sums of arrays on their devices."""

    def checksum_leaf(x):
        bits = x if x.dtype == bool else jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
        bits, index, stride = bits.astype(jnp.uint32), jnp.zeros(x.shape, jnp.uint32), 1
        for axis in reversed(range(x.ndim)):
            index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
            stride *= x.shape[axis]
        return bits.sum(dtype=jnp.uint32), (bits * (2 * index + 1)).sum(dtype=jnp.uint32)

    return jax.tree.map(checksum_leaf, leaves)


def find_changed_leaves(tree, saved_checksums: dict[str, list[int]]) -> list[str]:
    """Return the paths of leaves whose checksums differ or are missing; without any saved one, none."""
    if not saved_checksums:  # of an earlier version
        return []
    checksums = compute_checksums(tree)
    return [p for p in checksums.keys() | saved_checksums.keys() if checksums.get(p) != saved_checksums.get(p)]


def verify_checksums(step: int, tree, saved_checksums: dict[str, list[int]]) -> None:
    """Raise `CheckpointDamaged` with the paths of leaves whose checksums differ."""
    if changed := find_changed_leaves(tree, saved_checksums):
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise CheckpointDamaged(f"checkpoint {step} differs from what was saved in {', '.join(changed[:3])}{more}")
