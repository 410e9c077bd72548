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
