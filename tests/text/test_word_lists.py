"""Vocabularies of characters and of words, special tokens that the user names, and texts of sequences."""

import gzip
from types import SimpleNamespace

import pytest

from encoders.text import corpus, tokenizer_training
from encoders.text.corpus import check_corpus, make_sentence_splitter
from encoders.text.source import CorpusError
from encoders.text.tokenization import TokenizerSpec, load_tokenizer, train_tokenizer
from encoders.text.tokenizer_training import LONG_WORD_PATTERN
from tests.text.documents import read_corpus_documents

MOLECULES = [["CCO Cl", "c1ccccc1 CCO"], ["CCO"]]


@pytest.mark.parametrize(
    "kind, text, names",
    [("character", "Cl c", ["C", "l", "▁", "c"]), ("words", "CCO  Cl x", ["CCO", "Cl", "[UNK]"])],
)
def test_characters_and_words_keep_case_and_read_back_equal(kind, text, names, tmp_path):
    tokenizer = train_tokenizer(TokenizerSpec(kind, 30), MOLECULES)
    ids = tokenizer.encode(text)
    assert [tokenizer.id_to_token(id) for id in ids] == names
    if "[UNK]" not in names:
        assert tokenizer.decode(ids) == text
    assert tokenizer.vocab.special_ids == (0, 1, 2, 3, 4) and tokenizer.vocab.compute_word_starts().all()
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.kind, again.vocab, again.sentence_joiner) == (kind, tokenizer.vocab, tokenizer.sentence_joiner)
    assert again.encode_batch([text, "[CLS]"]) == tokenizer.encode_batch([text, "[CLS]"])


@pytest.mark.parametrize("kind, count", [("character", 3), ("words", 2)])
def test_a_small_list_holds_the_commonest(kind, count):
    tokenizer = train_tokenizer(TokenizerSpec(kind, 5 + count), MOLECULES)
    held = [tokenizer.id_to_token(id) for id in range(5, 5 + count)]
    assert held == {"character": ["C", "c", "O"], "words": ["CCO", "Cl"]}[kind]


@pytest.mark.parametrize("kind", ["character", "words"])
def test_a_list_with_special_tokens_of_the_users_names_keeps_its_ids(kind, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("\ufeff<cls>\n<pad>\n<eos>\n<unk>\nA\nB\n", encoding="utf-8")
    spec = TokenizerSpec(kind, path=str(path), special_tokens=("cls=<cls>", "sep=<eos>"))
    tokenizer = spec.load()
    vocab = tokenizer.vocab
    assert (vocab.cls_id, vocab.pad_id, vocab.sep_id, vocab.unk_id, vocab.mask_id) == (0, 1, 2, 3, 6)
    assert tokenizer.encode("A") == [4] and spec.find_pad_id() == 1
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path / "tokenizer.json").vocab == vocab  # the names are in the file
    again = load_tokenizer(tmp_path / "tokenizer.json")
    again.save(tmp_path / "again.json")
    assert load_tokenizer(tmp_path / "again.json").vocab == vocab


