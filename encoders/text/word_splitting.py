"""Tokenisation word by word: a cached word is looked up, not split again.

The rules of BERT and of byte-level BPE are implemented here for plain ASCII; all other text goes through the backend.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain

MAX_CACHED_WORDS = 1 << 18  # about 60 MB; then the cache is cleared
MAX_CHUNK_CHARS = 64  # longer words are not cached
BERT_WORD_PATTERN = re.compile(r"[a-zA-Z0-9]+|[^a-zA-Z0-9 ]")
GPT2_WORD_PATTERN = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[a-zA-Z]+| ?[0-9]+| ?[^a-zA-Z0-9 ]+| +(?![^ ])| +")


def is_printable_ascii(text: str) -> bool:
    return text.isascii() and text.isprintable()


def split_bert_words(text: str) -> list[str] | None:
    """Return the words of a text under BERT's rules, or the chunks between spaces that are not plain ASCII. Returns
    None where a chunk is too long to cache."""
    if is_printable_ascii(text):
        return BERT_WORD_PATTERN.findall(text)
    chunks = text.split(" ")  # no rule looks across a space
    if any(len(chunk) > MAX_CHUNK_CHARS for chunk in chunks):
        return None
    words = (BERT_WORD_PATTERN.findall(chunk) if is_printable_ascii(chunk) else [chunk] for chunk in chunks)
    return list(chain.from_iterable(words))


def split_gpt2_words(text: str) -> list[str] | None:
    """Return the words of a plain text under GPT-2's rules, each with the space before it, or None for other text."""
    return GPT2_WORD_PATTERN.findall(text) if is_printable_ascii(text) else None


class WordCache:
    """Cache of the ids of words; `encode_texts` encodes new words, and texts for which `split_words` returns None."""

    def __init__(
        self, encode_texts: Callable[[list[str]], list[list[int]]], split_words: Callable[[str], list[str] | None]
    ):
        self.encode_texts, self.split_words = encode_texts, split_words
        self.cached_ids: dict[str, list[int]] = {}

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        words = [self.split_words(text) for text in texts]
        unsplit_texts = [text for text, text_words in zip(texts, words, strict=True) if text_words is None]
        unsplit_ids = iter(self.encode_texts(unsplit_texts))
        if len(self.cached_ids) > MAX_CACHED_WORDS:
            self.cached_ids = {}
        new_words = sorted(set(chain.from_iterable(filter(None, words))) - self.cached_ids.keys())
        self.cached_ids |= zip(new_words, self.encode_texts(new_words), strict=True)
        ids = self.cached_ids.__getitem__
        return [
            next(unsplit_ids) if text_words is None else list(chain.from_iterable(map(ids, text_words)))
            for text_words in words
        ]
