"""What a compiled step must be, whatever the time it takes: its size, its buffers, its memory, its products."""

import re
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.costs.ledger import count_saved_activations, make_blank_vocab
from encoders.families import bert, electra
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import NextSentencePrediction
from encoders.training import step
from encoders.training.optimizer import AdamW

ROWS, LENGTH, VOCAB = 6, 40, 997
MODEL = replace(bert.TINY, vocab_size=VOCAB, max_positions=LENGTH)
PAIRS, REPLACED = MaskedLM(Masking(), NextSentencePrediction()), ReplacedTokenDetection(generator_width=1 / 2)
BOTH = pytest.mark.parametrize(
    "objective, model", [(PAIRS, MODEL), (REPLACED, electra.to_electra_config(MODEL))], ids=["pairs", "rtd"]
)
LIVE_PAIRS = pytest.mark.parametrize(
    "objective, model",
    [
        pytest.param(PAIRS, MODEL, id="pairs", marks=pytest.mark.live),
        pytest.param(REPLACED, electra.to_electra_config(MODEL), id="rtd", marks=pytest.mark.live),
    ],
)


@cache
def lowered(objective, model, rows=ROWS, length=LENGTH):
    module, optimizer = (
        objective.module(model, make_blank_vocab(model.vocab_size)),
        AdamW(learning_rate=1e-4, warmup_steps=1),
    )
    state = jax.eval_shape(lambda: step.init_train_state(0, module=module, optimizer=optimizer))
    blank = step.make_blank_batch(length, objective.required_fields)
    batch = jax.tree.map(lambda x: jnp.repeat(x, rows, axis=0), blank)
    return state, step.train_step.lower(state, batch, 0, module=module, optimizer=optimizer, total_steps=10)


@LIVE_PAIRS
def test_the_size_of_a_program_does_not_depend_on_depth(objective, model):
    shallow, deep = (lowered(objective, replace(model, num_layers=layers))[1].as_text() for layers in (3, 24))
    assert abs(len(deep) - len(shallow)) < 0.01 * len(shallow)
    unrolled = lowered(objective, replace(model, num_layers=8, unroll_layers=True))[1].as_text()
    assert len(unrolled) > 1.2 * len(shallow)


@BOTH
def test_no_buffer_holds_the_vocabulary_for_every_token(objective, model):
    shapes = set(re.findall(r"tensor<((?:\d+x)+)", lowered(objective, model)[1].as_text()))
    sizes = [np.prod([int(n) for n in shape.split("x")[:-1]]) for shape in shapes]
    with_vocabulary = [size for shape, size in zip(shapes, sizes, strict=True) if str(VOCAB) in shape.split("x")]
    assert ROWS * round(0.15 * LENGTH) * VOCAB in with_vocabulary  # logits at the chosen positions
    assert max(with_vocabulary) < ROWS * LENGTH * VOCAB


@LIVE_PAIRS
def test_the_new_state_lies_where_the_old_one_lay(objective, model):
    state, program = lowered(objective, model)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert program.compile().memory_analysis().alias_size_in_bytes >= size


@pytest.mark.live
def test_rematerialised_layers_take_less_memory_where_they_are_to_be_unrolled_too():
    """XLA merges what unrolled layers compute again with the first time."""
    sizes = dict(num_layers=4, max_positions=128, hidden_dropout=0.0, attention_dropout=0.0, unroll_layers=True)
    temporary = {}
    for remat in ("none", "full"):
        program = lowered(PAIRS, replace(MODEL, **sizes, remat=remat), 8, 128)[1]
        temporary[remat] = program.compile().memory_analysis().temp_size_in_bytes
    assert temporary["full"] < 0.5 * temporary["none"]


@pytest.mark.live
def test_a_step_works_in_the_memory_that_the_ledger_expects():
    """Gradients and the ledger's activations, of the layers and two more at work; rematerialised, much less."""
    temporary = {}
    for remat in ("none", "dots", "full"):
        state, program = lowered(PAIRS, replace(bert.MINI, vocab_size=VOCAB, remat=remat), 8, 128)
        temporary[remat] = program.compile().memory_analysis().temp_size_in_bytes
    gradients = sum(leaf.size * 4 for leaf in jax.tree.leaves(state.params))
    activations = 4 * 8 * 128 * count_saved_activations(replace(bert.MINI, num_layers=bert.MINI.num_layers + 2), 128)
    assert temporary["none"] < gradients + activations
    assert temporary["dots"] < gradients + 0.55 * activations
    assert temporary["full"] < gradients + 0.35 * activations
