"""The tables of names and fields, one a family."""

import pytest

from encoders.exchange.architectures import ALBERT, ARCHITECTURES, BERT, FIXED, LEAVES, ROBERTA
from encoders.families import albert, bert, electra, roberta

SIZES = {"bert": bert.SIZES, "roberta": roberta.SIZES, "albert": albert.SIZES, "electra": electra.SIZES}


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_place_of_ours_is_one_of_theirs_and_leads_back(family):
    architecture, seen = ARCHITECTURES[family], set()
    for ours, _ in architecture.table:
        for leaf in LEAVES:
            theirs, kind = architecture.place(f"{ours}/{leaf}")
            assert architecture.part(theirs.replace("{}", "7")) == ours.partition("/")[0]
            assert kind == leaf
        assert theirs not in seen
        seen.add(theirs)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_published_size_is_what_its_configuration_says(family):
    architecture = ARCHITECTURES[family]
    for name, model in SIZES[family].items():
        again = architecture.read(architecture.write(model) | {"pad_token_id": model.position_offset - 1})
        assert again.computes() == model.computes() and again.vocab == model.vocab, name


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_class_is_made_of_parts_of_the_table(family):
    architecture = ARCHITECTURES[family]
    known = {ours.partition("/")[0] for ours, _ in architecture.table}
    assert all(parts <= known for parts, _ in architecture.classes)
    assert all(name.startswith(family.capitalize()) for _, name in architecture.classes)


@pytest.mark.parametrize("name", FIXED)
def test_what_no_model_here_does_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name}='other'; only"):
        BERT.read({name: "other"})


def test_the_published_roberta_is_not_the_default_of_its_configuration():
    """The hub's file says 514 positions, of which two are never read, one segment, and another epsilon."""
    published = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
    model = ROBERTA.read(published)
    assert (model.positions, model.position_offset, model.segments, model.norm_epsilon) == (512, 2, 1, 1e-5)
    assert model.computes() == roberta.BASE.computes()
    assert ROBERTA.read({}).computes() != roberta.BASE.computes()


def test_albert_without_values_is_the_xxlarge_one_with_its_tanh():
    model = ALBERT.read({})
    assert (model.hidden, model.heads, model.embedding, model.activation) == (4096, 64, 128, "gelu_tanh")


def test_roberta_counts_its_positions_from_its_padding_on():
    model = roberta.BASE
    assert (
        ROBERTA.write(model)["max_position_embeddings"] == 514
        and BERT.write(bert.BASE)["max_position_embeddings"] == 512
    )
    assert ROBERTA.read({"pad_token_id": 0}).position_offset == 1
    with pytest.raises(ValueError, match="positions=0"):
        ROBERTA.read({"max_position_embeddings": 2})


@pytest.mark.parametrize("pad", [None, -1, True, 1.0, "1", [1]], ids=str)
def test_a_padding_that_is_no_token_is_refused(pad):
    with pytest.raises(ValueError, match="pad_token_id="):
        ROBERTA.read({"pad_token_id": pad})


@pytest.mark.parametrize("name, value", [("type_vocab_size", 0), ("layer_norm_eps", -1e-5), ("hidden_size", 0)])
def test_a_number_below_what_it_can_be_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must be at least"):
        BERT.read({name: value})
    with pytest.raises(ValueError, match=f"{name}=inf"):
        BERT.read({name: float("inf")})


def test_no_tensor_has_two_places():
    for architecture in ARCHITECTURES.values():
        theirs = [place for _, place in architecture.table]
        assert len(set(theirs)) == len(theirs) == len({ours for ours, _ in architecture.table})
        assert all(architecture.part(original) for _, original in architecture.ties)
        assert not {copy for copy, _ in architecture.ties} & {original for _, original in architecture.ties}


def test_what_is_in_no_table_has_no_place():
    for architecture in ARCHITECTURES.values():
        assert architecture.place("encoder/embed/other/bias") is None and architecture.part("other.weight") is None
        assert architecture.part(f"{architecture.name}.embeddings.word_embeddings.weight.x") is None
    assert ALBERT.model["always_project"] and ALBERT.place("encoder/project/kernel")[1] == "kernel"
    assert BERT.place("encoder/project/kernel") is None
