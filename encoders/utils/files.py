"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def catch_disk_full(folder: Path) -> Iterator[None]:
    """Raises `ValueError` in one line where `folder` is on a full disk; Orbax has errors of its own for that."""
    try:
        yield
    except (OSError, ValueError) as error:
        if not any(os.strerror(code) in str(error) for code in DISK_FULL_ERRNOS):
            raise
        raise ValueError(
            f"no space is left in {folder}; what was saved before is whole, and the same command goes on from it"
        ) from error


def check_local_paths(*paths: str | None) -> None:
    """Raises `ValueError` for a place in an object store, of which there is no lock, rename or memory map."""
    for place in paths:
        if place and "://" in place:
            raise ValueError(
                f"{place} is no folder of this machine; runs, stores and texts lie in folders: mount the bucket or copy"
            )


def write_json(path: Path, value: dict) -> None:
    """Write a JSON file that is either whole or not there."""
    write_file_atomically(path, json.dumps(value, indent=1).encode())


def write_file_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either whole or not there."""
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        partial.write_bytes(content)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_dir(folder: Path) -> Iterator[Path]:
    """A folder to fill that gets its name when it is whole, and is gone, with those made for it, if that fails.

    Raises `OSError` where another one has got the name meanwhile.
    """
    partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")  # hosts may share process numbers
    made = [parent for parent in folder.parents if not parent.exists()]
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # another process may have put something there
            for parent in made:
                parent.rmdir()
        raise


@contextmanager
def lock_dir(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Keeps `folder`, which is made if it is not there, for this process; `wait` is called while another has it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(handle, fcntl.LOCK_EX)
            if is_same_dir(handle, folder):  # the one who had it may have removed it
                yield
                return
        finally:
            os.close(handle)


def is_same_dir(dir_fd: int, folder: Path) -> bool:
    """Whether an opened folder is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(dir_fd), os.stat(folder))
    except FileNotFoundError:
        return False
