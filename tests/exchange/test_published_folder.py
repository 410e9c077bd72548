"""What a configuration and tensors are together."""

import json
import math
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.exchange import published_folder
from encoders.exchange.convert import import_checkpoint
from encoders.exchange.published_folder import (
    build_label_config,
    identify_architecture,
    infer_objective,
    interpret_checkpoint,
    read_label_names,
)
from encoders.exchange.weights import CheckpointError, LazyTensor, read_weights
from encoders.families.architecture import has_different_groups
from encoders.families.registry import ARCHITECTURES
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.tasks.classification import Classification
from tests.exchange.references import HOME, NECESSARY
from tests.refusals import raises_naming


def of(name: str) -> tuple[dict, dict[str, LazyTensor]]:
    """Configuration and tensors of a reference checkpoint."""
    return json.loads((HOME / name / "config.json").read_text()), read_weights(HOME / name)[0]


def read(config: dict, entries: dict[str, LazyTensor]):
    return interpret_checkpoint(config, entries, ())


@pytest.mark.parametrize("field", ["vocab_size", "num_hidden_layers"])
def test_a_size_that_no_tensor_has_is_refused_before_anything_is_built(field):
    config, tensors = of("bert-pretraining")
    with raises_naming(CheckpointError, f"{field}=2000000000"):
        read(config | {field: 2 * 10**9}, tensors)


@pytest.mark.parametrize("name", ["bert-pretraining", "roberta-masked", "albert-masked", "electra-discriminator"])
def test_a_configuration_without_a_type_is_known_by_its_tensors(name):
    config, entries = of(name)
    del config["model_type"]
    assert identify_architecture(config, entries).name == name.partition("-")[0]


def test_an_encoder_alone_may_leave_the_family_out_of_its_names():
    config, entries = of("roberta-encoder")
    assert all(not name.startswith("roberta.") for name in entries)
    found = read(config, entries)
    assert "roberta.embeddings.word_embeddings.weight" in found.tensors and found.heads == {"pooler"}


def test_tensorflow_names_are_converted():
    config, entries = of("bert-masked")
    assert any(name.endswith(".gamma") for name in entries)
    found = read(config, entries).tensors
    assert "bert.embeddings.LayerNorm.weight" in found and not any(name.endswith("gamma") for name in found)


def test_two_tensors_of_one_name_are_refused():
    config, entries = of("bert-masked")
    entries["bert.embeddings.LayerNorm.weight"] = entries["bert.embeddings.LayerNorm.gamma"]
    with raises_naming(CheckpointError, "two tensors", "bert.embeddings.LayerNorm.weight"):
        read(config, entries)


def test_a_tied_tensor_may_be_stored_under_its_copy_only():
    config, entries = of("bert-pretraining")
    entries["cls.predictions.decoder.weight"] = entries.pop("bert.embeddings.word_embeddings.weight")
    assert read(config, entries).tensors["bert.embeddings.word_embeddings.weight"].shape == (61, 12)


def test_position_id_buffers_are_ignored():
    config, entries = of("bert-pretraining")
    buffer = {"bert.embeddings.position_ids": LazyTensor((1, 19), "int64", lambda: np.arange(19)[None])}
    assert read(config, entries | buffer).tensors.keys() == read(config, entries).tensors.keys()


def test_a_head_whose_gelu_is_fixed_cannot_have_another_activation():
    config, entries = of("electra-generator")
    with pytest.raises(CheckpointError, match="hidden_act='gelu_new' .* tokens head"):
        read(config | {"hidden_act": "gelu_new"}, entries)
    config, entries = of("electra-encoder")
    assert read(config | {"hidden_act": "gelu_new"}, entries).config.activation == "gelu_tanh"


def test_heads_determine_the_objective():
    model = lambda family: ARCHITECTURES[family].read_encoder_config({})
    of_parts = lambda family, *found: infer_objective(ARCHITECTURES[family], {}, model(family), frozenset(found))
    assert of_parts("bert", "tokens", "pooler", "pair").sentence_task == NextSentencePrediction()
    assert of_parts("albert", "tokens", "pooler", "pair").sentence_task == SentenceOrderPrediction()
    assert of_parts("bert", "tokens").sentence_task is None
    assert of_parts("electra", "replaced").generator_width is None
    assert of_parts("roberta", "classes").head == "tanh" and of_parts("electra", "classes").head == "gelu"
    assert type(of_parts("bert", "spans")).__name__ == "SpanPrediction" and of_parts("bert", "pooler").has_pooler


