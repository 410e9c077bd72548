from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from encoders.data.batch import build_single_example_batch
from encoders.model.config import EncoderConfig
from encoders.objectives import masking
from encoders.objectives.generator import ELECTRA_MASKING
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import NextSentencePrediction
from encoders.training.optimizer import AdamW
from encoders.training.step import (
    DROPOUT_STREAM,
    PARAMS_STREAM,
    SPIKE_MIN_UPDATES,
    TrainState,
    eval_step,
    init_train_state,
    make_blank_batch,
    split_micro_batches,
    train_step,
)
from tests.networks import make_vocab

QUICK = {"xla_backend_optimization_level": 0}  # compiles in a third of the time
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums of micro-steps in another order
FACTS = make_vocab(19)
MODEL = EncoderConfig(
    vocab_size=19, hidden_size=12, num_layers=2, num_heads=3, intermediate_size=20, embedding_size=8, max_positions=13,
    hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
DROPPED = replace(MODEL, hidden_dropout=0.3)
PAIRS = MaskedLM(Masking(mask_rate=0.3), NextSentencePrediction())
REPLACED = ReplacedTokenDetection(generator_width=1 / 2, masking=replace(ELECTRA_MASKING, mask_rate=0.3))
SIZES = (0, 13, 5, 0, 9, 7)  # of six rows' examples; with three micro-steps the first has padding only


class Descent:
    """Gradient descent with momentum: its first update is minus the gradient, and so shows it."""

    def __init__(self, skip_spikes_above=None):
        self.skip_spikes_above = skip_spikes_above

    def build_transformation(self, total_steps):
        return optax.sgd(1.0, momentum=0.9)

    def init_moments(self, params):
        return self.build_transformation(10).init(params)


DESCENT = Descent()


def batch(*sizes, length=13):
    """Unpacked rows of `sizes` tokens, or of none; with labels."""
    at, size = np.arange(length)[None], np.array(sizes)[:, None]
    real, number = at < size, np.arange(len(sizes))[:, None]
    tokens = np.random.default_rng(0).integers(5, 19, (len(sizes), length))
    tokens[:, 0] = 2
    valid = (size > 0).astype(np.int32)
    labels = {"next_sentence": valid * (number % 2)}
    segments = (real & (at > 4)).astype(np.int32)
    batch = build_single_example_batch(np.where(real, tokens, 0), segments, np.array(sizes), labels)
    return batch.replace(example_mask=valid)


ROWS = batch(*SIZES)


@cache
def parameters(objective):
    """Random parameters, no bias 0 and no scale 1, so that one that is left out shows."""
    rows, module = jax.tree.map(jnp.asarray, ROWS), objective.module(MODEL, FACTS)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), objective.corrupt(rows, FACTS, 0))["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0.1, 0.3, leaf.shape).astype(np.float32), shapes)


def state(objective=PAIRS, step=0, params=None):
    params, zero = params or parameters(objective), lambda: jnp.zeros((), jnp.int32)  # a donated buffer may occur once
    return TrainState(
        zero() + step, params, DESCENT.init_moments(params), {"skipped_updates": zero(), "consecutive_skips": zero()}
    )


@cache
def compiled(model, objective, accumulate):
    given = dict(module=objective.module(model, FACTS), optimizer=DESCENT, total_steps=10, grad_accum_steps=accumulate)
    return train_step.lower(state(objective), ROWS, 3, **given).compile(compiler_options=QUICK)


def step(before, objective=PAIRS, seed=3, model=MODEL, accumulate=1):
    return jax.device_get(compiled(model, objective, accumulate)(before, ROWS, seed))


def equal(tree, other):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), tree, other)))


# Accumulation ---------------------------------------------------------------------------------------------------------


