"""Readers of the files of published vocabularies."""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer

from encoders.text.tokenizer_backends import (
    LIST_BUILDERS,
    NO_NAMES,
    SPACE,
    build_byte_level_bpe,
    build_deberta_unigram,
    build_unigram,
    build_wordpiece,
    configure_special_tokens,
    find_own_names,
    infer_own_names,
    list_special_names,
)
from encoders.utils.buckets import open_text
from encoders.utils.errors import UserError

# In order of preference.
VOCABULARY_FORMS = ("tokenizer.json", "vocab.txt", "vocab.json + merges.txt", "encoder.json + vocab.bpe + dict.txt")
VOCABULARY_FORMS += ("dict.txt", "spiece.model", "spm.model")
NAME_PATTERN = re.compile(r"<\w+>|\[\w+\]")  # a token of several letters in a list of characters


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
        text = read_json_text(path) if path.suffix == ".json" else "{}"
        content = json.loads(text)
        if "model" in content and "added_tokens" in content:
            backend, settings_file = Tokenizer.from_str(text), path.with_name("tokenizer_config.json")
            own_names = own_names or find_own_names(content)
            if not own_names and settings_file.is_file():
                own_names = infer_own_names(backend, json.loads(settings_file.read_text("utf-8-sig")))
            return configure_special_tokens(backend, own_names), own_names
        if own_names:
            raise UserError("tokenizer.special_tokens is for tokenizer.json, and for lists of characters or words")
        if path.name in ("encoder.json", "vocab.bpe", "dict.txt"):
            return _read_fairseq_dictionary(path.parent, add_prefix_space), {}
        if path.name == "merges.txt":
            path = path.with_name("vocab.json")
        if path.suffix == ".txt":
            return build_wordpiece(number_word_pieces(_read_rows(path)), lowercase), {}
        if path.suffix == ".model":
            return _parse_sentencepiece(path.read_bytes(), lowercase, _normalizes_added_tokens(path.parent)), {}
        if path.suffix == ".json":
            merges, gpt2_merges = path.with_name("merges.txt"), path.with_name("vocab.bpe")
            rows = _read_merges(gpt2_merges if gpt2_merges.is_file() and not merges.is_file() else merges)
            return build_byte_level_bpe(json.loads(read_json_text(path)), rows, add_prefix_space), {}
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
    for a token that is there twice, for one of `own_names` that is not there, and for one of a character list that is
    longer and no name, as <null_1> is."""
    if lacking := [(role, name) for role, name in own_names.items() if name not in rows]:
        (role, name), *_ = lacking
        usual = " or ".join(list_special_names(kind)[role])
        hint = f"name a token of the list, add this one as a line, or leave {role} to {usual}, which need not be listed"
        raise UserError(f"the list of {len(rows)} tokens lacks {name!r}, the name for {role}; {hint}")
    names_by_role = list_special_names(kind, own_names)
    special = set(chain.from_iterable(names_by_role.values()))
    if repeated := [token for token, count in Counter(rows).items() if count > 1]:
        raise UserError(f"the token {repeated[0]!r} is listed {rows.count(repeated[0])} times")
    is_name = lambda row: row in special or NAME_PATTERN.fullmatch(row)
    if kind == "character" and (long := [row for row in rows if len(row) != 1 and not is_name(row)]):
        raise UserError(f"the token {long[0]!r} is not a single character; tokenizer.kind=words takes any token")
    added = [names[0] for names in names_by_role.values() if set(rows).isdisjoint(names)]
    return {token: id for id, token in enumerate([*rows, *added])}


def read_json_text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig")


def _read_rows(path: Path) -> list[str]:
    with open_text(path) as file:  # a token may be U+2028, which ends a line elsewhere
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


def _normalizes_added_tokens(folder: Path) -> bool:
    """Return whether transformers finds the tokens of added_tokens.json in normalized text. An added_tokens_decoder of
    tokenizer_config.json has flags of its own."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8-sig")) if path.is_file() else {}
    return (folder / "added_tokens.json").is_file() and not settings.get("added_tokens_decoder")


def _parse_sentencepiece(content: bytes, lowercase: bool, normalizes_mask: bool):
    """Read a spiece.model or spm.model (SentencePiece's sentencepiece_model.proto) by field number.

    The name of the unknown piece says whose rules it has: ALBERT's or DeBERTa's.
    """
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
    if "<unk>" in dict(pieces):
        return build_unigram(pieces, lowercase, symbols, charsmap)
    if "[UNK]" in dict(pieces):
        return build_deberta_unigram(pieces, lowercase, normalizes_mask)
    raise UserError(f"{len(pieces)} pieces without <unk> and [UNK]: not a SentencePiece model of ALBERT or DeBERTa")


def _parse_protobuf_fields(content: bytes) -> list[tuple[int, int | bytes]]:
    """Return the (number, value) pairs of a protocol-buffer message. Raises `ValueError` where it is damaged."""
    from google.protobuf.empty_pb2 import Empty
    from google.protobuf.message import DecodeError
    from google.protobuf.unknown_fields import UnknownFieldSet

    try:
        return [(field.field_number, field.data) for field in UnknownFieldSet(Empty.FromString(content))]
    except DecodeError as error:
        raise UserError(f"cut off, or not a protocol buffer: {error}") from error
