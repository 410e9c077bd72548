"""Tasks of one text or two: their rows, how they are shortened, labels, and GLUE's files in and out."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.data.example_table import build_empty_table
from encoders.data.labelled import EncodedExample, Example
from encoders.data.row_files import RowError, RowReader
from encoders.data.stream import assemble_rows
from encoders.families import albert, bert, electra, roberta
from encoders.inference.text_batch import build_split
from encoders.tasks import text_tasks
from encoders.tasks.glue import GLUE_TASKS
from encoders.tasks.text_tasks import TextRows, TextTask, truncate_pairs
from encoders.text.tokenization import VocabInfo

PAD, CLS, SEP = 1, 2, 3  # padding is not 0, as in RoBERTa
FACTS = VocabInfo(
    vocab_size=99,
    pad_id=PAD,
    unk_id=0,
    cls_id=CLS,
    sep_id=SEP,
    mask_id=4,
    special_ids=(0, 1, 2, 3, 4),
    continuation_bits=bytes(13),
)
ONE, TWO, THREE = [[11, 12, 13]], [[21, 22], [31, 32, 33, 34]], [[41, 42, 43, 44, 45], [51, 52, 53, 54]]
YES = TextTask("yes", ("text",), labels=("no", "yes"))
SCORE = TextTask("score", ("text",), "score")


def rows_of(documents, length, form, labels=None, name="train"):
    labels = np.arange(len(documents)) if labels is None else labels
    split = replace(build_split(documents, FACTS, {"label": labels}), name=name)
    return assemble_rows(
        split, form.build_example_table(split, range(split.num_documents), length, 0, 0), length, FACTS, form
    )


def read(task, root, split="train", errors="stop"):
    """The texts and the number of each row's label."""
    return [(row.texts, row.target) for row in task.read_examples(str(root), split, RowReader(errors))]


# Rows


def test_a_row_has_one_text_or_two_behind_cls():
    rows = rows_of([ONE, TWO], 10, TextRows())
    one = [CLS, 11, 12, 13, SEP, PAD, PAD, PAD, PAD, PAD]
    assert rows.input_ids.tolist() == [one, [CLS, 21, 22, SEP, 31, 32, 33, 34, SEP, PAD]]
    assert rows.token_type_ids.tolist() == [[0] * 10, [0, 0, 0, 0, 1, 1, 1, 1, 1, 0]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 7, 8, 0]]
    assert rows.example_ids.tolist() == [[1] * 5 + [0] * 5, [1] * 9 + [0]]


def test_roberta_has_two_separators_between_two_texts():
    rows = rows_of([TWO, ONE], 10, TextRows(num_separators=2))
    one = [CLS, 11, 12, 13, SEP, PAD, PAD, PAD, PAD, PAD]
    assert rows.input_ids.tolist() == [[CLS, 21, 22, SEP, SEP, 31, 32, 33, 34, SEP], one]
    assert rows.token_type_ids.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 1, 1], [0] * 10]
    assert rows.position_ids[0].tolist() == list(range(10))


def test_the_longer_text_is_cut_at_its_end_until_the_row_fits():
    rows = rows_of([[list(range(60, 70))], THREE], 8, TextRows())  # 5 + 4 tokens in a room of 5
    assert rows.input_ids.tolist() == [[CLS, 60, 61, 62, 63, 64, 65, SEP], [CLS, 41, 42, 43, SEP, 51, 52, SEP]]
    more = rows_of([THREE, [[21], THREE[0]]], 8, TextRows(num_separators=2))  # a room of 4
    assert more.input_ids.tolist() == [[CLS, 41, 42, SEP, SEP, 51, 52, SEP], [CLS, 21, SEP, SEP, 41, 42, 43, SEP]]


def truncate_seq_pair(tokens_a, tokens_b, max_length):
    """`_truncate_seq_pair` of google-research/bert, run_classifier.py."""
    while len(tokens_a) + len(tokens_b) > max_length:
        if len(tokens_a) > len(tokens_b):
            tokens_a.pop()
        else:
            tokens_b.pop()


SIZES = st.integers(1, 70)


