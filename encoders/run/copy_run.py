"""Copies of runs between folders of this machine and buckets."""

from collections.abc import Callable
from contextlib import ExitStack
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
from encoders.utils.lease import LEASE_FILE, is_lockable

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
    with ExitStack() as stack:
        if is_lockable(source):
            stack.enter_context(lock_run(source, log))
        if is_in_bucket(folder):
            if is_lockable(folder):
                stack.enter_context(lock_run(folder, log))
            num_files = copy_to_bucket(source, folder)
        elif folder.exists():
            raise RunError(f"{folder} exists; choose another name, or remove it")
        else:
            num_files = copy_files(source, stack.enter_context(atomic_dir(folder)))
    log(f"{folder}: {num_files} files of {source}")


def copy_to_bucket(source: Path, folder: Path) -> int:
    """Copy a run into a bucket, where a file says that it is not whole yet; return the number of files."""
    existing, mark = set(list_files(folder)) - {LEASE_FILE}, folder / COPYING_FILE
    if existing and (COPYING_FILE not in existing or mark.read_text() != str(source)):
        raise RunError(f"{folder} exists; choose another name, or remove it")
    if RECORD_FILE in existing:  # interrupted at the very end
        mark.unlink()
        return len(existing) - 1
    write_object(mark, str(source).encode())
    for stale in existing - {COPYING_FILE, *list_run_files(source)}:
        (folder / stale).unlink()
    num_files = copy_files(source, folder)
    mark.unlink()
    return num_files


def copy_files(source: Path, folder: Path) -> int:
    """Copy the files of a run, its record last, and return their number."""
    names = list_run_files(source)
    transfer_files(names, lambda name: copy_file(source / name, folder / name))
    if is_in_bucket(folder):
        mark_committed(folder, names)
    copy_file(source / RECORD_FILE, folder / RECORD_FILE)
    return len(names) + 1


def list_run_files(folder: Path) -> list[str]:
    """Return the names of a run's files but its record, without locks and without unfinished checkpoints."""
    files = list_files(folder)

    def is_finished(name: str) -> bool:
        if not name.startswith(f"{CHECKPOINTS_FOLDER}/"):
            return True
        mark = "/".join([*name.split("/")[:2], COMMITTED_FILE])
        return mark in files if is_in_bucket(folder) else UNFINISHED_MARK not in name

    names = [name for name in files if name.rpartition("/")[2] not in NOT_COPIED and name != RECORD_FILE]
    return [name for name in names if is_finished(name)]


def mark_committed(folder: Path, names: list[str]) -> None:
    """Write the files that tell Orbax that the copied checkpoints and their parts are whole."""
    checkpoints = [name.split("/") for name in names if name.startswith(f"{CHECKPOINTS_FOLDER}/")]
    parts = {"/".join(name[:depth]) for name in checkpoints for depth in (2, 3) if len(name) > depth}
    transfer_files(sorted(parts), lambda part: write_object(folder / part / COMMITTED_FILE, b"copied"))