def test_rows_go_to_the_micro_steps_in_turn():
    found = split_micro_batches({"a": jnp.arange(6), "b": jnp.arange(12).reshape(6, 2)}, 3)
    np.testing.assert_array_equal(found["a"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(found["b"][1], [[2, 3], [8, 9]])


@pytest.mark.parametrize(
    "objective, parts",
    [
        pytest.param(PAIRS, 3, id="joint", marks=pytest.mark.live),
        pytest.param(REPLACED, 2, id="replaced", marks=pytest.mark.live),
    ],
)
def test_micro_steps_add_up_to_one_step(objective, parts):
    (whole, metrics), (summed, more) = (step(state(objective), objective, accumulate=k) for k in (1, parts))
    assert metrics.keys() == more.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics[name], more[name], **CLOSE)
    assert metrics["tokens"] == (sum(SIZES), 1)
    gradient, same = (jax.tree.map(np.subtract, parameters(objective), s.params) for s in (whole, summed))
    jax.tree.map(partial(np.testing.assert_allclose, **CLOSE), gradient, same)
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(gradient)))
    assert metrics["gradient_norm"].total == pytest.approx(norm, rel=1e-4) and norm > 0.1


def test_the_loss_is_the_generator_s_mean_and_fifty_times_the_discriminator_s():
    # Networks that know nothing: every verdict is a half, every token as likely as the 18 others.
    params = jax.tree.map(np.zeros_like, parameters(REPLACED))
    after, metrics = step(state(REPLACED, params=params), REPLACED)
    replaced, count = metrics["rtd_replaced"]
    assert 0 < replaced <= 11 and count == sum(SIZES)
    by_hand = 50 * (0.5 - replaced / count)  # of the mean over all tokens: half minus label at each
    assert -after.params["replaced"]["out"]["bias"][0] == pytest.approx(by_hand, rel=1e-5)
    gradient = -after.params["tokens"]["bias"]  # of the mean over the 11 masks: 1/19 minus the share of a target
    targets = (1 / 19 - gradient) * 11
    np.testing.assert_allclose(targets, np.round(targets), atol=1e-5)
    assert np.round(targets).min() == 0 and np.round(targets).sum() == 11


# Updates that are not finite ------------------------------------------------------------------------------------------


def test_an_update_that_is_not_finite_is_left_out_and_counted():
    good, _ = step(state())
    assert (good.step, good.update_guard) == (1, {"skipped_updates": 0, "consecutive_skips": 0})
    assert not equal(good.params, parameters(PAIRS)) and not equal(
        good.moments, DESCENT.init_moments(parameters(PAIRS))
    )
    broken = good.params | {"tokens": good.params["tokens"] | {"bias": np.full(19, np.inf, np.float32)}}
    once, metrics = step(good.replace(params=broken))
    assert (metrics["mlm_loss"], metrics["skipped"].total) == ((0, 0), 1)  # it counts nowhere but as skipped
    assert equal(once.params, broken) and equal(once.moments, good.moments)
    assert (once.step, once.update_guard) == (2, {"skipped_updates": 1, "consecutive_skips": 1})
    twice, _ = step(once)
    assert (twice.step, twice.update_guard) == (3, {"skipped_updates": 2, "consecutive_skips": 2})
    healed, metrics = step(twice.replace(params=good.params))
    assert np.isfinite(metrics["mlm_loss"].total) and not equal(healed.params, good.params)
    assert (healed.step, healed.update_guard) == (4, {"skipped_updates": 2, "consecutive_skips": 0})


def test_a_spike_is_left_out_and_remembered_by_no_mean():
    wary = Descent(skip_spikes_above=3.0)
    calm = {
        "skipped_updates": np.int32(0),
        "consecutive_skips": np.int32(0),
        "mean_gradient_norm": np.float32(0),
        "measured_updates": np.int32(0),
    }
    begun = state().replace(update_guard=calm)
    given = dict(module=PAIRS.module(MODEL, FACTS), optimizer=wary, total_steps=10)
    program = train_step.lower(begun, ROWS, 3, **given).compile(compiler_options=QUICK)
    after = lambda guard: jax.device_get(program(state().replace(update_guard=guard), ROWS, 3))
    first, metrics = after(calm)
    norm = metrics["gradient_norm"].total
    assert first.update_guard["mean_gradient_norm"] == norm and first.update_guard["measured_updates"] == 1
    for made, mean, left_out in (
        (SPIKE_MIN_UPDATES, norm / 2, 0),
        (SPIKE_MIN_UPDATES - 1, norm / 4, 0),
        (SPIKE_MIN_UPDATES, norm / 4, 1),
    ):
        found, _ = after(calm | {"mean_gradient_norm": np.float32(mean), "measured_updates": np.int32(made)})
        assert found.update_guard["skipped_updates"] == found.update_guard["consecutive_skips"] == left_out
        assert equal(found.params, parameters(PAIRS)) == bool(left_out)
        assert found.update_guard["measured_updates"] == made + 1 - left_out
        assert (found.update_guard["mean_gradient_norm"] == np.float32(mean)) == bool(left_out)


