"""Ids of texts word by word: a word that was seen before is looked up, not split again.

What the rules of BERT and of byte-level BPE do to plain ASCII is known here; everything else goes through them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain

MAX_CACHED_WORDS = 1 << 18  # words that are remembered, about 60 MB; then all are forgotten
MAX_CHUNK_CHARS = 64  # characters of a word that is worth it
BERT_WORD_PATTERN = re.compile(r"[a-zA-Z0-9]+|[^a-zA-Z0-9 ]")
GPT2_WORD_PATTERN = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[a-zA-Z]+| ?[0-9]+| ?[^a-zA-Z0-9 ]+| +(?![^ ])| +")


def is_printable_ascii(text: str) -> bool:
    """Whether `text` is printable ASCII."""
    return text.isascii() and text.isprintable()


def split_bert_words(text: str) -> list[str] | None:
    """The words of a text under BERT's rules: whole ones where they are plain, else what is between two spaces."""
    if is_printable_ascii(text):
        return BERT_WORD_PATTERN.findall(text)
    parts = text.split(" ")  # nothing in the rules looks over a space
    if any(len(part) > MAX_CHUNK_CHARS for part in parts):
        return None
    return list(
        chain.from_iterable(BERT_WORD_PATTERN.findall(part) if is_printable_ascii(part) else [part] for part in parts)
    )


def split_gpt2_words(text: str) -> list[str] | None:
    """The words of a plain text as GPT-2's rules split it, each with the space before it."""
    return GPT2_WORD_PATTERN.findall(text) if is_printable_ascii(text) else None


class WordCache:
    """The ids of texts: `encode` gives those of words that are new, and of texts that `split` answers with None."""

    def __init__(
        self, encode_texts: Callable[[list[str]], list[list[int]]], split_words: Callable[[str], list[str] | None]
    ):
        self.encode_texts, self.split_words = encode_texts, split_words
        self.cached_ids: dict[str, list[int]] = {}

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        words = [self.split_words(text) for text in texts]
        whole = self.encode_texts([text for text, each in zip(texts, words, strict=True) if each is None])
        self.cache_words(set(chain.from_iterable(filter(None, words))))
        return list(self.join_word_ids(words, iter(whole)))

    def cache_words(self, words: set[str]) -> None:
        if len(self.cached_ids) > MAX_CACHED_WORDS:
            self.cached_ids = {}
        new = sorted(words - self.cached_ids.keys())
        self.cached_ids |= zip(new, self.encode_texts(new), strict=True)

    def join_word_ids(self, words: list[list[str] | None], unsplit_ids: Iterator[list[int]]) -> Iterator[list[int]]:
        ids = self.cached_ids.__getitem__
        for each in words:
            yield next(unsplit_ids) if each is None else list(chain.from_iterable(map(ids, each)))
