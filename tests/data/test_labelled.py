"""Labelled rows as a store: tokens, labels, splits, and what makes it another store."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from encoders.data.labelled import LabelledData
from encoders.data.prepare import prepare_store
from encoders.data.row_files import RowError
from encoders.data.spec import compute_store_key
from encoders.tasks import text_tasks
from encoders.tasks.squad import SQUAD_2_0
from encoders.tasks.text_tasks import TextTask
from encoders.tasks.token_classification import TokenTask
from encoders.text import tokenization
from encoders.text.tokenization import TokenizerSpec
from tests.refusals import raises_naming
from tests.texts import made_up, words

PAIRS = TextTask("pairs", ("first", "second"), labels=("no", "yes"))
SINGLE = TextTask("single", ("text",), labels=("no", "yes"))
W = words()
# Four training rows and three of development; commas and capitals are tokens or letters of their own.
TRAIN = [
    (f"{W[n]} {W[n + 1]}, {W[0]}", " ".join(W[n : 2 * n + 2]).title(), "no yes yes no".split()[n]) for n in range(4)
]
DEV = [(W[9], f"{W[8]} {W[7]}", "yes"), (f"{W[6]} [SEP]", W[5], "no"), (W[4], W[4], "yes")]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenization.train_tokenizer(TokenizerSpec(vocab_size=400), made_up(30))


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A folder of rows, and a vocabulary beside it."""
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "rows").mkdir()
    return tmp_path / "rows"


def write(path, rows, head=("first", "second", "label")):
    path.write_text("".join("\t".join(row) + "\n" for row in (head, *rows)), encoding="utf-8")


def labelled(folder, task=PAIRS, **given):
    beside = {"tokenizer": TokenizerSpec(path=str(folder.parent / "tokenizer.json")), "root": str(folder)}
    beside |= {"store_dir": str(folder.parent / "stores"), "max_unknown_rate": 1.0}
    return LabelledData(task, **(beside | given))


def whole(folder):
    write(folder / "train.tsv", TRAIN)
    write(folder / "dev.tsv", DEV)
    return folder


@pytest.mark.parametrize("task, version", [(PAIRS, 2), (SQUAD_2_0, 3), (TokenTask(("O", "B-x", "I-x")), 4)])
def test_a_task_whose_rows_are_read_otherwise_than_before_has_other_stores(folder, task, version):
    assert labelled(folder, task).describe_content()["version"] == version


def single(folder, train=("red\tyes", "dog\tno"), dev=("cat\tyes",)):
    for name, rows in (("train", train), ("dev", dev)):
        (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows, ""]), encoding="utf-8")
    return folder


def assert_refused(data, *values, error=ValueError):
    """Check that no store is made, with an error that names all of the values."""
    with raises_naming(error, *values):
        prepare_store(data)


# Tokens and labels


def test_a_row_is_a_document_of_its_texts_as_the_tokenizer_has_them(folder, tokenizer):
    store = prepare_store(labelled(whole(folder)))
    for split, rows in ((store.train_split, TRAIN), (store.eval_splits[0], DEV)):
        assert split.num_documents == len(rows)
        for document, (first, second, _) in enumerate(rows):
            start, middle, end = split.get_sentence_offsets(document)
            ids = [split.tokens[start:middle].tolist(), split.tokens[middle:end].tolist()]
            assert ids == tokenizer.encode_batch([first, second]) and split.tokens[end] == tokenizer.vocab.sep_id
        assert split.sentence_offsets[-1] == len(split.tokens)
    assert store.metadata["splits"]["train"] == {
        "documents": 4,
        "sentences": 8,
        "tokens": 4 + sum(map(len, tokenizer.encode_batch([text for row in TRAIN for text in row[:2]]))),
    }
    assert store.tokenizer.has_same_ids(tokenizer)


def test_the_label_of_a_row_is_the_number_of_its_name(folder):
    store = prepare_store(labelled(whole(folder)))
    assert (
        store.train_split.label_columns["label"].tolist() == [0, 1, 1, 0]
        and store.train_split.label_columns["label"].dtype == np.int32
    )
    assert store.eval_splits[0].label_columns["label"].tolist() == [1, 0, 1]


def test_without_names_a_label_is_a_number(folder):
    single(folder, ["red\t2.5", "dog\t-1e-1", "cat\t3"], ["red\t0"])
    column = prepare_store(labelled(folder, replace(SINGLE, labels=()))).train_split.label_columns["label"]
    np.testing.assert_array_equal(column, np.array([2.5, -0.1, 3], np.float32), strict=True)


