"""Documents from files: text, FASTA, JSON lines (all plain or compressed) and Parquet."""

from __future__ import annotations

import bz2
import difflib
import glob
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from encoders.text.source import ByteRange, CorpusError, DigestCache, Document, import_optional, split_paragraphs
from encoders.utils.buckets import find_scheme, get_size, is_in_bucket, open_file_system, parse_path
from encoders.utils.errors import is_of_bucket

MAX_CHECKED_CHARS = 1 << 16  # that `check_readable` reads of a file
MAX_LINE_BYTES = 64 << 20
REMOTE_BUFFER_BYTES = 1 << 20
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
FASTA_SUFFIXES = (".fasta", ".fa", ".faa", ".fna")


class FileSource:
    """Base of the sources of files; `text_field` names the field or column of a record's text, by default "text".

    Plain files are divided at the ends of documents that `find_document_start` returns, compressed ones are not.
    """

    def __init__(self, item: str, paths: list[Path], text_field: str | None = None):
        self.item, self.paths, self.text_field = item, paths, text_field or "text"

    def check_readable(self) -> None:
        has_text = [self.has_text(path) for path in self.paths]  # every file is checked
        if not any(has_text):
            raise CorpusError(f"corpus {self.item!r} holds no text: it is empty or blank")

    def describe_content(self, digest_cache: DigestCache) -> list[dict]:
        return [{"file": p.name, "sha256": digest_cache.hash_file(p), "bytes": get_size(p)} for p in self.paths]

    def split_ranges(self, target_bytes: int) -> Iterator[ByteRange]:
        return chain.from_iterable(self.split_file(path, target_bytes) for path in self.paths)

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
        return chain.from_iterable(self.read_documents(byte_range))

    def split_file(self, path: Path, target_bytes: int) -> Iterator[ByteRange]:
        file_bytes, start = get_size(path), 0
        if path.suffix in COMPRESSED_SUFFIXES:
            yield ByteRange(str(path), approx_bytes=4 * file_bytes)
            return
        with open_decompressed(path) as file:
            while start < file_bytes:
                target = start + target_bytes
                stop = self.find_document_start(file, target) if target < file_bytes else file_bytes
                yield ByteRange(str(path), start, stop, stop - start)
                start = stop


class TextSource(FileSource):
    """Source of UTF-8 text: a paragraph or a sentence a line, a blank line between documents."""

    def find_document_start(self, file, offset: int) -> int:
        """Return the first offset from `offset` on at which a document starts."""
        file.seek(offset - 1)
        line = file.readline(MAX_LINE_BYTES)  # the rest of a line, or its end
        while line and (line := file.readline(MAX_LINE_BYTES)).strip():
            pass
        return file.tell()

    def iter_lines(self, byte_range: ByteRange) -> Iterator[str]:
        return (" ".join(line.split()) for _, line in iter_numbered_lines(byte_range))

    def read_documents(self, byte_range: ByteRange) -> Iterator[Document]:
        document, size = [], 0
        for number, line in iter_numbered_lines(byte_range):
            if line := " ".join(line.split()):
                document.append(line)
                if (size := size + len(line)) > MAX_LINE_BYTES:
                    problem = f"a document of more than {MAX_LINE_BYTES >> 20} M characters"
                    raise build_line_error(byte_range, number, f"{problem}; separate documents by blank lines")
            elif document:
                yield document
                document, size = [], 0
        if document:
            yield document


def find_next_line(file, offset: int) -> int:
    """Return the first offset from `offset` on at which a line starts."""
    file.seek(offset - 1)
    file.readline(MAX_LINE_BYTES)
    return file.tell()


class LineSource(TextSource):
    """Source of UTF-8 text whose lines are documents, such as a protein, a molecule or a sentence each."""

    def find_document_start(self, file, offset: int) -> int:
        return find_next_line(file, offset)

    def read_documents(self, byte_range: ByteRange) -> Iterator[Document]:
        return ([line] for line in self.iter_lines(byte_range) if line)


class FastaSource(FileSource):
    """Source of FASTA files: a sequence, whose lines are joined, is a document; its name, after ">", is left out."""

    def find_document_start(self, file, offset: int) -> int:
        file.seek(offset - 1)
        file.readline(MAX_LINE_BYTES)
        while (line := file.readline(MAX_LINE_BYTES)) and not line.startswith(b">"):
            pass
        return file.tell() - len(line)

    def read_documents(self, byte_range: ByteRange) -> Iterator[Document]:
        sequence, is_first = [], True
        for number, line in iter_numbered_lines(byte_range):
            line = "".join(line.split())
            if line and is_first and not line.startswith((">", ";")):
                raise build_line_error(byte_range, number, "a FASTA file starts with the name of a sequence, after >")
            is_first = is_first and not line
            if not line.startswith((">", ";")):
                sequence.append(line)
            elif any(sequence):
                yield ["".join(sequence)]
                sequence = []
        if any(sequence):
            yield ["".join(sequence)]


