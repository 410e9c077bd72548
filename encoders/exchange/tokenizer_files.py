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
TOKENIZER_CONFIG = "tokenizer_config.json"
# Settings with the names of several special tokens.
TOKEN_LISTS = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")
ANY_FAST_CLASS = ("PreTrainedTokenizer", "TokenizersBackend")
# Classes whose rules are Python code: a tokenizer.json beside them has other ones.
PYTHON_CLASSES = ("BertJapaneseTokenizer", "BertweetTokenizer", "PhobertTokenizer", "EsmTokenizer", "CanineTokenizer")


def read_tokenizer(path: Path, log: Callable[[str], None] = lambda line: None) -> Tokenizer:
    """Return the tokenizer at `path`: a folder, or one of the files that `TokenizerSpec.path` accepts. Capitals that it
    lowers are logged.

    Raises `CheckpointError` for missing files, and for rules, special tokens and added tokens that only transformers
    applies.
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
    has_own_rules = path.name == "tokenizer.json" or (path / "tokenizer.json").is_file()
    options = tokenizer.get_transformers_options() | (tokenizer.get_text_rules() if has_own_rules else {})
    for name, value in options.items():
        if settings.get(name) not in (None, value):
            raise CheckpointError(
                f"{folder.name}: tokenizer_config.json has {name}={settings[name]!r} and tokenizer.json has {value}; "
                "transformers applies one or the other, by its version and class: make them agree"
            )
    if settings.get("split_special_tokens"):
        value = settings["split_special_tokens"]
        raise CheckpointError(
            f"tokenizer_config.json: split_special_tokens={value!r} is not supported; it must be false"
        )
    check_tokenizer_class(settings, tokenizer, has_own_rules)
    if lost := tokenizer.describe_lost_capitals():
        log(f"{folder.name}: {lost}; do_lower_case=false in tokenizer_config.json keeps capitals")
    unsupported = list_unsupported_tokens(folder, settings, tokenizer, has_own_rules)
    if not has_own_rules:
        unsupported = list_unsupported_rules(settings, tokenizer, lowercase) + unsupported
    if unsupported:
        problem = "differs from tokenizer.json" if has_own_rules else "can be read from a tokenizer.json only"
        raise CheckpointError(
            f"{folder.name}: {list_names(unsupported)} {problem}; save the tokenizer with transformers first"
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


def list_unsupported_rules(settings: dict, tokenizer: Tokenizer, lowercase: bool) -> list[str]:
    """Return the settings beside a vocabulary file that its tokenizer does not apply."""
    supported = {"strip_accents": lowercase, "tokenize_chinese_chars": True, "keep_accents": False}
    supported |= {"do_basic_tokenize": True, "never_split": [], "split_by_punct": False}
    supported |= {"add_prefix_space": True} if tokenizer.kind == "unigram" else {}
    return [
        f"{name}={settings[name]!r} of tokenizer_config.json"
        for name, value in supported.items()
        if settings.get(name) not in (None, value)
    ]


def list_unsupported_tokens(folder: Path, settings: dict, tokenizer: Tokenizer, has_own_rules: bool) -> list[str]:
    """Return the tokens named beside a vocabulary that its tokenizer does not have as special or added ones.

    As in transformers, special_tokens_map.json and added_tokens.json do not count beside an added_tokens_decoder.
    Raises `CheckpointError` for a file that is not a JSON object, and for a token without a name.
    """
    added = tokenizer.get_added_tokens()
    has_decoder = bool(settings.get("added_tokens_decoder"))
    named, numbered = list_named_tokens(TOKENIZER_CONFIG, settings), list_numbered_tokens(settings)
    for name in ("special_tokens_map.json", "added_tokens.json"):
        if has_decoder or not (folder / name).is_file():
            continue
        content = read_json(folder / name)
        if name == "added_tokens.json":
            numbered += [(name, token, id, {}) for token, id in content.items()]
        else:
            named += list_named_tokens(name, content)
    # A tokenizer.json says itself which tokens are around a text.
    roles = ("unk_token", "mask_token") if has_own_rules else tuple(SPECIAL_TOKEN_ROLES)
    unsupported = []
    for file, setting, name, flags in named:
        id, token = added.get(name, (None, None))
        is_other_role = setting in roles and getattr(tokenizer.vocab, SPECIAL_TOKEN_ROLES[setting]) != id
        # Those of added_tokens_decoder, of tokenizer.json and of SentencePiece come first; DeBERTa's [MASK] is the last
        # token, and no piece of SentencePiece.
        is_piece = tokenizer.kind == "unigram" and id != tokenizer.vocab.vocab_size - 1
        counted = {} if has_decoder or has_own_rules or is_piece else flags
        if token is None or is_other_role or not has_same_flags(counted, token, tokenizer, has_own_rules):
            unsupported.append(f"{setting}={flags or name!r} of {file}")
    for file, name, id, flags in numbered:
        own_id, token = added.get(name, (None, None))
        if token is None or own_id != id or not has_same_flags(flags, token, tokenizer, has_own_rules):
            unsupported.append(f"the added token {name!r} with the id {id!r} of {file}")
    return unsupported


def list_named_tokens(file: str, settings: dict) -> list[tuple[str, str, str, dict]]:
    """Return the file, the setting, the name and the flags of each special token that settings name.

    Raises `CheckpointError` for a token without a name.
    """
    found = []
    for setting, value in settings.items():
        if setting in TOKEN_LISTS:
            tokens = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            found += [(setting, token) for token in tokens]
        elif setting in SPECIAL_TOKEN_ROLES or (setting.endswith("_token") and isinstance(value, (str, dict))):
            found.append((setting, value))
    return [(file, setting, *split_token(file, setting, token)) for setting, token in found if token not in (None, "")]


def list_numbered_tokens(settings: dict) -> list[tuple[str, str, int, dict]]:
    """Return the place, the name, the id and the flags of each token of added_tokens_decoder.

    Raises `CheckpointError` for a token without a name or an id.
    """
    setting = "added_tokens_decoder"
    decoder = settings.get(setting) or {}
    if not isinstance(decoder, dict) or not all(id.isdecimal() for id in decoder):
        raise CheckpointError(f"{TOKENIZER_CONFIG}: {setting}={str(decoder)[:80]} must be an object of tokens by id")
    tokens = [(int(id), *split_token(TOKENIZER_CONFIG, setting, token)) for id, token in decoder.items()]
    return [(f"{TOKENIZER_CONFIG} (added_tokens_decoder)", name, id, flags) for id, name, flags in tokens]


def split_token(file: str, setting: str, token: object) -> tuple[str, dict]:
    """Return the name and the flags of a token: a name, or an object with its content."""
    name, flags = (token.get("content"), token) if isinstance(token, dict) else (token, {})
    if not isinstance(name, str):
        raise CheckpointError(f"{file}: {setting} holds {token!r}, which must be a name or an object with its content")
    return name, flags


def has_same_flags(flags: dict, token, tokenizer: Tokenizer, has_own_rules: bool) -> bool:
    """Return whether `token`, a `tokenizers.AddedToken`, is found in texts as `flags` say. Flags that change no id are
    not compared."""
    compared = ["single_word"]
    # The rules of the other vocabulary files leave out the white space around a token.
    compared += ["lstrip", "rstrip"] if has_own_rules or tokenizer.kind in ("bpe", "character") else []
    # DeBERTa's rules see the space before a normalized [MASK].
    is_unigram_mask = tokenizer.kind == "unigram" and token.content == tokenizer.id_to_token(tokenizer.vocab.mask_id)
    compared += ["normalized"] if is_unigram_mask or tokenizer.normalize(token.content) != token.content else []
    return all(flags.get(flag, getattr(token, flag)) == getattr(token, flag) for flag in compared)


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
