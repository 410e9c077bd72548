import bz2
import gzip
import importlib.metadata
import itertools
import lzma
import sys
import warnings
from dataclasses import replace

import pytest

from encoders.text import corpus, embedded
from encoders.text.corpus import check_corpus, describe_corpus
from encoders.text.source import CorpusError
from tests.refusals import raises_naming
from tests.text.documents import read_corpus_documents

TEXT = "One line.  Two\there.\nThird.\n\nSecond document.\n"
LINES = [["One line. Two here.", "Third."], ["Second document."]]


def lines(*items):
    return list(read_corpus_documents(tuple(map(str, items)), "lines"))


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_blank_line_ends_a_document(tmp_path):
    assert lines(written(tmp_path / "a.txt", TEXT)) == LINES


def test_several_blank_lines_make_no_empty_document(tmp_path):
    assert lines(written(tmp_path / "a.txt", "\n \t\nA.\n\n\n \nB.\n\n")) == [["A."], ["B."]]


def test_a_file_ends_a_document(tmp_path):
    written(tmp_path / "b.txt", "B.")
    written(tmp_path / "a.txt", "A.")
    assert lines(tmp_path / "*.txt") == [["A."], ["B."]]
    assert lines(tmp_path / "b.txt", tmp_path / "a.txt") == [["B."], ["A."]]


def test_windows_files_read_like_any_other(tmp_path):
    assert lines(written(tmp_path / "a.txt", "\ufeff" + TEXT.replace("\n", "\r\n"))) == LINES


def test_only_a_newline_ends_a_line(tmp_path):
    assert lines(written(tmp_path / "a.txt", "A\u2028b\x85c\x0cd\re.\nF.")) == [["A b c d e.", "F."]]


def test_lines_are_split_into_sentences(tmp_path):
    path = written(tmp_path / "a.txt", "Dr. Smith went.  He   came back! Why?\nNobody knows.\n")
    expected = ["Dr. Smith went.", "He came back!", "Why?", "Nobody knows."]
    assert list(read_corpus_documents((str(path),))) == [expected]