@given(st.lists(st.tuples(SIZES, SIZES | st.just(0)), min_size=1, max_size=6), st.integers(8, 90), st.integers(1, 2))
@settings(deadline=None, derandomize=True, max_examples=300)
def test_texts_are_shortened_as_berts_released_code_does(pairs, length, between):
    table, expected = build_empty_table(len(pairs)), []
    for row, (a, b) in zip(table, pairs, strict=True):
        row["a_start"], row["a_end"] = 3, 3 + a
        row["b_start"], row["b_end"] = (3 + a, 3 + a + b) if b else (0, 0)
        first, second = list(range(a)), list(range(b))
        truncate_seq_pair(first, second, length - (2 + between if b else 2))
        expected.append((3, 3 + len(first), row["b_start"], row["b_start"] + len(second), 0, 0))
    truncate_pairs(table, length, between)
    assert table.tolist() == expected


def test_training_reads_symmetric_pairs_in_both_orders_and_evaluation_in_one():
    form = TextRows(both_orders=True)
    rows = rows_of([TWO, THREE], 8, form, np.array([7, 5], np.int32))
    there = [[CLS, 21, 22, SEP, 31, 32, 33, SEP], [CLS, 41, 42, 43, SEP, 51, 52, SEP]]
    back = [[CLS, 31, 32, 33, SEP, 21, 22, SEP], [CLS, 51, 52, 53, SEP, 41, 42, SEP]]
    assert rows.input_ids.tolist() == there + back and rows.labels["label"].tolist() == [[7], [5], [7], [5]]
    assert rows_of([TWO, THREE], 8, form, name="dev").input_ids.tolist() == there
    assert rows_of([TWO, THREE], 8, TextRows()).input_ids.tolist() == there


BOTH = [(YES, ["yes", "no"], np.int32([[1], [0]])), (SCORE, [2.5, 4], np.float32([[2.5], [4]]))]


@pytest.mark.parametrize("task, found, numbers", BOTH)
def test_labels_are_integers_for_classes_and_floats_for_numbers(task, found, numbers):
    columns = [
        task.encode_labels(Example("", ("a",), task.parse_label("", each)), EncodedExample([], []))["label"]
        for each in found
    ]
    label = rows_of([ONE, TWO], 9, TextRows(), np.concatenate(columns)).labels["label"]
    np.testing.assert_array_equal(label, numbers, strict=True)


def test_a_task_takes_its_form_from_the_conventions_of_the_family():
    task = GLUE_TASKS["MRPC"]
    assert [task.build_objective_and_format(family.CONVENTIONS, 0.1, True)[1] for family in (bert, roberta)] == [
        TextRows(True, 1),
        TextRows(True, 2),
    ]
    assert (
        task.build_objective_and_format(bert.CONVENTIONS, 0.1, False)[1]
        == GLUE_TASKS["QQP"].build_objective_and_format(bert.CONVENTIONS, 0.1, True)[1]
        == TextRows(False, 1)
    )
    families = (bert, roberta, albert, electra)
    heads = [task.build_objective_and_format(family.CONVENTIONS, 0.1, False)[0].head for family in families]
    assert heads == ["pooled", "tanh", "pooled", "linear"]
    objective, _ = GLUE_TASKS["STS-B"].build_objective_and_format(bert.CONVENTIONS, 0.2, False)
    assert len(objective.labels) == 1 and (objective.head_dropout, objective.best_metric) == (0.2, "spearman")


# Labels


def test_an_unknown_label_is_named_with_the_known_ones():
    assert [YES.parse_label("f:2", label) for label in ("no", "yes")] == [0, 1]
    for label in ("maybe", "Yes", "", "0", -1, 2, None):
        with pytest.raises(RowError, match=f"^f:2: label={label!r} .*no, yes$"):
            YES.parse_label("f:2", label)


@pytest.mark.parametrize("label", ["high", "", "nan", "inf", float("nan"), None, "1,5", "1e39", "-1e300"])
def test_a_label_that_is_not_a_finite_number_is_named(label):
    assert SCORE.parse_label("f:2", "-1.5") == -1.5 and SCORE.parse_label("f:2", 3) == 3
    with pytest.raises(RowError, match=f"^f:2: score={label!r} "):
        SCORE.parse_label("f:2", label)


