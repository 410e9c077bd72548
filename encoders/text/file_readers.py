"""Documents from files: text, JSON lines (both plain or compressed) and Parquet."""

from __future__ import annotations

import difflib
import glob
import json
import os
import sys
from collections.abc import Iterator
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

MAX_CHECKED_CHARS = 1 << 16  # that `check_readable` reads of a file
MAX_LINE_BYTES = 64 << 20
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
DEFAULT_TEXT_FIELD = "text"  # of JSON lines and Parquet, unless another is named


class FileSource:
    """Base of the sources of files; `text_field` names the field or column of a record's text."""

    def __init__(self, item: str, paths: list[Path], text_field: str | None = None):
        self.item, self.paths, self.text_field = item, paths, text_field or DEFAULT_TEXT_FIELD

    def check_readable(self) -> None:
        has_text = [self.has_text(path) for path in self.paths]  # every file is checked
        if not any(has_text):
            raise CorpusError(f"corpus {self.item!r} holds no text: it is empty or blank")

    def describe_content(self, digest_cache: DigestCache) -> list[dict]:
        return [{"file": p.name, "sha256": digest_cache.hash_file(p), "bytes": p.stat().st_size} for p in self.paths]

    def split_ranges(self, target_bytes: int) -> Iterator[ByteRange]:
        for path in self.paths:
            yield from self.split_file(path, target_bytes)

    def has_text(self, path: Path) -> bool:
        num_chars, has_text = 0, False
        for line in self.iter_lines(ByteRange(str(path))):
            if "\0" in line:
                raise CorpusError(f"{path} holds zero bytes: not UTF-8 text (UTF-16, or a binary file)")
            num_chars, has_text = num_chars + len(line) + 1, has_text or bool(line)
            if has_text and num_chars > MAX_CHECKED_CHARS:
                break
        return has_text

    def iter_lines(self, byte_range: ByteRange) -> Iterator[str]:
        """Yield the lines of the documents of a range."""
        for document in self.read_documents(byte_range):
            yield from document

    def split_file(self, path: Path, target_bytes: int) -> Iterator[ByteRange]:
        raise NotImplementedError

    def read_documents(self, byte_range: ByteRange) -> Iterator[Document]:
        raise NotImplementedError


class LineFileSource(FileSource):
    """Base of files read line by line. Plain files are divided at ends of documents, compressed ones are not
    divided."""

    def split_file(self, path: Path, target_bytes: int) -> Iterator[ByteRange]:
        file_bytes = path.stat().st_size
        if path.suffix in COMPRESSED_SUFFIXES:
            yield ByteRange(str(path), approx_bytes=4 * file_bytes)
            return
        start = 0
        with open_decompressed(path) as file:
            while start < file_bytes:
                stop = file_bytes
                if start + target_bytes < file_bytes:
                    stop = self.find_document_start(file, start + target_bytes)
                yield ByteRange(str(path), start, stop, stop - start)
                start = stop

    def find_document_start(self, file, offset: int) -> int:
        """Return the first offset from `offset` on at which a document starts."""
        raise NotImplementedError


class TextSource(LineFileSource):
    """Source of UTF-8 text: a paragraph or a sentence a line, a blank line between documents."""

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
                    raise CorpusError(
                        f"{format_line_location(byte_range, number)}: a document of more than {MAX_LINE_BYTES >> 20} M "
                        "characters; separate documents by blank lines"
                    )
            elif document:
                yield document
                document, size = [], 0
        if document:
            yield document


class JsonLinesSource(LineFileSource):
    """Source of JSON lines: an object a line, whose text is a document."""

    def find_document_start(self, file, offset: int) -> int:
        file.seek(offset - 1)
        file.readline(MAX_LINE_BYTES)
        return file.tell()

    def read_documents(self, byte_range: ByteRange) -> Iterator[Document]:
        for number, line in iter_numbered_lines(byte_range):
            if not line.strip():
                continue
            try:
                document = split_paragraphs(self.parse_text(line))
            except CorpusError as error:
                raise CorpusError(f"{format_line_location(byte_range, number)}: {error}") from error
            if document:
                yield document

    def parse_text(self, line: str) -> str:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"not JSON: {str(error)[:200]}") from error
        if not isinstance(record, dict) or not isinstance(record.get(self.text_field), str):
            content = ", ".join(record) if isinstance(record, dict) else f"a {type(record).__name__}"
            raise CorpusError(
                f"no text {self.text_field!r} (data.text_field names it); the line has {content or 'nothing'}"
            )
        return record[self.text_field].encode(errors="replace").decode()  # replaces lone surrogates


class ParquetSource(FileSource):
    """Source of Parquet files: every row of a text column is a document; ranges are row groups."""

    def split_file(self, path: Path, target_bytes: int) -> Iterator[ByteRange]:
        with self.open_parquet(path) as file:
            group_bytes = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
        start, num_bytes = 0, 0
        for stop, size in enumerate(group_bytes, 1):
            num_bytes += size
            if num_bytes >= target_bytes or stop == len(group_bytes):
                yield ByteRange(str(path), start, stop, num_bytes)
                start, num_bytes = stop, 0

    def read_documents(self, byte_range: ByteRange) -> Iterator[Document]:
        path = Path(byte_range.name)
        with self.open_parquet(path) as file:
            types = {column.name: str(column.type) for column in file.schema_arrow}
            if types.get(self.text_field) not in ("string", "large_string", "string_view"):
                columns = ", ".join(f"{name} ({type_name})" for name, type_name in types.items())
                raise CorpusError(
                    f"{path}: no text column {self.text_field!r} (data.text_field names it); it has {columns}"
                )
            groups = range(byte_range.start, file.num_row_groups if byte_range.stop is None else byte_range.stop)
            try:
                for batch in file.iter_batches(256, list(groups), [self.text_field]):
                    for text in batch.column(0).to_pylist():
                        if document := split_paragraphs(text or ""):
                            yield document
            except (OSError, ValueError) as error:  # pyarrow's errors are subclasses of these
                raise CorpusError(f"{path}: cannot be read as Parquet, damaged or cut off: {error}") from error

    def open_parquet(self, path: Path):
        parquet = import_optional("pyarrow.parquet", "a Parquet file")
        try:
            return parquet.ParquetFile(path)
        except (OSError, ValueError) as error:
            raise CorpusError(f"{path}: cannot be read as Parquet, damaged or cut off: {error}") from error


