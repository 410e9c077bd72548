"""Paths in buckets (gs://, s3://, az://, hf://) beside those of this machine, as `etils.epath` and fsspec have them.

A bucket has neither folders nor renames, and an object is written as a whole or not at all.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from etils import epath

from encoders.utils.errors import UserError, describe_error, is_disk_full, is_refusal

AnyPath = Path | epath.Path  # of this machine or in a bucket; both have the methods of `pathlib.Path`
# The package of fsspec that reaches the buckets of a scheme, and what installs it.
PACKAGES = {
    "gs": ("gcsfs", "encoders[gcs]"),
    "s3": ("s3fs", "encoders[s3]"),
    "az": ("adlfs", "adlfs"),
    "hf": ("huggingface_hub", "huggingface_hub"),
}
RETRY_SECONDS = (0.5, 2.0, 8.0)  # before a write is tried again
REACHED_BUCKETS: set[str] = set()  # by this process
NUM_TRANSFERS = 16  # files that are sent or fetched at a time


def find_scheme(path: str | os.PathLike) -> str | None:
    """Return the scheme of a path in a bucket, such as "gs", or None for a path of this machine."""
    scheme, mark, _ = os.fspath(path).partition("://")
    return scheme if mark else None


def is_in_bucket(path: str | os.PathLike) -> bool:
    return find_scheme(path) is not None


def check_local_paths(*paths: str | None) -> None:
    """Raise `UserError` for a path in a bucket where only this machine's are taken."""
    for path in paths:
        if path and is_in_bucket(path):
            raise UserError(f"{path} is in a bucket, and here only a path of this machine is taken")


def parse_path(name: str | os.PathLike) -> AnyPath:
    """Return a path of this machine, or one in a bucket, which has the same methods.

    Raises `UserError` for another scheme, and where the package that reaches it is not installed.
    """
    if not (scheme := find_scheme(name)):
        return Path(name)
    if scheme not in PACKAGES:
        raise UserError(f"{name}: paths start with {', '.join(f'{known}://' for known in PACKAGES)} or are local")
    package, requirement = PACKAGES[scheme]
    if find_spec(package) is None:
        raise UserError(f"{name}: {scheme}:// needs {package}: pip install '{requirement}'")
    set_client_options(scheme)
    path = epath.Path(name)
    check_reachable(path)
    return path


@cache
def set_client_options(scheme: str) -> None:
    """Let fsspec ask for every listing anew, since others write to the same bucket, and not log what it raises; let
    epath use fsspec where TensorFlow is installed too."""
    os.environ["EPATH_USE_TF"] = "false"
    import fsspec

    fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    for name in (PACKAGES[scheme][0], "fsspec"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def check_reachable(path: AnyPath) -> None:
    """Raise `ConnectionError` where a bucket does not answer, or not to this user, when it is first asked."""
    bucket = str(path).split("/")[2]
    if bucket in REACHED_BUCKETS:
        return
    try:
        path.exists()
    except Exception as error:  # clients raise many types
        raise ConnectionError(f"{path} cannot be read: {describe_error(error)}") from error
    REACHED_BUCKETS.add(bucket)


def make_absolute(path: AnyPath) -> AnyPath:
    return path if is_in_bucket(path) else path.resolve()


def get_size(path: AnyPath) -> int:
    """Return the bytes of a file."""
    return path.stat().length if is_in_bucket(path) else path.stat().st_size


def get_modified_at(path: AnyPath) -> float:
    """Return when a file was written, in seconds since the epoch."""
    return open_file_system(path).modified(str(path)).timestamp() if is_in_bucket(path) else path.stat().st_mtime


def get_version(path: AnyPath) -> list[int | str]:
    """Return what changes when a file is written anew: its size, and its time or what its bucket says of it."""
    if not is_in_bucket(path):
        return [path.stat().st_size, path.stat().st_mtime_ns]
    return [get_size(path), open_file_system(path).ukey(str(path))]


def open_text(path: AnyPath, errors: str = "strict") -> TextIO:
    """Open a file of UTF-8 with or without its mark; lines end at "\n" alone."""
    return io.TextIOWrapper(path.open("rb"), encoding="utf-8-sig", errors=errors, newline="\n")


def open_file_system(path: str | Path) -> Any:
    """Return fsspec's file system of a path."""
    import fsspec

    return fsspec.core.url_to_fs(str(path))[0]


def list_files(folder: AnyPath) -> dict[str, int]:
    """Return the bytes of all files below a folder, by their names relative to it."""
    if not is_in_bucket(folder):
        return {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    file_system = open_file_system(folder)
    found = file_system.find(str(folder), detail=True)
    start = len(file_system._strip_protocol(str(folder))) + 1
    return {name[start:]: info["size"] for name, info in sorted(found.items()) if not name.endswith("/")}


def transfer_files(names: Iterable[str], transfer: Callable[[str], None]) -> None:
    """Call `transfer` with every name, several at a time, and raise the first error."""
    with ThreadPoolExecutor(NUM_TRANSFERS) as threads:
        for _ in threads.map(transfer, names):
            pass


def write_object(path: AnyPath, content: bytes) -> None:
    """Write a file in a bucket, as a whole."""
    call_with_retries(lambda: open_file_system(path).pipe_file(str(path), content))


def copy_file(source: AnyPath, target: AnyPath) -> None:
    """Copy a file between this machine and buckets. Raises `OSError` where the copy has another size."""
    if not is_in_bucket(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    if is_in_bucket(source) and is_in_bucket(target):
        call_with_retries(partial(copy_stream, source, target))
    elif is_in_bucket(source):
        call_with_retries(partial(open_file_system(source).get_file, str(source), str(target)))
    elif is_in_bucket(target):
        call_with_retries(partial(open_file_system(target).put_file, str(source), str(target)))
    else:
        shutil.copyfile(source, target)
    if get_size(target) != get_size(source):
        raise OSError(f"{target} has {get_size(target)} bytes, and {source} has {get_size(source)}")


def copy_stream(source: AnyPath, target: AnyPath) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 8 << 20)


def call_with_retries(call: Callable[[], object]) -> None:
    """Call what can be done twice, and again where a bucket's client fails for a reason that may pass.

    Clients ask again by themselves, but not where the answer to an upload is lost: it was done, and they fail.
    """
    for seconds in (*RETRY_SECONDS, None):
        try:
            call()
            return
        except Exception as error:  # clients raise many types
            if seconds is None or is_refusal(error) or is_disk_full(error):
                raise
        time.sleep(seconds)


def move_folder(source: AnyPath, target: AnyPath) -> None:
    """Rename a folder; in a bucket copy its files, and then remove them. Raises `FileNotFoundError`."""
    if not is_in_bucket(source):
        source.rename(target)
        return
    names = list_files(source)
    if not names:
        raise FileNotFoundError(f"{source} holds nothing")
    transfer_files(names, lambda name: copy_file(source / name, target / name))
    remove_files(source)


def remove_files(folder: AnyPath) -> None:
    """Remove all files below a folder in a bucket."""
    file_system = open_file_system(folder)
    remove = lambda name: call_with_retries(lambda: file_system.rm_file(str(folder / name)))
    transfer_files(list_files(folder), remove)
