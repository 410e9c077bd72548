"""A bucket in the memory of this process, in place of gcsfs and TensorStore: what runs without either's servers."""

from pathlib import Path

import fsspec
import tensorstore
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from encoders.utils import buckets, lease


class MemoryBuckets(MemoryFileSystem):
    protocol = ("gs", "gcs")
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://").removeprefix("gcs://"))

    def ukey(self, path):
        return str(self.info(path)["created"])


def install_memory_buckets(monkeypatch, folder: Path) -> None:
    """Let gs:// be memory, and keep leases in `folder`."""
    monkeypatch.setattr(MemoryBuckets, "store", {})
    monkeypatch.setattr(MemoryBuckets, "pseudo_dirs", [""])
    monkeypatch.setitem(buckets.PACKAGES, "gs", ("fsspec", "fsspec"))
    for protocol in MemoryBuckets.protocol:
        fsspec.register_implementation(protocol, MemoryBuckets, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()

    def open_key_values(path: Path):
        place = folder / str(path).replace("/", "_")
        return tensorstore.KvStore.open({"driver": "file", "path": f"{place}/"}).result()

    monkeypatch.setattr(lease, "open_key_values", open_key_values)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