def test_classes_have_names_in_their_order():
    assert read_label_names({"id2label": {"1": "b", "0": "a"}}) == ("a", "b")
    assert read_label_names({"num_labels": 3}) == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert read_label_names({"num_labels": 1, "id2label": {"0": "a", "1": "b"}}) == ("LABEL_0",)
    assert read_label_names({}) == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize("names", [("no", "perhaps", "yes"), ("score",)])
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_classes_in_a_configuration_read_back(family, names):
    architecture = ARCHITECTURES[family]
    before = Classification(names, architecture.classifier_head, 0.25)
    config = json.loads(json.dumps(build_label_config(architecture, before)))
    assert read_label_names(config) == names
    encoder_config = architecture.read_encoder_config(NECESSARY.get(family, {}))
    assert infer_objective(architecture, config, encoder_config, frozenset({"classes"})) == before


@pytest.mark.parametrize(
    "config",
    [
        {"num_labels": 0},
        {"num_labels": "3"},
        {"num_labels": 10**12},
        {"num_labels": True},
        {"id2label": {"0": "a", "2": "b"}},
        {"id2label": {"0": "a", "1": 5}},
        {"id2label": {}},
    ],
)
def test_labels_that_are_not_numbered_are_refused(config):
    with pytest.raises(CheckpointError, match="num_labels=|id2label"):
        read_label_names(config)


@pytest.mark.parametrize("change", [{"classifier_dropout": "x"}, {"id2label": {"0": "a", "1": "a"}, "num_labels": 2}])
def test_an_invalid_classifier_config_is_refused(change):
    config, entries = of("bert-classes")
    with pytest.raises(CheckpointError, match="config.json: "):
        read(config | change, entries)


REFERENCES = {name: of(name) for name in ("bert-classes", "roberta-masked", "albert-classes", "electra-generator")}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(derandomize=True, max_examples=600, deadline=None)
@given(st.sampled_from(sorted(REFERENCES)), st.data())
def test_any_configuration_is_read_or_refused(name, data):
    config, entries = REFERENCES[name]
    keys = st.sampled_from([*config, "pad_token_id", "num_labels", "hidden_act", "quantization_config"])
    try:
        found = read(config | data.draw(st.dictionaries(keys, VALUES, min_size=1, max_size=3)), entries)
    except CheckpointError as error:
        assert str(error)
    else:
        assert found.config.num_layers <= len(entries)


ABSURD = [None, True, [], {}, "", "12", -1, 0, 10**40, -(10**40), 1.0, 1e300, math.inf, math.nan]
NUMBERS = {theirs for each in ARCHITECTURES.values() for _, theirs, _ in each.list_config_fields()} - {"hidden_act"}


@pytest.mark.parametrize("key", sorted(NUMBERS | {"pad_token_id"}))
@pytest.mark.parametrize("name", REFERENCES)
def test_no_absurd_number_is_a_size_or_a_rate(name, key):
    config, entries = REFERENCES[name]
    read(config, entries)
    for value in ABSURD:
        try:
            model = read(config | {key: value}, entries).config
        except CheckpointError as error:
            assert str(error).count("config.json: ") == 1
            continue
        assert (
            min(
                model.vocab_size,
                model.num_layers,
                model.num_heads,
                model.max_positions,
                model.num_token_types,
                model.num_groups,
            )
            >= 1
        ), value
        assert all(0 <= rate < math.inf for rate in (model.hidden_dropout, model.layer_norm_eps, model.init_std)), value
        assert model.position_offset >= 0, value


@pytest.mark.parametrize("given", ["gpt2", "", 7, True, [], ["bert"], {"bert": 1}], ids=str)
def test_another_type_of_model_is_refused(given):
    with pytest.raises(CheckpointError, match="model_type=.* bert, roberta, albert, electra"):
        identify_architecture({"model_type": given}, {})


def test_an_error_of_labels_is_prefixed_once():
    config, entries = of("bert-classes")
    with pytest.raises(CheckpointError, match="^config.json: id2label .* 0 to 0$"):
        read(config | {"id2label": {"0": 1}}, entries)


