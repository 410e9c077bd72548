"""Tokenizers as published, in and out. `references.py` wrote the ids that transformers gives."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import settings as set_up
from hypothesis import strategies as st

from encoders.exchange.tokenizer_files import read_tokenizer, write_tokenizer
from encoders.exchange.weights import CheckpointError
from encoders.families import bert
from encoders.families.registry import ARCHITECTURES
from tests.exchange.references import HOME, VOCABULARY

VOCABULARIES = HOME / "vocabularies"


def expected(family) -> dict[str, list[int]]:
    return json.loads((VOCABULARIES / family / "ids.json").read_text())


@pytest.mark.parametrize("family", VOCABULARY)
def test_published_files_give_the_ids_of_transformers(family):
    tokenizer = read_tokenizer(VOCABULARIES / family)
    assert {text: tokenizer.encode(text) for text in expected(family)} == expected(family)
    assert tokenizer.vocab.vocab_size == VOCABULARY[family]


@pytest.mark.parametrize("family", VOCABULARY)
def test_a_written_tokenizer_reads_back_equal(family, tmp_path):
    before = read_tokenizer(VOCABULARIES / family)
    write_tokenizer(before, tmp_path, bert.BASE)
    after = read_tokenizer(tmp_path)
    assert before.has_same_ids(after) and before.vocab == after.vocab
    assert {text: after.encode(text) for text in expected(family)} == expected(family)


def test_older_tools_find_a_vocab_txt_of_word_pieces(tmp_path):
    write_tokenizer(read_tokenizer(VOCABULARIES / "bert"), tmp_path, ARCHITECTURES["bert"].read_encoder_config({}))
    assert (tmp_path / "vocab.txt").read_bytes() == (VOCABULARIES / "bert" / "vocab.txt").read_bytes()


def test_only_word_pieces_have_a_vocab_txt(tmp_path):
    write_tokenizer(
        read_tokenizer(VOCABULARIES / "roberta"), tmp_path, ARCHITECTURES["roberta"].read_encoder_config({})
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_the_written_configuration_names_special_tokens_and_inputs(tmp_path):
    model = ARCHITECTURES["roberta"].read_encoder_config({"max_position_embeddings": 514, "type_vocab_size": 1})
    write_tokenizer(read_tokenizer(VOCABULARIES / "roberta"), tmp_path, model)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["cls_token"], config["sep_token"], config["mask_token"]) == ("<s>", "</s>", "<mask>")
    assert config["model_max_length"] == 512 and config["model_input_names"] == ["input_ids", "attention_mask"]


def test_debertas_mask_comes_after_the_pieces_and_case_is_kept_unless_a_file_says_otherwise(tmp_path):
    folder = shutil.copytree(VOCABULARIES / "deberta-v2", tmp_path / "theirs")
    tokenizer = read_tokenizer(folder)
    vocab = tokenizer.vocab
    assert (vocab.pad_id, vocab.cls_id, vocab.sep_id, vocab.unk_id, vocab.mask_id) == (0, 1, 2, 3, 47)
    assert tokenizer.encode("T") != tokenizer.encode("t") and not tokenizer.lowers_text
    assert vocab.unk_id in tokenizer.encode("①")  # NFC keeps what the model's own NFKC writes as 1
    # The name of a special token in a text is the token for a template, and ordinary text in a corpus.
    assert 1 in tokenizer.encode("tan [CLS]") and 1 not in tokenizer.encode_batch(["tan [CLS]"])[0]
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert read_tokenizer(folder).encode("Tan") == tokenizer.encode("tan")
    refused = {"added_tokens.json": {"[MASK]": 48}, "tokenizer_config.json": {"split_by_punct": True}}
    for name, content in refused.items():
        (folder / name).write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=r"\[MASK\]|split_by_punct=True"):
            read_tokenizer(folder)
        (folder / name).write_text("{}")


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(VOCABULARIES / "bert", tmp_path / "bert")
    return tmp_path / "bert"


def test_a_cased_vocabulary_keeps_capitals(folder):
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert read_tokenizer(folder).encode("Tan") == [read_tokenizer(folder).vocab.unk_id]
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert read_tokenizer(folder).encode("Tan") == read_tokenizer(folder).encode("tan")


def test_rules_that_two_files_give_differently_are_refused(tmp_path):
    """Versions of transformers differ in which of the two they follow."""
    for family, name, ours in ("bert", "do_lower_case", True), ("roberta", "add_prefix_space", False):
        folder = tmp_path / family
        folder.mkdir()
        read_tokenizer(VOCABULARIES / family).save(folder)
        (folder / "tokenizer_config.json").write_text(json.dumps({name: ours}))
        assert read_tokenizer(folder).get_transformers_options() == {name: ours}
        (folder / "tokenizer_config.json").write_text(json.dumps({name: not ours}))
        with pytest.raises(CheckpointError, match=f"{name}={not ours} .*{ours}"):
            read_tokenizer(folder)


def test_a_byte_level_tokenizer_may_prefix_a_space(tmp_path):
    folder = shutil.copytree(VOCABULARIES / "roberta", tmp_path / "roberta")
    (folder / "tokenizer_config.json").write_text('{"add_prefix_space": true, "do_lower_case": true}')
    assert read_tokenizer(folder).get_transformers_options() == {"add_prefix_space": True}
    assert read_tokenizer(folder).encode("tan") == read_tokenizer(VOCABULARIES / "roberta").encode(" tan")
    (folder / "tokenizer_config.json").write_text('{"add_prefix_space": "yes"}')
    with pytest.raises(CheckpointError, match="add_prefix_space='yes'"):
        read_tokenizer(folder)


def test_settings_of_special_tokens_are_preserved(tmp_path):
    from tokenizers import Tokenizer

    read_tokenizer(VOCABULARIES / "roberta").save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    mask = next(token for token in content["added_tokens"] if token["content"] == "<mask>")
    assert mask["lstrip"] and content["post_processor"]["type"] == "RobertaProcessing"
    mask["lstrip"] = False
    content["post_processor"]["trim_offsets"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "again").mkdir()
    read_tokenizer(tmp_path).save(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "tokenizer.json").read_text())
    assert again["added_tokens"] == content["added_tokens"] and again["post_processor"] == content["post_processor"]
    content["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    read_tokenizer(tmp_path).save(tmp_path / "again")
    assert Tokenizer.from_file(str(tmp_path / "again" / "tokenizer.json")).encode("").ids == [0, 2]


@pytest.mark.parametrize(
    "settings, said",
    [
        ('{"do_lower_case": "yes"}', "do_lower_case='yes'"),
        ('{"do_lower_case": true, "strip_accents": false}', "strip_accents=False"),
        ('{"tokenize_chinese_chars": false}', "tokenize_chinese_chars=False"),
        ('{"keep_accents": true}', "keep_accents=True"),
        ('{"do_lower', "tokenizer_config.json .*JSON"),
        ("[]", "tokenizer_config.json .*list"),
    ],
)
def test_tokenizer_settings_that_are_not_supported_are_refused(settings, said, folder):
    (folder / "tokenizer_config.json").write_text(settings)
    with pytest.raises(CheckpointError, match=said):
        read_tokenizer(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[PAD]\n[PAD]\n", b"a\nb\n", b"\xff\xfe", b'{"model": {"type": "X"}}']
)
@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "spiece.model"])
def test_a_damaged_vocabulary_is_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="--vocabulary"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        *("7", "null", "[]", '"model added_tokens"', '["model", "added_tokens"]', '{"model": 1, "added_tokens": 2}'),
        *(json.dumps({"<s>": id, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}) for id in ("x", -1, 1.5, 2**32)),
        "[" * 100_000,
    ],
    ids=lambda content: content[:15],
)
@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json"])
def test_json_that_is_not_a_vocabulary_is_refused(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(CheckpointError, match="--vocabulary"):
        read_tokenizer(tmp_path)


def test_a_huge_token_id_allocates_nothing(tmp_path):
    ids = {"<s>": 2**24, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    with pytest.raises(CheckpointError, match="16777216"):
        read_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(ids | {"<s>": 9}))
    assert read_tokenizer(tmp_path).vocab.vocab_size == 10


# A number where a message should be, at every depth that is read.
@pytest.mark.parametrize(
    "content", [b"\x08\x01", b"\x10\x01", b"\x18\x01", b"\n\x02\x08\x01", b"\n\x02\x10\x05", b"\x80" * 99]
)
def test_a_sentencepiece_model_of_other_fields_is_refused(content, tmp_path):
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(CheckpointError, match="--vocabulary"):
        read_tokenizer(tmp_path)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The files of every kind, whole; tokenizer.json too."""
    home = tmp_path_factory.mktemp("vocabularies")
    shutil.copytree(VOCABULARIES, home, dirs_exist_ok=True)
    for family in ("bert", "roberta"):
        (home / f"{family}-saved").mkdir()
        read_tokenizer(VOCABULARIES / family).save(home / f"{family}-saved")
    return {path: path.read_bytes() for path in home.rglob("*") if path.name != "ids.json" and path.is_file()}


