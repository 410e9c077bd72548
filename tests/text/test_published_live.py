"""Published vocabularies beside transformers, and beside the rules of the released code written out again here.

20,000 lines of real text and lines written by hand. In `encode_batch` the name of a special token in a text is text
like any other, so transformers is asked with `split_special_tokens=True`. On both sides the tokenizers library does
most of the work; what is written out here shares nothing with it.

`ENCODERS_SHARED` names the folder with `data/text` and `data/vocab`; without it, it is looked for beside the checkout.
These need the `torch` extra, and run with `python -m pytest -m live`.
"""

import json
import lzma
import os
import re
import unicodedata
from functools import cache
from pathlib import Path

import pytest

from encoders.text.tokenization import TokenizerSpec, load_tokenizer, train_tokenizer

pytestmark = pytest.mark.live
SHARED = Path(os.environ.get("ENCODERS_SHARED", Path(__file__).parents[3] / "shared"))
DRAWN = 10_000  # lines of each source
SOURCES = pytest.mark.parametrize("source", ["wiki-1", "books"])
CASES = pytest.mark.parametrize("lowercase", [True, False], ids=["uncased", "cased"])
JOINERS = pytest.mark.parametrize("joiner", ["", " "], ids=["first", "joined"])

WRITTEN = {
    "accents": [
        "Café naïve façade Ünïcödé Ångström señor Việt Nam",
        "Cafe\u0301 nai\u0308ve fac\u0327ade A\u030angstro\u0308m sen\u0303or Vie\u0323\u0302t",
        "e\u0301\u0301\u0301 a\u0300\u0301\u0302\u0303 o\u0323\u0302 \u0301lonely  \u0301 x",
        "Ǆ ǅ ŉ ß ẞ ﬁ ﬀ ſ ĳ İstanbul ISTANBUL ıI i\u0307 Å K Ω",
    ],
    "final sigma": ["ΟΔΥΣΣΕΥΣ ΑΣ. Σίσυφος Σ"],
    "cjk": [
        "日本語のテキスト 中文字符，标点。한국어 텍스트 ㄱㄴ 가각 \u1112\u1161\u11ab",
        "漢字Kanji混在 𠀀𪜶 \uf900\ufa1d々〆ヶ ｶﾞ カ\u3099 か\u3099が １２３ＡＢＣ㊙",
        "私は東京に住んでいます。「こんにちは」、世界！…",
    ],
    "emoji": [
        "🙂 👍🏽 👩‍👩‍👧‍👦 🏳\ufe0f‍🌈 ❤\ufe0f ☃ ☃\ufe0e 🇩🇪 1\ufe0f\u20e3 🥰 🫠 👩🏿‍🚀",
        "good🙂bad 👍👍🏿text x🏳\ufe0f‍🌈y",
    ],
    "controls": [
        "a\x00b\x01c\x07d\x08e\x0bf\x0cg\x1bh\x1ci\x1dj\x1ek\x1fl\x7fm\x80n\x85o\x9fp",
        "tab\tnew\nline\rreturn\r\nboth \t\n mixed\t\t",
        "\ufffdreplaced \ufffd",
    ],
    "zero width": [
        "zero\u200bwidth non\u200cjoiner join\u200der bom\ufeffmark word\u2060joiner soft\u00adhyphen \u180e \u034f",
        "\ufeffstart and end\u200b",
    ],
    "spaces": [
        "nbsp\u00a0en\u2002em\u2003thin\u2009hair\u200anarrow\u202fmath\u205fideographic\u3000ogham\u1680end",
        "\u00a0 \u2003leading and trailing\u3000\u00a0",
        "line\u2028separator paragraph\u2029separator",
        "  two  spaces   three    four ",
    ],
    "right to left": [
        "مرحبا بالعالم، كيف حالك؟ السَّلَامُ ١٢٣ ﷺ",
        "שלום עולם, מַה שְּׁלוֹמְךָ? ״ציטוט״",
        "left \u202bright\u202c \u200emark\u200f \u2066iso\u2069 عربي English עברית",
    ],
    "marks that are letters": ["हिन्दी देवनागरी ไทยภาษา தமிழ் বাংলা \u0e33 ລາວ བོད་"],
    "long words": [
        "x" * 100 + " " + "é" * 100 + " " + "-" * 300 + "a." * 80,
        "x" * 201 + " end " + "pneumono" * 30 + "! " + "é" * 250,
        "日" * 150 + "🙂" * 100,
    ],
    "between 100 and 200": ["x" * 101, "1" * 150 + ", end", "e\u0301" * 120, "É" * 200, "pneumono" * 15 + "."],
    "names": [
        "the [MASK] sat [CLS] on [SEP] a [PAD] mat [UNK] [mask] [unused1] [ MASK ]",
        "[MASK]", "[MASK][MASK]", "x[MASK]y [CLS]the[SEP]", "##ing ##s play ##ing",
        "the <mask> sat <s> on </s> a <pad> mat <unk> <MASK> <|endoftext|>",
        "<mask>", " <mask> ", "x<mask>y <s>a</s>", "madeupword0000 ▁the Ġthe",
    ],
    "empty": ["", " ", "   ", "\t", "\n", "\n\n \t ", "\u00a0", "\u3000", "\u200b", "\x00", "\ufeff", "\u2028"],
    "marks": [
        "'s 't 're 've 'm 'll 'd 'S 'T I'M don’t it's' ''quoted'' ``quoted'' `a' \"b\" ``",
        "In 2,000, or 3.0, or 1999, 7, $5.00 £3 €4 50% #tag @user a_b c^d e~f g|h i\\j {k} <l> =m+ n`o",
        "²³½Ⅷ① ™ ℠ © ª º ％ – — ― … ‘ ’ “ ” « » „ ‚ ¿ ¡ § ¶ • † ‰ ′ ″ 、 。 𝒜𝔅ℂ 𝟘𝟙 𐐀𐐨",
    ],
    "private use": ["\ue000private\uf8ff \ufffe x\U000f0000 \U0010ffff"],
}  # fmt: skip
# transformers calls a word of more than 100 characters unknown, Google's code one of more than 200.
GOOGLE_ONLY = {"between 100 and 200"}
# The tokenizers library lower-cases a letter without looking at its place, and drops private use and what is no
# character; Python's lower(), and so Google's code, knows the final sigma, and Google's has [UNK] for the others.
TRANSFORMERS_ONLY = {"final sigma", "private use"}


