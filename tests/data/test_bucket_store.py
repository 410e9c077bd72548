"""Texts, rows and stores in a bucket (of memory; of real servers in tests/run/test_buckets_live.py)."""

import gzip
import lzma
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from encoders.data import bucket_store
from encoders.data.bucket_store import fetch_store, open_store
from encoders.data.labelled import LabelledData
from encoders.data.prepare import prepare_store
from encoders.data.spec import PretrainingData, compute_store_key
from encoders.tasks.glue import GLUE_TASKS
from encoders.tasks.multiple_choice import MultipleChoiceTask
from encoders.tasks.squad import SQUAD_1_1
from encoders.tasks.token_classification import TokenTask
from encoders.text.corpus import check_corpus, describe_corpus, make_sources
from encoders.text.source import DigestCache
from encoders.text.tokenization import TokenizerSpec
from encoders.utils.buckets import copy_file, list_files, parse_path
from tests import task_examples
from tests.memory_bucket import install_memory_buckets
from tests.refusals import raises_naming
from tests.texts import write

STORES = "gs://bucket/stores"


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    install_memory_buckets(monkeypatch, tmp_path)
    return parse_path("gs://bucket")


@pytest.fixture
def text(bucket, tmp_path):
    local = write(tmp_path / "text.txt", documents=30)
    (bucket / "texts" / "text.txt").write_bytes(local.read_bytes())
    return local


def build_data(corpus, store_dir) -> PretrainingData:
    tokenizer = TokenizerSpec(vocab_size=300)
    return PretrainingData((str(corpus),), tokenizer, heldout_fraction=0.2, store_dir=str(store_dir))


def read_all(item) -> list:
    (source,) = make_sources((str(item),))
    return [document for part in source.split_ranges(1000) for document in source.read_documents(part)]


def test_texts_of_a_bucket_are_read_as_those_of_this_machine(text, bucket):
    content, expected = text.read_bytes(), read_all(text)
    packed = {"text.txt": content, "text.txt.gz": gzip.compress(content), "text.txt.xz": lzma.compress(content)}
    for name, written in packed.items():
        (bucket / "texts" / name).write_bytes(written)
        assert read_all(f"gs://bucket/texts/{name}") == expected
    assert read_all("gs://bucket/texts/text.*") == 3 * expected
    assert len(expected) == 30


def test_a_text_that_is_missing_or_damaged_in_a_bucket_is_named(text, bucket):
    (bucket / "texts" / "bad.txt").write_bytes(b"good\n\xff\xfe bad\n")
    for item, values in {
        "gs://bucket/texts/other.txt": ["gs://bucket/texts/other.txt", "text.txt"],
        "gs://bucket/texts": ["gs://bucket/texts", "*.txt"],
        "gs://bucket/texts/bad.txt": ["gs://bucket/texts/bad.txt:2", "UTF-8"],
    }.items():
        with raises_naming(ValueError, *values):
            check_corpus((item,))


def test_a_text_that_is_written_again_gets_another_digest(text, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(DigestCache, "MIN_CACHED_BYTES", 0)
    path, item = tmp_path / "digests.json", ("gs://bucket/texts/text.txt",)
    first = describe_corpus(item, cache_path=path)
    assert describe_corpus((str(text),)) == first == describe_corpus(item, cache_path=path)
    (bucket / "texts/text.txt").write_bytes(text.read_bytes().replace(b"e", b"o"))
    assert describe_corpus(item, cache_path=path) != first


def test_a_store_in_a_bucket_holds_the_bytes_of_one_on_this_machine(text, bucket, tmp_path):
    local = prepare_store(build_data(text, tmp_path / "stores"))
    lines = []
    store = prepare_store(build_data("gs://bucket/texts/text.txt", STORES), lines.append)
    sent = parse_path(STORES) / store.key
    assert store.key == local.key and any(str(sent) in line for line in lines)
    for name in [*store.metadata["files"], "store.json"]:
        if name != "store.json":  # which holds times
            assert (sent / name).read_bytes() == (local.path / name).read_bytes()
        assert (sent / name).read_bytes() == (store.path / name).read_bytes()
    assert not [name for name in list_files(parse_path("gs://bucket")) if ".work" in name]


def test_a_store_in_a_bucket_is_copied_once_and_verified(text, bucket, tmp_path, monkeypatch):
    made = prepare_store(build_data(text, STORES))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other machine"))
    copy = prepare_store(build_data(text, STORES))
    assert copy.path != made.path and copy.metadata == made.metadata
    copy.verify()
    (parse_path(STORES) / made.key / "train/tokens.bin").write_bytes(b"other")
    assert open_store(parse_path(STORES) / made.key).path == copy.path
    shutil.rmtree(copy.path)
    with raises_naming(ValueError, f"{STORES}/{made.key}/train/tokens.bin"):
        fetch_store(parse_path(STORES) / made.key)
    assert not copy.path.exists()


def test_a_store_whose_sending_was_interrupted_is_sent_again(text, bucket, monkeypatch):
    data, copy_file = build_data(text, STORES), bucket_store.copy_file

    def break_off(source, target):
        if target.name == "sentences.bin":
            raise ConnectionError("no network")
        return copy_file(source, target)

    monkeypatch.setattr(bucket_store, "copy_file", break_off)
    with pytest.raises(ConnectionError):
        prepare_store(data)
    folder = parse_path(STORES) / compute_store_key(data)
    assert not (folder / "store.json").exists()
    monkeypatch.setattr(bucket_store, "copy_file", copy_file)
    assert prepare_store(data).key == folder.name and (folder / "store.json").exists()


def test_a_vocabulary_in_a_bucket_is_that_of_this_machine(text, bucket, tmp_path):
    made = prepare_store(build_data(text, tmp_path / "stores"))
    (bucket / "vocabulary" / "tokenizer.json").write_bytes((made.path / "tokenizer.json").read_bytes())
    keys = set()
    for path in (made.path / "tokenizer.json", "gs://bucket/vocabulary/tokenizer.json"):
        data = replace(build_data(text, tmp_path / "stores"), tokenizer=TokenizerSpec(path=str(path)))
        assert data.tokenizer.load().vocab.vocab_size == made.vocab.vocab_size
        keys.add(compute_store_key(data))
    assert len(keys) == 1


@pytest.mark.parametrize("kind", ["classes", "squad", "tags", "choices"])
def test_rows_of_a_task_in_a_bucket_make_the_store_of_those_on_this_machine(kind, bucket, tmp_path):
    task = {"classes": GLUE_TASKS["SST-2"], "squad": SQUAD_1_1, "choices": MultipleChoiceTask()}.get(
        kind, TokenTask(("O", "B-PER", "B-LOC"))
    )
    local = Path(getattr(task_examples, kind)(tmp_path / kind))
    for name in list_files(local):
        copy_file(local / name, bucket / kind / name)
    tokenizer, folder = TokenizerSpec(path=task_examples.vocabulary(tmp_path)), str(tmp_path / "stores")
    roots = (local, f"gs://bucket/{kind}", "gs://bucket/nowhere")
    here, there, nowhere = (LabelledData(task, str(root), tokenizer, store_dir=folder) for root in roots)
    assert compute_store_key(there) == compute_store_key(here)
    assert prepare_store(there).metadata["splits"]["train"]["documents"] > 0
    with raises_naming(ValueError, "gs://bucket/nowhere"):
        prepare_store(nowhere)
