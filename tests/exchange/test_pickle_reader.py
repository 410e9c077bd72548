"""PyTorch's files read without running anything in them, whole, damaged and hostile."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.exchange import pickle_reader
from encoders.exchange.pickle_reader import LEGACY_MAGIC, LEGACY_PROTOCOL, InertStub, TorchTensor, load_torch_file
from encoders.exchange.weights import CheckpointError, read_torch_weights
from tests.exchange.references import HOME

ARCHIVE, PLAIN = HOME / "bert-masked" / "pytorch_model.bin", HOME / "bert-classes" / "pytorch_model.bin"


class Named:
    """Pickles as the name `module|attribute` or, with arguments, as a call of it."""

    def __init__(self, name: str, arguments: tuple | None = None):
        self.name, self.arguments = name, arguments

    def __reduce__(self):
        return Named(self.name), self.arguments


class Persistent(Named):
    """Pickles as a storage, of which torch.save writes the description."""


class Writer(pickle._Pickler):
    """Writes the pickles of torch.save, and others, without importing what they name."""

    def persistent_id(self, value):
        return value.arguments if isinstance(value, Persistent) else None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Named) and value.arguments is None:
            self.write(b"c" + value.name.replace("|", "\n").encode() + b"\n")
        else:
            super().save(value, save_persistent_id)

    def save_reduce(self, func, args, *rest, obj=None, **more):
        self.save(func)
        self.save(args)
        self.write(pickle.REDUCE)


def dumped(value) -> bytes:
    out = io.BytesIO()
    Writer(out, protocol=2).dump(value)
    return out.getvalue()


def storage(kind="FloatStorage", key="0", size=4) -> Persistent:
    return Persistent("", ("storage", Named(f"torch|{kind}"), key, "cpu", size))


def tensor(offset=0, shape=(2, 2), strides=(2, 1), **kind) -> Named:
    arguments = (storage(**kind), offset, shape, strides, False, None)
    return Named("torch._utils|_rebuild_tensor_v2", arguments)


def archive(path, value, data={"0": bytes(16)}, compression=zipfile.ZIP_STORED, extra={}):  # noqa: B006
    """The layout since PyTorch 1.6; `value` may be a pickle already."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("model/data.pkl", value if isinstance(value, bytes) else dumped(value))
        for key, content in data.items():
            file.writestr(f"model/data/{key}", content)
        for entry, content in extra.items():
            file.writestr(entry, content)
    return path


