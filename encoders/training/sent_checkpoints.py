"""Checkpoints of a run in a bucket that Orbax does not write to: it writes to this machine, and whole ones are sent.

The bucket decides: what is on this machine and not there was never saved, and is removed when a run starts.
"""

import hashlib
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from encoders.training import distributed
from encoders.training.checkpoint import COMMITTED_FILE, CheckpointDamaged, Checkpoints
from encoders.training.metric_log import DAMAGED_FOLDER
from encoders.utils.buckets import copy_file, list_files, move_folder, remove_files, transfer_files, write_object
from encoders.utils.errors import UserError
from encoders.utils.files import atomic_dir, find_cache_dir, lock_dir, remove_path

T = TypeVar("T")


class SentCheckpoints(Checkpoints):
    """The checkpoints of a run in a bucket, with copies on this machine. Raises `UserError` for several writers."""

    def __init__(self, folder: Path, keep_checkpoints: int | None = None, owner: str | None = None):
        if distributed.is_multi_process() and keep_checkpoints is not None:
            raise UserError(f"{folder}: several processes write their checkpoints to one folder of a disk or of gs://")
        name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        use = "read" if keep_checkpoints is None else "written"  # a run may be read while it is trained
        copies = find_cache_dir() / "checkpoints" / f"{name}-{use}"
        fetch_steps(folder, copies)
        super().__init__(copies, keep_checkpoints, owner)
        self.bucket_folder, self.run_folder = folder, folder.parent

    def restore(self, step: int, abstract_state) -> tuple:
        return self.restore_copy(step, lambda: super(SentCheckpoints, self).restore(step, abstract_state))

    def restore_params(self, step: int, infer_shardings: Callable) -> dict:
        return self.restore_copy(step, lambda: super(SentCheckpoints, self).restore_params(step, infer_shardings))

    def restore_copy(self, step: int, restore: Callable[[], T]) -> T:
        """Return what `restore` reads; where it finds damage, from a new copy."""
        try:
            return restore()
        except CheckpointDamaged:
            remove_path(self.folder / str(step))
            fetch_step(self.bucket_folder / str(step), self.folder / str(step))
            self.manager.reload()
            return restore()

    def record_saved_step(self, step: int) -> None:
        send_step(self.folder, self.bucket_folder, str(step))
        current_steps = {str(step) for step in self.all_steps()}
        for removed in find_whole_steps(list_files(self.bucket_folder)) - current_steps:
            (self.bucket_folder / removed / COMMITTED_FILE).unlink()  # first, so that no half of it looks whole
            remove_files(self.bucket_folder / removed)
        super().record_saved_step(step)

    def move_damaged(self, steps: list[int]) -> Path:
        folder = self.run_folder / DAMAGED_FOLDER
        for step in steps:
            with suppress(FileNotFoundError):  # another process has moved it
                move_folder(self.bucket_folder / str(step), folder / f"{step}-{secrets.token_hex(4)}")
            remove_path(self.folder / str(step))
        self.manager.reload()
        return folder


def find_whole_steps(names: dict[str, int]) -> set[str]:
    """Return the steps among the files of a folder of checkpoints that end with their mark."""
    return {name.split("/")[0] for name in names if name.endswith(f"/{COMMITTED_FILE}") and name.count("/") == 1}


def send_step(folder: Path, bucket_folder: Path, step: str) -> None:
    """Copy a checkpoint into a bucket, its mark last."""
    names = list_files(folder / step)
    transfer_files(names, lambda name: copy_file(folder / step / name, bucket_folder / step / name))
    write_object(bucket_folder / step / COMMITTED_FILE, b"sent")


def fetch_steps(bucket_folder: Path, folder: Path) -> None:
    """Make the checkpoints of this machine those of a bucket. One process at a time does so."""
    with lock_dir(folder.with_name(f".{folder.name}.fetch"), lambda: None):
        folder.mkdir(parents=True, exist_ok=True)
        whole_steps = find_whole_steps(list_files(bucket_folder))
        for copy in folder.iterdir():
            is_whole = copy.name in whole_steps
            if not is_whole or list_step_files(copy) != list_step_files(bucket_folder / copy.name):
                remove_path(copy)
        for step in sorted(whole_steps):
            if not (folder / step).exists():
                fetch_step(bucket_folder / step, folder / step)


def list_step_files(folder: Path) -> dict[str, int]:
    """Return the bytes of a checkpoint's files, without its marks."""
    return {name: size for name, size in list_files(folder).items() if not name.endswith(COMMITTED_FILE)}


def fetch_step(bucket_folder: Path, folder: Path) -> None:
    """Copy a whole checkpoint from a bucket, unless it is removed there meanwhile."""
    with suppress(FileNotFoundError), atomic_dir(folder) as partial:
        transfer_files(list_step_files(bucket_folder), lambda name: copy_file(bucket_folder / name, partial / name))
        if not (bucket_folder / COMMITTED_FILE).exists():
            raise FileNotFoundError(f"{bucket_folder} was removed")
