"""Exact search beside a stable sort of the whole product, at odd sizes, with ties and from memory-mapped files."""

import jax
import numpy as np
import pytest

from encoders.inference import vector_search
from encoders.inference.vector_search import VectorSearch, search_vectors
from encoders.utils.errors import UserError
from tests.refusals import raises_naming

RNG = np.random.default_rng(0)


def sort_whole_product(queries, corpus, top_k):
    product = queries @ corpus.T
    indices = np.argsort(-product, axis=1, kind="stable")[:, :top_k]
    return np.take_along_axis(product, indices, 1), indices


def draw_vectors(*shape):
    """Vectors of small whole numbers, whose products are exact and often equal, some of them -0."""
    return RNG.integers(-2, 3, shape).astype(np.float32) * np.float32(-1)


@pytest.mark.parametrize(
    "num_queries, num_vectors, top_k, corpus_block, query_block",
    [(7, 101, 9, 16, 4), (1, 3, 10, 8, 4), (5, 64, 64, 64, 2), (0, 5, 2, 8, 4), (3, 0, 2, 8, 4)],
)
def test_the_best_are_those_of_a_stable_sort(num_queries, num_vectors, top_k, corpus_block, query_block):
    queries, corpus = draw_vectors(num_queries, 3), draw_vectors(num_vectors, 3)
    scores, indices = search_vectors(queries, corpus, top_k, corpus_block, query_block)
    expected_scores, expected_indices = sort_whole_product(queries, corpus, top_k)
    assert scores.dtype == np.float32 and scores.shape == (num_queries, min(top_k, num_vectors))
    np.testing.assert_array_equal(scores, expected_scores)
    np.testing.assert_array_equal(indices, expected_indices)


def test_equal_vectors_are_in_the_order_of_the_corpus_wherever_they_are_in_a_block():
    corpus = RNG.standard_normal((101, 7)).astype(np.float32)
    corpus[::3] = corpus[0]
    scores, indices = search_vectors(corpus[:1], corpus, 34, corpus_block=16, query_block=4)
    np.testing.assert_array_equal(indices, [np.arange(0, 101, 3)])
    assert len(np.unique(scores)) == 1


def test_one_program_is_compiled_for_all_blocks_and_for_numbers_of_queries_up_to_a_power_of_two(monkeypatch):
    merge, traced = vector_search.merge_block.__wrapped__, []

    def record(*arguments):
        traced.append(arguments)
        return merge(*arguments)

    monkeypatch.setattr(vector_search, "merge_block", jax.jit(record))
    for num_queries in (5, 6, 8):
        search_vectors(draw_vectors(num_queries, 5), draw_vectors(53, 5), 3, corpus_block=16, query_block=8)
    assert len(traced) == 1


def test_vectors_come_from_a_memory_mapped_file_in_any_pieces(tmp_path):
    queries, corpus = draw_vectors(7, 3), draw_vectors(101, 3)
    np.save(tmp_path / "corpus.npy", corpus.astype(np.float16))
    mapped, search = np.load(tmp_path / "corpus.npy", mmap_mode="r"), VectorSearch(queries, 9, 16, 4)
    for piece in (mapped[:1], mapped[1:40], mapped[40:40], mapped[40:]):
        search.add_vectors(piece)
    np.testing.assert_array_equal(search.get_best()[1], sort_whole_product(queries, corpus, 9)[1])


def test_other_shapes_and_numbers_that_are_not_finite_are_refused():
    search = VectorSearch(draw_vectors(7, 3), 9, 16, 4)
    with raises_naming(UserError, "[101, 4]", "[q 3]"):
        search.add_vectors(draw_vectors(101, 4))
    with raises_naming(UserError, "top_k=0", "at least 1"):
        search_vectors(draw_vectors(7, 3), draw_vectors(101, 3), 0)
    for number in (np.nan, np.inf, -np.inf):
        corpus = draw_vectors(9, 3)
        corpus[4, 1] = number
        with raises_naming(UserError, "finite"):
            search_vectors(np.ones((7, 3), np.float32), corpus, 9, 16, 4)


@pytest.mark.live
def test_the_best_are_those_of_sentence_transformers():
    torch = pytest.importorskip("torch")
    from sentence_transformers.util import semantic_search

    queries, corpus = (RNG.standard_normal((count, 48)).astype(np.float32) for count in (33, 2011))
    queries, corpus = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (queries, corpus))
    expected = semantic_search(torch.tensor(queries), torch.tensor(corpus), corpus_chunk_size=500, top_k=20)
    scores, indices = search_vectors(queries, corpus, 20, corpus_block=300, query_block=16)
    assert indices.tolist() == [[hit["corpus_id"] for hit in hits] for hits in expected]
    np.testing.assert_allclose(scores, [[hit["score"] for hit in hits] for hits in expected], atol=1e-6)
