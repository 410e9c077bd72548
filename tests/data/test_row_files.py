"""Files of rows: what stands in them, and what is said of rows that are damaged."""

import bz2
import gzip
import lzma

import pytest
from backports import zstd

from encoders.data.row_files import RowError, RowReader, read_records
from tests.refusals import assert_names, raises_naming

COMPRESSORS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd.compress}


@pytest.fixture
def file(tmp_path):
    """Writes a file of bytes."""

    def new(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return new


def values(path, columns=()):
    """The rows of a file by column, all of them good."""
    return [row.values for row in RowReader().convert_rows(read_records(path, columns), lambda row: row)]


def places(path, columns=()):
    return [row.location for row in RowReader().convert_rows(read_records(path, columns), lambda row: row)]


def assert_names_row(message, path, line, *values):
    """Check that a message begins with a file and a line, if any, and names the values."""
    assert message.startswith(f"{path}:{line}: " if line else f"{path}: "), message
    assert_names(message, *values)


def assert_refused(path, line, *values, convert=lambda row: row):
    """Check which is the first row that cannot be used, and which values its error names."""
    with pytest.raises(RowError) as error:
        list(RowReader().convert_rows(read_records(path), convert))
    assert_names_row(str(error.value), path, line, *values)


# TSV


@pytest.mark.parametrize("ending", ["tsv", "txt"])
def test_a_tab_separated_file_begins_with_its_columns(file, ending):
    path = file(f"a.{ending}", b"text\tlabel\nred dog\t1\nblue cat\t0\n")
    assert values(path) == [{"text": "red dog", "label": "1"}, {"text": "blue cat", "label": "0"}]
    assert places(path) == [f"{path}:2", f"{path}:3"]


def test_quotes_in_a_tab_separated_file_are_letters(file):
    path = file("a.tsv", b'text\tlabel\n"red\t1\n""\t2\n\'a" b\t"3"\n')
    assert [row["text"] for row in values(path)] == ['"red', '""', "'a\" b"]
    assert [row["label"] for row in values(path)] == ["1", "2", '"3"']


def test_a_byte_order_mark_is_not_part_of_the_first_column(file):
    assert values(file("a.tsv", b"\xef\xbb\xbfQuality\tid\n1\t7\n")) == [{"Quality": "1", "id": "7"}]
    assert values(file("a.csv", b"\xef\xbb\xbftext\n\xc3\xa9\n")) == [{"text": "é"}]
    assert values(file("a.jsonl", b'\xef\xbb\xbf{"text": "red"}\n')) == [{"text": "red"}]


@pytest.mark.parametrize("name, between", [("a.tsv", b"\t"), ("a.csv", b",")])
def test_columns_that_are_given_make_the_first_line_a_row(file, name, between):
    path = file(name, between.join([b"gj04", b"1", b"", b"They left."]) + b"\n")
    assert values(path, ("source", "label", "star", "sentence")) == [
        {"source": "gj04", "label": "1", "star": "", "sentence": "They left."}
    ]
    assert places(path, ("source", "label", "star", "sentence")) == [f"{path}:1"]


@pytest.mark.parametrize("name, between", [("a.tsv", "\t"), ("a.csv", ",")])
@pytest.mark.parametrize("fields", [["red", "1", "more"], ["red"]])
def test_a_row_with_too_many_or_too_few_fields_is_named(file, name, between, fields):
    rows = [["text", "label"], ["dog", "0"], fields]
    path = file(name, "\n".join(map(between.join, rows)).encode())
    assert_refused(path, 3, len(fields), "2 columns", "text, label")


def test_line_ends_of_windows_are_not_part_of_the_last_field(file):
    path = file("a.tsv", b"text\tlabel\r\nred\t1\r\n\r\nblue\t\r\n")
    assert values(path) == [{"text": "red", "label": "1"}, {"text": "blue", "label": ""}]
    assert places(path) == [f"{path}:2", f"{path}:4"]  # the blank line is counted and is no row


def test_a_carriage_return_inside_a_field_is_part_of_it(file):
    path = file("a.tsv", b"text\tlabel\nred\rdog\t1\nblue\t0\n")
    assert values(path) == [{"text": "red\rdog", "label": "1"}, {"text": "blue", "label": "0"}]
    assert places(path) == [f"{path}:2", f"{path}:3"]


def test_only_a_newline_ends_a_tab_separated_row(file):
    letters = "a\x0bb\x0cc\x1cd\x85e\u2028f"  # all of them end a line for str.splitlines
    path = file("a.tsv", f"text\tlabel\n{letters}\t1\n".encode())
    assert values(path) == [{"text": letters, "label": "1"}]


@pytest.mark.parametrize(
    "name, content, place",
    [
        ("a.csv", b"text,text,label\ngood,other,1\n", 1),
        ("a.tsv", b"\ntext\tlabel\ttext\ngood\t1\tother\n", 2),
        ("a.jsonl", b'{"text": "good", "label": 1, "text": "other"}\n', 1),
    ],
)
def test_two_columns_of_one_name_are_refused(file, name, content, place):
    path = file(name, content)
    assert_refused(path, place, "'text'")


def test_columns_without_a_name_may_repeat(file):
    assert values(file("a.csv", b"text,,\nred,1,2\n"))[0]["text"] == "red"


# CSV


def test_a_quoted_field_may_hold_commas_quotes_and_newlines(file):
    path = file("a.csv", b'text,label\r\n"one\r\ntwo, ""three""",1\r\n\r\nred,0\r\n')
    assert values(path) == [{"text": 'one\r\ntwo, "three"', "label": "1"}, {"text": "red", "label": "0"}]
    assert places(path)[1] == f"{path}:5"  # lines are those of the file


def test_damaged_quoting_is_named_with_its_line(file):
    path = file("a.csv", b'text,label\nred,1\n"blue" cat,0\n')
    assert_refused(path, 3, "','", "'\"'")
    path = file("b.csv", b'text,label\nred,1\n"blue cat,0\nall,of it\n')  # the quote is never closed
    assert_refused(path, 4)


def test_a_row_of_damaged_quoting_is_skipped_and_the_next_one_read(file):
    path = file("a.csv", b'text,label\n"blue" cat,0\nred,1\n')
    reader = RowReader("skip")
    assert list(reader.convert_rows(read_records(path), lambda row: row["text"])) == ["red"]
    (line,) = reader.skipped_rows
    assert_names_row(line, path, 2, "','", "'\"'")


# JSON lines


def test_json_lines_are_objects_and_blank_lines_are_none(file):
    path = file("a.jsonl", b'{"text": "red\\ndog", "label": 1}\n\n  \n{"text": "\xc3\xa9", "label": null}')
    assert values(path) == [{"text": "red\ndog", "label": 1}, {"text": "é", "label": None}]
    assert places(path) == [f"{path}:1", f"{path}:4"]


def test_a_line_that_is_not_json_is_named_with_its_place(file):
    path = file("a.jsonl", b'{"text": "red"}\n{"text": }\n')
    assert_refused(path, 2, "JSON", "column 10")


@pytest.mark.parametrize("line", [b'["text", "red"]', b'"red"', b"7", b"null"])
def test_json_that_is_no_object_is_named(file, line):
    path = file("a.jsonl", b'\n{"text": "red"}\n' + line)
    assert_refused(path, 3, "JSON object")


# Files and fields


@pytest.mark.parametrize("name, ending", [("a.xlsx", ".xlsx"), ("a.TSV", ".TSV"), ("a", "")])
def test_an_ending_that_is_not_known_is_named_with_those_that_are(file, name, ending):
    path = file(name, b"text\nred\n")
    assert_refused(path, None, repr(ending), ".tsv, .txt, .csv, .jsonl")


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\n"])
def test_an_empty_file_is_named(file, name, content):
    path = file(name, content)
    assert_refused(path, None, "rows")


@pytest.mark.parametrize("name, head", [("a.tsv", b"text\tlabel\n"), ("a.csv", b"text,label\n")])
def test_a_file_with_nothing_but_its_columns_is_named(file, name, head):
    path = file(name, head)
    assert_refused(path, None, "rows")


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.tsv", b"text\tlabel\nred\t1\n\xff dog\t0\n"),
        ("a.csv", b"text,label\nred,1\n\xc3,0\n"),
        ("a.jsonl", b'{"text": "red"}\n\n{"text": "d\xe9j\xe0"}\n'),
        ("b.jsonl", b'{"text": "red"}\n\n{"text": "half a pair: \\ud83d"}\n'),
    ],
)
def test_a_text_that_is_not_utf_8_is_named_and_the_others_are_read(file, name, content):
    path = file(name, content)
    assert_refused(path, 3, "text", "UTF-8", convert=lambda row: row.get_text("text"))
    reader = RowReader("skip")
    assert (
        list(reader.convert_rows(read_records(path), lambda row: row.get_text("text"))) == ["red"]
        and len(reader.skipped_rows) == 1
    )


