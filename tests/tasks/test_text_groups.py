"""Rows for sentence embeddings: natural language inference, several weighted files, and vectors of a teacher."""

import json
import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from encoders.cli.predict_lines import print_prediction
from encoders.cli.vector_files import write_vectors
from encoders.data import store as store_files
from encoders.data.labelled import LabelledData
from encoders.data.mixing import MixedFormat
from encoders.data.prepare import prepare_store
from encoders.data.row_files import RowError, RowReader
from encoders.data.spec import compute_store_key
from encoders.data.stream import BatchStream, ExampleTables, Phase, iter_eval_batches
from encoders.finetuning.grids import build_finetuning, count_train_rows
from encoders.tasks.text_groups import EmbeddingTask, TextGroups
from encoders.text.tokenization import TokenizerSpec
from encoders.training.step import join_micro_batches, split_micro_batches
from encoders.utils.errors import UserError
from encoders.utils.serialization import ExperimentError, fingerprint_content, from_json_value, to_json_value
from tests import task_examples
from tests.finetuning.tiny import MODEL, QUICK
from tests.refusals import raises_naming
from tests.texts import words

W = words()
NLI = EmbeddingTask(text_columns=("sentence1", "sentence2"), nli_label_column="gold_label", num_texts=3)
VECTORS = EmbeddingTask(text_columns=("text",), vector_column="vector", vector_size=3)
WEIGHTS = {"a.jsonl": 0.5, "b.jsonl": 2.0}
SIZES = {"a.jsonl": 7, "b.jsonl": 5}


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(task, root, reader=None, split="train"):
    return list(task.read_examples(str(root), split, reader or RowReader()))


def make_nli(*rows: str) -> list[dict]:
    """Return rows of "PREMISE HYPOTHESIS LABEL" in the layout of SNLI."""
    return [dict(zip(("sentence1", "sentence2", "gold_label"), row.split(), strict=True)) for row in rows]


# Natural language inference


def test_a_premise_comes_with_a_hypothesis_that_it_entails_and_one_that_contradicts_it(tmp_path):
    rows = make_nli(
        *("p a neutral", "p b contradiction", "q c entailment", "p d entailment", "p e -", "p f entailment"),
        *("r g contradiction", "p h contradiction", "p i contradiction"),
    )
    write_lines(tmp_path / "train.jsonl", rows)
    reader = RowReader()
    found = read_rows(NLI, tmp_path, reader)
    assert [row.texts for row in found] == [("p", "d", "b"), ("p", "f", "h")]
    assert [row.location for row in found] == [f"{tmp_path}/train.jsonl:{number}" for number in (4, 8)]
    assert len(reader.skipped_rows) == 1 and "train.jsonl:5: gold_label='-'" in reader.skipped_rows[0]


