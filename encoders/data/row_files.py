"""Files of labelled rows: TSV as GLUE has it, CSV and JSON lines, a row at a time, each with its place."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

OnBadRow = Literal["stop", "skip"]


class RowError(ValueError):
    """A row that cannot be used; says where it is."""

    def __init__(self, location: str, problem: str):
        super().__init__(f"{location}: {problem}")


def has_lone_surrogate(text: str) -> bool:
    """Whether a text holds half a surrogate pair: what bytes that are not UTF-8 were read as, or JSON's own."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


@dataclass(frozen=True)
class Record:
    """The fields of a row by column, and where it stands."""

    location: str
    values: dict[str, Any]

    def __getitem__(self, column: str) -> Any:
        if column not in self.values:
            raise RowError(
                self.location, f"there is no column {column!r}; there are {', '.join(map(str, self.values))}"
            )
        return self.values[column]

    def get_text(self, column: str) -> str:
        """A text that is there. Raises `RowError` for one that is empty or not text."""
        found = self[column]
        if not isinstance(found, str):
            raise RowError(self.location, f"{column}={found!r} is not text")
        if not found.strip():
            raise RowError(self.location, f"{column} is empty")
        if has_lone_surrogate(found):
            raise RowError(self.location, f"{column} is not UTF-8")
        return found


class RowReader:
    """Reads rows, and stops at the first bad one or skips and counts them."""

    def __init__(self, on_bad_row: OnBadRow = "stop"):
        self.on_bad_row, self.skipped_rows = on_bad_row, []

    def convert_rows(self, rows: Iterator, convert: Callable[[Any], Any]) -> Iterator:
        """`make(row)` of each row; one that is a `RowError`, or raises it, stops or is skipped."""
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
            if isinstance(rows, Generator):  # its file is closed now, and not when memory is collected
                rows.close()


def read_records(path: Path, columns: tuple[str, ...] = ()) -> Iterator[Record | RowError]:
    """The rows of a file by its ending: .tsv (no quoting), .csv or .jsonl; `columns` names those of one without a head.

    A row that is damaged comes as a `RowError` in its place. Raises `RowError` for a file without rows.
    """
    kinds = {".tsv": read_tsv, ".txt": read_tsv, ".csv": read_csv, ".jsonl": read_json_lines}
    if path.suffix not in kinds:
        raise RowError(str(path), f"the ending {path.suffix!r} is not one of {', '.join(kinds)}")
    empty = True
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for record in kinds[path.suffix](path, file, columns):
            empty = False
            yield record
    if empty:
        raise RowError(str(path), "there are no rows")


def build_record(location: str, columns: list[str], values: list[str]) -> Record | RowError:
    if len(values) != len(columns):
        return RowError(location, f"there are {len(values)} fields and {len(columns)} columns: {', '.join(columns)}")
    return Record(location, dict(zip(columns, values, strict=True)))


def read_tsv(path: Path, file, columns: tuple[str, ...]) -> Iterator[Record | RowError]:
    names = list(columns)
    for number, line in enumerate(file, 1):  # a lone \r belongs to its field
        values = line.rstrip("\r\n").split("\t")
        if not names:
            names = values
        elif values != [""]:
            yield build_record(f"{path}:{number}", names, values)


def read_csv(path: Path, file, columns: tuple[str, ...]) -> Iterator[Record | RowError]:
    rows, names = csv.reader(file, strict=True), list(columns)
    while True:
        try:
            values = next(rows, None)
        except csv.Error as error:
            yield RowError(f"{path}:{rows.line_num}", str(error))
            continue
        if values is None:
            return
        if not names:
            names = values
        elif values:
            yield build_record(f"{path}:{rows.line_num}", names, values)


def read_json_lines(path: Path, file, columns: tuple[str, ...]) -> Iterator[Record | RowError]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield RowError(place, f"not JSON: {error}")
            continue
        yield Record(place, values) if isinstance(values, dict) else RowError(place, "not a JSON object")
