import math
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.data.batch import build_single_example_batch
from encoders.model.config import EncoderConfig
from encoders.objectives.generator import ELECTRA_MASKING
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import (
    NUM_HISTOGRAM_BINS,
    ReplacedTokenDetection,
    build_score_histogram,
    compute_rtd_metrics,
)
from encoders.run.diagnostics import diagnose_scores
from encoders.utils.metrics import Mean
from tests.networks import make_vocab, random_parameters
from tests.refusals import assert_names, raises_naming

QUICK = {"xla_backend_optimization_level": 0}  # compiles in a third of the time
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums of some terms in another order
CLS, SEP, MASK, WORD, OTHER = 2, 3, 4, 7, 8
FACTS = make_vocab(21)
MODEL = EncoderConfig(
    vocab_size=21, hidden_size=12, num_layers=2, num_heads=3, intermediate_size=20, embedding_size=8, max_positions=30,
    hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
APART = ReplacedTokenDetection(generator_width=1 / 2, tie="none", masking=replace(ELECTRA_MASKING, mask_rate=0.5))
TOKENS, ALL = replace(APART, tie="tokens"), replace(APART, tie="embeddings")
SIZES = (22, 9, 17, 6)


def batch(*sizes, length=22, word=None, epoch=0, seed=0):
    """Unpacked rows of `sizes` tokens from [CLS] to [SEP], the rest random or all the same word; ids 0, 1, ..."""
    at, size = np.arange(length)[None], np.array(sizes)[:, None]
    real = at < size
    tokens = np.random.default_rng(seed).integers(5, 21, (len(sizes), length)) if word is None else word
    tokens = np.where(real, tokens, 0)
    tokens[:, 0] = CLS
    np.put_along_axis(tokens, size - 1, SEP, 1)
    batch = build_single_example_batch(tokens, lengths=np.array(sizes))
    return batch.replace(pass_index=batch.pass_index + np.int32(epoch))


@cache
def parameters(objective):
    return random_parameters(objective, MODEL, FACTS, batch(6))


def metrics_of(params, seen, objective, train=False):
    return objective.module(MODEL, FACTS).apply({"params": params}, seen, train)


@partial(jax.jit, static_argnames="objective", compiler_options=QUICK)
def corrupted(rows, seed=3, *, objective=APART):
    return objective.corrupt(rows, FACTS, seed)


@partial(jax.jit, static_argnames="objective", compiler_options=QUICK)
def forward(params, rows, *, objective=APART):
    """The corrupted batch and its metrics."""
    seen = objective.corrupt(rows, FACTS, 3)
    return seen, metrics_of(params, seen, objective)


@partial(jax.jit, static_argnames="objective", compiler_options=QUICK)
def predictions(params, rows, *, objective):
    """The generator's logits."""
    seen = objective.corrupt(rows, FACTS, 3)
    return objective.module(MODEL, FACTS).apply({"params": params}, seen, method="compute_token_logits")


def sure_of(token, odds=1e6, objective=APART):
    """Parameters of a generator that knows one thing: `token` is `odds` times as likely as any other."""
    params = jax.tree.map(np.zeros_like, parameters(objective))
    params["tokens"]["bias"][token] = math.log(odds)
    return params


def within_four_sigma(count, n, p):
    return abs(count - n * p) <= 4 * math.sqrt(n * p * (1 - p))


# Generator and discriminator ------------------------------------------------------------------------------------------


def test_the_generator_learns_nothing_from_the_discriminator():
    loss = lambda params, seen: metrics_of(params, seen, APART)["rtd_loss"].total
    gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)(parameters(APART), corrupted(batch(*SIZES)))
    most = {name: max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(part)) for name, part in gradient.items()}
    assert most["generator"] == most["tokens"] == 0.0 < min(most["discriminator"], most["replaced"])


