"""WordPiece, byte-level BPE and unigram vocabularies behind one class, trained or published."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from encoders.text.published_vocabularies import (
    ALBERT_SYMBOLS,
    SPECIAL_TOKEN_NAMES,
    build_albert_normalizer,
    build_albert_pre_tokenizer,
    build_byte_level_bpe,
    build_unigram,
    build_wordpiece,
    detect_tokenizer_kind,
    find_special_token_names,
    read_published_tokenizer,
)
from encoders.text.word_splitting import WordCache, split_bert_words, split_gpt2_words

CHARACTER_COVERAGE = 0.99995  # of a unigram vocabulary's training characters, as ALBERT's spm_train flags
MAX_ALPHABET_SIZE = 1000  # distinct characters of a WordPiece vocabulary
ASCII_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")
ALBERT_PUNCTUATION = frozenset('!"#$%&()*+,-./:;?@[\\]^_`{|}~£€')  # of ALBERT's _is_start_piece_sp


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
        special_ids, bits = tuple(values["special_ids"]), bytes.fromhex(values["continuation_bits"])
        return cls(**values | {"special_ids": special_ids, "continuation_bits": bits})


def make_blank_vocab(vocab_size: int) -> VocabInfo:
    """Return a vocabulary of `vocab_size` entries with BERT's order of special tokens, for shapes and checks."""
    special_ids = (0, 1, 2, 3, 4)
    return VocabInfo(vocab_size, *special_ids, special_ids, continuation_bits=b"", most_frequent_id=5)


@dataclass(frozen=True)
class TokenizerSpec:
    """Specification of a tokenizer: a published vocabulary by its `path`, or one to train.

    A path is vocab.txt, a folder or file of vocab.json and merges.txt, fairseq's folder of encoder.json, vocab.bpe
    and dict.txt, spiece.model or tokenizer.json. Byte-level BPE ignores `lowercase`, and tokenizer.json has its own
    rules. Raises `ValueError` for a `vocab_size` below the number of fixed tokens.
    """

    kind: Literal["wordpiece", "bpe", "unigram"] = "wordpiece"
    vocab_size: int = 30522
    path: str | None = None
    lowercase: bool = True
    train_chars: int = 20_000_000  # characters of the corpus to train on

    def __post_init__(self):
        if self.kind not in SPECIAL_TOKEN_NAMES:
            raise ValueError(f"tokenizer.kind={self.kind!r} must be one of {', '.join(SPECIAL_TOKEN_NAMES)}")
        fixed = {"wordpiece": (16, "letters"), "bpe": (256, "bytes"), "unigram": (24, "symbols and letters")}
        num_fixed, fixed_kind = fixed[self.kind]
        if self.path is None and self.vocab_size < 5 + num_fixed:
            raise ValueError(
                f"tokenizer.vocab_size={self.vocab_size} is below the minimum of a {self.kind} vocabulary: "
                f"5 special tokens + {num_fixed} {fixed_kind} = {5 + num_fixed}"
            )
        if self.train_chars < 1:
            raise ValueError(f"tokenizer.train_chars={self.train_chars} must be at least 1 character")


class Tokenizer:
    """Vocabulary and its rules, over `tokenizers.Tokenizer`.

    `sentence_joiner` precedes each sentence but the first of a text, so that byte-level BPE sees the space of running
    text.
    """

    def __init__(self, backend):
        self.kind = detect_tokenizer_kind(backend)
        self.vocab = build_vocab_info(backend, self.kind)
        self.sentence_joiner = " " if self.kind == "bpe" else ""
        self._backend = backend
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
        belongs to the token before it, or to the one after it at the start of a word.
        """
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

    def has_same_ids(self, other: Tokenizer) -> bool:
        """Return whether every token has the same id in both."""
        return self._backend.get_vocab() == other._backend.get_vocab()

    def save(self, path) -> None:
        """Write tokenizer.json, as the file or into the folder `path`."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        path.write_text(self._backend.to_str(pretty=True), encoding="utf-8")  # its own `save` raises no OSError


