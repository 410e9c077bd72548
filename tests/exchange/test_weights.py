"""Files of tensors as published, whole and damaged."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from encoders.exchange import pickle_reader, weights
from encoders.exchange.published_folder import read_transformers_folder
from encoders.exchange.weights import CheckpointError, list_names, read_json, read_weights, write_safetensors
from tests.exchange.references import CASES, HOME
from tests.refusals import raises_naming

TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}


def whole(folder) -> dict:
    """Every tensor of a folder, read."""
    return {name: entry.read() for name, entry in read_weights(folder)[0].items()}


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_numbers_of_any_precision_are_read_as_float32(dtype, tmp_path):
    save_file({"a": np.array([1.5, -2.0], dtype)}, tmp_path / "model.safetensors")
    entry = read_weights(tmp_path)[0]["a"]
    assert entry.dtype == dtype and entry.shape == (2,)
    assert entry.read().dtype == np.float32 and entry.read().tolist() == [1.5, -2.0]


def test_bfloat16_is_read_as_float32(tmp_path):
    header = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    numbers = np.array([1.5, -2.0], np.float32).view(np.uint32) >> 16
    content = len(header).to_bytes(8, "little") + header + numbers.astype("<u2").tobytes()
    (tmp_path / "model.safetensors").write_bytes(content)
    assert whole(tmp_path)["a"].tolist() == [1.5, -2.0]


def test_numbers_beyond_float32_are_infinite(tmp_path):
    save_file({"a": np.array([1e300, -1e300, 1e-300])}, tmp_path / "model.safetensors")
    assert whole(tmp_path)["a"].tolist() == [np.inf, -np.inf, 0]


def test_written_tensors_are_read_by_the_safetensors_library(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {name: (array.shape, lambda array=array: array) for name, array in TENSORS.items()})
    assert all(np.array_equal(array, TENSORS[name]) for name, array in load_file(path).items())
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


# Indices -----------------------------------------------------------------------------------------------------------


def index(folder, places) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_an_index_places_tensors_in_files_beside_it(tmp_path):
    for name, array in TENSORS.items():
        save_file({name: array}, tmp_path / f"model-{name[0]}.safetensors")
    index(tmp_path, {name: f"model-{name[0]}.safetensors" for name in TENSORS})
    assert all(np.array_equal(array, TENSORS[name]) for name, array in whole(tmp_path).items())
    assert len(read_weights(tmp_path)[1]) == 2


OUTSIDE = ["../out.safetensors", "{home}/out.safetensors", "./../out.safetensors"]
BELOW = ["sub/in.safetensors", "link/in.safetensors", "sub", "sub/.."]
NO_FILE = ["", "..", "~", "\0.safetensors", "a\nb.safetensors", f"{'a' * 5000}.safetensors", "ünï.safetensors"]


@pytest.mark.parametrize("place", OUTSIDE + BELOW + NO_FILE)
def test_an_index_reaches_no_file_outside_its_folder(place, tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "link").symlink_to(folder / "sub")
    for path in (tmp_path / "out.safetensors", folder / "sub" / "in.safetensors"):
        save_file(TENSORS, path)
    index(folder, {"b": place.format(home=tmp_path)})
    with raises_naming(CheckpointError, "model.safetensors.index.json"):
        read_weights(folder)


def test_a_link_beside_the_index_is_a_file_beside_it(tmp_path):
    """The hub's cache keeps every file under its hash, and links to it."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_file(TENSORS, tmp_path / "blobs" / "0af3")
    (tmp_path / "snapshot" / "model-1.safetensors").symlink_to(tmp_path / "blobs" / "0af3")
    index(tmp_path / "snapshot", {"b": "model-1.safetensors"})
    assert whole(tmp_path / "snapshot")["b"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("places", [None, [], "model.safetensors", {"b": 1}, {"b": None}, {"b": ["x.safetensors"]}])
def test_an_index_that_is_not_a_map_of_names_is_refused(places, tmp_path):
    index(tmp_path, places)
    with pytest.raises(CheckpointError, match="weight_map"):
        read_weights(tmp_path)


def test_an_index_of_a_missing_tensor_or_file_is_refused(tmp_path):
    save_file(TENSORS, tmp_path / "model-1.safetensors")
    index(tmp_path, {"c": "model-1.safetensors"})
    with raises_naming(CheckpointError, "model.safetensors.index.json", " c "):
        read_weights(tmp_path)
    index(tmp_path, {"b": "model-2.safetensors"})
    with raises_naming(CheckpointError, "'model-2.safetensors'"):
        read_weights(tmp_path)


def test_a_folder_without_weights_is_refused_with_the_accepted_names(tmp_path):
    with pytest.raises(CheckpointError, match="model.safetensors, .*pytorch_model.bin"):
        read_weights(tmp_path)


# JSON --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"7", b'"x"', b"null", b"\xff\xfe{}", b'{"a":}', b"[" * 100_000, b'{"a":' * 100_000]
)
def test_malformed_json_is_refused(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="config.json"):
        read_json(path)


