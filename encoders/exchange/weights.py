"""Tensors of published checkpoints by name: read one at a time, written as safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from reprlib import repr as shorten

import numpy as np
from safetensors import SafetensorError, safe_open

from encoders.exchange import pickle_reader
from encoders.exchange.pickle_reader import CheckpointError

SAFETENSORS_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# In transformers' order of preference.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Of torch's DataParallel, of torch.compile and of Lightning's modules.
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.")
NESTED_KEYS = ("state_dict", "model_state_dict", "model", "checkpoint")  # below which training scripts save the tensors
MAX_NESTING = 4  # dictionaries inside each other
WRITTEN_DTYPE = np.dtype("<f4")


@dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file; `read_stored` returns its values as they are there."""

    shape: tuple[int, ...]
    dtype: str
    read_stored: Callable[[], np.ndarray]

    def read(self) -> np.ndarray:
        """Return the values as float32, infinite beyond its range.

        Raises `CheckpointError` for a dtype that is not floating-point, and for a damaged file.
        """
        description = f"a tensor of shape {list(self.shape)}"
        if "float" not in self.dtype:
            raise CheckpointError(f"{description} holds {self.dtype}; only floating-point numbers are read")
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                return np.asarray(self.read_stored(), np.float32)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{description} cannot be read: {error}") from None


@dataclass(frozen=True)
class IgnoredNames:
    """Patterns of names to leave out; `drop_ignored` adds to `matched` those that a tensor's name matches."""

    patterns: tuple[str, ...] = ()
    matched: set[str] = field(default_factory=set)

    def __iter__(self) -> Iterator[str]:
        return iter(self.patterns)


def read_weights(
    folder: Path, ignored: Iterable[str] = (), own_prefix: str = "", log: Callable[[str], None] = lambda line: None
) -> tuple[dict[str, LazyTensor], list[Path]]:
    """Return the tensors of a folder that transformers wrote, without those that match a pattern of `ignored`, and the
    files that hold them. A prefix of `WRAPPER_PREFIXES` that begins every name is removed and logged.

    `own_prefix` begins names of the architecture's own. Raises `CheckpointError` for missing and for damaged weights.
    """
    tensors, files = read_weight_files(folder)
    if not tensors:
        raise CheckpointError(f"{files[0]} holds no tensors; give those of the encoder")
    tensors = drop_ignored(tensors, ignored)
    if not tensors:
        raise CheckpointError(f"--ignore {' '.join(ignored)} leaves no tensor of {folder}; keep those of the encoder")
    if removed := find_wrapper_prefix(tensors, own_prefix):
        log(f"{folder}: the prefix {removed} of all tensors is removed")
        tensors = {name.removeprefix(removed): tensor for name, tensor in tensors.items()}
    return drop_ignored(tensors, ignored), files


def find_wrapper_prefix(names: Iterable[str], own_prefix: str = "") -> str:
    """Return what wrappers put in front of all names: one or more of `WRAPPER_PREFIXES`, or "".

    The architecture's own prefix is one of a wrapper only where a name has it twice, or another of them behind it.

    >>> find_wrapper_prefix(["module.model.bert.a", "module.model.cls.b"])
    'module.model.'
    >>> find_wrapper_prefix(["model.model.a", "model.head.b"], own_prefix="model.")
    'model.'
    """
    removed, names = "", list(names)
    while prefix := find_common_prefix(names):
        inner = [name.removeprefix(prefix) for name in names]
        is_wrapped = find_common_prefix(inner) or any(name.startswith(own_prefix) for name in inner)
        if prefix == own_prefix and not is_wrapped:
            break
        removed, names = removed + prefix, inner
    return removed


def find_common_prefix(names: list[str]) -> str:
    prefixes = (prefix for prefix in WRAPPER_PREFIXES if all(name.startswith(prefix) for name in names))
    return next(prefixes, "") if names else ""


def drop_ignored(tensors: dict[str, LazyTensor], ignored: Iterable[str]) -> dict[str, LazyTensor]:
    """Return the tensors whose names match none of the patterns."""
    left_out = set()
    for pattern in ignored:
        if names := [name for name in tensors if fnmatchcase(name, pattern)]:
            left_out.update(names)
            if isinstance(ignored, IgnoredNames):
                ignored.matched.add(pattern)
    return {name: tensor for name, tensor in tensors.items() if name not in left_out}


