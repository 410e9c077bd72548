"""SQuAD's files, the windows a long text is read through, and where the tokens of an answer stand in its text."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.data.example_table import rows_to_table
from encoders.data.labelled import EncodedExample, Example, LabelledData
from encoders.data.prepare import prepare_store
from encoders.data.row_files import RowError, RowReader
from encoders.data.store import Split
from encoders.data.stream import assemble_rows
from encoders.tasks.answers import decode_predictions
from encoders.tasks.squad import ContextWindows, QATask, parse_squad_question
from encoders.text.tokenization import TokenizerSpec, VocabInfo, train_tokenizer

several = lambda count: settings(deadline=None, derandomize=True, max_examples=count)
CLS, SEP = 2, 3
FACTS = VocabInfo(
    vocab_size=200,
    pad_id=1,
    unk_id=0,
    cls_id=CLS,
    sep_id=SEP,
    mask_id=4,
    special_ids=(0, 1, 2, 3, 4),
    continuation_bits=bytes(25),
)
TASK, TEXT = QATask(), "The fox ran. It ran."
RAN = {"text": "ran", "answer_start": 16}  # the second one


def question(number: str, text: str, *answers: dict, **more) -> dict:
    return {"id": number, "question": text, "answers": list(answers), **more}


WHO = question("q1", "Who ran?", {"text": "fox", "answer_start": 4}, {"text": "The fox", "answer_start": 0})
WHERE = question("q2", "Where did it run to?", is_impossible=True, plausible_answers=[RAN])
WHAT = question("q3", "What next?", RAN, is_impossible=False)


@pytest.fixture
def file(tmp_path):
    """Writes questions on a text as one of SQuAD's files, second of its paragraphs, and hands back the folder."""

    def new(*questions, split="train", text=TEXT):
        paragraphs = [{"context": "A hen.", "qas": []}, {"context": text, "qas": list(questions)}]
        content = {"version": "1.1", "data": [{"title": "Foxes", "paragraphs": paragraphs}]}
        (tmp_path / f"{split}-v1.1.json").write_text(json.dumps(content))
        return str(tmp_path)

    return new


def test_a_question_has_its_context_and_the_position_of_its_first_answer(file):
    root = file(WHO, WHERE, WHAT)
    who, where, what = TASK.read_examples(root, "train", RowReader())
    assert who.texts == ("Who ran?", TEXT) and who.target == (4, 7) and who.metadata["context"] == TEXT
    assert (who.metadata["id"], who.metadata["answers"]) == ("q1", ["fox", "The fox"])
    assert where.target is None and (where.metadata["id"], where.metadata["answers"]) == ("q2", [])
    assert what.target == (16, 19) and what.metadata["answers"] == ["ran"]
    assert where.location == f"{root}/train-v1.1.json: Foxes, paragraph 1, question q2"


def test_rows_of_tensorflow_datasets_have_lists_of_answers():
    row = {"id": "q", "question": "Who?", "context": TEXT}
    answers = {"text": ["fox", "The fox"], "answer_start": np.array([4, 0], np.int32)}
    made = parse_squad_question("tfds:x@train", row | {"answers": answers})
    assert (made.location, made.target, made.metadata["answers"]) == (
        "tfds:x@train, question q",
        (4, 7),
        answers["text"],
    )
    assert (
        parse_squad_question("tfds", row | {"answers": {"text": [], "answer_start": []}, "is_impossible": True}).target
        is None
    )


BAD = [
    (question("bad", "Who?", RAN | {"answer_start": 5}), "answer_start=5 is 'ox ' and not the answer 'ran'"),
    (question("bad", "Who?", RAN, RAN | {"answer_start": 99}), "answer_start=99 is '' and not the answer 'ran'"),
    (
        question("bad", "Who?", {"text": "The fox", "answer_start": False}),
        "answer_start=False is None and not the answer",
    ),
    (question("bad", "Who?", {"text": "", "answer_start": 2}), "the answer ''"),
    (question("bad", "Who?", {"text": "fox"}), "answer_start=None is None and not the answer 'fox'"),
    (question("bad", " ", RAN), "question "),
    (question("bad", "Who \ud83d?", RAN), "question "),  # half a character
    (question("bad", "Who?", is_impossible=False), "is_impossible"),
]