def test_the_dropout_of_classes_is_that_of_the_hidden_states_unless_it_has_its_own():
    config, entries = of("bert-classes")
    config |= {"hidden_dropout_prob": 0.3}
    assert config.pop("classifier_dropout") is None
    for change, dropout in ({}, 0.3), ({"classifier_dropout": 0.0}, 0.0), ({"classifier_dropout_prob": 0.2}, 0.3):
        assert read(config | change, entries).objective.head_dropout == dropout


def test_the_dropout_of_alberts_classes_is_a_tenth_unless_it_has_its_own():
    config, entries = of("albert-classes")
    del config["classifier_dropout_prob"]
    for change, dropout in ({}, 0.1), ({"classifier_dropout_prob": 0.2}, 0.2), ({"classifier_dropout": 0.3}, 0.1):
        assert read(config | change | {"hidden_dropout_prob": 0.4}, entries).objective.head_dropout == dropout


@pytest.mark.parametrize("names", [["BertForMultipleChoice"], ["BertForMultipleChoice", 7], "BertModel", {"a": 1}])
def test_a_class_with_another_task_is_refused(names):
    """A classifier of choices has tensors of the same names and shapes as one of sequences."""
    config, entries = of("bert-classes")
    with pytest.raises(CheckpointError, match="architectures=.* BertForPreTraining, BertForMaskedLM"):
        read(config | {"architectures": names}, entries)
    for known in [], None, ["BertForSequenceClassification"], ["Other", "BertModel"]:
        assert read(config | {"architectures": known}, entries).heads == {"pooler", "classes"}


def test_the_model_class_says_whether_a_classifier_is_of_texts_or_of_tokens():
    config, entries = of("bert-classes")
    tagger = read(config | {"architectures": ["BertForTokenClassification"]}, entries)  # earlier ones have a pooler
    assert tagger.heads == {"pooler", "tags"} and tagger.objective.labels == ("no", "perhaps", "yes")


@pytest.mark.parametrize(
    "name, kind",
    [
        ("bert-classes", "multi_label_classification"),
        ("bert-classes", "regression"),
        ("bert-number", "single_label_classification"),
        ("bert-number", 7),
    ],
)
def test_a_problem_type_that_is_not_supported_is_refused(name, kind):
    config, entries = of(name)
    with pytest.raises(CheckpointError, match="problem_type=.*'(regression|single_label_classification)'"):
        read(config | {"problem_type": kind}, entries)


def test_groups_that_transformers_rounds_otherwise_are_refused():
    config, entries = of("albert-pretraining")
    model = ARCHITECTURES["albert"].read_encoder_config
    sizes = lambda layers, groups: model({"num_hidden_layers": layers, "num_hidden_groups": groups})
    assert not any(has_different_groups(sizes(layers, groups)) for layers, groups in [(12, 1), (5, 2), (5, 3), (24, 6)])
    assert has_different_groups(sizes(18, 14)) and int(9 / (18 / 14)) == 6 and 9 * 14 // 18 == 7
    with pytest.raises(CheckpointError, match="num_hidden_groups=14 with num_hidden_layers=18"):
        read(config | {"num_hidden_layers": 18, "num_hidden_groups": 14}, entries)


@pytest.mark.parametrize(
    "content", ['{"num_labels": 1' + "0" * 5000 + "}", '{"hidden_size": NaN}', "[]", "", '{"id2label": ' * 10_000]
)
def test_a_folder_whose_configuration_cannot_be_read_is_refused(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((HOME / "bert-encoder" / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="config.json"):
        published_folder.read_transformers_folder(tmp_path)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A checkpoint whose configuration may be changed, in a folder of its own."""
    return shutil.copytree(HOME / "bert-encoder", tmp_path_factory.mktemp("copy") / "theirs")


SIZES = st.sampled_from([1, 2**31 - 1, 2**31, 3 * 2**29, 3 * 2**40, 10**40, 1e9, 1e39])


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(NUMBERS)), SIZES | VALUES, min_size=1, max_size=3))
def test_an_import_makes_a_run_or_leaves_nothing(copy, change):
    config, run = json.loads((HOME / "bert-encoder" / "config.json").read_text()), copy.with_name("run")
    (copy / "config.json").write_text(json.dumps(config | change))
    try:
        import_checkpoint(copy, run, tokenizer_files=HOME / "vocabularies" / "bert")
        assert (run / "experiment.json").is_file()
        shutil.rmtree(run)
    except CheckpointError as error:
        assert str(error)
    assert [path.name for path in copy.parent.iterdir()] == ["theirs"]