def test_the_generator_is_a_fraction_of_the_discriminator():
    params = parameters(APART)
    assert params["discriminator"]["layers"]["transform"]["up"]["kernel"].shape == (2, 12, 20)
    assert params["generator"]["layers"]["transform"]["up"]["kernel"].shape == (2, 6, 24)
    assert params["generator"]["embed"]["word"]["embedding"].shape == (21, 8)


def test_ties_leave_the_generator_without_the_tables_it_borrows():
    tables = {"word", "position", "segment", "norm"}
    trees = {objective.tie: parameters(objective) for objective in (APART, TOKENS, ALL)}
    for tree in trees.values():
        assert set(tree) == {"discriminator", "generator", "tokens", "replaced"}
        assert set(tree["discriminator"]) == {"embed", "project", "layers"}
        assert set(tree["discriminator"]["embed"]) == tables
        assert tree["discriminator"]["project"]["kernel"].shape == (8, 12)
        assert tree["generator"]["project"]["kernel"].shape == (8, 6)  # each has a projection of its own
    assert set(trees["none"]["generator"]["embed"]) == tables
    assert set(trees["tokens"]["generator"]["embed"]) == tables - {"word"}
    assert "embed" not in trees["embeddings"]["generator"]


@pytest.mark.parametrize(
    "objective, read", [(APART, set()), (TOKENS, {"word"}), (ALL, {"word", "position", "segment", "norm"})]
)
def test_a_tied_generator_reads_the_discriminator_s_tables(objective, read):
    params, rows = parameters(objective), batch(*SIZES)
    before = predictions(params, rows, objective=objective)
    found = set()
    for name, leaves in params["discriminator"]["embed"].items():
        noise = lambda leaf: leaf + np.random.default_rng(1).normal(size=leaf.shape).astype(np.float32)
        embed = params["discriminator"]["embed"] | {name: jax.tree.map(noise, leaves)}
        other = params | {"discriminator": params["discriminator"] | {"embed": embed}}
        if not np.array_equal(predictions(other, rows, objective=objective), before):
            found.add(name)
    assert found == read


# Samples --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature, chance", [(0.5, 400 / 420), (2.0, 20**0.5 / (20**0.5 + 20))])
def test_temperature_sharpens_and_flattens(temperature, chance):
    # 20 to 1 for the word that all tokens are, against 20 others: an even chance at temperature 1.
    objective = replace(APART, temperature=temperature)
    _, metrics = forward(sure_of(WORD, odds=20), batch(*[22] * 300, word=WORD), objective=objective)
    assert metrics["generator_loss"].count == 300 * 11
    assert within_four_sigma(300 * 11 - metrics["rtd_replaced"].total, 300 * 11, chance)


def test_noise_belongs_to_seed_epoch_example_and_position():
    def noise(seed=3, length=22, epoch=0, order=(0, 1)):
        rows = jax.tree.map(lambda x, order=order: x[list(order)], batch(22, 9, length=length, epoch=epoch))
        seen = jax.tree.map(np.asarray, corrupted(rows, seed))
        return {
            (int(seen.example_index[b, 0]), int(at)): bytes(seen.sampling_bits[b, k])
            for b, row in enumerate(seen.masked_positions)
            for k, at in enumerate(row)
            if seen.masked_weights[b, k]
        }

    first = noise()
    assert len(first) == 11 + 4 == len(set(first.values()))
    assert first == noise() == noise(length=26, order=(1, 0))
    for other in (noise(seed=4), noise(epoch=1)):
        assert not set(first.values()) & set(other.values())


def test_noise_is_new_in_every_epoch_also_where_masks_repeat():
    objective = replace(APART, masking=replace(ELECTRA_MASKING, dupe_factor=1))
    one, two = (corrupted(batch(22, 9, epoch=epoch), objective=objective) for epoch in (0, 1))
    np.testing.assert_array_equal(one.masked_positions, two.masked_positions)
    assert not np.array_equal(one.sampling_bits, two.sampling_bits)


# Labels and loss ------------------------------------------------------------------------------------------------------


