"""Treebanks in CoNLL-U (https://universaldependencies.org/format.html): words and their parts of speech."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from encoders.data.row_files import Record, RowError
from encoders.text.file_readers import iter_numbered_lines
from encoders.text.source import ByteRange
from encoders.utils.errors import UserError

# https://universaldependencies.org/u/pos/
UPOS_TAGS = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM"),
    *("PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X"),
)
SUFFIXES = (".conllu", ".conllu.xz")
NUM_COLUMNS = 10
RANGE_OR_EMPTY_NODE = re.compile(r"\d+[-.]\d+")


def find_treebank_files(folder: Path) -> tuple[Path, Path]:
    """Return the file of a folder that trains, "-train" or without it "-dev", and the one that tests, "-test".

    Raises `UserError` where there is none, or more than one.
    """
    files = {split: list(find_split_files(folder, split)) for split in ("train", "dev", "test")}
    train_split = "train" if files["train"] else "dev"
    for split in (train_split, "test"):
        if len(files[split]) != 1:
            found = ", ".join(path.name for path in files[split]) or "none"
            accepted = " or ".join(f"*-{split}{suffix}" for suffix in SUFFIXES)
            raise UserError(f"{folder} must hold one file {accepted}, and it holds {found}")
    return files[train_split][0], files["test"][0]


def find_split_files(folder: Path, split: str) -> Iterator[Path]:
    for suffix in SUFFIXES:
        yield from sorted(folder.glob(f"*-{split}{suffix}"))


def read_treebank(path: Path) -> Iterator[Record]:
    """Yield the lists "words" and "tags" of each sentence: the columns FORM and UPOS of its words.

    Comments, the ranges of multi-word tokens (3-4) and empty nodes (8.1) are passed over. Raises `RowError` for a line
    without its ten columns or its index, and for a file without words.
    """
    words, tags, is_empty = [], [], True
    for number, line in iter_numbered_lines(ByteRange(str(path))):
        line = line.rstrip("\r")
        if not line.strip():
            if words:
                yield Record(f"{path}:{number}", {"words": words, "tags": tags})
            words, tags = [], []
            continue
        fields = line.split("\t")
        if line.startswith("#") or RANGE_OR_EMPTY_NODE.fullmatch(fields[0]):
            continue
        if len(fields) != NUM_COLUMNS:
            raise RowError(f"{path}:{number}", f"{len(fields)} columns between tabs, and CoNLL-U has {NUM_COLUMNS}")
        if fields[0] != str(len(words) + 1):
            raise RowError(f"{path}:{number}", f"the index {fields[0]!r} is not {len(words) + 1}")
        words.append(fields[1])
        tags.append(fields[3])
        is_empty = False
    if is_empty:
        raise RowError(str(path), "it holds no words")
    if words:
        yield Record(f"{path}:{number}", {"words": words, "tags": tags})
