"""Vocabularies over `tokenizers`: their rules, and readers of the files of released ones."""

from __future__ import annotations

import json
import re
import struct
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path
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
NAME_PATTERN = re.compile(r"<\w+>|\[\w+\]")  # a token of several letters in a list of characters
AVOIDED_PIECE_SCORE = -1000.0  # of a piece that is kept for its id only
MAX_VOCAB_SIZE = 2**24  # memory grows with the largest id; no published vocabulary comes near
# In order of preference.
VOCABULARY_FORMS = ("tokenizer.json", "vocab.txt", "vocab.json + merges.txt", "encoder.json + vocab.bpe + dict.txt")
VOCABULARY_FORMS += ("dict.txt", "spiece.model")


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
        return not token.startswith(("Ġ", "madeupword"))
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
    # A model of this kind would take the name of a special token in a text for that piece; SentencePiece does not.
    names = r"<(?=(?:pad|unk)>)|\[(?=(?:CLS|SEP|MASK)\])"
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.Split(Regex(names), "merged_with_previous")])


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


# The files


def read_published_tokenizer(
    path: Path,
    lowercase: bool,
    add_prefix_space: bool,
    kind: str = "",
    own_names: Mapping[str, str] = NO_NAMES,
):
    """Return the `tokenizers.Tokenizer` of a published vocabulary, and the names of special tokens that are not the
    usual ones. A list of tokens in a .txt file is WordPiece unless `kind` is "character" or "words". Raises
    `ValueError` that names what is missing."""
    forms, names = "; ".join(VOCABULARY_FORMS), [form.partition(" + ")[0] for form in VOCABULARY_FORMS]
    if path.is_dir():
        if not (present := [path / name for name in names if (path / name).is_file()]):
            raise UserError(f"the folder {str(path)!r} holds no vocabulary: {forms}")
        path = present[0]
    if not path.is_file():
        raise UserError(f"vocabulary {str(path)!r} does not exist; it must be a file or folder of {forms}")
    try:
        if path.suffix == ".txt" and kind in LIST_BUILDERS:
            return LIST_BUILDERS[kind](number_listed_tokens(_read_rows(path), kind, own_names), own_names), own_names
        text = path.read_text("utf-8-sig") if path.suffix == ".json" else "{}"
        content = json.loads(text)
        if "model" in content and "added_tokens" in content:
            own_names = own_names or find_own_names(content)
            return configure_special_tokens(Tokenizer.from_str(text), own_names), own_names
        if own_names:
            raise UserError("tokenizer.special_tokens is for tokenizer.json, and for lists of characters or words")
        if path.name in ("encoder.json", "vocab.bpe", "dict.txt"):
            return _read_fairseq_dictionary(path.parent, add_prefix_space), {}
        if path.name == "merges.txt":
            path = path.with_name("vocab.json")
        if path.suffix == ".txt":
            return build_wordpiece(number_word_pieces(_read_rows(path)), lowercase), {}
        if path.suffix == ".model":
            return _parse_sentencepiece(path.read_bytes(), lowercase), {}
        if path.suffix == ".json":
            merges, gpt2_merges = path.with_name("merges.txt"), path.with_name("vocab.bpe")
            rows = _read_merges(gpt2_merges if gpt2_merges.is_file() and not merges.is_file() else merges)
            return build_byte_level_bpe(json.loads(path.read_text("utf-8-sig")), rows, add_prefix_space), {}
    except FileNotFoundError as error:
        raise UserError(f"the vocabulary {str(path)!r} needs {error.filename} beside it") from error
    except BaseException as error:  # on damage the tokenizers library raises Exception, or panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"vocabulary {str(path)!r}: {error}") from error
    raise UserError(f"vocabulary {str(path)!r} has an unknown format; it must be one of {forms}")


def number_word_pieces(rows: list[str]) -> dict[str, int]:
    """Return WordPiece's tokens by name. Raises `ValueError` for the pieces of SentencePiece or of byte-level BPE."""
    counts = Counter(mark for row in rows for mark in ("##", SPACE, "Ġ") if row.startswith(mark))
    for mark, other in (
        (SPACE, "SentencePiece, read from spiece.model"),
        ("Ġ", "byte-level BPE, read from vocab.json"),
    ):
        if counts[mark] > counts["##"]:
            raise UserError(f"{counts[mark]} tokens start with {mark} and {counts['##']} with ##: it is of {other}")
    return {token: id for id, token in enumerate(rows)}