class JsonLinesSource(FileSource):
    """Source of JSON lines: an object a line, whose text is a document. A null is an empty one, as in Parquet."""

    def find_document_start(self, file, offset: int) -> int:
        return find_next_line(file, offset)

    def read_documents(self, byte_range: ByteRange) -> Iterator[Document]:
        for number, line in iter_numbered_lines(byte_range):
            if line.strip():
                try:
                    text = self.parse_text(line)
                except CorpusError as error:
                    raise build_line_error(byte_range, number, error) from error
                yield from split_record(text)

    def parse_text(self, line: str) -> str | None:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"not JSON: {str(error)[:200]}") from error
        fields = record if isinstance(record, dict) else {}
        if self.text_field in fields and fields[self.text_field] is None:
            return None
        if not isinstance(fields.get(self.text_field), str):
            content = ", ".join(record) or "nothing" if record is fields else f"a {type(record).__name__}"
            raise CorpusError(f"no text {self.text_field!r} (data.text_field names it); the line has {content}")
        return fields[self.text_field].encode(errors="replace").decode()  # replaces lone surrogates


class ParquetSource(FileSource):
    """Source of Parquet files: every row of a text column is a document; ranges are row groups."""

    def split_file(self, path: Path, target_bytes: int) -> Iterator[ByteRange]:
        with open_parquet(path) as file:
            group_bytes = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
        start, num_bytes = 0, 0
        for stop, size in enumerate(group_bytes, 1):
            num_bytes += size
            if num_bytes >= target_bytes or stop == len(group_bytes):
                yield ByteRange(str(path), start, stop, num_bytes)
                start, num_bytes = stop, 0

    def read_documents(self, byte_range: ByteRange) -> Iterator[Document]:
        path = parse_path(byte_range.name)
        with open_parquet(path) as file:
            types = {column.name: str(column.type) for column in file.schema_arrow}
            if types.get(self.text_field) not in ("string", "large_string", "string_view"):
                columns = ", ".join(f"{name} ({type_name})" for name, type_name in types.items())
                problem = f"no text column {self.text_field!r} (data.text_field names it); it has {columns}"
                raise CorpusError(f"{path}: {problem}")
            groups = range(byte_range.start, file.num_row_groups if byte_range.stop is None else byte_range.stop)
            for batch in file.iter_batches(256, list(groups), [self.text_field]):
                yield from chain.from_iterable(map(split_record, batch.column(0).to_pylist()))


def split_record(text: str | None) -> Iterator[Document]:
    """Yield the document of a record's text: none for a blank text, an empty one for null, which is counted."""
    document = split_paragraphs(text or "")
    if document or text is None:
        yield document


@contextmanager
def open_parquet(path: Path):
    try:
        source = path.open("rb") if is_in_bucket(path) else path
        with import_optional("pyarrow.parquet", "a Parquet file").ParquetFile(source) as file:
            yield file
    except CorpusError:
        raise
    except (OSError, ValueError) as error:  # pyarrow's errors are subclasses of these
        raise CorpusError(f"{path}: cannot be read as Parquet, damaged or cut off: {error}") from error


def iter_parquet_rows(path: Path) -> Iterator[dict]:
    """Yield the rows of a Parquet file by column. Raises `CorpusError` for a damaged one."""
    with open_parquet(path) as file:
        for batch in file.iter_batches(256):
            yield from batch.to_pylist()


def make_file_source(item: str, text_field: str | None, document_per_line: bool = False) -> FileSource:
    """Return the source of the files that `item` names, by their suffix. `document_per_line` concerns text files."""
    paths = expand_paths(item)
    plain_names = [path.with_suffix("").name if path.suffix in COMPRESSED_SUFFIXES else path.name for path in paths]
    kinds = {".jsonl": JsonLinesSource, ".ndjson": JsonLinesSource, ".json": JsonLinesSource, ".parquet": ParquetSource}
    kinds |= dict.fromkeys(FASTA_SUFFIXES, FastaSource)
    text_class = LineSource if document_per_line else TextSource
    source_class, *others = {kinds.get(Path(name).suffix.lower(), text_class) for name in plain_names}
    if others:
        names = ", ".join(path.name for path in paths[:5])
        raise CorpusError(f"corpus {item!r} names files of several kinds: {names}; name each kind apart")
    return source_class(item, paths, text_field)


def expand_paths(item: str) -> list[Path]:
    path = parse_path(item).expanduser()
    if path.is_dir():
        raise CorpusError(f"corpus {item!r} is a folder; name its files, as in {str(path / '*.txt')!r}")
    if path.exists():  # also a name that holds a bracket or a star
        return [path]
    if glob.has_magic(item) and (files := sorted(p for p in match_paths(path) if p.is_file())):
        return files
    if not path.parent.is_dir() and not glob.has_magic(str(path.parent)):
        raise CorpusError(f"corpus {item!r}: the folder {str(path.parent)!r} does not exist")
    names = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
    similar = difflib.get_close_matches(path.name, names, 3, 0.5) or names[:3]
    raise CorpusError(f"corpus {item!r} names no file; {str(path.parent)!r} holds {', '.join(similar) or 'none'}")