@pytest.mark.parametrize("suffix, compress", [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_a_compressed_file_reads_like_a_plain_one(tmp_path, suffix, compress):
    assert lines(written(tmp_path / f"a.txt{suffix}", compress(TEXT.encode()))) == LINES


def zstd(text):
    return pytest.importorskip("backports.zstd").compress(text.encode())


def test_a_zst_file_is_read_frame_by_frame(tmp_path):
    path = written(tmp_path / "a.txt.zst", zstd(TEXT[:20]) + zstd("") + zstd(TEXT[20:]))
    assert lines(path) == LINES
    assert lines(written(path, zstd("word " * 100_000 + "\n\nB."))) == [[("word " * 100_000).strip()], ["B."]]


@pytest.mark.parametrize(
    "suffix, compress", [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", None)]
)
def test_a_file_that_is_cut_off_is_an_error_wherever_it_is_cut(tmp_path, suffix, compress):
    text = "".join(f"{number * 7919 % 104729} some words.\n" for number in range(2000))
    content = compress(text.encode()) if compress else zstd(text)
    for cut in (3, len(content) // 2, len(content) - 2):
        path = written(tmp_path / f"a{suffix}", content[:cut])
        with raises_naming(CorpusError, f"a{suffix}:", f"read as {suffix}"):
            lines(path)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_plain_file_with_a_compressed_name_is_an_error(tmp_path, suffix):
    pytest.importorskip("backports.zstd")
    path = written(tmp_path / f"a{suffix}", TEXT)
    with raises_naming(CorpusError, f"a{suffix}:1: ", f"read as {suffix}"):
        check_corpus((str(path),))


def test_text_that_is_not_utf8_is_named_by_file_and_line(tmp_path):
    path = written(tmp_path / "a.txt", b"Good.\n" * 20_000 + b"caf\xe9\n")
    check_corpus((str(path),))  # it lies beyond what is looked at beforehand
    with raises_naming(CorpusError, "a.txt:20001: ", "UTF-8", "byte 4", "0xe9"):
        lines(path)


def test_a_check_finds_what_is_not_text(tmp_path):
    for content, values in [
        (b"caf\xe9\n", ["a.txt:1: ", "UTF-8", "byte 4", "0xe9"]),
        (gzip.compress(b"text"), ["a.txt", "gzip"]),
        ("text".encode("utf-16"), ["a.txt", "UTF-16"]),
        ("text".encode("utf-16-le"), ["a.txt", "zero bytes"]),
    ]:
        with raises_naming(CorpusError, *values):
            check_corpus((str(written(tmp_path / "a.txt", content)),))


def test_a_missing_file_is_answered_with_near_names(tmp_path):
    written(tmp_path / "wiki-1.txt", TEXT)
    with raises_naming(CorpusError, "wikl-1.txt'", "wiki-1.txt"):
        check_corpus((str(tmp_path / "wikl-1.txt"),))
    with raises_naming(CorpusError, "*.gz'", "wiki-1.txt"):
        check_corpus((str(tmp_path / "*.gz"),))
    with raises_naming(CorpusError, "nowhere'"):
        check_corpus((str(tmp_path / "nowhere" / "a.txt"),))
    with raises_naming(CorpusError, "folder", "*.txt'"):
        check_corpus((str(tmp_path),))


def test_a_file_without_text_is_an_error_unless_others_of_its_pattern_have_some(tmp_path):
    empty = written(tmp_path / "a.txt", " \n\n")
    with raises_naming(CorpusError, "a.txt'"):
        check_corpus((str(empty),))
    with raises_naming(CorpusError, "*.txt'"):
        check_corpus((str(tmp_path / "*.txt"),))
    written(tmp_path / "b.txt", TEXT)
    check_corpus((str(tmp_path / "*.txt"),))
    assert lines(tmp_path / "*.txt") == LINES


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(tmp_path):
    assert lines(written(tmp_path / "a[1].txt", TEXT)) == LINES


def test_a_corpus_is_a_tuple_of_names():
    for wrong in ("embedded", (), ("",), (1,)):
        with raises_naming(CorpusError, "tuple"):
            check_corpus(wrong)


def test_the_ways_of_making_sentences_are_named(tmp_path):
    path = str(written(tmp_path / "a.txt", TEXT))
    with raises_naming(CorpusError, "sentence_splitting='words'", "'split'", "'lines'"):
        check_corpus((path,), "words")
    with raises_naming(CorpusError, "language='English'"):
        check_corpus((path,), "split", "English")


def test_a_missing_library_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencex", None)
    with raises_naming(CorpusError, "sentence_splitting='split'", "pip install sentencex"):
        check_corpus((str(written(tmp_path / "a.txt", TEXT)),))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with raises_naming(CorpusError, "'tfds:x'", "pip install tensorflow-datasets"):
        check_corpus(("tfds:x",), "lines")


def test_files_are_read_as_they_are_asked_for(tmp_path):
    written(tmp_path / "a.txt", TEXT)
    written(tmp_path / "b.txt", b"\xff")
    read = read_corpus_documents((str(tmp_path / "*.txt"),), "lines")
    assert [next(read), next(read)] == LINES
    with raises_naming(CorpusError, "b.txt:1"):
        next(read)


def test_the_identity_of_files_is_their_content_and_not_their_place(tmp_path):
    (tmp_path / "x").mkdir()
    digest = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"  # sha256 of "a"
    for folder in (tmp_path, tmp_path / "x"):
        written(folder / "a.txt", "a")
        assert describe_corpus((str(folder / "*.txt"),)) == [{"file": "a.txt", "sha256": digest, "bytes": 1}]
    written(tmp_path / "a.txt", "b")
    assert describe_corpus((str(tmp_path / "a.txt"),))[0]["sha256"] != digest


MODULE = '''
"""First
paragraph of the module.

Heading
-------
x : int
    The number.

Examples
--------
>>> one() == 1
True
"""
add_newdoc("package.name", "one", ("attr", """A text of its own.

    Indented."""))

class A:
    "Of A."
    if True:
        async def f(self):
            r"""Of \\s."""
'''


def test_the_paragraphs_of_every_docstring_are_kept_in_source_order():
    assert list(embedded.extract_paragraphs(MODULE.encode())) == [
        "First paragraph of the module.",
        "Heading x : int The number.",
        "Examples >>> one() == 1 True",
        "A text of its own.",
        "Indented.",
        "Of A.",
        r"Of \s.",
    ]


def test_a_module_that_does_not_parse_is_left_out():
    assert list(embedded.extract_paragraphs(b"def {{ name }}: pass")) == []


def test_the_embedded_corpus_is_the_packages_in_a_fixed_order():
    first = list(itertools.islice(read_corpus_documents(("embedded",), "lines"), 100))
    assert first[1][0] == "NumPy" and first[1][1].startswith("Provides 1. An array object of arbitrary homogeneous")
    embedded.read_module_docstrings.cache_clear()
    assert first == list(itertools.islice(read_corpus_documents(("embedded",), "lines"), 100))
    assert describe_corpus(("embedded",)) == [
        {"embedded": {name: importlib.metadata.version(name) for name in embedded.EMBEDDED_PACKAGES}}
    ]
    check_corpus(("embedded",))


def test_a_missing_package_of_the_embedded_corpus_is_named(monkeypatch):
    monkeypatch.setattr(embedded, "EMBEDDED_PACKAGES", ("no_such_package",))
    with raises_naming(CorpusError, "pip install no_such_package"):
        check_corpus(("embedded",))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A TFDS folder in which the dataset `my_books` is prepared."""
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds

        class MyBooks(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.2.0")

            def _info(self):
                features = tfds.features.FeaturesDict({"title": tfds.features.Text(), "text": tfds.features.Text()})
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, manager):
                return {
                    "train": self._generate_examples(["A b.\n\nC  d.", wiki]),
                    "rest": self._generate_examples(["E."]),
                }

            def _generate_examples(self, texts):
                yield from ((index, {"title": "no", "text": text}) for index, text in enumerate(texts))

        wiki = "_START_ARTICLE_\nName\n_START_SECTION_\nPart\n_START_PARAGRAPH_\nFirst._NEWLINE_Second."
        folder = tmp_path_factory.mktemp("tfds")
        builder = MyBooks(data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
        return folder


@pytest.fixture
def folder(prepared, monkeypatch):
    from tensorflow_datasets.core import constants

    monkeypatch.setattr(constants, "DATA_DIR", str(prepared))  # what TFDS_DATA_DIR sets when TFDS is imported
    return prepared


BOOKS = [["A b.", "C d."], ["Name", "Part", "First.", "Second."]]


def test_a_prepared_dataset_is_read_by_its_folder(prepared):
    item = f"tfds:{prepared / 'my_books' / '1.2.0'}"
    check_corpus((item,))
    assert sorted(lines(item)) == BOOKS
    assert lines(item + "@rest") == [["E."]]
    assert describe_corpus((item,)) == [{"tfds": "my_books", "split": "train", "version": "1.2.0"}]


def test_a_prepared_dataset_is_read_by_its_name(folder):
    assert sorted(lines("tfds:my_books")) == BOOKS
    assert len(lines("tfds:my_books@train[:1]")) == 1


def test_a_prepared_dataset_becomes_a_store_in_as_many_units_as_its_size_asks_for(folder, tmp_path, monkeypatch):
    from encoders.data.prepare import prepare_store
    from encoders.data.spec import PretrainingData
    from encoders.text.tokenization import TokenizerSpec

    data = PretrainingData(
        ("tfds:my_books",), TokenizerSpec(vocab_size=100), "lines", heldout_fraction=0.01, store_dir=str(tmp_path)
    )
    whole = prepare_store(data)
    assert (
        len(whole.metadata["units"]) == 1 and whole.train_split.num_documents == whole.eval_splits[0].num_documents == 1
    )
    monkeypatch.setattr(corpus, "RANGE_BYTES", 1)
    split = prepare_store(replace(data, store_dir=str(tmp_path / "again")))
    assert len(split.metadata["units"]) == 2 and split.metadata["characters"] == whole.metadata["characters"]
    assert "tensorflow" not in sys.modules


def test_a_dataset_that_cannot_be_read_is_answered_with_what_can(folder):
    with raises_naming(CorpusError, "split 'test'"):
        check_corpus(("tfds:my_books@test",))
    with raises_naming(CorpusError, "'imdb_reviewz'", "imdb_reviews"):
        check_corpus(("tfds:imdb_reviewz",))
    with raises_naming(CorpusError, "wiki40b/en'", "TFDS_DATA_DIR", "tfds build wiki40b/en"):
        check_corpus(("tfds:wiki40b/en",))
    with raises_naming(CorpusError, "TFDS dataset", "folder"):
        check_corpus((f"tfds:{folder}",))