def number_listed_tokens(rows: list[str], kind: str, own_names: Mapping[str, str]) -> dict[str, int]:
    """Return the tokens of a list by name, with the usual special tokens behind those that it has. Raises `ValueError`
    for a token that is there twice, and for one of a character list that is longer and no name, as <null_1> is."""
    names_by_role = list_special_names(kind, own_names)
    special = set(chain.from_iterable(names_by_role.values()))
    if repeated := [token for token, count in Counter(rows).items() if count > 1]:
        raise UserError(f"the token {repeated[0]!r} is listed {rows.count(repeated[0])} times")
    is_name = lambda row: row in special or NAME_PATTERN.fullmatch(row)
    if kind == "character" and (long := [row for row in rows if len(row) != 1 and not is_name(row)]):
        raise UserError(f"the token {long[0]!r} is not a single character; tokenizer.kind=words takes any token")
    added = [names[0] for names in names_by_role.values() if set(rows).isdisjoint(names)]
    return {token: id for id, token in enumerate([*rows, *added])}


def _read_rows(path: Path) -> list[str]:
    with open(path, encoding="utf-8-sig", newline="\n") as file:  # a token may be U+2028, which ends a line elsewhere
        return [row.rstrip("\r") for row in file.read().rstrip("\r\n").split("\n")]


def _read_merges(path: Path) -> list[tuple[str, str]]:
    rows = [row for row in _read_rows(path) if row and not row.startswith("#version")]
    return [tuple(row.split(" ", 1)) for row in rows]


def _read_fairseq_dictionary(folder: Path, add_prefix_space: bool):
    """Read GPT-2's tokens under the ids of fairseq's dictionary: four special tokens, the dictionary's rows, <mask>. A
    dictionary of single characters, such as amino acids, needs no other file."""
    rows = [row.split(" ")[0] for row in _read_rows(folder / "dict.txt") if row]
    number_tokens = lambda words: {
        token: id for id, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words, "<mask>"])
    }
    if not (folder / "encoder.json").exists() and all(len(row) == 1 for row in rows):
        return build_byte_level_bpe(number_tokens(rows), [], add_prefix_space)
    names = {str(id): token for token, id in json.loads((folder / "encoder.json").read_text("utf-8-sig")).items()}
    words = [row for row in rows if not row.startswith("madeupword")]
    # fairseq fills a dictionary up to a multiple of eight; the file may hold more than RoBERTa's three.
    filled = rows[: len(rows) if len(rows) == len(words) else len(words) + -(len(words) + 4) % 8]
    if unknown := [row for row in words if row not in names]:
        raise UserError(f"dict.txt names {unknown[0]!r}, which is not an id of encoder.json")
    if (num_words := len(set(words))) < len(names):
        raise UserError(f"dict.txt holds {num_words} of the {len(names)} tokens of encoder.json; it must hold all")
    tokens = number_tokens(names.get(row, row) for row in filled)
    return build_byte_level_bpe(tokens, _read_merges(folder / "vocab.bpe"), add_prefix_space)


def _parse_sentencepiece(content: bytes, lowercase: bool):
    """Read a spiece.model (SentencePiece's sentencepiece_model.proto) by field number."""
    pieces, symbols, charsmap = [], [], None
    for field, value in _parse_protobuf_fields(content):
        if field == 1:  # pieces: the text, its score as the bits of a float, and its kind, which is 1 by default
            entry = {1: b"", 2: 0, 3: 1} | dict(_parse_protobuf_fields(value))
            piece, (score,) = entry[1].decode(), struct.unpack("<f", struct.pack("<I", entry[2]))
            pieces.append((piece, score))
            if entry[3] == 4:  # user-defined
                symbols.append(piece)
        elif field == 2 and (kind := dict(_parse_protobuf_fields(value)).get(3, 1)) != 1:  # trainer_spec.model_type
            raise UserError(f"a SentencePiece model of type {kind}; only unigram, type 1, is read")
        elif field == 3:  # normalizer_spec.precompiled_charsmap
            charsmap = dict(_parse_protobuf_fields(value)).get(2)
    if "<unk>" not in dict(pieces):
        raise UserError(f"{len(pieces)} pieces without <unk>: not a SentencePiece model of ALBERT's kind")
    return build_unigram(pieces, lowercase, symbols, charsmap)


def _parse_protobuf_fields(content: bytes) -> list[tuple[int, int | bytes]]:
    """Return the (number, value) pairs of a protocol-buffer message. Raises `ValueError` where it is damaged."""
    from google.protobuf.empty_pb2 import Empty
    from google.protobuf.message import DecodeError
    from google.protobuf.unknown_fields import UnknownFieldSet

    try:
        return [(field.field_number, field.data) for field in UnknownFieldSet(Empty.FromString(content))]
    except DecodeError as error:
        raise UserError(f"cut off, or not a protocol buffer: {error}") from error
