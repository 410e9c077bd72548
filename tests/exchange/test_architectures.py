"""The tables of names and fields, one a family."""

import pytest

from encoders.exchange.architectures import ALBERT, ARCHITECTURES, BERT, LEAF_NAMES, REQUIRED_VALUES, ROBERTA
from encoders.families import albert, bert, electra, roberta

SIZES = {"bert": bert.SIZES, "roberta": roberta.SIZES, "albert": albert.SIZES, "electra": electra.SIZES}


def without_tags(architecture):
    """The rows of a table but that of the tags, whose name a classifier of texts has too: the model class decides."""
    assert architecture.find_hf_leaf("tags/kernel") == ("classifier.weight", "kernel")
    return [row for row in architecture.module_names if row[0] != "tags"]


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_module_has_a_name_in_transformers_that_maps_back(family):
    architecture, seen = ARCHITECTURES[family], set()
    for ours, _ in without_tags(architecture):
        for leaf in LEAF_NAMES:
            theirs, kind = architecture.find_hf_leaf(f"{ours}/{leaf}")
            assert architecture.find_top_module(theirs.replace("{}", "7")) == ours.partition("/")[0]
            assert kind == leaf
        assert theirs not in seen
        seen.add(theirs)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_published_size_survives_a_round_trip_through_config_json(family):
    architecture = ARCHITECTURES[family]
    for name, model in SIZES[family].items():
        again = architecture.read_encoder_config(
            architecture.build_hf_config(model) | {"pad_token_id": model.position_offset - 1}
        )
        assert (
            again.collect_computation_fields() == model.collect_computation_fields()
            and again.vocab_size == model.vocab_size
        ), name


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_model_class_has_heads_of_the_table(family):
    architecture = ARCHITECTURES[family]
    known = {ours.partition("/")[0] for ours, _ in architecture.module_names}
    assert all(known.issuperset(heads) for heads, _ in architecture.model_classes)
    assert all(name.startswith(family.capitalize()) for _, name in architecture.model_classes)


@pytest.mark.parametrize("name", REQUIRED_VALUES)
def test_a_config_value_that_is_not_supported_is_named(name):
    with pytest.raises(ValueError, match=f"{name}='other'"):
        BERT.read_encoder_config({name: "other"})


def test_the_published_roberta_is_not_the_default_of_its_configuration():
    """The hub's file says 514 positions, of which two are never read, one segment, and another epsilon."""
    published = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
    model = ROBERTA.read_encoder_config(published)
    assert (model.max_positions, model.position_offset, model.num_token_types, model.layer_norm_eps) == (
        512,
        2,
        1,
        1e-5,
    )
    assert model.collect_computation_fields() == roberta.BASE.collect_computation_fields()
    assert ROBERTA.read_encoder_config({}).collect_computation_fields() != roberta.BASE.collect_computation_fields()


def test_an_empty_albert_config_is_xxlarge_with_tanh_gelu():
    model = ALBERT.read_encoder_config({})
    assert (model.hidden_size, model.num_heads, model.embedding_size, model.activation) == (4096, 64, 128, "gelu_tanh")


def test_roberta_positions_start_after_the_padding_id():
    model = roberta.BASE
    assert (
        ROBERTA.build_hf_config(model)["max_position_embeddings"] == 514
        and BERT.build_hf_config(bert.BASE)["max_position_embeddings"] == 512
    )
    assert ROBERTA.read_encoder_config({"pad_token_id": 0}).position_offset == 1
    with pytest.raises(ValueError, match="max_positions=0"):
        ROBERTA.read_encoder_config({"max_position_embeddings": 2})


@pytest.mark.parametrize("pad", [None, -1, True, 1.0, "1", [1]], ids=str)
def test_a_padding_id_that_is_not_a_token_id_is_refused(pad):
    with pytest.raises(ValueError, match="pad_token_id="):
        ROBERTA.read_encoder_config({"pad_token_id": pad})


@pytest.mark.parametrize("name, value", [("type_vocab_size", 0), ("layer_norm_eps", -1e-5), ("hidden_size", 0)])
def test_a_config_number_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} "):
        BERT.read_encoder_config({name: value})
    with pytest.raises(ValueError, match=f"{name}=inf"):
        BERT.read_encoder_config({name: float("inf")})


def test_no_tensor_has_two_rows_in_a_table():
    for architecture in ARCHITECTURES.values():
        theirs = [place for _, place in without_tags(architecture)]
        assert len(set(theirs)) == len(theirs) == len({ours for ours, _ in without_tags(architecture)})
        assert all(architecture.find_top_module(original) for _, original in architecture.tied_tensors)
        assert not {copy for copy, _ in architecture.tied_tensors} & {
            original for _, original in architecture.tied_tensors
        }


def test_a_name_in_no_table_is_not_mapped():
    for architecture in ARCHITECTURES.values():
        assert (
            architecture.find_hf_leaf("encoder/embed/other/bias") is None
            and architecture.find_top_module("other.weight") is None
        )
        assert architecture.find_top_module(f"{architecture.name}.embeddings.word_embeddings.weight.x") is None
    assert ALBERT.fixed_fields["always_project"] and ALBERT.find_hf_leaf("encoder/project/kernel")[1] == "kernel"
    assert BERT.find_hf_leaf("encoder/project/kernel") is None