@pytest.mark.parametrize("kind", ["character", "words"])
def test_a_special_token_of_the_users_name_that_the_list_lacks_is_refused(kind, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("<cls>\n<pad>\n<eos>\n<unk>\nA\nB\n", encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        TokenizerSpec(kind, path=str(path), special_tokens=("cls=<cls>", "sep=<eoss>")).load()
    assert all(value in str(caught.value) for value in [str(path), "'<eoss>'", "sep", "[SEP] or </s>", "as a line"])
    vocab = TokenizerSpec(kind, path=str(path), special_tokens=("cls=<cls>",)).load().vocab
    assert (vocab.sep_id, vocab.mask_id) == (6, 7)  # the usual names are added


@pytest.mark.parametrize(
    "settings, values",
    [
        ({"special_tokens": ("cls=<cls>",)}, ["special_tokens", "path"]),
        ({"special_tokens": ("begin=<cls>",), "path": "x"}, ["'begin=<cls>'", "cls"]),
        ({"special_tokens": ("cls",), "path": "x"}, ["'cls'"]),
    ],
)
def test_a_role_that_is_not_one_is_named(settings, values):
    with pytest.raises(ValueError) as caught:
        TokenizerSpec("words", **settings)
    assert all(value in str(caught.value) for value in values)


@pytest.mark.parametrize(
    "kind, rows, values",
    [
        ("words", "a\nb\na\n", ["'a'", "2 times"]),
        ("character", "a\nbc\n", ["'bc'", "tokenizer.kind=words"]),
        ("wordpiece", "[PAD]\n▁the\n▁a\n##b\n", ["▁", "SentencePiece"]),
        ("wordpiece", "[PAD]\nĠthe\nĠa\n", ["Ġ", "vocab.json"]),
    ],
)
def test_a_list_of_another_kind_is_refused_by_name(kind, rows, values, tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text(rows, encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        TokenizerSpec(kind, path=str(path)).load()
    assert all(value in str(caught.value) for value in [str(path), *values])


def test_a_byte_order_mark_is_no_part_of_a_vocabulary(tmp_path):
    rows = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    plain, marked = tmp_path / "a", tmp_path / "b"
    for folder, mark in ((plain, ""), (marked, "\ufeff")):
        folder.mkdir()
        (folder / "vocab.txt").write_text(mark + "\n".join(rows) + "\n", encoding="utf-8")
        (folder / "vocab.json").write_text(mark + '{"<s>":0,"<pad>":1,"</s>":2,"<unk>":3,"a":4,"<mask>":5}', "utf-8")
        (folder / "merges.txt").write_text(mark + "#version: 0.2\n", encoding="utf-8")
    for name in ("vocab.txt", "vocab.json"):
        assert load_tokenizer(marked / name).vocab == load_tokenizer(plain / name).vocab
    load_tokenizer(plain / "vocab.txt").save(plain / "tokenizer.json")
    text = (plain / "tokenizer.json").read_text("utf-8")
    (marked / "tokenizer.json").write_text("\ufeff" + text, encoding="utf-8")
    assert load_tokenizer(marked / "tokenizer.json").vocab == load_tokenizer(plain / "tokenizer.json").vocab


def test_capitals_that_lowering_loses_are_described(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nParis\na\n")
    assert "1 tokens" in load_tokenizer(path).describe_lost_capitals()
    assert "'Paris'" in load_tokenizer(path).describe_lost_capitals()
    assert load_tokenizer(path, lowercase=False).describe_lost_capitals() is None


def test_the_alphabet_grows_with_the_vocabulary():
    letters = [chr(0x4E00 + i) for i in range(2500)]
    documents = [[" ".join(letters)], ["".join(letters)]]
    tokenizer = train_tokenizer(TokenizerSpec("wordpiece", 8000), documents)
    assert tokenizer.vocab.unk_id not in tokenizer.encode("".join(letters))
    small = train_tokenizer(TokenizerSpec("wordpiece", 105), documents)
    assert small.vocab.vocab_size <= 105 and small.encode("".join(letters)).count(small.vocab.unk_id) == 2450


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_no_word_that_a_trainer_reads_is_longer_than_a_thousand_letters(kind):
    word = "ab" * 25_000
    assert max(map(len, LONG_WORD_PATTERN.sub(r"\g<0> ", word).split())) == 1000
    tokenizer = train_tokenizer(TokenizerSpec(kind, 300), [["a b ab"], [word]])
    assert tokenizer.encode_batch([word])[0]


def test_a_unigram_vocabulary_is_trained_on_a_bounded_part_of_a_text_without_spaces(monkeypatch):
    trained_on = []
    real = tokenizer_training._train_model

    def train(model, words, texts, *trainer, **options):
        trained_on.extend(texts)
        return real(model, words, texts, *trainer, **options)

    monkeypatch.setattr(tokenizer_training, "_train_model", train)
    monkeypatch.setattr(tokenizer_training, "MAX_LONG_WORD_CHARS", 3000)
    train_tokenizer(TokenizerSpec("unigram", 300), [["a b ab"], ["ab" * 5000], ["abba " * 5000]])
    assert [len(text.replace(" ", "")) for text in trained_on] == [4, 3000, 20_000]


def test_a_long_line_is_split_piece_by_piece(monkeypatch):
    sizes = []
    real = corpus.import_optional("sentencex", "").segment

    def segment(language, text):
        sizes.append(len(text))
        return real(language, text)

    segmenter = SimpleNamespace(segment=segment)
    monkeypatch.setattr(corpus, "import_optional", lambda *_: segmenter)
    line = "“ a" * 20_000 + " " + "word " * 6_000
    sentences = make_sentence_splitter("split", "en")(line)
    assert "".join(sentences).replace(" ", "") == line.replace(" ", "")
    assert max(sizes) <= corpus.MAX_LINE_CHARS + 1


# Sequences

FASTA = ">one human\nMKV\nLAA\n\n>empty\n>two\r\nGGA*\r\n"


@pytest.mark.parametrize("name", ["a.fasta", "a.fa", "a.FA", "a.fasta.gz"])
@pytest.mark.parametrize("range_bytes", [1, 12, 1 << 20])
def test_a_sequence_of_a_fasta_file_is_a_document(name, range_bytes, tmp_path):
    pack = gzip.compress if name.endswith(".gz") else bytes
    (tmp_path / name).write_bytes(pack(FASTA.encode()))
    documents = list(read_corpus_documents((str(tmp_path / name),), "lines", range_bytes=range_bytes))
    assert documents == [["MKVLAA"], ["GGA*"]]


def test_a_fasta_file_without_a_first_name_is_refused(tmp_path):
    path = tmp_path / "a.fa"
    path.write_text("MKV\n>one\nMKV\n")
    with pytest.raises(CorpusError, match=r"a\.fa:1: .*>"):
        check_corpus((str(path),), "lines")


@pytest.mark.parametrize("range_bytes", [1, 5, 1 << 20])
def test_a_line_is_a_document_where_one_says_so(range_bytes, tmp_path):
    (tmp_path / "a.txt").write_text("MKV LAA\nGGA\n\nMM\n")
    sources = corpus.make_sources((str(tmp_path / "a.txt"),), document_per_line=True)
    ranges = [byte_range for source in sources for byte_range in source.split_ranges(range_bytes)]
    documents = [document for byte_range in ranges for document in sources[0].read_documents(byte_range)]
    assert documents == [["MKV LAA"], ["GGA"], ["MM"]]
