"""Vocabularies of the released models over `tokenizers`: their rules, readers of their files, and their training."""

from __future__ import annotations

import json
import re
import struct
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from encoders.utils.errors import UserError

# Names of the special tokens as released. In a trained vocabulary they are the first ids, in this order, except
# fairseq's <mask>, which is the last.
SPECIAL_TOKEN_NAMES = {
    "wordpiece": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "bpe": {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"},
    "unigram": {"pad": "<pad>", "unk": "<unk>", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
}
ALBERT_SYMBOLS = ("(", ")", '"', "-", ".", "–", "£", "€")  # always separate pieces: ALBERT's spm_train flags
ASCII_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")
ALBERT_PUNCTUATION = frozenset('!"#$%&()*+,-./:;?@[\\]^_`{|}~£€')  # of ALBERT's _is_start_piece_sp
CHARACTER_COVERAGE = 0.99995  # of a unigram vocabulary's training characters, as ALBERT's spm_train flags
MAX_ALPHABET_SIZE = 1000  # distinct characters of a WordPiece vocabulary
AVOIDED_PIECE_SCORE = -1000.0  # of a piece that is kept for its id only
MAX_VOCAB_SIZE = 2**24  # memory grows with the largest id; no published vocabulary comes near
# In order of preference.
VOCABULARY_FORMS = ("tokenizer.json", "vocab.txt", "vocab.json + merges.txt", "encoder.json + vocab.bpe + dict.txt")
VOCABULARY_FORMS += ("dict.txt", "spiece.model")


def detect_tokenizer_kind(backend) -> str:
    kind, kinds = type(backend.model).__name__.lower(), ", ".join(SPECIAL_TOKEN_NAMES)
    if kind not in SPECIAL_TOKEN_NAMES:
        raise UserError(f"tokenizer kind {kind!r} is not supported; it must be one of {kinds}")
    return kind


def find_special_token_names(tokens: dict[str, int], kind: str) -> dict[str, str]:
    """Return the name of each special token. Raises `ValueError` when one has none of its usual names."""
    usual_names = {
        role: dict.fromkeys([SPECIAL_TOKEN_NAMES[kind][role], *(names[role] for names in SPECIAL_TOKEN_NAMES.values())])
        for role in ("pad", "unk", "cls", "sep", "mask")
    }
    if missing := [" or ".join(names) for names in usual_names.values() if not any(map(tokens.__contains__, names))]:
        raise UserError(f"the vocabulary of {len(tokens)} tokens lacks {', '.join(missing)}")
    return {role: next(name for name in names if name in tokens) for role, names in usual_names.items()}


def describe_vocabulary(backend, kind: str) -> dict:
    """Return the fields of `VocabInfo`."""
    vocabulary = backend.get_vocab()
    roles = {f"{role}_id": vocabulary[name] for role, name in find_special_token_names(vocabulary, kind).items()}
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


def configure_special_tokens(backend):
    """Mark the special tokens of a backend, and set how they are added to a text or a pair; return the backend.
    Settings that the file already has are kept."""
    kind, tokens = detect_tokenizer_kind(backend), backend.get_vocab()
    names = find_special_token_names(tokens, kind)
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
    forms, names = "; ".join(VOCABULARY_FORMS), [form.partition(" + ")[0] for form in VOCABULARY_FORMS]
    if path.is_dir():
        if not (present := [path / name for name in names if (path / name).is_file()]):
            raise UserError(f"the folder {str(path)!r} holds no vocabulary: {forms}")
        path = present[0]
    if not path.is_file():
        raise UserError(f"vocabulary {str(path)!r} does not exist; it must be a file or folder of {forms}")
    try:
        if path.name in ("encoder.json", "vocab.bpe", "dict.txt"):
            return _read_fairseq_dictionary(path.parent, add_prefix_space)
        if path.name == "merges.txt":
            path = path.with_name("vocab.json")
        if path.suffix == ".txt":
            return build_wordpiece({token: id for id, token in enumerate(_read_rows(path))}, lowercase)
        if path.suffix == ".model":
            return _parse_sentencepiece(path.read_bytes(), lowercase)
        if path.suffix == ".json":
            content = json.loads(path.read_text("utf-8"))
            if "model" in content and "added_tokens" in content:
                return configure_special_tokens(Tokenizer.from_file(str(path)))
            merges, gpt2_merges = path.with_name("merges.txt"), path.with_name("vocab.bpe")
            rows = _read_merges(gpt2_merges if gpt2_merges.is_file() and not merges.is_file() else merges)
            return build_byte_level_bpe(content, rows, add_prefix_space)
    except FileNotFoundError as error:
        raise UserError(f"the vocabulary {str(path)!r} needs {error.filename} beside it") from error
    except BaseException as error:  # on damage the tokenizers library raises Exception, or panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"vocabulary {str(path)!r}: {error}") from error
    raise UserError(f"vocabulary {str(path)!r} has an unknown format; it must be one of {forms}")


def _read_rows(path: Path) -> list[str]:
    with open(path, encoding="utf-8", newline="\n") as file:  # a token may be U+2028, which ends a line elsewhere
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
    names = {str(id): token for token, id in json.loads((folder / "encoder.json").read_text("utf-8")).items()}
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


# Training


def train_backend(kind: str, texts: list[str], vocab_size: int, lowercase: bool):
    """Train a vocabulary of at most `vocab_size` tokens; the same texts give the same ids in every process."""
    train = {"wordpiece": _train_wordpiece, "bpe": _train_bpe, "unigram": _train_unigram}[kind]
    return train(texts, vocab_size, lowercase)


def _train_wordpiece(texts: list[str], vocab_size: int, lowercase: bool):
    names = list(SPECIAL_TOKEN_NAMES["wordpiece"].values())
    rules = build_wordpiece({name: id for id, name in enumerate(names)}, lowercase)
    # A letter may need two tokens, "a" and "##a".
    texts = _normalize_texts(texts, rules.normalizer, 1.0, min(MAX_ALPHABET_SIZE, (vocab_size - len(names)) // 2))

    def train_vocab(max_tokens: int, special_tokens: list[str]) -> dict[str, int]:
        model, words = models.WordPiece(unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer()
        options = {"vocab_size": max_tokens, "special_tokens": special_tokens, "limit_alphabet": MAX_ALPHABET_SIZE}
        return _train_model(model, words, texts, trainers.WordPieceTrainer, min_frequency=2, **options)["vocab"]

    # The trainer numbers the letters in the order of a hash table, which differs between processes and decides ties.
    # A first pass finds the letters; a second one gets them in order.
    letters = sorted(set(train_vocab(len(names), names)) - set(names))
    return build_wordpiece(train_vocab(vocab_size, names + letters), lowercase)


def _train_bpe(texts: list[str], vocab_size: int, lowercase: bool):  # keeps case
    *first, mask = SPECIAL_TOKEN_NAMES["bpe"].values()
    options = {"vocab_size": vocab_size - 1, "special_tokens": first, "min_frequency": 2}
    options["initial_alphabet"] = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model = _train_model(models.BPE(), words, texts, trainers.BpeTrainer, **options)
    return build_byte_level_bpe(model["vocab"] | {mask: len(model["vocab"])}, [tuple(pair) for pair in model["merges"]])


def _train_unigram(texts: list[str], vocab_size: int, lowercase: bool):
    fixed = [*SPECIAL_TOKEN_NAMES["unigram"].values(), *ALBERT_SYMBOLS]
    normalizer, max_letters = build_albert_normalizer(lowercase), vocab_size - len(fixed) - 1
    texts = _normalize_texts(texts, normalizer, CHARACTER_COVERAGE, max_letters)
    words = build_albert_pre_tokenizer(ALBERT_SYMBOLS)
    options = {"vocab_size": vocab_size, "special_tokens": fixed[:2], "unk_token": "<unk>"}
    pieces = _train_model(models.Unigram(), words, texts, trainers.UnigramTrainer, **options)["vocab"]
    # Two things differ between processes: the last digits of sums in the order of a hash table, and the order of the
    # letters without a score, which the trainer sets 0.0001 apart above the lowest one.
    scores = {piece: round(score, 3) for piece, score in pieces if piece not in fixed}
    lowest = min(scores.values(), default=0.0)
    letters = [piece for piece in scores if len(piece) == 1]
    scores |= {piece: lowest for piece in letters if scores[piece] < lowest + 1e-4 * len(letters) + 1e-3}
    ranked = sorted(scores, key=lambda piece: (len(piece) > 1, -scores[piece], piece))  # no letter is dropped
    chosen = sorted(ranked[: vocab_size - len(fixed)], key=lambda piece: (-scores[piece], piece))
    pieces = [(piece, scores.get(piece, 0.0)) for piece in fixed + chosen]
    return build_unigram(pieces, lowercase, ALBERT_SYMBOLS)


def _normalize_texts(texts: list[str], normalizer, coverage: float, max_letters: int) -> list[str]:
    """Return normalised texts, with a space for each character that is too rare to get a token."""
    texts = [normalizer.normalize_str(text) for text in texts]
    counts = Counter(chain.from_iterable(texts))
    counts.pop(" ", None)
    ranked = sorted(counts, key=lambda letter: (-counts[letter], letter))[:max_letters]
    num_before = accumulate((counts[letter] for letter in ranked), initial=0)
    letters = {letter for letter, before in zip(ranked, num_before, strict=False) if before < coverage * counts.total()}
    rare = str.maketrans({letter: " " for letter in set(counts) - letters})
    return [text.translate(rare) for text in texts] if rare else texts


def _train_model(model, pre_tokenizer, texts: list[str], trainer_class: type, **options) -> dict:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer
    backend.train_from_iterator(iter(texts), trainer_class(show_progress=False, **options))
    return json.loads(backend.to_str())["model"]
