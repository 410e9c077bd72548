"""Ids of texts word by word: a word that was seen before is looked up, not split again.

What the rules of BERT and of byte-level BPE do to plain ASCII is known here; everything else goes through them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain

MOST = 1 << 18  # words that are remembered, about 60 MB; then all are forgotten
LONGEST = 64  # characters of a word that is worth it
BERT = re.compile(r"[a-zA-Z0-9]+|[^a-zA-Z0-9 ]")
GPT2 = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[a-zA-Z]+| ?[0-9]+| ?[^a-zA-Z0-9 ]+| +(?![^ ])| +")


def plain(text: str) -> bool:
    """Whether `text` is printable ASCII."""
    return text.isascii() and text.isprintable()


def bert_words(text: str) -> list[str] | None:
    """The words of a text under BERT's rules: whole ones where they are plain, else what is between two spaces."""
    if plain(text):
        return BERT.findall(text)
    parts = text.split(" ")  # nothing in the rules looks over a space
    if any(len(part) > LONGEST for part in parts):
        return None
    return list(chain.from_iterable(BERT.findall(part) if plain(part) else [part] for part in parts))


def gpt2_words(text: str) -> list[str] | None:
    """The words of a plain text as GPT-2's rules split it, each with the space before it."""
    return GPT2.findall(text) if plain(text) else None


class Words:
    """The ids of texts: `encode` gives those of words that are new, and of texts that `split` answers with None."""

    def __init__(self, encode: Callable[[list[str]], list[list[int]]], split: Callable[[str], list[str] | None]):
        self.encode, self.split = encode, split
        self.known: dict[str, list[int]] = {}

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        words = [self.split(text) for text in texts]
        whole = self.encode([text for text, each in zip(texts, words, strict=True) if each is None])
        self.learn(set(chain.from_iterable(filter(None, words))))
        return list(self.joined(words, iter(whole)))

    def learn(self, words: set[str]) -> None:
        if len(self.known) > MOST:
            self.known = {}
        new = sorted(words - self.known.keys())
        self.known |= zip(new, self.encode(new), strict=True)

    def joined(self, words: list[list[str] | None], whole: Iterator[list[int]]) -> Iterator[list[int]]:
        ids = self.known.__getitem__
        for each in words:
            yield next(whole) if each is None else list(chain.from_iterable(map(ids, each)))
