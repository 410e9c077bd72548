"""Settings and special tokens beside a vocabulary: those that it has already are accepted, others are refused."""

import json
import shutil

import pytest

from encoders.exchange.tokenizer_files import read_tokenizer
from encoders.exchange.weights import CheckpointError
from tests.exchange.references import HOME, VOCABULARY

VOCABULARIES = HOME / "vocabularies"


def add_settings(folder, **settings):
    """Write settings beside those that `folder` has."""
    path = folder / "tokenizer_config.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(before | settings))


def refusal(folder) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def describe_token(tokenizer, name, **flags) -> dict:
    """Return an entry of added_tokens_decoder."""
    _, token = tokenizer.get_added_tokens()[name]
    fields = ("content", "lstrip", "rstrip", "single_word", "normalized", "special")
    return {field: getattr(token, field) for field in fields} | flags


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(VOCABULARIES / "bert", tmp_path / "bert")


@pytest.fixture
def saved(tmp_path):
    """A tokenizer.json with the rules of BERT, as `save_pretrained` of transformers leaves it."""
    (tmp_path / "saved").mkdir()
    tokenizer = read_tokenizer(VOCABULARIES / "bert")
    tokenizer.save(tmp_path / "saved")
    decoder = {str(id): describe_token(tokenizer, name) for name, (id, _) in tokenizer.get_added_tokens().items()}
    names = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    names |= {"mask_token": {"content": "[MASK]", "__type": "AddedToken"}, "bos_token": None}
    rules = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True, "never_split": None}
    lists = {"additional_special_tokens": ["[MASK]"], "extra_special_tokens": {}, "added_tokens_decoder": decoder}
    add_settings(tmp_path / "saved", tokenizer_class="BertTokenizer", **names, **rules, **lists)
    (tmp_path / "saved" / "special_tokens_map.json").write_text(json.dumps(names | {"additional_special_tokens": []}))
    return tmp_path / "saved"


def test_settings_that_a_saved_tokenizer_has_too_are_accepted(saved):
    tokenizer = read_tokenizer(saved)
    expected = json.loads((VOCABULARIES / "bert" / "ids.json").read_text())
    assert {text: tokenizer.encode(text) for text in expected} == expected
    add_settings(saved, strip_accents=True, split_special_tokens=False, add_bos_token=False)
    assert read_tokenizer(saved).vocab == tokenizer.vocab


@pytest.mark.parametrize("name", ["strip_accents", "tokenize_chinese_chars"])
def test_bert_rules_that_differ_from_those_of_a_saved_tokenizer_are_refused(name, saved):
    add_settings(saved, **{name: False})
    assert f"tokenizer_config.json has {name}=False and tokenizer.json has True" in refusal(saved)
    content = json.loads((saved / "tokenizer.json").read_text())
    content["normalizer"] |= {"strip_accents": False, "handle_chinese_chars": False}
    (saved / "tokenizer.json").write_text(json.dumps(content))
    add_settings(saved, strip_accents=False, tokenize_chinese_chars=False)
    assert read_tokenizer(saved).get_text_rules() == {"strip_accents": False, "tokenize_chinese_chars": False}
    add_settings(saved, **{name: True})
    assert f"tokenizer_config.json has {name}=True and tokenizer.json has False" in refusal(saved)


@pytest.mark.parametrize(
    "family, rules",
    [
        ("albert", {"keep_accents": False, "add_prefix_space": True}),
        ("deberta-v2", {"split_by_punct": False, "add_prefix_space": True}),
    ],
)
def test_unigram_rules_that_differ_from_those_of_a_saved_tokenizer_are_refused(family, rules, tmp_path):
    read_tokenizer(VOCABULARIES / family).save(tmp_path)
    add_settings(tmp_path, **rules)
    assert read_tokenizer(tmp_path).vocab.vocab_size == VOCABULARY[family]
    for name, value in rules.items():
        add_settings(tmp_path, **rules | {name: not value})
        assert f"{name}={not value} and tokenizer.json has {value}" in refusal(tmp_path)


def test_albert_without_a_space_before_a_text_is_refused(tmp_path):
    folder = shutil.copytree(VOCABULARIES / "albert", tmp_path / "albert")
    add_settings(folder, add_prefix_space=True)
    assert read_tokenizer(folder).vocab.vocab_size == VOCABULARY["albert"]
    add_settings(folder, add_prefix_space=False)
    assert "add_prefix_space=False of tokenizer_config.json" in refusal(folder)


NAMED_ELSEWHERE = [
    {"additional_special_tokens": ["e"]},
    {"extra_special_tokens": ["[MASK]", "e"]},
    {"extra_special_tokens": {"end_token": "e"}},
    {"additional_special_tokens": [{"content": "e", "__type": "AddedToken"}]},
    {"unk_token": "e"},
    {"mask_token": "[UNK]"},
    {"bos_token": "e"},
    {"image_token": "e"},
    {"extra_special_tokens": ["[NEW]"]},
]


@pytest.mark.parametrize("form", ["saved", "folder"])
@pytest.mark.parametrize("settings", NAMED_ELSEWHERE, ids=json.dumps)
def test_special_tokens_that_the_vocabulary_has_otherwise_are_refused(settings, form, request):
    folder = request.getfixturevalue(form)
    (setting, value), *_ = settings.items()
    token = list(value.values())[-1] if isinstance(value, dict) else value[-1] if isinstance(value, list) else value
    add_settings(folder, **settings)
    said = refusal(folder)
    assert f"{setting}={token!r} of tokenizer_config.json" in said
    assert "tokenizer.json" in said and "save the tokenizer with transformers" in said


