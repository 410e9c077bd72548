import numpy as np
import pytest

from encoders.data.example_table import count_row_tokens
from encoders.data.formats import SentencePairs
from encoders.data.store import Split
from tests.refusals import raises_naming
from tests.texts import made_up

LENGTH = 32


@pytest.fixture(scope="module")
def split():
    """Documents whose sentences have as many tokens as words; one long sentence."""
    sizes = [[len(sentence.split()) for sentence in document] for document in made_up(200)]
    sizes[5][1] = 50
    for document in sizes:
        document[-1] += 1  # the separator
    sentences = np.concatenate([[0], np.cumsum([size for document in sizes for size in document])])
    documents = np.concatenate([[0], np.cumsum([len(document) for document in sizes])])
    return Split("train", np.arange(sentences[-1]) % 1000, sentences, documents)


def starts(split):
    """Where sentences begin, and the document of each."""
    owner = np.repeat(np.arange(split.num_documents), np.diff(split.document_offsets))
    return {int(start): int(document) for start, document in zip(split.sentence_offsets[:-1], owner, strict=True)}


def test_a_pair_is_two_sentences_and_the_second_is_the_next_or_one_of_another_document(split):
    known, table = starts(split), SentencePairs().build_example_table(split, range(split.num_documents), LENGTH, 0, 0)
    ends = {int(end) for end in split.sentence_offsets} | {
        int(end) - 1 for end in split.sentence_offsets[split.document_offsets[1:]]
    }
    whole = table[count_row_tokens(table) < LENGTH]
    assert len(whole) > 0.9 * len(table)
    for a, a_end, b, b_end, label, document in whole.tolist():
        assert known[a] == document and b in known and a_end in ends and b_end in ends
        assert (b == a_end) == (label == 0)
        assert (known[a] != known[b]) == (label == 1)


def test_half_of_the_pairs_are_random_and_their_lengths_tell_nothing(split):
    tables = [
        SentencePairs().build_example_table(split, range(split.num_documents), LENGTH, 0, number)
        for number in range(10)
    ]
    table = np.concatenate(tables)
    share = table["label"].mean()
    assert abs(share - 0.5) < 4 * (0.25 / len(table)) ** 0.5
    sizes = table["b_end"] - table["b_start"]
    apart = sizes[table["label"] == 1].mean() - sizes[table["label"] == 0].mean()
    assert abs(apart) < 4 * sizes.std() * (4 / len(table)) ** 0.5  # four standard errors of a difference of means


def test_no_pair_is_longer_than_its_row_and_no_sentence_is_read_twice(split):
    for number in range(4):
        table = SentencePairs("swapped").build_example_table(split, range(split.num_documents), LENGTH, 0, number)
        starts = np.concatenate([table["a_start"], table["b_start"]])
        assert count_row_tokens(table).max() == LENGTH and len(np.unique(starts)) == 2 * len(table)


def test_another_pass_may_pair_a_sentence_with_the_one_before_it(split):
    first = [
        min(SentencePairs("swapped").build_example_table(split, range(1), LENGTH, 0, number)[0].tolist()[:4:2])
        for number in range(20)
    ]
    assert set(first) == {split.sentence_offsets[0], split.sentence_offsets[1]}


def test_the_second_sentence_is_named(split):
    assert SentencePairs().label_fields == ("next_sentence",) and SentencePairs("swapped").label_fields == (
        "sentence_order",
    )
    with raises_naming(ValueError, "negatives='next'", "'random'", "'swapped'"):
        SentencePairs("next")
