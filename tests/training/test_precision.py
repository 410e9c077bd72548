"""bfloat16 learns what float32 learns."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.costs.ledger import make_blank_vocab
from encoders.data.batch import build_single_example_batch
from encoders.families import bert, electra
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.training import step
from encoders.training.optimizer import AdamW

SMALL = dict(
    vocab_size=97,
    hidden_size=64,
    embedding_size=64,
    intermediate_size=128,
    max_positions=16,
    init_std=0.1,
    hidden_dropout=0.0,
)
MODEL = replace(bert.TINY, **SMALL, num_layers=1, attention_dropout=0.0)


def losses(objective, model, steps=60) -> np.ndarray:
    """The loss of every step on one batch of random ids."""
    module, optimizer = (
        objective.module(model, make_blank_vocab(model.vocab_size)),
        AdamW(learning_rate=3e-3, warmup_steps=5),
    )
    segments, labels = np.ones((8, 16), np.int32), {n: np.arange(8)[:, None] % 2 for n in objective.required_fields}
    batch = build_single_example_batch(np.random.default_rng(0).integers(5, 97, (8, 16)), segments, labels=labels)
    state, found = jax.jit(lambda: step.init_train_state(0, module=module, optimizer=optimizer))(), []
    for _ in range(steps):
        state, metrics = step.train_step(state, batch, 0, module=module, optimizer=optimizer, total_steps=steps)
        found.append(sum(w * metrics[name].total / metrics[name].count for name, w in objective.loss_weights.items()))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
    return np.array(found)


@pytest.mark.live
def test_bfloat16_reaches_the_loss_of_float32():
    """Of the objective with two networks and every kind of layer."""
    objective, model = ReplacedTokenDetection(generator_width=1 / 2), electra.to_electra_config(MODEL)
    full, half = losses(objective, model), losses(objective, replace(model, dtype="bfloat16"))
    assert full[-5:].mean() < 0.75 * full[0]  # something was learned
    assert half[-5:].mean() == pytest.approx(full[-5:].mean(), rel=0.05, abs=0.05)
