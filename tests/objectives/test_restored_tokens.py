from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.costs.ledger import list_trained_configs
from encoders.data.batch import build_single_example_batch
from encoders.model.config import EncoderConfig
from encoders.objectives.generator import ELECTRA_MASKING
from encoders.objectives.restored_tokens import ReplaceMLM, copy_log_probability, predict_likeliest_tokens
from tests.networks import make_vocab, random_parameters

QUICK = {"xla_backend_optimization_level": 0}  # compiles in a third of the time
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32 sums of up to 20 terms in another order, through four layers
FACTS = make_vocab(21)
MODEL = EncoderConfig(
    vocab_size=21, hidden_size=12, num_layers=2, num_heads=3, intermediate_size=20, embedding_size=8, max_positions=30,
    hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
ALL = ReplaceMLM(generator_width=1 / 2, masking=replace(ELECTRA_MASKING, mask_rate=0.5))
CHOSEN = replace(ALL, loss_over="chosen")
SIZES = (22, 9, 17, 6)  # of which halves are chosen: 11, 4, 8 and 3, to the even neighbour


def batch(*sizes, length=22):
    at, size = np.arange(length)[None], np.array(sizes)[:, None]
    tokens = np.where(at < size, np.random.default_rng(0).integers(5, 21, (len(sizes), length)), 0)
    tokens[:, 0] = 2
    return build_single_example_batch(tokens, lengths=np.array(sizes))


@cache
def parameters(objective):
    return random_parameters(objective, MODEL, FACTS, batch(6))


@partial(jax.jit, static_argnames="objective", compiler_options=QUICK)
def forward(params, rows, *, objective):
    """The corrupted batch, its metrics, the text that is shown, and the logits and gate of every token."""
    seen, module = objective.corrupt(rows, FACTS, 3), objective.module(MODEL, FACTS).bind({"params": params})
    tokens = module.fill_masks(seen).filled_ids
    hidden = module.discriminator(seen.replace(input_ids=tokens))
    logits = module.restored(hidden, module.discriminator.active_embeddings.word_embedding.embedding)
    gate = module.gate(hidden)[..., 0] if objective.loss_over == "all" else None
    return seen, module(seen), tokens, logits, gate


def softmax(x):
    x = np.exp(np.asarray(x, np.float64))
    return x / x.sum(-1, keepdims=True)


# The copy mechanism ---------------------------------------------------------------------------------------------------

SHARES = np.array([[[0.5, 0.3, 0.2]] * 4], np.float32)
SHOWN = np.array([[0, 1, 1, 2]])


def test_the_token_shown_has_the_gate_s_probability_on_top():
    gate = np.log(np.array([[1.0, 1.0, 3.0, 1 / 3]], np.float32))  # D of 1/2, 1/2, 3/4, 1/4
    chances = jax.jit(copy_log_probability)(np.log(SHARES), gate, SHOWN, np.array([[0, 1, 0, 2]]))
    np.testing.assert_allclose(np.exp(chances), [[0.5 + 0.25, 0.5 + 0.15, 0.25 * 0.5, 0.25 + 0.75 * 0.2]], rtol=1e-5)


def test_the_likeliest_token_is_that_shown_or_the_best_of_the_others():
    # Shown 0, the best by itself; then 1: D + (1 - D) 0.3 against (1 - D) 0.5, which are equal at D = 1/6; then 2.
    gate = np.log(np.array([[1e-6, 0.19, 0.21, 1.0]], np.float32))  # odds: D of 0.16 and 0.174 in the middle
    assert jax.jit(predict_likeliest_tokens)(np.log(SHARES), gate, SHOWN).tolist() == [[0, 0, 1, 2]]


def test_a_gate_that_is_certain_has_a_finite_loss_and_gradient():
    gate = np.array([[1e4, -1e4, 1e4, 1e4]], np.float32)  # the third and fourth copy what is wrong
    loss = jax.jit(jax.value_and_grad(lambda *given: -copy_log_probability(*given).sum(), (0, 1)))
    found, gradients = loss(np.log(SHARES), gate, SHOWN, np.array([[0, 1, 0, 0]]))
    assert found == pytest.approx(2e4, rel=1e-3)
    assert all(np.isfinite(leaf).all() for leaf in gradients) and gradients[1][0, 2:].tolist() == [1.0, 1.0]


# Loss -----------------------------------------------------------------------------------------------------------------


def test_over_all_tokens_the_loss_is_of_the_mixture_and_scores_are_at_the_chosen_ones():
    seen, metrics, tokens, logits, gate = jax.tree.map(
        np.asarray, forward(parameters(ALL), batch(*SIZES), objective=ALL)
    )
    copy = 1 / (1 + np.exp(-gate.astype(np.float64)))[..., None]
    chances = copy * np.eye(21)[tokens] + (1 - copy) * softmax(logits)
    nll = -np.log(np.take_along_axis(chances, seen.clean_ids[..., None], -1)[..., 0])
    real = seen.example_ids > 0
    at_chosen = lambda x: np.take_along_axis(x, seen.masked_positions, 1)[seen.masked_weights > 0]
    right = at_chosen(chances.argmax(-1) == seen.clean_ids).sum()
    np.testing.assert_allclose(metrics["restored_loss"], (nll[real].sum(), sum(SIZES)), **CLOSE)
    np.testing.assert_allclose(metrics["restored_copied"], (copy[..., 0][real].sum(), sum(SIZES)), **CLOSE)
    assert metrics["restored_accuracy"] == (right, 26)
    assert metrics["restored_baseline"] == (at_chosen(tokens == seen.clean_ids).sum(), 26)
    assert metrics["generator_loss"].count == 26


def test_over_the_chosen_tokens_the_loss_is_of_the_softmax_alone():
    found = forward(parameters(CHOSEN), batch(*SIZES), objective=CHOSEN)
    seen, metrics, tokens, logits, _ = jax.tree.map(np.asarray, found)
    chosen, chances = seen.masked_weights > 0, np.take_along_axis(softmax(logits), seen.masked_positions[..., None], 1)
    nll = -np.log(np.take_along_axis(chances, seen.masked_labels[..., None], -1)[..., 0])
    np.testing.assert_allclose(metrics["restored_loss"], (nll[chosen].sum(), 26), **CLOSE)
    assert metrics["restored_accuracy"] == ((chances.argmax(-1) == seen.masked_labels)[chosen].sum(), 26)
    assert "restored_copied" not in metrics
    assert metrics["restored_baseline"] == ((tokens == seen.clean_ids).sum() - (22 * 4 - 26), 26)


@pytest.mark.parametrize("objective", [ALL, CHOSEN], ids=["all", "chosen"])
def test_the_counts_are_those_of_all_tokens_or_of_the_chosen_ones(objective):
    seen, metrics, *_ = forward(parameters(objective), batch(*SIZES), objective=objective)
    assert objective.loss_weights == {"generator_loss": 1.0, "restored_loss": 1.0}
    assert metrics["generator_loss"].count == seen.masked_weights.sum() == 26
    assert metrics["restored_loss"].count == (sum(SIZES) if objective is ALL else 26)


def test_only_a_loss_over_all_tokens_has_a_gate():
    networks = {"discriminator", "generator", "tokens", "restored"}
    assert set(parameters(CHOSEN)) == networks and set(parameters(ALL)) == networks | {"gate"}


def test_without_a_generator_the_network_restores_random_tokens():
    alone = replace(CHOSEN, generator_width=None)
    assert alone.loss_weights == {"restored_loss": 1.0} and list_trained_configs(alone, MODEL) == [MODEL]
    assert set(parameters(alone)) == {"discriminator", "restored"}
    rows = jax.tree.map(jnp.asarray, batch(*SIZES))
    _, metrics, *_ = jax.eval_shape(partial(forward.__wrapped__, objective=alone), parameters(alone), rows)
    assert set(metrics) == {"restored_loss", "restored_accuracy", "restored_baseline"}
