"""Documents from files: text, JSON lines (both plain or compressed) and Parquet."""

from __future__ import annotations

import difflib
import glob
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from encoders.text.source import CorpusError, Digests, Document, Part, needed, paragraphs, words

CHECKED = 1 << 16  # characters of a file that `check` reads
LONGEST = 64 << 20  # bytes of a line
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
FIELD = "text"  # of JSON lines and Parquet, unless another is named


class Files:
    """What kinds of files have in common: `item` names the `paths`, and `field` is where a record has its text."""

    def __init__(self, item: str, paths: list[Path], field: str | None = None):
        self.item, self.paths, self.field = item, paths, field or FIELD

    def check(self) -> None:
        if not any([self.has_text(path) for path in self.paths]):  # a list: every file is looked at
            raise CorpusError(f"corpus {self.item!r} holds no text: it is empty or blank")

    def identity(self, digests: Digests) -> list[dict]:
        return [{"file": p.name, "sha256": digests.of(p), "bytes": p.stat().st_size} for p in self.paths]

    def parts(self, size: int) -> Iterator[Part]:
        for path in self.paths:
            yield from self.cut(path, size)

    def has_text(self, path: Path) -> bool:
        seen, text = 0, False
        for line in self.lines(Part(str(path))):
            if "\0" in line:
                raise CorpusError(f"{path} holds zero bytes: not UTF-8 text (UTF-16, or a binary file)")
            seen, text = seen + len(line) + 1, text or bool(line)
            if text and seen > CHECKED:
                break
        return text

    def lines(self, part: Part) -> Iterator[str]:
        """The lines of the documents of a part."""
        for document in self.documents(part):
            yield from document

    def cut(self, path: Path, size: int) -> Iterator[Part]:
        raise NotImplementedError

    def documents(self, part: Part) -> Iterator[Document]:
        raise NotImplementedError


class Lines(Files):
    """Files that are read line by line. Plain ones are cut where a document ends, compressed ones are read whole."""

    def cut(self, path: Path, size: int) -> Iterator[Part]:
        whole = path.stat().st_size
        if path.suffix in COMPRESSED:
            yield Part(str(path), size=4 * whole)  # of text, about
            return
        start = 0
        with opened(path) as file:
            while start < whole:
                stop = self.boundary(file, start + size) if start + size < whole else whole
                yield Part(str(path), start, stop, stop - start)
                start = stop

    def boundary(self, file, at: int) -> int:
        """The first place from `at` on where a document begins."""
        raise NotImplementedError


class Text(Lines):
    """UTF-8 text: a paragraph or a sentence a line, a blank line between documents."""

    def boundary(self, file, at: int) -> int:
        file.seek(at - 1)
        line = file.readline(LONGEST)  # the rest of a line, or its end
        while line and (line := file.readline(LONGEST)).strip():
            pass
        return file.tell()

    def lines(self, part: Part) -> Iterator[str]:
        for _, line in lines_of(part):
            yield words(line)

    def documents(self, part: Part) -> Iterator[Document]:
        document, size = [], 0
        for number, line in lines_of(part):
            if line := words(line):
                document.append(line)
                if (size := size + len(line)) > LONGEST:
                    longest = f"a document of more than {LONGEST >> 20} M characters"
                    raise CorpusError(f"{place(part, number)}: {longest}; a blank line stands between documents")
            elif document:
                yield document
                document, size = [], 0
        if document:
            yield document


class JsonLines(Lines):
    """A JSON object a line, whose text is a document."""

    def boundary(self, file, at: int) -> int:
        file.seek(at - 1)
        file.readline(LONGEST)
        return file.tell()

    def documents(self, part: Part) -> Iterator[Document]:
        for number, line in lines_of(part):
            if line.strip():
                if document := paragraphs(self.text(line, lambda number=number: place(part, number))):
                    yield document

    def text(self, line: str, at: Callable[[], str]) -> str:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{at()}: not JSON: {str(error)[:200]}") from error
        if not isinstance(record, dict) or not isinstance(record.get(self.field), str):
            has = ", ".join(record) if isinstance(record, dict) else f"a {type(record).__name__}"
            raise CorpusError(f"{at()}: no text {self.field!r} (data.text names it); the line has {has or 'nothing'}")
        return record[self.field].encode(errors="replace").decode()  # a lone surrogate is no character


