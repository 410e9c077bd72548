"""UPDATE → CHECKPOINT: Orbax behind one thin class."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

logging.getLogger("absl").setLevel(logging.ERROR)

PIECE = 64 << 20  # bytes of an array that are compressed at a time: whole, its copies would be as large as itself


class Checkpoints:
    """The checkpoints of a run: the newest `keep`, and the best one, which has the lowest cost.

    Each holds the parameters apart, so that they can be read alone; the rest of the state; and `notes`, a small JSON
    value: sums not yet logged. With `keep=None` nothing is written or cleaned.
    """

    def __init__(self, folder: Path, keep: int | None = None):
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["cost"], reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            best_fn=lambda metrics: metrics["cost"],
            best_mode="min",
            cleanup_tmp_directories=keep is not None,
            read_only=keep is None,
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
        rest = {"step": state.step, "moments": state.moments, "guard": state.guard}
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            rest=ocp.args.StandardSave(rest),
            notes=ocp.args.JsonSave(notes),
        )
        self.manager.save(step, args=args, metrics=None if cost is None else {"cost": cost})

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def steps(self) -> list[int]:
        return sorted(self.manager.all_steps())

    def best(self) -> int | None:
        """The step with the lowest cost, or the latest where none was measured."""
        step = self.manager.best_step()
        return self.latest() if step is None else step

    def restore(self, step: int, like) -> tuple:
        """State and notes of `step`, the state with the shapes and shardings of `like`."""
        rest = {"step": like.step, "moments": like.moments, "guard": like.guard}
        args = ocp.args.Composite(
            params=ocp.args.StandardRestore(like.params),
            rest=ocp.args.StandardRestore(rest),
            notes=ocp.args.JsonRestore(),
        )
        found = self.manager.restore(step, args=args)
        return like.replace(params=found["params"], **found["rest"]), found["notes"]

    def params(self, step: int, shardings: Callable) -> dict:
        """The parameters of `step` alone, placed as `shardings(shapes)` says."""
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.shapes(step))
        args = ocp.args.StandardRestore(abstract(like, shardings(like)))
        with sparing(like) as checkpointer:
            return checkpointer.restore(params_of(self.folder, step), args=args)

    def shapes(self, step: int):
        """Shape and dtype of every parameter of `step`, without reading them."""
        return self.manager.item_metadata(step)["params"].tree

    def close(self) -> None:
        """Wait until everything is on disk."""
        self.manager.wait_until_finished()
        self.manager.close()


def save_params(folder: Path, params) -> None:
    """Make step 0 of a run that has parameters only, in its folder of checkpoints."""
    pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=PIECE), params)
    with sparing(params) as checkpointer:
        checkpointer.save(params_of(folder.resolve(), 0), args=ocp.args.StandardSave(params, pieces))


def params_of(folder: Path, step: int) -> Path:
    return folder / str(step) / "params"


def sparing(like) -> ocp.Checkpointer:
    """Reads and writes arrays such as those of `like`, the largest of them alone on its way, to need little memory."""
    most = 1.1 * max(x.size * x.dtype.itemsize for x in jax.tree.leaves(like)) / 1e9
    return ocp.Checkpointer(ocp.StandardCheckpointHandler(save_concurrent_gb=most, restore_concurrent_gb=most))


def abstract(shapes, shardings):
    """What `restore` wants to know of a state."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