def read_weight_files(folder: Path) -> tuple[dict[str, LazyTensor], list[Path]]:
    name = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if name is None:
        raise CheckpointError(f"{folder} holds none of the weight files {', '.join(WEIGHT_FILES)}")
    if name.endswith(".index.json"):
        return read_sharded_weights(folder / name)
    return WEIGHT_READERS[Path(name).suffix](folder / name), [folder / name]


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a safetensors file, opened again for each: no mapped page outlives its reading."""

    def read_tensor(name: str) -> np.ndarray:
        with safe_open(path, "numpy") as file:
            return file.get_tensor(name)

    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            types = {name: (tuple(tensor.get_shape()), tensor.get_dtype()) for name, tensor in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} is not a complete safetensors file: {error}") from None
    return {
        name: LazyTensor(shape, SAFETENSORS_FLOATS.get(dtype, dtype), partial(read_tensor, name))
        for name, (shape, dtype) in types.items()
    }


def read_torch_weights(path: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a state dict that torch.save wrote, which may be nested below keys of `NESTED_KEYS`.

    Raises `CheckpointError` for a file without tensors, for one that has them below two keys, and for a damaged one.
    """
    content, read_tensor = pickle_reader.load_torch_file(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} must hold tensors by name, and holds a {type(content).__name__}")
    tensors = collect_torch_tensors(find_state_dict(content, path.name), read_tensor)
    if not tensors:
        keys = list_names(shorten(key) for key in content)
        accepted = f"by name, or below {' or '.join(NESTED_KEYS)}"
        raise CheckpointError(f"{path.name} holds no tensors but {keys or 'nothing'}; they are read {accepted}")
    return tensors


def find_state_dict(content: dict, file_name: str) -> dict:
    """Return the dictionary of tensors below the keys of `NESTED_KEYS`. Raises `CheckpointError` below two of them."""
    for _ in range(MAX_NESTING):
        keys = [key for key in NESTED_KEYS if isinstance(content.get(key), dict) and has_tensors(content[key])]
        if not keys:
            break
        if len(keys) > 1:
            raise CheckpointError(f"{file_name} holds tensors below {' and '.join(keys)}; save those of one model")
        content = content[keys[0]]
    return content


def has_tensors(content: dict, depth: int = MAX_NESTING) -> bool:
    """Return whether a dictionary holds tensors, or one below keys of `NESTED_KEYS` does."""
    if any(isinstance(value, pickle_reader.TorchTensor) for value in content.values()):
        return True
    inner = [content[key] for key in NESTED_KEYS if isinstance(content.get(key), dict)]
    return depth > 0 and any(has_tensors(value, depth - 1) for value in inner)


def collect_torch_tensors(content: dict, read_tensor: Callable) -> dict[str, LazyTensor]:
    return {
        str(name): LazyTensor(tensor.shape, tensor.storage.dtype.name, partial(read_tensor, tensor))
        for name, tensor in content.items()
        if isinstance(tensor, pickle_reader.TorchTensor)
    }


WEIGHT_READERS = {".safetensors": read_safetensors, ".bin": read_torch_weights}


def read_sharded_weights(index_path: Path) -> tuple[dict[str, LazyTensor], list[Path]]:
    """Return the tensors of the files that an index lists."""
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f'{index_path.name} must hold a "weight_map" from tensors to files')
    folder = index_path.parent
    # Names of the folder's own files only: an index cannot lead elsewhere.
    existing = {path.name for path in folder.iterdir() if path.is_file()}
    shards = {}
    for name in sorted(set(weight_map.values())):
        path = folder / name
        if path.suffix not in WEIGHT_READERS or name not in existing:
            raise CheckpointError(f"{index_path.name} names {name!r}, which is not a weight file in {folder.name}")
        shards[name] = WEIGHT_READERS[path.suffix](path)
    missing = sorted(tensor for tensor, name in weight_map.items() if tensor not in shards[name])
    if missing:
        raise CheckpointError(f"{index_path.name} places {list_names(missing)} in files that do not hold them")
    tensors = {tensor: shards[name][tensor] for tensor, name in weight_map.items()}
    return tensors, [folder / name for name in shards]


def read_json(path: Path) -> dict:
    """Return the object in a JSON file. Raises `CheckpointError` for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=lambda name: math.nan)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} cannot be read as JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} must hold a JSON object, and holds a {type(value).__name__}")
    return value


def list_names(names: Iterable[str], max_names: int = 8) -> str:
    """Return the first names, separated by commas, and the number of the others."""
    names = list(names)
    listed = ", ".join(names[:max_names])
    return listed if len(names) <= max_names else f"{listed} and {len(names) - max_names} more"


def write_safetensors(path: Path, tensors: dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]) -> None:
    """Write `{name: (shape, read)}` as float32; each tensor is read just before it is written."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, _) in tensors.items():
        end = offset + math.prod(shape) * WRITTEN_DTYPE.itemsize
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, read in tensors.values():
            np.ascontiguousarray(read(), WRITTEN_DTYPE).tofile(file)
