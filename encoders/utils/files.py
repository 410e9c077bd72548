"""Whole files, whole folders and locks on a file system that several processes share."""

import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout, lock_descriptor

from encoders.utils.errors import UserError

FORMAT = 2  # of signed JSON files; those of earlier versions have neither format nor digest
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LOCK_FILE = ".lock"
LOCK_GRACE_SECONDS = 0.3  # longer than another process's look at the lock takes


class DamagedFile(UserError):
    """A file whose content is not what was written."""


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error of Python, Orbax or TensorStore says that a disk or a quota is full."""
    is_named = any(os.strerror(code) in str(error) for code in DISK_FULL_ERRNOS)
    return is_named and isinstance(error, (OSError, ValueError))


def check_local_paths(*paths: str | None) -> None:
    """Raise `ValueError` for a path in an object store, which lacks locks, renames and memory maps."""
    for path in paths:
        if path and "://" in path:
            raise UserError(f"{path} is not a folder of this machine; mount the bucket or copy it")


def write_json(path: Path, value: dict) -> None:
    write_file_atomically(path, json.dumps(value, indent=1).encode())


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sign_json(value: dict) -> dict:
    """Return a JSON object with its format and a digest of its content."""
    value = value | {"format": FORMAT}
    return value | {"digest": compute_json_digest(value)}


def compute_json_digest(value: dict) -> str:
    content = {key: item for key, item in value.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_signed_json(path: Path) -> dict:
    """Return a JSON object that `sign_json` made. Raises `DamagedFile` if its content has changed."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged: {error}") from None
    check_signature(value, path)
    return value


def check_signature(value: object, path: Path) -> None:
    """Raise `DamagedFile` for JSON whose digest is not that of its content; an earlier version wrote no digest."""
    if not isinstance(value, dict):
        raise DamagedFile(f"{path} is damaged: it must hold a JSON object")
    if ("format" in value or "digest" in value) and value.get("digest") != compute_json_digest(value):
        raise DamagedFile(f"{path} is damaged: its content differs from what was written")


def write_file_atomically(path: Path, content: bytes) -> None:
    """Write a file as a whole, or leave the old one."""
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        partial.write_bytes(content)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_dir(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which gets its name at the end; a failure removes it and the parents made for it."""
    partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")  # hosts may share process numbers
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # another process may use them
            for parent in new_parents:
                parent.rmdir()
        raise


@contextmanager
def lock_dir(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of `folder`, which is made if needed; `on_wait` is called once if another process holds it.

    The lock ends with its process, and its file names the owner. The holder may remove the folder.
    """
    lock = FileLock(folder / LOCK_FILE, on_acquired=write_lock_owner)
    while not lock.is_locked:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=LOCK_GRACE_SECONDS)
        except Timeout:
            on_wait()
            with suppress(FileNotFoundError):
                lock.acquire()
        except FileNotFoundError:  # the holder has removed the folder
            continue
    try:
        yield
    finally:
        lock.release()


def write_lock_owner(lock_fd: int) -> None:
    owner = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, owner.encode(), 0)


def lock_owner(folder: Path) -> str | None:
    """Return the process that holds the lock of `folder`, with host and time, or None."""
    try:
        with open(folder / LOCK_FILE, "r+b") as file:
            for _ in range(3):  # other processes may look at the same moment
                if lock_descriptor(file.fileno(), blocking=False):
                    return None
                time.sleep(0.01)
            return file.read().decode() or "another process"
    except FileNotFoundError:
        return None