PLACES = ["bert/vocab.txt", "roberta/vocab.json", "roberta/merges.txt", "albert/spiece.model", "deberta-v2/spm.model"]


@pytest.mark.parametrize("place", [*PLACES, "bert-saved/tokenizer.json", "roberta-saved/tokenizer.json"])
@set_up(derandomize=True, max_examples=100, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 3999), st.integers(1, 255)), min_size=1, max_size=4),
    kept=st.none() | st.integers(0, 3999),
)
def test_a_vocabulary_with_changed_bytes_is_another_one_or_refused(place, published, changes, kept):
    path = next(path for path in published if path.match(place))
    damaged = bytearray(published[path])
    for i, value in changes:  # in the pieces; a map of characters comes after them
        damaged[i % len(damaged)] ^= value
    path.write_bytes(damaged[:kept])
    try:
        tokenizer = read_tokenizer(path.parent)
        assert all(0 <= id < tokenizer.vocab.vocab_size for id in tokenizer.encode("tan [MASK] ber"))
    except CheckpointError as error:
        assert "--vocabulary" in str(error)
    finally:
        path.write_bytes(published[path])


def test_tokens_added_in_a_file_of_their_own_are_refused_unless_they_are_there_already(folder):
    (folder / "added_tokens.json").write_text('{"[MASK]": 4}')
    assert read_tokenizer(folder).vocab.mask_id == 4
    (folder / "added_tokens.json").write_text('{"[MASK]": 4, "[NEW]": 61}')
    with pytest.raises(CheckpointError, match=r"'\[NEW\]' .*tokenizer.json"):
        read_tokenizer(folder)


