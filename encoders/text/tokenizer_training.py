"""Training of vocabularies: the same texts give the same ids in every process."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate, chain

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from encoders.text.tokenizer_backends import (
    ALBERT_SYMBOLS,
    SPACE,
    SPECIAL_TOKEN_NAMES,
    build_albert_normalizer,
    build_albert_pre_tokenizer,
    build_byte_level_bpe,
    build_characters,
    build_unigram,
    build_word_list,
    build_wordpiece,
)

CHARACTER_COVERAGE = 0.99995  # of a unigram vocabulary's training characters, as ALBERT's spm_train flags
MAX_LONG_WORD_CHARS = 1_000_000  # of words of more than 32 letters that a unigram vocabulary is trained on
LONG_WORD_PATTERN = re.compile(r"\S{1000}(?=\S)")  # the trainers' time grows with the square of a word's length


def train_backend(kind: str, texts: list[str], vocab_size: int, lowercase: bool):
    """Train a vocabulary of at most `vocab_size` tokens. Words of more than 1,000 letters are cut, and a unigram
    vocabulary sees `MAX_LONG_WORD_CHARS` letters of long words at most."""
    if kind == "words":
        return build_word_list(_rank_units(map(str.split, texts), vocab_size))
    if kind == "character":
        return build_characters(_rank_units((text.replace(" ", SPACE) for text in texts), vocab_size))
    train = {"wordpiece": _train_wordpiece, "bpe": _train_bpe, "unigram": _train_unigram}[kind]
    return train([LONG_WORD_PATTERN.sub(r"\g<0> ", text) for text in texts], vocab_size, lowercase)


def _rank_units(texts: Iterable[Iterable[str]], vocab_size: int) -> dict[str, int]:
    """Return special tokens and the commonest units of the texts."""
    names, counts = list(SPECIAL_TOKEN_NAMES["words"].values()), Counter(chain.from_iterable(texts))
    ranked = sorted(counts.keys() - set(names), key=lambda unit: (-counts[unit], unit))
    return {token: id for id, token in enumerate([*names, *ranked[: vocab_size - len(names)]])}


def _train_wordpiece(texts: list[str], vocab_size: int, lowercase: bool):
    names = list(SPECIAL_TOKEN_NAMES["wordpiece"].values())
    rules = build_wordpiece({name: id for id, name in enumerate(names)}, lowercase)
    # A letter may need two tokens, "a" and "##a".
    max_letters = (vocab_size - len(names)) // 2
    texts = _normalize_texts(texts, rules.normalizer, 1.0, max_letters)

    def train_vocab(max_tokens: int, special_tokens: list[str]) -> dict[str, int]:
        model, words = models.WordPiece(unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer()
        options = {"vocab_size": max_tokens, "special_tokens": special_tokens, "limit_alphabet": max_letters}
        return _train_model(model, words, texts, trainers.WordPieceTrainer, min_frequency=2, **options)["vocab"]

    # The trainer numbers the letters in the order of a hash table, which differs between processes and decides ties.
    # A first pass finds the letters; a second one gets them in order.
    letters = sorted(set(train_vocab(len(names), names)) - set(names))
    return build_wordpiece(train_vocab(vocab_size, names + letters), lowercase)


def _train_bpe(texts: list[str], vocab_size: int, lowercase: bool):  # keeps case
    *first, mask = SPECIAL_TOKEN_NAMES["bpe"].values()
    options = {"vocab_size": vocab_size - 1, "special_tokens": first, "min_frequency": 2}
    options["initial_alphabet"] = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model = _train_model(models.BPE(), words, texts, trainers.BpeTrainer, **options)
    return build_byte_level_bpe(model["vocab"] | {mask: len(model["vocab"])}, [tuple(pair) for pair in model["merges"]])


def _train_unigram(texts: list[str], vocab_size: int, lowercase: bool):
    fixed = [*SPECIAL_TOKEN_NAMES["unigram"].values(), *ALBERT_SYMBOLS]
    normalizer, max_letters = build_albert_normalizer(lowercase), vocab_size - len(fixed) - 1
    texts = _limit_long_words(_normalize_texts(texts, normalizer, CHARACTER_COVERAGE, max_letters))
    words = build_albert_pre_tokenizer(ALBERT_SYMBOLS)
    options = {"vocab_size": vocab_size, "special_tokens": fixed[:2], "unk_token": "<unk>"}
    pieces = _train_model(models.Unigram(), words, texts, trainers.UnigramTrainer, **options)["vocab"]
    # Two things differ between processes: the last digits of sums in the order of a hash table, and the order of the
    # letters without a score, which the trainer sets 0.0001 apart above the lowest one.
    scores = {piece: round(score, 3) for piece, score in pieces if piece not in fixed}
    lowest = min(scores.values(), default=0.0)
    letters = [piece for piece in scores if len(piece) == 1]
    scores |= {piece: lowest for piece in letters if scores[piece] < lowest + 1e-4 * len(letters) + 1e-3}
    ranked = sorted(scores, key=lambda piece: (len(piece) > 1, -scores[piece], piece))  # no letter is dropped
    chosen = sorted(ranked[: vocab_size - len(fixed)], key=lambda piece: (-scores[piece], piece))
    pieces = [(piece, scores.get(piece, 0.0)) for piece in fixed + chosen]
    return build_unigram(pieces, lowercase, ALBERT_SYMBOLS)


def _normalize_texts(texts: list[str], normalizer, coverage: float, max_letters: int) -> list[str]:
    """Return normalised texts, with a space for each character that is too rare to get a token."""
    texts = [normalizer.normalize_str(text) for text in texts]
    counts = Counter(chain.from_iterable(texts))
    counts.pop(" ", None)
    ranked = sorted(counts, key=lambda letter: (-counts[letter], letter))[:max_letters]
    num_before = accumulate((counts[letter] for letter in ranked), initial=0)
    letters = {letter for letter, before in zip(ranked, num_before, strict=False) if before < coverage * counts.total()}
    rare = str.maketrans({letter: " " for letter in set(counts) - letters})
    return [text.translate(rare) for text in texts] if rare else texts


def _limit_long_words(texts: list[str]) -> list[str]:
    """Return texts without the long words after the first `MAX_LONG_WORD_CHARS` letters of such: words repeat, and in a
    text without spaces every one is new, of which three million letters take minutes."""
    chars_left = MAX_LONG_WORD_CHARS

    def keep_or_drop(match: re.Match) -> str:
        nonlocal chars_left
        chars_left -= len(match[0])
        return match[0] if chars_left >= 0 else ""

    return [re.sub(r"\S{33,}", keep_or_drop, text) for text in texts]


def _train_model(model, pre_tokenizer, texts: list[str], trainer_class: type, **options) -> dict:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer
    backend.train_from_iterator(iter(texts), trainer_class(show_progress=False, **options))
    return json.loads(backend.to_str())["model"]