def trim_span(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a span without the white space at its ends.

    >>> trim_span("a  bc ", 1, 6)
    (3, 5)
    """
    token_text = text[start:end]
    first = start + len(token_text) - len(token_text.lstrip())
    return first, max(first, start + len(token_text.rstrip()))


def widen_offsets(text: str, offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ascending spans, to which the characters between them, except white space, are added.

    >>> widen_offsets("a' `b", [(0, 1), (4, 5)])
    [(0, 2), (3, 5)]
    >>> widen_offsets("a'b", [(0, 1), (2, 3)])
    [(0, 2), (2, 3)]
    """
    wide, before = [], 0
    for (start, end), after in zip(offsets, [*(start for start, _ in offsets[1:]), len(text)], strict=True):
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
        rules = type(backend.normalizer).__name__, type(backend.pre_tokenizer).__name__
        if rules == ("BertNormalizer", "BertPreTokenizer"):
            return split_bert_words
        if (
            rules == ("NoneType", "ByteLevel")
            and backend.pre_tokenizer.use_regex
            and not backend.pre_tokenizer.add_prefix_space
        ):
            return split_gpt2_words
    return lambda text: None


def load_tokenizer(path, lowercase: bool = True, add_prefix_space: bool = False) -> Tokenizer:
    """Load a published vocabulary in any of the forms of `TokenizerSpec.path`; special tokens are found by name.

    `add_prefix_space` lets byte-level BPE see a space before a text, as in transformers. Raises `ValueError` for a path
    in no such form and for missing special tokens.
    """
    return Tokenizer(read_published_tokenizer(Path(path).expanduser(), lowercase, add_prefix_space))


def train_tokenizer(spec: TokenizerSpec, documents: Iterable[list[str]]) -> Tokenizer:
    """Train a vocabulary of at most `spec.vocab_size` tokens on the first `spec.train_chars` characters of `documents`.

    The same texts give the same ids in every process.
    """
    makers = {"wordpiece": _train_wordpiece, "bpe": _train_bpe, "unigram": _train_unigram}
    texts = _sample_texts(documents, spec.train_chars, " " if spec.kind == "bpe" else "")
    if not any(text.strip() for text in texts):
        raise ValueError(f"the corpus is empty or blank; a {spec.kind} vocabulary needs text to train on")
    return Tokenizer(makers[spec.kind](spec, texts))


def _sample_texts(documents: Iterable[list[str]], max_chars: int, sentence_joiner: str) -> list[str]:
    texts: list[str] = []
    for document in documents:
        for index, sentence in enumerate(document):
            texts.append((sentence_joiner if index else "") + sentence[:max_chars])
            max_chars -= len(sentence)
            if max_chars <= 0:
                return texts
    return texts


def build_vocab_info(backend, kind: str) -> VocabInfo:
    vocabulary = backend.get_vocab()
    roles = {f"{role}_id": vocabulary[name] for role, name in find_special_token_names(vocabulary, kind).items()}
    added = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}
    special = tuple(sorted(added | set(roles.values())))
    size = max(vocabulary.values()) + 1
    bits = np.zeros(size, np.uint8)
    bits[[id for token, id in vocabulary.items() if is_continuation(token, kind)]] = 1
    bits[list(special)] = 0
    return VocabInfo(vocab_size=size, special_ids=special, continuation_bits=np.packbits(bits).tobytes(), **roles)


def is_continuation(token: str, kind: str) -> bool:
    """Return whether an ordinary token continues a word, as in the released code of each family's whole-word masks."""
    if kind == "wordpiece":
        return token.startswith("##")
    if kind == "bpe":
        return not token.startswith(("Ġ", "madeupword"))
    # ALBERT: digits, letters beyond a-z and single punctuation marks are separate units.
    return (
        not token.startswith(("▁", "<"))
        and token not in ALBERT_PUNCTUATION
        and set(token.lower()) <= ASCII_LETTERS | ALBERT_PUNCTUATION
    )


# Training


