import math
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.model.config import EncoderConfig
from encoders.model.layers import CausalSelfAttention
from encoders.objectives.causal_lm import CausalLM
from tests.batches import make_batch
from tests.networks import make_vocab

QUICK = {"xla_backend_optimization_level": 0}  # compiles in a third of the time
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums of up to 20 terms in another order
CLS, SEP, COMMON = 2, 3, 6
FACTS = make_vocab(19)
MODEL = EncoderConfig(
    vocab_size=19, hidden_size=12, num_layers=2, num_heads=3, intermediate_size=20, embedding_size=8, max_positions=17,
    hidden_dropout=0.0, attention_dropout=0.0, attention=CausalSelfAttention,
)  # fmt: skip
FIRST, SECOND = [CLS, 7, COMMON, 9, SEP], [CLS, COMMON, SEP]


def batch(*rows, length):
    """Rows of examples, packed behind one another."""
    fields = {
        name: np.zeros((len(rows), length), np.int32)
        for name in ("input_ids", "example_ids", "token_type_ids", "position_ids")
    }
    for b, row in enumerate(rows):
        at = 0
        for n, tokens in enumerate(row):
            here = slice(at, at + len(tokens))
            fields["input_ids"][b, here], fields["example_ids"][b, here] = tokens, n + 1
            fields["position_ids"][b, here] = np.arange(len(tokens))
            at += len(tokens)
    return make_batch(**fields)


@cache
def parameters():
    """Random parameters, no bias 0 and no scale 1, so that one that is left out shows."""
    rows, module = jax.tree.map(jnp.asarray, batch([FIRST], length=7)), CausalLM().module(MODEL, FACTS)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), CausalLM().corrupt(rows, FACTS, 0))["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0.1, 0.3, leaf.shape).astype(np.float32), shapes)


@partial(jax.jit, compiler_options=QUICK)
def forward(params, rows):
    """The batch with its targets, its metrics, and the logits behind them."""
    seen, module = CausalLM().corrupt(rows, FACTS, 3), CausalLM().module(MODEL, FACTS)
    return (
        seen,
        module.apply({"params": params}, seen),
        module.apply({"params": params}, seen, method="compute_token_logits"),
    )


def test_every_token_of_an_example_but_its_first_is_to_be_predicted():
    rows = jax.tree.map(jnp.asarray, batch([FIRST, SECOND], [SECOND], length=9))
    seen = CausalLM().corrupt(rows, FACTS, 0)
    slots = zip(*np.nonzero(np.asarray(seen.masked_weights)), strict=True)
    found = [
        (int(row), int(seen.masked_positions[row, slot]), int(seen.masked_labels[row, slot])) for row, slot in slots
    ]
    first = [(0, 1, 7), (0, 2, COMMON), (0, 3, 9), (0, 4, SEP)]
    assert found == [*first, (0, 6, COMMON), (0, 7, SEP), (1, 1, COMMON), (1, 2, SEP)]
    np.testing.assert_array_equal(seen.input_ids, rows.input_ids)


def test_metrics_are_sums_over_the_tokens_to_be_predicted():
    seen, metrics, logits = jax.tree.map(np.asarray, forward(parameters(), batch([FIRST, SECOND], [SECOND], length=9)))
    logits, weights, targets = logits.astype(np.float64), seen.masked_weights, seen.masked_labels
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(metrics["clm_loss"], ((nll * weights).sum(), 8), **CLOSE)
    np.testing.assert_allclose(metrics["clm_accuracy"], (((logits.argmax(-1) == targets) * weights).sum(), 8), **CLOSE)
    assert metrics["clm_baseline"] == (3, 8)


def test_a_prediction_reads_no_token_from_its_own_place_on():
    rows = batch([FIRST, SECOND], [], length=9)
    _, _, before = forward(parameters(), rows)
    other = rows.input_ids.copy()
    other[0, 3] = 11
    _, _, after = forward(parameters(), rows.replace(input_ids=other))
    changed = np.flatnonzero((np.asarray(before) != np.asarray(after)).any(-1)[0]) + 1
    assert changed.tolist() == [4, 5]  # the token after it, and that at the start of the next example, of weight 0


def test_packed_examples_have_the_losses_that_they_have_apart():
    _, packed, _ = forward(parameters(), batch([FIRST, SECOND], [], length=9))
    _, apart, _ = forward(parameters(), batch([FIRST], [SECOND], length=9))
    jax.tree.map(partial(np.testing.assert_allclose, **CLOSE), packed, apart)


def test_a_model_that_knows_nothing_loses_the_logarithm_of_the_choices():
    _, metrics, _ = forward(jax.tree.map(np.zeros_like, parameters()), batch([FIRST], [SECOND], length=9))
    scores = CausalLM().scores(jax.tree.map(np.float64, metrics))
    assert scores["clm_loss"] == pytest.approx(math.log(19), rel=1e-5)
    assert scores["clm_perplexity"] == pytest.approx(19, rel=1e-4) and scores["clm_baseline"] == 2 / 6


def test_a_model_that_sees_what_it_has_to_predict_is_refused():
    CausalLM().module(MODEL, FACTS)
    with pytest.raises(ValueError, match="model.attention=SelfAttention.*model.attention=CausalSelfAttention"):
        CausalLM().module(replace(MODEL, attention=EncoderConfig.attention), FACTS)
