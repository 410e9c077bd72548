"""fairseq's RoBERTa: the reference as fairseq saved it, and what else its files may hold."""

import shutil
from argparse import Namespace

import numpy as np
import pytest

from encoders.exchange import fairseq, pickle_reader
from encoders.exchange.fairseq import find_fairseq_file, rename_tensor
from encoders.exchange.weights import CheckpointError, LazyTensor
from tests.exchange.references import HOME
from tests.refusals import raises_naming

PATH = HOME / "roberta-fairseq" / "model.pt"
PLACE = "decoder.sentence_encoder.layers.1.self_attn."
THEIRS = "roberta.encoder.layer.1.attention.self."
WORDS = "decoder.sentence_encoder.embed_tokens.weight"


def of(array: np.ndarray) -> LazyTensor:
    return LazyTensor(array.shape, "float32", lambda: array)


@pytest.fixture
def content(monkeypatch):
    """What the reference holds; `fairseq.read` finds the changes that a test makes to it."""
    held, numbers = pickle_reader.load_torch_file(PATH)
    monkeypatch.setattr(pickle_reader, "load_torch_file", lambda path: (held, numbers))
    return held


def shapeless(tensor: pickle_reader.TorchTensor) -> pickle_reader.TorchTensor:
    return pickle_reader.TorchTensor(tensor.storage, 0, (), ())


def test_a_joint_query_key_value_tensor_is_split():
    for shape in [(12, 4), (12,)]:
        whole = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        leaf = "weight" if len(shape) == 2 else "bias"
        together = rename_tensor(f"{PLACE}in_proj_{leaf}", of(whole))
        assert list(together) == [f"{THEIRS}{part}.{leaf}" for part in ("query", "key", "value")]
        for i, letter in enumerate("qkv"):
            rows = whole[4 * i : 4 * i + 4]
            ((name, apart),) = rename_tensor(f"{PLACE}{letter}_proj.{leaf}", of(rows)).items()
            assert np.array_equal(together[name].read(), rows) and np.array_equal(apart.read(), rows)
            assert together[name].shape == apart.shape == rows.shape


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("decoder.sentence_encoder.emb_layer_norm.bias", "roberta.embeddings.LayerNorm.bias"),
        ("encoder.sentence_encoder.layernorm_embedding.bias", "roberta.embeddings.LayerNorm.bias"),
        ("decoder.sentence_encoder.layers.10.fc2.weight", "roberta.encoder.layer.10.output.dense.weight"),
        ("encoder.lm_head.weight", "lm_head.decoder.weight"),
        ("decoder.lm_head.layer_norm.weight", "lm_head.layer_norm.weight"),
        ("classification_heads.mnli.out_proj.bias", "classifier.out_proj.bias"),
    ],
)
def test_old_and_new_names_of_fairseq_are_those_of_transformers(theirs, ours):
    assert list(rename_tensor(theirs, of(np.zeros(1)))) == [ours]


def test_sizes_come_from_tensor_shapes_and_the_rest_from_options():
    model = fairseq.read_fairseq_checkpoint(PATH).config
    assert (model.vocab_size, model.hidden_size, model.num_layers, model.num_heads, model.intermediate_size) == (
        291,
        12,
        3,
        3,
        20,
    )
    assert (model.max_positions, model.position_offset, model.num_token_types, model.layer_norm_eps) == (17, 2, 1, 1e-5)
    assert (model.hidden_dropout, model.attention_dropout, model.activation) == (0.1, 0.1, "gelu")


def test_the_table_of_segments_is_a_row_of_zeros():
    table = fairseq.read_fairseq_checkpoint(PATH).tensors["roberta.embeddings.token_type_embeddings.weight"]
    assert table.read().shape == table.shape == (1, 12) and not table.read().any()


def test_options_are_a_namespace_or_a_dictionary_within_one(content):
    assert isinstance(content["args"], pickle_reader.InertStub)  # argparse.Namespace, which is not imported
    before = fairseq.read_fairseq_checkpoint(PATH).config
    content["cfg"] = {"model": vars(content.pop("args")) | {"dropout": 0.25}}
    assert (
        fairseq.read_fairseq_checkpoint(PATH).config.collect_computation_fields() == before.collect_computation_fields()
        and fairseq.read_fairseq_checkpoint(PATH).config.hidden_dropout == 0.25
    )
    within = content["cfg"]["model"]
    content["cfg"]["model"] = pickle_reader.InertStub()
    content["cfg"]["model"].__setstate__(within)
    assert fairseq.read_fairseq_checkpoint(PATH).config.hidden_dropout == 0.25


@pytest.mark.parametrize(
    "wrong",
    [
        {"encoder_attention_heads": 3.0},
        {"encoder_attention_heads": "3"},
        {"encoder_attention_heads": None},
        {"encoder_attention_heads": 0},
        {"encoder_attention_heads": -3},
        {"encoder_attention_heads": 5},
        {"encoder_attention_heads": True},
        {"dropout": [0.1]},
        {"dropout": 1.5},
        {"dropout": float("nan")},
        {"attention_dropout": pickle_reader.InertStub()},
        {"activation_fn": {"gelu": 1}},
        {"activation_fn": "relu"},
        {"activation_fn": None},
    ],
    ids=lambda wrong: f"{next(iter(wrong))}-{type(next(iter(wrong.values()))).__name__}",
)
def test_options_that_do_not_describe_a_model_are_refused(wrong, content):
    vars(content["args"]).update(wrong)
    with pytest.raises(CheckpointError, match="config.json: "):
        fairseq.read_fairseq_checkpoint(PATH)


