"""Copies of runs between folders of this machine and buckets."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from encoders.run.folder import CHECKPOINTS_FOLDER, RECORD_FILE, RunError, lock_run, read_run_record
from encoders.training.checkpoint import COMMITTED_FILE
from encoders.utils.buckets import (
    copy_file,
    is_in_bucket,
    list_files,
    parse_path,
    transfer_files,
    write_object,
)
from encoders.utils.files import LOCK_FILE, atomic_dir
from encoders.utils.lease import LEASE_FILE, can_be_locked

COPYING_FILE = ".copying"  # in a bucket, until all files are there
UNFINISHED_MARK = ".orbax-checkpoint-tmp"  # in the name of a checkpoint that Orbax still writes on a disk
NOT_COPIED = (LOCK_FILE, LEASE_FILE, COPYING_FILE, COMMITTED_FILE)


def copy_run(run: str, target: str, log: Callable[[str], None]) -> None:
    """Copy a run to a new folder, its record last; after an interruption the same call ends the copy.

    Checkpoints that were not finished are left out. Raises `RunError` where `target` holds something else, and
    `RunInUse` while a process trains the run.
    """
    source, folder = parse_path(run), parse_path(target)
    read_run_record(source)
    existing = list_files(folder)
    if existing and COPYING_FILE not in existing:
        raise RunError(f"{folder} exists; choose another name, or remove it")
    with lock_run(source, log) if can_be_locked(source) else nullcontext():
        names = list_run_files(source)
        with nullcontext(folder) if is_in_bucket(folder) else atomic_dir(folder) as copied:
            if is_in_bucket(folder):
                write_object(copied / COPYING_FILE, str(source).encode())
            transfer_files(names, lambda name: copy_file(source / name, copied / name))
            if is_in_bucket(folder):
                mark_committed(copied, names)
            copy_file(source / RECORD_FILE, copied / RECORD_FILE)
        if is_in_bucket(folder):
            (folder / COPYING_FILE).unlink()
    log(f"{folder}: {len(names) + 1} files of {source}")


def list_run_files(folder: Path) -> list[str]:
    """Return the names of a run's files but its record, without locks and without unfinished checkpoints."""
    files = list_files(folder)
    names = [name for name in files if name.rpartition("/")[2] not in NOT_COPIED and name != RECORD_FILE]
    if is_in_bucket(folder):
        is_finished = lambda name: "/".join([*name.split("/")[:2], COMMITTED_FILE]) in files
    else:
        is_finished = lambda name: UNFINISHED_MARK not in name
    return [name for name in names if not name.startswith(f"{CHECKPOINTS_FOLDER}/") or is_finished(name)]


def mark_committed(folder: Path, names: list[str]) -> None:
    """Write the files that tell Orbax that the copied checkpoints and their parts are whole."""
    checkpoints = [name.split("/") for name in names if name.startswith(f"{CHECKPOINTS_FOLDER}/")]
    parts = {"/".join(name[:depth]) for name in checkpoints for depth in (2, 3) if len(name) > depth}
    transfer_files(sorted(parts), lambda part: write_object(folder / part / COMMITTED_FILE, b"copied"))