def test_a_byte_order_mark_is_accepted(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}


def test_long_lists_are_abbreviated():
    assert list_names("abc", 3) == "a, b, c" and list_names("abcde", 3) == "a, b, c and 2 more"


# Damage ------------------------------------------------------------------------------------------------------------


def content() -> bytes:
    header = {
        "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [24, 40]},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in TENSORS.values())


SIZE = len(content())
HEADER = SIZE - 40


def read_or_refused(folder, damaged: bytes) -> None:
    """Tensors of the shapes that are said, or a `CheckpointError`; anything else is raised."""
    (folder / "model.safetensors").write_bytes(damaged)
    try:
        found = read_weights(folder)[0]
    except CheckpointError as error:
        assert "model.safetensors" in str(error)
        return
    for entry in found.values():
        try:
            assert entry.read().shape == entry.shape
        except CheckpointError as error:
            assert f"shape {list(entry.shape)}" in str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


def test_a_truncated_file_is_refused_wherever_it_ends(folder):
    for size in range(SIZE):
        (folder / "model.safetensors").write_bytes(content()[:size])
        with pytest.raises(CheckpointError, match="model.safetensors"):
            read_weights(folder)


@settings(derandomize=True, max_examples=400, deadline=None)
@given(st.lists(st.integers(0, 8 * HEADER - 1), min_size=1, max_size=4))
def test_flipped_bits_of_the_header_are_an_error_or_other_tensors(folder, bits):
    damaged = bytearray(content())
    for bit in bits:
        damaged[bit // 8] ^= 1 << bit % 8
    read_or_refused(folder, bytes(damaged))


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.integers(0, 2**64 - 1) | st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 10**8, 10**8 + 1]))
def test_a_header_of_any_declared_size_is_an_error(folder, size):
    if size != HEADER - 8:
        (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + content()[8:])
        with pytest.raises(CheckpointError):
            read_weights(folder)


@pytest.mark.parametrize("shape", [[2**62, 4], [2**40], [-1], [1.5], "x", [2**64], [[2]]])
def test_a_shape_of_absurd_size_is_refused_without_allocating_it(shape, folder):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 16]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(CheckpointError):
        read_weights(folder)


@pytest.mark.parametrize("dtype", ["I64", "BOOL", "U8", "C64", "F8_E4M3", "F8_E5M2"])
def test_tensors_that_are_not_floating_point_are_listed_and_not_read(dtype, folder):
    size = {"I64": 8, "C64": 8}.get(dtype, 1)
    header = json.dumps({"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2 * size]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2 * size))
    entry = read_weights(folder)[0]["a"]
    assert entry.dtype == dtype
    with pytest.raises(CheckpointError, match=dtype):
        entry.read()


# Wrapped -----------------------------------------------------------------------------------------------------------

STORAGE = pickle_reader.TorchStorage("0", np.dtype(np.float32), 3)
STATE = {"a.weight": pickle_reader.TorchTensor(STORAGE, 0, (3,), (1,))}


def read_torch(content, monkeypatch) -> list[str]:
    """The names that are read of a file of torch with this content."""
    monkeypatch.setattr(pickle_reader, "load_torch_file", lambda path: (content, lambda tensor: None))
    return list(weights.read_torch_weights(Path("pytorch_model.bin")))


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model_state_dict": STATE},
        {"model": STATE, "optimizer": {"state": {}}},
        {"checkpoint": {"state_dict": STATE}},
        {"checkpoint": {"model": {"state_dict": STATE}}},
        {"model": {"hidden_size": 8}, "state_dict": STATE},  # options, and no tensors
        {"loss": STATE["a.weight"], "state_dict": STATE},
    ],
)
def test_a_state_dict_may_be_nested(content, monkeypatch):
    assert read_torch(content, monkeypatch) == ["a.weight"]


