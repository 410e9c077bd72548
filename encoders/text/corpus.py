"""Documents of sentences, from text files, from prepared TFDS datasets, or from the installed packages' docstrings."""

from __future__ import annotations

import ast
import difflib
import functools
import glob
import hashlib
import importlib.metadata
import importlib.util
import inspect
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

PACKAGES = ("numpy", "scipy", "jax", "flax", "optax")  # the embedded corpus, in this order
TEXTS = ("text", "sentence", "content", "review", "document")  # TFDS features read, the first that exists
CHECKED = 1 << 16  # characters of a file that `check` reads


class CorpusError(ValueError):
    """A corpus that is not there or cannot be read."""


def documents(
    corpus: tuple[str, ...], sentences: Literal["split", "lines"] = "split", language: str = "en"
) -> Iterator[list[str]]:
    """Every document of `corpus` as a non-empty list of sentences with single spaces, one document in memory.

    An item is `"embedded"`, `"tfds:NAME@SPLIT"` (or the folder of a prepared dataset for NAME), or a path or glob
    of UTF-8 files, plain or .gz .bz2 .xz .zst: a paragraph or sentence a line, a blank line between documents.
    `"split"` splits each line into sentences, `"lines"` takes it as one. Raises `CorpusError`.
    """
    split = _splitter(sentences, language)
    document: list[str] = []
    for item in _items(corpus):
        for line in _lines(item):
            if line:
                document += split(line)
            elif document:
                yield document
                document = []


def check(corpus: tuple[str, ...], sentences: str = "split", language: str = "en") -> None:
    """Raises `CorpusError` for what can be seen to be wrong with `corpus` without reading it all."""
    _splitter(sentences, language)
    for item in _items(corpus):
        if item == "embedded":
            for package in PACKAGES:
                _folder(package)
        elif item.startswith("tfds:"):
            _source(item)
        elif not any([_has_text(path) for path in _files(item)]):  # a list: every file is looked at
            raise CorpusError(f"corpus {item!r} holds no text: it is empty or blank")


def identity(corpus: tuple[str, ...]) -> list[dict]:
    """What decides the content of `corpus`, JSON-able and without its location, in reading order."""
    found: list[dict] = []
    for item in _items(corpus):
        if item == "embedded":
            found.append({"embedded": {package: _version(package) for package in PACKAGES}})
        elif item.startswith("tfds:"):
            builder, split, _, _ = _source(item)
            name = builder.info.full_name.removesuffix(f"/{builder.version}")
            found.append({"tfds": name, "split": split, "version": str(builder.version)})
        else:
            for path in _files(item):
                with _opened(path, raw=True) as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                found.append({"file": path.name, "sha256": digest, "bytes": path.stat().st_size})
    return found


def _items(corpus) -> tuple[str, ...]:
    if isinstance(corpus, str) or not corpus or not all(isinstance(item, str) and item for item in corpus):
        raise CorpusError(f"corpus {corpus!r} must be a tuple of names: ('embedded',), ('tfds:NAME',), ('PATH',)")
    return tuple(corpus)


def _splitter(sentences: str, language: str) -> Callable[[str], list[str]]:
    if sentences == "lines":
        return lambda line: [line]
    if sentences != "split":
        raise CorpusError(f"sentences={sentences!r} must be 'split' or 'lines'")
    if not isinstance(language, str) or not re.fullmatch(r"[a-z]{2,3}([-_]\w+)*", language):
        raise CorpusError(f"language={language!r} must be a language code such as 'en', 'de' or 'zh'")
    segment = _module("sentencex", "sentences='split'").segment
    return lambda line: [part for sentence in segment(language, line) if (part := " ".join(sentence.split()))]


def _module(name: str, purpose: str):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's deprecations
            return importlib.import_module(name)
    except ImportError as error:
        raise CorpusError(f"{purpose} needs {name} ({error}): pip install {name.replace('_', '-')}") from error


def _lines(item: str) -> Iterator[str]:
    """The lines of an item with single spaces; an empty one ends a document, and the item itself."""
    if item == "embedded":
        for package in PACKAGES:
            for document in _embedded(package):
                yield from document
                yield ""
    elif item.startswith("tfds:"):
        yield from _tfds_lines(item)
    else:
        for path in _files(item):
            yield from _file_lines(path)


# Files


