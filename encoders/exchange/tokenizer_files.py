"""Tokenizers as published: read from the files beside the weights, written so that AutoTokenizer gives the same ids."""

from __future__ import annotations

import json
from pathlib import Path

from encoders.exchange.weights import CheckpointError, list_names, read_json
from encoders.model.config import EncoderConfig
from encoders.text.tokenization import Tokenizer, load_tokenizer

# The name of each special token in tokenizer_config.json.
SPECIAL_TOKEN_ROLES = {
    "pad_token": "pad_id",
    "unk_token": "unk_id",
    "cls_token": "cls_id",
    "sep_token": "sep_id",
    "mask_token": "mask_id",
}


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of the files at `path`, a folder or one of the files that `Vocabulary.path` takes.

    Raises `CheckpointError` where there is none, and for rules that are not read.
    """
    folder = path if path.is_dir() else path.parent
    options = folder / "tokenizer_config.json"
    settings = read_json(options) if options.is_file() else {}
    rules = {name: settings[name] for name in ("do_lower_case", "add_prefix_space") if name in settings}
    for name, value in rules.items():
        if not isinstance(value, bool):
            raise CheckpointError(f"tokenizer_config.json: {name}={value!r} is not true or false")
    lowercase = rules.get("do_lower_case", True)
    try:
        tokenizer = load_tokenizer(path, lowercase, rules.get("add_prefix_space", False))
    except ValueError as error:
        raise CheckpointError(f"{error}; other files can be named with --vocabulary") from None
    for name, value in tokenizer.get_transformers_options().items():
        if rules.get(name, value) != value:
            raise CheckpointError(
                f"{folder.name}: tokenizer_config.json has {name}={rules[name]}, tokenizer.json does as with {value}; "
                "transformers takes one or the other, by its version and class: make them agree"
            )
    if path.name != "tokenizer.json" and not (path / "tokenizer.json").is_file():
        unread = {"strip_accents": (None, lowercase), "tokenize_chinese_chars": (None, True)}
        unread |= {"keep_accents": (None, False)}
        lacking = [f"{name}={settings[name]!r}" for name, read in unread.items() if settings.get(name) not in read]
        extra = folder / "added_tokens.json"
        added = read_json(extra) if extra.is_file() else {}
        known = {tokenizer.id_to_token(id): id for id in range(tokenizer.vocab.vocab_size)}
        lacking += [f"the added token {name!r}" for name, id in added.items() if known.get(name) != id]
        if lacking:
            raise CheckpointError(
                f"{folder.name}: {list_names(lacking)} can be read from a tokenizer.json only; save the tokenizer with "
                "transformers first"
            )
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path, config: EncoderConfig) -> None:
    """tokenizer.json, tokenizer_config.json and, for WordPiece, the vocab.txt of older tools."""
    tokenizer.save(folder)
    names = {name: tokenizer.id_to_token(getattr(tokenizer.vocab, role)) for name, role in SPECIAL_TOKEN_ROLES.items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_positions,
        "model_input_names": [
            "input_ids",
            *(["token_type_ids"] if config.num_token_types > 1 else []),
            "attention_mask",
        ],
        "clean_up_tokenization_spaces": False,
    } | names
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    if tokenizer.kind == "wordpiece":
        words = [tokenizer.id_to_token(id) for id in range(tokenizer.vocab.vocab_size)]
        (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
