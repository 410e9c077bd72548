"""Vocabularies behind one class, trained or published: WordPiece, byte-level BPE, unigram, characters, a word list."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from types import MappingProxyType
from typing import Literal

import numpy as np

from encoders.utils.buckets import parse_path
from encoders.utils.errors import UserError
from encoders.utils.files import write_file_atomically

MAX_CACHED_WORDS = 1 << 18  # about 60 MB; then the cache is cleared
MAX_CHUNK_CHARS = 64  # longer words are not cached
NO_NAMES: Mapping[str, str] = MappingProxyType({})
SPECIAL_ROLES = ("pad", "unk", "cls", "sep", "mask")
BERT_WORD_PATTERN = re.compile(r"[a-zA-Z0-9]+|[^a-zA-Z0-9 ]")
GPT2_WORD_PATTERN = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[a-zA-Z]+| ?[0-9]+| ?[^a-zA-Z0-9 ]+| +(?![^ ])| +")


VOCAB_IDS = ("pad_id", "unk_id", "cls_id", "sep_id", "mask_id")
# Of the JSON of a `VocabInfo`.
VOCAB_SHAPE = {"vocab_size": int, "special_ids": [int], "continuation_bits": str} | dict.fromkeys(VOCAB_IDS, int)


@dataclass(frozen=True)
class VocabInfo:
    """Sizes and special ids of a vocabulary, for models, objectives and formats."""

    vocab_size: int
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    special_ids: tuple[int, ...]  # every special id, ascending
    continuation_bits: bytes  # one bit an id (np.packbits), set where the token continues a word
    most_frequent_id: int = 0  # the most frequent ordinary token of the training split, 0 until counted

    def compute_word_starts(self) -> np.ndarray:
        """Return bool `[vocab_size]`, true where the token starts a word; special tokens do."""
        return np.unpackbits(np.frombuffer(self.continuation_bits, np.uint8), count=self.vocab_size) == 0

    def to_json_value(self) -> dict:
        return asdict(self) | {"special_ids": list(self.special_ids), "continuation_bits": self.continuation_bits.hex()}

    @classmethod
    def from_json_value(cls, values: dict) -> VocabInfo:
        special_ids = tuple(values["special_ids"])
        try:
            bits = bytes.fromhex(values["continuation_bits"])
            return cls(**values | {"special_ids": special_ids, "continuation_bits": bits})
        except (TypeError, ValueError) as error:
            raise UserError(f"a vocabulary cannot be read: {error}") from None


def make_blank_vocab(vocab_size: int) -> VocabInfo:
    """Return a vocabulary of `vocab_size` entries with BERT's order of special tokens, for shapes and checks."""
    special_ids = (0, 1, 2, 3, 4)
    return VocabInfo(vocab_size, *special_ids, special_ids, continuation_bits=b"", most_frequent_id=5)


@dataclass(frozen=True)
class TokenizerSpec:
    """Specification of a tokenizer: a published vocabulary by its `path`, or one to train.

    A path is vocab.txt, a folder or file of vocab.json and merges.txt, fairseq's folder of encoder.json, vocab.bpe and
    dict.txt, spiece.model, spm.model or tokenizer.json. With kind "character" or "words" it may be a list, a token a
    line. Only WordPiece and unigram vocabularies apply `lowercase`, and tokenizer.json has its own rules.
    `special_tokens` names those of tokenizer.json or of a list that are not the usual ones, as in ("cls=<cls>",
    "sep=<eos>"). Raises `ValueError` for a `vocab_size` below the number of fixed tokens.
    """

    kind: Literal["wordpiece", "bpe", "unigram", "character", "words"] = "wordpiece"
    vocab_size: int = 30522
    path: str | None = None
    lowercase: bool = True
    train_chars: int = 20_000_000  # characters of the corpus to train on
    special_tokens: tuple[str, ...] = ()

    def __post_init__(self):
        fixed = {"wordpiece": (16, "letters"), "bpe": (256, "bytes"), "unigram": (24, "symbols and letters")}
        fixed |= {"character": (1, "character"), "words": (1, "word")}
        if self.kind not in fixed:
            raise UserError(f"tokenizer.kind={self.kind!r} must be one of {', '.join(fixed)}")
        num_fixed, fixed_kind = fixed[self.kind]
        if self.path is None and self.vocab_size < 5 + num_fixed:
            raise UserError(
                f"tokenizer.vocab_size={self.vocab_size} is below the minimum of a {self.kind} vocabulary: "
                f"5 special tokens + {num_fixed} {fixed_kind} = {5 + num_fixed}"
            )
        if self.train_chars < 1:
            raise UserError(f"tokenizer.train_chars={self.train_chars} must be at least 1 character")
        if self.special_tokens and self.path is None:
            raise UserError(f"tokenizer.special_tokens={self.special_tokens} needs tokenizer.path, which is None")
        for entry in self.special_tokens:
            role, equals, name = entry.partition("=")
            if role not in SPECIAL_ROLES or not name:
                accepted = f"ROLE=NAME with a role of {', '.join(SPECIAL_ROLES)}"
                raise UserError(f"tokenizer.special_tokens holds {entry!r}; it must be {accepted}")

    def load(self) -> Tokenizer:
        """Return the published vocabulary at `path`. Raises `UserError` as `load_tokenizer` does."""
        own_names = dict(entry.split("=", 1) for entry in self.special_tokens)
        return load_tokenizer(self.path, self.lowercase, kind=self.kind, own_names=own_names)

    def find_pad_id(self) -> int:
        """Return the id of padding; 0, as BERT's, for a published vocabulary that does not exist yet."""
        from encoders.text.tokenizer_backends import SPECIAL_TOKEN_NAMES

        if self.path is None:
            return list(SPECIAL_TOKEN_NAMES[self.kind]).index("pad")
        return self.load().vocab.pad_id if parse_path(self.path).expanduser().exists() else 0


