import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import encoders
from encoders.text.tokenization import Tokenizer, TokenizerSpec, VocabInfo, load_tokenizer, train_tokenizer
from tests.refusals import raises_naming

DOCUMENTS = [
    ["The cat sat on the mat.", "The mat was flat, and the cat was fat (very).", "A naïve rat ran at the cat."],
    ["On the mat sat a rat in 2000, and the cat ran.", 'The "flat" hat is the rat\'s hat - it cost £5.'],
] * 3
SIZES = {"wordpiece": 90, "bpe": 300, "unigram": 80}
KINDS = pytest.mark.parametrize("kind", SIZES)
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff", "##able", "hello", "world", ",", "!", "[", "]"]
BERT += ["mask", "H", "##ello", "é", "e", "\u2028"]


@pytest.fixture(scope="module")
def trained():
    return {kind: train_tokenizer(TokenizerSpec(kind, size), DOCUMENTS) for kind, size in SIZES.items()}


@pytest.fixture
def bert(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("".join(f"{token}\r\n" for token in BERT).encode())
    return path


def tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.id_to_token(id) for id in tokenizer.encode(text)]


# Specifications and facts


@pytest.mark.parametrize("kind, least", [("wordpiece", 21), ("bpe", 261), ("unigram", 29)])
def test_a_vocabulary_holds_at_least_its_special_tokens_and_letters(kind, least):
    TokenizerSpec(kind, least)
    TokenizerSpec(kind, 0, path="vocab.txt")  # a published one has the size that it has
    with raises_naming(ValueError, f"tokenizer.vocab_size={least - 1} ", "5 special tokens", f"= {least}"):
        TokenizerSpec(kind, least - 1)


def test_a_specification_names_what_it_could_have_been():
    with raises_naming(ValueError, "kind='wordpeice'", "wordpiece, bpe, unigram"):
        TokenizerSpec("wordpeice")
    with raises_naming(ValueError, "tokenizer.train_chars=0 ", "1"):
        TokenizerSpec(train_chars=0)


def test_facts_survive_json_and_can_be_a_key():
    starts = np.array([1, 1, 0, 1, 1, 1, 1, 1, 0, 1], bool)
    facts = VocabInfo(10, 0, 1, 2, 3, 4, (0, 1, 2, 3, 4), np.packbits(~starts).tobytes(), 7)
    assert facts.to_json_value()["continuation_bits"] == "2080"  # bits 2 and 8
    assert VocabInfo.from_json_value(json.loads(json.dumps(facts.to_json_value()))) == facts
    assert {facts: 1}[VocabInfo.from_json_value(facts.to_json_value())] == 1
    np.testing.assert_array_equal(facts.compute_word_starts(), starts)


# Training


