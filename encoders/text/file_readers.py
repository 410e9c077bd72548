"""Documents from files: text, JSON lines (both plain or compressed) and Parquet."""

from __future__ import annotations

import difflib
import glob
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from encoders.text.source import (
    ByteRange,
    CorpusError,
    DigestCache,
    Document,
    import_optional,
    normalize_spaces,
    split_paragraphs,
)

MAX_CHECKED_CHARS = 1 << 16  # characters of a file that `check` reads
MAX_LINE_BYTES = 64 << 20  # bytes of a line
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
DEFAULT_TEXT_FIELD = "text"  # of JSON lines and Parquet, unless another is named


class FileSource:
    """What kinds of files have in common: `item` names the `paths`, and `field` is where a record has its text."""

    def __init__(self, item: str, paths: list[Path], text_field: str | None = None):
        self.item, self.paths, self.text_field = item, paths, text_field or DEFAULT_TEXT_FIELD

    def check_readable(self) -> None:
        if not any([self.has_text(path) for path in self.paths]):  # a list: every file is looked at
            raise CorpusError(f"corpus {self.item!r} holds no text: it is empty or blank")

    def describe_content(self, digest_cache: DigestCache) -> list[dict]:
        return [{"file": p.name, "sha256": digest_cache.hash_file(p), "bytes": p.stat().st_size} for p in self.paths]

    def split_ranges(self, target_bytes: int) -> Iterator[ByteRange]:
        for path in self.paths:
            yield from self.split_file(path, target_bytes)

    def has_text(self, path: Path) -> bool:
        seen, text = 0, False
        for line in self.iter_lines(ByteRange(str(path))):
            if "\0" in line:
                raise CorpusError(f"{path} holds zero bytes: not UTF-8 text (UTF-16, or a binary file)")
            seen, text = seen + len(line) + 1, text or bool(line)
            if text and seen > MAX_CHECKED_CHARS:
                break
        return text

    def iter_lines(self, byte_range: ByteRange) -> Iterator[str]:
        """The lines of the documents of a part."""
        for document in self.read_documents(byte_range):
            yield from document

    def split_file(self, path: Path, target_bytes: int) -> Iterator[ByteRange]:
        raise NotImplementedError

    def read_documents(self, byte_range: ByteRange) -> Iterator[Document]:
        raise NotImplementedError


class LineFileSource(FileSource):
    """Files that are read line by line. Plain ones are cut where a document ends, compressed ones are read whole."""

    def split_file(self, path: Path, target_bytes: int) -> Iterator[ByteRange]:
        whole = path.stat().st_size
        if path.suffix in COMPRESSED_SUFFIXES:
            yield ByteRange(str(path), approx_bytes=4 * whole)  # of text, about
            return
        start = 0
        with open_decompressed(path) as file:
            while start < whole:
                stop = self.find_document_start(file, start + target_bytes) if start + target_bytes < whole else whole
                yield ByteRange(str(path), start, stop, stop - start)
                start = stop

    def find_document_start(self, file, offset: int) -> int:
        """The first place from `at` on where a document begins."""
        raise NotImplementedError


class TextSource(LineFileSource):
    """UTF-8 text: a paragraph or a sentence a line, a blank line between documents."""

    def find_document_start(self, file, offset: int) -> int:
        file.seek(offset - 1)
        line = file.readline(MAX_LINE_BYTES)  # the rest of a line, or its end
        while line and (line := file.readline(MAX_LINE_BYTES)).strip():
            pass
        return file.tell()

    def iter_lines(self, byte_range: ByteRange) -> Iterator[str]:
        for _, line in iter_numbered_lines(byte_range):
            yield normalize_spaces(line)

    def read_documents(self, byte_range: ByteRange) -> Iterator[Document]:
        document, size = [], 0
        for number, line in iter_numbered_lines(byte_range):
            if line := normalize_spaces(line):
                document.append(line)
                if (size := size + len(line)) > MAX_LINE_BYTES:
                    longest = f"a document of more than {MAX_LINE_BYTES >> 20} M characters"
                    raise CorpusError(
                        f"{format_line_location(byte_range, number)}: {longest}; a blank line stands between documents"
                    )
            elif document:
                yield document
                document, size = [], 0
        if document:
            yield document


