from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.model.attention import dot_product_attention
from encoders.model.config import EncoderConfig
from encoders.model.encoder import Encoder
from encoders.model.layers import CausalSelfAttention
from encoders.training.optimizer import flatten_with_paths
from tests.batches import make_batch

QUICK = {"xla_backend_optimization_level": 0}  # compiles in a third of the time
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums of up to 20 terms in another order
BOTH_WAYS = EncoderConfig(
    vocab_size=19, hidden_size=12, num_layers=3, num_heads=3, intermediate_size=20, embedding_size=8, max_positions=11,
    hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
CAUSAL = replace(BOTH_WAYS, attention=CausalSelfAttention)
ONE = np.array([[1, 1, 1, 1, 1, 1, 0]])
PACKED = np.array([[1, 1, 1, 1, 2, 2, 2]])


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@cache
def parameters(model):
    shapes = jax.eval_shape(lambda: Encoder(model).init(jax.random.key(0), make_batch(np.ones((1, 3), int)))["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0.2, 0.5, leaf.shape).astype(np.float32), shapes)


@partial(jax.jit, static_argnames="model", compiler_options=QUICK)
def states(params, tokens, example, *, model):
    positions = jnp.arange(tokens.shape[1])[None] - jnp.where(example == 2, 4, 0)
    blank = make_batch(np.zeros(tokens.shape, np.int32))
    batch = blank.replace(input_ids=tokens, example_ids=example, position_ids=positions)
    return Encoder(model).apply({"params": params}, batch)


def reached(model, example, place):
    """The places of a row whose hidden states change with the token at `place`."""
    tokens = np.array([[5, 9, 7, 11, 6, 8, 10]])
    other = tokens.copy()
    other[0, place] = 13
    one, two = (np.asarray(states(parameters(model), x, example, model=model), np.float32) for x in (tokens, other))
    return np.flatnonzero((one != two).any(-1)[0] & (example[0] > 0)).tolist()


HALF = replace(CAUSAL, dtype="bfloat16")


@pytest.mark.parametrize(
    "model",
    [CAUSAL, replace(HALF, attention_impl="cudnn"), replace(HALF, attention_impl="cudnn_packed")],
    ids=["xla", "cudnn", "cudnn_packed"],
)
def test_a_token_reaches_itself_and_later_ones_alone(model):
    assert [reached(model, ONE, place) for place in (0, 3, 5)] == [[0, 1, 2, 3, 4, 5], [3, 4, 5], [5]]


@pytest.mark.parametrize("model", [CAUSAL, replace(HALF, attention_impl="cudnn_packed")], ids=["xla", "cudnn_packed"])
def test_a_token_of_a_packed_row_reaches_later_ones_of_its_example_alone(model):
    assert [reached(model, PACKED, place) for place in (1, 3, 5)] == [[1, 2, 3], [3], [5, 6]]


@pytest.mark.parametrize("share", [("attention",), ("attention", "feed_forward")])
def test_causal_attention_may_be_shared(share):
    model = replace(CAUSAL, shared_parts=share)
    assert "attend" in parameters(model)["shared"]
    assert reached(model, PACKED, 1) == [1, 2, 3]


def test_without_it_a_token_reaches_its_whole_example():
    assert reached(BOTH_WAYS, PACKED, 1) == [0, 1, 2, 3]


def test_its_parameters_are_those_of_attention_both_ways():
    one, two = (
        {path: leaf.shape for path, leaf in flatten_with_paths(parameters(model))} for model in (CAUSAL, BOTH_WAYS)
    )
    assert one == two


@pytest.mark.parametrize("how", ["xla", "cudnn", "cudnn_packed"])
def test_causal_attention_is_the_softmax_average_over_earlier_tokens_and_the_own(how):
    query, key, value = (normal(seed, 2, 5, 3, 4) for seed in range(3))
    example = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    found = jax.jit(partial(dot_product_attention, implementation=how, is_causal=True))(query, key, value, example)
    for b, at, h in np.ndindex(2, 5, 3):
        if example[b, at]:
            weights = np.exp([query[b, at, h] @ key[b, m, h] / 2 for m in range(at + 1)])  # 2: the root of 4
            expected = weights / weights.sum() @ value[b, : at + 1, h]
            np.testing.assert_allclose(found[b, at, h], expected, **CLOSE)
