import gzip
import json
import lzma

import pytest

from encoders.text import file_readers
from encoders.text.corpus import check_corpus, describe_corpus
from encoders.text.source import CorpusError, DigestCache
from tests.refusals import raises_naming
from tests.text.documents import read_corpus_documents

TEXTS = ["One line.  Two\there.\nThird.", "", "Second\u2028document.", " \n "]
LINES = [["One line. Two here.", "Third."], ["Second document."]]


def read(*items, **given):
    return list(read_corpus_documents(tuple(map(str, items)), "lines", **given))


def json_lines(path, texts=TEXTS, field="text"):
    content = "".join(json.dumps({"id": n, field: text}) + "\n" for n, text in enumerate(texts)).encode()
    packed = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(packed(content))
    return path


def parquet(path, texts=TEXTS, group=2, field="text"):
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    writer.write_table(arrow.table({"id": range(len(texts)), field: texts}), path, row_group_size=group)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson.gz", "a.JSONL", "b.jsonl.xz"])
def test_an_object_of_json_lines_is_a_document(tmp_path, name):
    assert read(json_lines(tmp_path / name)) == LINES


def test_a_row_of_parquet_is_a_document(tmp_path):
    path = parquet(tmp_path / "a.parquet", [*TEXTS, None])
    assert read(path) == LINES
    assert read(path, range_bytes=1) == LINES


def test_the_field_of_the_text_is_named(tmp_path):
    assert read(json_lines(tmp_path / "a.jsonl", field="body"), text_field="body") == LINES
    assert read(parquet(tmp_path / "a.parquet", field="body"), text_field="body") == LINES
    for location in ("a.jsonl:1: ", "a.parquet: "):
        with raises_naming(CorpusError, location, "'text'", "data.text_field", "id", "body"):
            check_corpus((str(tmp_path / location.partition(":")[0]),))


@pytest.mark.parametrize(
    "line, values",
    [
        (b'{"text": "cut of', ["JSON"]),
        (b"[1, 2]", ["'text'", "list"]),
        (b'{"text": 3}', ["'text'", "has text"]),
        (b"{}", ["'text'", "nothing"]),
        (b'{"text": "caf\xe9"}', ["UTF-8", "byte 14", "0xe9"]),
        (b"[" * 100_000, ["JSON"]),
    ],
)
def test_a_bad_line_is_named_by_its_file_and_number_wherever_the_file_is_cut(tmp_path, line, values):
    path = json_lines(tmp_path / "a.jsonl", ["A b c.", "D."])
    path.write_bytes(path.read_bytes() + line + b"\n")
    for part in (1, 30, 1 << 20):
        with raises_naming(CorpusError, "a.jsonl:3: ", *values):
            read(path, range_bytes=part)


def test_a_lone_surrogate_is_no_character(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a \\ud800 b"}\n')
    assert read(path) == [["a ? b"]]


def test_a_parquet_file_that_is_cut_off_is_an_error(tmp_path):
    path = parquet(tmp_path / "a.parquet", ["word " * 100] * 50)
    path.write_bytes(path.read_bytes()[:-20])
    with raises_naming(CorpusError, "a.parquet: ", "Parquet"):
        check_corpus((str(path),))
    with raises_naming(CorpusError, "b.parquet: ", "Parquet"):
        check_corpus((str(json_lines(tmp_path / "b.parquet")),))


def test_files_of_several_kinds_are_named_apart(tmp_path):
    json_lines(tmp_path / "a.jsonl"), (tmp_path / "a.txt").write_text("A.")
    with raises_naming(CorpusError, "a.jsonl, a.txt"):
        check_corpus((str(tmp_path / "*"),))
    assert read(tmp_path / "a.jsonl", tmp_path / "a.txt") == [*LINES, ["A."]]


def test_a_line_and_a_document_have_a_longest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(file_readers, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "a.txt"
    path.write_text("Short.\n" + "word " * 300_000)
    with raises_naming(CorpusError, "a.txt:2: ", "1 MB"):
        read(path)
    path.write_text("Short.\n\n" + "Some words.\n" * 100_000)
    with raises_naming(CorpusError, "a.txt:", "1 M characters"):
        read(path)
    path.write_text("Short.\n\n" + "Some words.\n\n" * 100_000)
    assert len(read(path)) == 100_001


def test_the_line_of_an_error_is_counted_from_the_start_of_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"Good.\n\n" * 1000 + b"caf\xe9\n")
    for part in (10, 333, 1 << 20):
        with raises_naming(CorpusError, "a.txt:2001: ", "UTF-8", "byte 4", "0xe9"):
            read(path, range_bytes=part)


def test_the_digest_of_a_large_file_is_remembered_while_its_size_and_time_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(DigestCache, "MIN_CACHED_BYTES", 5)
    path, kept = tmp_path / "a.txt", tmp_path / "stores" / ".digests.json"
    path.write_text("large enough")
    first = describe_corpus((str(path),), cache_path=kept)
    monkeypatch.setattr("hashlib.file_digest", lambda *given: pytest.fail("it was known"))
    assert describe_corpus((str(path),), cache_path=kept) == first
    monkeypatch.undo()
    path.write_text("another one.")
    assert describe_corpus((str(path),), cache_path=kept) != first
    kept.write_text("{damaged")
    assert describe_corpus((str(path),), cache_path=kept) == describe_corpus((str(path),))
    path.write_text("tiny")
    describe_corpus((str(path),), cache_path=tmp_path / "never")
    assert (tmp_path / "never").exists() == (path.stat().st_size >= 5)