def test_two_state_dicts_in_a_file_are_refused(monkeypatch):
    with raises_naming(CheckpointError, "pytorch_model.bin", "state_dict and model;"):
        read_torch({"model": STATE, "state_dict": STATE}, monkeypatch)


def test_a_file_without_tensors_is_refused_with_its_keys(monkeypatch):
    endless = {}
    endless["model"] = endless
    contents = ({"net": {"weights": STATE}, 7: 1}, ["'net', 7;"]), ({}, ["nothing;"]), (endless, ["'model';"])
    for content, named in contents:
        with raises_naming(CheckpointError, "pytorch_model.bin", "state_dict or", *named):
            read_torch(content, monkeypatch)


def test_a_folder_without_tensors_is_refused(tmp_path):
    save_file({}, tmp_path / "model.safetensors")
    with raises_naming(CheckpointError, "model.safetensors", "no tensors"):
        read_weights(tmp_path)
    save_file(TENSORS, tmp_path / "model.safetensors")
    with raises_naming(CheckpointError, tmp_path, "--ignore a* b"):
        read_weights(tmp_path, ["a*", "b"])


def read_names(folder, names, ignored=(), own_prefix="") -> tuple[list[str], list[str]]:
    """The names that are read of a file of tensors with these, and what is logged."""
    lines = []
    save_file({name: np.zeros(1, np.float32) for name in names}, folder / "model.safetensors")
    return sorted(read_weights(folder, ignored, own_prefix, lines.append)[0]), lines


@pytest.mark.parametrize(
    "prefix", ["module.", "module.module.", "_orig_mod.", "model.", "module._orig_mod.", "model._orig_mod.module."]
)
def test_prefixes_of_wrappers_are_removed_from_all_names_and_logged(prefix, tmp_path):
    names = ["bert.a.weight", "cls.b.weight"]
    found, (line,) = read_names(tmp_path, [prefix + name for name in names], own_prefix="bert.")
    assert found == names and f" {prefix} " in line and str(tmp_path) in line


def test_a_prefix_that_only_some_names_have_remains(tmp_path):
    names = ["module.bert.a.weight", "temperature"]
    assert read_names(tmp_path, names) == (names, [])
    assert read_names(tmp_path, names, ["temp*"])[0] == ["bert.a.weight"]


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "model.", "model._orig_mod."])
@pytest.mark.parametrize("names", [["model.a.weight", "model.b.weight"], ["head.b.weight", "model.a.weight"]])
def test_an_architecture_keeps_a_prefix_of_its_own(names, wrapper, tmp_path):
    """ModernBERT's names begin with model. as those of a Lightning module do."""
    assert read_names(tmp_path, [wrapper + name for name in names], own_prefix="model.")[0] == names


def test_named_tensors_are_left_out_by_their_names_with_and_without_a_prefix(tmp_path):
    names = ["module.bert.a.weight", "module.bert.b.weight", "module.extra.0.weight"]
    for pattern in ("extra.*", "module.extra.*"):
        assert read_names(tmp_path, names, [pattern])[0] == ["bert.a.weight", "bert.b.weight"]


@pytest.mark.parametrize("wrapper", ["module.", "model.", "model._orig_mod."])
@pytest.mark.parametrize("name", sorted(name for name in CASES if (HOME / name / "config.json").is_file()))
def test_every_architecture_is_read_from_a_wrapper(name, wrapper, tmp_path):
    lines, plain = [], read_transformers_folder(HOME / name)
    tensors = {wrapper + key: (entry.shape, entry.read) for key, entry in read_weights(HOME / name)[0].items()}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_bytes((HOME / name / "config.json").read_bytes())
    found = read_transformers_folder(tmp_path, log=lines.append)
    assert found.tensors.keys() == plain.tensors.keys() and found.heads == plain.heads
    assert len(lines) <= 1 and all(f" {wrapper} " in line for line in lines)
