"""Files of texts to search in: lines of text, or JSON lines in the layout of BEIR, found again by byte offsets."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from encoders.data.row_files import Record, RowError, has_lone_surrogate, parse_json_lines
from encoders.text.file_readers import COMPRESSED_SUFFIXES
from encoders.utils.buckets import check_local_paths
from encoders.utils.errors import UserError

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
REFUSED_SUFFIXES = (*COMPRESSED_SUFFIXES, ".tsv", ".csv", ".parquet")
UTF8_MARK = b"\xef\xbb\xbf"


class CorpusText(NamedTuple):
    """A text of a corpus file, its id there or else the number of its line, and its location."""

    id: str
    text: str
    location: str


@dataclass(frozen=True)
class CorpusFile:
    """A file of texts and `positions [n 2]`: the number of the line and the byte offset of each text.

    A line is a text. In a .jsonl file it is an object with the key text; the keys `_id` and title may be missing. Title
    and text are joined by a space, as in BEIR (Thakur et al., 2021, https://arxiv.org/abs/2104.08663).
    """

    path: Path
    positions: Int[np.ndarray, "n 2"]

    @classmethod
    def scan_file(cls, path: str | Path, log: Callable[[str], None] = lambda line: None) -> CorpusFile:
        """Return the texts of a file; empty ones are left out and logged.

        Raises `RowError` for a bad row, and `UserError` for a file without texts.
        """
        path, positions, empty = Path(path), array("q"), []  # smaller than a list of tuples
        for text, position in iter_corpus_texts(path):
            if text.text:
                positions.extend(position)
            else:
                empty.append(text.location)
        if not positions:
            raise UserError(f"{path} holds no text; a corpus has a text on each line")
        if empty:
            log(f"left out {len(empty):,} empty texts, the first at {empty[0]}")
        return cls(path, np.array(positions, np.int64).reshape(-1, 2))

    def __len__(self) -> int:
        return len(self.positions)

    def read_texts(self, indices: Iterable[int]) -> list[CorpusText]:
        """Return texts by their indices. Raises `RowError` where the file has changed."""
        texts = []
        with self.path.open("rb") as file:
            for line_number, offset in self.positions[[*indices]].tolist():
                file.seek(offset)
                texts.append(parse_corpus_line(self.path, line_number, file.readline()))
        return texts


def iter_corpus_texts(path: Path) -> Iterator[tuple[CorpusText, tuple[int, int]]]:
    """Yield the texts of a file, also empty ones, with line number and byte offset; blank lines of JSON are skipped.

    Raises `RowError` for a bad row, and `UserError` for another kind of file.
    """
    check_local_paths(str(path))
    if path.suffix in REFUSED_SUFFIXES:
        accepted = f"lines of text, or JSON lines ({', '.join(JSON_SUFFIXES)}), not compressed"
        raise UserError(f"{path}: a file {path.suffix} cannot be searched; accepted are {accepted}")
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith(UTF8_MARK):
                offset, line = len(UTF8_MARK), line.removeprefix(UTF8_MARK)
            if line.strip() or path.suffix not in JSON_SUFFIXES:
                yield parse_corpus_line(path, number, line), (number, offset)
            offset += len(line)


def parse_corpus_line(path: Path, number: int, line: bytes) -> CorpusText:
    """Return the text of a line. Raises `RowError` for a line that holds none."""
    location, title = f"{path}:{number}", None
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(location, f"byte {error.start + 1} of the line is not UTF-8") from None
    text_id = str(number)
    if path.suffix in JSON_SUFFIXES:
        record = parse_record(location, text)
        text, title = record["text"], record.values.get("title")
        text_id = record.values.get("_id", text_id)
    for name, value, types in (("text", text, str), ("title", title, str | None), ("_id", text_id, str | int)):
        if not isinstance(value, types) or (isinstance(value, str) and has_lone_surrogate(value)):
            raise RowError(location, f"{name}={value!r} is not text")
    return CorpusText(str(text_id), (f"{title} {text}" if title else text).strip(), location)


def parse_record(location: str, text: str) -> Record:
    """Return the object of a line of JSON. Raises `RowError` for another line."""
    rows = [row for _, row in parse_json_lines([text])]
    if not rows or isinstance(rows[0], str):
        raise RowError(location, rows[0] if rows else "the line is blank")
    return Record(location, rows[0])