@partial(jax.jit, compiler_options=QUICK)
def judge(*verdict_labels_real):
    return compute_rtd_metrics(*verdict_labels_real) | {"rtd_histogram": build_score_histogram(*verdict_labels_real)}


def test_a_sample_that_equals_the_original_is_labelled_original():
    rows = batch(*SIZES, word=WORD)
    seen, right = forward(sure_of(WORD), rows)
    _, wrong = forward(sure_of(OTHER), rows)
    assert seen.masked_weights.sum() == 11 + 4 + 8 + 3  # halves of 22, 9, 17 and 6 tokens, to the even neighbour
    assert right["rtd_replaced"].total == 0 and wrong["rtd_replaced"].total == 26


def test_the_discriminator_sees_the_samples_and_no_mask():
    # Its verdict is the same on a text of one word and on another that the generator fills with that word.
    rows, params = batch(*SIZES, word=WORD), parameters(APART) | {"tokens": sure_of(WORD)["tokens"]}
    seen, filled = forward(params, rows)
    _, plain = forward(params, rows, objective=replace(APART, masking=Masking(mask_rate=0.01, split=(0.0, 0.0, 1.0))))
    assert (np.asarray(seen.input_ids) == MASK).sum() > 5
    np.testing.assert_allclose(filled["rtd_loss"], plain["rtd_loss"], **CLOSE)


def test_the_loss_is_over_all_tokens_that_are_no_padding():
    seen, metrics = forward(sure_of(WORD), batch(*SIZES))
    assert metrics["rtd_loss"].count == sum(SIZES)
    # A discriminator that knows nothing says 0, a coin, at each of them.
    assert metrics["rtd_loss"].total / sum(SIZES) == pytest.approx(math.log(2), rel=1e-5)
    assert metrics["generator_loss"].count == seen.masked_weights.sum()


def test_metrics_of_the_discriminator_are_counted_by_hand():
    verdict = np.array([[2.0, -1.0, 0.5, -3.0, 9.0], [-0.2, 0.3, 7.0, -7.0, 1.0]], np.float32)
    labels = np.array([[1, 1, 0, 0, 0], [0, 1, 0, 0, 0]])
    real = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], np.float32)
    found = jax.tree.map(np.asarray, judge(verdict, labels, real))
    chances = 1 / (1 + np.exp(-np.array([2.0, -1.0, -0.5, 3.0, 0.2, 0.3])))  # of the label, at the six real tokens
    np.testing.assert_allclose(found["rtd_loss"], (-np.log(chances).sum(), 6), **CLOSE)
    assert found["rtd_accuracy"] == (4, 6)  # wrong: the second and the third
    assert found["rtd_recall"] == (2, 3)
    assert found["rtd_replaced"] == (3, 6)
    bins = found["rtd_histogram"].total
    assert bins.shape == (2, NUM_HISTOGRAM_BINS) and bins.sum(1).tolist() == [3, 3]
    assert bins[1, int(NUM_HISTOGRAM_BINS / (1 + math.exp(-2)))] == 1  # the first token's probability
    # Of nine pairs the positives 2, -1 and 0.3 are above 3, 1 and 2 of the negatives 0.5, -3 and -0.2.
    scores = ReplacedTokenDetection().scores(
        {n: Mean(*m) for n, m in found.items()} | {"generator_loss": Mean(*np.ones(2))}
    )
    assert scores["rtd_auc"] == pytest.approx(6 / 9) and scores["rtd_baseline"] == 0.5
    assert scores["generator_perplexity"] == pytest.approx(math.e) and scores["rtd_auc_error"] > 0


def test_a_certain_discriminator_has_a_loss_without_end_and_no_nan():
    verdict, zero, one = np.full((2, 5), -1e4, np.float32), np.zeros((2, 5), int), np.ones((2, 5), np.float32)
    verdict[0, 0] = 1e4
    found = judge(verdict, zero, one)
    assert found["rtd_loss"].total == 1e4 and np.asarray(found["rtd_histogram"].total)[0, [0, -1]].tolist() == [9, 1]