def test_the_hypotheses_of_a_premise_are_paired_in_the_order_of_the_file(tmp_path):
    rng, labels = random.Random(0), ("entailment", "neutral", "contradiction", "-")
    rows = make_nli(*(f"p{rng.randrange(9)} h{n} {rng.choice(labels)}" for n in range(200)))
    write_lines(tmp_path / "train.jsonl", rows)
    by_premise = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_premise[row["sentence1"]][row["gold_label"]].append(row["sentence2"])
    expected = {
        (premise, *pair)
        for premise, texts in by_premise.items()
        for pair in zip(texts["entailment"], texts["contradiction"], strict=False)
    }
    reader = RowReader()
    found = [row.texts for row in read_rows(NLI, tmp_path, reader)]
    assert set(found) == expected and len(found) == len(expected) > 30
    assert len(reader.skipped_rows) == sum(row["gold_label"] == "-" for row in rows)


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("train.tsv", "index promptID genre sentence1_parse sentence1 sentence2 label1 gold_label"),  # MNLI of GLUE
        ("snli_1.0_train.txt", "gold_label sentence1_parse sentence1 sentence2 captionID pairID label1 label2"),
    ],
)
def test_nli_of_glue_and_the_text_file_of_snli_have_the_same_rows(tmp_path, name, columns):
    rows = make_nli("p a entailment", "p b contradiction", "q c -")
    lines = ["\t".join(columns.split())]
    lines += ["\t".join(row.get(column, "") for column in columns.split()) for row in rows]
    (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (found,) = read_rows(replace(NLI, files=(("train", name),), prompts=("query: ", "- ")), tmp_path)
    assert found.texts == ("query: p", "- a", "- b")


def test_an_nli_label_of_another_name_is_a_bad_row(tmp_path):
    write_lines(tmp_path / "train.jsonl", make_nli("p a entailment", "p b maybe", "p c contradiction"))
    with raises_naming(RowError, "train.jsonl:2: gold_label='maybe'", "entailment, neutral, contradiction", "'-'"):
        read_rows(NLI, tmp_path)
    reader = RowReader("skip")
    assert [row.texts for row in read_rows(NLI, tmp_path, reader)] == [("p", "a", "c")]
    assert len(reader.skipped_rows) == 1


def test_nli_without_a_complete_premise_is_refused(tmp_path):
    write_lines(tmp_path / "train.jsonl", make_nli("p a entailment", "q b contradiction"))
    with raises_naming(ExperimentError, str(tmp_path), "train"):
        count_train_rows(NLI, str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (dict(text_columns=("p", "e", "c"), nli_label_column="label"), ["text_columns=('p', 'e', 'c')", "nli_label"]),
        (dict(vector_column="vector"), ["vector_column='vector'", "vector_size=None"]),
        (dict(vector_column="vector", vector_size=0), ["vector_size=0", "1"]),
        (dict(sources=(("a.jsonl", -1.0), ("b.jsonl", 1.0))), ["('a.jsonl', -1.0)", "at least 0"]),
        (dict(sources=(("a.jsonl", 0.0),)), ["('a.jsonl', 0.0)", "above 0"]),
        (dict(sources=(("a.jsonl", float("nan")),)), ["('a.jsonl', nan)", "at least 0"]),
    ],
)
def test_fields_that_no_rows_can_have_are_refused(fields, named):
    with raises_naming(UserError, "embeddings", *named):
        EmbeddingTask(**fields)


# Several files


