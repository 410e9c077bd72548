"""Words of a text for token classification: their places, their tokens, and the tags that a run gives them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from encoders.tasks.token_classification import find_first_tokens
from encoders.text.tokenization import Tokenizer

WORD_PATTERN = re.compile(r"\w+(?:[-.'’]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class TextWords:
    """Words of a text, its token ids, and the words that have tokens, each with the first of them."""

    words: tuple[re.Match, ...]
    token_ids: list[int]
    tagged_words: np.ndarray
    first_tokens: np.ndarray

    def name_tags(self, labels: Sequence[str], probabilities: np.ndarray) -> list[dict]:
        """Return word, start, end, tag and probability of each word that was read, from rows of a text, `[l c]`.

        `start` and `end` are characters of the text.
        """
        tagged = []
        for i, token in zip(self.tagged_words, self.first_tokens, strict=True):
            if token < len(probabilities) - 2:  # the others are behind the cut
                word, row = self.words[i], probabilities[token + 1]
                place = {"word": word[0], "start": word.start(), "end": word.end()}
                tagged.append(place | {"tag": labels[int(row.argmax())], "probability": float(row.max())})
        return tagged


def split_words(tokenizer: Tokenizer, text: str) -> TextWords:
    """Split a text into words: letters and digits, with hyphens, apostrophes and full stops inside, or single signs.

    They are tokenized with a space between them, as the rows that a run is trained on.
    """
    words = tuple(WORD_PATTERN.finditer(text))
    starts = np.cumsum([0, *(len(word[0]) + 1 for word in words)])[:-1].tolist()
    (ids,), (offsets,) = tokenizer.encode_with_offsets([" ".join(word[0] for word in words)])
    return TextWords(words, ids, *find_first_tokens(starts, offsets))
