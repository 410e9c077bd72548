"""Whole files, whole folders and locks on a file system or in a bucket that several processes share."""

import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout, lock_descriptor

from encoders.utils.buckets import is_in_bucket, write_object
from encoders.utils.errors import UserError
from encoders.utils.lease import Lease, read_lease_owner

FORMAT = 2  # of signed JSON files; those of earlier versions have neither format nor digest
NUMBER = (int, float)  # a shape of JSON
LOCK_FILE = ".lock"
NUM_REMOVALS = 40  # of a folder into which a library's threads still write after a failure
LOCK_GRACE_SECONDS = 0.3  # longer than another process's look at the lock takes


class DamagedFile(UserError):
    """A file whose content is not what was written."""


def write_json(path: Path, value: dict) -> None:
    write_file_atomically(path, json.dumps(value, indent=1).encode())


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_named_file(path: Path) -> bytes:
    """Return the hash of a file and its name as sha256sum writes them, which another file's copy does not have."""
    return f"{hash_file(path)}  {path.name}\n".encode()


def sign_json(value: dict) -> dict:
    """Return a JSON object with its format and a digest of its content."""
    value = value | {"format": FORMAT}
    return value | {"digest": compute_json_digest(value)}


def compute_json_digest(value: dict) -> str:
    content = {key: item for key, item in value.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_json_file(path: Path) -> Any:
    """Return the content of a JSON file. Raises `DamagedFile` where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged: {error}") from None


def write_signed_json(path: Path, value: dict) -> None:
    """Write a JSON object that `read_signed_json` can verify."""
    write_json(path, sign_json(value))


def read_signed_json(path: Path) -> dict:
    """Return a JSON object that `sign_json` made. Raises `DamagedFile` if its content has changed."""
    value = read_json_file(path)
    check_signature(value, path)
    return value


def check_signature(value: object, path: Path) -> None:
    """Raise `DamagedFile` for JSON whose digest is not that of its content; an earlier version wrote no digest."""
    if not isinstance(value, dict):
        raise DamagedFile(f"{path} is damaged: it must hold a JSON object")
    if ("format" in value or "digest" in value) and value.get("digest") != compute_json_digest(value):
        raise DamagedFile(f"{path} is damaged: its content differs from what was written")


def check_shape(value: Any, shape: Any, place: object) -> None:
    """Raise `DamagedFile` for JSON of another shape, with the place in it.

    A shape is a type, several types, `[shape]` of a list's items, or a dict of the shapes of keys, which must be there;
    the key `str` means any key.

    >>> check_shape({"steps": "7"}, {"steps": int}, "result.json")
    Traceback (most recent call last):
    encoders.utils.files.DamagedFile: result.json, steps: '7' is not of type int
    """
    if isinstance(shape, dict | list):
        check_shape(value, type(shape), place)
        if isinstance(shape, list):
            items = [(number, item, shape[0]) for number, item in enumerate(value)]
        else:
            inner = dict.fromkeys(value, shape[str]) if str in shape else shape
            if missing := inner.keys() - value.keys():
                raise DamagedFile(f"{place} lacks {', '.join(sorted(missing))}")
            items = [(key, value[key], item_shape) for key, item_shape in inner.items()]
        for key, item, item_shape in items:
            check_shape(item, item_shape, f"{place}, {key}")
    elif not isinstance(value, shape):
        names = [cls.__name__ for cls in (shape if isinstance(shape, tuple) else (shape,))]
        raise DamagedFile(f"{place}: {repr(value)[:80]} is not of type {' or '.join(names)}")


def write_file_atomically(path: Path, content: bytes) -> None:
    """Write a file as a whole, or leave the old one."""
    if is_in_bucket(path):  # where every write is whole
        write_object(path, content)
        return
    with claim_partial(path, lambda partial: os.open(partial, os.O_WRONLY | os.O_CREAT, 0o666)) as partial:
        partial.write_bytes(content)
        partial.rename(path)


@contextmanager
def atomic_dir(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which gets its name at the end; a failure removes it and the parents made for it."""
    new_parents = [parent for parent in folder.parents if not parent.exists()]

    def open_folder(partial: Path) -> int:
        partial.mkdir(parents=True, exist_ok=True)
        try:
            return os.open(partial, os.O_RDONLY)
        except OSError:
            with suppress(OSError):  # not empty: another process fills it
                partial.rmdir()
            raise

    try:
        with claim_partial(folder, open_folder) as partial:
            for path in partial.iterdir():  # of a killed process
                remove_path(path)
            yield partial
            partial.rename(folder)
    except BaseException:
        with suppress(OSError):  # another process may use them
            for parent in new_parents:
                parent.rmdir()
        raise


@contextmanager
def claim_partial(path: Path, open_partial: Callable[[Path], int]) -> Iterator[Path]:
    """Yield a name beside `path` for what will be renamed to it, and remove it after a failure.

    `open_partial` makes it, if needed, and returns a descriptor. It is locked as long as its process lives: the next
    process takes the name of a killed one, so that nothing piles up. Some network disks lock no folders; there a name
    of its own is taken in the end.
    """
    for suffix in ("0", "1", secrets.token_hex(4)):
        partial = path.with_name(f".{path.name}.partial-{suffix}")
        with ExitStack() as stack:
            descriptor = open_partial(partial)
            stack.callback(os.close, descriptor)
            is_ours = len(suffix) > 1
            with suppress(OSError):  # renamed by its owner meanwhile, or not lockable
                is_locked = lock_descriptor(descriptor, blocking=False)
                is_ours |= is_locked and os.path.samestat(os.fstat(descriptor), os.stat(partial))
            if is_ours:
                try:
                    yield partial
                except BaseException:
                    for _ in range(NUM_REMOVALS):
                        remove_path(partial)
                        if not partial.exists():
                            break
                        time.sleep(0.05)
                    raise
                return


def find_cache_dir() -> Path:
    """Return the user's folder of caches. Raises `RuntimeError` where the home folder is unknown."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "encoders"


def remove_path(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def lock_dir(
    folder: Path, on_wait: Callable[[], None], on_watch: Callable[[str], None] = lambda owner: None
) -> Iterator[None]:
    """Hold the lock of `folder`, which is made if needed; `on_wait` is called once if another process holds it.

    The lock ends with its process, and its file names the owner. The holder may remove the folder. In a bucket it is a
    `Lease`, and `on_watch` is called with its owner before it is watched.
    """
    if is_in_bucket(folder):
        lease = Lease(folder, describe_this_process())
        if not lease.take(on_watch):
            on_wait()
            while not lease.take(on_watch):
                pass
        try:
            yield
        finally:
            lease.release()
        return
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
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, describe_this_process().encode(), 0)


def describe_this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"


def lock_owner(folder: Path) -> str | None:
    """Return the process that holds the lock of `folder`, with host and time, or None."""
    if is_in_bucket(folder):
        return read_lease_owner(folder)
    try:
        with open(folder / LOCK_FILE, "r+b") as file:
            for _ in range(3):  # other processes may look at the same moment
                if lock_descriptor(file.fileno(), blocking=False):
                    return None
                time.sleep(0.01)
            return file.read().decode() or "another process"
    except FileNotFoundError:
        return None
