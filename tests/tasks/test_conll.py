"""Words with tags: what files hold, the entities of each scheme, and scores of what a row is too short for."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.data.labelled import EncodedExample
from encoders.data.row_files import RowError, RowReader
from encoders.data.store import Split
from encoders.tasks.conll import extract_entities, parse_tags, read_tags
from encoders.tasks.token_classification import IGNORED_TAG, TaggedRows, TokenClassification, TokenTask
from encoders.utils.errors import UserError
from tests.refusals import assert_names, raises_naming

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def read(tmp_path, content: str, labels=LABELS, on_bad_row="stop"):
    """The words and tags of each sentence of a file, and what is said of those that are skipped."""
    (tmp_path / "train.txt").write_bytes(content.encode())
    reader = RowReader(on_bad_row)
    rows = TokenTask(labels).read_examples(str(tmp_path), "train", reader)
    found = []
    for row in rows:
        (text,), (starts, tags) = row.texts, row.target
        words = [text[a : b - 1] for a, b in zip(starts, [*starts[1:], len(text) + 1], strict=True)]
        found.append(list(zip(words, (labels[tag] for tag in tags), strict=True)))
    return found, reader.skipped_rows


ADA = [("Ada", "B-PER"), ("wrote", "O")]


@pytest.mark.parametrize(
    "content",
    [
        "Ada B-PER\nwrote O\n",
        "Ada NNP B-PER\nwrote VBD O\n\n\n",
        "\ufeffAda B-PER\nwrote O",
        "Ada B-PER\r\nwrote O\r\n\r\n",
        "Ada   B-PER \nwrote  O\n",
        "-DOCSTART- -X- O\n\nAda B-PER\nwrote O\n",
        "-DOCSTART-\tO\nAda\tB-PER\nwrote\tO\t\n",
        "# id 7 domain=en\nAda B-PER\nwrote O\n",
        "#\thttp://a/b [2009]\n1\tAda\tB-PER\n2\twrote\tO\n",
        "1 Ada NNP B-PER\n2 wrote VBD O\n",
        "0\tAda\tB-PER\n1\twrote\tO\n",
        "Ada B-PER\rwrote O\r",
        "-DOCSTART- -X- O\r\rAda\tB-PER\rwrote\tO",
    ],
)
def test_every_variant_of_conlls_format_gives_the_same_sentence(tmp_path, content):
    assert read(tmp_path, content) == ([ADA], [])


@pytest.mark.parametrize(
    "content, sentences",
    [
        ("New York\tB-LOC\n10\u00a0000\tO\n", [[("New York", "B-LOC"), ("10\u00a0000", "O")]]),
        ("10\u00a0000 O\nkm\u2028 O\n", [[("10\u00a0000", "O"), ("km\u2028", "O")]]),
        ("# O\n1 O\n\n1 O\n", [[("#", "O"), ("1", "O")], [("1", "O")]]),  # a sign and numbers that are words
        ("1 NN O\n\n1 NN O\n", [[("1", "O")], [("1", "O")]]),  # no sentence counts on
        ("a\rb\tO\n", [[("a\rb", "O")]]),
        ("2009 CD O\n2011 CD O\n2010 CD O\n", [[("2009", "O"), ("2011", "O"), ("2010", "O")]]),
        ("7 O\n8 O\n9 O\n", [[("7", "O"), ("8", "O"), ("9", "O")]]),
        ("1 NN O\n\n2 NN O\n", [[("1", "O")], [("2", "O")]]),  # too few to be an index
        ("B-52 O\nI-beam O\n", [[("B-52", "O"), ("I-beam", "O")]]),
        ("O O\nO O\n", [[("O", "O"), ("O", "O")]]),
        ("O O\nE-mail I-LOC\n", [[("O", "O"), ("E-mail", "I-LOC")]]),
        ("1\tAda\t_\t_\t_\t_\t_\t_\t_\tB-PER\n2\twrote\t_\t_\t_\t_\t_\t_\t_\tO\n", [ADA]),  # as many columns as CoNLL-U
    ],
)
def test_words_are_read_as_they_are(tmp_path, content, sentences):
    assert read(tmp_path, content) == (sentences, [])


@pytest.mark.parametrize(
    "bad, values",
    [
        ("1 Ada B-PER\n3 wrote O\n", (":5:", "'3'", "2")),
        ("1 Ada B-PER\n2 wrote\n", (":5:", "'wrote'", "tag")),
        ("1 Ada X\n", (":4:", "'X'")),
        ("1 \u200b\u00a0 O\n2 \u00a0 O\n", (":4:", "'\\xa0'")),
    ],
)
def test_a_bad_sentence_is_named_by_its_line_and_can_be_skipped(tmp_path, bad, values):
    content = f"1 Ada B-PER\n2 wrote O\n\n{bad}\n1 Ada B-PER\n2 wrote O\n"
    with pytest.raises(RowError) as caught:
        read(tmp_path, content)
    found, (line,) = read(tmp_path, content, on_bad_row="skip")
    assert found == [ADA, ADA] and line == str(caught.value)
    assert all(value in line for value in values)


@pytest.mark.parametrize("first", [0, 1, 14041])
def test_an_index_may_run_on_through_the_file(tmp_path, first):
    rows = [f"{first} Ada B-PER", f"{first + 1} wrote O", "", f"{first + 2} Rome B-LOC", "", f"{first + 3} Ada B-PER"]
    found = [ADA, [("Rome", "B-LOC")], [("Ada", "B-PER")]]
    assert read(tmp_path, "\n".join(rows)) == (found, [])


def test_a_gap_in_an_index_that_runs_on_is_named_once(tmp_path):
    content = "0 Ada B-PER\n1 wrote O\n\n2 Ada B-PER\n4 wrote O\n\n5 Ada B-PER\n6 wrote O\n"
    found, (line,) = read(tmp_path, content, on_bad_row="skip")
    assert found == [ADA, ADA]
    assert_names(line, "train.txt:5: ", "'4'", "3")


CONLLU = "\t{}\tAda\tPROPN\tNNP\tCase=Nom\t0\troot\t_\t{}\n"


@pytest.mark.parametrize(
    "content, line",
    [
        ("1" + CONLLU.format("Ada", "_"), 1),
        ("# text = Ada\n1" + CONLLU.format("Ada", "SpaceAfter=No"), 2),
        ("1-2" + CONLLU.format("Adas", "_") + "1" + CONLLU.format("Ada", "_"), 1),
        ("1.1" + CONLLU.format("Ada", "_"), 1),
    ],
)
def test_conllu_is_refused_by_name(tmp_path, content, line):
    for read_file in (lambda: read(tmp_path, content, on_bad_row="skip"), lambda: read_tags(tmp_path / "train.txt")):
        with raises_naming(RowError, f"train.txt:{line}: ", "CoNLL-U", "column 4"):
            read_file()


@pytest.mark.parametrize("content", ["B-ACTOR\tbruce\nI-ACTOR\twillis\nO\tin\n", "O in\n\nB_LOC Rome\n"])
def test_a_file_with_the_tag_first_is_refused_by_name(tmp_path, content):
    first, last = content.split()[:2]
    with raises_naming(RowError, "train.txt:1: ", repr(first), repr(last), "tag last"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    "content, shown", [("Ada\tB-PER\rwrote\tO\n", "B-PER\\rwrote"), ("Ada O\r\rwrote O\r\nRome O\r\n", "O\\r\\rwrote")]
)
def test_a_carriage_return_behind_the_word_is_named(tmp_path, content, shown):
    with raises_naming(RowError, "train.txt:1: ", shown, "\\r\\n"):
        read(tmp_path, content)


def test_a_word_without_tokens_is_named(tmp_path):
    (tmp_path / "train.txt").write_text("Ada B-PER\n\u200b O\nwrote O\n")
    task = TokenTask(LABELS)
    (row,) = task.read_examples(str(tmp_path), "train", RowReader())
    with pytest.raises(RowError, match=r"train.txt:1: .*u200b"):
        task.encode_labels(row, EncodedExample([[7, 8]], [[(0, 3), (6, 11)]]))
    tokens = EncodedExample([[7, 9, 8, 8]], [[(0, 3), (4, 5), (6, 8), (8, 11)]])
    assert task.encode_labels(row, tokens)["tags"].tolist() == [1, 0, 0, IGNORED_TAG, IGNORED_TAG]


def test_the_tags_of_a_file_are_those_of_its_rows(tmp_path):
    (tmp_path / "a.txt").write_text("# comment\nAda B-PER\nwrote O\n")
    (tmp_path / "a.jsonl").write_text(json.dumps({"words": ["Ada", "wrote"], "tags": ["B-PER", "O"]}))
    assert read_tags(tmp_path / "a.txt") == read_tags(tmp_path / "a.jsonl") == ("O", "B-PER")


def test_a_file_without_tags_names_its_first_bad_row(tmp_path):
    (tmp_path / "a.txt").write_text("Ada B-PER\nwrote\n\nRome\n")
    with raises_naming(RowError, "a.txt:2: ", "'wrote' lacks a tag"):
        read_tags(tmp_path / "a.txt")
    (tmp_path / "a.jsonl").write_text(json.dumps({"words": [], "tags": []}))
    with raises_naming(RowError, "a.jsonl: ", "no sentence has tags"):
        read_tags(tmp_path / "a.jsonl")


# Schemes


@pytest.mark.parametrize(
    "tags, entities",
    [
        ("B-PER I-PER O B-LOC B-LOC", [(0, 2, "PER"), (3, 4, "LOC"), (4, 5, "LOC")]),  # IOB2
        ("I-PER I-PER O I-LOC B-LOC I-PER", [(0, 2, "PER"), (3, 4, "LOC"), (4, 5, "LOC"), (5, 6, "PER")]),  # IOB1
        ("B-PER E-PER O S-LOC S-LOC", [(0, 2, "PER"), (3, 4, "LOC"), (4, 5, "LOC")]),  # BIOES
        ("B-PER I-PER L-PER U-LOC O U-LOC", [(0, 3, "PER"), (3, 4, "LOC"), (5, 6, "LOC")]),  # BILOU
        ("B M M E S O B E", [(0, 4, ""), (4, 5, ""), (6, 8, "")]),  # BMES
        ("B_PER I_PER O", [(0, 2, "PER")]),
        ("PER-B PER-I O LOC-B", [(0, 2, "PER"), (3, 4, "LOC")]),
        ("PER_B PER_E O LOC_S PER_I", [(0, 2, "PER"), (3, 4, "LOC"), (4, 5, "PER")]),
        ("B-a-b_c I-a-b_c I-a", [(0, 2, "a-b_c"), (2, 3, "a")]),
        ("PER PER O LOC", [(0, 1, "PER"), (1, 2, "PER"), (3, 4, "LOC")]),  # words without a scheme
    ],
)
def test_the_entities_of_each_scheme(tags, entities):
    tags = tags.split()
    labels = list(dict.fromkeys(tags))
    parsed = dict(zip(labels, parse_tags(labels), strict=True))
    assert sorted(extract_entities([parsed[tag] for tag in tags])) == entities


@pytest.mark.parametrize(
    "labels, named",
    [
        (("O", "B-PER", "I-PER", "LOC"), "LOC"),
        (("O", "B-PER", "I-PER", "L-PER", "E-PER"), "B, E, I, L"),
        (("B-PER", "PER-I"), "PER-I"),
    ],
)
def test_tags_of_no_scheme_are_refused_by_name(labels, named):
    with pytest.raises(ValueError, match=f"{named}.*IOB.*BIOES.*BILOU"):
        TokenTask(labels)


@pytest.mark.parametrize(
    "labels",
    [
        ("b-per", "i-per", "O"),
        ("O", "b-per"),
        ("o", "b_per", "i_per"),
        ("O", "B:PER", "I:PER"),
        ("O", "B/PER"),
        ("O", "Begin-PER", "Inside-PER"),
        ("OUT", "BEGIN-PER", "END-PER", "UNIT-LOC"),
        ("O", "PER-b", "PER-i"),
        ("O", "PER:B"),
    ],
)
def test_tags_in_another_form_are_refused_by_name(labels):
    shown = next(label for label in labels if label.lower() not in ("o", "out"))
    with raises_naming(UserError, repr(shown), "B-PER", "IOB", "BIOES", "BILOU"):
        TokenTask(labels)


@pytest.mark.parametrize(
    "labels",
    [
        ("NOUN", "VERB", "PRP$", "-LRB-", "X", "O"),
        ("nsubj:pass", "aux:pass", "in:out"),
        ("s-bar", "e-mail", "in-law"),
        ("b", "i", "n"),
        ("N/A", "B/W"),
        ("LOC:x", "O"),
        ("b-side", "noun"),
        ("b-side", "b:x"),
        ("X", "O"),
    ],
)
def test_labels_without_a_scheme_are_each_a_name(labels):
    assert parse_tags(labels) == [("O", "") if label == "O" else ("S", label) for label in labels]


def find_entities_as_seqeval(tags: list[str]) -> set[tuple[int, int, str]]:
    """`get_entities` of seqeval 1.2.2, whose rules for the end and the start of a chunk are those of conlleval."""
    previous, previous_type, begin, chunks = "O", "", 0, set()
    for i, tag in enumerate([*tags, "O"]):
        letter, kind = tag[0], tag[2:]
        ends = previous in "ES" or (previous in "BI" and letter in "BSO") or (previous != "O" and previous_type != kind)
        starts = letter in "BS" or (previous in "ESO" and letter in "EI") or (letter != "O" and previous_type != kind)
        if ends:
            chunks.add((begin, i, previous_type))
        if starts:
            begin = i
        previous, previous_type = letter, kind
    return chunks


@given(st.lists(st.sampled_from([*(f"{p}-{t}" for p in "BIES" for t in ("PER", "LOC")), "O"]), max_size=12))
@settings(deadline=None, derandomize=True, max_examples=400)
def test_entities_of_any_tags_are_those_that_seqeval_finds(tags):
    labels = ["O", *(f"{p}-{t}" for p in "BIES" for t in ("PER", "LOC"))]
    parsed = dict(zip(labels, parse_tags(labels), strict=True))
    found = extract_entities([parsed[tag] for tag in tags])
    assert {(a, b, kind) for a, b, kind in found} == find_entities_as_seqeval(tags)


# Scores


def score(rows: list[list[str]], seq_length: int) -> dict:
    """The scores of a run that is right for all words it reads, one token each, of rows of `seq_length`."""
    sizes = np.cumsum([0, *(len(row) + 1 for row in rows)])
    tags = [LABELS.index(tag) for row in rows for tag in (*row, "O")]
    column = np.array(tags, np.int32)
    column[sizes[1:] - 1] = IGNORED_TAG
    split = Split("dev", np.zeros(sizes[-1], int), sizes, np.arange(len(rows) + 1), {"tags": column})
    table = TaggedRows().build_example_table(split, range(len(rows)), seq_length)
    outputs = np.zeros((len(rows), seq_length), int)
    for row, span in zip(outputs, table, strict=True):
        size = span["a_end"] - span["a_start"]
        row[1 : 1 + size] = column[span["a_start"] : span["a_end"]]
    return TokenClassification(LABELS).score_outputs({"tags": outputs}, table[:, None], split)


def test_entities_behind_the_cut_are_missed():
    rows = [["B-LOC", *["O"] * 30, "B-PER", "I-PER"]] * 6
    whole, cut = score(rows, 64), score(rows, 16)
    assert (whole["f1"], whole["tag_accuracy"]) == (1.0, 1.0)
    assert cut["f1"] == pytest.approx(2 / 3) and (cut["precision"], cut["recall"]) == (1.0, 0.5)
    assert cut["tag_accuracy"] == pytest.approx(14 / 33) and cut["tag_baseline"] == pytest.approx(30 / 33)
    assert cut["macro_f1"] == 0.5 and [cut["classes"][name]["recall"] for name in ("LOC", "PER")] == [1.0, 0.0]
    assert score([["O", "B-PER", "I-PER", "I-PER"]], 5)["f1"] == 0.0  # an entity that the cut divides
