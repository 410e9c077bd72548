"""Files of labelled rows: TSV in the form of GLUE, CSV, JSON lines and Parquet, read row by row with locations."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from encoders.text.file_readers import COMPRESSED_SUFFIXES, iter_parquet_rows, open_compressed_text
from encoders.text.source import CorpusError
from encoders.utils.buckets import AnyPath, open_text
from encoders.utils.errors import UserError

OnBadRow = Literal["stop", "skip"]
MAX_FIELD_CHARS = 64 << 20  # of a CSV field; Python's own limit is 131,072


class RowError(UserError):
    """A row that cannot be used; the message starts with its location."""

    def __init__(self, location: str, problem: str):
        super().__init__(f"{location}: {problem}")


def has_lone_surrogate(text: str) -> bool:
    """Return whether a text holds a byte that is not UTF-8, or half a surrogate pair of JSON."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


@dataclass(frozen=True)
class Record:
    """Fields of a row by column, and its location."""

    location: str
    values: dict[str, Any]

    def __getitem__(self, column: str) -> Any:
        if column not in self.values:
            raise RowError(self.location, f"no column {column!r}; it has {', '.join(map(str, self.values))}")
        return self.values[column]

    def get_text(self, column: str) -> str:
        """Return the text of a column. Raises `RowError` for a value that is empty or not text."""
        text = self[column]
        if not isinstance(text, str):
            raise RowError(self.location, f"{column}={text!r} is not text")
        if not text.strip():
            raise RowError(self.location, f"{column} is empty")
        if has_lone_surrogate(text):
            raise RowError(self.location, f"{column} is not UTF-8")
        return text


class RowReader:
    """Reader of rows that stops at the first bad row, or skips bad rows and lists them."""

    def __init__(self, on_bad_row: OnBadRow = "stop"):
        self.on_bad_row, self.skipped_rows = on_bad_row, []

    def convert_rows(self, rows: Iterator, convert: Callable[[Any], Any]) -> Iterator:
        """Yield `convert(row)` of each row. A row that is a `RowError`, or raises it, stops the reader or is
        skipped."""
        try:
            for row in rows:
                try:
                    if isinstance(row, RowError):
                        raise row
                    yield convert(row)
                except RowError as error:
                    if self.on_bad_row == "stop":
                        raise
                    self.skipped_rows.append(str(error))
        finally:
            if isinstance(rows, Generator):  # close its file now rather than at garbage collection
                rows.close()


def read_records(path: Path, columns: tuple[str, ...] = ()) -> Iterator[Record | RowError]:
    """Yield the rows of a file by its suffix: .tsv (no quoting), .csv, .jsonl, each plain or compressed, or .parquet.

    `columns` names the columns of a file without a header. A damaged row is yielded as a `RowError`. Raises `RowError`
    for a file without rows, and for one that is damaged.
    """
    readers = {".tsv": split_tsv_lines, ".txt": split_tsv_lines, ".csv": split_csv_lines, ".jsonl": parse_json_lines}
    readers |= {".parquet": enumerate_parquet_rows}
    suffix = path.with_suffix("").suffix if path.suffix in COMPRESSED_SUFFIXES else path.suffix
    if suffix not in readers:
        accepted = f"{', '.join(readers)}, or one of lines followed by {', '.join(COMPRESSED_SUFFIXES)}"
        raise RowError(str(path), f"the suffix {suffix!r} must be one of {accepted}")
    empty = True
    with open_rows(path) as file:
        for number, row in readers[suffix](file):
            location = f"{path}:{number}"
            if isinstance(row, str):
                row = RowError(location, row)
            elif isinstance(row, dict):
                row = Record(location, row)
            elif not columns:
                columns = tuple(row)
                if repeated := find_repeated_name(columns):
                    raise RowError(location, f"two columns have the name {repeated!r}; each needs one of its own")
                continue
            elif len(row) == len(columns):
                row = Record(location, dict(zip(columns, row, strict=True)))
            else:
                row = RowError(location, f"{len(row)} fields for {len(columns)} columns: {', '.join(columns)}")
            empty = False
            yield row
    if empty:
        raise RowError(str(path), "the file holds no rows")


def iter_checked_records(path: Path) -> Iterator[Record]:
    """Yield the rows of a file as `read_records`. Raises `RowError` for a damaged row."""
    yield from RowReader("stop").convert_rows(read_records(path), lambda row: row)


@contextmanager
def open_rows(path: AnyPath) -> Iterator[TextIO | AnyPath]:
    """Yield the lines of a file, plain or compressed, or the path of a Parquet file. Raises `RowError` for a damaged
    one."""
    try:
        if path.suffix == ".parquet":
            yield path
        elif path.suffix in COMPRESSED_SUFFIXES:
            with open_compressed_text(path, errors="surrogateescape") as file:
                yield file
        else:
            with open_text(path, errors="surrogateescape") as file:
                yield file
    except CorpusError as error:
        raise RowError(str(path), str(error).removeprefix(f"{path}: ")) from None


def find_repeated_name(names: Iterable[str]) -> str | None:
    """Return the first name that occurs twice, or None; columns without a name do not count."""
    seen = set()
    return next((name for name in names if name and (name in seen or seen.add(name))), None)


# Readers yield the number of a line and its row: a dict, a list of fields, or the reason why it is damaged.


def split_tsv_lines(file) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(file, 1):  # a lone \r belongs to its field
        if fields := line.rstrip("\r\n"):
            yield number, fields.split("\t")


def split_csv_lines(file) -> Iterator[tuple[int, list[str] | str]]:
    csv.field_size_limit(MAX_FIELD_CHARS)
    rows = csv.reader(file, strict=True)
    while True:
        try:
            if fields := next(rows):
                yield rows.line_num, fields
        except csv.Error as error:
            yield rows.line_num, str(error)
        except StopIteration:
            return


def parse_json_lines(file) -> Iterator[tuple[int, dict | str]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                values = json.loads(line, object_pairs_hook=build_object)
                yield number, values if isinstance(values, dict) else "not a JSON object"
            except (ValueError, RecursionError) as error:
                yield number, f"not JSON: {error}"


def enumerate_parquet_rows(path: AnyPath) -> Iterator[tuple[int, dict]]:
    return enumerate(iter_parquet_rows(path), 1)


def build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises `ValueError` for one that names a value twice."""
    if repeated := find_repeated_name(name for name, _ in pairs):
        raise UserError(f"two values have the name {repeated!r}")
    return dict(pairs)