def plain(path, value, data={"0": bytes(16)}, width=4):  # noqa: B006
    """The layout before PyTorch 1.6."""
    parts = [dumped(LEGACY_MAGIC), dumped(LEGACY_PROTOCOL), dumped({"little_endian": True})]
    parts += [value if isinstance(value, bytes) else dumped(value), dumped(list(data))]
    path.write_bytes(b"".join(parts) + b"".join(struct.pack("<q", len(x) // width) + x for x in data.values()))
    return path


LAYOUTS = [archive, plain]


def tensors(path) -> dict[str, np.ndarray]:
    content, read = load_torch_file(path)
    return {key: read(value) for key, value in content.items() if isinstance(value, TorchTensor)}


@pytest.mark.parametrize("path", [ARCHIVE, PLAIN])
def test_files_of_torch_are_read_whole(path):
    found = tensors(path)
    assert found["bert.embeddings.word_embeddings.weight"].shape == (61, 12)
    assert found["bert.encoder.layer.2.output.LayerNorm.gamma"].shape == (12,)
    assert all(np.isfinite(array).all() and array.any() for array in found.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tensor_is_a_view_of_its_storage(layout, tmp_path):
    numbers = np.arange(6, dtype="<f4")
    turned = {"a": tensor(1, (2, 2), (1, 2), size=6), "whole": tensor(0, (2, 3), (3, 1), size=6)}
    found = tensors(layout(tmp_path / "x.bin", turned, {"0": numbers.tobytes()}))
    assert found["a"].tolist() == [[1, 3], [2, 4]] and found["whole"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("kind, dtype", [("Double", "f8"), ("Half", "f2"), ("BFloat16", ml_dtypes.bfloat16)])
def test_numbers_of_any_precision_are_read(kind, dtype, tmp_path):
    numbers, one = np.array([1.5, -2, 0.25, 8], dtype), {"a": tensor(kind=f"{kind}Storage")}
    new = archive(tmp_path / "new.bin", one, {"0": numbers.tobytes()})
    old = plain(tmp_path / "old.bin", one, {"0": numbers.tobytes()}, numbers.itemsize)
    for path in (new, old):
        entry = read_torch_weights(path)["a"]
        assert entry.dtype == numbers.dtype.name and entry.read().tolist() == [[1.5, -2], [0.25, 8]]


# Hostile pickles ---------------------------------------------------------------------------------------------------


CALLS = {
    "os.system": ("os|system", "touch {0}"),
    "posix.system": ("posix|system", "touch {0}"),
    "subprocess": ("subprocess|getoutput", "touch {0}"),
    "exec": ("builtins|exec", "open({0!r}, 'w')"),
    "eval": ("builtins|eval", "open({0!r}, 'w')"),
    "old eval": ("__builtin__|eval", "open({0!r}, 'w')"),
    "open": ("builtins|open", "{0}", "w"),
    "io.open": ("io|open", "{0}", "w"),
    "pathlib": ("pathlib|Path.touch", "{0}"),
    "numpy": ("numpy.testing._private.utils|runstring", "open({0!r}, 'w')", {}),
    "torch": ("torch|load", "{0}"),
    "storage": ("torch.storage|_load_from_bytes", b"x"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("call", CALLS)
def test_a_call_in_a_pickle_is_not_made(call, layout, tmp_path):
    canary = tmp_path / "canary"
    function, *arguments = CALLS[call]
    arguments = [x.format(str(canary)) if isinstance(x, str) else x for x in arguments]
    content, _ = load_torch_file(layout(tmp_path / "x.bin", {"a": Named(function, tuple(arguments)), "b": tensor()}))
    assert isinstance(content["a"], InertStub) and isinstance(content["b"], TorchTensor)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin"]


COMMAND = b"touch %s"
OPCODES = {  # protocol 0 to 4 ways to a call of os.system
    "GLOBAL REDUCE": b"cos\nsystem\n(V%s\ntR.",
    "INST": b"(V%s\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nV%s\no.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93(V%s\ntR.",
    "NEWOBJ": b"\x80\x02cos\nsystem\n(V%s\nt\x81.",
    "NEWOBJ_EX": b"\x80\x04cos\nsystem\n(V%s\nt}\x92.",
    "BUILD": b"\x80\x02cos\nsystem\n)\x81}(V__setstate__\ncos\nsystem\nubV%s\nb.",
    "EXT": b"\x80\x02\x82\x01.",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", OPCODES)
def test_no_opcode_reaches_a_function(way, layout, tmp_path):
    canary = tmp_path / "canary"
    content = OPCODES[way].replace(b"%s", COMMAND % os.fsencode(canary))
    try:
        load_torch_file(layout(tmp_path / "x.bin", content))
    except ValueError as error:
        assert "x.bin" in str(error)
    assert not canary.exists()


TENSOR = dumped(tensor())[2:-1]  # without its protocol and its end
STATES = {  # what __reduce__ gives beside the call that makes an object, put into its place
    "of a dictionary": (b"ccollections\nOrderedDict\n)R(Va\n%bu}Vitems\nK\x01sb.", "a"),
    "of a tensor": (b"(dVa\n%b}Vstorage\nK\x01sbs.", "a"),
    "of a function": (b"(dVa\n%bsctorch._utils\n_rebuild_parameter\nN}V__defaults__\nK\x01\x85s\x86b0.", "a"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("whose", STATES)
def test_a_state_changes_nothing_but_stubs(whose, layout, tmp_path):
    content, name = STATES[whose]
    found = read_torch_weights(layout(tmp_path / "x.bin", b"\x80\x02" + content.replace(b"%b", TENSOR)))
    assert found[name].dtype == "float32" and found[name].read().shape == (2, 2)
    assert pickle_reader.rebuild_parameter.__defaults__ is None


def test_the_metadata_of_a_module_is_left_aside(tmp_path):
    state = b"ccollections\nOrderedDict\n)R(Va\n%bu}V_metadata\nccollections\nOrderedDict\n)Rsb."
    assert list(read_torch_weights(archive(tmp_path / "x.bin", b"\x80\x02" + state.replace(b"%b", TENSOR)))) == ["a"]


@pytest.mark.parametrize(
    "content", [b"N" + b"2\x86" * 60 + b"Q.", TENSOR.replace(b"K\x00K", b"N" + b"2\x86" * 60 + b"K") + b"."]
)
def test_what_is_nested_without_end_is_printed_in_short(content, tmp_path):
    """Each pair holds the one before it twice: written out, these would fill any memory."""
    with pytest.raises(ValueError, match=r"\.\.\.") as caught:
        load_torch_file(archive(tmp_path / "x.bin", b"\x80\x02" + content))
    assert len(str(caught.value)) < 1000


def test_the_canary_of_these_tests_would_sing(tmp_path):
    """The same pickles, given to Python's own reader, do run."""
    for way in ("GLOBAL REDUCE", "INST", "STACK_GLOBAL"):
        canary = tmp_path / way.split()[0]
        pickle.loads(OPCODES[way].replace(b"%s", COMMAND % os.fsencode(canary)))
        assert canary.exists()


# Files that are not what they say ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "wrong",
    [
        dict(offset=1),
        dict(offset=-1),
        dict(shape=(3, 2)),
        dict(shape=(-2, 2)),
        dict(shape=(2,)),
        dict(shape=(2.0, 2)),
        dict(strides=(2, -1)),
        dict(strides=(10**15, 1)),
        dict(shape=(10**12, 10**12)),
        dict(size=-1),
    ],
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(wrong, layout, tmp_path):
    with pytest.raises(ValueError, match="x.bin"):
        load_torch_file(layout(tmp_path / "x.bin", {"a": tensor(**wrong)}))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_storage_that_is_not_there_in_full_is_refused_without_making_room_for_it(layout, tmp_path):
    with pytest.raises(ValueError):
        tensors(layout(tmp_path / "x.bin", {"a": tensor(shape=(10**13,), strides=(1,), size=10**13)}))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tensor_that_repeats_its_values_is_refused_without_allocating_it(layout, tmp_path):
    _, read = load_torch_file(
        path := layout(tmp_path / "x.bin", {"a": tensor(shape=(10**13,), strides=(0,)), "b": tensor()})
    )
    with pytest.raises(CheckpointError, match=r"shape .*10000000000000.* the 4 values"):
        read_torch_weights(path)["a"].read()
    assert read_torch_weights(path)["b"].read().shape == (2, 2)


@pytest.mark.parametrize("kind", ["ComplexStorage", "os", "Storage", "QInt8Storage"])
def test_a_storage_of_an_unknown_kind_is_refused(kind, tmp_path):
    with pytest.raises(ValueError, match="x.bin.*'storage'"):
        load_torch_file(archive(tmp_path / "x.bin", {"a": tensor(kind=kind)}))


def test_an_archive_that_torch_would_not_write_is_refused(tmp_path):
    one = {"a": tensor()}
    with pytest.raises(ValueError, match="a.bin.*2 .*data.pkl"):
        load_torch_file(archive(tmp_path / "a.bin", one, extra={"other/data.pkl": b"."}))
    with pytest.raises(ValueError, match="b.bin"):
        load_torch_file(archive(tmp_path / "b.bin", one, extra={"model/byteorder": b"big"}))
    with pytest.raises(ValueError, match="c.bin"):
        load_torch_file(archive(tmp_path / "c.bin", one, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match="data/0 .*16 bytes"):
        tensors(archive(tmp_path / "e.bin", one, {"0": bytes(15)}))
    with pytest.raises(ValueError, match="model/data/0"):
        tensors(archive(tmp_path / "d.bin", one, {}))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello", dumped(LEGACY_MAGIC), dumped([1]) * 5])
def test_another_file_is_refused(content, tmp_path):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(ValueError, match="x.bin"):
        load_torch_file(tmp_path / "x.bin")


# Damage --------------------------------------------------------------------------------------------------------------


def read_or_refused(path, damaged: bytes) -> None:
    """Tensors of the shapes that are said, or a `ValueError`; anything else is raised."""
    path.write_bytes(damaged)
    try:
        for entry in read_torch_weights(path).values():
            assert entry.read().shape == entry.shape
    except CheckpointError as error:
        assert path.name in str(error)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged") / "x.bin"


@pytest.mark.parametrize("source", [ARCHIVE, PLAIN])
@settings(derandomize=True, max_examples=150, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(source, place, at):
    content = source.read_bytes()
    place.write_bytes(content[: int(at * len(content))])
    with pytest.raises(ValueError, match="x.bin"):
        tensors(place)


@pytest.mark.parametrize("source", [ARCHIVE, PLAIN])
@settings(derandomize=True, max_examples=300, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 8000), st.integers(1, 255), st.booleans()), min_size=1, max_size=5))
def test_flipped_bytes_are_an_error_or_other_numbers(source, place, flips):
    """Near both ends of the file, where its directory and its pickle are."""
    damaged = bytearray(source.read_bytes())
    for at, value, from_the_end in flips:
        damaged[-1 - at if from_the_end else at] ^= value
    read_or_refused(place, bytes(damaged))


DECLARED = {  # a quarter of a gigabyte or more, by a few bytes
    "text": b"X\xff\xff\xff\x0f",
    "long text": b"\x8d" + struct.pack("<Q", 2**40),
    "bytes": b"B\xff\xff\xff\x0f",
    "long bytes": b"\x8e" + struct.pack("<Q", 2**28),
    "bytes that may change": b"\x96" + struct.pack("<Q", 2**28),
    "number": b"\x8b\xff\xff\xff\x0f",
    "frame": b"\x95" + struct.pack("<Q", 2**28),
    "memory": b"Nr" + struct.pack("<I", 2**25),
    "memory in digits": b"Np33554432\n",
}


@pytest.mark.parametrize("what", DECLARED)
def test_a_pickle_that_declares_much_makes_no_room_for_it(what, tmp_path):
    path = archive(tmp_path / "x.bin", b"\x80\x05" + DECLARED[what] + b".")
    tracemalloc.start()
    try:
        load_torch_file(path)
    except ValueError as error:
        assert "x.bin" in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**20


def test_the_names_that_are_known_are_all_there_are():
    assert {module for module, _ in pickle_reader.ALLOWED_GLOBALS} == {"collections", "torch._utils"}


HASHED = {  # what comes before and after a key or a member
    "SETITEM": (b"}", b"K\x01s."),
    "SETITEMS": (b"}(", b"K\x01u."),
    "DICT": (b"(", b"K\x01d."),
    "ADDITEMS": (b"\x8f(", b"\x90."),
    "FROZENSET": (b"(", b"\x91."),
    "OrderedDict": (b"ccollections\nOrderedDict\n((", b"K\x01\x86ltR."),
}


@pytest.mark.parametrize("way", HASHED)
def test_nothing_is_hashed_whose_hash_takes_for_ever(way, tmp_path):
    """A tuple of one tuple twice, eighty times over, is small in the file; its hash visits 2**80 of them."""
    start, end = HASHED[way]
    content, _ = load_torch_file(archive(tmp_path / "x.bin", b"\x80\x04" + start + b")" + b"q\x00h\x00\x86" * 80 + end))
    assert isinstance(content, InertStub) or not content


def test_the_keys_of_storages_are_names(tmp_path):
    path = plain(tmp_path / "x.bin", {})
    keys = b"\x80\x02](N" + b"2\x86" * 80 + b"e."
    path.write_bytes(path.read_bytes().replace(dumped(["0"]), keys))
    with pytest.raises(ValueError, match="storage.*name"):
        load_torch_file(path)
