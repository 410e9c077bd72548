"""Reader of PyTorch files that executes nothing they contain.

torch.save pickles descriptions of tensors, and a pickle may call any function by its name. Here the names that rebuild
a tensor map to functions of this module, and every other name to an `InertStub`: nothing is imported, and no code of
the file is executed. Both layouts are read: the zip archive, and the plain file from before PyTorch 1.6.
"""

from __future__ import annotations

import math
import pickle
import reprlib
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from encoders.utils.errors import UserError

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the layout before PyTorch 1.6
STORAGE_DTYPES = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}


class CheckpointError(UserError):
    """Raised for a published checkpoint that cannot be read or written."""


@dataclass(frozen=True)
class TorchStorage:
    """Description of the values behind one or more tensors."""

    key: str
    dtype: np.dtype
    num_elements: int


@dataclass(frozen=True)
class TorchTensor:
    """A tensor as a view of its storage."""

    storage: TorchStorage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements

    def check_bounds(self, num_elements: int) -> None:
        """Check that the view lies within `num_elements` elements. Raises `ValueError`."""
        values = (self.offset, *self.shape, *self.strides)
        if not all(type(n) is int and 0 <= n < 2**63 for n in values) or len(self.shape) != len(self.strides):
            description = reprlib.repr((self.offset, self.shape, self.strides))
            raise UserError(f"offset, shape and strides {description} do not make a tensor")
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        if all(self.shape) and last >= num_elements:
            raise UserError(f"a tensor of shape {self.shape} reaches beyond its storage of {num_elements}")

    def view_storage(self, storage_values: np.ndarray) -> np.ndarray:
        """Return the tensor as a view of its storage's values, which may be fewer than declared."""
        self.check_bounds(len(storage_values))
        if math.prod(self.shape) > len(storage_values):
            raise UserError(f"a tensor of shape {self.shape} repeats the {len(storage_values)} values of its storage")
        strides = [stride * storage_values.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(storage_values[self.offset :], self.shape, strides, writeable=False)


class InertStub:
    """Replacement for any other object of a pickle: it can be made, called and filled, and does nothing."""

    def __init__(self, *_, **__):
        pass

    def __call__(self, *_, **__):
        return InertStub()

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.__dict__.update({name: value for name, value in state.items() if isinstance(name, str)})

    def __setitem__(self, *_):
        pass

    append = extend = __setitem__


def rebuild_tensor(storage, offset, shape, strides, *_) -> TorchTensor:
    if not isinstance(storage, TorchStorage):
        raise UserError("a tensor lacks a storage")
    tensor = TorchTensor(storage, offset, tuple(shape), tuple(strides))
    tensor.check_bounds(storage.num_elements)
    return tensor


def rebuild_parameter(tensor, *_) -> Any:
    return tensor


def fill_mapping(target, items: list) -> Any:
    """Return `target` with alternating keys and values; the hash of a key other than text or integers may not end."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(key, str | int):
            target[key] = value
    return target


ALLOWED_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): lambda *_: {},
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
}


class RestrictedUnpickler(pickle._Unpickler):
    """Unpickler that returns a `TorchTensor` for each tensor.

    It extends Python's own reader: the one in C allocates as many objects as a few bytes of the file declare.
    """

    def __init__(self, file):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, TorchStorage] = {}

    def find_class(self, module: str, name: str):
        kind = name.removesuffix("Storage")
        if module == "torch" and kind in STORAGE_DTYPES:
            return kind
        return ALLOWED_GLOBALS.get((module, name), InertStub)

    def persistent_load(self, pid) -> TorchStorage:
        match pid:
            case ("storage", str(kind), str(key), _, int(size), *rest) if kind in STORAGE_DTYPES and size >= 0:
                if rest and rest[0] is not None:
                    raise UserError("a storage is a view of another one, which is not supported")
                return self.storages.setdefault(key, TorchStorage(key, np.dtype(STORAGE_DTYPES[kind]), size))
        raise UserError(f"a stored object has an unknown kind: {reprlib.repr(pid)}")

    def load_build(self):
        """Set the state of stubs only: it could change a tensor or a function."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], InertStub):
            self.stack[-1].__setstate__(state)

    def load_setitems(self):
        items = self.pop_mark()
        fill_mapping(self.stack[-1], items)

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        fill_mapping(self.stack[-1], [key, value])

    def load_dict(self):
        mapping = fill_mapping({}, self.pop_mark())  # which replaces self.append
        self.append(mapping)

    dispatch = pickle._Unpickler.dispatch | {
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.ADDITEMS[0]: lambda self: self.pop_mark(),  # of a set, which holds no tensors
        pickle.FROZENSET[0]: lambda self: (self.pop_mark(), self.append(InertStub())),
        pickle.BYTEARRAY8[0]: pickle._Unpickler.load_binbytes8,  # Python's own allocates before it reads
    }


def load_torch_file(path: Path) -> tuple[Any, Callable[[TorchTensor], np.ndarray]]:
    """Return the content that `torch.save` wrote to `path`, and a function that reads one of its tensors.

    Raises `CheckpointError` for any other and for a damaged file.
    """
    with wrap_read_errors(path):
        content, read_storage = _read_zip_archive(path) if zipfile.is_zipfile(path) else _read_legacy_file(path)

    def read_tensor(tensor: TorchTensor) -> np.ndarray:
        with wrap_read_errors(path):
            return tensor.view_storage(read_storage(tensor.storage))

    return content, read_tensor


@contextmanager
def wrap_read_errors(path: Path) -> Iterator[None]:
    """Turn any exception into one that names the file: damaged pickles and archives raise almost anything."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{path.name} is not a complete PyTorch file: {type(error).__name__}: {error}") from None


def _read_zip_archive(path: Path) -> tuple[Any, Callable[[TorchStorage], np.ndarray]]:
    with zipfile.ZipFile(path) as archive:
        entries = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(entries) != 1:
            raise UserError(f"it has {len(entries)} entries data.pkl and must have 1")
        root = entries[0].removesuffix("data.pkl")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise UserError("its entries are compressed, so their size is unbounded")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise UserError("its values are not little-endian")
        with archive.open(entries[0]) as file:
            content = RestrictedUnpickler(file).load()

    def read_storage(storage: TorchStorage) -> np.ndarray:
        size = storage.num_elements * storage.dtype.itemsize
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(f"{root}data/{storage.key}")
            if entry.file_size < size:
                raise UserError(f"{entry.filename} holds fewer than its {size} bytes")
            return np.frombuffer(archive.read(entry), storage.dtype, storage.num_elements)

    return content, read_storage


def _read_legacy_file(path: Path) -> tuple[Any, Callable[[TorchStorage], np.ndarray]]:
    with open(path, "rb") as file:
        if RestrictedUnpickler(file).load() != LEGACY_MAGIC or RestrictedUnpickler(file).load() != LEGACY_PROTOCOL:
            raise UserError("its first bytes differ from those of PyTorch's files")
        if not RestrictedUnpickler(file).load().get("little_endian", True):
            raise UserError("its values are not little-endian")
        reader = RestrictedUnpickler(file)
        content = reader.load()
        keys, offsets, file_size = RestrictedUnpickler(file).load(), {}, path.stat().st_size
        for key in keys:
            if not isinstance(key, str):
                raise UserError("a storage lacks a name")
            storage = reader.storages[key]
            (num_elements,) = struct.unpack("<q", file.read(8))
            offsets[key] = file.tell()
            end = offsets[key] + num_elements * storage.dtype.itemsize
            if num_elements != storage.num_elements or end > file_size:
                raise UserError(f"storage {key} does not hold its {storage.num_elements} elements")
            file.seek(end)
    return content, lambda storage: np.fromfile(path, storage.dtype, storage.num_elements, offset=offsets[storage.key])
