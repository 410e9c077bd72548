import math

import jax
import numpy as np

from encoders.objectives.generator import sample_tokens

draw = jax.jit(sample_tokens, compiler_options={"xla_backend_optimization_level": 0})  # compiles in a third of the time


def within_four_sigma(count, n, p):
    return abs(count - n * p) <= 4 * math.sqrt(n * p * (1 - p))


def keys(n):
    """Random keys, `[1 n 2]`, as a corrupted batch has them."""
    return np.random.default_rng(0).integers(0, 2**32, (1, n, 2), np.uint32)


def test_samples_are_as_frequent_as_their_probabilities():
    shares = np.array([1, 2, 3, 4, 10]) / 20
    drawn = draw(np.broadcast_to(np.log(shares).astype(np.float32), (1, 20_000, 5)), keys(20_000))
    counts = np.bincount(drawn[0], minlength=5)
    assert all(within_four_sigma(counts[i], 20_000, share) for i, share in enumerate(shares))


def test_samples_of_positions_are_independent():
    drawn = np.asarray(draw(np.zeros((1, 20_000, 5), np.float32), keys(20_000)))[0]
    assert within_four_sigma((drawn[1:] == drawn[:-1]).sum(), 19_999, 1 / 5)
