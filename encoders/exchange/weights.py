"""The tensors of a published checkpoint, by name: read one at a time, written as safetensors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

SAFETENSORS_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# In order of preference, as transformers has it.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
WRITTEN_DTYPE = np.dtype("<f4")  # what is written


class CheckpointError(ValueError):
    """A published checkpoint that cannot be read or written as it stands."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that has not been read yet; `read` gives its numbers as float32."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def make_lazy_tensor(shape: tuple[int, ...], dtype: str, read: Callable[[], np.ndarray]) -> LazyTensor:
    """An `LazyTensor` of numbers in any precision, infinite beyond float32's.

    Its `read` raises `CheckpointError` for integers and the like, and where the file is damaged.
    """

    def read_float32() -> np.ndarray:
        if "float" not in dtype:
            raise CheckpointError(f"a tensor of shape {list(shape)} holds {dtype} and no floating-point numbers")
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                return np.asarray(read(), np.float32)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"a tensor of shape {list(shape)} cannot be read: {error}") from None

    return LazyTensor(shape, dtype, read_float32)


def read_weights(folder: Path) -> tuple[dict[str, LazyTensor], list[Path]]:
    """Every tensor of the checkpoint that transformers wrote to `folder`, and the files that hold them.

    Raises `CheckpointError` where there is none, and for a damaged one.
    """
    name = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if name is None:
        raise CheckpointError(f"{folder} holds no weights: {', '.join(WEIGHT_FILES)}")
    if name.endswith(".index.json"):
        return read_sharded_weights(folder / name)
    return read_weight_file(folder / name), [folder / name]


def read_weight_file(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one file."""
    return read_safetensors(path) if path.suffix == ".safetensors" else read_torch_weights(path)


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a safetensors file. It is opened anew for each, so that no mapped page outlives its reading."""

    def read_tensor(name: str) -> np.ndarray:
        with safe_open(path, "numpy") as file:
            return file.get_tensor(name)

    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: make_lazy_tensor(
                    tuple(part.get_shape()),
                    SAFETENSORS_FLOATS.get(part.get_dtype(), part.get_dtype()),
                    lambda name=name: read_tensor(name),
                )
                for name, part in slices.items()
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} is not a whole safetensors file: {error}") from None


def read_torch_weights(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a state dict that torch.save wrote."""
    from encoders.exchange import pickle_reader

    try:
        content, read = pickle_reader.load_torch_file(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} holds no tensors by name")
    return {
        str(name): make_lazy_tensor(tensor.shape, tensor.storage.dtype.name, lambda tensor=tensor: read(tensor))
        for name, tensor in content.items()
        if isinstance(tensor, pickle_reader.TorchTensor)
    }


def read_sharded_weights(index_path: Path) -> tuple[dict[str, LazyTensor], list[Path]]:
    """The tensors that an index file places in files beside it."""
    places = read_json(index_path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f'{index_path.name} has no "weight_map" from tensors to files')
    names, files = sorted(set(places.values())), {path.name for path in index_path.parent.iterdir() if path.is_file()}
    for name in names:
        if not re.fullmatch(r".+\.(safetensors|bin)", name) or name not in files:
            raise CheckpointError(f"{index_path.name} names {name!r}, which is no file of weights beside it")
    parts = {name: read_weight_file(index_path.parent / name) for name in names}
    lacking = sorted(tensor for tensor, name in places.items() if tensor not in parts[name])
    if lacking:
        raise CheckpointError(f"{index_path.name} places {list_names(lacking)} in files that do not hold them")
    return {tensor: parts[name][tensor] for tensor, name in places.items()}, [
        index_path.parent / name for name in names
    ]


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises `CheckpointError` for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=lambda name: math.nan)
    except FileNotFoundError:
        raise CheckpointError(f"there is no {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} cannot be read as JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} must hold a JSON object, and holds a {type(value).__name__}")
    return value


def list_names(names: Iterable[str], max_names: int = 8) -> str:
    """Names in a sentence, the first few of many."""
    names = list(names)
    return ", ".join(names[:max_names]) + (f" and {len(names) - max_names} more" if len(names) > max_names else "")


def write_safetensors(path: Path, tensors: dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]) -> None:
    """Write `{name: (shape, read)}` as float32, each tensor read when its turn comes."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, _) in tensors.items():
        size = math.prod(shape) * WRITTEN_DTYPE.itemsize
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, read in tensors.values():
            np.ascontiguousarray(read(), WRITTEN_DTYPE).tofile(file)
