import errno
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import encoders
from encoders.data import work_units
from encoders.data.prepare import prepare_store
from encoders.data.spec import PretrainingData, compute_store_key
from encoders.data.store import Store
from encoders.text.source import CorpusError
from encoders.text.tokenization import TokenizerSpec
from tests.refusals import raises_naming
from tests.texts import write, written

FILES = [f"{split}/{name}.bin" for split in ("train", "heldout") for name in ("tokens", "sentences", "documents")]


@pytest.fixture
def data(tmp_path):
    text = write(tmp_path / "text.txt", documents=30)
    return PretrainingData(
        corpus=(str(text),),
        tokenizer=TokenizerSpec(vocab_size=300),
        heldout_fraction=0.2,
        store_dir=str(tmp_path / "stores"),
    )


def content(store):
    return {name: (store.path / name).read_bytes() for name in [*FILES, "tokenizer.json"]}


def test_a_symbolic_link_is_read_by_the_suffix_of_its_own_name(data, tmp_path):
    blob, link = tmp_path / "blobs" / "abc123", tmp_path / "train.jsonl"
    blob.parent.mkdir()
    blob.write_text("".join(json.dumps({"text": f"document {number} ."}) + "\n" for number in range(50)))
    link.symlink_to(blob)
    store = prepare_store(replace(data, corpus=(str(link),)))
    assert sum(split["documents"] for split in store.metadata["splits"].values()) == 50


def test_a_finished_store_is_used_again_as_it_is(data):
    said = []
    first = prepare_store(data, said.append)
    assert any(line.startswith("tokens: 30 documents") for line in said)
    files = [path for path in first.path.rglob("*") if path.is_file()]
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in files]
    again = prepare_store(data, lambda line: pytest.fail(f"nothing is left to do, but: {line}"))
    assert again.path == first.path and again.metadata == first.metadata
    assert before == [(path.stat().st_ino, path.stat().st_mtime_ns) for path in files]
    assert [path.name for path in Path(data.store_dir).iterdir()] == [first.key]


def test_the_store_lies_in_its_folder_under_its_key(data):
    store = prepare_store(data)
    assert store.path == Path(data.store_dir) / compute_store_key(data)
    assert store.key == compute_store_key(data) and len(store.key) == 16


def test_the_same_text_elsewhere_has_the_same_key(tmp_path, data):
    (tmp_path / "elsewhere").mkdir()
    moved = write(tmp_path / "elsewhere" / "text.txt", documents=30)
    assert compute_store_key(replace(data, corpus=(str(moved),))) == compute_store_key(data)
    assert compute_store_key(replace(data, corpus=(str(tmp_path / "elsewhere" / "*.txt"),))) == compute_store_key(data)
    assert compute_store_key(replace(data, store_dir="another")) == compute_store_key(data)


def test_what_changes_the_tokens_changes_the_key(tmp_path, data):
    other = str(write(tmp_path / "other.txt", documents=30, seed=1))
    specs = [
        data,
        replace(data, tokenizer=TokenizerSpec(vocab_size=301)),
        replace(data, tokenizer=TokenizerSpec(kind="bpe", vocab_size=300)),
        replace(data, tokenizer=TokenizerSpec(vocab_size=300, lowercase=False)),
        replace(data, tokenizer=TokenizerSpec(vocab_size=300, train_chars=1000)),
        replace(data, heldout_fraction=0.3),
        replace(data, sentence_splitting="lines"),
        replace(data, language="de"),
        replace(data, corpus=(other,)),
        replace(data, corpus=(*data.corpus, other)),
        replace(data, corpus=(other, *data.corpus)),
    ]
    keys = [compute_store_key(spec) for spec in specs]
    text = Path(data.corpus[0])
    text.write_text(text.read_text().replace("Tan", "Ran", 1))
    assert len({*keys, compute_store_key(data)}) == len(specs) + 1


def test_a_vocabulary_is_known_by_its_content(tmp_path, data):
    def pointed(folder, words):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "vocab.txt"
        path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
        return compute_store_key(replace(data, tokenizer=TokenizerSpec(path=str(path))))

    assert pointed("a", ["red", "cat"]) == pointed("b", ["red", "cat"])
    assert pointed("c", ["cat", "red"]) != compute_store_key(
        replace(data, tokenizer=TokenizerSpec(path=str(tmp_path / "a/vocab.txt")))
    )


def test_a_vocabulary_in_the_home_folder_is_found(tmp_path, data, monkeypatch):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red"]))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (
        prepare_store(replace(data, tokenizer=TokenizerSpec(path="~/vocab.txt"), max_unknown_rate=1.0)).vocab.vocab_size
        == 6
    )