def written(*without: str):
    kinds = [kind for kind in WRITTEN if kind not in without]
    return pytest.mark.parametrize("kind", kinds, ids=[kind.replace(" ", "-") for kind in kinds])


def found(part: str) -> Path:
    if not (SHARED / part).exists():
        pytest.skip(f"there is no {SHARED / part}")
    return SHARED / part


@cache
def drawn(source: str) -> list[str]:
    """`DRAWN` lines of a text, evenly."""
    with lzma.open(found(f"data/text/{source}.txt.xz"), "rt", encoding="utf-8", newline="\n") as file:
        lines = [line.removesuffix("\n") for line in file if line.strip()]
    return [lines[i * len(lines) // DRAWN] for i in range(DRAWN)]


def differences(texts, ours, theirs) -> list[str]:
    """The texts of which the two say something else, and what they say from there on."""
    differ = []
    for text, mine, other in zip(texts, ours, theirs, strict=True):
        if mine != other:
            same = len(os.path.commonprefix([mine, other]))
            differ.append(ascii((text[:60], same, mine[same : same + 9], other[same : same + 9])))
    return differ


@pytest.fixture(scope="module")
def transformers():
    library = pytest.importorskip("transformers")
    library.utils.logging.disable_progress_bar()
    return library


def ids_of(tokenizer, texts: list[str]) -> list[list[int]]:
    """What a tokenizer of transformers says, without special tokens: neither added nor read in a text."""
    said = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return said["input_ids"]


# BERT


@pytest.fixture(scope="module")
def bert():
    path = found("data/vocab/bert-uncased-vocab.txt")
    return {lowercase: load_tokenizer(path, lowercase) for lowercase in (True, False)}


@pytest.fixture(scope="module")
def their_bert(transformers):
    path = str(found("data/vocab/bert-uncased-vocab.txt"))
    return {lowercase: transformers.BertTokenizer(path, do_lower_case=lowercase) for lowercase in (True, False)}


IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


def google_words(text: str, lowercase: bool) -> list[str]:
    """BasicTokenizer of google-research/bert, tokenization.py."""

    def cleaned(letter: str) -> str:
        kind = unicodedata.category(letter)
        if letter in " \t\n\r" or kind == "Zs":
            return " "
        if letter in "\0\ufffd" or kind in ("Cc", "Cf"):
            return ""
        return f" {letter} " if any(first <= ord(letter) <= last for first, last in IDEOGRAPHS) else letter

    def apart(letter: str) -> str:
        symbol = letter.isascii() and letter.isprintable() and not letter.isalnum()
        return f" {letter} " if symbol or unicodedata.category(letter).startswith("P") else letter

    words = "".join(map(cleaned, text)).split()
    if lowercase:
        decomposed = [unicodedata.normalize("NFD", word.lower()) for word in words]
        words = ["".join(letter for letter in word if unicodedata.category(letter) != "Mn") for word in decomposed]
    return " ".join("".join(map(apart, word)) for word in words).split()


def google_pieces(word: str, vocabulary: dict[str, int]) -> list[int]:
    """WordpieceTokenizer of google-research/bert: the longest piece first, 200 characters at most."""
    ids, start = [], 0
    while start < len(word) <= 200:
        mark = "##" if start else ""
        end = next((end for end in range(len(word), start, -1) if mark + word[start:end] in vocabulary), None)
        if end is None:
            break
        ids.append(vocabulary[mark + word[start:end]])
        start = end
    return ids if start == len(word) else [vocabulary["[UNK]"]]


def google_ids(texts: list[str], lowercase: bool) -> list[list[int]]:
    rows = found("data/vocab/bert-uncased-vocab.txt").read_text("utf-8").split("\n")
    vocabulary = {token: id for id, token in enumerate(rows)}
    return [[id for word in google_words(text, lowercase) for id in google_pieces(word, vocabulary)] for text in texts]


def test_the_ids_of_hello_world_are_those_of_the_released_bert(bert):
    assert bert[True].encode_batch(["Hello world"]) == [[7592, 2088]]
    assert bert[True].vocab.vocab_size == 30522 and bert[True].vocab.special_ids == (0, 100, 101, 102, 103)


@CASES
@SOURCES
def test_bert_gives_real_text_the_ids_of_transformers(bert, their_bert, source, lowercase):
    texts = drawn(source)
    assert differences(texts, bert[lowercase].encode_batch(texts), ids_of(their_bert[lowercase], texts)) == []


@CASES
@SOURCES
def test_bert_gives_real_text_the_ids_of_googles_code(bert, source, lowercase):
    texts = drawn(source)[::10]  # Python takes a millisecond a line
    assert differences(texts, bert[lowercase].encode_batch(texts), google_ids(texts, lowercase)) == []


@CASES
@written(*GOOGLE_ONLY)
def test_bert_gives_unusual_text_the_ids_of_transformers(bert, their_bert, kind, lowercase):
    texts = WRITTEN[kind]
    assert differences(texts, bert[lowercase].encode_batch(texts), ids_of(their_bert[lowercase], texts)) == []


@CASES
@written(*TRANSFORMERS_ONLY)
def test_bert_gives_unusual_text_the_ids_of_googles_code(bert, kind, lowercase):
    texts = WRITTEN[kind]
    assert differences(texts, bert[lowercase].encode_batch(texts), google_ids(texts, lowercase)) == []


def test_a_word_of_101_characters_is_unknown_to_transformers_and_pieces_in_googles_code(bert, their_bert):
    word, limit = "x" * 101, "x" * 201
    unknown = [bert[True].vocab.unk_id]
    assert ids_of(their_bert[True], [word]) == [unknown] == google_ids([limit], True)
    assert bert[True].encode_batch([word]) == google_ids([word], True) != [unknown]
    assert bert[True].encode_batch([limit]) == [unknown]


# RoBERTa


@pytest.fixture(scope="module")
def roberta():
    return load_tokenizer(found("data/vocab/roberta"))


def numbered() -> dict[int, int]:
    """RoBERTa's id of each of GPT-2's: after four special tokens, in the order of fairseq's dictionary."""
    rows = (found("data/vocab/roberta") / "dict.txt").read_text("utf-8").splitlines()
    words = [row.split()[0] for row in rows]
    return {int(word): 4 + place for place, word in enumerate(words) if not word.startswith("madeupword")}


@pytest.fixture(scope="module")
def their_roberta(transformers):
    """transformers' GPT-2, and fairseq's numbers of its tokens."""
    folder, numbers = found("data/vocab/roberta"), numbered()
    tokenizer = transformers.GPT2Tokenizer(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    return lambda texts: [[numbers[id] for id in row] for row in ids_of(tokenizer, texts)]


@pytest.fixture(scope="module")
def their_encoder():
    """GPT-2's encoder.py, written out again."""
    regex = pytest.importorskip("regex")  # transformers brings it
    words = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    folder, numbers = found("data/vocab/roberta"), numbered()
    ids = json.loads((folder / "encoder.json").read_text("utf-8"))
    merges = (folder / "vocab.bpe").read_text("utf-8").split("\n")[1:-1]  # the first line is the version
    rank = {tuple(merge.split()): place for place, merge in enumerate(merges)}
    shown = [byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte]
    others = [byte for byte in range(256) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown} | {byte: chr(256 + place) for place, byte in enumerate(others)}

    @cache
    def encoded(word: str) -> list[int]:
        parts = [letters[byte] for byte in word.encode()]
        while pairs := set(zip(parts, parts[1:], strict=False)) & rank.keys():
            best, joined = min(pairs, key=rank.get), []
            while parts:
                size = 2 if tuple(parts[:2]) == best else 1
                joined, parts = [*joined, "".join(parts[:size])], parts[size:]
            parts = joined
        return [numbers[ids[part]] for part in parts]

    return lambda texts: [[id for word in words.findall(text) for id in encoded(word)] for text in texts]


def test_the_ids_of_hello_world_are_those_that_transformers_documents_for_roberta(roberta):
    assert roberta.encode_batch(["Hello world", " Hello world"]) == [[31414, 232], [20920, 232]]
    assert roberta.vocab.vocab_size == 50265 and roberta.vocab.special_ids == (0, 1, 2, 3, 50264)
    assert roberta.sentence_joiner == " "


@JOINERS
@SOURCES
def test_roberta_gives_real_text_the_ids_of_transformers(roberta, their_roberta, source, joiner):
    texts = [joiner + text for text in drawn(source)]
    assert differences(texts, roberta.encode_batch(texts), their_roberta(texts)) == []


@SOURCES
def test_roberta_gives_real_text_the_ids_of_gpt2s_code(roberta, their_encoder, source):
    texts = drawn(source)[::10]
    assert differences(texts, roberta.encode_batch(texts), their_encoder(texts)) == []


@JOINERS
@written()
def test_roberta_gives_unusual_text_the_ids_of_transformers_and_gpt2s_code(
    roberta, their_roberta, their_encoder, kind, joiner
):
    texts = [joiner + text for text in WRITTEN[kind]]
    assert differences(texts, roberta.encode_batch(texts), their_roberta(texts)) == []
    assert differences(texts, roberta.encode_batch(texts), their_encoder(texts)) == []


# ALBERT


@pytest.fixture(scope="module")
def albert():
    documents = ([line] for line in drawn("wiki-1"))
    return train_tokenizer(TokenizerSpec(kind="unigram", vocab_size=8000, train_chars=2_000_000), documents)


def preprocessed(text: str) -> str:
    """preprocess_text of google-research/albert, tokenization.py, then NFKC and single spaces as in SentencePiece.

    The quotes are XLNet's and transformers', which ALBERT's code lacks. What else SentencePiece's table of characters
    does, such as dropping controls, comes with a spiece.model.
    """
    text = " ".join(text.strip().split()).replace("``", '"').replace("''", '"')
    text = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return re.sub(" +", " ", unicodedata.normalize("NFKC", text.lower())).strip(" ")


def normalized(tokenizer, texts: list[str]) -> list[str]:
    return [tokenizer._backend.normalizer.normalize_str(text) for text in texts]


@SOURCES
def test_a_trained_unigram_vocabulary_sees_real_text_as_albert_does(albert, source):
    texts = drawn(source)
    assert differences(texts, normalized(albert, texts), map(preprocessed, texts)) == []


@written()
def test_a_trained_unigram_vocabulary_sees_unusual_text_as_albert_does(albert, kind):
    texts = WRITTEN[kind]
    assert differences(texts, normalized(albert, texts), map(preprocessed, texts)) == []


def test_no_token_ends_in_a_number_and_its_comma(albert):
    """encode_pieces of the released code takes the comma off, though training finds such pieces."""
    pieces = [albert.id_to_token(id) for id in range(albert.vocab.vocab_size)]
    learned = {id for id, piece in enumerate(pieces) if piece[-1:] == "," and piece[-2:-1].isdigit()}
    lines = [line for line in drawn("wiki-1") if re.search(r"\d,", line)]
    assert len(learned) > 0 and len(lines) > 1000
    assert learned.isdisjoint(id for row in albert.encode_batch([*lines, *WRITTEN["marks"]]) for id in row)
    numbers = ["1", "2", "3.0", "1999", "2,000", "in 1"]
    alone, followed = albert.encode_batch(numbers), albert.encode_batch([f"{number}," for number in numbers])
    assert followed == [[*row, pieces.index(",")] for row in alone]
    assert [pieces[id] for id in followed[2]] == ["▁3", ".", "0", ","]
