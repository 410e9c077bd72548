"""Several texts in a row have the vectors that they have alone."""

import jax
import numpy as np
import pytest

from encoders.inference.packed_texts import MIN_BATCHES, build_packed_texts, iter_packed_batches
from encoders.inference.predictor import Predictor
from encoders.inference.text_batch import TextBatch
from encoders.model.heads import embed_examples
from tests.inference.small_runs import BERT, LENGTHS, TEXTS
from tests.networks import make_vocab

VOCAB = make_vocab(50)
PAD, CLS, SEP = VOCAB.pad_id, VOCAB.cls_id, VOCAB.sep_id


def test_a_packed_row_of_a_pair_and_a_text():
    packed = build_packed_texts([[[[11, 12], [13]], [[14]]], []], (2, 11, 3), VOCAB, num_separators=1)
    batch = packed.to_batch()
    rows = {
        "input_ids": [CLS, 11, 12, SEP, 13, SEP, CLS, 14, SEP, PAD, PAD],
        "example_ids": [1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0],
        "token_type_ids": [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0],
        "position_ids": [0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 0],
        "example_mask": [1, 1, 0],
    }
    for name, row in rows.items():
        empty = [PAD if name == "input_ids" else 0] * len(row)
        np.testing.assert_array_equal(getattr(batch, name), [row, empty], err_msg=name)
    np.testing.assert_array_equal(batch.cls_positions[0, :2], [0, 6])


def test_the_second_of_two_separators_belongs_to_the_second_text():
    batch = build_packed_texts([[[[11], [12]], [[13], [14]]]], (1, 12, 2), VOCAB, num_separators=2).to_batch()
    np.testing.assert_array_equal(batch.input_ids[0], [CLS, 11, SEP, SEP, 12, SEP, CLS, 13, SEP, SEP, 14, SEP])
    np.testing.assert_array_equal(batch.token_type_ids[0], [0, 0, 0, 1, 1, 1] * 2)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_each_text_of_a_row_is_pooled_by_itself(pooling):
    hidden = jax.random.normal(jax.random.key(0), (1, 9, 4))
    batch = build_packed_texts([[[[11, 12]], [[13]]]], (1, 9, 2), VOCAB, 1).to_batch()
    places = {"mean": (slice(0, 4), slice(4, 7)), "cls": (slice(0, 1), slice(4, 5)), "last": (slice(3, 4), slice(6, 7))}
    expected = [hidden[0, place].mean(0) for place in places[pooling]]
    np.testing.assert_allclose(embed_examples(BERT, None, hidden, batch, pooling)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("num_texts, num_packed", [(4 * MIN_BATCHES - 1, 0), (4 * MIN_BATCHES, 4 * MIN_BATCHES)])
def test_many_short_texts_are_packed_and_long_ones_are_not(num_texts, num_packed):
    rng = np.random.default_rng(0)
    rows = [[[7] * int(size)] for size in (*rng.integers(1, 62, num_texts), 80, 90)]
    batches = list(iter_packed_batches(rows, (16, 32, 64, 128), (1, 4), VOCAB, 1))
    packed = [(indices, batch) for indices, batch in batches if not isinstance(batch, TextBatch)]
    assert sorted(index for indices, _ in batches for index in indices) == list(range(len(rows)))
    assert sum(len(indices) for indices, _ in packed) == num_packed
    assert {batch.input_ids.shape for _, batch in packed} <= {(1, 64), (2, 64)}
    for indices, batch in batches:
        sizes = batch.lengths[batch.lengths > 0]
        np.testing.assert_array_equal(sizes, [len(rows[index][0]) + 2 for index in indices])


def test_many_texts_have_the_vectors_of_single_ones_in_order(features):
    packing = Predictor(features.run, features.params, batch_size=2, lengths=LENGTHS)
    words = " ".join(TEXTS).split()
    texts = [" ".join(words[i : i + 1 + i % 7]) for i in range(24)] + [(TEXTS[0][:20], "who here")]
    vectors = list(packing.embed(texts, "last"))
    (programs,) = packing.programs.values()
    assert (1, 64, 8) in programs
    singles = [next(features.embed([text], "last")) for text in texts]
    np.testing.assert_allclose(vectors, singles, atol=2e-5)
