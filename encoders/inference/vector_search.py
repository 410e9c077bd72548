"""Exact search by inner product in blocks on the device: the best vectors of a corpus for each query."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from encoders.utils.errors import UserError

CORPUS_BLOCK_SIZE, QUERY_BLOCK_SIZE = 8192, 1024  # vectors of a product on the device
MAX_CORPUS_SIZE = 2**31 - 1  # indices on the device are int32


class VectorSearch:
    """Search for the `top_k` best vectors of a corpus for each of `queries [q d]`, while the corpus is added.

    The score is the inner product in float32; equal scores are in the order of the corpus. The device holds the
    queries with their best so far, and two blocks of the corpus with their products. Blocks are padded to one shape, so
    that one program is compiled. Raises `UserError` for other shapes, and for a score that is not finite.

        search = VectorSearch(queries, top_k=10)
        for vectors in blocks:
            search.add_vectors(vectors)
        scores, indices = search.get_best()
    """

    def __init__(
        self,
        queries: Float[np.ndarray, "q d"],
        top_k: int,
        corpus_block: int = CORPUS_BLOCK_SIZE,
        query_block: int = QUERY_BLOCK_SIZE,
    ):
        check_positive(top_k=top_k, corpus_block=corpus_block, query_block=query_block)
        self.num_queries, self.size = queries.shape
        self.top_k, self.corpus_block, self.num_vectors = top_k, corpus_block, 0
        # A power of two, so that few numbers of queries are compiled.
        query_block = min(query_block, 1 << max(self.num_queries - 1, 0).bit_length())
        self.query_blocks = [jnp.asarray(block) for block in iter_padded_blocks(queries, query_block)]
        no_scores = jnp.full((query_block, top_k), -jnp.inf, jnp.float32)
        no_indices = jnp.full((query_block, top_k), -1, jnp.int32)
        self.best = [(no_scores, no_indices)] * len(self.query_blocks)  # scores and indices [q k] of each block

    def add_vectors(self, vectors: Float[np.ndarray, "n d"]) -> None:
        """Search the next vectors of the corpus, which may be memory-mapped."""
        if vectors.ndim != 2 or vectors.shape[1] != self.size:
            raise UserError(f"vectors of shape {list(vectors.shape)} cannot be compared with queries [q {self.size}]")
        num_after = self.num_vectors + len(vectors)
        if num_after > MAX_CORPUS_SIZE:
            raise UserError(f"a corpus of more than {MAX_CORPUS_SIZE:,} vectors is too large for one search")
        for block in iter_padded_blocks(vectors, self.corpus_block):
            num_rows = min(self.corpus_block, num_after - self.num_vectors)
            for i, queries in enumerate(self.query_blocks):
                previous = self.best[i - 1][0]
                self.best[i] = merge_block(queries, block, self.num_vectors, num_rows, *self.best[i])
                previous.block_until_ready()  # else JAX would queue the products of all blocks
            self.num_vectors += num_rows

    def get_best(self) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
        """Return scores and indices of the best vectors so far, best first; k is at most the size of the corpus."""
        k, best = min(self.top_k, self.num_vectors), jax.device_get(self.best)
        scores = np.concatenate([np.empty((0, self.top_k), np.float32), *(block for block, _ in best)])
        indices = np.concatenate([np.empty((0, self.top_k), np.int64), *(block for _, block in best)])
        scores, indices = scores[: self.num_queries, :k], indices[: self.num_queries, :k]
        if not np.isfinite(scores).all():
            raise UserError("a score of the search is not a finite number; queries and vectors must be finite")
        return scores, indices


def search_vectors(
    queries: Float[np.ndarray, "q d"],
    corpus: Float[np.ndarray, "n d"],
    top_k: int,
    corpus_block: int = CORPUS_BLOCK_SIZE,
    query_block: int = QUERY_BLOCK_SIZE,
) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """Return scores and indices of the `top_k` best vectors of a corpus for each query, as `VectorSearch`.

    >>> scores, indices = search_vectors(np.eye(2, dtype=np.float32), np.float32([[1, 3], [2, 0], [1, 1]]), 2)
    >>> scores.tolist(), indices.tolist()
    ([[2.0, 1.0], [3.0, 1.0]], [[1, 0], [0, 2]])
    """
    search = VectorSearch(queries, top_k, corpus_block, query_block)
    search.add_vectors(corpus)
    return search.get_best()


@jax.jit
def merge_block(
    queries: Float[Array, "q d"],
    vectors: Float[Array, "n d"],
    first_index: Int[Array, ""],
    num_rows: Int[Array, ""],
    best_scores: Float[Array, "q k"],
    best_indices: Int[Array, "q k"],
) -> tuple[Float[Array, "q k"], Int[Array, "q k"]]:
    """Return the best of a block of the corpus and of what is before it, sorted; rows from `num_rows` on are padding.

    `top_k` keeps the order of equal scores, and all that is before the block has lower indices.
    """
    k = best_scores.shape[1]
    scores = jnp.matmul(queries, vectors.T, precision="highest")  # an accelerator's default is less than float32
    scores = jnp.where(scores == 0, 0.0, scores)  # to `top_k`, -0 is less than 0
    scores = jnp.where(jnp.arange(len(vectors)) < num_rows, scores, -jnp.inf)
    block_scores, columns = jax.lax.top_k(scores, min(k, len(vectors)))
    indices = jnp.concatenate([best_indices, first_index + columns], axis=1)
    scores, order = jax.lax.top_k(jnp.concatenate([best_scores, block_scores], axis=1), k)
    return scores, jnp.take_along_axis(indices, order, axis=1)


def iter_padded_blocks(rows: Float[np.ndarray, "n d"], block_size: int) -> Iterator[Float[np.ndarray, "b d"]]:
    """Yield rows in blocks of `block_size` as float32; the last block is filled up with zeros."""
    for start in range(0, len(rows), block_size):
        block = np.asarray(rows[start : start + block_size], np.float32)
        yield block if len(block) == block_size else np.pad(block, ((0, block_size - len(block)), (0, 0)))


def check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")
