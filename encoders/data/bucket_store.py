"""Stores in buckets, which are read through copies on this machine.

A copy is found by the store's key, which is a hash of what it was made of. `store.json`, which holds the checksums of
all other files, is the last file that is sent: a store without it is not there yet.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from encoders.data.beam_runner import LogFunction
from encoders.data.store import STORE_FILE, Store
from encoders.utils.buckets import copy_file, is_in_bucket, list_files, parse_path, transfer_files
from encoders.utils.errors import UserError
from encoders.utils.files import (
    DamagedFile,
    atomic_dir,
    find_cache_dir,
    hash_file,
    lock_dir,
    read_signed_json,
    remove_path,
)
from encoders.utils.lease import is_lockable


def find_local_stores(store_dir: str) -> Path:
    """Return the folder of this machine that holds the stores of `store_dir`, or copies of those in a bucket. Raises
    `UserError` where the home folder is unknown."""
    if not is_in_bucket(store_dir):
        return Path(store_dir)
    try:
        return find_cache_dir() / "stores"
    except RuntimeError:
        raise UserError(f"{store_dir} needs a folder for copies of stores; set XDG_CACHE_HOME") from None


def open_store(path: Path) -> Store:
    """Open a store, or a copy of one in a bucket. Raises `UserError` where it is not complete, and `DamagedFile` where
    a copy differs from what was written."""
    return Store.open(fetch_store(path) if is_in_bucket(path) else path)


def fetch_store(bucket_path: Path) -> Path:
    """Return the copy of a store in a bucket, and make it first if there is none yet."""
    path = find_local_stores(str(bucket_path)) / bucket_path.name
    lock = path.with_name(f".{path.name}.copy")
    if not path.exists():
        with lock_dir(lock, lambda: None):
            if not path.exists():  # another process may have made it meanwhile
                make_copy(bucket_path, path)
            remove_path(lock)
    return path


def make_copy(bucket_path: Path, path: Path) -> None:
    """Copy a store from a bucket to `path`. Raises `DamagedFile` for a file that differs from its checksum."""
    if not (bucket_path / STORE_FILE).exists():
        raise UserError(f"{bucket_path} is not a prepared store (no {STORE_FILE})")
    with atomic_dir(path) as partial:
        copy_file(bucket_path / STORE_FILE, partial / STORE_FILE)
        files = read_signed_json(partial / STORE_FILE)["files"]

        def fetch_file(name: str) -> None:
            copy_file(bucket_path / name, partial / name)
            if hash_file(partial / name) != files[name]:
                raise DamagedFile(f"{bucket_path / name} is damaged: remove {bucket_path}, and it is prepared anew")

        transfer_files(files, fetch_file)


def send_store(store: Store, bucket_path: Path) -> None:
    """Copy a store of this machine into a bucket, its checksums last."""
    store.verify()
    transfer_files(store.metadata["files"], lambda name: copy_file(store.path / name, bucket_path / name))
    sent, expected = list_files(bucket_path), list_files(store.path)
    if missing := sorted(name for name in store.metadata["files"] if sent.get(name) != expected[name]):
        raise OSError(f"{bucket_path} lacks {', '.join(missing)} after they were sent")
    copy_file(store.path / STORE_FILE, bucket_path / STORE_FILE)


def lock_bucket_store(bucket_path: Path, log: LogFunction) -> AbstractContextManager[None]:
    """Let one process at a time make a store in a bucket that has leases; elsewhere each makes the same bytes."""
    if not is_lockable(bucket_path):
        return nullcontext()
    folder = bucket_path.with_name(f".{bucket_path.name}.work")
    return lock_dir(folder, lambda: log(f"{bucket_path}: another process prepares it; waiting"))


def open_or_send_store(store_dir: str, key: str, make_store: Callable[[], Store], log: LogFunction) -> Store:
    """Return a copy of the store `key` in a bucket; where there is none, make it with `make_store` and send it."""
    bucket_path = parse_path(store_dir) / key
    if not (bucket_path / STORE_FILE).exists():
        with lock_bucket_store(bucket_path, log):
            if not (bucket_path / STORE_FILE).exists():  # another process may have made it meanwhile
                store = make_store()
                log(f"store: sent to {bucket_path}")
                send_store(store, bucket_path)
                return store
    log(f"store: a copy of {bucket_path}")
    return open_store(bucket_path)
