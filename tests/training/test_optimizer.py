import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import encoders
from encoders.model.encoder import is_stacked
from encoders.run.run import Run
from encoders.training.optimizer import AdamW, Lamb, StableAdamW, flatten_with_paths, tree_paths
from tests import texts
from tests.refusals import raises_naming
from tests.run.test_loop import assert_stopped_run_is_the_same, experiment

CLOSE = {"rtol": 2e-6, "atol": 1e-9}  # float32 sums in another order
BERT = AdamW(learning_rate=1e-4, warmup_steps=10_000)
ROBERTA = AdamW(
    learning_rate=6e-4,
    warmup_steps=24_000,
    betas=(0.9, 0.98),
    clip_norm=None,
    bias_correction=True,
    schedule="peak",
    no_decay=(),
)
ELECTRA = AdamW(learning_rate=2e-4, warmup_steps=10_000, schedule="product")
PLAIN = {"learning_rate": 1.0, "warmup_steps": 0, "weight_decay": 0.0, "clip_norm": None, "schedule": "constant"}


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def model(seed):
    """A tree with three layers and two groups of shared parameters, of unequal sizes and norms."""
    grow = lambda n: np.arange(1, n + 1, dtype=np.float32)
    kernel = normal(seed, 3, 2, 5) * grow(3)[:, None, None]
    layers = {"attend": {"query": {"kernel": kernel, "bias": normal(seed + 1, 3, 5)}, "norm": {"scale": grow(15)}}}
    layers["attend"]["norm"]["scale"] = layers["attend"]["norm"]["scale"].reshape(3, 5)
    shared = {"transform": {"up": {"kernel": normal(seed + 2, 2, 5, 4) * grow(2)[:, None, None]}}}
    return {"encoder": {"layers": layers, "shared": shared, "embed": {"word": {"embedding": normal(seed + 3, 7, 2)}}}}


def unstacked(tree):
    """The same leaves, those of a stack apart: `encoder/layer0/attend/query/kernel`."""
    apart = {}
    for path, leaf in flatten_with_paths(tree):
        if not is_stacked(path):
            apart[path] = leaf
        for i in range(len(leaf) if is_stacked(path) else 0):
            apart[re.sub(r"(layers|shared)/", rf"only-\1-{i}/", path)] = leaf[i]
    return apart


def run(optimizer, params, steps=3, total_steps=10, seed=10, split=lambda tree: tree):
    """The updates of `steps` steps on gradients drawn from `seed`."""
    transform = optimizer.build_transformation(total_steps)
    params = split(params)
    state, updates, update = transform.init(params), [], jax.jit(transform.update)
    for step in range(steps):
        change, state = update(split(model(seed + 10 * step)), state, params)
        params = optax.apply_updates(params, change)
        updates.append(change)
    return updates


def test_the_first_step_of_bert_moves_nothing():
    assert BERT.compute_learning_rate(0, 1_000_000) == 0
    updates = run(AdamW(learning_rate=1.0, warmup_steps=3), model(0), steps=2)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(updates[0]))
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(updates[1]))


def test_the_rate_of_bert_drops_where_warm_up_hands_over_to_the_line():
    rates = BERT.compute_learning_rate(np.array([5_000, 9_999, 10_000, 500_000, 1_000_000]), 1_000_000)
    np.testing.assert_allclose(rates, [0.5e-4, 0.9999e-4, 0.99e-4, 0.5e-4, 0], **CLOSE)


def test_the_rate_of_roberta_falls_from_its_peak_to_nothing():
    rates = ROBERTA.compute_learning_rate(np.array([0, 12_000, 24_000, 262_000, 500_000]), 500_000)
    np.testing.assert_allclose(rates, [0, 3e-4, 6e-4, 3e-4, 0], **CLOSE)


def test_the_rate_of_electra_is_the_product_of_warm_up_and_line():
    rates = ELECTRA.compute_learning_rate(np.array([0, 5_000, 10_000, 383_000, 766_000]), 766_000)
    by_hand = [0, 2e-4 * 0.5 * 761 / 766, 2e-4 * 756 / 766, 1e-4, 0]
    np.testing.assert_allclose(rates, by_hand, **CLOSE)


