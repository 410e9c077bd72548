"""Texts split word by word get the ids that the tokenizers library gives the whole text."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.text import tokenization
from encoders.text.tokenization import TokenizerSpec, train_tokenizer
from tests.texts import made_up

PIECES = (
    "the", "Tan", "tan's", "don't", "'ll", "12", "3a", " ", "  ", "   ", ".", "...", "?!", "'", "''",
    "[MASK]", "<mask>", "é", "é", "naïve", "日本", "🙂", "\t", "\n", "\x00", "\x1c", "\x7f", "\u00a0", "\u2028",
    "ΑΣ", "İ", "x" * 70,
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join)


@pytest.fixture(scope="module", params=["cased", "uncased", "bpe"])
def tokenizer(request):
    kind = "bpe" if request.param == "bpe" else "wordpiece"
    documents = [*made_up(30), ["don't 12 naïve é ... ' [MASK] 日本"] * 2]
    return train_tokenizer(TokenizerSpec(kind=kind, vocab_size=600, lowercase=request.param == "uncased"), documents)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(TEXTS, max_size=4))
def test_a_text_has_the_same_ids_word_by_word_as_whole(tokenizer, texts):
    assert tokenizer.encode_batch(texts) == tokenizer._word_cache.encode_batch(texts)


def test_words_are_split_once_and_forgotten_when_there_are_too_many(monkeypatch):
    asked = []

    def encode(texts):
        asked.extend(texts)
        return [[len(text)] for text in texts]

    monkeypatch.setattr(tokenization, "MAX_CACHED_WORDS", 2)
    cache = tokenization.WordCache(encode, tokenization.split_bert_words)
    assert cache.encode_batch(["ab c", "ab ab"]) == [[2, 1], [2, 2]] and asked == ["ab", "c"]
    assert cache.encode_batch(["ab def"]) == [[2, 3]] and asked == ["ab", "c", "def"]
    assert cache.encode_batch(["ab"]) == [[2]] and asked == ["ab", "c", "def", "ab"]
    assert sys.getsizeof(cache.cached_ids) < 1000


class NeverWalked(dict):
    def __iter__(self):
        raise AssertionError("every cached word was looked at")

    keys = items = values = __iter__


def test_a_short_text_costs_its_own_words_whatever_is_cached():
    cache = tokenization.WordCache(lambda texts: [[len(text)] for text in texts], tokenization.split_bert_words)
    cache.cached_ids = NeverWalked(ab=[2], c=[1])
    assert cache.encode_batch(["ab def"]) == [[2, 3]] and "def" in cache.cached_ids


def test_rules_that_are_not_known_see_the_whole_text():
    tokenizer = train_tokenizer(TokenizerSpec(kind="unigram", vocab_size=600), made_up(30))
    assert tokenizer._word_cache.split_words("plain text") is None
    assert tokenization.split_gpt2_words("é") is None and tokenization.split_bert_words("é" * 65) is None
