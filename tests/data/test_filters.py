"""What filters leave out of a corpus: copies, boilerplate, short texts."""

from dataclasses import replace

import pytest

from encoders.data.filters import CorpusFilters, compute_letter_fraction
from encoders.data.prepare import prepare_store
from encoders.data.spec import PretrainingData
from encoders.text.tokenization import TokenizerSpec
from tests.data.test_work_units import sentences
from tests.refusals import raises_naming
from tests.texts import written


@pytest.fixture
def repeating(tmp_path):
    lines = [
        ["Tan man ran.", "All rights are ours."],
        ["Pen den ten."],
        ["Tan man ran.", "Sun bun run.", "All rights are ours."],
        ["Pen den ten."],
        ["12 34 56 78 90 ..."],
        ["All rights are ours.", "No."],
        ["All rights are ours."],
    ]
    path = written(tmp_path / "r.txt", lines)
    return PretrainingData(
        (str(path),), TokenizerSpec(vocab_size=300), "lines", heldout_fraction=0.01, store_dir=str(tmp_path / "s")
    )


def filter_corpus(data, **filters):
    """Return the documents of a store made with these filters, and the counts of what they left out."""
    store = prepare_store(replace(data, filters=CorpusFilters(**filters)))
    return [text.replace(" .", ".") for text in sentences(store)], store.metadata["filtered"]


def test_of_equal_documents_the_first_one_stays(repeating):
    texts, counts = filter_corpus(repeating, deduplicate="documents")
    assert counts == {"documents read": 7, "duplicate documents": 1}
    assert sum("pen den ten" in text for text in texts) == 1 and len(texts) == 6


def test_of_equal_paragraphs_the_first_one_stays(repeating):
    texts, counts = filter_corpus(repeating, deduplicate="paragraphs")
    assert counts == {"documents read": 7, "duplicate paragraphs": 5, "documents without a paragraph left": 2}
    assert sorted(texts)[1:] == ["no.", "pen den ten.", "sun bun run.", "tan man ran. all rights are ours."]


def test_boilerplate_goes_wherever_it_stands(repeating):
    texts, counts = filter_corpus(repeating, max_paragraph_repeats=3)
    assert counts["boilerplate paragraphs"] == 4 and counts["documents without a paragraph left"] == 1
    assert not any("rights" in text for text in texts) and sum("tan man" in text for text in texts) == 2


def test_short_documents_and_those_with_few_letters_go(repeating):
    texts, counts = filter_corpus(repeating, min_characters=18, min_letter_fraction=0.5)
    assert counts == {"documents read": 7, "short documents": 4}
    texts, counts = filter_corpus(repeating, min_letter_fraction=0.5)
    assert counts == {"documents read": 7, "documents with few letters": 1} and len(texts) == 6


def test_what_is_left_out_for_its_length_is_no_first_copy(repeating):
    texts, counts = filter_corpus(repeating, deduplicate="paragraphs", min_characters=18)
    assert counts["short documents"] == 4 and counts["duplicate paragraphs"] == 3
    assert sum("all rights" in text for text in texts) == 1


def test_letters_are_those_of_every_script():
    for text in ("नमस्ते दुनिया", "日本語", "é e\u0301"):
        assert compute_letter_fraction([text]) == 1.0
    assert compute_letter_fraction(["ab 12"]) == 0.5 and compute_letter_fraction(["..."]) == 0.0


@pytest.mark.parametrize(
    "field, value, accepted",
    [
        ("deduplicate", "lines", ["'kept'", "'documents'", "'paragraphs'"]),
        ("max_paragraph_repeats", 0, ["1", "None"]),
        ("min_characters", -1, ["0"]),
        ("min_letter_fraction", 1.5, ["0 to 1"]),
    ],
)
def test_filters_that_cannot_be_are_refused_by_name(field, value, accepted):
    with raises_naming(ValueError, f"filters.{field}={value!r} ", *accepted):
        CorpusFilters(**{field: value})