def test_a_deeply_nested_option_is_abbreviated(content):
    """Each pair holds the one before it twice, which a few bytes of a pickle can say."""
    option = ()
    for _ in range(60):
        option = (option, option)
    vars(content["args"])["dropout"] = option
    with pytest.raises(CheckpointError, match=r"hidden_dropout_prob=.*\.\.\.") as caught:
        fairseq.read_fairseq_checkpoint(PATH)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": []},
        {"args": None},
        {"args": 7},
        {"args": Namespace(dropout=0.1)},
        {"args": None, "cfg": []},
        {"args": None, "cfg": {}},
        {"args": None, "cfg": {"model": "roberta"}},
    ],
    ids=str,
)
def test_a_file_without_a_model_or_its_options_is_refused(change, content):
    content.update(change)
    with pytest.raises(CheckpointError, match="model.pt .*options"):
        fairseq.read_fairseq_checkpoint(PATH)


def test_a_file_of_something_else_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="pytorch_model.bin .*fairseq"):
        fairseq.read_fairseq_checkpoint(HOME / "bert-masked" / "pytorch_model.bin")
    (tmp_path / "x.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="x.pt"):
        fairseq.read_fairseq_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("name", [WORDS, "decoder.sentence_encoder.embed_positions.weight"])
def test_a_missing_or_scalar_embedding_table_is_refused(name, content):
    whole = content["model"][name]
    for wrong in ({name: shapeless(whole)}, {}):
        del content["model"][name]
        content["model"].update(wrong)
        with pytest.raises(CheckpointError, match="config.json: "):
            fairseq.read_fairseq_checkpoint(PATH)


def test_missing_layers_and_scalar_layer_tensors_are_refused(content):
    tensors = content["model"]
    layer = {name: tensor for name, tensor in tensors.items() if ".layers.0.fc1." in name}
    tensors.update({name: shapeless(tensor) for name, tensor in layer.items()})
    with pytest.raises(CheckpointError, match="intermediate"):
        fairseq.read_fairseq_checkpoint(PATH)
    for name in [name for name in tensors if ".layers." in name]:
        del tensors[name]
    with pytest.raises(CheckpointError, match="layers=0"):
        fairseq.read_fairseq_checkpoint(PATH)


@pytest.mark.parametrize("shape, strides", [((), ()), ((37, 12), (12, 1)), ((35, 12), (12, 1))])
def test_a_joint_tensor_that_does_not_divide_by_three_is_not_split(shape, strides, content):
    whole = content["model"][f"{PLACE}in_proj_weight"]
    content["model"][f"{PLACE}in_proj_weight"] = pickle_reader.TorchTensor(whole.storage, 0, shape, strides)
    found = fairseq.read_fairseq_checkpoint(PATH)
    said = "\n".join(found.list_problems({"encoder/layers/attend/query/kernel": (3, 12, 12)}))
    assert f"missing: {THEIRS}query.weight" in said and "unexpected: " in said


def test_two_classification_heads_are_refused(content):
    draw = content["model"]["decoder.lm_head.dense.weight"]
    for head in ("mnli", "rte"):
        content["model"][f"classification_heads.{head}.dense.weight"] = draw
    with raises_naming(CheckpointError, "two tensors", "classifier.dense.weight"):
        fairseq.read_fairseq_checkpoint(PATH)


def test_entries_that_are_not_named_tensors_are_ignored(content):
    before = set(fairseq.read_fairseq_checkpoint(PATH).tensors)
    content["model"].update({7: content["model"][WORDS], "decoder.sentence_encoder.step": 3})
    content["model"]["decoder.sentence_encoder.version"] = content["model"][WORDS]
    assert set(fairseq.read_fairseq_checkpoint(PATH).tensors) == before


def test_a_folder_without_config_json_is_read_by_its_only_pt_file(tmp_path):
    assert find_fairseq_file(PATH) == find_fairseq_file(PATH.parent) == PATH
    assert find_fairseq_file(HOME / "bert-masked") is None and find_fairseq_file(tmp_path) is None
    assert find_fairseq_file(tmp_path / "nothing") is None and find_fairseq_file(tmp_path / "nothing.pt") is None
    shutil.copy(PATH, tmp_path / "a.pt")
    (tmp_path / "folder.pt").mkdir()
    assert find_fairseq_file(tmp_path) == tmp_path / "a.pt" and find_fairseq_file(tmp_path / "folder.pt") is None
    (tmp_path / "config.json").write_text("{}")
    assert find_fairseq_file(tmp_path) is None and find_fairseq_file(tmp_path / "a.pt") == tmp_path / "a.pt"
    (tmp_path / "config.json").unlink()
    shutil.copy(PATH, tmp_path / "b.pt")
    assert find_fairseq_file(tmp_path) is None
