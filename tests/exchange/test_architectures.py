"""The tables of names and fields, one a family."""

import pytest

from encoders.families import albert, bert, deberta, electra, esm, eurobert, modernbert, neobert, roberta
from encoders.families.architecture import LEAF_NAMES, REQUIRED_VALUES
from encoders.families.registry import ARCHITECTURES

SIZES = {
    "bert": bert.SIZES,
    "roberta": roberta.SIZES,
    "albert": albert.SIZES,
    "electra": electra.SIZES,
    "modernbert": modernbert.SIZES,
    "eurobert": eurobert.SIZES,
    "neobert": neobert.SIZES,
    "esm": esm.SIZES,
    "deberta-v2": deberta.SIZES,
}


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_the_tensors_of_every_model_class_have_names_of_their_own_that_tell_its_heads(family):
    architecture = ARCHITECTURES[family]
    for heads, class_name in architecture.model_classes:
        held = [ours for ours, _ in architecture.module_names if ours.partition("/")[0] in ("encoder", *heads)]
        leaves = [architecture.find_hf_leaf(f"{ours}/{leaf}", 1, 3) for ours in held for leaf in ("kernel", "bias")]
        names = [name for name, _ in leaves]
        assert len(set(names)) == len(names) == 2 * len(set(held))
        assert architecture.infer_heads(names, [class_name]) == set(heads)
        assert architecture.infer_heads([name for name in names if name.endswith("weight")], [class_name]) == set(heads)
        assert {kind for _, kind in leaves} == {"kernel", "bias"} <= LEAF_NAMES.keys()


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
    assert all(name.lower().startswith(family.replace("-", "")) for _, name in architecture.model_classes)


@pytest.mark.parametrize("name", REQUIRED_VALUES)
def test_a_config_value_that_is_not_supported_is_named(name):
    with pytest.raises(ValueError, match=f"{name}='other'"):
        bert.ARCHITECTURE.read_encoder_config({name: "other"})


def test_the_published_roberta_is_not_the_default_of_its_configuration():
    """The hub's file says 514 positions, of which two are never read, one segment, and another epsilon."""
    published = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
    model = roberta.ARCHITECTURE.read_encoder_config(published)
    assert (model.max_positions, model.position_offset, model.num_token_types, model.layer_norm_eps) == (
        512,
        2,
        1,
        1e-5,
    )
    assert model.collect_computation_fields() == roberta.BASE.collect_computation_fields()
    assert (
        roberta.ARCHITECTURE.read_encoder_config({}).collect_computation_fields()
        != roberta.BASE.collect_computation_fields()
    )


def test_an_empty_albert_config_is_xxlarge_with_tanh_gelu():
    model = albert.ARCHITECTURE.read_encoder_config({})
    assert (model.hidden_size, model.num_heads, model.embedding_size, model.activation) == (4096, 64, 128, "gelu_tanh")


def test_roberta_positions_start_after_the_padding_id():
    model = roberta.BASE
    assert (
        roberta.ARCHITECTURE.build_hf_config(model)["max_position_embeddings"] == 514
        and bert.ARCHITECTURE.build_hf_config(bert.BASE)["max_position_embeddings"] == 512
    )
    assert roberta.ARCHITECTURE.read_encoder_config({"pad_token_id": 0}).position_offset == 1
    with pytest.raises(ValueError, match="max_positions=0"):
        roberta.ARCHITECTURE.read_encoder_config({"max_position_embeddings": 2})


@pytest.mark.parametrize("pad", [None, -1, True, 1.0, "1", [1]], ids=str)
def test_a_padding_id_that_is_not_a_token_id_is_refused(pad):
    with pytest.raises(ValueError, match="pad_token_id="):
        roberta.ARCHITECTURE.read_encoder_config({"pad_token_id": pad})


@pytest.mark.parametrize("name, value", [("type_vocab_size", 0), ("layer_norm_eps", -1e-5), ("hidden_size", 0)])
def test_a_config_number_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} "):
        bert.ARCHITECTURE.read_encoder_config({name: value})
    with pytest.raises(ValueError, match=f"{name}=inf"):
        bert.ARCHITECTURE.read_encoder_config({name: float("inf")})


def test_no_module_has_two_rows_and_no_tied_tensor_is_unknown():
    for architecture in ARCHITECTURES.values():
        assert len({ours for ours, _ in architecture.module_names}) == len(architecture.module_names)
        assert all(architecture.list_top_modules(original) for _, original in architecture.tied_tensors)
        assert not {copy for copy, _ in architecture.tied_tensors} & {
            original for _, original in architecture.tied_tensors
        }


def test_a_name_in_no_table_is_not_mapped():
    for architecture in ARCHITECTURES.values():
        assert architecture.find_hf_leaf("encoder/embed/other/bias") is None and not architecture.list_top_modules(
            "other.weight"
        )
        assert not architecture.list_top_modules(f"{architecture.name}.embeddings.word_embeddings.weight.x")
    assert (
        albert.ARCHITECTURE.fixed_fields["always_project"]
        and albert.ARCHITECTURE.find_hf_leaf("encoder/project/kernel")[1] == "kernel"
    )
    assert bert.ARCHITECTURE.find_hf_leaf("encoder/project/kernel") is None
