"""Corpora: files, prepared TFDS data sets, and the docstrings of the installed packages.

An item is `"embedded"`, `"tfds:NAME@SPLIT"` (NAME may be the folder of a prepared data set), or a path or glob. The
files of a path are UTF-8, plain or compressed as .gz, .bz2, .xz or .zst. Files named .jsonl, .json and .ndjson hold
an object a line; .parquet a row a document; .fasta and .fa a sequence a document. Every other file is text: a paragraph
or sentence a line, a blank line between documents, or with `document_per_line` a document a line. `text_field` names
the field of an object, row or record that holds its text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path

from encoders.text.embedded import EmbeddedSource
from encoders.text.file_readers import make_file_source
from encoders.text.source import CorpusError, CorpusSource, DigestCache, import_optional
from encoders.text.tfds_reader import TfdsSource

RANGE_BYTES = 64 << 20  # of text that is read in one go
MAX_LINE_CHARS = 50_000  # that are split at once: quotation marks without a partner take the square of it
LONG_LINE_PATTERN = re.compile(rf".{{1,{MAX_LINE_CHARS}}}(?: |$)|.{{{MAX_LINE_CHARS}}}")


def check_corpus(
    corpus, sentence_splitting: str = "split", language: str = "en", text_field=None, document_per_line: bool = False
) -> None:
    """Raise `CorpusError` for the errors of a corpus that show without reading it all."""
    make_sentence_splitter(sentence_splitting, language)
    for source in make_sources(corpus, text_field, document_per_line):
        source.check_readable()


def describe_corpus(corpus: tuple[str, ...], text_field=None, cache_path: Path | None = None) -> list[dict]:
    """Return JSON-able values that determine the content of a corpus, in reading order and without its location.
    `cache_path` is the file that caches the digests of a large corpus."""
    digests = DigestCache(cache_path)
    content = [entry for source in make_sources(corpus, text_field) for entry in source.describe_content(digests)]
    digests.save_cache()
    return content


def make_sources(
    corpus: tuple[str, ...], text_field: str | None = None, document_per_line: bool = False
) -> list[CorpusSource]:
    """Return a source for each item. Raises `CorpusError` where an item names nothing."""
    if isinstance(corpus, str) or not corpus or not all(isinstance(item, str) and item for item in corpus):
        raise CorpusError(f"corpus {corpus!r} must be a tuple of names: ('embedded',), ('tfds:NAME',), ('PATH',)")
    return [make_source(item, text_field, document_per_line) for item in corpus]


def make_source(item: str, text_field: str | None, document_per_line: bool = False) -> CorpusSource:
    if item == "embedded":
        return EmbeddedSource()
    if item.startswith("tfds:"):
        return TfdsSource(item, text_field)
    return make_file_source(item, text_field, document_per_line)


def make_sentence_splitter(sentence_splitting: str, language: str) -> Callable[[str], list[str]]:
    if sentence_splitting == "lines":
        return lambda line: [line]
    if sentence_splitting != "split":
        raise CorpusError(f"sentence_splitting={sentence_splitting!r} must be 'split' or 'lines'")
    if not isinstance(language, str) or not re.fullmatch(r"[a-z]{2,3}([-_]\w+)*", language):
        raise CorpusError(f"language={language!r} must be a language code such as 'en', 'de' or 'zh'")
    segment = import_optional("sentencex", "sentence_splitting='split'").segment

    def split(line: str) -> list[str]:
        pieces = [line] if len(line) <= MAX_LINE_CHARS else LONG_LINE_PATTERN.findall(line)
        sentences = chain.from_iterable(segment(language, piece) for piece in pieces)
        return [" ".join(words) for sentence in sentences if (words := sentence.split())]

    return split
