import errno
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
from encoders.data.prepare import Data, key, prepared
from encoders.data.store import Store
from encoders.text.source import CorpusError
from encoders.text.tokenization import Vocabulary
from tests.texts import write, written

FILES = [f"{split}/{name}.bin" for split in ("train", "heldout") for name in ("tokens", "sentences", "documents")]


@pytest.fixture
def data(tmp_path):
    text = write(tmp_path / "text.txt", documents=30)
    return Data(corpus=(str(text),), vocabulary=Vocabulary(size=300), heldout=0.2, folder=str(tmp_path / "stores"))


def content(store):
    return {name: (store.path / name).read_bytes() for name in [*FILES, "tokenizer.json"]}


def test_a_finished_store_is_used_again_as_it_is(data):
    said = []
    first = prepared(data, said.append)
    assert any(line.startswith("tokens: 30 documents") for line in said)
    files = [path for path in first.path.rglob("*") if path.is_file()]
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in files]
    again = prepared(data, lambda line: pytest.fail(f"nothing is left to do, but: {line}"))
    assert again.path == first.path and again.meta == first.meta
    assert before == [(path.stat().st_ino, path.stat().st_mtime_ns) for path in files]
    assert [path.name for path in Path(data.folder).iterdir()] == [first.key]


def test_the_store_lies_in_its_folder_under_its_key(data):
    store = prepared(data)
    assert store.path == Path(data.folder) / key(data)
    assert store.key == key(data) and len(store.key) == 16


def test_the_same_text_elsewhere_has_the_same_key(tmp_path, data):
    (tmp_path / "elsewhere").mkdir()
    moved = write(tmp_path / "elsewhere" / "text.txt", documents=30)
    assert key(replace(data, corpus=(str(moved),))) == key(data)
    assert key(replace(data, corpus=(str(tmp_path / "elsewhere" / "*.txt"),))) == key(data)
    assert key(replace(data, folder="another")) == key(data)


def test_what_changes_the_tokens_changes_the_key(tmp_path, data):
    other = str(write(tmp_path / "other.txt", documents=30, seed=1))
    specs = [
        data,
        replace(data, vocabulary=Vocabulary(size=301)),
        replace(data, vocabulary=Vocabulary(kind="bpe", size=300)),
        replace(data, vocabulary=Vocabulary(size=300, lowercase=False)),
        replace(data, vocabulary=Vocabulary(size=300, sample=1000)),
        replace(data, heldout=0.3),
        replace(data, sentences="lines"),
        replace(data, language="de"),
        replace(data, corpus=(other,)),
        replace(data, corpus=(*data.corpus, other)),
        replace(data, corpus=(other, *data.corpus)),
    ]
    keys = [key(spec) for spec in specs]
    text = Path(data.corpus[0])
    text.write_text(text.read_text().replace("Tan", "Ran", 1))
    assert len({*keys, key(data)}) == len(specs) + 1


def test_a_vocabulary_is_known_by_its_content(tmp_path, data):
    def pointed(folder, words):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "vocab.txt"
        path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
        return key(replace(data, vocabulary=Vocabulary(path=str(path))))

    assert pointed("a", ["red", "cat"]) == pointed("b", ["red", "cat"])
    assert pointed("c", ["cat", "red"]) != key(replace(data, vocabulary=Vocabulary(path=str(tmp_path / "a/vocab.txt"))))


def test_a_vocabulary_in_the_home_folder_is_found(tmp_path, data, monkeypatch):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red"]))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepared(replace(data, vocabulary=Vocabulary(path="~/vocab.txt"))).facts.size == 6


def test_a_vocabulary_that_is_missing_or_none_is_an_error_with_its_path(tmp_path, data):
    with pytest.raises(ValueError, match="nowhere.txt"):
        prepared(replace(data, vocabulary=Vocabulary(path=str(tmp_path / "nowhere.txt"))))
    (tmp_path / "vocab.txt").write_text("red\ncat\n")
    with pytest.raises(ValueError, match=r"has no \[PAD\]"):
        prepared(replace(data, vocabulary=Vocabulary(path=str(tmp_path / "vocab.txt"))))
    assert not list(Path(data.folder).glob("*"))


def test_the_size_of_a_piece_of_work_does_not_show_in_the_store(data, monkeypatch):
    whole = prepared(data)
    sizes = []
    monkeypatch.setattr(work_units, "CHUNK", 700)
    of_pieces = prepared(replace(data, folder=data.folder + "-2"), sizes.append)
    assert len(sizes) > 5
    assert content(whole) == content(of_pieces)
    same = lambda store: {name: store.meta[name] for name in store.meta if name not in ("seconds", "peak_memory_mb")}
    assert same(whole) == same(of_pieces)