@pytest.mark.parametrize("row, wrong", BAD)
def test_a_bad_question_is_named_with_its_file_and_position(file, row, wrong):
    with pytest.raises(RowError) as caught:
        list(TASK.read_examples(file(WHO, row), "train", RowReader()))
    assert "train-v1.1.json: Foxes, paragraph 1, question bad: " in str(caught.value) and wrong in str(caught.value)


def test_bad_questions_may_be_skipped_and_are_counted(file):
    reader = RowReader("skip")
    rows = list(TASK.read_examples(file(WHO, *(row for row, _ in BAD), WHAT), "train", reader))
    assert [row.metadata["id"] for row in rows] == ["q1", "q3"] and len(reader.skipped_rows) == len(BAD)
    assert all(wrong in line for (_, wrong), line in zip(BAD, reader.skipped_rows, strict=True))
    assert not list(TASK.read_examples(file(WHO, text=None), "train", reader))
    assert reader.skipped_rows[-1].partition("Foxes, paragraph 1, question q1: ")[2].startswith("context ")


@pytest.mark.parametrize(
    "change",
    [
        {"answers": {"text": ["fox"], "answer_start": [4]}},
        {"id": 12345},
        {"answers": None, "is_impossible": True},
        {"is_impossible": False},
    ],
)
def test_variants_of_a_question_are_read(file, change):
    (row,) = TASK.read_examples(file(WHO | change), "train", RowReader())
    assert row.target == (None if change.get("is_impossible") else (4, 7))
    assert row.metadata["id"] == str(change.get("id", "q1"))


@pytest.mark.parametrize(
    "answers, target", [({"text": ["fox"], "answer_start": [4]}, (4, 7)), ([], None), (None, None)]
)
def test_rows_of_hugging_face_and_a_byte_order_mark_are_read(tmp_path, answers, target):
    row = {"id": "q", "title": "Foxes", "context": TEXT, "question": "Who?", "answers": answers}
    (tmp_path / "train-v1.1.json").write_text(json.dumps({"data": [row]}), encoding="utf-8-sig")
    (found,) = TASK.read_examples(str(tmp_path), "train", RowReader())
    assert (found.texts, found.target, found.metadata["id"]) == (("Who?", TEXT), target, "q")


@pytest.mark.parametrize(
    "article, values",
    [
        ({"paragraphs": None}, ("Hens", "paragraphs=None")),
        ({"paragraphs": [3]}, ("Hens", "paragraphs=[3]")),
        ({"paragraphs": [{"context": "A hen.", "qas": None}]}, ("Hens, paragraph 0", "qas=None")),
        ({"paragraphs": [{"context": "A hen.", "qas": [[]]}]}, ("Hens, paragraph 0", "qas=[[]]")),
        ({"paragraphs": [{"context": "A hen.", "qas": [WHO | {"answers": 7}]}]}, ("question q1", "answers=7")),
        ({"paragraphs": [{"context": "A hen.", "qas": [WHO | {"answers": [7]}]}]}, ("question q1", "answers=[7]")),
        ({"paragraphs": [{"context": TEXT, "qas": [WHO | {"is_impossible": "False"}]}]}, ("is_impossible='False'",)),
        ({"paragraphs": [{"context": TEXT, "qas": [WHAT | {"answers": [RAN | {"answer_start": -4}]}]}]}, ("=-4",)),
        ({"paragraphs": [{"context": TEXT, "qas": [WHO | {"id": None}]}]}, ("id ",)),
    ],
)
def test_a_part_of_another_shape_is_named_and_can_be_skipped(tmp_path, article, values):
    good = {"title": "Foxes", "paragraphs": [{"context": TEXT, "qas": [WHO]}]}
    content = {"data": [{"title": "Hens"} | article, good]}
    (tmp_path / "train-v1.1.json").write_text(json.dumps(content))
    with pytest.raises(RowError) as caught:
        list(TASK.read_examples(str(tmp_path), "train", RowReader()))
    assert all(value in str(caught.value) for value in ("train-v1.1.json", *values))
    reader = RowReader("skip")
    assert [row.metadata["id"] for row in TASK.read_examples(str(tmp_path), "train", reader)] == ["q1"]
    assert reader.skipped_rows == [str(caught.value)]


