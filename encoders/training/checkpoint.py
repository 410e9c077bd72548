"""UPDATE → CHECKPOINT: Orbax behind one thin class."""

from __future__ import annotations

import logging
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """The checkpoints of a run: the newest `keep`, and the one with the lowest held-out loss.

    Beside the state each holds `notes`, a small JSON value: sums not yet logged, and the time spent.
    """

    def __init__(self, folder: Path, keep: int = 2):
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            best_fn=lambda metrics: metrics["loss"],
            best_mode="min",
            cleanup_tmp_directories=True,
        )
        self.manager = ocp.CheckpointManager(folder.resolve(), options=options, item_names=("state", "notes"))

    def save(self, step: int, state, notes: dict, loss: float | None) -> None:
        """Write in the background; `loss` is the held-out loss at this step, if it was measured."""
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes))
        self.manager.save(step, args=args, metrics=None if loss is None else {"loss": loss})

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def steps(self) -> list[int]:
        return sorted(self.manager.all_steps())

    def best(self) -> int | None:
        """The step with the lowest held-out loss, or the latest where none was measured."""
        step = self.manager.best_step()
        return self.latest() if step is None else step

    def restore(self, step: int, like) -> tuple:
        """State and notes of `step`, the state with the shapes and shardings of `like`."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like), notes=ocp.args.JsonRestore())
        found = self.manager.restore(step, args=args)
        return found["state"], found["notes"]

    def close(self) -> None:
        """Wait until everything is on disk."""
        self.manager.wait_until_finished()
        self.manager.close()


def abstract(shapes, shardings):
    """What `restore` wants to know of a state."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
