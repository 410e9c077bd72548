"""Tokenizers as published, in and out. `references.py` wrote the ids that transformers gives."""

import json
import shutil

import pytest

from encoders.exchange.architectures import ARCHITECTURES
from encoders.exchange.tokenizers import read, write
from encoders.exchange.weights import CheckpointError
from tests.exchange.references import HOME, VOCABULARY

VOCABULARIES = HOME / "vocabularies"


def expected(family) -> dict[str, list[int]]:
    return json.loads((VOCABULARIES / family / "ids.json").read_text())


@pytest.mark.parametrize("family", VOCABULARY)
def test_published_files_give_the_ids_of_transformers(family):
    tokenizer = read(VOCABULARIES / family)
    assert {text: tokenizer.encode(text) for text in expected(family)} == expected(family)
    assert tokenizer.facts.size == VOCABULARY[family]


@pytest.mark.parametrize("family", VOCABULARY)
def test_what_is_written_reads_back_the_same(family, tmp_path):
    before = read(VOCABULARIES / family)
    write(before, tmp_path, ARCHITECTURES[family].read({}))
    after = read(tmp_path)
    assert before.same_ids(after) and before.facts == after.facts
    assert {text: after.encode(text) for text in expected(family)} == expected(family)


def test_older_tools_find_a_vocab_txt_of_word_pieces(tmp_path):
    write(read(VOCABULARIES / "bert"), tmp_path, ARCHITECTURES["bert"].read({}))
    assert (tmp_path / "vocab.txt").read_bytes() == (VOCABULARIES / "bert" / "vocab.txt").read_bytes()


def test_only_word_pieces_have_a_vocab_txt(tmp_path):
    write(read(VOCABULARIES / "roberta"), tmp_path, ARCHITECTURES["roberta"].read({}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_the_written_configuration_names_special_tokens_and_inputs(tmp_path):
    model = ARCHITECTURES["roberta"].read({"max_position_embeddings": 514, "type_vocab_size": 1})
    write(read(VOCABULARIES / "roberta"), tmp_path, model)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["cls_token"], config["sep_token"], config["mask_token"]) == ("<s>", "</s>", "<mask>")
    assert config["model_max_length"] == 512 and config["model_input_names"] == ["input_ids", "attention_mask"]


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(VOCABULARIES / "bert", tmp_path / "bert")
    return tmp_path / "bert"


def test_a_cased_vocabulary_keeps_capitals(folder):
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert read(folder).encode("Tan") == [read(folder).facts.unk]
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert read(folder).encode("Tan") == read(folder).encode("tan")


@pytest.mark.parametrize(
    "settings, said",
    [
        ('{"do_lower_case": "yes"}', "do_lower_case='yes' is not true or false"),
        ('{"do_lower_case": true, "strip_accents": false}', "strip_accents=False"),
        ('{"tokenize_chinese_chars": false}', "tokenize_chinese_chars=False"),
        ('{"do_lower', "cannot be read as JSON"),
        ("[]", "must hold a JSON object"),
    ],
)
def test_rules_that_are_not_read_are_refused(settings, said, folder):
    (folder / "tokenizer_config.json").write_text(settings)
    with pytest.raises(CheckpointError, match=said):
        read(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[PAD]\n[PAD]\n", b"a\nb\n", b"\xff\xfe", b'{"model": {"type": "X"}}']
)
@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "spiece.model"])
def test_a_damaged_vocabulary_is_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="--vocabulary"):
        read(tmp_path)