@pytest.mark.parametrize(
    "content", [b"not", b"[" * 100_000, b"[]", b'{"a": 1}', b'{"data": 3}', b'{"data": [3]}', b'{"data": "\xff"}']
)
def test_a_file_of_another_layout_is_named_and_never_skipped(tmp_path, content):
    (tmp_path / "dev-v1.1.json").write_bytes(content)
    with pytest.raises(RowError, match="dev-v1.1.json: .*" + ("UTF-8 .*10" if b"\xff" in content else "JSON")):
        list(TASK.read_examples(str(tmp_path), "dev", RowReader("skip")))


def test_a_question_that_does_not_fit_its_tokens_is_named(file):
    (row,) = TASK.read_examples(file(WHO), "train", RowReader())
    encoded = EncodedExample([[5, 6, 7], [8, 9]], [[(0, 3), (4, 7), (7, 8)], [(0, 3), (4, 7)]])
    assert QATask(reject_questions_above=3).encode_labels(row, encoded)["answer"].tolist() == [[1, 1]]
    with pytest.raises(RowError, match="question q1: .* 3 tokens.*reject_questions_above=2"):
        QATask(reject_questions_above=2).encode_labels(row, encoded)
    with pytest.raises(RowError, match="question q1: .*character 4"):
        TASK.encode_labels(row, EncodedExample([[5], [8, 9]], [[(0, 3)], [(0, 4), (8, 11)]]))


def test_a_store_has_the_answer_in_tokens_and_the_place_of_every_token(file, tmp_path):
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] who what next ? . the fox ran it"
    (tmp_path / "vocab.txt").write_text(words.replace(" ", "\n"))
    root = file(WHO, WHERE, BAD[0][0], split="dev")
    file(WHO, BAD[0][0], WHAT, BAD[4][0], WHERE)
    data = LabelledData(
        QATask(reject_questions_above=4), root, TokenizerSpec(path=f"{root}/vocab.txt"), "skip", f"{root}/stores"
    )
    store = prepare_store(data)
    assert store.metadata["skipped"] == {"train": 3, "dev": 2}  # and "Where did it run to?" has 6 tokens
    assert [note["id"] for note in store.train_split.row_metadata] == ["q1", "q3"]
    assert store.train_split.label_columns["answer"].tolist() == [[1, 1], [5, 5]]  # the fox ran . it ran .
    assert store.train_split.tokens.tolist()[:11] == [5, 12, 8, 10, 11, 12, 9, 13, 12, 9, 3]
    text = [(0, 3), (4, 7), (8, 11), (11, 12), (13, 15), (16, 19), (19, 20), (0, 0)]
    places = [(0, 3), (4, 7), (7, 8), *text, (0, 4), (5, 9), (9, 10), *text]
    assert [tuple(place) for place in store.train_split.label_columns["places"].tolist()] == places


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_a_question_without_tokens_is_a_bad_row(kind, file, tmp_path):
    blank = chr(0) if kind == "bpe" else "\u200b"  # bytes have a token each
    tokenizer = train_tokenizer(TokenizerSpec(kind, 400), [[f"who what the fox ran it . ? {TEXT}"]] * 4)
    (ids,), (offsets,) = tokenizer.encode_with_offsets([blank])
    assert len(ids) == len(offsets)
    tokenizer.save(tmp_path / "tokenizer.json")
    root = file(question("blank", "\u200b", RAN), WHO)
    file(WHAT, split="dev")
    data = LabelledData(TASK, root, TokenizerSpec(path=f"{root}/tokenizer.json"), "skip", f"{root}/stores")
    skipped = prepare_store(data).metadata["skipped"]
    assert skipped == {"train": int(not tokenizer.encode_batch(["\u200b"])[0]), "dev": 0}


# Windows