class Tokenizer:
    """Vocabulary and its rules, over `tokenizers.Tokenizer`.

    `sentence_joiner` precedes each sentence of a text but the first: byte-level BPE and characters see the space of
    running text. `own_names` are the special tokens that are not found by a usual name.
    """

    def __init__(self, backend, own_names: Mapping[str, str] = NO_NAMES):
        from encoders.text import tokenizer_backends

        self.kind = tokenizer_backends.detect_tokenizer_kind(backend)
        self.vocab = VocabInfo(**tokenizer_backends.describe_vocabulary(backend, self.kind, own_names))
        self.sentence_joiner, self._backend = get_sentence_joiner(self.kind), backend
        literal = type(backend).from_str(backend.to_str())
        literal.encode_special_tokens = True
        encode_texts = lambda texts: [row.ids for row in literal.encode_batch_fast(texts, add_special_tokens=False)]
        self._literal_backend, self._word_cache = literal, WordCache(encode_texts, find_word_splitter(backend))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens; the name of one in a text is ordinary text."""
        return self._word_cache.encode_batch(texts)

    def encode_with_offsets(self, texts: list[str]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
        """Return the ids of each text as `encode_batch` does, and the span of each token: first character and end.
        White space around a token is not part of its span. A character that the rules drop, such as a combining accent,
        belongs to the token before it, or to the one after it at the start of a word."""
        rows = self._literal_backend.encode_batch(texts, add_special_tokens=False)
        offsets = [
            widen_offsets(text, [trim_span(text, *span) for span in row.offsets])
            for text, row in zip(texts, rows, strict=True)
        ]
        return [row.ids for row in rows], offsets

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; the name of a special token, such as [MASK], means the token. None is added."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids) -> str:
        """Return readable text, with the names of the special tokens."""
        return self._backend.decode([int(id) for id in ids], skip_special_tokens=False)

    def id_to_token(self, id: int) -> str:
        if not 0 <= id < self.vocab.vocab_size:
            raise IndexError(f"token id {id} must be from 0 to {self.vocab.vocab_size - 1}")
        return self._backend.id_to_token(int(id)) or ""  # a published list may skip an id

    def get_transformers_options(self) -> dict[str, bool]:
        """Return the rules under their names in transformers."""
        normalizer, words = self._backend.normalizer, self._backend.pre_tokenizer
        if self.kind == "bpe":
            return {"add_prefix_space": words is not None and words.pre_tokenize_str("a")[:1] == [("Ġa", (0, 1))]}
        return {"do_lower_case": normalizer is not None and normalizer.normalize_str("A") == "a"}

    def get_text_rules(self) -> dict[str, bool]:
        """Return the rules on accents, Chinese characters, punctuation and the first space of a tokenizer.json, under
        their names in transformers."""
        keeps_accents = "\u0301" in unicodedata.normalize("NFD", self.normalize("é"))
        if self.kind == "wordpiece":
            return {"strip_accents": not keeps_accents, "tokenize_chinese_chars": self.normalize("中") != "中"}
        words = self._backend.pre_tokenizer
        if self.kind == "unigram" and words is not None:
            pieces = [piece for piece, _ in words.pre_tokenize_str("a.b")]
            options = {"keep_accents": keeps_accents, "split_by_punct": len(pieces) > 1}
            return options | {"add_prefix_space": "".join(pieces).startswith("▁")}
        return {}

    def normalize(self, text: str) -> str:
        """Return a text as the rules write it before they split it."""
        return text if self._backend.normalizer is None else self._backend.normalizer.normalize_str(text)

    def get_added_tokens(self) -> dict:
        """Return the id and the `tokenizers.AddedToken` of each token that is found whole in a text, by its name."""
        return {token.content: (id, token) for id, token in self._backend.get_added_tokens_decoder().items()}

    @property
    def lowers_text(self) -> bool:
        return self.get_transformers_options().get("do_lower_case", False)

    def describe_lost_capitals(self) -> str | None:
        """Return a line about the tokens with capitals that no text gives, for its letters are lowered first."""
        special = set(self.vocab.special_ids)
        names = [name for name, id in self._backend.get_vocab().items() if id not in special and name != name.lower()]
        if not names or not self.lowers_text:
            return None
        return f"{len(names):,} tokens have capitals, such as {min(names)!r}, and texts are lowered"

    def has_same_ids(self, other: Tokenizer) -> bool:
        return self._backend.get_vocab() == other._backend.get_vocab()

    def save(self, path) -> None:
        """Write tokenizer.json, as the file or into the folder `path`."""
        path = parse_path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        write_file_atomically(path, self._backend.to_str(pretty=True).encode())  # its own `save` raises no OSError


def get_sentence_joiner(kind: str) -> str:
    return " " if kind in ("bpe", "character") else ""


def trim_span(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a span without the white space at its ends."""
    token_text = text[start:end]
    first = start + len(token_text) - len(token_text.lstrip())
    return first, max(first, start + len(token_text.rstrip()))


