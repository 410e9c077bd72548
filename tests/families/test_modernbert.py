"""ModernBERT, Ettin and mmBERT: counts, windows, packed rows, and the layers' two ways of running."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.costs.ledger import count_params, eval_param_shapes
from encoders.families import modernbert
from encoders.model import attention
from encoders.model.attention import dot_product_attention
from encoders.model.encoder import Encoder
from encoders.model.flops import forward_flops
from encoders.objectives.masked_lm import MaskedLM
from encoders.tasks.classification import Classification
from encoders.tasks.question_answering import SpanPrediction
from encoders.tasks.token_classification import TokenClassification
from encoders.utils.errors import UserError
from tests.families.rows import make_rows, pack_rows

# ModernBertModel, ModernBertForMaskedLM of transformers 5.24, tied weights counted once.
COUNTS = {
    "modernbert-base": (149_014_272, 149_655_232),
    "modernbert-large": (394_781_696, 395_881_664),
    "ettin-encoder-17m": (16_797_440, 16_913_600),
    "ettin-encoder-32m": (31_883_136, 32_081_344),
    "ettin-encoder-68m": (68_144_640, 68_457_664),
    "ettin-encoder-150m": (149_014_272, 149_655_232),
    "ettin-encoder-400m": (394_781_696, 395_881_664),
    "ettin-encoder-1b": (1_028_050_688, 1_031_314_112),
    "mmbert-small": (140_493_696, 140_897_536),
    "mmbert-base": (306_939_648, 307_786_240),
}
TINY = modernbert.make_config(
    12, 5, 20, vocab_size=40, num_heads=3, max_positions=64, local_window=4, rope_theta=90.0, init_std=0.5
)


@pytest.mark.parametrize("name", COUNTS)
def test_a_published_size_has_its_number_of_parameters(name):
    tree = eval_param_shapes(modernbert.SIZES[name], MaskedLM())
    assert (count_params(tree["encoder"]), count_params(tree)) == COUNTS[name]
    assert COUNTS.keys() == modernbert.SIZES.keys()


@pytest.mark.parametrize(
    "objective",
    [Classification(("a", "b"), "pooled"), TokenClassification(("a", "b"), 0.0, "pooled"), SpanPrediction("pooled")],
)
def test_a_head_of_two_classes_has_its_number_of_parameters(objective):
    assert count_params(eval_param_shapes(modernbert.BASE, objective)) == 149_606_402
    assert count_params(eval_param_shapes(modernbert.LARGE, objective)) == 395_833_346


def encode(config, batch, seed=0, **kwargs):
    params = jax.jit(Encoder(TINY).init)(jax.random.key(seed), make_rows(3))
    return jax.jit(partial(Encoder(config).apply, **kwargs))(params, batch)


def test_examples_packed_into_a_row_have_the_hidden_states_of_rows_of_their_own():
    lengths = (9, 14, 6)
    alone = make_rows(*lengths)
    expected = np.concatenate([x[:n] for x, n in zip(encode(TINY, alone), lengths, strict=True)])
    packed = encode(TINY, pack_rows(alone, *lengths))[0, : sum(lengths)]
    # On some processors the same rows, compiled and computed op by op, differ by 2.5e-6 of the largest.
    np.testing.assert_allclose(packed, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("length", [5, 8, 9, 23])
@pytest.mark.parametrize("implementation", ["xla", "cudnn_packed"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_in_blocks_is_attention_under_a_mask(length, implementation, is_causal):
    keys = jax.random.split(jax.random.key(length), 3)
    query, key, value = (jax.random.normal(k, (2, length, 3, 4)) for k in keys)
    examples = np.sort(np.random.default_rng(length).integers(1, 3, (2, length)))
    examples[1, length - 3 :] = 0
    at = np.arange(length)
    visible = (
        (examples[:, :, None] == examples[:, None])
        & (abs(at[:, None] - at) <= 4)
        & ((at <= at[:, None]) | (not is_causal))
    )
    scores = jnp.einsum("blhk,bmhk->bhlm", query, key) / 2
    weights = jax.nn.softmax(jnp.where(visible[:, None], scores, -jnp.inf))
    expected = jnp.einsum("bhlm,bmhk->blhk", weights, value)
    attend = partial(dot_product_attention, implementation=implementation, is_causal=is_causal, window=8)
    np.testing.assert_allclose(attend(query, key, value, jnp.asarray(examples)), expected, rtol=0, atol=2e-6)
    on_tpus = attention.local_attention_under_mask(is_causal, 8, query, key, value, jnp.asarray(examples))
    np.testing.assert_allclose(on_tpus, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "platform, length, is_cut", [("tpu", 32, False), ("tpu", 40, True), ("cpu", 32, True), ("cuda", 32, True)]
)
def test_a_tpu_cuts_rows_of_many_windows_and_others_cut_all(platform, length, is_cut):
    attend = jax.jit(partial(dot_product_attention, window=8))
    heads = [jax.ShapeDtypeStruct((2, length, 3, 4), jnp.float32)] * 3
    lowered = attend.trace(*heads, jax.ShapeDtypeStruct((2, length), jnp.int32)).lower(lowering_platforms=(platform,))
    assert (f"tensor<2x3x{length}x{length}x" in lowered.as_text()) == (not is_cut)


def test_a_token_of_a_local_layer_reads_those_within_half_a_window_and_no_others():
    config = replace(TINY, num_layers=2, global_every=3)
    batch = make_rows(20)
    # Layer 0 is global: with one layer and all others local, only it spreads a change beyond the window.
    sees = lambda config, at: np.flatnonzero(
        np.abs(encode(config, batch)[0] - encode(config, change_token(batch, at))[0]).max(-1) > 1e-6
    )
    assert sees(config, 10).size == 20
    local = replace(config, num_layers=5)
    query = jnp.ones((1, 20, 1, 2))
    value = jnp.zeros((1, 20, 1, 2)).at[0, 10].set(1)
    seen = dot_product_attention(query, query, value, jnp.ones((1, 20), int), window=local.local_window)
    assert np.flatnonzero(np.asarray(seen)[0, :, 0, 0]).tolist() == [8, 9, 10, 11, 12]


def change_token(batch, at):
    ids = batch.input_ids.copy()
    ids[0, at] = ids[0, at] % 30 + 6
    return batch.replace(input_ids=ids)


@pytest.mark.live
@pytest.mark.parametrize(
    "changes",
    [
        dict(remat="full"),
        dict(remat="dots"),
        dict(unroll_layers=True),
    ],
)
def test_ways_of_running_layers_give_equal_outputs_and_gradients(changes):
    batch, config = make_rows(9, 14), replace(TINY, **changes)
    params = Encoder(TINY).init(jax.random.key(0), batch)
    # The sum of squares of normalised vectors hardly changes, so its gradients would be rounding errors.
    direction = np.random.default_rng(0).normal(size=(*batch.input_ids.shape, TINY.hidden_size))
    loss = lambda config: jax.jit(jax.value_and_grad(lambda p: (Encoder(config).apply(p, batch) * direction).sum()))
    for expected, found in zip(*map(jax.tree.leaves, (loss(TINY)(params), loss(config)(params))), strict=True):
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_all_hidden_states_end_with_the_norm_after_the_last_layer():
    batch = make_rows(9, 14)
    states = encode(TINY, batch, output_hidden_states=True)
    assert states.shape == (TINY.num_layers + 1, 2, 14, 12)
    np.testing.assert_array_equal(states[-1], encode(TINY, batch))
    assert abs(np.asarray(states[-1]).mean(-1)).max() < 1e-5 < abs(np.asarray(states[-2]).mean(-1)).max()


def test_flops_of_local_layers_are_those_of_their_window():
    long, short = np.array([8192.0]), np.array([64.0])
    everywhere = replace(modernbert.BASE, global_every=1)
    assert forward_flops(modernbert.BASE, short) == forward_flops(everywhere, short)
    # 14 of 22 layers, each with 4 d FLOPs a pair of tokens.
    saved = 14 * 4 * 768 * 8192 * (8192 - 129)
    assert forward_flops(everywhere, long) - forward_flops(modernbert.BASE, long) == saved


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"hidden_size": 15, "embedding_size": 15}, ["heads of 5"]),
        ({"local_window": 7}, ["local_window=7"]),
        ({"global_every": 0}, ["global_every=0"]),
    ],
)
def test_a_size_that_does_not_fit_is_named(changes, named):
    with pytest.raises(UserError) as caught:
        replace(TINY, **changes)
    assert all(words in str(caught.value) for words in named)


# What config.json says ------------------------------------------------------------------------------------------------

OLD = {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 160000.0}
OLD |= {"position_embedding_type": "sans_pos", "reference_compile": False, "max_position_embeddings": 7999}
NEW = {
    "num_hidden_layers": 4,
    "layer_types": ["full_attention", "sliding_attention"] * 2,
    "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5.0}},
}


def test_configurations_of_transformers_4_and_5_are_read():
    read = modernbert.ARCHITECTURE.read_encoder_config
    assert read(OLD) == replace(modernbert.BASE, pooling="cls", **modernbert.ETTIN)
    model = read(OLD | NEW)
    assert (model.global_every, model.rope_theta, model.local_rope_theta) == (2, 5.0, 160_000.0)
    assert read({}) == replace(modernbert.BASE, pooling="cls")
    assert read(json.loads(json.dumps(modernbert.ARCHITECTURE.build_hf_config(model)))) == model


@pytest.mark.parametrize(
    "values, named",
    [
        ({"norm_bias": True}, ["norm_bias=True"]),
        ({"rope_scaling": {"type": "yarn"}}, ["rope_scaling", "yarn"]),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, ["rope_type='yarn'"]),
        ({"layer_types": ["sliding_attention"] * 22}, ["layer_types"]),
        ({"layer_types": "full"}, ["layer_types='full'"]),
        ({"global_rope_theta": "big"}, ["rope_theta", "'big'"]),
        ({"global_attn_every_n_layers": 0}, ["global_attn_every_n_layers=0"]),
        ({"classifier_activation": "silu"}, ["classifier_activation='silu'"]),
        ({"classifier_pooling": "max"}, ["pooling='max'"]),
    ],
)
def test_a_value_that_is_not_supported_is_named(values, named):
    with pytest.raises(UserError) as caught:
        modernbert.ARCHITECTURE.read_encoder_config(values)
    assert all(words in str(caught.value) for words in named)
