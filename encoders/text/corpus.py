"""Documents of sentences, from files, from prepared TFDS data sets, or from the installed packages' docstrings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from encoders.text.embedded import EmbeddedSource
from encoders.text.file_readers import make_file_source
from encoders.text.source import CorpusError, CorpusSource, DigestCache, Document, import_optional, normalize_spaces
from encoders.text.tfds_reader import TfdsSource

RANGE_BYTES = 64 << 20  # bytes of text that are read in one go


def read_corpus_documents(
    corpus: tuple[str, ...],
    sentence_splitting: Literal["split", "lines"] = "split",
    language: str = "en",
    text_field: str | None = None,
    range_bytes: int = RANGE_BYTES,
) -> Iterator[Document]:
    """Every document of `corpus` as a non-empty list of sentences with single spaces, one document in memory.

    An item is `"embedded"`, `"tfds:NAME@SPLIT"` (or the folder of a prepared data set for NAME), or a path or glob of
    UTF-8 files, plain or .gz .bz2 .xz .zst: .jsonl, .json and .ndjson with an object a line, .parquet, and text for
    every other name, a paragraph or sentence a line, a blank line between documents. `field` is where an object, a row
    or a record has its text. `"split"` splits each line into sentences, `"lines"` takes it as one. Raises
    `CorpusError`.
    """
    split = make_sentence_splitter(sentence_splitting, language)
    for source in make_sources(corpus, text_field):
        for each in source.split_ranges(range_bytes):
            for document in source.read_documents(each):
                if found := [sentence for line in document for sentence in split(line)]:
                    yield found


def check_corpus(
    corpus: tuple[str, ...], sentence_splitting: str = "split", language: str = "en", text_field: str | None = None
) -> None:
    """Raises `CorpusError` for what can be seen to be wrong with `corpus` without reading it all."""
    make_sentence_splitter(sentence_splitting, language)
    for source in make_sources(corpus, text_field):
        source.check_readable()


def describe_corpus(
    corpus: tuple[str, ...], text_field: str | None = None, cache_path: Path | None = None
) -> list[dict]:
    """What decides the content of `corpus`, JSON-able and without its location, in reading order.

    The digests of a large corpus are remembered in the file `kept`.
    """
    digests = DigestCache(cache_path)
    found = [each for source in make_sources(corpus, text_field) for each in source.describe_content(digests)]
    digests.save()
    return found


def make_sources(corpus: tuple[str, ...], text_field: str | None = None) -> list[CorpusSource]:
    """A reader for each item. Raises `CorpusError` where an item names nothing."""
    if isinstance(corpus, str) or not corpus or not all(isinstance(item, str) and item for item in corpus):
        raise CorpusError(f"corpus {corpus!r} must be a tuple of names: ('embedded',), ('tfds:NAME',), ('PATH',)")
    return [make_source(item, text_field) for item in corpus]


def resolve_item(item: str) -> str:
    """The item as a process with another working directory understands it."""
    if item == "embedded" or item.startswith("tfds:"):
        return item
    return str(Path(item).expanduser().absolute())


def make_source(item: str, text_field: str | None) -> CorpusSource:
    if item == "embedded":
        return EmbeddedSource()
    return TfdsSource(item, text_field) if item.startswith("tfds:") else make_file_source(item, text_field)


def make_sentence_splitter(sentence_splitting: str, language: str) -> Callable[[str], list[str]]:
    """What makes sentences of a line."""
    if sentence_splitting == "lines":
        return lambda line: [line]
    if sentence_splitting != "split":
        raise CorpusError(f"sentence_splitting={sentence_splitting!r} must be 'split' or 'lines'")
    if not isinstance(language, str) or not re.fullmatch(r"[a-z]{2,3}([-_]\w+)*", language):
        raise CorpusError(f"language={language!r} must be a language code such as 'en', 'de' or 'zh'")
    segment = import_optional("sentencex", "sentence_splitting='split'").segment
    return lambda line: [part for sentence in segment(language, line) if (part := normalize_spaces(sentence))]