@pytest.mark.parametrize("schedule", ["replace", "peak", "product", "constant"])
def test_without_warm_up_every_schedule_starts_at_the_peak_and_none_goes_below_zero(schedule):
    optimizer = AdamW(learning_rate=0.25, warmup_steps=0, schedule=schedule)
    assert optimizer.compute_learning_rate(0, 8) == 0.25
    assert optimizer.compute_learning_rate(9, 8) == (0.25 if schedule == "constant" else 0)


def test_a_run_may_be_all_warm_up():
    optimizer = AdamW(learning_rate=0.25, warmup_steps=4, schedule="peak")
    np.testing.assert_allclose(optimizer.compute_learning_rate(np.arange(5), 4), [0, 0.0625, 0.125, 0.1875, 0])


@pytest.mark.parametrize(
    "correction, by_hand",
    [
        # With a gradient of one, m = 1 - 0.9^t and v = 1 - 0.999^t: 0.1/√0.001, 0.19/√0.001999, 0.271/√0.002997001.
        (False, [-3.16228, -4.24959, -4.95020]),
        (True, [-1.0, -1.0, -1.0]),
    ],
)
def test_the_first_updates_are_several_times_larger_without_bias_correction(correction, by_hand):
    transform = AdamW(**PLAIN, eps=1e-12, bias_correction=correction).build_transformation(10)
    params = {"kernel": jnp.zeros(1)}
    state, updates = transform.init(params), []
    for _ in range(3):
        change, state = transform.update({"kernel": jnp.ones(1)}, state, params)
        updates.append(float(change["kernel"][0]))
    np.testing.assert_allclose(updates, by_hand, rtol=2e-5)  # 1 - 0.999^t has few digits left in float32


@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("kind", [AdamW, Lamb])
def test_three_updates_agree_with_the_formula_in_numpy(kind, correction):
    optimizer = kind(
        learning_rate=0.5,
        warmup_steps=2,
        weight_decay=0.1,
        betas=(0.8, 0.9),
        eps=1e-3,
        bias_correction=correction,
        clip_norm=2.0,
    )
    params = {path: leaf.astype(np.float64) for path, leaf in unstacked(model(0)).items()}
    m, v = ({path: np.zeros_like(leaf) for path, leaf in params.items()} for _ in range(2))
    for step, updates in enumerate(run(optimizer, model(0), split=unstacked)):
        grads = {path: leaf.astype(np.float64) for path, leaf in unstacked(model(10 + 10 * step)).items()}
        size = np.sqrt(sum(np.sum(grad**2) for grad in grads.values()))
        rate = 0.5 * [0, 0.5, 0.8][step]
        for path, grad in grads.items():
            grad = grad * min(1, 2.0 / size)
            m[path] = 0.8 * m[path] + 0.2 * grad
            v[path] = 0.9 * v[path] + 0.1 * grad**2
            mean, square = m[path], v[path]
            if correction:
                mean, square = mean / (1 - 0.8 ** (step + 1)), square / (1 - 0.9 ** (step + 1))
            direction = mean / (np.sqrt(square) + 1e-3)
            if not path.endswith("bias") and "norm" not in path:
                direction = direction + 0.1 * params[path]
                if kind is Lamb:
                    direction = direction * np.linalg.norm(params[path]) / np.linalg.norm(direction)
            np.testing.assert_allclose(updates[path], -rate * direction, rtol=1e-5, atol=1e-7)  # float64 against 32
            params[path] = params[path] - rate * direction


@pytest.mark.parametrize(
    "optimizer",
    [AdamW(0.1, 1), Lamb(0.1, 1), Lamb(0.1, 1, no_decay=()), StableAdamW(0.1, 1)],
)
def test_an_update_of_a_stack_is_the_update_of_its_layers(optimizer):
    together, apart = run(optimizer, model(0)), run(optimizer, model(0), split=unstacked)
    for stack, layers in zip(together, apart, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), unstacked(stack), layers)


