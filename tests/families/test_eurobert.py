"""EuroBERT: counts, grouped heads, pooling, and what config.json says."""

import json
from dataclasses import replace

import numpy as np
import pytest

from encoders.costs.ledger import count_params, eval_param_shapes
from encoders.families import eurobert
from encoders.model.flops import forward_flops
from encoders.objectives.masked_lm import MaskedLM
from encoders.tasks.classification import Classification
from encoders.utils.errors import UserError

# EuroBertModel, EuroBertForMaskedLM and EuroBertForSequenceClassification of two classes.
COUNTS = {
    "eurobert-210m": (211_766_016, 310_266_624, 212_358_146),
    "eurobert-610m": (607_874_688, 755_625_600, 609_205_250),
    "eurobert-2.1b": (2_107_590_912, 2_403_092_736, 2_112_906_242),
}
TINY = eurobert.make_eurobert_config(24, 2, 6, 20, vocab_size=40, num_key_heads=3, max_positions=64)


@pytest.mark.parametrize("name", COUNTS)
def test_a_published_size_has_its_number_of_parameters(name):
    model = eurobert.SIZES[name]
    tree = eval_param_shapes(model, MaskedLM())
    classifier = eval_param_shapes(model, Classification(("a", "b"), "pooled"))
    assert (count_params(tree["encoder"]), count_params(tree), count_params(classifier)) == COUNTS[name]
    assert COUNTS.keys() == eurobert.SIZES.keys()


def test_flops_count_fewer_projections_where_key_heads_are_fewer():
    every, size = replace(TINY, num_key_heads=6), np.array([10.0])
    # Keys and values of half the heads, in two layers, two FLOPs a weight.
    assert forward_flops(every, size) - forward_flops(TINY, size) == 10 * 2 * 2 * 24 * 24


OLD = {"rope_theta": 5.0, "clf_pooling": "bos", "num_key_value_heads": 6}
NEW = {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "classifier_pooling": "mean"}


def test_configurations_of_transformers_4_and_5_are_read():
    read = eurobert.ARCHITECTURE.read_encoder_config
    assert read({"rope_theta": 250_000.0}) == eurobert.SIZES["eurobert-210m"]
    old, new = read(OLD), read(OLD | NEW)
    assert (old.rope_theta, old.pooling, old.num_key_heads) == (5.0, "cls", 6)
    assert (new.rope_theta, new.pooling, new.num_key_heads) == (7.0, "mean", 6)
    assert read(json.loads(json.dumps(eurobert.ARCHITECTURE.build_hf_config(new)))) == new


@pytest.mark.parametrize(
    "values, named",
    [
        ({"tie_word_embeddings": True}, ["tie_word_embeddings=True"]),
        ({"attention_bias": True}, ["attention_bias=True"]),
        ({"rope_parameters": {"rope_type": "yarn"}}, ["rope_type='yarn'"]),
        ({"rope_scaling": {"type": "linear"}}, ["rope_scaling", "linear"]),
        ({"num_key_value_heads": 5}, ["num_heads=12", "num_key_heads=5"]),
        ({"num_key_value_heads": "x"}, ["num_key_value_heads='x'"]),
        ({"head_dim": 32}, ["head_dim=32"]),
        ({"classifier_pooling": "max"}, ["pooling='max'"]),
        ({"hidden_act": "relu"}, ["hidden_act='relu'"]),
        ({"num_attention_heads": 256}, ["heads of 3"]),
    ],
)
def test_a_value_that_is_not_supported_is_named(values, named):
    with pytest.raises(UserError) as caught:
        eurobert.ARCHITECTURE.read_encoder_config(values)
    assert all(words in str(caught.value) for words in named)
