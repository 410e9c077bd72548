"""Vocabularies over `tokenizers`: their special tokens, and the rules of each kind."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from encoders.utils.errors import UserError

# Names of the special tokens as released. In a trained vocabulary they are the first ids, in this order, except
# fairseq's <mask>, which is the last.
SPECIAL_TOKEN_NAMES = {
    "wordpiece": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "bpe": {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"},
    "unigram": {"pad": "<pad>", "unk": "<unk>", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
}
SPECIAL_TOKEN_NAMES |= dict.fromkeys(("character", "words"), SPECIAL_TOKEN_NAMES["wordpiece"])
ALBERT_SYMBOLS = ("(", ")", '"', "-", ".", "–", "£", "€")  # always separate pieces: ALBERT's spm_train flags
ASCII_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")
ALBERT_PUNCTUATION = frozenset('!"#$%&()*+,-./:;?@[\\]^_`{|}~£€')  # of ALBERT's _is_start_piece_sp
NO_NAMES: Mapping[str, str] = MappingProxyType({})
SPACE = "▁"
AVOIDED_PIECE_SCORE = -1000.0  # of a piece that is kept for its id only
MAX_VOCAB_SIZE = 2**24  # memory grows with the largest id; no published vocabulary comes near


def detect_tokenizer_kind(backend) -> str:
    kind, kinds = type(backend.model).__name__.lower(), ", ".join(SPECIAL_TOKEN_NAMES)
    if kind == "wordlevel":
        return "character" if type(backend.normalizer).__name__ == "Replace" else "words"
    if kind not in SPECIAL_TOKEN_NAMES:
        raise UserError(f"tokenizer kind {kind!r} is not supported; it must be one of {kinds}")
    return kind


def list_special_names(kind: str, own_names: Mapping[str, str] = NO_NAMES) -> dict[str, list[str]]:
    """Return the names that each special token may have: the one in `own_names`, or the usual ones."""
    usual_names = {
        role: list(dict.fromkeys([name, *(names[role] for names in SPECIAL_TOKEN_NAMES.values())]))
        for role, name in SPECIAL_TOKEN_NAMES[kind].items()
    }
    return usual_names | {role: [name] for role, name in own_names.items() if role in usual_names}


def find_special_token_names(
    tokens: dict[str, int], kind: str, own_names: Mapping[str, str] = NO_NAMES
) -> dict[str, str]:
    """Return the name of each special token. Raises `ValueError` where the vocabulary has none of its names."""
    names_by_role = list_special_names(kind, own_names)
    lacking = {role: names for role, names in names_by_role.items() if tokens.keys().isdisjoint(names)}
    if lacking:
        missing = ", ".join(" or ".join(names) for names in lacking.values())
        hint = f"data.tokenizer.special_tokens names others, as in {next(iter(lacking))}=NAME"
        raise UserError(f"the vocabulary of {len(tokens)} tokens lacks {missing}; {hint}")
    return {role: next(name for name in names if name in tokens) for role, names in names_by_role.items()}


def describe_vocabulary(backend, kind: str, own_names: Mapping[str, str] = NO_NAMES) -> dict:
    """Return the fields of `VocabInfo`."""
    vocabulary = backend.get_vocab()
    names = find_special_token_names(vocabulary, kind, own_names)
    roles = {f"{role}_id": vocabulary[name] for role, name in names.items()}
    added = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}
    special = tuple(sorted(added | set(roles.values())))
    size = max(vocabulary.values()) + 1
    bits = np.zeros(size, np.uint8)
    bits[[id for token, id in vocabulary.items() if is_continuation(token, kind)]] = 1
    bits[list(special)] = 0
    return roles | {"vocab_size": size, "special_ids": special, "continuation_bits": np.packbits(bits).tobytes()}


def is_continuation(token: str, kind: str) -> bool:
    """Return whether an ordinary token continues a word, as in the released code of each family's whole-word masks."""
    if kind == "wordpiece":
        return token.startswith("##")
    if kind == "bpe":
        return not token.startswith(("Ġ", SPACE, "madeupword"))
    if kind in ("character", "words"):
        return False
    # ALBERT: digits, letters beyond a-z and single punctuation marks are separate units.
    is_unit = token.startswith(("▁", "<")) or token in ALBERT_PUNCTUATION
    return not is_unit and set(token.lower()) <= ASCII_LETTERS | ALBERT_PUNCTUATION


# The rules of each kind


def build_wordpiece(tokens: dict[str, int], lowercase: bool):
    """Build BERT's rules (https://github.com/google-research/bert, tokenization.py)."""
    backend = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]", max_input_chars_per_word=200))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=lowercase, lowercase=lowercase
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece("##")
    return configure_special_tokens(backend)