def widen_offsets(text: str, offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ascending spans, to which the characters between them, except white space, are added.

    >>> widen_offsets("a' `b", [(0, 1), (4, 5)])
    [(0, 2), (3, 5)]
    >>> widen_offsets("a'b", [(0, 1), (2, 3)])
    [(0, 2), (2, 3)]
    >>> widen_offsets("\\u200b", [])
    []
    """
    wide, before = [], 0
    for i, (start, end) in enumerate(offsets):
        after = offsets[i + 1][0] if i + 1 < len(offsets) else len(text)
        while start > before and not text[start - 1].isspace():
            start -= 1
        while end < after and not text[end].isspace():
            end += 1
        wide.append((start, end))
        before = max(before, end)
    return wide


def find_word_splitter(backend) -> Callable[[str], list[str] | None]:
    """Return the function that splits a text into words as the backend does, or one that returns None for all texts."""
    if all(token.special for token in backend.get_added_tokens_decoder().values()):
        words, rules = backend.pre_tokenizer, (type(backend.normalizer).__name__, type(backend.pre_tokenizer).__name__)
        if rules == ("BertNormalizer", "BertPreTokenizer"):
            return split_bert_words
        if rules == ("NoneType", "ByteLevel") and words.use_regex and not words.add_prefix_space:
            return split_gpt2_words
    return lambda text: None


def load_tokenizer(
    path,
    lowercase: bool = True,
    add_prefix_space: bool = False,
    kind: str = "",
    own_names: Mapping[str, str] = NO_NAMES,
) -> Tokenizer:
    """Load a published vocabulary in any of the forms of `TokenizerSpec.path`; special tokens are found by name, those
    of `own_names` by role. `add_prefix_space` lets byte-level BPE see a space before a text, as in transformers. Raises
    `ValueError` for a path in no such form and for missing special tokens."""
    from encoders.text.vocabulary_files import read_published_tokenizer

    path = parse_path(path).expanduser()
    return Tokenizer(*read_published_tokenizer(path, lowercase, add_prefix_space, kind, own_names))


def train_tokenizer(spec: TokenizerSpec, documents: Iterable[list[str]]) -> Tokenizer:
    """Train a vocabulary of at most `spec.vocab_size` tokens on the first `spec.train_chars` characters of `documents`.
    The same texts give the same ids in every process."""
    from encoders.text.tokenizer_training import train_backend

    texts, num_left, sentence_joiner = [], spec.train_chars, get_sentence_joiner(spec.kind)
    for index, sentence in ((i, sentence) for document in documents for i, sentence in enumerate(document)):
        texts.append((sentence_joiner if index else "") + sentence[:num_left])
        num_left -= len(sentence)
        if num_left <= 0:
            break
    if not any(text.strip() for text in texts):
        raise UserError(f"the corpus is empty or blank; a {spec.kind} vocabulary needs text to train on")
    return Tokenizer(train_backend(spec.kind, texts, spec.vocab_size, spec.lowercase))


# Word by word: a cached word is looked up, not split again. The rules of BERT and of byte-level BPE are implemented
# here for plain ASCII; all other text goes through the backend.


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
        # Each word is looked up: `set - keys` walks through the whole cache.
        distinct_words = set(chain.from_iterable(filter(None, words)))
        new_words = sorted(word for word in distinct_words if word not in self.cached_ids)
        self.cached_ids |= zip(new_words, self.encode_texts(new_words), strict=True)
        ids = self.cached_ids.__getitem__
        return [
            next(unsplit_ids) if text_words is None else list(chain.from_iterable(map(ids, text_words)))
            for text_words in words
        ]