def test_a_vocabulary_that_is_missing_or_none_is_an_error_with_its_path(tmp_path, data):
    with pytest.raises(ValueError, match="nowhere.txt"):
        prepare_store(replace(data, tokenizer=TokenizerSpec(path=str(tmp_path / "nowhere.txt"))))
    (tmp_path / "vocab.txt").write_text("red\ncat\n")
    with pytest.raises(ValueError, match=r"\[PAD\]"):
        prepare_store(replace(data, tokenizer=TokenizerSpec(path=str(tmp_path / "vocab.txt"))))
    assert not list(Path(data.store_dir).glob("*"))


def test_the_size_of_a_piece_of_work_does_not_show_in_the_store(data, monkeypatch):
    whole = prepare_store(data)
    sizes = []
    monkeypatch.setattr(work_units, "TOKENIZE_CHUNK_CHARS", 700)
    of_pieces = prepare_store(replace(data, store_dir=data.store_dir + "-2"), sizes.append)
    assert len(sizes) > 5
    assert content(whole) == content(of_pieces)
    measured = {"seconds", "peak_memory_mb", "digest"}  # the digest covers the other two
    same = lambda store: {name: store.metadata[name] for name in store.metadata.keys() - measured}
    assert same(whole) == same(of_pieces)


def test_a_piece_of_work_is_about_its_size(monkeypatch):
    monkeypatch.setattr(work_units, "TOKENIZE_CHUNK_CHARS", 10)
    documents = [["1234", "567"], ["8"], ["9", "0"], ["x" * 40], ["12"]]
    assert list(work_units.batch_documents(iter(documents))) == [documents[:3], documents[3:4], documents[4:]]
    assert list(work_units.batch_documents(iter([]))) == []


def test_the_same_text_gives_the_same_store_twice(data):
    assert content(prepare_store(data)) == content(prepare_store(replace(data, store_dir=data.store_dir + "-2")))


def test_an_error_in_the_middle_leaves_nothing_that_looks_whole(data):
    def fail(line):
        if line.startswith("tokens"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with raises_naming(ValueError, data.store_dir, "work"):
        prepare_store(data, fail)
    assert [path.name for path in Path(data.store_dir).iterdir()] == [f".{compute_store_key(data)}.work"]
    assert prepare_store(data).train_split.num_documents > 0
    assert [path.name for path in Path(data.store_dir).iterdir()] == [compute_store_key(data)]


KILLED = """
import os, sys
from encoders.data.prepare import prepare_store
from encoders.data.spec import PretrainingData
from encoders.text.tokenization import TokenizerSpec
tokenizer = TokenizerSpec(vocab_size=300)
data = PretrainingData((sys.argv[1],), tokenizer, heldout_fraction=0.2, store_dir=sys.argv[2])
prepare_store(data, lambda line: os._exit(9) if line.startswith("tokens") else None)
"""


def test_a_killed_process_leaves_nothing_that_looks_whole(data):
    root = Path(encoders.__file__).parents[1]
    command = [sys.executable, "-c", KILLED, data.corpus[0], data.store_dir]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)}, timeout=60).returncode == 9
    left = list(Path(data.store_dir).iterdir())
    assert left and all(path.name.startswith(f".{compute_store_key(data)}.") for path in left)
    for path in left:
        with raises_naming(ValueError, path):
            Store.open(path)
    assert content(prepare_store(data)) == content(prepare_store(replace(data, store_dir=data.store_dir + "-2")))
    assert [path.name for path in Path(data.store_dir).iterdir()] == [compute_store_key(data)]


def test_a_store_that_is_being_prepared_is_waited_for(data):
    said, found, began = [], [], threading.Event()

    def hold(line):
        if line.startswith("tokens"):
            began.set()
            while not said:  # until the other one says that it waits
                time.sleep(0.01)

    first = threading.Thread(target=lambda: found.append(prepare_store(data, hold).key))
    first.start()
    assert began.wait(timeout=20)
    found.append(prepare_store(data, said.append).key)
    first.join()
    assert found == [compute_store_key(data)] * 2
    assert len(said) == 1 and said[0].endswith("another process prepares it; waiting")
    assert [path.name for path in Path(data.store_dir).iterdir()] == [compute_store_key(data)]


def test_a_folder_that_holds_no_whole_store_is_an_error_before_any_work(data):
    (Path(data.store_dir) / compute_store_key(data)).mkdir(parents=True)
    with raises_naming(ValueError, compute_store_key(data)):
        prepare_store(data, lambda line: pytest.fail(f"this is work: {line}"))


def test_one_document_is_too_little(tmp_path, data):
    text = written(tmp_path / "one.txt", [["Tan man.", "Man ran."]])
    with raises_naming(ValueError, "train", "1 document", "one.txt", "blank lines"):
        prepare_store(replace(data, corpus=(str(text),)))
    assert not Path(data.store_dir).exists()