def test_the_histogram_is_left_out_of_training():
    seen = corrupted(batch(*SIZES))
    shapes = lambda train: jax.eval_shape(partial(metrics_of, objective=APART, train=train), parameters(APART), seen)
    assert shapes(False).keys() - shapes(True).keys() == {"rtd_histogram"}


def test_the_discriminator_s_loss_weighs_fifty_times_the_generator_s():
    assert ReplacedTokenDetection().loss_weights == {"generator_loss": 1.0, "rtd_loss": 50.0}
    assert (
        ReplacedTokenDetection().required_fields == frozenset() and ReplacedTokenDetection().num_distinct_passes is None
    )
    assert ReplacedTokenDetection().masking.split == (0.85, 0.0, 0.15)


@pytest.mark.parametrize(
    "change, values",
    [
        ({"generator_width": 0}, ["generator_width=0", "above 0"]),
        ({"temperature": -1.0}, ["temperature=-1.0", "above 0"]),
        ({"masking": Masking(mask_special=True)}, ["mask_special"]),
        (
            {"generator_width": None, "generator_training": "adversarial"},
            ["generator_training=adversarial", "objective.generator_width"],
        ),
        ({"generator_training": "two_stage"}, ["objective.tie=embeddings", "objective.tie=none"]),
    ],
)
def test_a_generator_that_cannot_be_is_refused(change, values):
    with raises_naming(ValueError, *values):
        ReplacedTokenDetection(**change)


# Other ways of training -----------------------------------------------------------------------------------------------

CHOSEN = replace(APART, loss_over="chosen")
TERMS = ("policy_loss", "baseline_loss", "rtd_loss")
ADVERSARIAL = replace(APART, generator_training="adversarial")
TWO_STAGE = replace(APART, generator_width=1.0, generator_training="two_stage")


@partial(jax.jit, static_argnames="objective", compiler_options=QUICK)
def judged(params, seen, *, objective):
    """What the generator fills in, and the discriminator's verdict on it."""
    module = objective.module(MODEL, FACTS)
    filled = module.apply({"params": params}, seen, method="fill_masks")
    return filled, module.apply(
        {"params": params}, seen.replace(input_ids=filled.filled_ids), method="compute_replaced_logits"
    )


def test_over_the_chosen_tokens_the_loss_leaves_out_all_others():
    rows, params = batch(*SIZES), parameters(APART)
    seen, found = forward(params, rows, objective=CHOSEN)
    filled, verdict = judged(params, seen, objective=CHOSEN)
    filled = filled.filled_ids
    chosen, total, replaced = np.asarray(seen.masked_weights), 0.0, 0
    for row, slot in zip(*np.nonzero(chosen), strict=True):
        place = seen.masked_positions[row, slot]
        label = filled[row, place] != rows.input_ids[row, place]
        total += np.log1p(np.exp(-verdict[row, place] if label else verdict[row, place]))
        replaced += label
    assert found["rtd_loss"].count == 26 and 0 < replaced < 26
    np.testing.assert_allclose(found["rtd_loss"].total, total, rtol=1e-4)
    assert found["rtd_replaced"] == (replaced, 26)
    assert np.asarray(found["rtd_histogram"].total).sum() == sum(SIZES)  # comparable with a loss over all


def test_a_lone_verdict_reaches_the_larger_of_two_shares():
    sums = {"rtd_replaced": (3, 4), "rtd_accuracy": (3, 4), "generator_loss": (0, 1)}
    scores = CHOSEN.scores({name: Mean(*map(np.float64, pair)) for name, pair in sums.items()})
    assert scores["rtd_baseline"] == 0.75
    accuracies = {"generator_mask_accuracy": 1.0, "generator_mask_baseline": 0.0}
    assert_names(diagnose_scores(CHOSEN, scores | accuracies)[0], "'replaced'", "75.00%")


