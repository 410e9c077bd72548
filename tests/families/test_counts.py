"""Parameters of every published size, against Hugging Face's models and the papers' tables.

Exact numbers: transformers 5.23 on the meta device, tied weights counted once. Rounded ones: the papers.
"""

from dataclasses import replace
from functools import cache

import pytest

from encoders.costs.ledger import count_params, count_params_by_part, eval_param_shapes
from encoders.families import albert, bert, electra, roberta
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction

TOKENS, NEXT, ORDER = (
    MaskedLM(),
    MaskedLM(sentence_task=NextSentencePrediction()),
    MaskedLM(sentence_task=SentenceOrderPrediction()),
)

eval_param_shapes = cache(eval_param_shapes)


def count(model, objective, *parts):
    """Parameters of all parts, or of those named: "encoder", "pooler"."""
    tree = eval_param_shapes(model, objective)
    chosen = []
    for part in parts:
        node = tree
        for name in part.split("/"):
            node = node[name]
        chosen.append(node)
    return count_params(chosen if parts else tree)


# BertModel, BertForPreTraining, BertForMaskedLM
BERT = {
    "bert-tiny": (4_385_920, 4_433_468, 4_416_698),
    "bert-mini": (11_170_560, 11_267_900, 11_201_594),
    "bert-small": (28_763_648, 29_058_876, 28_795_194),
    "bert-medium": (41_373_184, 41_668_412, 41_404_730),
    "bert-base": (109_482_240, 110_106_428, 109_514_298),
    "bert-large": (335_141_888, 336_226_108, 335_174_458),
    "bert-base-cased": (108_310_272, 108_932_934, 108_340_804),
    "bert-large-cased": (333_579_264, 334_661_958, 333_610_308),
}


def test_every_published_size_is_counted_here():
    assert (set(BERT), set(ROBERTA), set(ELECTRA)) == (set(bert.SIZES), set(roberta.SIZES), set(electra.SIZES))
    assert {name.removesuffix("-v2") for name in albert.SIZES} == set(ALBERT)
    assert len(albert.SIZES) == 2 * len(ALBERT)


@pytest.mark.parametrize("name", BERT)
def test_parameters_of_bert(name):
    model, (encoder, pairs, tokens) = bert.SIZES[name], BERT[name]
    assert count(model, NEXT, "encoder", "pooler") == encoder
    assert count(model, NEXT) == pairs
    assert count(model, TOKENS) == tokens


# RobertaModel without the pooler, which pre-training does not have; RobertaForMaskedLM
ROBERTA = {"roberta-base": (124_055_040, 124_697_433), "roberta-large": (354_310_144, 355_412_057)}


@pytest.mark.parametrize("name", ROBERTA)
def test_parameters_of_roberta(name):
    model, (encoder, tokens) = roberta.SIZES[name], ROBERTA[name]
    assert count(model, TOKENS, "encoder") == encoder
    assert count(model, TOKENS) == tokens
    # 512 positions after padding's index 1 and the one before; Hugging Face's defaults, 512 and 1e-12, are not these.
    assert eval_param_shapes(model, TOKENS)["encoder"]["embed"]["position"]["embedding"].shape == (
        514,
        model.hidden_size,
    )
    assert model.layer_norm_eps == 1e-5


def test_a_vocabulary_of_bytes_costs_roberta_the_paper_s_15_and_20_million():
    for name, millions in (("base", 15), ("large", 20)):
        words = lambda model: eval_param_shapes(model, TOKENS)["encoder"]["embed"]["word"]
        more = count_params(words(roberta.SIZES[f"roberta-{name}"])) - count_params(words(bert.SIZES[f"bert-{name}"]))
        assert round(more / 1e6) == millions


# AlbertModel, AlbertForPreTraining, AlbertForMaskedLM
ALBERT = {
    "albert-base": (11_683_584, 11_813_810, 11_221_680),
    "albert-large": (17_683_968, 17_847_474, 16_795_824),
    "albert-xlarge": (58_724_864, 59_021_490, 54_821_040),
    "albert-xxlarge": (222_595_584, 223_158_450, 206_368_944),  # the paper says 235, 233 and 225 million
}


@pytest.mark.parametrize("name", albert.SIZES)
def test_parameters_of_albert(name):
    model, (encoder, pairs, tokens) = albert.SIZES[name], ALBERT[name.removesuffix("-v2")]
    assert count(model, ORDER, "encoder", "pooler") == encoder
    assert count(model, ORDER) == pairs
    assert count(model, TOKENS) == tokens