def test_two_documents_are_enough(tmp_path, data):
    text = written(tmp_path / "two.txt", [["Tan man."], ["Man ran."]])
    store = prepare_store(replace(data, corpus=(str(text),)))
    assert store.train_split.num_documents == store.eval_splits[0].num_documents == 1


def test_a_document_without_tokens_is_left_out(tmp_path, data):
    bell = "\x07"  # control characters are no text
    text = written(tmp_path / "some.txt", [["Tan man."], [bell], ["Man ran.", bell, "Tan."]])
    store = prepare_store(replace(data, corpus=(str(text),), sentence_splitting="lines", heldout_fraction=0.01))
    assert store.train_split.num_documents == 1 and len(store.train_split.sentence_offsets) == 3


def test_a_file_that_is_missing_is_an_error_before_any_work(tmp_path, data):
    with raises_naming(CorpusError, "texts.txt'", "text.txt"):
        prepare_store(replace(data, corpus=(str(tmp_path / "texts.txt"),)))
    assert not Path(data.store_dir).exists()


@pytest.mark.parametrize(
    "wrong", [{"corpus": ()}, {"heldout_fraction": 0.0}, {"heldout_fraction": 1.0}, {"heldout_fraction": float("nan")}]
)
def test_data_that_cannot_be_is_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"data.{name}"):
        PretrainingData(**wrong)


# Text that the vocabulary does not know


def write_unknown(path, share):
    """Write 400 documents of which every other word, or fewer, has a letter that a vocabulary of 3 letters lacks."""
    lines = ["a b c " * 10 + "☃ " * round(share * 30 / (1 - share)) for _ in range(400)]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("share, is_refused", [(0.0, False), (0.1, False), (0.5, True)])
def test_unknown_tokens_are_warned_of_and_many_are_refused_unless_accepted(share, is_refused, tmp_path):
    words = tmp_path / "vocab.txt"
    words.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\n")
    text = write_unknown(tmp_path / "text.txt", share)
    data = PretrainingData((str(text),), TokenizerSpec(path=str(words)), "lines", store_dir=str(tmp_path / "stores"))
    lines = []
    if is_refused:
        with pytest.raises(ValueError, match=r"5\d\.\d% .*data.max_unknown_rate=0.2"):
            prepare_store(data, lines.append)
        assert not any(line.startswith("tokens:") for line in lines)  # before the text is tokenised
        data = replace(data, max_unknown_rate=0.9)
    for _ in range(2):  # when it is made, and when it is used again
        lines.clear()
        store = prepare_store(data, lines.append)
        assert store.metadata["unknown_rate"] == pytest.approx(share, abs=0.03)
        warnings = [line for line in lines if line.startswith("warning") and "unknown" in line]
        assert len(warnings) == (share > 0.01)


def test_capitals_that_are_lowered_are_warned_of(tmp_path):
    words = tmp_path / "vocab.txt"
    words.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nParis\nb\nc\n")
    text = write_unknown(tmp_path / "text.txt", 0.0)
    lines = []
    tokenizer = TokenizerSpec(path=str(words))
    prepare_store(PretrainingData((str(text),), tokenizer, "lines", store_dir=str(tmp_path / "stores")), lines.append)
    assert [line for line in lines if line.startswith("warning") and "'Paris'" in line and "lowercase=false" in line]


def test_a_null_text_is_counted_and_a_sequence_of_fasta_is_a_document(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a b."}\n{"text": null}\n{"text": "c d."}\n' * 30)
    (tmp_path / "b.fa").write_text("".join(f">s{i}\nMKV\nLAA\n" for i in range(60)))
    corpus = (str(tmp_path / "a.jsonl"), str(tmp_path / "b.fa"))
    tokenizer, stores = TokenizerSpec("character", vocab_size=40), str(tmp_path / "stores")
    store = prepare_store(PretrainingData(corpus, tokenizer, "lines", heldout_fraction=0.1, store_dir=stores))
    assert store.metadata["filtered"]["records with a null text"] == 30
    assert sum(split["documents"] for split in store.metadata["splits"].values()) == 120
    assert store.metadata["unknown_rate"] == 0


def test_a_vocabularys_sample_never_hashes_the_thousands_of_files_of_a_unit(tmp_path, monkeypatch):
    for number in range(300):
        write(tmp_path / f"{number}.txt", documents=1, seed=number)
    data = PretrainingData(
        (str(tmp_path / "*.txt"),), TokenizerSpec(vocab_size=300), store_dir=str(tmp_path / "stores")
    )
    monkeypatch.setattr(work_units.WorkUnit, "__hash__", None)
    assert prepare_store(data).metadata["splits"]["train"]["documents"] > 250