@cache
def adversarial():
    """Metrics of a batch, the gradients of the three terms, and what the terms are made of."""
    params, seen = parameters(ADVERSARIAL), corrupted(batch(*SIZES))

    def totals(params):
        metrics = metrics_of(params, seen, ADVERSARIAL)
        return jnp.stack([metrics[name].total for name in TERMS]), metrics

    gradients, metrics = jax.jit(jax.jacrev(totals, has_aux=True), compiler_options=QUICK)(params)
    filled, verdict = judged(params, seen, objective=ADVERSARIAL)
    filled = jax.tree.map(np.asarray, filled)
    at_chosen = np.take_along_axis(np.asarray(verdict, np.float64), np.asarray(seen.masked_positions), 1)
    same = filled.sampled_ids == seen.masked_labels
    reward = np.log1p(np.exp(np.where(same, at_chosen, -at_chosen)))  # -log D where original, else -log(1 - D)
    guess = (filled.hidden @ params["baseline"]["kernel"] + params["baseline"]["bias"])[..., 0]
    shares = np.exp(filled.logits) / np.exp(filled.logits).sum(-1, keepdims=True)
    return (
        metrics,
        gradients,
        np.asarray(seen.masked_weights),
        filled.sampled_ids,
        shares,
        reward,
        1 / (1 + np.exp(-guess)),
    )


@pytest.mark.live
def test_the_adversarial_terms_are_those_of_the_appendix():
    metrics, _, weights, samples, shares, reward, guessed = adversarial()
    chance = np.take_along_axis(shares, samples[..., None], -1)[..., 0]
    policy = (np.log(chance) * (reward + np.log(guessed)) * weights).sum()  # b = -log sigmoid(w h)
    right = np.exp(-reward)
    baseline = -((right * np.log(guessed) + (1 - right) * np.log(1 - guessed)) * weights).sum()
    np.testing.assert_allclose(metrics["policy_loss"], (-policy, 26), rtol=1e-4)
    np.testing.assert_allclose(metrics["baseline_loss"], (baseline, 26), rtol=1e-4)
    np.testing.assert_allclose(metrics["policy_reward"], ((reward * weights).sum(), 26), rtol=1e-4)
    assert ADVERSARIAL.loss_weights == {"policy_loss": 1.0, "baseline_loss": 1.0, "rtd_loss": 50.0}
    assert {name: metrics[name].count for name in TERMS} == dict.fromkeys(TERMS, 26) | {"rtd_loss": sum(SIZES)}


def test_a_sample_that_deceives_more_than_expected_becomes_likelier():
    _, gradients, weights, samples, shares, reward, guessed = adversarial()
    better = (reward + np.log(guessed)) * weights
    one_hot = np.eye(21)[samples]
    expected = (better[..., None] * (shares - one_hot)).sum((0, 1))
    found = gradients["tokens"]["bias"][TERMS.index("policy_loss")]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_each_adversarial_term_teaches_its_own_network():
    taught = {term: set() for term in TERMS}
    for name, part in adversarial()[1].items():
        for i, term in enumerate(TERMS):
            if any(np.abs(leaf[i]).max() > 0 for leaf in jax.tree.leaves(part)):
                taught[term].add(name)
    assert taught == {
        "policy_loss": {"generator", "tokens"},
        "baseline_loss": {"baseline"},
        "rtd_loss": {"discriminator", "replaced"},
    }


def test_a_generator_of_another_size_cannot_lend_the_discriminator_its_weights():
    with raises_naming(
        ValueError, "objective.generator_width=1", "num_heads is 3 and 1", "intermediate_size is 20 and 48"
    ):
        TWO_STAGE.module(MODEL, FACTS)
    TWO_STAGE.module(replace(MODEL, num_heads=1, intermediate_size=48), FACTS)
    assert TWO_STAGE.frozen_params == ("generator", "tokens") and TWO_STAGE.loss_weights == {"rtd_loss": 50.0}
    assert ReplacedTokenDetection().frozen_params == ()