def split_of(*rows) -> Split:
    """Questions of so many tokens on texts of so many, answered by some of these (or by none, -1 and -1)."""
    sizes = np.array([[question, text + 1] for question, text, _ in rows])
    ends = np.cumsum(sizes, axis=None)
    tokens = np.arange(100, 100 + ends[-1])
    tokens[ends[1::2] - 1] = SEP
    columns = {"answer": np.array([answer for *_, answer in rows])}
    notes = tuple({"place": f"question {n}"} for n in range(len(rows)))
    return Split(
        "train", tokens, np.array([0, *ends]), np.arange(0, 2 * len(rows) + 1, 2), columns, in_memory_metadata=notes
    )


def table(form: ContextWindows, split: Split, length: int) -> np.ndarray:
    return form.build_example_table(split, range(split.num_documents), length, 0, 0)


def test_windows_by_hand():
    """A second question of 3 tokens, cut to 2, and its text of 9 in rows of 10: 5 at a time, beginning 2 apart."""
    split = split_of((1, 2, (0, 0)), (3, 9, (4, 6)))  # tokens 100 | 101 102 SEP | 104 105 106 | 107 ... 115 SEP
    rows = table(ContextWindows(doc_stride=2, max_query_length=2), split, 10)
    assert rows.tolist() == [(0, 1, 1, 3, 0, 0), (4, 6, 7, 12, 0, 1), (4, 6, 9, 14, 0, 1), (4, 6, 11, 16, 0, 1)]
    fields = assemble_rows(split, rows, 10, FACTS, ContextWindows(doc_stride=2, max_query_length=2))
    assert fields.input_ids[2].tolist() == [CLS, 104, 105, SEP, 109, 110, 111, 112, 113, SEP]
    # The answer is 111 112 113: the first window of its text lacks two of these.
    assert [fields.labels[name].ravel().tolist() for name in ("first", "last")] == [[3, 0, 6, 4], [3, 0, 8, 6]]
    assert fields.labels["answerable"].ravel().tolist() == [1, 0, 1, 1]


sizes = st.tuples(st.integers(1, 7), st.integers(1, 40), st.integers(12, 20), st.integers(1, 12), st.integers(1, 2))


@given(sizes)
@several(100)
def test_windows_are_those_of_the_released_code(made):
    """`convert_examples_to_features` of google-research/bert, run_squad.py, with its `max_query_length` 5."""
    question, text, length, stride, between = made
    room, start_offset, doc_spans = length - min(question, 5) - 2 - between, 0, []
    while start_offset < text:
        size = min(text - start_offset, room)
        doc_spans.append((question + start_offset, question + start_offset + size))
        if start_offset + size == text:
            break
        start_offset += min(size, stride)
    rows = table(ContextWindows(stride, 5, between), split_of((question, text, (0, 0))), length).tolist()
    assert rows == [(0, min(question, 5), *span, 0, 0) for span in doc_spans]
    assert {token for _, _, a, b, *_ in rows for token in range(a, b)} == set(range(question, question + text))


@given(sizes, st.data(), st.booleans())
@several(150)
def test_first_and_last_mark_the_answer_in_windows_that_contain_it(made, data, packed):
    question, text, length, stride, between = made
    first = data.draw(st.integers(-1, text - 1))
    last = data.draw(st.integers(first, min(first + 4, text - 1))) if first >= 0 else -1
    split, form = split_of((2, 3, (1, 2)), (question, text, (first, last))), ContextWindows(stride, 5, between)
    begins = 106 + question  # 100 101 | 102 103 104 SEP | 106 ...
    answers = [[103, 104], list(range(begins + first, begins + last + 1)) if first >= 0 else []]
    rows = table(form, split, length)
    rows = np.stack([rows[:-1], rows[1:]], axis=1) if packed else rows[:, None]  # two windows in a row, or one
    fields = assemble_rows(split, rows, length * rows.shape[1], FACTS, form)
    for row, slot in np.ndindex(rows.shape[:2]):
        begin, end, start = (
            int(array[row, slot]) for array in (fields.labels["first"], fields.labels["last"], fields.cls_positions)
        )
        (_, _, a, b, _, document), tokens = rows[row, slot].tolist(), fields.input_ids[row].tolist()
        inside = bool(answers[document]) and set(answers[document]) <= set(range(100 + a, 100 + b))
        assert fields.labels["answerable"][row, slot] == inside and tokens[start] == CLS
        assert tokens[begin : end + 1] == (answers[document] if inside else [CLS])
        assert inside or begin == end == start


