import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.model.config import EncoderConfig
from encoders.objectives.losses import cross_entropy
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.utils.metrics import Mean
from tests.batches import make_batch
from tests.networks import make_vocab

QUICK = {"xla_backend_optimization_level": 0}  # compiles in a third of the time
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums of up to 20 terms in another order
PAD, UNK, CLS, SEP, MASK = range(5)
FACTS = make_vocab(19)
MODEL = EncoderConfig(
    vocab_size=19, hidden_size=12, num_layers=2, num_heads=3, intermediate_size=20, embedding_size=8, max_positions=17,
    hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
PAIRS, ALONE = MaskedLM(Masking(mask_rate=0.3), NextSentencePrediction()), MaskedLM(Masking(mask_rate=0.3))


def example(size, label, seed=0):
    """Tokens from [CLS] to [SEP], and a label."""
    tokens = np.random.default_rng((size, seed)).integers(5, 19, size)
    tokens[0], tokens[-1] = CLS, SEP
    return tokens, label


def batch(*rows, length, cap):
    """Rows of examples, packed behind one another; the id of an example is its size."""
    fields = {
        name: np.zeros((len(rows), length), np.int32)
        for name in ("input_ids", "example_ids", "token_type_ids", "position_ids")
    }
    per_example = ("cls_positions", "example_index", "example_mask", "next_sentence", "sentence_order")
    fields |= {name: np.zeros((len(rows), cap), np.int32) for name in per_example}
    for b, row in enumerate(rows):
        at = 0
        for n, (tokens, label) in enumerate(row):
            here, size = slice(at, at + len(tokens)), len(tokens)
            fields["input_ids"][b, here], fields["example_ids"][b, here] = tokens, n + 1
            fields["position_ids"][b, here], fields["token_type_ids"][b, here] = (
                np.arange(size),
                np.arange(size) >= size // 2,
            )
            fields["cls_positions"][b, n], fields["example_index"][b, n], fields["example_mask"][b, n] = at, size, 1
            fields["next_sentence"][b, n] = fields["sentence_order"][b, n] = label
            at += len(tokens)
    return make_batch(**fields)


@cache
def parameters(objective, scale=0.3):
    """Random parameters, no bias 0 and no scale 1, so that one that is left out shows."""
    rows = jax.tree.map(jnp.asarray, batch([example(7, 1)], length=9, cap=1))
    module = objective.module(MODEL, FACTS)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), objective.corrupt(rows, FACTS, 0))["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0.4 * scale, scale, leaf.shape).astype(np.float32), shapes)


@partial(jax.jit, static_argnames="objective", compiler_options=QUICK)
def forward(params, rows, *, objective):
    """The corrupted batch, its metrics, and the logits behind them."""
    seen, module = objective.corrupt(rows, FACTS, 3), objective.module(MODEL, FACTS)
    return (
        seen,
        module.apply({"params": params}, seen),
        module.apply({"params": params}, seen, method="compute_token_logits"),
    )


def metrics_of(objective, rows):
    return forward(parameters(objective), rows, objective=objective)[1]


ROWS = batch([example(9, 1)], [example(7, 0)], [example(13, 1)], [], [example(5, 0)], length=13, cap=1)


def test_cross_entropy_is_in_nats():
    logits = np.log(np.array([[1, 2, 5], [3, 3, 2]], np.float32))
    np.testing.assert_allclose(jax.jit(cross_entropy)(logits, np.array([2, 0])), -np.log([5 / 8, 3 / 8]), **CLOSE)


@pytest.mark.parametrize("objective", [PAIRS, MaskedLM(Masking(mask_rate=0.3), SentenceOrderPrediction()), ALONE])
def test_a_model_that_knows_nothing_loses_the_logarithm_of_the_choices(objective):
    params = jax.tree.map(np.zeros_like, parameters(objective))
    seen, metrics, _ = forward(params, ROWS, objective=objective)
    # 0.3 of 9, 7, 13 and 5 tokens, the last to the even neighbour; the fourth row is no example
    assert metrics["mlm_loss"].count == 3 + 2 + 4 + 2
    assert metrics["mlm_loss"].total / 11 == pytest.approx(math.log(19), rel=1e-5)
    assert set(objective.loss_weights) <= set(metrics)
    assert seen.masked_weights.sum() == metrics["mlm_loss"].count
    if objective.sentence_task:
        name = objective.sentence_task.metric_prefix
        assert metrics[f"{name}_loss"].count == 4
        assert metrics[f"{name}_loss"].total / 4 == pytest.approx(math.log(2), rel=1e-5)
        assert metrics[f"{name}_positives"].total == 2
        assert metrics[f"{name}_accuracy"].total == 2  # a tie is the first class


def test_metrics_are_sums_over_the_chosen_positions_and_the_valid_examples():
    seen, metrics, logits = jax.tree.map(np.asarray, forward(parameters(PAIRS), ROWS, objective=PAIRS))
    logits, weights, targets = logits.astype(np.float64), seen.masked_weights, seen.masked_labels
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    masked = weights * (np.take_along_axis(seen.input_ids, seen.masked_positions, 1) == MASK)
    right = logits.argmax(-1) == targets
    assert 0 < masked.sum() < weights.sum() == 11
    expected = {
        "mlm_loss": ((nll * weights).sum(), 11),
        "mlm_accuracy": ((right * weights).sum(), 11),
        "mlm_mask_accuracy": ((right * masked).sum(), masked.sum()),
        "mlm_mask_baseline": (((targets == FACTS.most_frequent_id) * masked).sum(), masked.sum()),
    }
    for name, pair in expected.items():
        np.testing.assert_allclose(metrics[name], pair, **CLOSE)
    assert len(metrics) == 7


def test_the_z_loss_is_the_mean_square_of_the_log_partition_at_masked_positions():
    objective = MaskedLM(Masking(mask_rate=0.3), z_loss_weight=0.01)
    seen, metrics, logits = jax.tree.map(np.asarray, forward(parameters(ALONE), ROWS, objective=objective))
    squares = np.log(np.exp(logits.astype(np.float64)).sum(-1)) ** 2
    np.testing.assert_allclose(metrics["z_loss"], ((squares * seen.masked_weights).sum(), 11), **CLOSE)
    assert objective.loss_weights == {"mlm_loss": 1.0, "z_loss": 0.01}
    assert "z_loss" not in metrics_of(ALONE, ROWS)
    with pytest.raises(ValueError, match="objective.z_loss_weight=-1"):
        MaskedLM(z_loss_weight=-1)


@pytest.mark.parametrize(
    "sentences, field", [(NextSentencePrediction(), "next_sentence"), (SentenceOrderPrediction(), "sentence_order")]
)
def test_a_sentence_task_needs_its_label(sentences, field):
    objective = MaskedLM(sentence_task=sentences)
    assert objective.required_fields == {field}
    assert objective.loss_weights == {"mlm_loss": 1.0, f"{sentences.metric_prefix}_loss": 1.0}


def test_without_a_sentence_task_there_is_no_pair_head():
    assert ALONE.required_fields == frozenset() and ALONE.loss_weights == {"mlm_loss": 1.0}
    assert set(parameters(ALONE)) == {"encoder", "tokens"}
    assert set(parameters(PAIRS)) == {"encoder", "tokens", "pooler", "pair"}


def test_the_label_turns_the_loss_of_a_pair():
    flipped = ROWS.replace(labels={"next_sentence": 1 - ROWS.labels["next_sentence"]})
    one, two = metrics_of(PAIRS, ROWS), metrics_of(PAIRS, flipped)
    assert one["nsp_accuracy"].total + two["nsp_accuracy"].total == 4
    # -log p and -log(1 - p) of the same four, whose sum is the least where p is a half
    assert one["nsp_loss"].total + two["nsp_loss"].total > 4 * 2 * math.log(2)
    assert one["mlm_loss"].total == two["mlm_loss"].total


def test_packed_examples_have_the_losses_that_they_have_apart():  # nor does a row of padding change them
    apart = batch([example(9, 1)], [example(4, 0)], [example(6, 1)], [example(3, 1)], [], length=13, cap=1)
    packed = batch([example(6, 1), example(3, 1)], [example(9, 1), example(4, 0)], length=13, cap=3)
    one, two = metrics_of(PAIRS, apart), metrics_of(PAIRS, packed)
    assert one.keys() == two.keys() and one["nsp_loss"].count == 4
    for name in one:
        np.testing.assert_allclose(one[name], two[name], **CLOSE)


def test_scores_have_a_perplexity_errors_and_the_share_of_the_larger_class():
    sums = {
        "mlm_loss": (22.0, 11), "mlm_accuracy": (3.0, 12), "nsp_loss": (2.0, 4), "nsp_accuracy": (3.0, 4),
        "nsp_positives": (1.0, 4),
    }  # fmt: skip
    scores = PAIRS.scores({name: Mean(*map(np.float64, pair)) for name, pair in sums.items()})
    assert scores["mlm_loss"] == 2.0 and scores["mlm_perplexity"] == pytest.approx(math.e**2)
    assert scores["mlm_accuracy"] == 0.25 and scores["mlm_accuracy_error"] == pytest.approx((0.25 * 0.75 / 12) ** 0.5)
    assert scores["nsp_accuracy"] == 0.75 and scores["nsp_baseline"] == 0.75 and "nsp_positives" not in scores


def test_where_no_mask_is_shown_there_is_no_score_at_masks():
    none, some = Mean(np.float64(0), np.float64(0)), Mean(np.float64(1), np.float64(4))
    at_mask = ("mlm_mask_accuracy", "mlm_mask_baseline")
    sums = {"mlm_loss": some, "mlm_accuracy": some}
    shown = ALONE.scores(sums | dict.fromkeys(at_mask, some))
    assert ALONE.scores(sums | dict.fromkeys(at_mask, none)).keys() == shown.keys() - {*at_mask, f"{at_mask[0]}_error"}


def test_a_loss_beyond_all_bounds_has_a_perplexity_still():
    scores = ALONE.scores({"mlm_loss": Mean(np.float64(1e9), np.float64(1))})
    assert math.isfinite(scores["mlm_perplexity"])