@pytest.mark.parametrize("text", [b"", b" ", b"\xc2\xa0"])
def test_an_empty_text_is_named(file, text):
    path = file("a.tsv", b"text\tlabel\n" + text + b"\t1\n")
    assert_refused(path, 2, "text", "empty", convert=lambda row: row.get_text("text"))


@pytest.mark.parametrize("value, shown", [(b"7", "7"), (b"null", "None"), (b'["red"]', "['red']")])
def test_a_value_that_is_no_text_is_named(file, value, shown):
    path = file("a.jsonl", b'{"text": ' + value + b"}\n")
    assert_refused(path, 1, f"text={shown}", convert=lambda row: row.get_text("text"))


def test_a_column_that_is_missing_is_named_with_those_that_are_there(file):
    path = file("a.tsv", b"text\tlabel\nred\t1\n")
    assert_refused(path, 2, "'score'", "text, label", convert=lambda row: row["score"])
    assert_refused(path, 2, "'a'", "text, label", convert=lambda row: row.get_text("a"))


# Stop or skip


def test_a_reader_that_skips_counts_bad_rows_and_goes_on(file):
    path = file("a.tsv", b"text\tlabel\nred\t1\n\t2\nblue\t3\t4\ngreen\t5\nalone\n")
    reader = RowReader("skip")
    assert list(reader.convert_rows(read_records(path), lambda row: row.get_text("text"))) == ["red", "green"]
    named = [(3, "text", "empty"), (4, "3 fields", "2 columns"), (6, "1 fields", "2 columns")]
    for message, (line, *values) in zip(reader.skipped_rows, named, strict=True):
        assert_names_row(message, path, line, *values)