@pytest.mark.parametrize("name", [name for name in albert.SIZES if name.endswith("-v2")])
def test_version_2_of_albert_is_version_1_without_dropout(name):
    assert albert.SIZES[name] == replace(
        albert.SIZES[name.removesuffix("-v2")], hidden_dropout=0.0, attention_dropout=0.0
    )


@pytest.mark.parametrize(
    "share, embedding, millions",
    [
        ((), 64, 87),
        ((), 128, 89),
        ((), 256, 93),
        ((), 768, 108),
        (albert.ALL_PARTS, 64, 10),
        (albert.ALL_PARTS, 128, 12),
        (albert.ALL_PARTS, 256, 16),
        (albert.ALL_PARTS, 768, 31),  # without a projection; Hugging Face's code has one here too and gets 31.7
        (("attention",), 128, 64),
        (("feed_forward",), 128, 38),
        (("attention",), 768, 83),
        (("feed_forward",), 768, 57),
    ],
)
def test_parameters_of_albert_tables_3_and_4(share, embedding, millions):
    model = replace(albert.BASE, shared_parts=share, embedding_size=embedding)
    pooler = ("pooler",) if share else ()  # which the papers' not-shared rows leave out
    assert round(count(model, ORDER, "encoder", *pooler) / 1e6) == millions


@pytest.mark.parametrize("hidden, exact", [(1024, 17.68), (2048, 58.72), (4096, 222.60), (6144, 495.52)])
def test_parameters_of_albert_table_12(hidden, exact):
    # The paper says 18, 60, 225 and 499 million; Hugging Face's models have these.
    model = replace(
        albert.LARGE, num_layers=3, hidden_size=hidden, num_heads=hidden // 64, intermediate_size=4 * hidden
    )
    assert round(count(model, ORDER, "encoder", "pooler") / 1e6, 2) == exact


def test_depth_costs_albert_nothing():
    deep = replace(albert.LARGE, num_layers=48)
    assert count(deep, ORDER) == ALBERT["albert-large"][1]
    assert count(replace(deep, num_groups=3), ORDER, "encoder/shared") == 3 * count(deep, ORDER, "encoder/shared")


# Discriminator, with its head, generator with its head; joint with tied embeddings, and without ties
ELECTRA = {
    "electra-small": (13_483_008, 13_549_057, 4_620_026, 14_196_219, 18_169_083),
    "electra-small++": (13_483_008, 13_549_057, 13_546_682, 23_122_875, 27_095_739),
    "electra-base": (108_891_648, 109_483_009, 33_740_602, 119_386_427, 143_223_611),
    "electra-large": (334_092_288, 335_142_913, 51_295_290, 354_655_291, 386_438_203),
}


@pytest.mark.parametrize("name", ELECTRA)
def test_parameters_of_electra(name):
    model, (encoder, judge, generator, tied, apart) = electra.SIZES[name], ELECTRA[name]
    none, tokens, embeddings = (
        ReplacedTokenDetection(generator_width=electra.GENERATOR_WIDTHS[name], tie=tie)
        for tie in ("none", "tokens", "embeddings")
    )
    assert count(model, none, "discriminator") == encoder
    assert count(model, none, "discriminator", "replaced") == judge
    assert count(model, none, "generator", "tokens") == generator
    assert count(model, none) == judge + generator == apart
    assert count(model, embeddings) == tied
    assert count(model, tokens) == apart - 30_522 * model.embedding_size


@pytest.mark.parametrize("name, generator", [("electra-base", 109_514_298), ("electra-large", 335_174_458)])
def test_parameters_of_a_generator_as_large_as_its_discriminator(name, generator):
    assert (
        count(electra.SIZES[name], ReplacedTokenDetection(generator_width=1.0, tie="none"), "generator", "tokens")
        == generator
    )


@pytest.mark.parametrize(
    "model, objective",
    [
        (bert.BASE, NEXT),
        (albert.BASE, ORDER),
        (electra.SMALL, ReplacedTokenDetection()),
        (electra.BASE, ReplacedTokenDetection()),
    ],
)
def test_the_parts_of_the_ledger_add_up(model, objective):
    parts = count_params_by_part(eval_param_shapes(model, objective))
    assert sum(parts.values()) == count(model, objective)
    assert all(isinstance(size, int) and size > 0 for size in parts.values())