def test_special_tokens_have_the_ids_of_the_released_models(trained):
    wordpiece, bpe, unigram = (trained[kind].vocab for kind in ("wordpiece", "bpe", "unigram"))
    assert [trained["wordpiece"].id_to_token(id) for id in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (wordpiece.pad_id, wordpiece.unk_id, wordpiece.cls_id, wordpiece.sep_id, wordpiece.mask_id) == (
        0,
        1,
        2,
        3,
        4,
    )
    assert [trained["bpe"].id_to_token(id) for id in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert (bpe.cls_id, bpe.pad_id, bpe.sep_id, bpe.unk_id, bpe.mask_id) == (0, 1, 2, 3, bpe.vocab_size - 1)
    assert bpe.special_ids == (0, 1, 2, 3, bpe.vocab_size - 1)
    assert [trained["unigram"].id_to_token(id) for id in range(5)] == ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    assert "".join(trained["unigram"].id_to_token(id) for id in range(5, 13)) == '()"-.–£€'
    assert unigram.special_ids == (0, 1, 2, 3, 4)


@KINDS
def test_a_trained_vocabulary_is_no_larger_than_asked(trained, kind):
    assert trained[kind].vocab.vocab_size <= SIZES[kind]
    least = {"wordpiece": 21, "bpe": 261, "unigram": 29}[kind]
    assert train_tokenizer(TokenizerSpec(kind, least), DOCUMENTS).vocab.vocab_size <= least


@KINDS
def test_training_is_the_same_in_every_process(trained, kind, tmp_path):
    program = (
        "import sys, json; from encoders.text.tokenization import *\n"
        "kind, size, path, documents = json.loads(sys.argv[1])\n"
        "train_tokenizer(TokenizerSpec(kind, size), documents).save(path)"
    )
    trained[kind].save(tmp_path / "here.json")
    arguments = [kind, SIZES[kind], str(tmp_path / "there.json"), DOCUMENTS]
    root = Path(encoders.__file__).parents[1]
    subprocess.run([sys.executable, "-c", program, json.dumps(arguments)], check=True, cwd=root)
    assert (tmp_path / "here.json").read_text() == (tmp_path / "there.json").read_text()


@KINDS
def test_training_reads_no_more_than_its_sample(kind):
    def endless():
        yield from DOCUMENTS
        yield ["Enough is enough. " * 30]
        raise AssertionError("read too far")

    characters = sum(len(sentence) for document in DOCUMENTS for sentence in document)
    train_tokenizer(TokenizerSpec(kind, SIZES[kind], train_chars=characters + 500), endless())


@KINDS
def test_training_on_nothing_is_an_error(kind):
    with raises_naming(ValueError, "corpus", kind):
        train_tokenizer(TokenizerSpec(kind, SIZES[kind]), [[" "], []])


@KINDS
def test_a_saved_vocabulary_reads_back_equal(trained, kind, tmp_path):
    trained[kind].save(tmp_path)
    again = load_tokenizer(tmp_path / "tokenizer.json")
    texts = ["The cat, on 2000 mats!", "a naïve  rät ☃"]
    assert again.vocab == trained[kind].vocab and again.sentence_joiner == trained[kind].sentence_joiner
    assert again.encode_batch(texts) == trained[kind].encode_batch(texts)
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "tokenizer.json").read_text()


@pytest.mark.parametrize(
    "kind, pair",
    [
        ("wordpiece", "[CLS] a [SEP] a [SEP]"),
        ("bpe", "<s> a </s> </s> a </s>"),
        ("unigram", "[CLS] ▁ a [SEP] ▁ a [SEP]"),
    ],
)
def test_a_saved_vocabulary_adds_special_tokens_in_the_way_of_its_family(trained, kind, pair, tmp_path):
    from tokenizers import Tokenizer

    trained[kind].save(tmp_path / "tokenizer.json")
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert " ".join(saved.encode("a", "a").tokens) == pair
    assert saved.truncation is None and saved.padding is None


# Encoding


@KINDS
def test_the_names_of_special_tokens_are_text_in_a_corpus_and_tokens_where_asked(trained, kind):
    tokenizer = trained[kind]
    names = [tokenizer.id_to_token(id) for id in tokenizer.vocab.special_ids]
    for name, id in zip(names, tokenizer.vocab.special_ids, strict=True):
        text = f"the {name} cat"
        assert id in tokenizer.encode(text)
        inside = set(tokenizer.encode_batch([text])[0]) & set(tokenizer.vocab.special_ids)
        assert inside <= {tokenizer.vocab.unk_id}  # letters that the training texts lack


@KINDS
def test_encoding_adds_nothing_and_decoding_is_readable(trained, kind):
    tokenizer = trained[kind]
    assert tokenizer.encode("") == [] and tokenizer.encode_batch(["", ""]) == [[], []]
    text = "the cat sat on the mat."
    assert tokenizer.encode_batch([text, "cat"]) == [tokenizer.encode(text), tokenizer.encode("cat")]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(np.array([tokenizer.vocab.cls_id])) == tokenizer.id_to_token(tokenizer.vocab.cls_id)
    with raises_naming(IndexError, tokenizer.vocab.vocab_size, tokenizer.vocab.vocab_size - 1):
        tokenizer.id_to_token(tokenizer.vocab.vocab_size)


def test_byte_level_sentences_within_a_text_begin_with_the_joiner(trained):
    bpe = trained["bpe"]
    assert (trained["wordpiece"].sentence_joiner, bpe.sentence_joiner, trained["unigram"].sentence_joiner) == (
        "",
        " ",
        "",
    )
    assert bpe.encode("A cat.") + bpe.encode(bpe.sentence_joiner + "The cat.") == bpe.encode("A cat. The cat.")
    assert tokens(bpe, " the cat")[0] == "Ġthe"


def test_byte_level_text_is_never_unknown_and_keeps_its_case(trained):
    bpe = trained["bpe"]
    for text in ("Été ☃ 你好\n\x00", "  two  spaces "):
        assert bpe.vocab.unk_id not in bpe.encode(text) and bpe.decode(bpe.encode(text)) == text


def test_a_byte_level_mask_takes_the_space_before_it(trained):
    bpe = trained["bpe"]
    assert bpe.encode("the <mask> cat") == [*bpe.encode("the"), bpe.vocab.mask_id, *bpe.encode(" cat")]


def test_albert_normalizes_quotes_accents_case_and_spaces(trained):
    unigram = trained["unigram"]
    assert unigram.decode(unigram.encode("  The ``FLAT''\t\n  Naïve  hat ")) == 'the "flat" naive hat'
    assert unigram.encode("ﬁt") == unigram.encode("fit")


def test_albert_keeps_its_symbols_apart(trained):
    assert tokens(trained["unigram"], "£(-a.)") == ["▁", "£", "(", "-", "a", ".", ")"]


def test_the_rarest_letters_get_no_token_where_there_is_no_room():
    wordpiece = train_tokenizer(
        TokenizerSpec("wordpiece", 21), [[f"{letter} " * count for count, letter in enumerate("zyxwvutsrqp", 1)]]
    )
    assert [letter for letter in "pqrstuvwxyz" if wordpiece.encode(letter) == [1]] == ["x", "y", "z"]


# Published vocabularies


def test_a_published_word_list_keeps_its_ids_and_rules(bert):
    tokenizer = load_tokenizer(bert)
    assert tokenizer.encode("Hello, world unaffable é!") == [8, 10, 9, 5, 6, 7, 18, 11]
    assert tokenizer.encode("HELLO xyz [MASK]") == [8, 1, 4]
    assert tokenizer.encode_batch(["[mask]"]) == [[12, 14, 13]]
    assert tokenizer.vocab.vocab_size == 20 and tokenizer.id_to_token(19) == "\u2028"
    assert np.flatnonzero(~tokenizer.vocab.compute_word_starts()).tolist() == [6, 7, 16]
    assert load_tokenizer(bert.parent).vocab == tokenizer.vocab


def test_case_and_accents_are_kept_where_asked(bert):
    assert load_tokenizer(bert, lowercase=False).encode("Hello é") == [15, 16, 17]


def test_missing_special_tokens_are_named(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\nhello\n")
    names = "[SEP] or </s>, [MASK] or <mask>"
    with raises_naming(ValueError, "vocab.txt", "4 tokens", names, "data.tokenizer.special_tokens"):
        load_tokenizer(tmp_path)


def test_a_path_that_is_no_vocabulary_is_answered_with_what_is_one(tmp_path):
    with raises_naming(ValueError, "nowhere'", "vocab.txt; vocab.json + merges.txt"):
        load_tokenizer(tmp_path / "nowhere")
    with raises_naming(ValueError, "tokenizer.json; vocab.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"")
    with raises_naming(ValueError, "a.bin'", "tokenizer.json"):
        load_tokenizer(tmp_path / "a.bin")
    (tmp_path / "vocab.json").write_text("{}")
    with raises_naming(ValueError, "vocab.json'", "merges.txt"):
        load_tokenizer(tmp_path)


PIECES = ["h", "e", "l", "o", "w", "Ġ", "he", "ll", "Ġw", "<|endoftext|>"]
MERGES = "#version: 0.2\nh e\nl l\nĠ w\n"


def test_a_published_byte_level_vocabulary_is_two_files(tmp_path):
    names = ["<s>", "<pad>", "</s>", "<unk>", *PIECES, "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({name: id for id, name in enumerate(names)}))
    (tmp_path / "merges.txt").write_text(MERGES)
    for path in (tmp_path, tmp_path / "vocab.json", tmp_path / "merges.txt"):
        tokenizer = load_tokenizer(path)
        assert tokenizer.encode("hello wo <mask>") == [10, 11, 7, 12, 7, 14]
        assert tokenizer.vocab.special_ids == (0, 1, 2, 3, 14)
        assert np.flatnonzero(tokenizer.vocab.compute_word_starts()).tolist() == [0, 1, 2, 3, 9, 12, 14]


@pytest.mark.parametrize("filled, rows", [(0, 10), (2, 12), (5, 12)])  # 4 special tokens + 10 rows + 2 = 16
def test_fairseq_numbers_the_tokens_of_gpt2_by_its_dictionary(tmp_path, filled, rows):
    (tmp_path / "encoder.json").write_text(json.dumps({name: id for id, name in enumerate(PIECES)}))
    (tmp_path / "vocab.bpe").write_text(MERGES)
    order = [6, 7, 0, 1, 2, 3, 4, 5, 8, 9]
    words = [f"{id} {100 - id}" for id in order] + [f"madeupword{id:04} 0" for id in range(filled)]
    (tmp_path / "dict.txt").write_text("\n".join(words))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("hello w<mask>") == [4, 5, 9, 12, 4 + rows]
    assert tokenizer.vocab.vocab_size == 5 + rows and tokenizer.vocab.mask_id == 4 + rows
    assert tokenizer.vocab.compute_word_starts()[14:].all()  # what fills the dictionary is no part of a word
    (tmp_path / "dict.txt").write_text("\n".join(words[:3]))
    with raises_naming(ValueError, "dict.txt", "3 of the 10 tokens", "encoder.json"):
        load_tokenizer(tmp_path)


def message(*fields) -> bytes:
    """A protocol buffer of (number, value) pairs; lengths here stay below 128."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += bytes([number << 3, value])
        elif isinstance(value, float):
            out += bytes([number << 3 | 5]) + struct.pack("<f", value)
        else:
            out += bytes([number << 3 | 2, len(value)]) + value
    return out


def spiece(*pieces, model=1) -> bytes:
    special = [("<pad>", 0.0, 3), ("<unk>", 0.0, 2), ("[CLS]", 0.0, 3), ("[SEP]", 0.0, 3), ("[MASK]", 0.0, 3)]
    rows = [message((1, text.encode()), (2, score), (3, kind)) for text, score, kind in [*special, *pieces]]
    return message(*((1, row) for row in rows), (2, message((3, model))))


ALBERT = [("(", 0.0, 4), ("▁", -2.0, 1), ("▁in", -3.0, 1), ("▁2000,", -4.0, 1), ("▁2000", -5.0, 1), (",", -3.0, 1)]
ALBERT += [("e", -4.0, 1), ("in", -3.0, 1), ("(in", -1.0, 1), ("é", -3.0, 1), ("7", -3.0, 1), ("e,", -9.0, 1)]


def test_a_sentencepiece_model_is_read_without_its_library(tmp_path):
    path = tmp_path / "spiece.model"
    path.write_bytes(spiece(*ALBERT))
    tokenizer = load_tokenizer(tmp_path)
    assert tokens(tokenizer, "In 2000, (in [MASK]") == ["▁in", "▁2000", ",", "▁", "(", "in", "[MASK]"]
    assert tokenizer.vocab.special_ids == (0, 1, 2, 3, 4) and tokenizer.vocab.vocab_size == 17


def test_an_albert_unit_starts_at_spaces_marks_digits_and_foreign_letters(tmp_path):
    path = tmp_path / "spiece.model"
    path.write_bytes(spiece(*ALBERT))
    facts = load_tokenizer(path).vocab
    continued = [
        ([""] * 5 + [piece for piece, _, _ in ALBERT])[id] for id in np.flatnonzero(~facts.compute_word_starts())
    ]
    assert continued == ["e", "in", "(in", "e,"]


def test_a_sentencepiece_model_of_another_kind_or_cut_off_is_an_error(tmp_path):
    path = tmp_path / "spiece.model"
    for content, values in [
        (spiece(model=2), ["type 2", "unigram, type 1"]),
        (spiece()[:-3], ["spiece.model'", "protocol buffer"]),
        (b"", ["0 pieces", "<unk>"]),
        (b"\x0f", ["spiece.model'", "protocol buffer"]),
    ]:
        path.write_bytes(content)
        with raises_naming(ValueError, *values):
            load_tokenizer(path)