def test_lamb_moves_each_layer_by_the_rate_times_its_own_norm():
    kernel = np.stack([np.full((2, 8), 0.25), np.full((2, 8), 3.0)])  # norms 1 and 12
    params = {"layers": {"up": {"kernel": kernel}}, "pooler": {"kernel": kernel}}
    transform = Lamb(**PLAIN | {"learning_rate": 0.5}).build_transformation(10)
    updates, _ = transform.update(jax.tree.map(np.ones_like, params), transform.init(params), params)
    size = lambda x: np.sqrt(np.sum(np.square(x), axis=(1, 2)))
    np.testing.assert_allclose(size(updates["layers"]["up"]["kernel"]), [0.5, 6.0], **CLOSE)
    # The other is no stack: it moves by half of √(1 + 12²), the same in both halves.
    np.testing.assert_allclose(size(updates["pooler"]["kernel"]), [0.5 * (145 / 2) ** 0.5] * 2, **CLOSE)


def test_lamb_moves_weights_of_zero_as_adam_does():
    params = {"layers": {"up": {"kernel": np.stack([np.zeros((2, 3)), np.ones((2, 3))])}}}
    grads = jax.tree.map(np.ones_like, params)
    updates = []
    for optimizer in (Lamb(**PLAIN), AdamW(**PLAIN)):
        transform = optimizer.build_transformation(10)
        updates.append(transform.update(grads, transform.init(params), params)[0]["layers"]["up"]["kernel"])
    np.testing.assert_array_equal(updates[0][0], updates[1][0])
    assert np.all(np.abs(updates[0][1]) < np.abs(updates[1][1]))


def test_lamb_without_a_gradient_keeps_finite_weights():
    params = {"tokens": {"dense": {"kernel": np.ones((2, 3))}}}
    transform = Lamb(**PLAIN).build_transformation(10)
    updates, _ = transform.update(jax.tree.map(np.zeros_like, params), transform.init(params), params)
    np.testing.assert_array_equal(updates["tokens"]["dense"]["kernel"], np.zeros((2, 3)))


def test_norms_and_biases_do_not_decay():
    params = model(0)
    zeros = jax.tree.map(np.zeros_like, params)
    transform = AdamW(learning_rate=0.5, warmup_steps=0, weight_decay=0.1, schedule="constant").build_transformation(10)
    updates, _ = transform.update(zeros, transform.init(params), params)
    attend, before = updates["encoder"]["layers"]["attend"], params["encoder"]["layers"]["attend"]
    np.testing.assert_array_equal(attend["norm"]["scale"], np.zeros((3, 5)))
    np.testing.assert_array_equal(attend["query"]["bias"], np.zeros((3, 5)))
    np.testing.assert_allclose(attend["query"]["kernel"], -0.05 * before["query"]["kernel"], **CLOSE)
    word = updates["encoder"]["embed"]["word"]["embedding"]
    np.testing.assert_allclose(word, -0.05 * params["encoder"]["embed"]["word"]["embedding"], **CLOSE)


def test_everything_decays_in_roberta():
    params = model(0)
    transform = AdamW(
        learning_rate=0.5, warmup_steps=0, weight_decay=0.1, schedule="constant", no_decay=()
    ).build_transformation(10)
    updates, _ = transform.update(jax.tree.map(np.zeros_like, params), transform.init(params), params)
    jax.tree.map(lambda update, param: np.testing.assert_allclose(update, -0.05 * param, **CLOSE), updates, params)


@pytest.mark.parametrize("clip, by_hand", [(1.0, [0.06, 0.08]), (None, [0.6, 0.8]), (20.0, [0.6, 0.8])])
def test_gradients_are_clipped_to_the_global_norm_before_the_moments(clip, by_hand):
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    transform = AdamW(learning_rate=1.0, warmup_steps=0, clip_norm=clip).build_transformation(10)
    _, state = transform.update({"a": jnp.array([6.0]), "b": jnp.array([8.0])}, transform.init(params), params)
    np.testing.assert_allclose([state["adam"].m["a"][0], state["adam"].m["b"][0]], by_hand, **CLOSE)


