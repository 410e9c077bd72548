from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.model.config import EncoderConfig
from encoders.model.heads import (
    ClassificationHead,
    MaskedTokenHead,
    Pooler,
    ReplacedTokenHead,
    gather_hidden_states,
    summarize_examples,
)
from encoders.model.layers import CausalSelfAttention
from encoders.model.ops import ACTIVATIONS
from tests.batches import make_batch

QUICK = {"xla_backend_optimization_level": 0}  # compiles in a third of the time
MODEL = EncoderConfig(vocab_size=19, hidden_size=12, num_layers=2, num_heads=3, intermediate_size=20, embedding_size=8)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums of up to 12 terms in another order
GELU = lambda x: np.asarray(ACTIVATIONS["gelu"](jnp.asarray(x)))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


ROWS = make_batch(np.ones((2, 7), np.int32))  # for a head that reads none of them


def parameters(head, *args):
    """Random parameters, no bias 0 and no scale 1, so that one that is left out shows."""
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), *args)["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0.2, 0.5, leaf.shape).astype(np.float32), shapes)


@partial(jax.jit, static_argnames="head", compiler_options=QUICK)
def apply(head, params, *args):
    return head.apply({"params": params}, *args)


def through(x, p):
    return x @ p["kernel"] + p["bias"]


def test_states_are_gathered_in_the_order_of_their_positions():
    hidden = normal(0, 2, 7, 12)
    found = gather_hidden_states(jnp.asarray(hidden), jnp.array([[6, 0, 0], [1, 2, 5]]))
    np.testing.assert_array_equal(found, [hidden[0, [6, 0, 0]], hidden[1, [1, 2, 5]]])


@pytest.mark.parametrize("model, places", [(MODEL, (0, 4)), (replace(MODEL, attention=CausalSelfAttention), (3, 6))])
def test_cls_stands_for_an_example_and_from_left_to_right_its_last_token(model, places):
    hidden = normal(0, 2, 8, 12)
    example = np.array([[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0, 0, 0]])
    batch = make_batch(0 * example, example_ids=example, cls_positions=[[0, 4], [0, 0]])
    found = summarize_examples(model, jnp.asarray(hidden), jax.tree.map(jnp.asarray, batch))
    assert found.shape == (2, 2, 12)  # the second row has no second example
    np.testing.assert_array_equal(found[0], hidden[0, list(places)])
    np.testing.assert_array_equal(found[1, 0], hidden[1, places[0]])


def test_vocabulary_logits_are_products_with_the_word_table_it_is_given():
    hidden, table = normal(0, 2, 3, 12), normal(1, 19, 8)
    p = parameters(MaskedTokenHead(MODEL), jnp.asarray(hidden), jnp.asarray(table))
    assert p["dense"]["kernel"].shape == (12, 8) and p["bias"].shape == (19,) and "embedding" not in p
    x = GELU(through(hidden, p["dense"]))
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    x = x * p["norm"]["scale"] + p["norm"]["bias"]
    found = apply(MaskedTokenHead(MODEL), p, hidden, table)
    np.testing.assert_allclose(found, np.einsum("bke,ve->bkv", x, table) + p["bias"], **CLOSE)


def test_the_pooler_is_a_dense_layer_and_tanh():
    hidden = normal(0, 2, 3, 12)
    p = parameters(Pooler(MODEL), jnp.asarray(hidden))
    np.testing.assert_allclose(apply(Pooler(MODEL), p, hidden), np.tanh(through(hidden, p["dense"])), **CLOSE)


@pytest.mark.parametrize("activation, between", [("none", None), ("tanh", np.tanh), ("gelu", GELU)])
def test_the_class_head_is_linear_or_has_a_dense_layer_of_its_own_before(activation, between):
    hidden, head = normal(0, 2, 3, 12), ClassificationHead(MODEL, 5, activation=activation)
    p = parameters(head, jnp.asarray(hidden))
    assert set(p) == ({"dense", "out"} if between else {"out"})
    expected = through(between(through(hidden, p["dense"])) if between else hidden, p["out"])
    found = apply(head, p, hidden)
    assert found.shape == (2, 3, 5)
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_the_replaced_token_head_gives_every_token_one_number():
    hidden = normal(0, 2, 7, 12)
    p = parameters(ReplacedTokenHead(MODEL), jnp.asarray(hidden), ROWS)
    expected = through(GELU(through(hidden, p["dense"])), p["out"])[..., 0]
    found = apply(ReplacedTokenHead(MODEL), p, hidden, ROWS)
    assert found.shape == (2, 7)
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_the_last_layer_of_the_replaced_token_head_starts_from_glorot():
    start = jax.jit(ReplacedTokenHead(MODEL).init, compiler_options=QUICK)
    p = start(jax.random.key(0), np.zeros((1, 1, 12), np.float32), ROWS)["params"]
    limit = np.sqrt(6 / (12 + 1))
    assert 0.1 < np.abs(p["out"]["kernel"]).max() <= limit  # of the others, 0.04 is the most
    assert np.abs(p["dense"]["kernel"]).max() <= 0.04


def test_logits_are_float32_whatever_the_states_are():
    half = EncoderConfig(
        vocab_size=19,
        hidden_size=12,
        num_layers=2,
        num_heads=3,
        intermediate_size=20,
        embedding_size=8,
        dtype="bfloat16",
    )
    hidden = jnp.ones((2, 3, 12), jnp.bfloat16)
    given = {MaskedTokenHead(half): (hidden, jnp.ones((19, 8))), ReplacedTokenHead(half): (hidden, ROWS)}
    given |= {ClassificationHead(half, 3, activation=name): (hidden,) for name in ("none", "tanh")}
    for head, args in given.items():
        out, variables = jax.eval_shape(head.init_with_output, jax.random.key(0), *args)
        assert out.dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
