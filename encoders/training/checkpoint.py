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

from encoders.training.checksums import changed, checksums

for name in ("absl", "asyncio"):  # what Orbax fails at is raised as well
    logging.getLogger(name).setLevel(logging.CRITICAL)

PIECE = 64 << 20  # bytes that are compressed, and written, at a time: by default it is whole arrays and files of 2 GB


class Damaged(ValueError):
    """A checkpoint that cannot be read, or whose numbers are not those that were saved."""


@contextmanager
def hushed() -> Iterator[None]:
    """Where it fails, what Orbax has begun and drops is not shown, also when it is collected later."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda found: None if abandoned(found) else hook(found)
    yield
    sys.unraisablehook = hook


@contextmanager
def readable(step: int) -> Iterator[None]:
    """Raises `Damaged` in one line where a checkpoint cannot be read."""
    try:
        with hushed():
            yield
    except MemoryError:
        raise
    except Exception as error:  # Orbax's and TensorStore's are of many kinds
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
        raise Damaged(f"checkpoint {step} cannot be read: {line[:200]}") from error


def abandoned(found) -> bool:
    """Whether what nobody can catch is of the reading of other arrays, which Orbax drops when one fails."""
    code, trace = getattr(found.object, "cr_code", None), found.exc_traceback
    files = [code.co_filename] if code else []
    while trace:
        files.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    return "Event loop is closed" in str(found.exc_value) or any("orbax" in name for name in files)


def check(step: int, tree, sums: dict[str, list[int]]) -> None:
    """Raises `Damaged` with the names of the leaves whose checksums differ."""
    if differ := changed(tree, sums):
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise Damaged(f"checkpoint {step} is not what was saved: {', '.join(differ[:3])}{more}")


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
        sums = {"params": checksums(state.params), "rest": checksums(rest)}
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            rest=ocp.args.StandardSave(rest),
            notes=ocp.args.JsonSave(notes | {"checksums": sums}),
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
        """State and notes of `step`, the state with the shapes and shardings of `like`. Raises `Damaged`."""
        rest = {"step": like.step, "moments": like.moments, "guard": like.guard}
        args = ocp.args.Composite(
            params=ocp.args.StandardRestore(like.params),
            rest=ocp.args.StandardRestore(rest),
            notes=ocp.args.JsonRestore(),
        )
        with readable(step):
            found = self.manager.restore(step, args=args)
        for part, sums in found["notes"].get("checksums", {}).items():
            check(step, found[part], sums)
        return like.replace(params=found["params"], **found["rest"]), found["notes"]

    def params(self, step: int, shardings: Callable) -> dict:
        """The parameters of `step` alone, placed as `shardings(shapes)` says. Raises `Damaged`."""
        with readable(step):
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.shapes(step))
            args = ocp.args.StandardRestore(abstract(like, shardings(like)))
            with sparing(like) as checkpointer:
                found = checkpointer.restore(params_of(self.folder, step), args=args)
            notes = self.folder / str(step) / "notes" / "metadata"  # Orbax's name; an imported run has none
            sums = json.loads(notes.read_text(encoding="utf-8")).get("checksums", {}) if notes.exists() else {}
        check(step, found, sums.get("params", {}))
        return found

    def set_aside(self, steps: list[int]) -> Path:
        """Move damaged steps out of the way, so that they can be written again, and return where they are."""
        place = self.folder.with_name("damaged")
        place.mkdir(exist_ok=True)
        for step in steps:
            with suppress(FileNotFoundError):  # another process has done it
                (self.folder / str(step)).rename(place / f"{step}-{secrets.token_hex(4)}")
        self.manager.reload()
        return place

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
    args = ocp.args.PyTreeSave(params, pieces, ocdbt_target_data_file_size=PIECE)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(save_concurrent_gb=most_at_once(params))) as checkpointer:
        checkpointer.save(params_of(folder.resolve(), 0), args=args)


def params_of(folder: Path, step: int) -> Path:
    return folder / str(step) / "params"


def sparing(like) -> ocp.Checkpointer:
    """Reads arrays such as those of `like`, the largest of them alone on its way, to need little memory."""
    return ocp.Checkpointer(ocp.StandardCheckpointHandler(restore_concurrent_gb=most_at_once(like)))


def most_at_once(like) -> float:
    """The GB that may be on their way: those of the largest array."""
    return 1.1 * max(x.size * x.dtype.itemsize for x in jax.tree.leaves(like)) / 1e9


def abstract(shapes, shardings):
    """What `restore` wants to know of a state."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