class JsonLinesSource(LineFileSource):
    """A JSON object a line, whose text is a document."""

    def find_document_start(self, file, offset: int) -> int:
        file.seek(offset - 1)
        file.readline(MAX_LINE_BYTES)
        return file.tell()

    def read_documents(self, byte_range: ByteRange) -> Iterator[Document]:
        for number, line in iter_numbered_lines(byte_range):
            if line.strip():
                if document := split_paragraphs(
                    self.parse_text(line, lambda number=number: format_line_location(byte_range, number))
                ):
                    yield document

    def parse_text(self, line: str, get_location: Callable[[], str]) -> str:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{get_location()}: not JSON: {str(error)[:200]}") from error
        if not isinstance(record, dict) or not isinstance(record.get(self.text_field), str):
            has = ", ".join(record) if isinstance(record, dict) else f"a {type(record).__name__}"
            raise CorpusError(
                f"{get_location()}: no text {self.text_field!r} (data.text_field names it); the line has "
                f"{has or 'nothing'}"
            )
        return record[self.text_field].encode(errors="replace").decode()  # a lone surrogate is no character


class ParquetSource(FileSource):
    """A text column, of which every row is a document; a row group is read in one go."""

    def split_file(self, path: Path, target_bytes: int) -> Iterator[ByteRange]:
        with self.open_parquet(path) as file:
            groups = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
        start, held = 0, 0
        for index, group in enumerate(groups):
            held += group
            if held >= target_bytes or index == len(groups) - 1:
                yield ByteRange(str(path), start, index + 1, held)
                start, held = index + 1, 0

    def read_documents(self, byte_range: ByteRange) -> Iterator[Document]:
        path = Path(byte_range.name)
        with self.open_parquet(path) as file:
            kinds = {
                name: str(kind) for name, kind in zip(file.schema_arrow.names, file.schema_arrow.types, strict=True)
            }
            if kinds.get(self.text_field) not in ("string", "large_string", "string_view"):
                has = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
                raise CorpusError(
                    f"{path}: no text column {self.text_field!r} (data.text_field names it); it has {has}"
                )
            groups = range(byte_range.start, file.num_row_groups if byte_range.stop is None else byte_range.stop)
            try:
                for batch in file.iter_batches(256, list(groups), [self.text_field]):
                    for text in batch.column(0).to_pylist():
                        if document := split_paragraphs(text or ""):
                            yield document
            except (OSError, ValueError) as error:  # pyarrow's own are of these kinds
                raise CorpusError(f"{path}: cannot be read as Parquet, damaged or cut off: {error}") from error

    def open_parquet(self, path: Path):
        parquet = import_optional("pyarrow.parquet", "a Parquet file")
        try:
            return parquet.ParquetFile(path)
        except (OSError, ValueError) as error:
            raise CorpusError(f"{path}: cannot be read as Parquet, damaged or cut off: {error}") from error


def make_file_source(item: str, text_field: str | None) -> FileSource:
    """The reader of the files that `item` names, by the ending of their names."""
    paths = expand_paths(item)
    names = [path.name for path in paths]
    kinds = sorted({choose_file_source_class(name) for name in names}, key=lambda kind: kind.__name__)
    if len(kinds) > 1:
        raise CorpusError(f"corpus {item!r} names files of several kinds: {', '.join(names[:5])}; name each kind apart")
    return kinds[0](item, paths, text_field)


def choose_file_source_class(file_name: str) -> type[FileSource]:
    for ending in COMPRESSED_SUFFIXES:
        file_name = file_name.removesuffix(ending)
    kinds = {".jsonl": JsonLinesSource, ".ndjson": JsonLinesSource, ".json": JsonLinesSource, ".parquet": ParquetSource}
    return kinds.get(Path(file_name).suffix.lower(), TextSource)