class Parquet(Files):
    """A text column, of which every row is a document; a row group is read in one go."""

    def cut(self, path: Path, size: int) -> Iterator[Part]:
        with self.file(path) as file:
            groups = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
        start, held = 0, 0
        for index, group in enumerate(groups):
            held += group
            if held >= size or index == len(groups) - 1:
                yield Part(str(path), start, index + 1, held)
                start, held = index + 1, 0

    def documents(self, part: Part) -> Iterator[Document]:
        path = Path(part.name)
        with self.file(path) as file:
            kinds = {
                name: str(kind) for name, kind in zip(file.schema_arrow.names, file.schema_arrow.types, strict=True)
            }
            if kinds.get(self.field) not in ("string", "large_string", "string_view"):
                has = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
                raise CorpusError(f"{path}: no text column {self.field!r} (data.text names it); it has {has}")
            groups = range(part.start, file.num_row_groups if part.stop is None else part.stop)
            try:
                for batch in file.iter_batches(256, list(groups), [self.field]):
                    for text in batch.column(0).to_pylist():
                        if document := paragraphs(text or ""):
                            yield document
            except (OSError, ValueError) as error:  # pyarrow's own are of these kinds
                raise CorpusError(f"{path}: cannot be read as Parquet, damaged or cut off: {error}") from error

    def file(self, path: Path):
        parquet = needed("pyarrow.parquet", "a Parquet file")
        try:
            return parquet.ParquetFile(path)
        except (OSError, ValueError) as error:
            raise CorpusError(f"{path}: cannot be read as Parquet, damaged or cut off: {error}") from error


def files(item: str, field: str | None) -> Files:
    """The reader of the files that `item` names, by the ending of their names."""
    paths = found(item)
    names = [path.name for path in paths]
    kinds = sorted({kind_of(name) for name in names}, key=lambda kind: kind.__name__)
    if len(kinds) > 1:
        raise CorpusError(f"corpus {item!r} names files of several kinds: {', '.join(names[:5])}; name each kind apart")
    return kinds[0](item, paths, field)


def kind_of(name: str) -> type[Files]:
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    kinds = {".jsonl": JsonLines, ".ndjson": JsonLines, ".json": JsonLines, ".parquet": Parquet}
    return kinds.get(Path(name).suffix.lower(), Text)


def found(item: str) -> list[Path]:
    """The files that a path or a glob names."""
    path = Path(item).expanduser()
    if path.is_dir():
        raise CorpusError(f"corpus {item!r} is a folder; name its files, as in {str(Path(item) / '*.txt')!r}")
    if path.exists():  # also where its name holds a bracket or a star
        return [path]
    if glob.has_magic(item):
        if names := sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name)):
            return names
    if not path.parent.is_dir() and not glob.has_magic(str(path.parent)):
        raise CorpusError(f"corpus {item!r}: there is no folder {str(path.parent)!r}")
    names = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, 3, 0.5) or names[:3]
    raise CorpusError(f"corpus {item!r} names no file; {str(path.parent)!r} holds {', '.join(near) or 'none'}")


def opened(path: Path):
    import bz2
    import gzip
    import lzma

    openers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": zstd_open}
    try:
        return openers.get(path.suffix, open)(path, "rb")
    except OSError as error:
        raise CorpusError(f"{path} cannot be opened: {error.strerror or error}") from error


def lines_of(part: Part) -> Iterator[tuple[int, str]]:
    """The lines of a part of a file, without their ends, and their numbers in it, from 1."""
    import lzma
    import zlib

    path, number, at = Path(part.name), 0, part.start
    with opened(path) as file:
        try:
            if at:
                file.seek(at)
            while (part.stop is None or at < part.stop) and (line := file.readline(LONGEST)):
                number, at = number + 1, at + len(line)
                if len(line) == LONGEST and line[-1:] != b"\n":
                    raise CorpusError(f"{place(part, number)}: a line of more than {LONGEST >> 20} MB; is it text?")
                yield number, line.decode("utf-8-sig" if at == len(line) else "utf-8").rstrip("\n")
        except UnicodeDecodeError as error:
            byte = f"byte {error.start + 1} is 0x{error.object[error.start]:02x}"
            raise CorpusError(f"{place(part, number)}: the line is not UTF-8: {byte}{looks_like(path)}") from error
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            if getattr(error, "errno", None):  # of the disk or the network, not of what is in the file
                raise
            kind = path.suffix if path.suffix in COMPRESSED else "text"
            where = place(part, number + 1)
            raise CorpusError(f"{where}: cannot be read as {kind}, damaged or cut off: {error}") from error


def place(part: Part, number: int) -> str:
    """File and line of the `number`-th line of a part."""
    before = 0
    if part.start:
        with open(part.name, "rb") as file:
            while (left := part.start - file.tell()) > 0:
                before += file.read(min(left, 1 << 20)).count(b"\n")
    return f"{part.name}:{before + number}"


def looks_like(path: Path) -> str:
    """What a file that is not text seems to be."""
    kinds = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}
    kinds |= {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
    with open(path, "rb") as file:
        start = file.read(8)
    return next((f"; the file looks like {kind}" for magic, kind in kinds.items() if start.startswith(magic)), "")


def zstd_open(path: Path, mode: str) -> io.BufferedReader:
    library = needed("zstandard", "a .zst file")
    return io.BufferedReader(Zstd(open(path, mode), library), 1 << 17)


class Zstd(io.RawIOBase):
    """A .zst file's content; unlike `zstandard.open` it reads every frame and reports one that is cut off."""

    def __init__(self, file, library):
        self.file, self.library, self.frame, self.ready = file, library, None, memoryview(b"")

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
