"""Rows of full sentences, as RoBERTa has them."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.data.example_table import measure_segments
from encoders.data.formats import FullSentences
from tests.data.test_formats import documents, owners, prose, split_of, whole


def test_full_sentences_by_hand():
    split = split_of([[3, 4], [5, 2, 2], [9]])  # starts 0 3 | 8 13 15 | 18, the separators at 7, 17 and 27
    rows = lambda length, **kind: whole(FullSentences(**kind), split, length)[["a_start", "a_end"]].tolist()
    assert rows(10) == [(0, 7), (8, 15), (15, 17), (18, 26), (26, 27)]
    assert rows(15) == [(0, 13), (13, 17), (18, 27)]
    assert rows(30) == [(0, 27)]
    assert rows(15, within_document=True) == rows(30, within_document=True) == [(0, 7), (8, 17), (18, 27)]


@given(documents, st.integers(8, 60), st.booleans())
@settings(deadline=None, derandomize=True)
def test_full_sentences_hold_every_token_once_and_only_separators_at_row_ends_are_left_out(lengths, length, within):
    split = split_of(lengths)
    table = whole(FullSentences(within), split, length)
    separators = set((split.sentence_offsets[split.document_offsets[1:]] - 1).tolist())
    used = [token for a, a_end in table[["a_start", "a_end"]].tolist() for token in range(a, a_end)]
    assert used == sorted(set(used)) and set(range(len(split.tokens))) - set(used) <= separators
    size_a, size_b = measure_segments(table)
    assert 1 <= size_a.min() and size_a.max() <= length - 2 and not size_b.any() and not table["label"].any()
    assert (table["document"] == owners(split, table["a_start"])).all()
    starts = set(split.sentence_offsets.tolist())
    for a, a_end in table[["a_start", "a_end"]].tolist():
        assert a not in separators and a_end - 1 not in separators
        sentence = np.searchsorted(split.sentence_offsets, a, side="right") - 1
        long = split.sentence_offsets[sentence + 1] - split.sentence_offsets[sentence] > length - 2
        assert a in starts or long
        if within:
            assert owners(split, a) == owners(split, a_end - 1)


def test_a_row_of_full_sentences_takes_as_many_as_fit():
    assert whole(FullSentences(), split_of([[4], [4], [4]]), 16)[["a_start", "a_end"]].tolist() == [(0, 14)]
    split = split_of(prose(50, words=(1, 20)))
    last = set(split.sentence_offsets[split.document_offsets[1:]].tolist())
    for within in (False, True):
        table = whole(FullSentences(within), split, 42)
        for (a, _), (following, _) in pairwise(table[["a_start", "a_end"]].tolist()):
            if not (within and owners(split, a) != owners(split, following)):
                end = int(split.sentence_offsets[np.searchsorted(split.sentence_offsets, following) + 1])
                assert end - (end in last) - a > 40  # a separator at the end of a row is the row's own


def test_a_sentence_longer_than_a_row_is_cut_into_full_rows():
    split = split_of([[2, 25, 3], [4]])  # starts 0 2 27 | 31
    rows = whole(FullSentences(), split, 12)[["a_start", "a_end"]].tolist()
    assert rows == [(0, 2), (2, 12), (12, 22), (22, 30), (31, 35)]


def test_a_row_crosses_documents_with_a_separator_between_them():
    split = split_of([[4], [4], [4]])
    assert whole(FullSentences(), split, 17)[["a_start", "a_end"]].tolist() == [(0, 14)]
    assert whole(FullSentences(), split, 12)[["a_start", "a_end"]].tolist() == [(0, 9), (10, 14)]
