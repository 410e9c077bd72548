"""Vocabularies of the released models: their rules, and readers of their published files."""

from __future__ import annotations

import json
import re
import struct
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

# Names of the special tokens as released. In a trained vocabulary they are the first ids, in this order, except
# fairseq's <mask>, which is the last.
SPECIAL_TOKEN_NAMES = {
    "wordpiece": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "bpe": {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"},
    "unigram": {"pad": "<pad>", "unk": "<unk>", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
}
SPECIAL_TOKEN_ROLES = ("pad", "unk", "cls", "sep", "mask")
ALBERT_SYMBOLS = ("(", ")", '"', "-", ".", "–", "£", "€")  # always separate pieces: ALBERT's spm_train flags
AVOIDED_PIECE_SCORE = -1000.0  # of a piece that is kept for its id only
MAX_VOCAB_SIZE = 2**24  # memory grows with the largest id; no published vocabulary comes near
VOCABULARY_FILES = {  # in order of preference
    "tokenizer.json": ("tokenizer.json",),
    "vocab.txt": ("vocab.txt",),
    "vocab.json": ("vocab.json", "merges.txt"),
    "encoder.json": ("encoder.json", "vocab.bpe", "dict.txt"),
    "dict.txt": ("dict.txt",),
    "spiece.model": ("spiece.model",),
}


def detect_tokenizer_kind(backend) -> str:
    kind = type(backend.model).__name__.lower()
    if kind not in SPECIAL_TOKEN_NAMES:
        raise ValueError(
            f"tokenizer kind {kind!r} is not supported; it must be one of {', '.join(SPECIAL_TOKEN_NAMES)}"
        )
    return kind


def find_special_token_names(tokens: dict[str, int], kind: str) -> dict[str, str]:
    """Return the name of each special token. Raises `ValueError` when one has none of its usual names."""
    usual = {
        role: dict.fromkeys([SPECIAL_TOKEN_NAMES[kind][role], *(names[role] for names in SPECIAL_TOKEN_NAMES.values())])
        for role in SPECIAL_TOKEN_ROLES
    }
    names_by_role = {role: next((name for name in names if name in tokens), None) for role, names in usual.items()}
    if missing := [" or ".join(usual[role]) for role in SPECIAL_TOKEN_ROLES if names_by_role[role] is None]:
        raise ValueError(f"the vocabulary of {len(tokens)} tokens lacks {', '.join(missing)}")
    return names_by_role


# The rules of each kind


def build_wordpiece(tokens: dict[str, int], lowercase: bool):
    """Build BERT's rules (https://github.com/google-research/bert, tokenization.py)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    backend = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]", max_input_chars_per_word=200))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=lowercase, lowercase=lowercase
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece("##")
    return configure_special_tokens(backend)


def build_byte_level_bpe(tokens: dict[str, int], merges: list[tuple[str, str]], add_prefix_space: bool = False):
    """Build GPT-2's and RoBERTa's rules: bytes, and a space belongs to the word after it.

    `add_prefix_space` puts a space before a text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.BPE(tokens, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    return configure_special_tokens(backend)


def build_unigram(
    pieces: list[tuple[str, float]], lowercase: bool, symbols: Iterable[str], precompiled_charsmap: bytes | None = None
):
    """Build ALBERT's rules (https://github.com/google-research/albert, tokenization.py) with SentencePiece's
    charsmap."""
    from tokenizers import Tokenizer, decoders, models

    # encode_pieces of the released code splits "2000," again, into the number and the comma.
    scored = [
        (piece, AVOIDED_PIECE_SCORE if len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit() else score)
        for piece, score in pieces
    ]
    unknown = [piece for piece, _ in pieces].index("<unk>")
    backend = Tokenizer(models.Unigram(scored, unknown, byte_fallback=False))
    backend.normalizer = build_albert_normalizer(lowercase, precompiled_charsmap)
    backend.pre_tokenizer = build_albert_pre_tokenizer(symbols)
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return configure_special_tokens(backend)


def build_albert_pre_tokenizer(symbols: Iterable[str]):
    """Put ▁ before each word, and separate the user-defined symbols."""
    from tokenizers import Regex, pre_tokenizers

    steps = [pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    pattern = "|".join(re.escape(symbol) for symbol in sorted(symbols, key=len, reverse=True))
    steps += [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    # A model of this kind would take the name of a special token in a text for that piece; SentencePiece does not.
    names = r"<(?=(?:pad|unk)>)|\[(?=(?:CLS|SEP|MASK)\])"
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.Split(Regex(names), "merged_with_previous")])


def build_albert_normalizer(lowercase: bool, precompiled_charsmap: bytes | None = None):
    """Build the equivalent of ALBERT's `preprocess_text`, followed by SentencePiece's normalisation.

    `preprocess_text` is Python code. The regular expressions match Python's white space, its combining characters (not
    all accents: vowel signs stay), and its lower case of a final sigma.
    """
    from tokenizers import Regex, normalizers

    steps = [normalizers.Replace(Regex(r"[\s\x1c-\x1f]+"), " "), normalizers.Strip()]
    steps += [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    steps += [normalizers.NFKD(), normalizers.Replace(Regex(build_combining_pattern()), "")]
    if lowercase:
        steps += [normalizers.Replace(Regex(r"(?<=\p{L})Σ(?!\p{L})"), "ς"), normalizers.Lowercase()]
    steps += [normalizers.Precompiled(precompiled_charsmap) if precompiled_charsmap else normalizers.NFKC()]
    return normalizers.Sequence([*steps, normalizers.Replace(Regex(" +"), " "), normalizers.Strip()])


@lru_cache(maxsize=1)
def build_combining_pattern() -> str:
    """Return a pattern of the characters that have a combining class."""
    return "[" + "".join(f"\\x{{{c:x}}}" for c in range(0x110000) if unicodedata.combining(chr(c))) + "]"


def configure_special_tokens(backend):
    """Mark the special tokens of a backend, and set how they are added to a text or a pair; return the backend.

    Settings that the file already has are kept.
    """
    from tokenizers import AddedToken, processors

    kind, tokens = detect_tokenizer_kind(backend), backend.get_vocab()
    names = find_special_token_names(tokens, kind)
    if max(tokens.values()) >= MAX_VOCAB_SIZE:
        raise ValueError(f"a token has the id {max(tokens.values())}; ids are below {MAX_VOCAB_SIZE}")
    backend.no_truncation()
    backend.no_padding()
    marked = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for role, name in names.items():
        if name in marked:
            continue
        before = kind == "bpe" and role == "mask"  # RoBERTa's mask takes the space before it
        backend.add_special_tokens([AddedToken(name, lstrip=before, special=True, normalized=False)])
    cls, sep = ((names[role], backend.token_to_id(names[role])) for role in ("cls", "sep"))
    if [cls[1], sep[1]] == backend.encode("").ids:
        return backend
    if kind == "bpe":
        backend.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=False)
    else:
        single, pair = f"{cls[0]} $A {sep[0]}", f"{cls[0]} $A {sep[0]} $B:1 {sep[0]}:1"
        backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=[cls, sep])
    return backend


# The files


def read_published_tokenizer(path: Path, lowercase: bool, add_prefix_space: bool):
    """Return the `tokenizers.Tokenizer` of a published vocabulary. Raises `ValueError` that names what is missing."""
    from tokenizers import Tokenizer

    forms = "; ".join(" + ".join(names) for names in VOCABULARY_FILES.values())
    if path.is_dir():
        name = next((name for name in VOCABULARY_FILES if (path / name).is_file()), None)
        if name is None:
            raise ValueError(f"the folder {str(path)!r} holds no vocabulary: {forms}")
        path = path / name
    if not path.is_file():
        raise ValueError(f"vocabulary {str(path)!r} does not exist; it must be a file or folder of {forms}")
    try:
        if path.suffix == ".txt" and path.name not in ("merges.txt", "dict.txt"):
            return build_wordpiece(_read_vocab_txt(path), lowercase)
        if path.suffix == ".model":
            return _parse_sentencepiece(path.read_bytes(), lowercase)
        if path.name in ("encoder.json", "vocab.bpe", "dict.txt"):
            return _read_fairseq_dictionary(path.parent, add_prefix_space)
        if path.name == "merges.txt":
            path = path.with_name("vocab.json")
        if path.suffix == ".json":
            content = json.loads(path.read_text("utf-8"))
            serialized = "model" in content and "added_tokens" in content
            return (
                configure_special_tokens(Tokenizer.from_file(str(path)))
                if serialized
                else _read_bpe(path, content, add_prefix_space)
            )
    except FileNotFoundError as error:
        raise ValueError(f"the vocabulary {str(path)!r} needs {error.filename} beside it") from error
    except BaseException as error:  # on damage the tokenizers library raises Exception, or panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"vocabulary {str(path)!r}: {error}") from error
    raise ValueError(f"vocabulary {str(path)!r} has an unknown format; it must be one of {forms}")


def _read_rows(path: Path) -> list[str]:
    with open(path, encoding="utf-8", newline="\n") as file:  # a token may be U+2028, which ends a line elsewhere
        return [row.rstrip("\r\n") for row in file]


def _read_vocab_txt(path: Path) -> dict[str, int]:
    rows = _read_rows(path)
    while rows and not rows[-1]:
        rows.pop()
    return {token: id for id, token in enumerate(rows)}


def _read_bpe(path: Path, tokens: dict[str, int], add_prefix_space: bool):
    name = next((name for name in ("merges.txt", "vocab.bpe") if path.with_name(name).is_file()), "merges.txt")
    return build_byte_level_bpe(tokens, _read_merges(path.with_name(name)), add_prefix_space)


def _read_merges(path: Path) -> list[tuple[str, str]]:
    rows = [row for row in _read_rows(path) if row and not row.startswith("#version")]
    return [tuple(row.split(" ", 1)) for row in rows]


def _read_fairseq_dictionary(folder: Path, add_prefix_space: bool):
    """Read GPT-2's tokens under the ids of fairseq's dictionary: four special tokens, the dictionary's rows, <mask>.

    A dictionary of single characters, such as amino acids, needs no other file.
    """
    rows = [row.split(" ")[0] for row in _read_rows(folder / "dict.txt") if row]
    if not (folder / "encoder.json").exists() and all(len(row) == 1 for row in rows):
        tokens = ["<s>", "<pad>", "</s>", "<unk>", *rows, "<mask>"]
        return build_byte_level_bpe({token: id for id, token in enumerate(tokens)}, [], add_prefix_space)
    names = {str(id): token for token, id in json.loads((folder / "encoder.json").read_text("utf-8")).items()}
    words = [row for row in rows if not row.startswith("madeupword")]
    # fairseq fills a dictionary up to a multiple of eight; the file may hold more than RoBERTa's three.
    filled = rows[: len(rows) if len(rows) == len(words) else len(words) + -(len(words) + 4) % 8]
    if unknown := [row for row in words if row not in names]:
        raise ValueError(f"dict.txt names {unknown[0]!r}, which is not an id of encoder.json")
    if len(set(words)) < len(names):
        raise ValueError(
            f"dict.txt holds {len(set(words))} of the {len(names)} tokens of encoder.json; it must hold all"
        )
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *(names.get(row, row) for row in filled), "<mask>"]
    return build_byte_level_bpe(
        {token: id for id, token in enumerate(tokens)}, _read_merges(folder / "vocab.bpe"), add_prefix_space
    )


def _parse_sentencepiece(content: bytes, lowercase: bool):
    """Read a spiece.model (SentencePiece's sentencepiece_model.proto) by field number."""
    pieces, symbols, charsmap = [], [], None
    for field, value in _parse_protobuf_fields(content):
        if field == 1:  # pieces: the text, its score, and its kind, which is 1 where it is left out
            entry = {1: b"", 2: struct.pack("<f", 0.0), 3: 1} | dict(_parse_protobuf_fields(value))
            piece, (score,) = entry[1].decode(), struct.unpack("<f", entry[2])
            pieces.append((piece, score))
            if entry[3] == 4:  # user-defined
                symbols.append(piece)
        elif field == 2 and (kind := dict(_parse_protobuf_fields(value)).get(3, 1)) != 1:  # trainer_spec.model_type
            raise ValueError(f"a SentencePiece model of type {kind}; only unigram, type 1, is read")
        elif field == 3:  # normalizer_spec.precompiled_charsmap
            charsmap = dict(_parse_protobuf_fields(value)).get(2)
    if "<unk>" not in dict(pieces):
        raise ValueError(f"{len(pieces)} pieces without <unk>: not a SentencePiece model of ALBERT's kind")
    return build_unigram(pieces, lowercase, symbols, charsmap)


def _parse_protobuf_fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the (number, value) pairs of a protocol-buffer message. Raises `ValueError` where it is cut off."""
    offset = 0

    def read_varint() -> int:
        nonlocal offset
        value = shift = 0
        while True:
            value, more = value | (content[offset] & 127) << shift, content[offset] > 127
            offset, shift = offset + 1, shift + 7
            if not more:
                return value

    while offset < len(content):
        number, wire = divmod(read_varint(), 8)
        if wire == 0:
            yield number, read_varint()
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"not a protocol buffer: wire type {wire} at byte {offset}")
        size = read_varint() if wire == 2 else {1: 8, 5: 4}[wire]
        if offset + size > len(content):
            raise ValueError(f"cut off at byte {len(content)}")
        yield number, content[offset : offset + size]
        offset += size