def test_tfds_numbers_the_classes_and_names_the_columns(monkeypatch):
    rows = [{"premise": "a", "hypothesis": f"b{n}", "label": n} for n in (2, 0)]
    held = {"tfds:glue/mnli@validation_mismatched": rows, "tfds:glue/mnli@train": rows}
    monkeypatch.setattr(text_tasks, "read_tfds_records", held.__getitem__)
    assert read(GLUE_TASKS["MNLI"], "tfds:glue/mnli", "dev_mismatched") == [(("a", "b2"), 2), (("a", "b0"), 0)]
    with pytest.raises(RowError, match="tfds:glue/mnli@train:0: label=2 .*0, 1"):
        read(TextTask("two", ("premise",), labels=("0", "1")), "tfds:glue/mnli")


def test_a_tfds_label_is_an_index_and_not_a_name(monkeypatch):
    rows = [{"text": "bad", "label": 0}, {"text": "good", "label": 1}]  # its classes are called "1" and "2"
    monkeypatch.setattr(text_tasks, "read_tfds_records", lambda source: rows)
    task = TextTask("yelp", ("text",), labels=("1", "2"))
    assert read(task, "tfds:yelp_polarity_reviews") == [(("bad",), 0), (("good",), 1)]


def test_a_label_in_a_file_is_a_name_and_not_an_index(tmp_path):
    task = TextTask("stars", ("text",), labels=("1", "2", "3"), files=(("train", "train.jsonl"),))
    rows = [{"text": f"t{label}", "label": label} for label in (3, "1", 0)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read(task, tmp_path, errors="skip") == [(("t3",), 2), (("t1",), 0)]


def test_a_task_of_three_texts_is_refused():
    with pytest.raises(ValueError, match=r"three: text_columns=\('a', 'b', 'c'\) "):
        TextTask("three", ("a", "b", "c"))


# GLUE

P, Q = 'A "quoted one.', "It isn't."
STSB = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2"
NLI = "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse"
NLI, PARSED = f"{NLI}|sentence1|sentence2", "0|31|31n|fiction|( a )|( b )|(ROOT a)|(ROOT b)|{0}|{1}"
PAIR, ENTAILED = "index|sentence1|sentence2", ("not_entailment", "entailment")
# The columns and a row of its release (| is a tab), two labels, their numbers; columns and a row of its test file.
RELEASED = {
    "CoLA": ("", "gj04|{2}|*|{0}", ("1", "0"), [1, 0], "index|sentence", "0|{0}"),
    "SST-2": ("sentence|label", "{0}|{2}", ("0", "1"), [0, 1], "index|sentence", "0|{0}"),
    "MRPC": ("\ufeffQuality|#1 ID|#2 ID|#1 String|#2 String", "{2}|70|71|{0}|{1}", ("1", "0"), [1, 0],
             "index|#1 ID|#2 ID|#1 String|#2 String", "0|70|71|{0}|{1}"),
    "STS-B": (f"{STSB}|score", "7|news|MSR|2012|1|none|none|{0}|{1}|{2}", ("5.000", "0.8"), [5.0, 0.8],
              STSB, "7|news|MSR|2012|1|none|none|{0}|{1}"),
    "QQP": ("id|qid1|qid2|question1|question2|is_duplicate", "133|213|214|{0}|{1}|{2}", ("0", "1"), [0, 1],
            "id|question1|question2", "0|{0}|{1}"),
    "MNLI": (f"{NLI}|label1|gold_label", PARSED + "|neutral|{2}", ("contradiction", "entailment"), [2, 0], NLI, PARSED),
    "QNLI": ("index|question|sentence|label", "0|{0}|{1}|{2}", ENTAILED, [1, 0],
             "index|question|sentence", "0|{0}|{1}"),
    "RTE": (f"{PAIR}|label", "0|{0}|{1}|{2}", ENTAILED, [1, 0], PAIR, "0|{0}|{1}"),
    "WNLI": (f"{PAIR}|label", "0|{0}|{1}|{2}", ("1", "0"), [1, 0], PAIR, "0|{0}|{1}"),
}  # fmt: skip


def released(path, head, *rows):
    """A file of GLUE's, from rows that are written with | for tabs."""
    path.write_text("\n".join([*([head] if head else []), *rows, ""]).replace("|", "\t"), encoding="utf-8")


@pytest.mark.parametrize("name", GLUE_TASKS)
def test_the_rows_of_glue_are_read_as_they_were_released(tmp_path, name):
    head, row, labels, numbers, test_head, test_row = RELEASED[name]
    found = [(P, Q), (Q, P)] if "{1}" in row else [(P,), (Q,)]
    for split, file in GLUE_TASKS[name].files:
        if not split.startswith("test"):
            released(tmp_path / file, head, row.format(P, Q, labels[0]), row.format(Q, P, labels[1]))
            assert read(GLUE_TASKS[name], tmp_path, split) == list(zip(found, numbers, strict=True))
        elif split != "test_ax":
            released(tmp_path / file, test_head, test_row.format(P, Q), test_row.format(Q, P))
            assert [texts for texts, _ in read(GLUE_TASKS[name], tmp_path, split)] == found


class Stub:
    """Says of the n-th text what was written down for it."""

    def __init__(self, *said):
        self.said, self.asked = said, []

    def classify(self, rows):
        self.asked += (found := list(rows))
        return iter(self.said[: len(found)])


def test_the_submission_of_mnli_has_three_files(tmp_path):
    matched, mismatched, ax = [(P, Q), (Q, P)], [(Q, Q)], [(P, P), (Q, P)]
    released(tmp_path / "test_matched.tsv", NLI, *(PARSED.format(*pair) for pair in matched))
    released(tmp_path / "test_mismatched.tsv", NLI, *(PARSED.format(*pair) for pair in mismatched))
    released(tmp_path / "diagnostic.tsv", PAIR, *(f"7|{a}|{b}" for a, b in ax))
    stub = Stub(*({"entailment": e, "neutral": n, "contradiction": 1 - e - n} for e, n in ((0.2, 0.7), (0.3, 0.3))))
    assert list(GLUE_TASKS["MNLI"].build_submission(stub, str(tmp_path))) == [
        ("MNLI-m.tsv", "index\tprediction\n0\tneutral\n1\tcontradiction\n"),
        ("MNLI-mm.tsv", "index\tprediction\n0\tneutral\n"),
        ("AX.tsv", "index\tprediction\n0\tneutral\n1\tcontradiction\n"),
    ]
    assert stub.asked == [*matched, *mismatched, *ax]
    (tmp_path / "diagnostic.tsv").unlink()
    *_, (last, rows) = GLUE_TASKS["MNLI"].build_submission(stub, str(tmp_path))
    assert (last, rows) == ("AX.tsv", None)


def test_ax_may_have_a_folder_beside_mnli(tmp_path, monkeypatch):
    (tmp_path / "MNLI").mkdir()
    (tmp_path / "diagnostic").mkdir()
    released(tmp_path / "diagnostic" / "diagnostic.tsv", PAIR, f"7|{P}|{Q}")
    assert read(GLUE_TASKS["MNLI"], str(tmp_path / "MNLI"), "test_ax") == [((P, Q), 0)]
    held = {"tfds:glue/ax@test": [{"premise": P, "hypothesis": Q, "label": -1}]}
    monkeypatch.setattr(text_tasks, "read_tfds_records", held.__getitem__)
    assert read(GLUE_TASKS["MNLI"], "tfds:glue/mnli", "test_ax") == [((P, Q), 0)]


TWO_WAYS = {"entailment": 0.3, "not_entailment": 0.7}, "not_entailment"
SAID = {"STS-B": ({"number": 3.14159}, "3.142"), "QNLI": TWO_WAYS, "RTE": TWO_WAYS}


@pytest.mark.parametrize("name", sorted(GLUE_TASKS.keys() - {"MNLI"}))
def test_the_submission_of_a_glue_task_is_a_file_of_its_name(tmp_path, name):
    *_, head, row = RELEASED[name]
    said, answer = SAID.get(name, ({"0": 0.4, "1": 0.6}, "1"))
    stub = Stub(said)
    released(tmp_path / "test.tsv", head, row.format(P, Q))
    assert list(GLUE_TASKS[name].build_submission(stub, str(tmp_path))) == [
        (f"{name}.tsv", f"index\tprediction\n0\t{answer}\n")
    ]
    assert stub.asked == [P if name in ("CoLA", "SST-2") else (P, Q)]
