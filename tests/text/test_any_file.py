"""Any bytes as a file: they are read, or refused in a few words that say which file and where."""

import json
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoders.data.row_files import RowError, RowReader, read_records
from encoders.text.corpus import check_corpus
from encoders.text.source import CorpusError
from tests.text.documents import read_corpus_documents

PIECES = [
    b"\n", b"\n\n", b"\r\n", b"\r", b"\t", b",", b'"', b'""', b"\xef\xbb\xbf", b"\x00", b"\xff", b"\xc3",
    b"\xe2\x80\xa8", b"\xc2\x85", b"\xed\xa0\x80", b"A text.", b"text", b"label", b"text\tlabel\n", b"text,label\n",
    b'{"text": "A."}\n', b'{"text": "\\ud800"}\n', b'{"text": NaN}\n', b'{"text": "A.", "text": 3}\n',
    b"[" * 3000, b"{", b"9" * 5000, b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"BZh9", b"PAR1",
]  # fmt: skip
some_bytes = st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=6)), max_size=12).map(b"".join)
THOROUGH = dict(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.txt.bz2", "a.txt.xz", "a.parquet"])
def test_a_corpus_is_read_or_refused_by_its_name(name, tmp_path):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name

    @given(some_bytes)
    @settings(max_examples=60, **THOROUGH)
    def read(content):
        path.write_bytes(content)
        try:
            check_corpus((str(path),), "lines")
            found = list(read_corpus_documents((str(path),), "lines"))
        except CorpusError as error:
            assert name in str(error) and len(str(error)) < 400 + len(str(path))
        else:
            assert all(line.strip() and line.encode() and "\n" not in line for each in found for line in each)

    read()


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
@pytest.mark.parametrize("errors", ["stop", "skip"])
def test_labelled_rows_are_read_or_refused_by_their_place(name, errors, tmp_path):
    path = tmp_path / name

    @given(some_bytes)
    @settings(max_examples=80, **THOROUGH)
    def read(content):
        path.write_bytes(content)
        reader = RowReader(errors)
        try:
            found = list(reader.convert_rows(read_records(path), lambda row: row.get_text("text")))
        except RowError as error:
            assert str(path) in str(error) and len(str(error)) < 400 + len(str(path))
        else:
            assert all(text.strip() and text.encode() for text in found)
            assert all(f"{path}:" in line for line in reader.skipped_rows) and (
                errors == "skip" or not reader.skipped_rows
            )

    read()


@given(st.lists(st.text(string.printable + "é数\u2028\x85\x00", min_size=1).filter(str.strip), min_size=1, max_size=8))
@settings(max_examples=60, **THOROUGH)
def test_json_lines_give_back_the_texts_that_were_written(tmp_path, written):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in written), encoding="utf-8")
    assert list(RowReader().convert_rows(read_records(path), lambda row: row.get_text("text"))) == written
