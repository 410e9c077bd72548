import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.data import stream
from encoders.data.stream import permute_indices


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 64, 65, 1000, 65_537])
def test_a_shuffle_moves_every_number_to_a_place_of_its_own(size):
    for key in (0, (1, 2), (2, 1)):
        assert np.array_equal(np.sort(permute_indices(np.arange(size), size, key)), np.arange(size))


@given(st.integers(1, 5000), st.integers(0, 2**31 - 1))
@settings(deadline=None, derandomize=True, max_examples=30)
def test_a_part_of_a_shuffle_is_that_part_of_the_whole(size, key):
    whole = permute_indices(np.arange(size), size, key)
    assert np.array_equal(np.sort(whole), np.arange(size))
    assert np.array_equal(permute_indices(np.arange(size // 2, size), size, key), whole[size // 2 :])


def test_a_shuffle_depends_on_its_key_and_looks_random():
    index = np.arange(1000)
    shuffles = [permute_indices(index, 1000, (seed, epoch)) for seed in range(5) for epoch in range(5)]
    assert len({x.tobytes() for x in shuffles}) == 25
    for x, y in zip(shuffles, shuffles[1:], strict=False):
        assert abs(np.corrcoef(index, x)[0, 1]) < 0.2 and abs(np.corrcoef(x, y)[0, 1]) < 0.2  # six times 1/√1000
        assert (x == y).sum() < 8 and (np.diff(x) == 1).sum() < 12  # one on average
    places = np.array([permute_indices(np.array([7]), 1000, key)[0] for key in range(400)])
    assert abs(places.mean() - 499.5) < 4 * 1000 / math.sqrt(12 * 400)


def test_a_shuffle_of_more_than_four_milliard_numbers_stays_one():
    index = np.arange(10_000) * 400_000
    places = permute_indices(index, 5_000_000_000, 1)
    assert len(set(places.tolist())) == 10_000 and 0 <= places.min() and 4_900_000_000 < places.max() < 5_000_000_000


def test_a_shuffle_is_the_same_everywhere():
    # Must never change: runs could not be continued.
    assert permute_indices(np.arange(8), 8, (1, 2)).tolist() == [2, 0, 3, 7, 4, 6, 1, 5]


def test_numbers_that_follow_one_another_are_shuffled_as_each_alone(monkeypatch):
    monkeypatch.setattr(stream, "SHUFFLE_BLOCK_ROWS", 32)
    for size, key in ((1000, 1), (33, 2), (5, 3)):
        whole = permute_indices(np.arange(size), size, key)
        for start, stop in ((0, 1), (0, size), (size // 3, size // 2 + 1), (size - 1, size)):
            assert np.array_equal(stream.permute_index_range(np.arange(start, stop), size, key), whole[start:stop])
    stream.permute_block.cache_clear()