def _files(item: str) -> list[Path]:
    path = Path(item).expanduser()
    if path.is_dir():
        raise CorpusError(f"corpus {item!r} is a folder; name its files, as in {str(Path(item) / '*.txt')!r}")
    if path.exists():  # also where its name holds a bracket or a star
        return [path]
    if glob.has_magic(item):
        if found := sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name)):
            return found
    if not path.parent.is_dir() and not glob.has_magic(str(path.parent)):
        raise CorpusError(f"corpus {item!r}: there is no folder {str(path.parent)!r}")
    names = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, 3, 0.5) or names[:3]
    raise CorpusError(f"corpus {item!r} names no file; {str(path.parent)!r} holds {', '.join(near) or 'none'}")


def _opened(path: Path, raw: bool = False):
    import bz2
    import gzip
    import lzma

    openers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstd_open}
    try:
        return open(path, "rb") if raw else openers.get(path.suffix, open)(path, "rb")
    except OSError as error:
        raise CorpusError(f"{path} cannot be opened: {error.strerror or error}") from error


def _zstd_open(path: Path, mode: str) -> io.BufferedReader:
    return io.BufferedReader(_Zstd(open(path, mode)), 1 << 17)


class _Zstd(io.RawIOBase):
    """A .zst file's content; unlike `zstandard.open` it reads every frame and reports one that is cut off."""

    def __init__(self, file):
        self.library = _module("zstandard", "a .zst file")
        self.file, self.frame, self.ready = file, None, memoryview(b"")

    def readable(self):
        return True

    def close(self):
        self.file.close()
        super().close()

    def readinto(self, buffer) -> int:
        while not self.ready:
            data = self.file.read(1 << 17)
            if not data:
                if self.frame:
                    raise EOFError("the last frame is cut off")
                return 0
            self.ready = memoryview(b"".join(self.decompressed(data)))
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count

    def decompressed(self, data: bytes) -> Iterator[bytes]:
        while data:
            try:
                self.frame = self.frame or self.library.ZstdDecompressor(max_window_size=2**31).decompressobj()
                yield self.frame.decompress(data)
            except self.library.ZstdError as error:
                raise OSError(str(error)) from error
            data = b""
            if self.frame.eof:
                data, self.frame = self.frame.unused_data, None


def _file_lines(path: Path) -> Iterator[str]:
    import lzma
    import zlib

    number = 0
    with _opened(path) as file:
        try:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                yield " ".join(text.split())
        except UnicodeDecodeError as error:
            found = f"byte {error.start + 1} is 0x{error.object[error.start]:02x}"
            raise CorpusError(f"{path}:{number}: the line is not UTF-8: {found}{_guess(path)}") from error
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            kind = path.suffix if path.suffix in (".gz", ".bz2", ".xz", ".zst") else "text"
            raise CorpusError(f"{path}:{number + 1}: cannot be read as {kind}, damaged or cut off: {error}") from error
    yield ""


def _guess(path: Path) -> str:
    """What a file that is not text seems to be."""
    kinds = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}
    kinds |= {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
    with open(path, "rb") as file:
        start = file.read(8)
    return next((f"; the file looks like {kind}" for magic, kind in kinds.items() if start.startswith(magic)), "")


def _has_text(path: Path) -> bool:
    seen, text = 0, False
    for line in _file_lines(path):
        if "\0" in line:
            raise CorpusError(f"{path} holds zero bytes: not UTF-8 text (UTF-16, or a binary file)")
        seen, text = seen + len(line) + 1, text or bool(line)
        if text and seen > CHECKED:
            break
    return text


# The embedded corpus


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)  # does not import the package
    if spec is None or not spec.submodule_search_locations:
        raise CorpusError(f"the embedded corpus needs {package}: pip install {package}")
    return Path(spec.submodule_search_locations[0])


def _version(package: str) -> str:
    _folder(package)
    return importlib.metadata.version(package)


@functools.cache  # 9 MB in all; parsing takes seconds, and a corpus is read more than once
def _embedded(package: str) -> tuple[tuple[str, ...], ...]:
    """The paragraphs of each module's docstrings, whole, in the order of the modules' paths."""
    folder = _folder(package)
    # numpy installs distutils for Python 3.11 only: without it the text is the same for every Python.
    skipped = {"tests", "_tests", "distutils"}
    modules = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    modules = [module for module in modules if not skipped & set(module.split("/")) and not module.endswith("_test.py")]
    read = (tuple(_paragraphs((folder / module).read_bytes())) for module in modules)
    return tuple(document for document in read if document)