def test_the_common_token_is_counted_in_the_training_rows(folder, tokenizer):
    single(folder, [f"{W[1]} {W[0]} {W[1]}\tyes"], [f"{W[2]}\tno"] * 5)
    assert tokenizer.encode_batch([W[1]]) == [[prepare_store(labelled(folder, SINGLE)).vocab.most_frequent_id]]


def test_the_number_of_a_row_is_noted(folder):
    head = ("index", "text", "label")
    write(folder / "train.tsv", [("7", "red", "no"), ("é", "dog", "yes")], head)
    write(folder / "dev.tsv", [("3", "red", "no")], head)
    store = prepare_store(labelled(folder, SINGLE))
    assert store.train_split.row_metadata == [{"index": "7"}, {"index": "é"}] and store.eval_splits[0].row_metadata == [
        {"index": "3"}
    ]


def test_a_number_of_a_row_that_is_not_utf_8_does_not_end_the_work(folder):
    single(folder)
    (folder / "train.tsv").write_bytes(b"index\ttext\tlabel\n\xff\tred\tno\n8\tdog\tyes\n")
    assert {"index": "8"} in prepare_store(labelled(folder, SINGLE, on_bad_row="skip")).train_split.row_metadata


# Splits


def test_development_sets_are_those_that_are_there_in_the_order_of_the_task(folder):
    files = (("train", "train.tsv"), ("dev_z", "z.tsv"), ("dev_absent", "absent.tsv"), ("dev_a", "a.tsv"))
    for name, rows in (("train", TRAIN), ("a", DEV), ("z", DEV[:2])):
        write(folder / f"{name}.tsv", rows)
    store = prepare_store(labelled(folder, replace(PAIRS, files=files)))
    assert [(split.name, split.num_documents) for split in store.eval_splits] == [("dev_z", 2), ("dev_a", 3)]
    assert store.train_split.num_documents == 4


def test_the_rows_of_a_tfds_data_set_are_those_of_its_splits(folder, tokenizer, monkeypatch):
    held = {
        "tfds:my/set@train": [{"a": W[3], "b": W[4], "label": 1}],
        "tfds:my/set@validation_far": [{"a": W[5], "b": W[6], "label": 0}],
    }
    monkeypatch.setattr(text_tasks, "read_tfds_records", held.__getitem__)
    monkeypatch.setattr("encoders.data.labelled.describe_tfds_version", lambda item: item)
    task = replace(PAIRS, tfds_columns=("a", "b"), files=(("train", "x"), ("dev_far", "y"), ("test", "z")))
    store = prepare_store(labelled(folder, task, root="tfds:my/set"))
    (ids,), (more,) = tokenizer.encode_batch([W[3]]), tokenizer.encode_batch([W[4]])
    assert store.train_split.tokens.tolist() == [*ids, *more, tokenizer.vocab.sep_id]
    assert store.train_split.label_columns["label"].tolist() == [1] and store.open_split("dev_far").label_columns[
        "label"
    ].tolist() == [0]


def test_the_number_of_a_tfds_row_is_noted(folder, monkeypatch):
    rows = [{"text": "red", "label": 0, "id": 5}]
    monkeypatch.setattr(text_tasks, "read_tfds_records", lambda source: rows)
    monkeypatch.setattr("encoders.data.labelled.describe_tfds_version", lambda item: item)
    assert prepare_store(labelled(folder, SINGLE, root="tfds:set")).train_split.row_metadata == [{"index": 5}]


# Keys


def test_files_that_are_not_learned_from_do_not_change_the_store(folder):
    before = compute_store_key(labelled(whole(folder)))
    (folder / "test.tsv").write_text("not a row\n\n")
    assert compute_store_key(labelled(folder)) == before and list(
        prepare_store(labelled(folder)).metadata["splits"]
    ) == ["train", "dev"]


def test_a_folder_that_moves_keeps_its_store(folder, tmp_path):
    made = prepare_store(labelled(whole(folder)))
    shutil.move(folder, tmp_path / "moved")
    shutil.move(tmp_path / "tokenizer.json", tmp_path / "words.json")
    again = labelled(tmp_path / "moved", tokenizer=TokenizerSpec(path=str(tmp_path / "words.json")))
    assert prepare_store(again).path == made.path and [path.name for path in (tmp_path / "stores").iterdir()] == [
        made.key
    ]


