"""NeoBERT: counts, the pairs of its rotary positions, its initialiser, and what config.json says."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import encoders
from encoders.costs.ledger import count_params, eval_param_shapes, step_flops
from encoders.families import neobert
from encoders.model import rotary
from encoders.model.encoder import Encoder
from encoders.objectives.masked_lm import MaskedLM
from encoders.utils.errors import UserError
from tests.families.rows import make_rows

TINY = replace(neobert.BASE, vocab_size=40, hidden_size=12, embedding_size=12, num_layers=2, num_heads=3)


def test_the_published_model_has_its_number_of_parameters():
    tree = eval_param_shapes(neobert.BASE, MaskedLM())
    assert (count_params(tree["encoder"]), count_params(tree)) == (221_665_536, 245_136_954)


def test_neighbours_of_a_head_are_rotated_by_the_angle_of_their_position():
    table = rotary.make_rotary_table(jnp.array([[0, 3]]), 4, 100.0, np.float32)
    x = jnp.arange(1.0, 9).reshape(1, 2, 1, 4)
    turned = np.asarray(rotary.rotate_neighbours(x, table))[0, :, 0]
    np.testing.assert_allclose(turned[0], x[0, 0, 0])
    pairs = (x[0, 1, 0, ::2] + 1j * x[0, 1, 0, 1::2]) * np.exp(3j * np.array([1, 0.1]))
    np.testing.assert_allclose(turned[1], [pairs[0].real, pairs[0].imag, pairs[1].real, pairs[1].imag], rtol=1e-5)


def test_matrices_and_tables_are_drawn_uniformly_within_the_range():
    params = Encoder(TINY).init(jax.random.key(0), make_rows(3))["params"]
    for leaf in (params["embed"]["word"]["embedding"], params["layers"]["transform"]["up"]["kernel"]):
        assert 0.0195 < np.abs(leaf).max() < 0.02 and abs(np.std(leaf) - 0.04 / 12**0.5) < 1e-3


def test_flops_of_the_untied_head_are_those_of_its_one_matrix():
    first = encoders.load_experiments("first")["first"]
    model = replace(TINY, vocab_size=first.model.vocab_size)
    rows = np.array([100.0])
    experiment = replace(first, model=model, objective=MaskedLM())
    tied = replace(experiment, model=replace(model, token_head=first.model.token_head))
    # A dense layer of 12 x 12 at 15 positions, forward and backward.
    assert step_flops(tied, rows) - step_flops(experiment, rows) == 15 * 3 * 2 * 12 * 12


def test_config_json_has_three_halves_of_the_inner_width():
    read, write = neobert.ARCHITECTURE.read_encoder_config, neobert.ARCHITECTURE.build_hf_config
    assert read({}) == neobert.BASE and write(neobert.BASE)["intermediate_size"] == 3072
    odd = replace(neobert.BASE, intermediate_size=104)
    assert read(json.loads(json.dumps(write(odd)))) == odd
    assert neobert.ARCHITECTURE.list_config_differences(replace(odd, intermediate_size=101), 0) == [
        "intermediate_size=101"
    ]


@pytest.mark.parametrize(
    "values, named",
    [
        ({"hidden_act": "gelu"}, ["hidden_act='gelu'"]),
        ({"rms_norm": False}, ["rms_norm=False"]),
        ({"num_attention_heads": 256}, ["heads of 3"]),
        ({"intermediate_size": 0}, ["intermediate_size=0"]),
    ],
)
def test_a_value_that_is_not_supported_is_named(values, named):
    with pytest.raises(UserError) as caught:
        neobert.ARCHITECTURE.read_encoder_config(values)
    assert all(words in str(caught.value) for words in named)
