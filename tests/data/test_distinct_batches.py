"""Batches without two rows of an equal text: on random tables, and where there are too many equal texts."""

from collections import Counter

import numpy as np
import pytest

from encoders.data.distinct_batches import LEFT_OUT, count_earlier_equal_texts, separate_equal_texts
from encoders.data.example_table import build_empty_table


def make_table(texts):
    """Rows of the texts of these numbers; 0 is no text."""
    table = build_empty_table(*np.shape(texts))
    table["label"], table["a_end"] = texts, np.array(texts) > 0
    return table


def has_equal_texts(batch, table):
    texts = [set(table["label"][row][:2].tolist()) - {0} for row in batch.tolist() if row != LEFT_OUT]
    return max(Counter(text for row in texts for text in row).values()) > 1


@pytest.mark.parametrize("seed", range(20))
def test_no_batch_holds_an_equal_text_twice_and_no_row_is_lost(seed):
    rng = np.random.default_rng(seed)
    texts = np.stack([rng.integers(1, 60, 64), rng.integers(0, 60, 64), rng.integers(1, 9, 64)], 1)
    texts[:5, 1] = texts[:5, 0]  # texts that are their own positive
    table, batches = make_table(texts), rng.permutation(64).reshape(16, 4)
    separated = separate_equal_texts(batches, table, num_texts=3)
    assert any(has_equal_texts(batch, table) for batch in batches)
    assert not any(has_equal_texts(batch, table) for batch in separated)
    assert sorted(separated.ravel()) == list(range(64))


def test_rows_that_no_batch_can_take_are_left_out():
    table = make_table([[1, 2], [1, 3], [1, 4], [5, 6], [7, 8], [9, 10]])
    separated = separate_equal_texts(np.array([[0, 1, 2], [3, 4, 5]]), table, num_texts=2)
    assert not any(has_equal_texts(batch, table) for batch in separated)
    assert (separated == LEFT_OUT).sum() == 1 and {3, 4, 5} <= set(separated.ravel())


def test_batches_of_different_texts_stay_as_they_are():
    batches, table = np.array([[2, 0], [3, 1]]), make_table([[1, 2], [3, 4], [5, 6], [7, 7]])
    np.testing.assert_array_equal(separate_equal_texts(batches, table, num_texts=2), batches)


def test_every_group_of_a_row_is_separated_by_its_first_two_texts():
    rows = [[1, 2, 9, 3, 4, 9], [5, 6, 9, 4, 7, 9], [10, 11, 9, 12, 13, 9], [14, 15, 1, 0, 0, 0]]
    table, together = make_table(rows), np.array([[0, 1], [2, 3]])
    separated = separate_equal_texts(together, table, num_texts=3)
    assert sorted(separated.ravel()) == [0, 1, 2, 3] and {0, 1} not in [set(batch) for batch in separated.tolist()]
    np.testing.assert_array_equal(separate_equal_texts(together, table, num_texts=6), together)


def test_groups_of_one_number_share_no_first_or_second_text():
    numbers = count_earlier_equal_texts(make_table([[1, 2, 7], [2, 3, 7], [4, 5, 1], [3, 4, 0], [6, 0, 0], [2, 2, 0]]))
    assert numbers.tolist() == [0, 1, 0, 2, 0, 2]