def make_file_source(item: str, text_field: str | None) -> FileSource:
    """Return the source of the files that `item` names, by their suffix."""
    paths = expand_paths(item)
    names = [path.name for path in paths]
    source_class, *others = {choose_file_source_class(name) for name in names}
    if others:
        raise CorpusError(f"corpus {item!r} names files of several kinds: {', '.join(names[:5])}; name each kind apart")
    return source_class(item, paths, text_field)


def choose_file_source_class(file_name: str) -> type[FileSource]:
    for suffix in COMPRESSED_SUFFIXES:
        file_name = file_name.removesuffix(suffix)
    suffix = Path(file_name).suffix.lower()
    if suffix in (".jsonl", ".ndjson", ".json"):
        return JsonLinesSource
    return ParquetSource if suffix == ".parquet" else TextSource


def expand_paths(item: str) -> list[Path]:
    """Return the files that a path or a glob names."""
    path = Path(item).expanduser()
    if path.is_dir():
        raise CorpusError(f"corpus {item!r} is a folder; name its files, as in {str(Path(item) / '*.txt')!r}")
    if path.exists():  # also a name that holds a bracket or a star
        return [path]
    if glob.has_magic(item):
        if names := sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name)):
            return names
    if not path.parent.is_dir() and not glob.has_magic(str(path.parent)):
        raise CorpusError(f"corpus {item!r}: the folder {str(path.parent)!r} does not exist")
    names = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
    similar = difflib.get_close_matches(path.name, names, 3, 0.5) or names[:3]
    raise CorpusError(f"corpus {item!r} names no file; {str(path.parent)!r} holds {', '.join(similar) or 'none'}")


def open_decompressed(path: Path):
    import bz2
    import gzip
    import lzma

    try:
        if path.suffix == ".zst":
            zstd = import_zstd()
            return zstd.open(path, "rb", options={zstd.DecompressionParameter.window_log_max: 31})
        return {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(path.suffix, open)(path, "rb")
    except OSError as error:
        raise CorpusError(f"{path} cannot be opened: {error.strerror or error}") from error


def import_zstd():
    """Import the Zstandard module of Python 3.14, or its backport."""
    module_name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    return import_optional(module_name, "a .zst file", "backports.zstd")


def iter_numbered_lines(byte_range: ByteRange) -> Iterator[tuple[int, str]]:
    """Yield the lines of a range of a file, without line ends, and their numbers in the range, from 1."""
    import lzma
    import zlib

    path, number, offset = Path(byte_range.name), 0, byte_range.start
    damage_errors = (OSError, EOFError, lzma.LZMAError, zlib.error)
    if path.suffix == ".zst":
        damage_errors += (import_zstd().ZstdError,)
    with open_decompressed(path) as file:
        try:
            if offset:
                file.seek(offset)
            while (byte_range.stop is None or offset < byte_range.stop) and (line := file.readline(MAX_LINE_BYTES)):
                number, offset = number + 1, offset + len(line)
                if len(line) == MAX_LINE_BYTES and line[-1:] != b"\n":
                    raise CorpusError(
                        f"{format_line_location(byte_range, number)}: a line of more than {MAX_LINE_BYTES >> 20} MB; "
                        "is it text?"
                    )
                yield number, line.decode("utf-8-sig" if offset == len(line) else "utf-8").rstrip("\n")
        except UnicodeDecodeError as error:
            byte = f"byte {error.start + 1} is 0x{error.object[error.start]:02x}"
            raise CorpusError(
                f"{format_line_location(byte_range, number)}: the line is not UTF-8: {byte}{guess_binary_format(path)}"
            ) from error
        except damage_errors as error:
            if getattr(error, "errno", None):  # of the disk or the network, not of the file's content
                raise
            kind = path.suffix if path.suffix in COMPRESSED_SUFFIXES else "text"
            location = format_line_location(byte_range, number + 1)
            raise CorpusError(f"{location}: cannot be read as {kind}, damaged or cut off: {error}") from error


def format_line_location(byte_range: ByteRange, line_number: int) -> str:
    """Return file and line number of the n-th line of a range."""
    lines_before = 0
    if byte_range.start:
        with open(byte_range.name, "rb") as file:
            while (bytes_left := byte_range.start - file.tell()) > 0:
                lines_before += file.read(min(bytes_left, 1 << 20)).count(b"\n")
    return f"{byte_range.name}:{lines_before + line_number}"


def guess_binary_format(path: Path) -> str:
    """Return a hint that names the format of a binary file, or an empty string."""
    formats = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}
    formats |= {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
    with open(path, "rb") as file:
        start = file.read(8)
    return next((f"; the file looks like {kind}" for magic, kind in formats.items() if start.startswith(magic)), "")
