"""Disentangled embedding sharing: the discriminator's word table is the generator's plus a shift of its own."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from encoders.model.encoder import merge_word_tables
from encoders.training import step
from tests.objectives.test_replaced_tokens import (
    APART,
    CLOSE,
    FACTS,
    MODEL,
    QUICK,
    SIZES,
    batch,
    corrupted,
    metrics_of,
    parameters,
)


def test_a_disentangled_table_is_the_generators_and_a_shift_that_starts_at_zero():
    objective, rows = replace(APART, tie="disentangled"), batch(*SIZES)
    params = parameters(objective)
    assert set(params) == {"discriminator", "generator", "tokens", "replaced", "words"}
    assert "word" not in params["discriminator"]["embed"] and params["words"]["shift"].shape == (21, 8)
    start = jax.jit(partial(step.init_params, module=objective.module(MODEL, FACTS)), compiler_options=QUICK)
    assert not np.any(start(0)["words"]["shift"])
    # The discriminator reads the sum, as one that has it as a table of its own.
    alone = merge_word_tables(params)
    table = params["generator"]["embed"]["word"]["embedding"] + params["words"]["shift"]
    np.testing.assert_array_equal(alone["discriminator"]["embed"]["word"]["embedding"], table)

    @partial(jax.jit, static_argnames="objective", compiler_options=QUICK)
    def verdict(params, objective):
        return objective.module(MODEL, FACTS).apply({"params": params}, rows, method="compute_replaced_logits")

    np.testing.assert_allclose(verdict(params, objective), verdict(alone, APART), **CLOSE)


@pytest.mark.parametrize("term, moved", [("generator_loss", "generator"), ("rtd_loss", "words")])
def test_each_loss_moves_its_own_part_of_a_disentangled_table(term, moved):
    objective = replace(APART, tie="disentangled")
    loss = lambda params, seen: metrics_of(params, seen, objective)[term].total
    gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)(parameters(objective), corrupted(batch(*SIZES)))
    tables = {"generator": gradient["generator"]["embed"]["word"]["embedding"], "words": gradient["words"]["shift"]}
    assert {name for name, table in tables.items() if np.any(table)} == {moved}