def match_paths(pattern: Path) -> Iterator[Path]:
    """Yield the paths that match a pattern, of this machine or of a bucket."""
    if not is_in_bucket(pattern):
        return map(Path, glob.glob(str(pattern), recursive=True))
    names = open_file_system(pattern).glob(str(pattern))
    return (parse_path(f"{find_scheme(pattern)}://{name}") for name in names)


def open_decompressed(path: Path):
    try:
        source = io.BufferedReader(path.open("rb"), REMOTE_BUFFER_BYTES) if is_in_bucket(path) else path
        if path.suffix == ".zst":
            zstd = import_zstd()
            return zstd.open(source, "rb", options={zstd.DecompressionParameter.window_log_max: 31})
        if path.suffix in COMPRESSED_SUFFIXES:
            return {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[path.suffix](source, "rb")
        return source if is_in_bucket(path) else path.open("rb")
    except OSError as error:
        raise CorpusError(f"{path} cannot be opened: {error.strerror or error}") from error


@contextmanager
def open_compressed_text(path: Path, errors: str = "strict") -> Iterator[io.TextIOWrapper]:
    """Yield the lines of a compressed file of UTF-8. Raises `CorpusError` for a damaged one."""
    try:
        with open_decompressed(path) as file:
            yield io.TextIOWrapper(file, encoding="utf-8-sig", errors=errors, newline="\n")
    except list_damage_errors(path) as error:
        if not is_damage(error):
            raise
        raise CorpusError(f"{path}: cannot be read as {path.suffix}, damaged or cut off: {error}") from error


def list_damage_errors(path: Path) -> tuple[type[Exception], ...]:
    """Return the errors of reading a file whose content is damaged, and `OSError`, which has other causes too."""
    zstd_errors = (import_zstd().ZstdError,) if path.suffix == ".zst" else ()
    return (OSError, EOFError, lzma.LZMAError, zlib.error, *zstd_errors)


def is_damage(error: Exception) -> bool:
    """Return whether an error comes from the content of a file."""
    return not (getattr(error, "errno", None) or is_of_bucket(error))


def import_zstd():
    """Import the Zstandard module of Python 3.14, or its backport."""
    module_name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    return import_optional(module_name, "a .zst file", "backports.zstd")


def iter_numbered_lines(byte_range: ByteRange) -> Iterator[tuple[int, str]]:
    """Yield the lines of a range of a file, without line ends, and their numbers in the range, from 1."""
    path, number, offset = parse_path(byte_range.name), 0, byte_range.start
    with open_decompressed(path) as file:
        try:
            if offset:
                file.seek(offset)
            while (byte_range.stop is None or offset < byte_range.stop) and (line := file.readline(MAX_LINE_BYTES)):
                number, offset = number + 1, offset + len(line)
                if len(line) == MAX_LINE_BYTES and line[-1:] != b"\n":
                    problem = f"a line of more than {MAX_LINE_BYTES >> 20} MB; is it text?"
                    raise build_line_error(byte_range, number, problem)
                yield number, line.decode("utf-8-sig" if offset == len(line) else "utf-8").rstrip("\n")
        except UnicodeDecodeError as error:
            byte = f"byte {error.start + 1} is 0x{error.object[error.start]:02x}{guess_binary_format(path)}"
            raise build_line_error(byte_range, number, f"the line is not UTF-8: {byte}") from error
        except list_damage_errors(path) as error:
            if not is_damage(error):
                raise
            kind = path.suffix if path.suffix in COMPRESSED_SUFFIXES else "text"
            problem = f"cannot be read as {kind}, damaged or cut off: {error}"
            raise build_line_error(byte_range, number + 1, problem) from error


def build_line_error(byte_range: ByteRange, line_number: int, problem: object) -> CorpusError:
    """Return an error that names the file and, counted from its start, the n-th line of a range."""
    lines_before = 0
    if byte_range.start:
        with parse_path(byte_range.name).open("rb") as file:
            while (bytes_left := byte_range.start - file.tell()) > 0:
                lines_before += file.read(min(bytes_left, 1 << 20)).count(b"\n")
    return CorpusError(f"{byte_range.name}:{lines_before + line_number}: {problem}")


def guess_binary_format(path: Path) -> str:
    """Return a hint that names the format of a binary file, or an empty string."""
    formats = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}
    formats |= {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
    with path.open("rb") as file:
        start = file.read(8)
    return next((f"; the file looks like {kind}" for magic, kind in formats.items() if start.startswith(magic)), "")