def test_invalid_window_settings_are_named():
    split = split_of((2, 9, (0, 0)), (5, 3, (0, 0)))
    assert len(table(ContextWindows(), split, 9)) == 3 + 3  # 4 tokens of the first text and 1 of the second at a time
    for length, between in ((8, 1), (9, 2)):
        with pytest.raises(RowError, match=f"question 1: its 5 .*rows of {length}; .*seq_length"):
            table(ContextWindows(num_separators=between), split, length)
    for name in ("doc_stride", "max_query_length"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            ContextWindows(**{name: 0})


# Places of tokens

LETTERS = "a Be rat , ( 3 `` é Ü e\u0301 a\u0302\u0323 ﬁ ½ İ ß 北 京 東 か\u3099 한 👍 👍🏽 👩‍👩‍👧 ❤️ 🇩🇪 ☃ Ж".split()
SPACES = [" ", " ", "  ", "\t", " \t\t ", "\u00a0", "\u3000"]
LEARNT = [[" ".join(LETTERS[:-1]), "".join(LETTERS[:-1]), "a rat Be 3 rats, 北京 東京 👍🏽👍🏽 (é)"]] * 4
NAMES = ["wordpiece", "bpe", "unigram"]
KINDS = pytest.mark.parametrize(
    "tokenizer", [train_tokenizer(TokenizerSpec(kind, 400), LEARNT) for kind in NAMES], ids=NAMES
)
parts = st.lists(st.sampled_from(LETTERS + SPACES), min_size=1, max_size=12).filter(lambda x: set(x) & set(LETTERS))


@KINDS
@given(parts.map("".join))
@several(100)
def test_token_offsets_rise_and_exclude_surrounding_white_space(tokenizer, text):
    ids, places = (x[0] for x in tokenizer.encode_with_offsets([text]))
    assert ids == tokenizer.encode_batch([text])[0] and len(places) == len(ids) > 0
    assert all(0 <= start <= end <= len(text) for start, end in places)
    starts, ends = zip(*places, strict=True)
    assert sorted(starts) == list(starts) and sorted(ends) == list(ends)
    assert all(text[start:end] == text[start:end].strip() for start, end in places)


@KINDS
@given(parts, st.data())
@several(150)
def test_the_tokens_of_an_answer_cover_it(tokenizer, pieces, data):
    """A part that begins and ends with a letter; between white space it comes back as it is."""
    letters = [n for n, piece in enumerate(pieces) if piece in LETTERS]
    a, b = sorted(data.draw(st.tuples(st.sampled_from(letters), st.sampled_from(letters))))
    text, start, end = "".join(pieces), len("".join(pieces[:a])), len("".join(pieces[: b + 1]))
    made = Example("here", ("a", text), (start, end), {"context": text})
    ids, places = tokenizer.encode_with_offsets(list(made.texts))
    columns = TASK.encode_labels(made, EncodedExample(ids, places))
    split = Split("dev", np.zeros(0), np.zeros(0), np.zeros(0), columns, in_memory_metadata=(made.metadata,))
    size_a, size_b = map(len, ids)
    window = rows_to_table([(0, size_a, size_a, size_a + size_b, 0, 0)])[:, None]
    first, last = columns["answer"].reshape(2, 1, 1, 1)
    said = {"first": first, "last": last, "score": np.ones((1, 1, 1)), "null": np.zeros((1, 1))}
    (answer,) = decode_predictions(said, window, split, max_answer_length=99)[0].answers
    assert answer.text == text[answer.start : answer.end]
    assert answer.start <= start and end <= answer.end
    if set(pieces[max(a - 1, 0) : a] + pieces[b + 1 : b + 2]) <= set(SPACES):
        assert answer.text == text[start:end]