def test_a_piece_of_work_is_about_its_size(monkeypatch):
    monkeypatch.setattr(work_units, "CHUNK", 10)
    documents = [["1234", "567"], ["8"], ["9", "0"], ["x" * 40], ["12"]]
    assert list(work_units.chunks(iter(documents))) == [documents[:3], documents[3:4], documents[4:]]
    assert list(work_units.chunks(iter([]))) == []


def test_the_same_text_gives_the_same_store_twice(data):
    assert content(prepared(data)) == content(prepared(replace(data, folder=data.folder + "-2")))


def test_an_error_in_the_middle_leaves_nothing_that_looks_whole(data):
    def fail(line):
        if line.startswith("tokens"):
            raise OSError(errno.ENOSPC, "no space left on device")

    with pytest.raises(ValueError, match="no space is left in .*stores for the store; what is finished is kept"):
        prepared(data, fail)
    assert [path.name for path in Path(data.folder).iterdir()] == [f".{key(data)}.work"]
    assert prepared(data).train.size > 0
    assert [path.name for path in Path(data.folder).iterdir()] == [key(data)]


KILLED = """
import os, sys
from encoders.data.prepare import Data, prepared
from encoders.text.tokenization import Vocabulary
data = Data(corpus=(sys.argv[1],), vocabulary=Vocabulary(size=300), heldout=0.2, folder=sys.argv[2])
prepared(data, lambda line: os._exit(9) if line.startswith("tokens") else None)
"""


def test_a_killed_process_leaves_nothing_that_looks_whole(data):
    root = Path(encoders.__file__).parents[1]
    command = [sys.executable, "-c", KILLED, data.corpus[0], data.folder]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)}, timeout=60).returncode == 9
    left = list(Path(data.folder).iterdir())
    assert left and all(path.name.startswith(f".{key(data)}.") for path in left)
    for path in left:
        with pytest.raises(ValueError, match="is not a prepared store"):
            Store.open(path)
    assert content(prepared(data)) == content(prepared(replace(data, folder=data.folder + "-2")))
    assert [path.name for path in Path(data.folder).iterdir()] == [key(data)]


def test_a_store_that_is_being_prepared_is_waited_for(data):
    said, found, began = [], [], threading.Event()

    def hold(line):
        if line.startswith("tokens"):
            began.set()
            while not said:  # until the other one says that it waits
                time.sleep(0.01)

    first = threading.Thread(target=lambda: found.append(prepared(data, hold).key))
    first.start()
    assert began.wait(timeout=20)
    found.append(prepared(data, said.append).key)
    first.join()
    assert found == [key(data)] * 2
    assert len(said) == 1 and said[0].endswith("another process prepares it; waiting")
    assert [path.name for path in Path(data.folder).iterdir()] == [key(data)]


def test_a_folder_that_holds_no_whole_store_is_an_error_before_any_work(data):
    (Path(data.folder) / key(data)).mkdir(parents=True)
    with pytest.raises(ValueError, match="is not a prepared store"):
        prepared(data, lambda line: pytest.fail(f"this is work: {line}"))


def test_one_document_is_too_little(tmp_path, data):
    text = written(tmp_path / "one.txt", [["Tan man.", "Man ran."]])
    with pytest.raises(ValueError, match=r"the train split is empty: 1 document\(s\) in .*one.txt; .* blank lines"):
        prepared(replace(data, corpus=(str(text),)))
    assert not Path(data.folder).exists()


def test_two_documents_are_enough(tmp_path, data):
    text = written(tmp_path / "two.txt", [["Tan man."], ["Man ran."]])
    store = prepared(replace(data, corpus=(str(text),)))
    assert store.train.size == store.heldout.size == 1


def test_a_document_without_tokens_is_left_out(tmp_path, data):
    bell = "\x07"  # control characters are no text
    text = written(tmp_path / "some.txt", [["Tan man."], [bell], ["Man ran.", bell, "Tan."]])
    store = prepared(replace(data, corpus=(str(text),), sentences="lines", heldout=0.01))
    assert store.train.size == 1 and len(store.train.sentences) == 3


def test_a_file_that_is_missing_is_an_error_before_any_work(tmp_path, data):
    with pytest.raises(CorpusError, match=r"texts.txt' names no file; .* holds text.txt"):
        prepared(replace(data, corpus=(str(tmp_path / "texts.txt"),)))
    assert not Path(data.folder).exists()


@pytest.mark.parametrize("wrong", [{"corpus": ()}, {"heldout": 0.0}, {"heldout": 1.0}, {"heldout": float("nan")}])
def test_data_that_cannot_be_is_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"data.{name}"):
        Data(**wrong)