def build_byte_level_bpe(tokens: dict[str, int], merges: list[tuple[str, str]], add_prefix_space: bool = False):
    """Build GPT-2's and RoBERTa's rules: bytes, and a space belongs to the word after it."""
    backend = Tokenizer(models.BPE(tokens, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    return configure_special_tokens(backend)


def build_unigram(
    pieces: list[tuple[str, float]], lowercase: bool, symbols: Iterable[str], precompiled_charsmap: bytes | None = None
):
    """Build ALBERT's rules (https://github.com/google-research/albert, tokenization.py) and its model's charsmap."""
    # encode_pieces of the released code splits "2000," again, into the number and the comma.
    is_avoided = lambda piece: piece[-1:] == "," and piece[-2:-1].isdigit()
    scored = [(piece, AVOIDED_PIECE_SCORE if is_avoided(piece) else score) for piece, score in pieces]
    unknown = [piece for piece, _ in pieces].index("<unk>")
    backend = Tokenizer(models.Unigram(scored, unknown, byte_fallback=False))
    backend.normalizer = build_albert_normalizer(lowercase, precompiled_charsmap)
    backend.pre_tokenizer = build_albert_pre_tokenizer(symbols)
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return configure_special_tokens(backend)


def build_albert_pre_tokenizer(symbols: Iterable[str]):
    """Put ▁ before each word, and separate the user-defined symbols."""
    steps = [pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    pattern = "|".join(re.escape(symbol) for symbol in sorted(symbols, key=len, reverse=True))
    steps += [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    return pre_tokenizers.Sequence([*steps, build_name_splitter(r"<(?=(?:pad|unk)>)|\[(?=(?:CLS|SEP|MASK)\])")])


def build_name_splitter(pattern: str):
    """Split the names of special tokens in a text, which a unigram model would take for those pieces; SentencePiece
    does not."""
    return pre_tokenizers.Split(Regex(pattern), "merged_with_previous")


def build_deberta_unigram(pieces: list[tuple[str, float]], lowercase: bool, normalizes_mask: bool):
    """Build the rules of `DebertaV2Tokenizer` in transformers 5, with [MASK] after the pieces of the model.

    They have NFC in place of the model's own charsmap, which is usually NFKC and writes ① as 1. With `normalizes_mask`
    the space before [MASK] is a token, as in transformers where added_tokens.json names [MASK].
    """
    backend = Tokenizer(models.Unigram(pieces, [piece for piece, _ in pieces].index("[UNK]"), byte_fallback=False))
    steps = [normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "), normalizers.NFC()]
    steps = [*([normalizers.Lowercase()] if lowercase else []), *steps, normalizers.Strip(left=False, right=True)]
    backend.normalizer = normalizers.Sequence(steps)
    words = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    names = build_name_splitter(r"\[(?=(?:PAD|UNK|CLS|SEP|MASK)\])")
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, names])
    backend.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    backend.add_special_tokens([AddedToken("[MASK]", special=True, normalized=normalizes_mask)])
    return configure_special_tokens(backend)


def build_albert_normalizer(lowercase: bool, precompiled_charsmap: bytes | None = None):
    """Build the equivalent of ALBERT's `preprocess_text`, followed by SentencePiece's normalisation. `preprocess_text`
    is Python code. The regular expressions match Python's white space, its combining characters (not all accents: vowel
    signs stay), and its lower case of a final sigma."""
    steps = [normalizers.Replace(Regex(r"[\s\x1c-\x1f]+"), " "), normalizers.Strip()]
    steps += [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    steps += [normalizers.NFKD(), normalizers.Replace(Regex(build_combining_pattern()), "")]
    if lowercase:
        steps += [normalizers.Replace(Regex(r"(?<=\p{L})Σ(?!\p{L})"), "ς"), normalizers.Lowercase()]
    steps += [normalizers.Precompiled(precompiled_charsmap) if precompiled_charsmap else normalizers.NFKC()]
    return normalizers.Sequence([*steps, normalizers.Replace(Regex(" +"), " "), normalizers.Strip()])


@lru_cache(maxsize=1)
def build_combining_pattern() -> str:
    return "[" + "".join(f"\\x{{{c:x}}}" for c in range(0x110000) if unicodedata.combining(chr(c))) + "]"


def build_word_list(tokens: dict[str, int], own_names: Mapping[str, str] = NO_NAMES):
    """Build the rules of a word list: the tokens are the words between spaces. Case is kept."""
    backend = Tokenizer(models.WordLevel(tokens, find_special_token_names(tokens, "words", own_names)["unk"]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return configure_special_tokens(backend, own_names)


def build_characters(tokens: dict[str, int], own_names: Mapping[str, str] = NO_NAMES):
    """Build the rules of single characters, of which a space is the token ▁. Case is kept."""
    backend = Tokenizer(models.WordLevel(tokens, find_special_token_names(tokens, "character", own_names)["unk"]))
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace(SPACE, " ")])
    return configure_special_tokens(backend, own_names)


def build_listed_characters(tokens: dict[str, int], own_names: Mapping[str, str] = NO_NAMES):
    """Build the rules of a list of characters and names of special tokens. A list without ▁ follows transformers'
    EsmTokenizer: white space is left out, and a run of unknown characters is one token."""
    backend = build_characters(tokens, own_names)
    long_names = [token for token in tokens if len(token) > 1]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in long_names])
    if SPACE not in tokens:
        known = "".join(f"\\x{{{ord(token):x}}}" for token in tokens if len(token) == 1)
        units = Regex(rf"[{known}]|[^{known}{SPACE}\s\x1c-\x1f]+")
        backend.pre_tokenizer = pre_tokenizers.Split(units, "removed", invert=True)
    return backend


LIST_BUILDERS = {"character": build_listed_characters, "words": build_word_list}


def configure_special_tokens(backend, own_names: Mapping[str, str] = NO_NAMES):
    """Mark the special tokens of a backend, and set how they are added to a text or a pair; return the backend.
    Settings that the file already has are kept."""
    kind, tokens = detect_tokenizer_kind(backend), backend.get_vocab()
    names = find_special_token_names(tokens, kind, own_names)
    if max(tokens.values()) >= MAX_VOCAB_SIZE:
        raise UserError(f"a token has the id {max(tokens.values())}; ids are below {MAX_VOCAB_SIZE}")
    backend.no_truncation()
    backend.no_padding()
    marked = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for role, name in names.items():
        if name not in marked:
            takes_space = kind == "bpe" and role == "mask"  # RoBERTa's mask takes the space before it
            backend.add_special_tokens([AddedToken(name, lstrip=takes_space, special=True, normalized=False)])
    cls, sep = ((names[role], backend.token_to_id(names[role])) for role in ("cls", "sep"))
    if own_names:
        # The template keeps the role of each special token, from which `find_own_names` reads it again.
        roles = [{"id": role, "ids": [tokens[name]], "tokens": [name]} for role, name in names.items()]
        backend.post_processor = processors.TemplateProcessing(
            single="cls $A sep", pair="cls $A sep $B:1 sep:1", special_tokens=roles
        )
        return backend
    if [cls[1], sep[1]] == backend.encode("").ids:
        return backend
    if kind == "bpe":
        backend.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=False)
    else:
        single, pair = f"{cls[0]} $A {sep[0]}", f"{cls[0]} $A {sep[0]} $B:1 {sep[0]}:1"
        backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=[cls, sep])
    return backend


