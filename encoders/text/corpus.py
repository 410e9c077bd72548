"""Documents of sentences, from files, from prepared TFDS data sets, or from the installed packages' docstrings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from encoders.text.embedded import Embedded
from encoders.text.file_readers import files
from encoders.text.source import CorpusError, Digests, Document, Source, needed, words
from encoders.text.tfds_reader import Tfds

PART = 64 << 20  # bytes of text that are read in one go


def documents(
    corpus: tuple[str, ...],
    sentences: Literal["split", "lines"] = "split",
    language: str = "en",
    field: str | None = None,
    part: int = PART,
) -> Iterator[Document]:
    """Every document of `corpus` as a non-empty list of sentences with single spaces, one document in memory.

    An item is `"embedded"`, `"tfds:NAME@SPLIT"` (or the folder of a prepared data set for NAME), or a path or glob of
    UTF-8 files, plain or .gz .bz2 .xz .zst: .jsonl, .json and .ndjson with an object a line, .parquet, and text for
    every other name, a paragraph or sentence a line, a blank line between documents. `field` is where an object, a row
    or a record has its text. `"split"` splits each line into sentences, `"lines"` takes it as one. Raises
    `CorpusError`.
    """
    split = splitter(sentences, language)
    for source in sources(corpus, field):
        for each in source.parts(part):
            for document in source.documents(each):
                if found := [sentence for line in document for sentence in split(line)]:
                    yield found


def check(corpus: tuple[str, ...], sentences: str = "split", language: str = "en", field: str | None = None) -> None:
    """Raises `CorpusError` for what can be seen to be wrong with `corpus` without reading it all."""
    splitter(sentences, language)
    for source in sources(corpus, field):
        source.check()


def identity(corpus: tuple[str, ...], field: str | None = None, kept: Path | None = None) -> list[dict]:
    """What decides the content of `corpus`, JSON-able and without its location, in reading order.

    The digests of a large corpus are remembered in the file `kept`.
    """
    digests = Digests(kept)
    found = [each for source in sources(corpus, field) for each in source.identity(digests)]
    digests.keep()
    return found


def sources(corpus: tuple[str, ...], field: str | None = None) -> list[Source]:
    """A reader for each item. Raises `CorpusError` where an item names nothing."""
    if isinstance(corpus, str) or not corpus or not all(isinstance(item, str) and item for item in corpus):
        raise CorpusError(f"corpus {corpus!r} must be a tuple of names: ('embedded',), ('tfds:NAME',), ('PATH',)")
    return [source(item, field) for item in corpus]


def absolute(item: str) -> str:
    """The item as a process with another working directory understands it."""
    if item == "embedded" or item.startswith("tfds:"):
        return item
    return str(Path(item).expanduser().absolute())


def source(item: str, field: str | None) -> Source:
    if item == "embedded":
        return Embedded()
    return Tfds(item, field) if item.startswith("tfds:") else files(item, field)


def splitter(sentences: str, language: str) -> Callable[[str], list[str]]:
    """What makes sentences of a line."""
    if sentences == "lines":
        return lambda line: [line]
    if sentences != "split":
        raise CorpusError(f"sentences={sentences!r} must be 'split' or 'lines'")
    if not isinstance(language, str) or not re.fullmatch(r"[a-z]{2,3}([-_]\w+)*", language):
        raise CorpusError(f"language={language!r} must be a language code such as 'en', 'de' or 'zh'")
    segment = needed("sentencex", "sentences='split'").segment
    return lambda line: [part for sentence in segment(language, line) if (part := words(sentence))]