@pytest.mark.parametrize(
    "settings, values",
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, ["tokenizer_class='BertJapaneseTokenizer'", "BertTokenizer"]),
        ({"tokenizer_class": "RobertaTokenizer"}, ["tokenizer_class='RobertaTokenizer'"]),
        ({"never_split": ["[X]"]}, ["never_split=['[X]']"]),
        ({"do_basic_tokenize": False}, ["do_basic_tokenize=False"]),
    ],
)
def test_settings_that_change_ids_are_refused_by_name(settings, values, folder):
    (folder / "tokenizer_config.json").write_text("\ufeff" + json.dumps(settings), encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer(folder)
    assert all(value in str(caught.value) for value in values)


GEMMA = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "cls_token": "<eos>", "mask_token": "<mask>"}
LLAMA = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "mask_token": "<|mask|>"}


@pytest.mark.parametrize(
    "settings, tokens, template, ids",
    [
        # The file's own template tells [CLS] and [SEP], whatever the settings call so.
        (GEMMA, ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], ["<bos>", "<eos>"], (0, 3, 2, 1, 4)),
        # Without an unknown token and padding the end of a text stands for both.
        (LLAMA, ["<|begin|>", "<|end|>", "<|mask|>"], ["<|begin|>", "<|end|>"], (1, 1, 0, 1, 2)),
        (LLAMA, ["<|begin|>", "<|end|>", "<|mask|>"], ["<|begin|>"], (1, 1, 0, 1, 2)),
    ],
)
def test_special_tokens_of_other_names_are_those_of_the_configuration(settings, tokens, template, ids, tmp_path):
    """As in Gemma's and in Llama's vocabularies: words begin with a mark of SentencePiece, pieces are merged."""
    from tokenizers import Tokenizer, models, normalizers, processors

    vocabulary = {token: id for id, token in enumerate([*tokens, "▁", "a", "b", "▁a", "ab"])}
    backend = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("a", "b")], unk_token=None))
    backend.normalizer = normalizers.Replace(" ", "▁")
    single = " ".join([template[0], "$A", *template[1:]])
    special = [(name, vocabulary[name]) for name in template]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer(tmp_path)
    assert "<s> or [CLS]" in str(caught.value) and "data.tokenizer.special_tokens" in str(caught.value)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = read_tokenizer(tmp_path)
    vocab = tokenizer.vocab
    assert (vocab.pad_id, vocab.unk_id, vocab.cls_id, vocab.sep_id, vocab.mask_id) == ids
    starts = vocab.compute_word_starts()
    assert starts[vocabulary["▁a"]] and not starts[vocabulary["ab"]]
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer.save(tmp_path)
    assert read_tokenizer(tmp_path).vocab == vocab


@pytest.mark.parametrize("name", ["BertTokenizer", "BertTokenizerFast", "ElectraTokenizerFast", None])
def test_classes_with_the_rules_of_the_vocabulary_are_read(name, folder):
    settings = {"tokenizer_class": name, "never_split": [], "do_basic_tokenize": True, "strip_accents": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert read_tokenizer(folder).vocab.vocab_size == VOCABULARY["bert"]


def test_a_class_of_python_rules_is_refused_beside_a_saved_tokenizer_too(tmp_path):
    read_tokenizer(VOCABULARIES / "bert").save(tmp_path)
    for name, is_refused in (("XLMRobertaTokenizer", False), ("BertJapaneseTokenizer", True)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
        if is_refused:
            with pytest.raises(CheckpointError, match=name):
                read_tokenizer(tmp_path)
        else:
            assert read_tokenizer(tmp_path).kind == "wordpiece"


def test_a_cased_vocabulary_that_is_lowered_is_announced(folder):
    path = folder / "vocab.txt"
    path.write_text(path.read_text("utf-8") + "Paris\n", encoding="utf-8")
    lines = []
    read_tokenizer(folder, lines.append)
    assert len(lines) == 1 and "'Paris'" in lines[0] and "do_lower_case" in lines[0]
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    read_tokenizer(folder, lines.append)
    assert len(lines) == 1
