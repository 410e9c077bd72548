"""Tokenizer files of published checkpoints: read from beside the weights, written for AutoTokenizer with equal ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from encoders.exchange.weights import CheckpointError, list_names, read_json
from encoders.model.config import EncoderConfig
from encoders.text.tokenization import Tokenizer, load_tokenizer

# Special tokens: name in tokenizer_config.json, field of `VocabInfo`.
SPECIAL_TOKEN_ROLES = {
    "pad_token": "pad_id",
    "unk_token": "unk_id",
    "cls_token": "cls_id",
    "sep_token": "sep_id",
    "mask_token": "mask_id",
}
# Classes of transformers, without "Fast", whose rules a vocabulary file of each kind has here.
TOKENIZER_CLASSES = {
    "wordpiece": ("BertTokenizer", "ElectraTokenizer", "DistilBertTokenizer", "MobileBertTokenizer"),
    "bpe": ("RobertaTokenizer", "GPT2Tokenizer", "LongformerTokenizer", "BartTokenizer"),
    "unigram": ("AlbertTokenizer", "DebertaV2Tokenizer"),
    "character": ("EsmTokenizer",),
}
# Classes whose vocab.txt is a list of characters, with the names of their special tokens.
CHARACTER_LIST_CLASSES = {
    "EsmTokenizer": {"cls": "<cls>", "pad": "<pad>", "sep": "<eos>", "unk": "<unk>", "mask": "<mask>"}
}
ANY_FAST_CLASS = ("PreTrainedTokenizer", "TokenizersBackend")
# Classes whose rules are Python code: a tokenizer.json beside them has other ones.
PYTHON_CLASSES = ("BertJapaneseTokenizer", "BertweetTokenizer", "PhobertTokenizer", "EsmTokenizer", "CanineTokenizer")


def read_tokenizer(path: Path, log: Callable[[str], None] = lambda line: None) -> Tokenizer:
    """Return the tokenizer at `path`: a folder, or one of the files that `TokenizerSpec.path` accepts. Capitals that it
    lowers are logged.

    Raises `CheckpointError` for missing files and for rules that only transformers applies.
    """
    folder = path if path.is_dir() else path.parent
    settings_file = folder / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.is_file() else {}
    rules = {name: settings[name] for name in ("do_lower_case", "add_prefix_space") if name in settings}
    for name, value in rules.items():
        if not isinstance(value, bool):
            raise CheckpointError(f"tokenizer_config.json: {name}={value!r} is not true or false")
    lowercase = rules.get("do_lower_case", not (folder / "spm.model").is_file())  # DeBERTa's default is False
    own_names = CHARACTER_LIST_CLASSES.get(str(settings.get("tokenizer_class")), {})
    if own_names and path.is_dir():  # transformers reads the list, whatever is beside it
        path = path / "vocab.txt"
    kind = "character" if own_names and path.suffix == ".txt" else ""
    try:
        tokenizer = load_tokenizer(path, lowercase, rules.get("add_prefix_space", False), kind, own_names)
    except ValueError as error:
        raise CheckpointError(f"{error}; other files can be named with --vocabulary") from None
    for name, value in tokenizer.get_transformers_options().items():
        if rules.get(name, value) != value:
            raise CheckpointError(
                f"{folder.name}: tokenizer_config.json has {name}={rules[name]} and tokenizer.json has {value}; "
                "transformers applies one or the other, by its version and class: make them agree"
            )
    has_own_rules = path.name == "tokenizer.json" or (path / "tokenizer.json").is_file()
    check_tokenizer_class(settings, tokenizer, has_own_rules)
    if lost := tokenizer.describe_lost_capitals():
        log(f"{folder.name}: {lost}; do_lower_case=false in tokenizer_config.json keeps capitals")
    if not has_own_rules and (unsupported := list_unsupported_rules(folder, settings, tokenizer, lowercase)):
        raise CheckpointError(
            f"{folder.name}: {list_names(unsupported)} can be read from a tokenizer.json only; save the tokenizer with "
            "transformers first"
        )
    return tokenizer


def check_tokenizer_class(settings: dict, tokenizer: Tokenizer, has_own_rules: bool) -> None:
    """Raise `CheckpointError` for a class of transformers that applies other rules than `tokenizer`, which has those of
    tokenizer.json if `has_own_rules`."""
    name = settings.get("tokenizer_class")
    if not isinstance(name, str):
        return
    base_name, known = name.removesuffix("Fast"), TOKENIZER_CLASSES.get(tokenizer.kind, ())
    is_other = base_name in PYTHON_CLASSES if has_own_rules else base_name not in (*known, *ANY_FAST_CLASS)
    if is_other:
        hint = f"a vocabulary of {tokenizer.kind} is read as {' or '.join(known) or 'a tokenizer.json'}"
        raise CheckpointError(f"tokenizer_config.json: tokenizer_class={name!r} has rules of its own; {hint}")


def list_unsupported_rules(folder: Path, settings: dict, tokenizer: Tokenizer, lowercase: bool) -> list[str]:
    """Return the settings and added tokens beside a vocabulary file that its tokenizer does not apply."""
    supported = {"strip_accents": lowercase, "tokenize_chinese_chars": True, "keep_accents": False}
    supported |= {"do_basic_tokenize": True, "never_split": [], "split_by_punct": False}
    rules = [f"{n}={settings[n]!r}" for n, value in supported.items() if settings.get(n) not in (None, value)]
    added_file = folder / "added_tokens.json"
    added_tokens = read_json(added_file) if added_file.is_file() else {}
    ids = {tokenizer.id_to_token(id): id for id in range(tokenizer.vocab.vocab_size)}
    return rules + [f"the added token {token!r}" for token, id in added_tokens.items() if ids.get(token) != id]


def write_tokenizer(tokenizer: Tokenizer, folder: Path, config: EncoderConfig) -> None:
    """Write tokenizer.json, tokenizer_config.json and, for WordPiece and characters, the vocab.txt of older tools."""
    tokenizer.save(folder)
    token_types = ["token_type_ids"] if config.num_token_types > 1 else []
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_positions,
        "model_input_names": ["input_ids", *token_types, "attention_mask"],
        "clean_up_tokenization_spaces": False,
    } | {name: tokenizer.id_to_token(getattr(tokenizer.vocab, field)) for name, field in SPECIAL_TOKEN_ROLES.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    if tokenizer.kind in ("wordpiece", "character"):
        words = [tokenizer.id_to_token(id) for id in range(tokenizer.vocab.vocab_size)]
        (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