@pytest.mark.parametrize("by_network, by_hand", [(True, [0.1, 0.06, 0.08]), (False, [0.07071, 0.04243, 0.05657])])
def test_a_generator_and_a_discriminator_may_be_clipped_apart(by_network, by_hand):
    gradients = {"discriminator": jnp.array([10.0]), "generator": jnp.array([6.0]), "tokens": jnp.array([8.0])}
    params = jax.tree.map(jnp.zeros_like, gradients)
    adamw = AdamW(learning_rate=1.0, warmup_steps=0, clip_by_network=by_network)
    transform, state = adamw.build_transformation(10), adamw.init_moments(params)
    assert jax.tree.structure(state) == jax.tree.structure(AdamW(1.0, 0).init_moments(params))
    _, state = transform.update(gradients, state, params)
    np.testing.assert_allclose([state["adam"].m[name][0] for name in gradients], by_hand, rtol=1e-3)
    # The head of a masked language model is part of its one network.
    alone = {"encoder": jnp.array([6.0]), "tokens": jnp.array([8.0])}
    _, state = transform.update(alone, adamw.init_moments(alone), alone)
    np.testing.assert_allclose([state["adam"].m[name][0] for name in alone], [0.06, 0.08], rtol=1e-5)


@pytest.mark.parametrize("kind", [AdamW, Lamb])
def test_the_moments_are_a_count_and_two_float32_trees_that_can_be_donated(kind):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), model(0))
    transform = kind(learning_rate=0.1, warmup_steps=1).build_transformation(10)
    state = transform.init(params)
    updates, new_state = jax.jit(transform.update, donate_argnums=1)(params, state, params)
    assert jax.tree.structure(new_state) == jax.tree.structure(transform.init(params))
    count, m, v = new_state["adam"]
    assert count == 1
    assert jax.tree.map(jnp.shape, m) == jax.tree.map(jnp.shape, v) == jax.tree.map(jnp.shape, params)
    assert {leaf.dtype for leaf in jax.tree.leaves((updates, m, v))} == {jnp.dtype("float32")}


# A user's file: optax's transform among ours.
LION = """
from dataclasses import dataclass
import encoders, optax
from encoders.training.optimizer import OptimizerConfig

@encoders.register
@dataclass(frozen=True)
class Lion(OptimizerConfig):
    betas: tuple[float, float] = (0.9, 0.99)

    def build_transforms(self, total_steps):
        return {
            "lion": optax.scale_by_lion(*self.betas),
            "weight_decay": self.add_weight_decay(),
            "learning_rate": self.scale_by_learning_rate(total_steps),
        }
"""


@pytest.fixture(scope="module")
def lion(tmp_path_factory):
    path = tmp_path_factory.mktemp("code") / "lion.py"
    path.write_text(LION)
    return encoders.import_file(path).Lion


def test_a_transform_of_optax_gives_the_updates_of_optax(lion):
    config, params = lion(learning_rate=0.1, warmup_steps=2, weight_decay=0.1, schedule="peak"), model(0)
    rate = lambda step: config.compute_learning_rate(step, 10)
    reference = optax.lion(rate, *config.betas, weight_decay=0.1, mask=config.build_decay_mask)
    state = reference.init(params)
    for step, updates in enumerate(run(config, params)):
        expected, state = reference.update(model(10 + 10 * step), state, params)
        params = optax.apply_updates(params, expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), updates, expected)
    assert step == 2


@pytest.mark.live
def test_an_optimiser_of_a_user_s_file_trains_and_resumes_to_the_same_numbers(lion, tmp_path):
    corpus = str(texts.write(tmp_path / "text.txt", documents=60))
    made = experiment(corpus, "bert", tmp_path, steps=4, optimizer=lion(1e-3, 1))
    assert_stopped_run_is_the_same(made, tmp_path, num_stops=1)
    assert Run.open(tmp_path / "stopped").experiment.optimizer == made.optimizer


