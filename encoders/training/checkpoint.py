"""UPDATE → CHECKPOINT: Orbax behind one thin class."""

from __future__ import annotations

import json
import logging
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from encoders.training.checksums import compute_checksums, find_changed_leaves

for name in ("absl", "asyncio"):  # what Orbax fails at is raised as well
    logging.getLogger(name).setLevel(logging.CRITICAL)

CHUNK_BYTES = (
    64 << 20
)  # bytes that are compressed, and written, at a time: by default it is whole arrays and files of 2 GB


class CheckpointDamaged(ValueError):
    """A checkpoint that cannot be read, or whose numbers are not those that were saved."""


@contextmanager
def quiet_orbax() -> Iterator[None]:
    """Where it fails, what Orbax has begun and drops is not shown, also when it is collected later."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda found: None if is_orbax_leftover(found) else hook(found)
    yield
    sys.unraisablehook = hook


@contextmanager
def raise_if_unreadable(step: int) -> Iterator[None]:
    """Raises `CheckpointDamaged` in one line where a checkpoint cannot be read."""
    try:
        with quiet_orbax():
            yield
    except MemoryError:
        raise
    except Exception as error:  # Orbax's and TensorStore's are of many kinds
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
        raise CheckpointDamaged(f"checkpoint {step} cannot be read: {line[:200]}") from error


def is_orbax_leftover(unraisable) -> bool:
    """Whether what nobody can catch is of the reading of other arrays, which Orbax drops when one fails."""
    code, trace = getattr(unraisable.object, "cr_code", None), unraisable.exc_traceback
    files = [code.co_filename] if code else []
    while trace:
        files.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    return "Event loop is closed" in str(unraisable.exc_value) or any("orbax" in name for name in files)


def verify_checksums(step: int, tree, expected_checksums: dict[str, list[int]]) -> None:
    """Raises `CheckpointDamaged` with the names of the leaves whose checksums differ."""
    if differ := find_changed_leaves(tree, expected_checksums):
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise CheckpointDamaged(f"checkpoint {step} is not what was saved: {', '.join(differ[:3])}{more}")


class Checkpoints:
    """The checkpoints of a run: the newest `keep`, and the best one, which has the lowest cost.

    Each holds the parameters apart, so that they can be read alone; the rest of the state; and `notes`, a small JSON
    value: sums not yet logged. With `keep=None` nothing is written or cleaned.
    """

    def __init__(self, folder: Path, keep_checkpoints: int | None = None):
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["cost"], reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep_checkpoints), best]),
            best_fn=lambda metrics: metrics["cost"],
            best_mode="min",
            cleanup_tmp_directories=keep_checkpoints is not None,
            read_only=keep_checkpoints is None,
        )
        handlers = {
            "params": ocp.StandardCheckpointHandler(),
            "rest": ocp.StandardCheckpointHandler(),
            "notes": ocp.JsonCheckpointHandler(),
        }
        self.folder = folder.resolve()
        self.manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def save(self, step: int, state, notes: dict, cost: float | None) -> None:
        """Write in the background; `cost` is what the best step has least of, if it was measured at this one."""
        rest = {"step": state.step, "moments": state.moments, "update_guard": state.update_guard}
        sums = {"params": compute_checksums(state.params), "rest": compute_checksums(rest)}
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            rest=ocp.args.StandardSave(rest),
            notes=ocp.args.JsonSave(notes | {"checksums": sums}),
        )
        self.manager.save(step, args=args, metrics=None if cost is None else {"cost": cost})

    def latest_step(self) -> int | None:
        return self.manager.latest_step()

    def all_steps(self) -> list[int]:
        return sorted(self.manager.all_steps())

    def best_step(self) -> int | None:
        """The step with the lowest cost, or the latest where none was measured."""
        step = self.manager.best_step()
        return self.latest_step() if step is None else step

    def restore(self, step: int, abstract_state) -> tuple:
        """State and notes of `step`, the state with the shapes and shardings of `like`. Raises `CheckpointDamaged`."""
        rest = {
            "step": abstract_state.step,
            "moments": abstract_state.moments,
            "update_guard": abstract_state.update_guard,
        }
        args = ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract_state.params),
            rest=ocp.args.StandardRestore(rest),
            notes=ocp.args.JsonRestore(),
        )
        with raise_if_unreadable(step):
            found = self.manager.restore(step, args=args)
        for part, sums in found["notes"].get("checksums", {}).items():
            verify_checksums(step, found[part], sums)
        return abstract_state.replace(params=found["params"], **found["rest"]), found["notes"]

    def restore_params(self, step: int, infer_shardings: Callable) -> dict:
        """The parameters of `step` alone, placed as `shardings(shapes)` says. Raises `CheckpointDamaged`."""
        with raise_if_unreadable(step):
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.read_param_shapes(step))
            args = ocp.args.StandardRestore(build_abstract_state(like, infer_shardings(like)))
            with open_low_memory_checkpointer(like) as checkpointer:
                found = checkpointer.restore(get_params_path(self.folder, step), args=args)
            notes = self.folder / str(step) / "notes" / "metadata"  # Orbax's name; an imported run has none
            sums = json.loads(notes.read_text(encoding="utf-8")).get("checksums", {}) if notes.exists() else {}
        verify_checksums(step, found, sums.get("params", {}))
        return found

    def move_damaged(self, steps: list[int]) -> Path:
        """Move damaged steps out of the way, so that they can be written again, and return where they are."""
        place = self.folder.with_name("damaged")
        place.mkdir(exist_ok=True)
        for step in steps:
            with suppress(FileNotFoundError):  # another process has done it
                (self.folder / str(step)).rename(place / f"{step}-{secrets.token_hex(4)}")
        self.manager.reload()
        return place

    def read_param_shapes(self, step: int):
        """Shape and dtype of every parameter of `step`, without reading them."""
        return self.manager.item_metadata(step)["params"].tree

    def close(self) -> None:
        """Wait until everything is on disk."""
        self.manager.wait_until_finished()
        self.manager.close()


def save_params(folder: Path, params) -> None:
    """Make step 0 of a run that has parameters only, in its folder of checkpoints."""
    pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), params)
    args = ocp.args.PyTreeSave(params, pieces, ocdbt_target_data_file_size=CHUNK_BYTES)
    with ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(save_concurrent_gb=compute_largest_array_gb(params))
    ) as checkpointer:
        checkpointer.save(get_params_path(folder.resolve(), 0), args=args)


def get_params_path(folder: Path, step: int) -> Path:
    return folder / str(step) / "params"


def open_low_memory_checkpointer(abstract_params) -> ocp.Checkpointer:
    """Reads arrays such as those of `like`, the largest of them alone on its way, to need little memory."""
    return ocp.Checkpointer(
        ocp.StandardCheckpointHandler(restore_concurrent_gb=compute_largest_array_gb(abstract_params))
    )


def compute_largest_array_gb(tree) -> float:
    """The GB that may be on their way: those of the largest array."""
    return 1.1 * max(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) / 1e9


def build_abstract_state(shapes, shardings):
    """What `restore` wants to know of a state."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