def _train_wordpiece(spec: TokenizerSpec, texts: list[str]):
    from tokenizers import models, pre_tokenizers, trainers

    names = list(SPECIAL_TOKEN_NAMES["wordpiece"].values())
    rules = build_wordpiece({name: id for id, name in enumerate(names)}, spec.lowercase)
    # A letter may need two tokens, "a" and "##a".
    texts = _normalize_texts(texts, rules.normalizer, 1.0, min(MAX_ALPHABET_SIZE, (spec.vocab_size - len(names)) // 2))

    def train_vocab(vocab_size: int, special_tokens: list[str]) -> dict[str, int]:
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=special_tokens,
            min_frequency=2,
            limit_alphabet=MAX_ALPHABET_SIZE,
            show_progress=False,
        )
        return _train_model(models.WordPiece(unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer(), trainer, texts)[
            "vocab"
        ]

    # The trainer numbers the letters in the order of a hash table, which differs between processes and decides ties.
    # A first pass finds the letters; a second one gets them in order.
    letters = sorted(set(train_vocab(len(names), names)) - set(names))
    return build_wordpiece(train_vocab(spec.vocab_size, names + letters), spec.lowercase)


def _train_bpe(spec: TokenizerSpec, texts: list[str]):
    from tokenizers import models, pre_tokenizers, trainers

    *first, mask = SPECIAL_TOKEN_NAMES["bpe"].values()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size - 1,
        min_frequency=2,
        special_tokens=first,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model = _train_model(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), trainer, texts)
    return build_byte_level_bpe(model["vocab"] | {mask: len(model["vocab"])}, [tuple(pair) for pair in model["merges"]])


def _train_unigram(spec: TokenizerSpec, texts: list[str]):
    from tokenizers import models, trainers

    fixed = [*SPECIAL_TOKEN_NAMES["unigram"].values(), *ALBERT_SYMBOLS]
    texts = _normalize_texts(
        texts, build_albert_normalizer(spec.lowercase), CHARACTER_COVERAGE, spec.vocab_size - len(fixed) - 1
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=spec.vocab_size, special_tokens=fixed[:2], unk_token="<unk>", show_progress=False
    )
    pieces = _train_model(models.Unigram(), build_albert_pre_tokenizer(ALBERT_SYMBOLS), trainer, texts)["vocab"]
    # Two things differ between processes: the last digits of sums in the order of a hash table, and the order of the
    # letters without a score, which the trainer sets 0.0001 apart above the lowest one.
    scores = {piece: round(score, 3) for piece, score in pieces if piece not in fixed}
    lowest = min(scores.values(), default=0.0)
    letters = [piece for piece in scores if len(piece) == 1]
    scores |= {piece: lowest for piece in letters if scores[piece] < lowest + 1e-4 * len(letters) + 1e-3}
    ranked = sorted(scores, key=lambda piece: (len(piece) > 1, -scores[piece], piece))  # no letter is dropped
    chosen = sorted(ranked[: spec.vocab_size - len(fixed)], key=lambda piece: (-scores[piece], piece))
    return build_unigram(
        [(piece, 0.0) for piece in fixed] + [(piece, scores[piece]) for piece in chosen], spec.lowercase, ALBERT_SYMBOLS
    )


def _normalize_texts(texts: list[str], normalizer, coverage: float, max_letters: int) -> list[str]:
    """Return normalised texts, with a space for each character that is too rare to get a token."""
    texts = [normalizer.normalize_str(text) for text in texts]
    counts = Counter()
    for text in texts:
        counts.update(text)
    counts.pop(" ", None)
    num_left, letters = coverage * counts.total(), set()
    for letter, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        if num_left <= 0 or len(letters) >= max_letters:
            break
        letters.add(letter)
        num_left -= count
    rare = str.maketrans({letter: " " for letter in set(counts) - letters})
    return [text.translate(rare) for text in texts] if rare else texts


def _train_model(model, pre_tokenizer, trainer, texts: list[str]) -> dict:
    from tokenizers import Tokenizer

    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer
    backend.train_from_iterator(iter(texts), trainer)
    return json.loads(backend.to_str())["model"]
