import itertools
import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.data.batch import build_single_example_batch
from encoders.families import albert, bert, electra, roberta
from encoders.model import attention
from encoders.model.attention import dot_product_attention
from encoders.model.config import EncoderConfig
from encoders.model.layers import Embeddings, FeedForward, LayerContext, SelfAttention
from encoders.model.ops import ACTIVATIONS, Dropout, hash_indices, make_initializer
from encoders.model.rotary import RotaryFeatures
from encoders.utils.errors import UserError
from tests.batches import TOKEN_FIELDS, make_batch
from tests.refusals import raises_naming

QUICK = {"xla_backend_optimization_level": 0}  # compiles in a third of the time
MODEL = EncoderConfig(
    vocab_size=19, hidden_size=12, num_layers=2, num_heads=3, intermediate_size=20, embedding_size=8, max_positions=11,
    hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums of up to 20 terms in another order


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def filled(shapes, seed=0):
    """Random parameters, no bias 0 and no scale 1, so that one that is left out shows."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0.2, 0.5, leaf.shape).astype(np.float32), shapes)


def parameters(part, *args, seed=0):
    return filled(jax.eval_shape(lambda: part.init(jax.random.key(0), *args)["params"]), seed)


def context(example_ids):
    """The context of a layer in which only the examples count."""
    ids = jnp.asarray(example_ids, jnp.int32)
    return LayerContext(ids, ids, ids, 0)


@partial(jax.jit, static_argnames=("part", "train"), compiler_options=QUICK)
def apply(part, params, *args, train=False):
    return part.apply({"params": params}, *args, train, rngs={"dropout": jax.random.key(1)})


def normalised(x, norm, epsilon=1e-12):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * norm["scale"] + norm["bias"]


def within_four_sigma(count, n, p):
    return abs(count - n * p) <= 4 * math.sqrt(n * p * (1 - p))


# Activations ----------------------------------------------------------------------------------------------------------


def test_the_two_formulas_of_gelu_differ_as_published():
    x = np.linspace(-6, 6, 4801, dtype=np.float32)
    exact, tanh = (np.asarray(jax.jit(ACTIVATIONS[name])(x)) for name in ("gelu", "gelu_tanh"))
    assert exact[2800] == pytest.approx(0.841345, abs=1e-6)  # at 1: the normal distribution's share below 1
    apart = np.abs(exact - tanh)
    assert apart.max() == pytest.approx(4.7e-4, abs=1e-5) and abs(x[apart.argmax()]) == pytest.approx(2.69, abs=0.02)


def test_gelu_of_bfloat16_and_its_slope_are_those_of_float32_rounded():
    x = jnp.linspace(-6, 6, 4801, dtype=jnp.bfloat16)
    evaluate = jax.vmap(jax.value_and_grad(ACTIVATIONS["gelu"]))
    for rounded, exact in zip(evaluate(x), evaluate(x.astype(jnp.float32)), strict=True):
        assert rounded.dtype == jnp.bfloat16
        np.testing.assert_allclose(rounded.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


def test_only_albert_has_the_tanh_formula():
    used = {f: {m.activation for m in f.SIZES.values()} for f in (bert, roberta, albert, electra)}
    assert used == {bert: {"gelu"}, roberta: {"gelu"}, albert: {"gelu_tanh"}, electra: {"gelu"}}


# Initialisers ---------------------------------------------------------------------------------------------------------


def test_the_truncated_normal_is_cut_at_two_deviations_and_the_plain_one_is_not():
    draw = lambda truncated: make_initializer(replace(MODEL, truncated_init=truncated))(jax.random.key(0), (333, 301))
    cut, plain = draw(True), draw(False)
    noise = 4 / math.sqrt(2 * 333 * 301)  # four sigma of a normal sample's deviation; a cut one has less
    assert cut.std() == pytest.approx(0.02 * 0.87963, rel=noise) and 0.0399 < np.abs(cut).max() <= 0.04
    assert plain.std() == pytest.approx(0.02, rel=noise) and np.abs(plain).max() > 0.06
    assert {m.truncated_init for f in (bert, albert, electra) for m in f.SIZES.values()} == {True}
    assert {m.truncated_init for m in roberta.SIZES.values()} == {False}


# Dropout --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.37])
def test_dropout_drops_each_element_at_its_rate_whatever_becomes_of_its_neighbours(rate):
    x = jnp.ones((350, 3001))
    masks = []
    for seed in (0, 1):
        out = np.asarray(Dropout(rate).apply({}, x, True, rngs={"dropout": jax.random.key(seed)}))
        np.testing.assert_allclose(out[out != 0], 1 / (1 - rate), rtol=1e-6)
        masks.append(out == 0)
    first, second = masks
    assert within_four_sigma(first.sum(), x.size, rate)
    assert within_four_sigma(first[:, -1].sum(), 350, rate)
    # Pairs that are dropped together: next to one another, in a column, and of two keys.
    for one, other in ((first[:, 1:], first[:, :-1]), (first[1:], first[:-1]), (first, second)):
        assert within_four_sigma((one & other).sum(), one.size, rate**2)


@pytest.mark.parametrize("shape", [(1 << 20,), (8, 2, 256, 256)])
def test_each_random_bit_is_set_half_the_time_and_differs_from_that_of_other_indices_and_keys_half_the_time(shape):
    one, other = (np.asarray(hash_indices(jax.random.key(seed), shape)).ravel() for seed in (0, 1))
    for bits in (one, one ^ other, *(one[step:] ^ one[:-step] for step in (1, 2, 256, 65536, 131072))):
        for position in range(32):
            assert within_four_sigma((bits >> position & 1).sum(), bits.size, 0.5)


def test_dropout_is_off_outside_of_training_and_at_rate_zero():
    x = normal(0, 4, 7)
    np.testing.assert_array_equal(Dropout(0.5).apply({}, jnp.asarray(x), False), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, jnp.asarray(x), True), x)


def test_dropout_keeps_the_type_it_is_given():
    out = Dropout(0.5).apply({}, jnp.ones((3, 5), jnp.bfloat16), True, rngs={"dropout": jax.random.key(0)})
    assert out.dtype == jnp.bfloat16 and set(np.unique(out.astype(jnp.float32))) == {0.0, 2.0}


@pytest.mark.parametrize(
    "rates, moved",
    [
        ({}, set()),
        ({"attention_dropout": 0.5}, {SelfAttention}),
        ({"hidden_dropout": 0.5}, {SelfAttention, FeedForward, Embeddings}),
    ],
)
def test_attention_weights_and_hidden_states_are_dropped_apart(rates, moved):
    model, x, rows = replace(MODEL, **rates), jnp.asarray(normal(0, 2, 5, 12)), context(np.ones((2, 5), int))
    batch = jax.tree.map(jnp.asarray, build_single_example_batch(np.ones((2, 5), int)))
    arguments = {SelfAttention: (x, rows), FeedForward: (x, rows), Embeddings: (batch,)}

    def dropped(kind, given):
        params = parameters(kind(model), *given, False)
        return not np.array_equal(*(apply(kind(model), params, *given, train=train) for train in (True, False)))

    assert {kind for kind, given in arguments.items() if dropped(kind, given)} == moved


def test_attention_dropout_drops_whole_weights():
    model = replace(MODEL, attention_dropout=0.5)
    x, one = jnp.asarray(normal(0, 40, 1, 12)), context(np.ones((40, 1), int))
    params = parameters(SelfAttention(model), x, one, False)
    for name in ("value", "out"):
        params[name] = {"kernel": np.eye(12, dtype=np.float32), "bias": np.zeros(12, np.float32)}
    params["norm"] = {"scale": np.ones(12, np.float32), "bias": np.zeros(12, np.float32)}
    # A lone token attends to itself with weight 1: each of three heads adds twice its part, or nothing.
    heads = np.array(list(itertools.product([1, 3], repeat=3))).repeat(4, axis=1)
    possible = normalised(heads[:, None] * np.asarray(x)[:, 0], params["norm"])
    found = np.asarray(apply(SelfAttention(model), params, x, one, train=True))[:, 0]
    fits = np.isclose(found, possible, atol=1e-5).all(-1)
    assert fits.any(0).all() and fits.any(1).all()


# Attention ------------------------------------------------------------------------------------------------------------


def test_attention_is_the_softmax_average_over_the_tokens_of_the_own_example():
    query, key, value = (normal(seed, 2, 5, 3, 4) for seed in range(3))
    example = np.array([[1, 1, 1, 1, 0], [1, 1, 2, 2, 2]])
    found = jax.jit(dot_product_attention)(query, key, value, example)
    expected = np.zeros_like(query)
    for b, at, h in np.ndindex(2, 5, 3):
        others = [m for m in range(5) if example[b, m] == example[b, at]]
        weights = np.exp([query[b, at, h] @ key[b, m, h] / 2 for m in others])  # 2 is the root of the head's size
        expected[b, at, h] = sum(w * value[b, m, h] for w, m in zip(weights / weights.sum(), others, strict=True))
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_large_scores_do_not_overflow():
    x = np.full((1, 3, 1, 4), 1e4, np.float32)
    np.testing.assert_allclose(jax.jit(dot_product_attention)(x, x, x, np.ones((1, 3), int)), x)


# Parts ----------------------------------------------------------------------------------------------------------------


def test_attend_adds_its_input_and_normalises_after():
    x, example = normal(0, 2, 5, 12), np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    p = parameters(SelfAttention(MODEL), jnp.asarray(x), context(example), False)
    heads = lambda name: (x @ p[name]["kernel"] + p[name]["bias"]).reshape(2, 5, 3, 4)
    mixed = jax.jit(dot_product_attention)(heads("query"), heads("key"), heads("value"), example)
    out = np.asarray(mixed).reshape(2, 5, 12) @ p["out"]["kernel"] + p["out"]["bias"]
    found = apply(SelfAttention(MODEL), p, x, context(example))
    np.testing.assert_allclose(found, normalised(x + out, p["norm"]), **CLOSE)


def test_rotary_positions_turn_each_pair_of_a_query_and_a_key_by_its_angle():
    model = replace(MODEL, row_features=RotaryFeatures)
    x, positions, example = normal(0, 2, 5, 12), np.array([[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]), np.ones((2, 5), int)
    turned = context(example).replace(position_ids=jnp.asarray(positions))
    turned = turned.replace(row_features=RotaryFeatures(model).apply({}, turned))
    p = parameters(SelfAttention(model), jnp.asarray(x), turned, False)
    heads = lambda name: (x @ p[name]["kernel"] + p[name]["bias"]).reshape(2, 5, 3, 4)
    turns = np.exp(1j * positions[..., None] * 10_000.0 ** np.array([0, -1 / 2]))[:, :, None]

    def turn(head):  # its first half are real parts, and its second the imaginary ones
        complex_head = (head[..., :2] + 1j * head[..., 2:]) * turns
        return np.concatenate([complex_head.real, complex_head.imag], -1).astype(np.float32)

    mixed = jax.jit(dot_product_attention)(turn(heads("query")), turn(heads("key")), heads("value"), example)
    out = np.asarray(mixed).reshape(2, 5, 12) @ p["out"]["kernel"] + p["out"]["bias"]
    found = apply(SelfAttention(model), p, x, turned)
    np.testing.assert_allclose(found, normalised(x + out, p["norm"]), **CLOSE)


def test_rotary_positions_of_heads_of_an_odd_size_are_refused():
    model = replace(MODEL, row_features=RotaryFeatures, num_heads=4)
    with raises_naming(UserError, "model.num_heads=4", "heads of 3"):
        RotaryFeatures(model).apply({}, context(np.ones((1, 2), int)))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_transform_adds_its_input_and_normalises_after(activation):
    model, x, one = replace(MODEL, activation=activation), normal(0, 2, 5, 12), context(np.ones((2, 5), int))
    p = parameters(FeedForward(model), jnp.asarray(x), one, False)
    inner = np.asarray(jax.jit(ACTIVATIONS[activation])(x @ p["up"]["kernel"] + p["up"]["bias"]))
    out = inner @ p["down"]["kernel"] + p["down"]["bias"]
    found = apply(FeedForward(model), p, x, one)
    np.testing.assert_allclose(found, normalised(x + out, p["norm"]), **CLOSE)


def embedded(model, params, *fields):
    batch = make_batch(**dict(zip(TOKEN_FIELDS, fields, strict=True)))
    return np.asarray(apply(Embeddings(model), params, batch))


BLANK = make_batch(np.ones((1, 5), np.int32))
FIELDS = [[[7, 9, 5, 0, 0]], [[1, 1, 1, 0, 0]], [[0, 1, 1, 0, 0]], [[0, 1, 2, 0, 0]]]


def test_embeddings_are_the_normalised_sum_of_three_tables():
    p = parameters(Embeddings(MODEL), BLANK, False)
    tokens, _, segments, positions = map(np.array, FIELDS)
    tables = [p[name]["embedding"] for name in ("word", "position", "segment")]
    total = sum(table[ids] for table, ids in zip(tables, (tokens, positions, segments), strict=True))
    np.testing.assert_allclose(embedded(MODEL, p, *FIELDS), normalised(total, p["norm"]), **CLOSE)


def test_there_is_no_table_of_positions_where_layers_have_rotary_ones():
    model = replace(MODEL, row_features=RotaryFeatures)
    p = parameters(Embeddings(model), BLANK, False)
    assert set(p) == {"word", "segment", "norm"}
    tokens, _, segments, _ = map(np.array, FIELDS)
    total = p["word"]["embedding"][tokens] + p["segment"]["embedding"][segments]
    np.testing.assert_allclose(embedded(model, p, *FIELDS), normalised(total, p["norm"]), **CLOSE)


def test_the_epsilon_of_the_model_is_that_of_its_norms():
    model = replace(MODEL, layer_norm_eps=0.5)
    p = parameters(Embeddings(model), BLANK, False)
    tokens, _, segments, positions = map(np.array, FIELDS)
    total = p["word"]["embedding"][tokens] + p["position"]["embedding"][positions] + p["segment"]["embedding"][segments]
    np.testing.assert_allclose(embedded(model, p, *FIELDS), normalised(total, p["norm"], 0.5), **CLOSE)


def test_positions_of_roberta_start_at_two_and_padding_reads_entry_one():
    model = replace(MODEL, position_offset=2, num_token_types=1)
    p = parameters(Embeddings(model), BLANK, False)
    assert p["position"]["embedding"].shape == (11 + 2, 8) and p["segment"]["embedding"].shape == (1, 8)

    def reads(entry):
        """The positions of the row that depend on an entry of the position table."""
        other = p["position"]["embedding"].copy()
        other[entry] += normal(1, 8)
        changed = embedded(model, p | {"position": {"embedding": other}}, *FIELDS) != embedded(model, p, *FIELDS)
        return np.flatnonzero(changed.any(-1)[0]).tolist()

    assert [reads(entry) for entry in range(6)] == [[], [3, 4], [0], [1], [2], []]


@pytest.mark.parametrize("segments, row", [(1, 0), (2, 1)])
def test_a_table_of_one_segment_serves_both(segments, row):
    model = replace(MODEL, num_token_types=segments)
    p = parameters(Embeddings(model), BLANK, False)
    tokens, example, _, positions = FIELDS
    two, same = (embedded(model, p, tokens, example, [[s] * 5], positions) for s in (1, row))
    np.testing.assert_array_equal(two, same)


def test_without_a_segment_table_segments_count_nothing():
    model = replace(MODEL, num_token_types=0)
    p = parameters(Embeddings(model), BLANK, False)
    assert set(p) == {"word", "position", "norm"}
    tokens, example, segments, positions = FIELDS
    one, two = (embedded(model, p, tokens, example, s, positions) for s in (segments, [[0] * 5]))
    np.testing.assert_array_equal(one, two)


def test_attention_below_float32_has_the_gradients_of_float32_for_the_same_dropout():
    query, key, value, d_out = (normal(seed, 2, 40, 3, 8) for seed in range(4))
    example_ids = jnp.array([[1] * 23 + [2] * 17] * 2)
    drop = Dropout(0.3).bind({}, rngs={"dropout": jax.random.key(0)}).draw_dropout(True)

    def compute_gradients(dtype):
        attend = lambda *heads: dot_product_attention(*heads, example_ids, drop)
        out, pull_back = jax.vjp(attend, *(jnp.asarray(x, dtype) for x in (query, key, value)))
        return out, *pull_back(jnp.asarray(d_out, dtype))

    for rounded, exact in zip(compute_gradients(jnp.bfloat16), compute_gradients(jnp.float32), strict=True):
        assert rounded.dtype == jnp.bfloat16
        error = np.linalg.norm(rounded.astype(jnp.float32) - exact) / np.linalg.norm(exact)
        assert error < 2**-6


@pytest.mark.parametrize("is_causal", [False, True])
def test_long_rows_attend_in_blocks_to_what_they_attend_to_whole(is_causal, monkeypatch):
    query, key, value, d_out = (jnp.asarray(normal(seed, 2, 45, 3, 8)) for seed in range(4))
    example_ids = jnp.array([[1] * 23 + [2] * 17 + [0] * 5, [1] * 45])
    is_real = (example_ids > 0)[..., None, None]

    def compute_gradients():
        attend = lambda *heads: dot_product_attention(*heads, example_ids, is_causal=is_causal) * is_real
        out, pull_back = jax.vjp(attend, query, key, value)
        return out, *pull_back(d_out)

    whole = compute_gradients()
    monkeypatch.setattr(attention, "MIN_BLOCKED_LENGTH", 45)
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)
    for blocked, expected in zip(compute_gradients(), whole, strict=True):
        np.testing.assert_allclose(blocked, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    for attend in (attention.attend_by_head, attention.attend_in_blocks):
        out = attend(query, key, value, example_ids, jnp.asarray(is_causal)) * is_real
        np.testing.assert_allclose(out, whole[0], rtol=0, atol=1e-6)


def test_the_memory_of_long_rows_grows_with_their_length_and_not_its_square():
    def count_temporary_bytes(length):
        shape = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
        attend = lambda *heads: dot_product_attention(*heads, jnp.ones((1, length), jnp.int32)).sum()
        compiled = jax.jit(jax.grad(attend, argnums=(0, 1, 2))).lower(shape, shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert count_temporary_bytes(8192) < 2.5 * count_temporary_bytes(4096) < 4096**2 * 4