def test_a_store_does_not_depend_on_what_a_task_is_called_or_judged_by(folder):
    other = replace(PAIRS, name="other", score_names=("f1",), symmetric=True)
    assert compute_store_key(labelled(whole(folder), other)) == compute_store_key(labelled(folder))


def test_a_label_that_changes_makes_another_store(folder):
    keys = {compute_store_key(labelled(whole(folder)))}
    keys.add(compute_store_key(labelled(folder, replace(PAIRS, labels=("yes", "no")))))  # the other numbers
    write(folder / "dev.tsv", [*DEV[:2], (*DEV[2][:2], "no")])
    keys.add(compute_store_key(labelled(folder)))
    write(folder / "train.tsv", [(*TRAIN[0][:2], "yes"), *TRAIN[1:]])
    assert len(keys | {compute_store_key(labelled(folder))}) == 4


def test_another_vocabulary_makes_another_store(folder):
    before = compute_store_key(labelled(whole(folder)))
    tokenization.train_tokenizer(TokenizerSpec(vocab_size=200), made_up(9)).save(folder.parent / "tokenizer.json")
    assert compute_store_key(labelled(folder)) != before


# What is refused


def test_a_folder_without_training_or_development_rows_is_refused_with_what_it_takes(folder):
    named = ("pairs", folder, "train.tsv, dev.tsv, test.tsv")
    assert_refused(labelled(folder), *named)
    write(folder / "test.tsv", TRAIN)
    assert_refused(labelled(folder), *named)
    write(folder / "train.tsv", TRAIN)
    assert_refused(labelled(folder), *named, f"{folder} lacks dev.tsv;")
    (folder / "train.tsv").rename(folder / "dev.tsv")
    assert_refused(labelled(folder), *named, f"{folder} lacks train.tsv;")


def test_a_vocabulary_that_is_not_there_is_refused(folder):
    with raises_naming(ValueError, "data.tokenizer.path"):
        labelled(folder, tokenizer=TokenizerSpec())
    absent = str(folder / "absent.json")
    assert_refused(labelled(whole(folder), tokenizer=TokenizerSpec(path=absent)), absent)


@pytest.mark.parametrize(
    "row, values",
    [
        ("red\tmaybe", ["label='maybe'", "no, yes"]),
        ("\tyes", ["text", "empty"]),
        ("red\tno\tyes", ["3 fields", "2 columns", "text, label"]),
        ("\x00\x01\tyes", ["no tokens"]),  # not empty before the rules of the vocabulary
    ],
)
@pytest.mark.parametrize("name", ["train", "dev"])
def test_a_bad_row_stops_the_work_and_leaves_no_store(folder, row, values, name):
    single(folder, **{name: ["red\tyes", row, "dog\tno"]})
    assert_refused(labelled(folder, SINGLE), f"{folder / name}.tsv:3: ", *values, error=RowError)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["rows", "tokenizer.json"]


def test_one_text_of_two_without_tokens_is_refused(folder):
    write(whole(folder) / "dev.tsv", [DEV[0], ("red", "\x00", "no")])
    assert_refused(labelled(folder), f"{folder / 'dev.tsv'}:3: ", "no tokens", error=RowError)


def test_bad_rows_are_skipped_and_counted_where_one_asks_for_it(folder, tokenizer):
    single(folder, ["red\tmaybe", "dog\tno", "\x00\tyes", "cat\tyes"], ["\tno", "red\tno"])
    lines = []
    store = prepare_store(labelled(folder, SINGLE, on_bad_row="skip"), lines.append)
    assert store.metadata["skipped"] == {"train": 2, "dev": 1}
    assert store.train_split.label_columns["label"].tolist() == [0, 1] and store.eval_splits[0].label_columns[
        "label"
    ].tolist() == [0]
    dog, cat = tokenizer.encode_batch(["dog", "cat"])
    assert store.train_split.tokens.tolist() == [*dog, tokenizer.vocab.sep_id, *cat, tokenizer.vocab.sep_id]
    assert any(f"{Path(folder, 'train.tsv')}:4: " in line and "no tokens" in line for line in lines)
    assert any("single, dev" in line and "1 rows" in line and "1 skipped" in line for line in lines)


def test_a_split_without_a_good_row_is_refused(folder):
    single(folder, dev=["\tno", "red\tmaybe"])
    assert_refused(labelled(folder, SINGLE, on_bad_row="skip"), f"{folder}, dev: ", error=RowError)
    assert not (folder.parent / "stores").exists()