# Randomness -----------------------------------------------------------------------------------------------------------


def test_a_step_is_a_function_of_state_batch_and_seed():
    one, two = (step(state(), model=DROPPED) for _ in range(2))
    assert equal(one, two)
    other, _ = step(state(), model=DROPPED, seed=4)
    assert not equal(one[0].params, other.params)


def test_dropout_is_new_in_every_step_and_nothing_else_is():
    after = {model: [step(state(step=at), model=model) for at in (0, 5)] for model in (MODEL, DROPPED)}
    (plain, later), (dropped, other) = after[MODEL], after[DROPPED]
    assert equal(plain[0].params, later[0].params) and equal(plain[1], later[1])
    assert not equal(dropped[0].params, other[0].params)
    assert dropped[1]["mlm_loss"].count == other[1]["mlm_loss"].count


def test_streams_of_random_keys_are_apart():
    assert (
        len({DROPOUT_STREAM, PARAMS_STREAM, masking.MASK_STREAM, masking.ROUNDING_STREAM, masking.SAMPLE_STREAM}) == 5
    )


def test_evaluation_drops_nothing_and_masks_as_seed_zero_does():
    given = dict(module=PAIRS.module(DROPPED, FACTS))
    evaluate = eval_step.lower(parameters(PAIRS), ROWS, **given).compile(compiler_options=QUICK)
    (found, said), (_, trained) = evaluate(parameters(PAIRS), ROWS), step(state(), seed=0)
    assert said == {}
    assert found["mlm_loss"].count == 11 and found["nsp_loss"].count == 4
    assert trained.keys() - found.keys() == {"gradient_norm", "skipped", "tokens"}
    for name in found:
        np.testing.assert_allclose(found[name], trained[name], **CLOSE)


# The first state ------------------------------------------------------------------------------------------------------


def test_a_run_starts_from_its_seed_alone():
    module = PAIRS.module(MODEL, FACTS)
    start = lambda seed: init_train_state(seed, module=module, optimizer=AdamW(learning_rate=0.1, warmup_steps=0))
    start = jax.jit(start, compiler_options=QUICK)
    one, same, other = (jax.device_get(start(seed)) for seed in (0, 0, 1))
    assert equal(one, same) and not equal(one.params, other.params)
    assert (one.step, one.moments["adam"].count, one.update_guard) == (
        0,
        0,
        {"skipped_updates": 0, "consecutive_skips": 0},
    )
    shape = lambda tree: jax.tree.map(np.shape, tree)
    assert shape(one.params) == shape(parameters(PAIRS)) == shape(one.moments["adam"].m) == shape(one.moments["adam"].v)
    assert {leaf.dtype for leaf in jax.tree.leaves(one.params)} == {np.dtype("float32")}


class OneWeight:
    """A module with one parameter, and an objective that leaves batches as they are."""

    objective, vocab, required_fields = property(lambda self: self), None, ()

    def corrupt(self, batch, vocab, seed):
        return batch

    def init(self, key, batch):
        return {"params": {"weight": jnp.ones(2)}}


def test_no_buffer_of_the_first_state_occurs_twice():  # it is donated to the first step
    leaves = jax.tree.leaves(
        init_train_state(0, module=OneWeight(), optimizer=AdamW(learning_rate=0.1, warmup_steps=0))
    )
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves) == 1 + 1 + 4 + 2


def test_a_blank_batch_has_the_fields_of_a_batch():
    blank = make_blank_batch(7, ["next_sentence"])
    lengths = lambda batch: jax.tree.map(lambda field: field.shape[1], batch)
    assert lengths(blank) == jax.tree.map(lambda length: 7 if length == 13 else 1, lengths(ROWS))