def test_a_reader_stops_at_the_first_bad_row_and_not_before(file):
    path = file("a.jsonl", b'{"text": "red"}\nred\n{"text": "blue"}\n')
    rows = RowReader().convert_rows(read_records(path), lambda row: row.get_text("text"))
    assert next(rows) == "red"
    with raises_naming(RowError, "a.jsonl:2", "JSON"):
        next(rows)


def test_a_mistake_that_is_not_the_rows_is_never_skipped(file):
    path, reader = file("a.tsv", b"text\nred\n"), RowReader("skip")
    with pytest.raises(ZeroDivisionError):
        list(reader.convert_rows(read_records(path), lambda row: 1 / 0))
    assert reader.skipped_rows == []


def test_a_csv_field_may_be_longer_than_pythons_own_limit(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text(f'text,label\n"{"a b " * 40_000}",0\n')
    (row,) = read_records(path)
    assert len(row.get_text("text")) == 160_000


# Compressed files and Parquet


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_compressed_file_has_the_rows_of_the_plain_one(file, suffix):
    content, compress = b"text\tlabel\nred dog\t1\n", COMPRESSORS[suffix]
    path = file(f"a.tsv{suffix}", compress(content))
    assert values(path) == [{"text": "red dog", "label": "1"}] and places(path) == [f"{path}:2"]
    content = b"text\n" + b"".join(b"row %d of a long file\n" % i for i in range(5000))
    assert_refused(file(f"cut.tsv{suffix}", compress(content)[:-9]), None, suffix, "damaged or cut off")


def test_a_parquet_file_has_its_columns_and_a_damaged_one_is_named(tmp_path, file):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": ["red", "blue"], "more": [["a"], ["b", "c"]]}), path)
    assert values(path) == [{"text": "red", "more": ["a"]}, {"text": "blue", "more": ["b", "c"]}]
    assert places(path) == [f"{path}:1", f"{path}:2"]
    assert_refused(file("cut.parquet", path.read_bytes()[:-9]), None, "Parquet")


def test_a_suffix_that_is_not_known_is_named(file):
    assert_refused(file("a.html.gz", b""), None, "'.html'", ".tsv", ".parquet", ".xz")
