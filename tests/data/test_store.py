import json

import numpy as np
import pytest

from encoders.data import store
from encoders.data.prepare import prepare_store
from encoders.data.spec import PretrainingData
from encoders.data.store import Split, Store
from encoders.data.work_units import is_held_out
from encoders.text.tokenization import TokenizerSpec
from tests.refusals import raises_naming
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
    return TokenizerSpec(path=str(path))


def stored(folder, documents, words=WORDS, heldout=0.25):
    folder.mkdir(exist_ok=True)
    text = written(folder / "text.txt", documents)
    vocabulary = known_words(folder, words)
    where = dict(corpus=(str(text),), store_dir=str(folder / "stores"))
    return prepare_store(
        PretrainingData(
            tokenizer=vocabulary, sentence_splitting="lines", heldout_fraction=heldout, max_unknown_rate=1.0, **where
        )
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("small"), DOCUMENTS)


def test_a_split_is_flat_tokens_with_sentence_and_document_offsets(small):
    assert small.train_split.tokens.tolist() == [RED, CAT, CAT, CAT, RUNS, SEP, DOG, CAT, RED, SEP]
    assert small.train_split.sentence_offsets.tolist() == [0, 2, 6, 7, 8, 10]
    assert small.train_split.document_offsets.tolist() == [0, 2, 5]
    assert small.eval_splits[0].tokens.tolist() == [DOG, RED, DOG, SEP, RUNS, SEP]
    assert small.eval_splits[0].sentence_offsets.tolist() == [0, 1, 4, 6]
    assert small.eval_splits[0].document_offsets.tolist() == [0, 2, 3]


def test_the_offsets_of_a_document_leave_its_separator_out(small):
    assert small.train_split.num_documents == 2
    assert [small.train_split.get_sentence_offsets(document) for document in range(2)] == [[0, 2, 5], [6, 7, 8, 9]]


def test_every_document_ends_with_one_separator(tmp_path):
    text = write(tmp_path / "text.txt", documents=60)
    data = PretrainingData(
        corpus=(str(text),), tokenizer=TokenizerSpec(vocab_size=400), heldout_fraction=0.3, store_dir=str(tmp_path)
    )
    opened = prepare_store(data)
    assert opened.train_split.num_documents + opened.eval_splits[0].num_documents == 60
    for split in (opened.train_split, opened.eval_splits[0]):
        last = np.asarray(split.sentence_offsets[split.document_offsets[1:]]) - 1
        assert np.flatnonzero(split.tokens == opened.vocab.sep_id).tolist() == last.tolist()
        assert (np.diff(split.sentence_offsets) > 0).all() and split.sentence_offsets[-1] == len(split.tokens)
        assert (np.diff(split.document_offsets) > 0).all() and split.document_offsets[-1] == len(
            split.sentence_offsets
        ) - 1


def test_train_and_heldout_are_disjoint_and_hold_every_document(tmp_path):
    documents = [[f"w{n}", f"w{n} w{n}"] for n in range(50)]
    opened = stored(tmp_path, documents, [f"w{n}" for n in range(50)], heldout=0.2)
    train, heldout = (set(np.asarray(s.tokens).tolist()) - {SEP} for s in (opened.train_split, opened.eval_splits[0]))
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
    assert opened.metadata["dtype"] == opened.train_split.tokens.dtype.name == name
    assert opened.train_split.tokens.tolist() == [size - 1, SEP]
    assert (opened.path / "train" / "tokens.bin").stat().st_size == 2 * width


def test_a_store_brings_its_tokenizer_and_the_facts_of_its_vocabulary(small):
    assert small.tokenizer.encode_batch(["red dog"]) == [[RED, DOG]]
    facts = small.vocab
    assert (facts.vocab_size, facts.pad_id, facts.unk_id, facts.cls_id, facts.sep_id, facts.mask_id) == (
        9,
        0,
        1,
        2,
        3,
        4,
    )
    assert facts.special_ids == (0, 1, 2, 3, 4)
    assert Store.open(small.path).vocab == facts


def test_the_common_token_is_the_most_frequent_ordinary_one_of_the_training_split(tmp_path):
    assert stored(tmp_path / "a", DOCUMENTS).vocab.most_frequent_id == CAT
    unknown = ["x y z x y z", "red"]  # [UNK] six times
    assert stored(tmp_path / "b", [["cat cat"], unknown]).vocab.most_frequent_id == RED


def test_the_unknown_rate_is_that_of_the_training_split(tmp_path):
    opened = stored(tmp_path, [["x y z"], ["red x", "cat cat"]])  # one of four tokens, separators apart
    assert opened.metadata["unknown_rate"] == 0.25


def test_counts_are_those_of_the_files(small):
    assert small.metadata["splits"] == {
        "train": {"documents": 2, "sentences": 5, "tokens": 10},
        "heldout": {"documents": 2, "sentences": 3, "tokens": 6},
    }
    assert small.metadata["characters"] == sum(len(line) for document in DOCUMENTS for line in document)


def test_shards_are_ranges_of_whole_documents_of_about_equal_size(small, monkeypatch):
    tokens = np.zeros(60, np.uint16)
    sentences = np.array([0, 10, 12, 14, 40, 50, 60])
    split = Split("train", tokens, sentences, np.arange(7))
    monkeypatch.setattr(store, "SHARD_TOKENS", 20)  # documents start at 0, 10, 12, 14, 40, 50
    assert split.split_shards() == [range(0, 4), range(4, 6)]
    monkeypatch.setattr(store, "SHARD_TOKENS", 100)
    assert split.split_shards() == [range(0, 6)]
    monkeypatch.setattr(store, "SHARD_TOKENS", 1)
    assert [n for shard in split.split_shards() for n in shard] == list(range(6))


def test_a_folder_without_a_whole_store_is_refused(tmp_path, small):
    with raises_naming(ValueError, tmp_path / "nowhere"):
        Store.open(tmp_path / "nowhere")
    (tmp_path / "store.json").write_text(json.dumps(small.metadata)[:50])
    with raises_naming(ValueError, tmp_path):
        Store.open(tmp_path)
