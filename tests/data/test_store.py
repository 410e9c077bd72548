import json

import numpy as np
import pytest

from encoders.data import store
from encoders.data.prepare import Data, prepared
from encoders.data.store import Split, Store
from encoders.data.work_units import is_held_out
from encoders.text.tokenization import Vocabulary
from tests.texts import write, written

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4
SEP, RED, CAT, DOG, RUNS = 3, 5, 6, 7, 8
WORDS = ["red", "cat", "dog", "runs"]

# By (n x 0.618...) mod 1 < 0.25, documents 0 and 2 of these four are held out: 0, 0.618, 0.236, 0.854.
DOCUMENTS = [["dog", "red dog"], ["red cat", "cat cat runs"], ["runs"], ["dog", "cat", "red"]]


def known_words(folder, words):
    """A published vocabulary of the special tokens and `words`, so that every id is known."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(SPECIAL + words) + "\n", encoding="utf-8")
    return Vocabulary(path=str(path))


def stored(folder, documents, words=WORDS, heldout=0.25):
    folder.mkdir(exist_ok=True)
    text = written(folder / "text.txt", documents)
    vocabulary = known_words(folder, words)
    where = dict(corpus=(str(text),), folder=str(folder / "stores"))
    return prepared(Data(vocabulary=vocabulary, sentences="lines", heldout=heldout, **where))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("small"), DOCUMENTS)


def test_a_split_is_flat_tokens_with_sentence_and_document_offsets(small):
    assert small.train.tokens.tolist() == [RED, CAT, CAT, CAT, RUNS, SEP, DOG, CAT, RED, SEP]
    assert small.train.sentences.tolist() == [0, 2, 6, 7, 8, 10]
    assert small.train.documents.tolist() == [0, 2, 5]
    assert small.heldout.tokens.tolist() == [DOG, RED, DOG, SEP, RUNS, SEP]
    assert small.heldout.sentences.tolist() == [0, 1, 4, 6]
    assert small.heldout.documents.tolist() == [0, 2, 3]


def test_the_offsets_of_a_document_leave_its_separator_out(small):
    assert small.train.size == 2
    assert [small.train.offsets(document) for document in range(2)] == [[0, 2, 5], [6, 7, 8, 9]]


def test_every_document_ends_with_one_separator(tmp_path):
    text = write(tmp_path / "text.txt", documents=60)
    data = Data(corpus=(str(text),), vocabulary=Vocabulary(size=400), heldout=0.3, folder=str(tmp_path))
    opened = prepared(data)
    assert opened.train.size + opened.heldout.size == 60
    for split in (opened.train, opened.heldout):
        last = np.asarray(split.sentences[split.documents[1:]]) - 1
        assert np.flatnonzero(split.tokens == opened.facts.sep).tolist() == last.tolist()
        assert (np.diff(split.sentences) > 0).all() and split.sentences[-1] == len(split.tokens)
        assert (np.diff(split.documents) > 0).all() and split.documents[-1] == len(split.sentences) - 1


def test_train_and_heldout_are_disjoint_and_hold_every_document(tmp_path):
    documents = [[f"w{n}", f"w{n} w{n}"] for n in range(50)]
    opened = stored(tmp_path, documents, [f"w{n}" for n in range(50)], heldout=0.2)
    train, heldout = (set(np.asarray(s.tokens).tolist()) - {SEP} for s in (opened.train, opened.heldout))
    assert not train & heldout
    assert train | heldout == set(range(5, 55))
    assert heldout == {5 + n for n in range(50) if n * 0.6180339887498949 % 1 < 0.2}


def test_any_stretch_of_documents_has_its_share_held_out():
    for unit, start in ((0, 0), (0, 123_456), (1, 0), (7, 1000)):
        assert 19 <= sum(is_held_out(unit, n, 0.02) for n in range(start, start + 1000)) <= 21
    assert is_held_out(0, 0, 1e-9)


@pytest.mark.parametrize("size, name, width", [(1 << 16, "uint16", 2), ((1 << 16) + 1, "uint32", 4)])
def test_a_token_takes_two_bytes_while_all_ids_fit_into_them(tmp_path, size, name, width):
    words = [f"w{n}" for n in range(size - 5)]
    opened = stored(tmp_path, [["w0"], [words[-1]]], words)
    assert opened.meta["dtype"] == opened.train.tokens.dtype.name == name
    assert opened.train.tokens.tolist() == [size - 1, SEP]
    assert (opened.path / "train" / "tokens.bin").stat().st_size == 2 * width


def test_a_store_brings_its_tokenizer_and_the_facts_of_its_vocabulary(small):
    assert small.tokenizer.encode_batch(["red dog"]) == [[RED, DOG]]
    facts = small.facts
    assert (facts.size, facts.pad, facts.unk, facts.cls, facts.sep, facts.mask) == (9, 0, 1, 2, 3, 4)
    assert facts.special == (0, 1, 2, 3, 4)
    assert Store.open(small.path).facts == facts


def test_the_common_token_is_the_most_frequent_ordinary_one_of_the_training_split(tmp_path):
    assert stored(tmp_path / "a", DOCUMENTS).facts.common == CAT
    unknown = ["x y z x y z", "red"]  # [UNK] six times
    assert stored(tmp_path / "b", [["cat cat"], unknown]).facts.common == RED


def test_the_unknown_rate_is_that_of_the_training_split(tmp_path):
    opened = stored(tmp_path, [["x y z"], ["red x", "cat cat"]])  # one of four tokens, separators apart
    assert opened.meta["unknown_rate"] == 0.25


def test_counts_are_those_of_the_files(small):
    assert small.meta["splits"] == {
        "train": {"documents": 2, "sentences": 5, "tokens": 10},
        "heldout": {"documents": 2, "sentences": 3, "tokens": 6},
    }
    assert small.meta["characters"] == sum(len(line) for document in DOCUMENTS for line in document)


def test_shards_are_ranges_of_whole_documents_of_about_equal_size(small, monkeypatch):
    tokens = np.zeros(60, np.uint16)
    sentences = np.array([0, 10, 12, 14, 40, 50, 60])
    split = Split("train", tokens, sentences, np.arange(7))
    monkeypatch.setattr(store, "SHARD", 20)  # documents start at 0, 10, 12, 14, 40, 50
    assert split.shards() == [range(0, 4), range(4, 6)]
    monkeypatch.setattr(store, "SHARD", 100)
    assert split.shards() == [range(0, 6)]
    monkeypatch.setattr(store, "SHARD", 1)
    assert [n for shard in split.shards() for n in shard] == list(range(6))


def test_a_folder_without_a_whole_store_is_refused(tmp_path, small):
    with pytest.raises(ValueError, match="nowhere is not a prepared store"):
        Store.open(tmp_path / "nowhere")
    (tmp_path / "store.json").write_text(json.dumps(small.meta)[:50])
    with pytest.raises(ValueError, match="is not a prepared store"):
        Store.open(tmp_path)