def expand_paths(item: str) -> list[Path]:
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


def open_decompressed(path: Path):
    import bz2
    import gzip
    import lzma

    openers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": open_zstd}
    try:
        return openers.get(path.suffix, open)(path, "rb")
    except OSError as error:
        raise CorpusError(f"{path} cannot be opened: {error.strerror or error}") from error


def iter_numbered_lines(byte_range: ByteRange) -> Iterator[tuple[int, str]]:
    """The lines of a part of a file, without their ends, and their numbers in it, from 1."""
    import lzma
    import zlib

    path, number, at = Path(byte_range.name), 0, byte_range.start
    with open_decompressed(path) as file:
        try:
            if at:
                file.seek(at)
            while (byte_range.stop is None or at < byte_range.stop) and (line := file.readline(MAX_LINE_BYTES)):
                number, at = number + 1, at + len(line)
                if len(line) == MAX_LINE_BYTES and line[-1:] != b"\n":
                    raise CorpusError(
                        f"{format_line_location(byte_range, number)}: a line of more than {MAX_LINE_BYTES >> 20} MB; "
                        "is it text?"
                    )
                yield number, line.decode("utf-8-sig" if at == len(line) else "utf-8").rstrip("\n")
        except UnicodeDecodeError as error:
            byte = f"byte {error.start + 1} is 0x{error.object[error.start]:02x}"
            raise CorpusError(
                f"{format_line_location(byte_range, number)}: the line is not UTF-8: {byte}{guess_binary_format(path)}"
            ) from error
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            if getattr(error, "errno", None):  # of the disk or the network, not of what is in the file
                raise
            kind = path.suffix if path.suffix in COMPRESSED_SUFFIXES else "text"
            where = format_line_location(byte_range, number + 1)
            raise CorpusError(f"{where}: cannot be read as {kind}, damaged or cut off: {error}") from error


def format_line_location(byte_range: ByteRange, line_number: int) -> str:
    """File and line of the `number`-th line of a part."""
    before = 0
    if byte_range.start:
        with open(byte_range.name, "rb") as file:
            while (left := byte_range.start - file.tell()) > 0:
                before += file.read(min(left, 1 << 20)).count(b"\n")
    return f"{byte_range.name}:{before + line_number}"


def guess_binary_format(path: Path) -> str:
    """What a file that is not text seems to be."""
    kinds = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}
    kinds |= {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
    with open(path, "rb") as file:
        start = file.read(8)
    return next((f"; the file looks like {kind}" for magic, kind in kinds.items() if start.startswith(magic)), "")


def open_zstd(path: Path, mode: str) -> io.BufferedReader:
    library = import_optional("zstandard", "a .zst file")
    return io.BufferedReader(ZstdReader(open(path, mode), library), 1 << 17)


class ZstdReader(io.RawIOBase):
    """A .zst file's content; unlike `zstandard.open` it reads every frame and reports one that is cut off."""

    def __init__(self, file, library):
        self.file, self.library, self.frame, self.decompressed_bytes = file, library, None, memoryview(b"")

    def readable(self):
        return True

    def close(self):
        self.file.close()
        super().close()

    def readinto(self, buffer) -> int:
        while not self.decompressed_bytes:
            data = self.file.read(1 << 17)
            if not data:
                if self.frame:
                    raise EOFError("the last frame is cut off")
                return 0
            self.decompressed_bytes = memoryview(b"".join(self.decompress_frames(data)))
        count = min(len(buffer), len(self.decompressed_bytes))
        buffer[:count], self.decompressed_bytes = self.decompressed_bytes[:count], self.decompressed_bytes[count:]
        return count

    def decompress_frames(self, data: bytes) -> Iterator[bytes]:
        while data:
            try:
                self.frame = self.frame or self.library.ZstdDecompressor(max_window_size=2**31).decompressobj()
                yield self.frame.decompress(data)
            except self.library.ZstdError as error:
                raise OSError(str(error)) from error
            data = b""
            if self.frame.eof:
                data, self.frame = self.frame.unused_data, None
