from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.data.batch import build_single_example_batch
from encoders.model import attention
from encoders.model.config import EncoderConfig, derive_generator_config
from encoders.model.encoder import Encoder
from encoders.training.optimizer import flatten_with_paths, tree_paths
from tests.batches import TOKEN_FIELDS, make_batch
from tests.refusals import raises_naming

QUICK = {"xla_backend_optimization_level": 0}  # compiles in a third of the time
BOTH = ("attention", "feed_forward")
MODEL = EncoderConfig(
    vocab_size=19, hidden_size=12, num_layers=5, num_heads=3, intermediate_size=20, embedding_size=8, max_positions=11,
    hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums of up to 20 terms in another order, through five layers
ORDER = {1: [0, 0, 0, 0, 0], 2: [0, 0, 0, 1, 1]}  # set of layer l: l * groups // 5, in whole numbers


def rows(*lengths, length=7, seed=0):
    """Fields of unpacked rows with `lengths` tokens; the segment changes in the middle."""
    at, size = np.arange(length)[None], np.array(lengths)[:, None]
    real = at < size
    tokens = np.random.default_rng(seed).integers(5, 19, (len(lengths), length))
    segments = (real & (at >= size // 2)).astype(np.int32)
    return build_single_example_batch(np.where(real, tokens, 0), segments, np.array(lengths))


@cache
def shapes(model):
    return jax.eval_shape(lambda: Encoder(model).init(jax.random.key(0), rows(3))["params"])


def parameters(model, seed=0):
    """Random parameters, no bias 0 and no scale 1, so that one that is left out shows."""
    rng, tree = np.random.default_rng(seed), shapes(model)
    draw = lambda path, leaf: rng.normal(path.endswith("scale"), 0.3, leaf.shape).astype(np.float32)
    return jax.tree.map(draw, tree_paths(tree), tree)


@partial(jax.jit, static_argnames=("model", "collect"), compiler_options=QUICK)
def states(params, fields, *, model, collect):
    return Encoder(model).apply({"params": params}, fields, output_hidden_states=collect)


def forward(params, fields, *, model, collect=False):
    return np.asarray(states(params, fields, model=model, collect=collect))


@partial(jax.jit, static_argnames="model", compiler_options=QUICK)
def value_and_gradient(params, fields, *, model):
    """Mean square of the states' difference from a ramp, in training, and its gradient."""

    def loss(params):
        out = Encoder(model).apply({"params": params}, fields, train=True, rngs={"dropout": jax.random.key(3)})
        return jnp.square(out - jnp.linspace(-1, 1, out.size).reshape(out.shape)).mean()

    return jax.value_and_grad(loss)(params)


def names(tree):
    return {path: leaf.shape for path, leaf in flatten_with_paths(tree)}


def equal(tree, other):
    jax.tree.map(partial(np.testing.assert_allclose, **CLOSE), tree, other)


def unshared(params, groups):
    """Parameters of the model that shares nothing, with the shared sets copied into the layers that use them."""
    copied = jax.tree.map(lambda stack: stack[np.array(ORDER[groups])], params["shared"])
    rest = {name: part for name, part in params.items() if name != "shared"}
    return rest | {"layers": params.get("layers", {}) | copied}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("share", [("attention",), ("feed_forward",), BOTH])
def test_a_shared_stack_is_a_stack_of_equal_layers(share, groups):
    model, fields = replace(MODEL, shared_parts=share, num_groups=groups), rows(7, 4)
    params = parameters(model)
    apart = unshared(params, groups)
    assert names(apart) == names(shapes(MODEL))
    each, same = (forward(p, fields, model=m, collect=True) for p, m in ((params, model), (apart, MODEL)))
    assert each.shape == (1 + 5, 2, 7, 12)
    np.testing.assert_allclose(each, same, **CLOSE)
    assert np.abs(np.diff(each, axis=0)).max(axis=(1, 2, 3)).min() > 0.1  # every layer does something


def test_groups_are_numbered_in_whole_numbers():
    # 22 sets for 22 layers, one each: in the released code's floating point two layers get a neighbour's.
    small = EncoderConfig(
        vocab_size=7,
        hidden_size=4,
        num_layers=22,
        num_heads=1,
        intermediate_size=6,
        embedding_size=4,
        max_positions=3,
        hidden_dropout=0.0,
    )
    shared = replace(small, shared_parts=("feed_forward",), num_groups=22)
    params, fields = parameters(shared), build_single_example_batch(np.array([[5, 6, 2]]))
    apart = {"embed": params["embed"], "layers": params["layers"] | params["shared"]}
    each, same = (forward(p, fields, model=m, collect=True) for p, m in ((params, shared), (apart, small)))
    np.testing.assert_allclose(each, same, **CLOSE)


def test_without_sharing_every_layer_has_parameters_of_its_own():
    assert "shared" not in shapes(MODEL)
    assert shapes(MODEL)["layers"]["attend"]["query"]["kernel"].shape == (5, 12, 12)
    both = shapes(replace(MODEL, shared_parts=BOTH))
    assert "layers" not in both and both["shared"]["transform"]["up"]["kernel"].shape == (1, 12, 20)


def test_every_set_starts_with_numbers_of_its_own():
    model = replace(MODEL, num_layers=3, shared_parts=("attention",), num_groups=2)
    start = lambda key: Encoder(model).init(key, rows(3))["params"]
    params = jax.jit(start, compiler_options=QUICK)(jax.random.key(0))
    kernels = {
        path: leaf for path, leaf in flatten_with_paths(params) if path.endswith("kernel") and path != "project/kernel"
    }
    sets = [np.asarray(values).ravel()[:144] for kernel in kernels.values() for values in kernel]
    assert len(sets) == 4 * 2 + 2 * 3  # query, key, value and out in two sets; up and down in three layers
    assert len({values.tobytes() for values in sets}) == len(sets)


@pytest.mark.parametrize(
    "change",
    [
        {"remat": "full"},
        *(pytest.param(c, marks=pytest.mark.live) for c in ({"unroll_layers": True}, {"remat": "dots"})),
    ],
)
def test_unrolling_and_rematerialisation_change_no_number_and_no_tree(change):
    model = replace(MODEL, num_layers=2, shared_parts=("attention",), hidden_dropout=0.2, attention_dropout=0.2)
    other, fields = replace(model, **change), rows(7, 4)
    assert names(shapes(other)) == names(shapes(model))
    params = parameters(model)
    loss, gradient = value_and_gradient(params, fields, model=model)
    same, other_gradient = value_and_gradient(params, fields, model=other)
    np.testing.assert_allclose(loss, same, **CLOSE)
    equal(gradient, other_gradient)


def test_what_stands_on_padding_reaches_no_word():
    batch, params = rows(7, 4, 5), parameters(MODEL)
    pad = batch.example_ids == 0
    noise = lambda x, most: np.where(pad, np.arange(x.size, dtype=np.int32).reshape(x.shape) % most, x)
    other = batch.replace(
        input_ids=noise(batch.input_ids, 19),
        token_type_ids=noise(batch.token_type_ids, 2),
        position_ids=noise(batch.position_ids, 11),
    )
    one, two = (forward(params, fields, model=MODEL) for fields in (batch, other))
    np.testing.assert_array_equal(one[~pad], two[~pad])
    assert np.abs(one - two)[pad].max() > 0.1


def test_more_padding_changes_nothing_at_the_words():
    params = parameters(MODEL)
    short = rows(7, 4, 5)
    long = short.replace(**{name: np.pad(getattr(short, name), ((0, 0), (0, 3))) for name in TOKEN_FIELDS})
    one, two = (forward(params, fields, model=MODEL) for fields in (short, long))
    real = short.example_ids > 0
    np.testing.assert_allclose(one[real], two[:, :7][real], **CLOSE)


def packed(*lengths, length=13):
    """The unpacked rows of `rows(*lengths)` behind one another in one row."""
    apart, numbers = rows(*lengths), np.arange(1, len(lengths) + 1, dtype=np.int32)
    apart = apart.replace(example_ids=apart.example_ids * numbers[:, None])
    fields = {}
    for name in TOKEN_FIELDS:
        row = np.concatenate([field[:size] for field, size in zip(getattr(apart, name), lengths, strict=True)])
        fields[name] = np.pad(row, (0, length - len(row)))[None]
    return make_batch(**fields)


def test_packed_examples_are_what_they_are_alone_also_without_weights_as_an_array(monkeypatch):
    params = parameters(MODEL)
    alone = forward(params, rows(7, 4), model=MODEL)
    monkeypatch.setitem(attention.ATTENTION_IMPLS, "xla", attention.fused_attention_by_mask)
    row = np.asarray(jax.jit(Encoder(MODEL).apply)({"params": params}, packed(7, 4)))[0]
    np.testing.assert_allclose(row[:7], alone[0], **CLOSE)
    np.testing.assert_allclose(row[7:11], alone[1, :4], **CLOSE)


def test_a_row_of_padding_stays_finite_with_every_attention(monkeypatch):
    for how in list(attention.ATTENTION_IMPLS.values()):
        monkeypatch.setitem(attention.ATTENTION_IMPLS, "xla", how)
        assert np.isfinite(jax.jit(Encoder(MODEL).apply)({"params": parameters(MODEL)}, rows(7, 0))).all()


@pytest.mark.parametrize("wrong", [{"attention_dropout": 0.1, "dtype": "bfloat16"}, {"attention_dropout": 0.0}])
@pytest.mark.parametrize("how", ["cudnn", "cudnn_packed"])
def test_attention_of_cudnn_is_for_bfloat16_without_dropout(how, wrong):
    with pytest.raises(ValueError, match=f"model.attention_impl='{how}'.*attention_dropout"):
        replace(MODEL, attention_impl=how, **wrong)
    assert replace(MODEL, attention_impl=how, attention_dropout=0.0, dtype="bfloat16").attention_impl == how


def test_packed_examples_are_what_they_are_alone():
    params = parameters(MODEL)
    alone, row = forward(params, rows(7, 4), model=MODEL), forward(params, packed(7, 4), model=MODEL)[0]
    np.testing.assert_allclose(row[:7], alone[0], **CLOSE)
    np.testing.assert_allclose(row[7:11], alone[1, :4], **CLOSE)


def test_packed_examples_do_not_see_each_other():
    row, params = packed(7, 4), parameters(MODEL)
    other = row.input_ids.copy()
    other[0, 3] = other[0, 3] % 14 + 5
    one, two = (forward(params, batch, model=MODEL)[0] for batch in (row, row.replace(input_ids=other)))
    np.testing.assert_array_equal(one[7:], two[7:])
    assert np.abs(one - two)[:7].max(axis=-1).min() > 1e-4


def test_permuting_a_batch_permutes_its_outputs():
    fields, params, order = rows(7, 4, 5), parameters(MODEL), np.array([2, 0, 1])
    moved = jax.tree.map(lambda field: field[order], fields)
    straight, permuted = (forward(params, f, model=MODEL) for f in (fields, moved))
    np.testing.assert_allclose(straight[order], permuted, **CLOSE)


def test_a_projection_stands_only_where_the_widths_differ():
    assert shapes(MODEL)["project"]["kernel"].shape == (8, 12)
    assert shapes(MODEL)["embed"]["norm"]["scale"].shape == (8,)  # before the projection: of the embedding's width
    same = shapes(replace(MODEL, embedding_size=12))
    assert "project" not in same and same["embed"]["norm"]["scale"].shape == (12,)


def test_the_states_of_all_layers_begin_with_the_embedding_and_end_with_the_output():
    fields, params = rows(7, 4), parameters(MODEL)
    each = forward(params, fields, model=MODEL, collect=True)
    np.testing.assert_allclose(each[-1], forward(params, fields, model=MODEL), **CLOSE)
    embed = lambda params, fields: MODEL.embeddings(MODEL).apply({"params": params}, fields, False)
    block = np.asarray(jax.jit(embed, compiler_options=QUICK)(params["embed"], fields))
    np.testing.assert_allclose(each[0], block @ params["project"]["kernel"] + params["project"]["bias"], **CLOSE)


def test_bfloat16_computes_with_float32_parameters_and_comes_near_float32():
    half, fields = replace(MODEL, num_layers=3, dtype="bfloat16", shared_parts=("attention",)), rows(7, 4)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(half))} == {np.dtype("float32")}
    params = parameters(half)
    low, full = forward(params, fields, model=half), forward(params, fields, model=replace(half, dtype="float32"))
    assert low.dtype == jnp.bfloat16 and full.dtype == np.float32
    apart = np.abs(low.astype(np.float32) - full)
    assert 0 < apart.mean() < 0.02  # 8 bits are 0.004 of a state of about 1, rounded some times a layer


def test_a_generator_is_narrower_with_heads_of_64_and_the_same_embedding():
    model = EncoderConfig(
        vocab_size=19,
        hidden_size=768,
        num_layers=12,
        num_heads=12,
        intermediate_size=3072,
        embedding_size=96,
        shared_parts=BOTH,
        num_groups=2,
    )
    third = derive_generator_config(model, 1 / 3)
    assert (third.hidden_size, third.num_heads, third.intermediate_size, third.num_layers) == (256, 4, 1024, 12)
    assert third.embedding_size == 96 and third.shared_parts == () and third.num_groups == 1
    tiny = derive_generator_config(model, 1 / 16, generator_depth=0.5)
    assert (tiny.hidden_size, tiny.num_heads, tiny.num_layers) == (48, 1, 6)  # less than one head of 64 is one head


@pytest.mark.parametrize(
    "change, values",
    [
        ({"hidden_size": 13}, ["model.hidden_size=13", "model.num_heads=3"]),
        ({"num_layers": 0}, ["model.num_layers=0", "1"]),
        ({"shared_parts": ("attend",)}, ["model.shared_parts=('attend',)", "'attention'", "'feed_forward'"]),
        ({"shared_parts": ("attention", "attention")}, ["model.shared_parts=('attention', 'attention')", "once"]),
        ({"num_groups": 2}, ["model.num_groups=2", "model.shared_parts"]),
        ({"num_groups": 6, "shared_parts": BOTH}, ["model.num_groups=6", "model.num_layers=5"]),
        ({"hidden_dropout": 1.0}, ["model.hidden_dropout=1.0", "0", "below 1"]),
        ({"init_std": 0.0}, ["model.init_std=0.0", "above 0"]),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, values):
    with raises_naming(ValueError, *values):
        replace(MODEL, **change)