def find_own_names(content: dict) -> dict[str, str]:
    """Return the names of special tokens that the user has given to a tokenizer.json; none to most."""
    entries = (content.get("post_processor") or {}).get("special_tokens") or {}
    has_roles = set(entries) == set(SPECIAL_TOKEN_NAMES["wordpiece"])
    return {role: entry["tokens"][0] for role, entry in entries.items()} if has_roles else {}


# Fields of tokenizer_config.json that may name the token of a role, in order of preference. Byte-level vocabularies
# often have no unknown token, and nothing gives it.
ROLE_SETTINGS = {
    "pad": ("pad_token", "eos_token"),
    "unk": ("unk_token", "pad_token", "eos_token"),
    "cls": ("cls_token", "bos_token"),
    "sep": ("sep_token", "eos_token"),
    "mask": ("mask_token",),
}


def infer_own_names(backend, settings: Mapping) -> dict[str, str]:
    """Return the names of special tokens that tokenizer_config.json gives a tokenizer.json without the usual ones, such
    as those of Llama and Gemma. Two tokens that the file puts around a text are [CLS] and [SEP]."""
    tokens = backend.get_vocab()
    roles = [role for role, names in list_special_names("wordpiece").items() if tokens.keys().isdisjoint(names)]
    around = backend.encode("").tokens
    found = dict(zip(("cls", "sep"), around, strict=True)) if len(around) == 2 else {}
    for role in roles:
        entries = (settings.get(name) for name in ROLE_SETTINGS[role])
        names = [entry.get("content") if isinstance(entry, dict) else entry for entry in entries]
        known = [name for name in names if name in tokens]
        if known and role not in found:
            found[role] = known[0]
    return found if roles else {}
