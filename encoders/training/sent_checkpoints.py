"""Checkpoints of a run in a bucket that Orbax does not write to: it writes to this machine, and whole ones are sent.

The bucket decides: what is on this machine and not there was never saved, and is removed when a run starts.
"""

import hashlib
from pathlib import Path

from encoders.training import distributed
from encoders.training.checkpoint import COMMITTED_FILE, Checkpoints
from encoders.training.metric_log import DAMAGED_FOLDER
from encoders.utils.buckets import copy_file, list_files, move_folder, remove_files, transfer_files, write_object
from encoders.utils.errors import UserError
from encoders.utils.files import atomic_dir, find_cache_dir, remove_path

NOTES_FILE = "notes/metadata"  # Orbax's name; it holds the checksums of a step


class SentCheckpoints(Checkpoints):
    """The checkpoints of a run in a bucket, with copies on this machine."""

    def __init__(self, folder: Path, keep_checkpoints: int | None = None, owner: str | None = None):
        if distributed.is_multi_process():
            raise UserError(f"{folder}: several processes write their checkpoints to one folder of a disk or of gs://")
        name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        use = "read" if keep_checkpoints is None else "written"  # a run may be read while it is trained
        copies = find_cache_dir() / "checkpoints" / f"{name}-{use}"
        copies.mkdir(parents=True, exist_ok=True)
        fetch_steps(folder, copies)
        super().__init__(copies, keep_checkpoints, owner)
        self.bucket_folder, self.run_folder = folder, folder.parent

    def record_saved_step(self, step: int) -> None:
        send_step(self.folder, self.bucket_folder, str(step))
        kept = {str(step) for step in self.all_steps()}
        for removed in find_whole_steps(list_files(self.bucket_folder)) - kept:
            (self.bucket_folder / removed / COMMITTED_FILE).unlink()  # first, as half of it is none
            remove_files(self.bucket_folder / removed)
        super().record_saved_step(step)

    def move_damaged(self, steps: list[int]) -> Path:
        for step in steps:
            move_folder(self.bucket_folder / str(step), self.run_folder / DAMAGED_FOLDER / str(step))
            remove_path(self.folder / str(step))
        self.manager.reload()
        return self.run_folder / DAMAGED_FOLDER


def find_whole_steps(names: dict[str, int]) -> set[str]:
    """Return the steps among the files of a folder of checkpoints that end with their mark."""
    return {name.split("/")[0] for name in names if name.endswith(f"/{COMMITTED_FILE}") and name.count("/") == 1}


def send_step(folder: Path, bucket_folder: Path, step: str) -> None:
    """Copy a checkpoint into a bucket, its mark last."""
    names = list_files(folder / step)
    transfer_files(names, lambda name: copy_file(folder / step / name, bucket_folder / step / name))
    write_object(bucket_folder / step / COMMITTED_FILE, b"sent")


def fetch_steps(bucket_folder: Path, folder: Path) -> None:
    """Make the checkpoints of this machine those of a bucket."""
    whole = find_whole_steps(list_files(bucket_folder))
    for copy in folder.iterdir():
        notes, copied_notes = bucket_folder / copy.name / NOTES_FILE, copy / NOTES_FILE
        is_same = copy.name in whole and copied_notes.exists() and copied_notes.read_bytes() == notes.read_bytes()
        if not is_same:
            remove_path(copy)
    for step in sorted(whole):
        if not (folder / step).exists():
            fetch_step(bucket_folder / step, folder / step)


def fetch_step(bucket_folder: Path, folder: Path) -> None:
    """Copy a whole checkpoint from a bucket."""
    names = [name for name in list_files(bucket_folder) if name != COMMITTED_FILE]
    with atomic_dir(folder) as partial:
        transfer_files(names, lambda name: copy_file(bucket_folder / name, partial / name))