def test_paths_name_dictionaries_states_and_lists_alike():
    moments = (
        AdamW(learning_rate=0.1, warmup_steps=1)
        .build_transformation(10)
        .init({"layers": {"up": {"bias": jnp.zeros(2)}}})
    )
    assert jax.tree.leaves(tree_paths([moments["adam"]])) == ["0/count", "0/m/layers/up/bias", "0/v/layers/up/bias"]


def test_only_leaves_below_layers_or_shared_are_stacked():
    assert is_stacked("layers/attend/query/kernel") and is_stacked("m/generator/shared/transform/up/bias")
    assert not is_stacked("encoder/embed/norm/scale") and not is_stacked("mylayers/kernel") and not is_stacked("layers")


@pytest.mark.parametrize(
    "field, value, accepted",
    [
        ("learning_rate", 0.0, ["above 0"]),
        ("learning_rate", float("nan"), ["above 0"]),
        ("warmup_steps", -1, ["0 or more"]),
        ("warmup_steps", 0.1, ["whole number"]),
        ("weight_decay", -0.01, ["0 or more"]),
        ("betas", (0.9,), ["two"]),
        ("betas", (0.9, 1.0), ["below 1"]),
        ("eps", 0.0, ["above 0"]),
        ("clip_norm", 0.0, ["None"]),
        ("bias_correction", "no", ["True", "False"]),
        ("clip_by_network", "no", ["True", "False"]),
        ("schedule", "cosine", ["replace, peak, product, constant", "Schedule"]),
        ("no_decay", "bias$", ["tuple", "regex"]),
        ("no_decay", ("bias(",), ["tuple", "regex"]),
    ],
)
@pytest.mark.parametrize("kind", [AdamW, Lamb])
def test_a_value_out_of_range_is_refused_by_name(kind, field, value, accepted):
    with raises_naming(ValueError, f"optimizer.{field}={value!r}", *accepted):
        kind(**{"learning_rate": 0.1, "warmup_steps": 1} | {field: value})


def test_a_warm_up_longer_than_the_run_is_refused():
    with raises_naming(ValueError, "optimizer.warmup_steps=3125 ", "100"):
        Lamb().build_transformation(100)


# Layer-wise rates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("released, top", [(False, 1), (True, 2)])
def test_a_layer_learns_at_a_share_of_the_rate_of_the_one_above(released, top):
    """ELECTRA's decay; the released code has the factor twice at the top (google-research/electra, issue 51)."""
    params = model(0)
    params["encoder"].pop("shared")
    params |= {"classes": {"out": {"kernel": normal(9, 2, 3)}}}
    gradient = jax.tree.map(np.ones_like, params)
    share = {}
    for decay in (1.0, 0.8):
        transform = AdamW(**PLAIN, layer_lr_decay=decay, decay_top_layer_twice=released).build_transformation(10)
        share[decay], _ = jax.jit(transform.update)(gradient, transform.init(params), params)
    found = jax.tree.map(lambda a, b: np.asarray(a) / np.asarray(b), share[0.8], share[1.0])
    np.testing.assert_allclose(found["classes"]["out"]["kernel"], 1.0, rtol=1e-6)
    np.testing.assert_allclose(found["encoder"]["embed"]["word"]["embedding"], 0.8 ** (3 + top), rtol=1e-6)
    for layer, power in enumerate((2 + top, 1 + top, top)):
        np.testing.assert_allclose(found["encoder"]["layers"]["attend"]["query"]["bias"][layer], 0.8**power, rtol=1e-6)


@pytest.mark.parametrize("wrong", [0.0, 1.1, "much"])
def test_a_decay_that_is_none_is_refused(wrong):
    with raises_naming(ValueError, f"layer_lr_decay={wrong!r}"):
        AdamW(1e-3, 1, layer_lr_decay=wrong)