@pytest.mark.parametrize("form", ["saved", "folder"])
def test_special_tokens_map_is_read_where_no_added_tokens_decoder_is(form, request):
    folder = request.getfixturevalue(form)
    (folder / "special_tokens_map.json").write_text('{"mask_token": "[MASK]", "additional_special_tokens": ["e"]}')
    add_settings(folder, added_tokens_decoder={})
    assert "additional_special_tokens='e' of special_tokens_map.json" in refusal(folder)
    mask = describe_token(read_tokenizer(VOCABULARIES / "bert"), "[MASK]")
    add_settings(folder, added_tokens_decoder={"4": mask})
    assert read_tokenizer(folder).vocab.mask_id == 4


@pytest.mark.parametrize("setting", ["cls_token", "sep_token", "pad_token"])
def test_tokens_around_a_text_that_settings_exchange_are_refused_beside_a_vocabulary(setting, folder):
    add_settings(folder, **{setting: "[MASK]"})
    assert f"{setting}='[MASK]' of tokenizer_config.json" in refusal(folder)


@pytest.mark.parametrize("form", ["saved", "folder"])
@pytest.mark.parametrize(
    "id, changes",
    [("10", {"content": "e"}), ("9", {}), ("4", {"single_word": True}), ("4", {"normalized": True})],
    ids=["word", "id", "single", "normalized"],
)
def test_an_added_tokens_decoder_lists_tokens_that_are_there_as_they_are(id, changes, form, request):
    folder = request.getfixturevalue(form)
    mask = describe_token(read_tokenizer(folder), "[MASK]")
    add_settings(folder, added_tokens_decoder={"4": mask})
    assert read_tokenizer(folder).vocab.mask_id == 4
    add_settings(folder, added_tokens_decoder={id: mask | changes})
    name = changes.get("content", "[MASK]")
    assert f"the added token {name!r} with the id {id} of tokenizer_config.json" in refusal(folder)


def test_an_added_token_that_is_an_ordinary_word_of_the_vocabulary_is_refused(folder):
    assert read_tokenizer(folder).id_to_token(10) == "e"
    (folder / "added_tokens.json").write_text('{"e": 10}')
    assert "the added token 'e' with the id 10 of added_tokens.json" in refusal(folder)


def test_spaces_at_a_mask_are_compared_where_they_are_tokens(tmp_path, folder):
    """RoBERTa's mask takes the space before it; BERT's rules leave white space out."""
    roberta = shutil.copytree(VOCABULARIES / "roberta", tmp_path / "roberta")
    mask = {"content": "<mask>", "lstrip": True, "normalized": True}
    add_settings(roberta, mask_token=mask)
    assert read_tokenizer(roberta).vocab.vocab_size == VOCABULARY["roberta"]
    for flag, value in ("lstrip", False), ("rstrip", True):
        add_settings(roberta, mask_token=mask | {flag: value})
        assert f"'{flag}': {value}" in refusal(roberta)
    add_settings(folder, mask_token={"content": "[MASK]", "lstrip": True, "rstrip": True, "normalized": False})
    assert read_tokenizer(folder).vocab.mask_id == 4
    add_settings(folder, mask_token={"content": "[MASK]", "normalized": True})
    assert "'normalized': True" in refusal(folder)


def test_older_flags_of_the_pieces_of_sentencepiece_are_accepted(tmp_path):
    """The model file has flags of its own for its pieces, of which ALBERT's mask is one."""
    albert = shutil.copytree(VOCABULARIES / "albert", tmp_path / "albert")
    add_settings(albert, mask_token={"content": "[MASK]", "lstrip": True, "normalized": True})
    assert read_tokenizer(albert).vocab.vocab_size == VOCABULARY["albert"]
    deberta = shutil.copytree(VOCABULARIES / "deberta-v2", tmp_path / "deberta")
    add_settings(deberta, unk_token={"content": "[UNK]", "normalized": True})
    assert read_tokenizer(deberta).vocab.vocab_size == VOCABULARY["deberta-v2"]
    add_settings(deberta, mask_token={"content": "[MASK]", "normalized": True})
    assert "'normalized': True" in refusal(deberta)


def test_debertas_mask_has_the_flags_of_an_added_tokens_decoder_before_added_tokens(tmp_path):
    folder = shutil.copytree(VOCABULARIES / "deberta-v2", tmp_path / "deberta")
    ids = read_tokenizer(folder).encode("tan [MASK]")
    mask = describe_token(read_tokenizer(folder), "[MASK]")
    (folder / "added_tokens.json").write_text('{"[MASK]": 47}')
    assert read_tokenizer(folder).encode("tan [MASK]") != ids
    add_settings(folder, added_tokens_decoder={"47": mask})
    assert read_tokenizer(folder).encode("tan [MASK]") == ids


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"split_special_tokens": True}, "split_special_tokens=True"),
        ({"mask_token": 7}, "mask_token holds 7"),
        ({"additional_special_tokens": [["[MASK]"]]}, "additional_special_tokens holds ['[MASK]']"),
        ({"additional_special_tokens": 7}, "additional_special_tokens holds 7"),
        ({"added_tokens_decoder": ["[MASK]"]}, "added_tokens_decoder=['[MASK]']"),
        ({"added_tokens_decoder": {"x": {"content": "[MASK]"}}}, "added_tokens_decoder={'x'"),
        ({"added_tokens_decoder": {"4": {"lstrip": True}}}, "added_tokens_decoder holds {'lstrip': True}"),
    ],
)
@pytest.mark.parametrize("form", ["saved", "folder"])
def test_settings_of_tokens_that_cannot_be_read_are_named(settings, said, form, request):
    folder = request.getfixturevalue(form)
    add_settings(folder, **settings)
    assert said in refusal(folder)
    assert refusal(folder).startswith("tokenizer_config.json: ")