def make_rows(name: str, first: int) -> list[dict]:
    """Return rows of a file, each with a word of its own; every third one lacks a vector."""
    numbers = range(first, first + SIZES[name])
    return [{"text": W[n], "vector": None if n % 3 == 0 else [n, -0.5, len(name)]} for n in numbers]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A task of two weighted files with vectors, its data, and its store."""
    home = tmp_path_factory.mktemp("mixed")
    vocabulary = task_examples.vocabulary(home)
    for name, first in (("a.jsonl", 0), ("b.jsonl", 20)):
        write_lines(home / name, make_rows(name, first))
    write_lines(home / "dev.jsonl", [{"text": W[40], "vector": [1, 2, 3]}, {"text": W[41], "vector": None}])
    (home / "sts.tsv").write_text(f"sentence1\tsentence2\tscore\n{W[1]}\t{W[2]}\t2\n", encoding="utf-8")
    files = (("train", "absent.jsonl"), ("dev", "dev.jsonl"), ("dev_sts", "sts.tsv"))
    task = replace(VECTORS, sources=tuple(WEIGHTS.items()), files=files, scored_splits=("dev_sts",))
    tokenizer = TokenizerSpec(path=vocabulary)
    data = LabelledData(task, str(home), tokenizer, store_dir=str(home / "stores"), max_unknown_rate=1.0)
    return task, data, prepare_store(data)


def build_phase(task) -> Phase:
    _, row_format = task.build_objective_and_format(MODEL.conventions, 0.1, False)
    return Phase(until_step=12, seq_length=16, batch_size=4, format=row_format)


def test_a_pass_reads_the_rows_of_each_file_as_often_as_its_weight_says(mixed):
    task, _, store = mixed
    split, row_format = store.train_split, build_phase(task).format
    assert row_format == MixedFormat(TextGroups(2, 3), (0.5, 2.0)) and row_format.varies_by_pass
    assert (row_format.num_texts, row_format.vector_size, row_format.separates_equal_texts) == (2, 3, True)
    assert [list(source) for source in split.corpus_ranges] == [list(range(7)), list(range(7, 12))]
    passes = [row_format.build_example_table(split, range(12), 16, 0, number)["document"][:, 0] for number in range(10)]
    assert {tuple(np.sort(rows[rows >= 7])) for rows in passes} == {tuple(np.repeat(range(7, 12), 2))}
    counts = Counter(np.concatenate(passes).tolist())
    assert [counts[row] for row in range(7)] == [5] * 7  # 10 passes of half of the rows
    assert [len(rows) for rows in passes[:2]] == [3 + 10, 4 + 10]
    assert count_train_rows(task, str(mixed[1].root)) == round(7 * 0.5 + 5 * 2)


def test_a_shard_whose_files_have_a_weight_of_0_adds_no_rows(mixed, tmp_path, monkeypatch):
    split = mixed[2].train_split
    monkeypatch.setattr(store_files, "SHARD_TOKENS", 4)
    assert len(split.split_shards()) > 3
    table = ExampleTables(tmp_path, split, 0, 1).get_table(MixedFormat(TextGroups(2, 3), (0, 1)), 16, 0)
    assert table["document"].tolist() == [[document] * 2 for document in range(7, 12)]


def test_held_out_rows_are_read_once(mixed, tmp_path):
    task, _, store = mixed
    (batch,) = iter_eval_batches(store.eval_splits[0], store.vocab, build_phase(task), 4, 9, tmp_path)
    assert batch.example_mask.tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]


def test_batches_of_several_files_are_the_same_from_any_step_on(mixed, tmp_path):
    task, _, store = mixed
    phases = (build_phase(task),)
    streams = [BatchStream(store.train_split, store.vocab, phases, 3, 1, tmp_path / name) for name in "ab"]
    whole = [*streams[0].iter_batches(0, 12)]
    for step, batch in enumerate(streams[1].iter_batches(7, 12), start=7):
        for name, array in batch.get_arrays().items():
            if name != "labels":
                np.testing.assert_array_equal(array, getattr(whole[step], name))
        np.testing.assert_array_equal(batch.labels["teacher_vector"], whole[step].labels["teacher_vector"])


def test_the_store_and_the_fingerprint_cover_all_files_and_weights(mixed, tmp_path):
    task, data, _ = mixed
    names = ("a.jsonl", "b.jsonl", "dev.jsonl", "sts.tsv")
    for name in names:
        (tmp_path / name).write_bytes((Path(data.root) / name).read_bytes())
    moved = replace(data, root=str(tmp_path))
    keys = [compute_store_key(data), compute_store_key(moved)]
    write_lines(tmp_path / "b.jsonl", make_rows("b.jsonl", 21))
    keys.append(compute_store_key(moved))
    assert keys[0] == keys[1] != keys[2]
    elsewhere = tuple((split, str(Path(data.root) / name)) for split, name in task.files)
    assert compute_store_key(replace(data, task=replace(task, files=elsewhere))) == keys[0]
    other = replace(task, sources=(("a.jsonl", 0.5), ("b.jsonl", 3.0)))
    contents = [fingerprint_content(build_phase(value)) for value in (task, other)]
    assert contents[0] != contents[1]
    assert from_json_value(to_json_value(data)) == data


def test_a_file_that_is_missing_and_a_limit_of_rows_are_refused(mixed, tmp_path):
    _, data, _ = mixed
    for name in ("a.jsonl", "dev.jsonl"):
        (tmp_path / name).write_bytes((Path(data.root) / name).read_bytes())
    with raises_naming(UserError, str(tmp_path), "lacks b.jsonl", "a.jsonl"):
        replace(data, root=str(tmp_path)).check_readable()
    with raises_naming(FileNotFoundError, "b.jsonl"):
        count_train_rows(data.task, str(tmp_path))
    with raises_naming(UserError, "max_train_examples=3", "sources"):
        replace(data, max_train_examples=3)


def test_weights_of_another_number_of_files_are_refused(mixed):
    task, data, _ = mixed
    train = dict(init_from=None, config=MODEL, tokenizer_path=data.tokenizer.path)
    experiment = build_finetuning("mixed", task, data.root, QUICK, 14, **train)
    assert experiment.num_steps == 4 and experiment.phases[0].seq_length == 2 * QUICK.max_seq_length
    phase = replace(experiment.phases[0], format=MixedFormat(TextGroups(), (1.0,)))
    with raises_naming(ExperimentError, "corpus_weights=(1.0,)", "2 items of data.task.sources"):
        replace(experiment, phases=(phase,))


# Vectors of a teacher


def test_the_first_text_of_a_row_has_the_vector_of_its_teacher(mixed, tmp_path):
    task, data, store = mixed
    rows = [*make_rows("a.jsonl", 0), *make_rows("b.jsonl", 20)]
    ids = store.tokenizer.encode_batch([row["text"] for row in rows])
    expected = {tuple(ids): row["vector"] or [0, 0, 0] for ids, row in zip(ids, rows, strict=True)}
    stream = BatchStream(store.train_split, store.vocab, (build_phase(task),), 0, 1, tmp_path)
    seen = set()
    for batch in stream.iter_batches(0, 12):
        vectors = batch.labels["teacher_vector"]
        assert vectors.shape == (4, 1, 3) and vectors.dtype == np.float32
        for tokens, is_first, vector in zip(batch.input_ids, batch.example_ids == 1, vectors[:, 0], strict=True):
            if text := tuple(tokens[is_first][1:-1].tolist()):
                assert vector.tolist() == expected[text]
                seen.add(text)
            else:
                assert not vector.any()  # of a row that is left out
    assert seen == set(expected)


def test_vectors_survive_padding_and_the_division_of_a_batch(mixed, tmp_path):
    task, _, store = mixed
    phase = build_phase(task)
    batches = [next(iter_eval_batches(split, store.vocab, phase, 4, 9, tmp_path)) for split in store.eval_splits]
    assert [split.name for split in store.eval_splits] == ["dev", "dev_sts"]
    vectors = [batch.labels["teacher_vector"] for batch in batches]
    assert sorted(vectors[0][:, 0].tolist()) == [[0, 0, 0]] * 3 + [[1, 2, 3]]
    assert vectors[1].shape == (4, 1, 3) and not vectors[1].any()  # scored rows have none
    divided = split_micro_batches(batches[0], 2)
    assert divided.labels["teacher_vector"].shape == (2, 2, 1, 3)
    np.testing.assert_array_equal(join_micro_batches(divided).labels["teacher_vector"], vectors[0])


def test_rows_without_a_teacher_have_no_such_label():
    assert TextGroups(3).label_fields == ("text_id", "group_id", "similarity")
    assert TextGroups(2, 5).label_fields == ("text_id", "group_id", "similarity", "teacher_vector")
    _, row_format = NLI.build_objective_and_format(MODEL.conventions, 0.1, False)
    assert row_format == TextGroups(3)


@pytest.mark.parametrize(
    ("vector", "given"),
    [
        ([1, 2], "a list of 2"),
        ([1, 2, "3"], "a list of 3"),
        ([1, 2, float("nan")], "a list of 3"),
        ([1, 2, 1e39], "a list of 3"),
        ([True, 2, 3], "a list of 3"),
        ("1 2 3", "'1 2 3'"),
    ],
)
def test_a_vector_of_another_size_or_of_no_numbers_is_a_bad_row(tmp_path, vector, given):
    write_lines(tmp_path / "train.jsonl", [{"text": "a", "vector": vector}])
    with raises_naming(RowError, "train.jsonl:1: vector ", "vector_size=3", f"it is {given}"):
        read_rows(VECTORS, tmp_path)
    write_lines(tmp_path / "train.jsonl", [{"text": "a"}])
    with raises_naming(RowError, "no column 'vector'"):
        read_rows(VECTORS, tmp_path)


def test_vectors_are_read_as_predict_writes_them(tmp_path, capsys):
    vectors = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    for text, vector in zip("ab", vectors, strict=True):
        print_prediction("embed", text, {"vector": vector}, as_json=True)
    (tmp_path / "train.jsonl").write_text(capsys.readouterr().out, encoding="utf-8")
    write_vectors(str(tmp_path / "train.parquet"), list(zip("ab", vectors, strict=True)), [2], 3)
    for name in ("train.jsonl", "train.parquet"):
        reader = RowReader("skip")  # the third text of the Parquet file could not be predicted
        rows = read_rows(replace(VECTORS, files=(("train", name),)), tmp_path, reader)
        assert [row.texts for row in rows] == [("a",), ("b",)]
        np.testing.assert_allclose([row.target[2] for row in rows], vectors, rtol=0, atol=1e-6)
        assert len(reader.skipped_rows) == (name == "train.parquet")
