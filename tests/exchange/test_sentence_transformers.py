"""Pooling, normalisation and the longest text of sentence-transformers: kept by import, used, written by export."""

import json
import shutil

import numpy as np
import pytest

from encoders.exchange.convert import export_run, import_checkpoint
from encoders.exchange.sentence_transformers import read_sentence_embedding
from encoders.exchange.weights import CheckpointError
from encoders.inference.predictor import load_predictor
from encoders.inference.sentence_embedding import SentenceEmbedding
from tests.exchange.references import HOME

TYPES = "sentence_transformers.models."
TEXT = "tan ber sin lon mut ker tan ber sin"


def write_settings(folder, pooling, modules=("Transformer", "Pooling", "Normalize"), length=None):
    folder.mkdir(exist_ok=True)
    rows = [{"idx": i, "path": "" if i == 0 else f"{i}_{name}", "type": TYPES + name} for i, name in enumerate(modules)]
    (folder / "modules.json").write_text("\ufeff" + json.dumps(rows), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if length:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    return folder


@pytest.mark.parametrize(
    "pooling", [{"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, {"pooling_mode": "cls"}]
)
def test_the_vector_of_a_text_survives_import_and_export(pooling, tmp_path):
    folder = shutil.copytree(HOME / "bert-encoder", tmp_path / "theirs")
    shutil.copytree(HOME / "vocabularies" / "bert", folder, dirs_exist_ok=True)
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
        ({"pooling_mode": "mean"}, ("Transformer", "Pooling", "Dense"), ["2_Dense", "--ignore 2_Dense"]),
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