def _paragraphs(source: bytes) -> Iterator[str]:
    """The paragraphs of a module's docstrings, each on one line, without the rules under headings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes
        try:
            tree = ast.parse(source)
        except SyntaxError:  # a template
            return
    for text in _docstrings(tree):
        rows = [row for row in text.split("\n") if not re.fullmatch(r"[-=~^*#\s]{3,}", row)]
        for paragraph in re.split(r"\n\s*\n", "\n".join(rows)):
            if words := paragraph.split():
                yield " ".join(words)


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Docstrings in source order, and the strings of numpy's and scipy's `add_newdoc("name", "text")` calls."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if text := ast.get_docstring(node):
            yield text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from _docstrings(child)
        elif isinstance(child, ast.Call) and ast.unparse(child.func).split(".")[-1].startswith("add_newdoc"):
            strings = [part for part in ast.walk(child) if isinstance(part, ast.Constant)]
            for part in sorted(strings, key=lambda part: (part.lineno, part.col_offset)):
                if isinstance(part.value, str) and len(part.value.split()) > 1:
                    yield inspect.cleandoc(part.value)


# TensorFlow Datasets


def _source(item: str):
    """The builder, split name, records and text feature of a prepared dataset, read without TensorFlow."""
    builder, split, records = _dataset(item)
    tfds = _module("tensorflow_datasets", f"corpus {item!r}")
    texts = [key for key, kind in builder.info.features.items() if isinstance(kind, tfds.features.Text)]
    feature = next((key for key in TEXTS if key in texts), texts[0] if len(texts) == 1 else None)
    if feature is None:
        raise CorpusError(f"corpus {item!r} has the text features {texts}; one must be named {', '.join(TEXTS)}")
    return builder, split, records, feature


def tfds_records(item: str) -> Iterator[dict]:
    """The records of a prepared data set "tfds:NAME@SPLIT", bytes as text. Raises `CorpusError`."""
    _, _, records = _dataset(item)
    for index in range(len(records)):
        yield _as_text(records[index])


def tfds_version(item: str) -> str:
    """The name, version and split of a prepared data set. Raises `CorpusError` where it cannot be read."""
    builder, split, _ = _dataset(item)
    return f"{builder.info.full_name}@{split}"


def _as_text(value):
    if isinstance(value, dict):
        return {name: _as_text(inner) for name, inner in value.items()}
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    kind = value.dtype.kind if getattr(value, "ndim", 0) else None
    return [_as_text(inner) for inner in value] if isinstance(value, list) or kind in ("O", "S") else value


def _dataset(item: str):
    """The builder, split name and records of a prepared dataset, read without TensorFlow."""
    name, _, split = item.removeprefix("tfds:").partition("@")
    split = split or "train"
    tfds = _module("tensorflow_datasets", f"corpus {item!r}")
    try:
        tfds.text.Glue  # noqa: B018 - registers the older text builders, which fails unseen without h5py
        if Path(name).expanduser().is_dir():
            builder = tfds.builder_from_directory(Path(name).expanduser())
        else:
            builder = tfds.builder(name, try_gcs=False)
    except Exception as error:
        known = re.findall(r"^\s*- (\S+)$", str(error), re.MULTILINE)
        if near := difflib.get_close_matches(name, known, 3):
            raise CorpusError(f"corpus {item!r}: TFDS has no {name!r}; near it: {', '.join(near)}") from error
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise CorpusError(
            f"corpus {item!r}: neither a TFDS dataset nor a folder of a prepared one, which holds "
            f"dataset_info.json: {first}"
        ) from error
    if not builder.is_prepared():
        raise CorpusError(
            f"corpus {item!r} is not prepared in {builder.data_dir} (TFDS_DATA_DIR sets where); nothing is downloaded "
            f"unasked: run `tfds build {name} --file_format=array_record`, or "
            f"tfds.builder({name!r}, file_format='array_record').download_and_prepare()"
        )
    if split.partition("[")[0] not in builder.info.splits:
        raise CorpusError(f"corpus {item!r} has no split {split!r}; it has {', '.join(builder.info.splits)}")
    try:
        records = builder.as_data_source(split=split)
    except Exception as error:
        raise CorpusError(
            f"corpus {item!r} in {builder.data_dir} cannot be read: {error}; without TensorFlow it must have been "
            "prepared with file_format='array_record'"
        ) from error
    return builder, split, records


def _tfds_lines(item: str) -> Iterator[str]:
    _, _, records, feature = _source(item)
    for index in range(len(records)):
        text = records[index][feature]
        try:
            text = text.decode() if isinstance(text, bytes) else str(text)
        except UnicodeDecodeError as error:
            raise CorpusError(f"corpus {item!r}: record {index} is not UTF-8") from error
        # wiki40b marks its lines with words.
        text = re.sub(r"_START_(?:ARTICLE|SECTION|PARAGRAPH)_|_NEWLINE_", "\n", text)
        yield from (words for line in text.split("\n") if (words := " ".join(line.split())))
        yield ""
