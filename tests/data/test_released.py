"""The formats beside the authors' code, told anew in `released`: draws agree in distribution, the rest exactly.

A pass over a document is one draw: what happens in it depends on no other document and no other pass. So a share, or a
mean, is a ratio of two sums over such draws, and its standard error is that of sums of independent parts whose variance
each document has by itself, from pass to pass. Two ratios may differ by four standard errors of their difference. Of
two normal numbers that happens once in 16,000 comparisons; here are a few hundred, from fixed seeds.

Corrected pairs, the default, differ from the released code on purpose in: the share of label 1 (a half, not more) and
where random Bs come from, how many rows there are of a text (a random B puts nothing back), rows of one sentence
(none), which segment is the longer one and how full rows of random Bs are. What they share with it is tested here: how
texts are cut into chunks, how often these are short, exchanged and shortened. For this the released code reads half
of the documents from their end, as they do. Their random Bs are drawn among all documents at once, so only what does
not depend on which B a row got is asked of them.
"""

import lzma
import math
import os
import re
from itertools import groupby, islice
from pathlib import Path
from random import Random

import jax
import numpy as np
import pytest

from encoders.data.batch import Batch, build_single_example_batch
from encoders.data.example_table import count_row_tokens
from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs
from encoders.data.packing import pack_examples
from encoders.data.store import Split
from encoders.objectives.masking import Masking, mask_tokens
from encoders.text import tokenization
from encoders.text.tokenization import VocabInfo
from tests.data import released
from tests.data.agreement import (
    CLS,
    CONTINUES,
    DOCUMENTS,
    ERRORS,
    MASK,
    PAD,
    SEP,
    SPLIT,
    UNK,
    assert_agreement,
    assert_same,
    both,
    compared,
    distances,
    one_each,
    owners,
    places,
    rows_of,
    split_of,
    whole,
)  # fmt: skip

SHARED = Path(os.environ.get("ENCODERS_SHARED", Path(__file__).parents[3] / "shared"))


# BERT and ALBERT

LENGTHS = (24, 64, 128)  # most sentences in a chunk of their own, some in a row, whole documents in a row


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("second", ["random", "swapped"])
def test_released_pairs_have_the_statistics_of_the_released_code(second, length):
    author = lambda documents, rng: released.pairs(documents, length, rng, second == "swapped")
    assert_same(SegmentPairs(second, match_released_code=True), author, SPLIT, length)


def chunked(split: Split, length: int):
    """What the released code of ALBERT makes of documents of which it reads half from the end; rows of one sentence,
    whose B is from elsewhere, and short targets are left out. Label 1 is for a B that stands before A in the text."""
    owner = {place: n for n, document in enumerate(places(split)) for sentence in document for place in sentence}

    def author(documents, rng):
        turned = [document if rng.random() < 0.5 else document[::-1] for document in documents]
        for a, b, _ in released.pairs(turned, length, rng, swap=True, short=0):
            if owner[a[0]] == owner[b[0]]:
                yield a, b, int(b[0] < a[0])

    return author


@pytest.mark.parametrize("length", LENGTHS[1:])
def test_corrected_swapped_pairs_are_released_ones_read_from_either_end_without_lone_sentences(length):
    assert max(len(sentence) for document in DOCUMENTS for sentence in document) < length - 3
    assert_same(SegmentPairs("swapped", short_seq_prob=0), chunked(SPLIT, length), SPLIT, length)


WHICH_B = ("examples of 1000 tokens", "label 1", "two segments")  # does not depend on which B a row got


@pytest.mark.parametrize("length", LENGTHS[1:])
def test_corrected_random_pairs_are_as_many_as_swapped_ones(length):
    *_, ours, theirs = both(SegmentPairs("random", short_seq_prob=0), chunked(SPLIT, length), SPLIT, length)
    assert_agreement([row for row in compared(ours, theirs) if row[0] in WHICH_B])


# Sentences of one token: many rows, whose true pairs are as long as their target.
WORD_BY_WORD = split_of([[[5]] * (60 + n) for n in range(120)])


def longest_true(tables: list[np.ndarray], split: Split) -> np.ndarray:
    """The tokens of the longest true pair of each document in each pass, where there is one."""
    found = np.zeros((len(tables), split.num_documents), np.int64)
    for sizes, table in zip(found, tables, strict=True):
        np.maximum.at(sizes, owners(split, table)[:, 0], (count_row_tokens(table) - 3) * (table["label"] == 0))
    return found[found > 0]


@pytest.mark.parametrize("kept", [True, False], ids=["released", "corrected"])
@pytest.mark.parametrize("second", ["random", "swapped"])
def test_as_many_documents_are_cut_short_as_in_the_released_code_and_by_as_much(second, kept):
    length, most = 20, 17
    author = lambda documents, rng: released.pairs(documents, length, rng, second == "swapped")
    tables, given, ours, theirs = both(
        SegmentPairs(second, match_released_code=kept), author, WORD_BY_WORD, length, passes=12
    )
    mine, other = (longest_true(side, WORD_BY_WORD) for side in (tables, given))
    expected = 0.1 * (1 - 1 / 16)  # uniform in 2..17, which may be 17
    for targets in (mine, other):
        assert abs(np.mean(targets < most) - expected) < ERRORS * math.sqrt(expected * (1 - expected) / len(targets))
    assert distances(mine[None], other[None])[0] < 1
    assert distances(mine[mine < most][None], other[other < most][None])[0] < 1
    if kept:
        assert_agreement(compared(ours, theirs))
    else:
        labels = np.concatenate(tables)["label"]
        assert abs(labels.mean() - 0.5) < ERRORS * 0.5 / math.sqrt(len(labels))


# Masks


def batch(rows: list[list[int]], length: int, epoch: int) -> Batch:
    tokens = np.array([row + [PAD] * (length - len(row)) for row in rows], np.int32)
    batch = build_single_example_batch(tokens, lengths=np.array([len(row) for row in rows]))
    return batch.replace(pass_index=batch.pass_index + np.int32(epoch))


def what_is_shown(row: list[int], shown: list[int], chosen: list[int]) -> list[int]:
    """How many tokens are chosen, and of these how many became [MASK], how many stayed and how many continue words."""
    assert all(row[n] == shown[n] for n in range(len(row)) if n not in chosen)
    masked = [shown[n] == MASK for n in chosen]
    return [len(chosen), sum(masked), sum(shown[n] == row[n] for n in chosen), sum(CONTINUES[row[n]] for n in chosen)]


@pytest.mark.parametrize("unit", ["token", "word"])
def test_masks_are_as_many_and_show_what_they_show_in_the_released_code(unit):
    length, limit, passes = 64, 6, 8  # 15 % of a full row are 10
    rows = rows_of(islice(released.pairs(places(SPLIT), length, Random(0), swap=False, short=0.5), 150), SPLIT)
    special, more = (PAD, UNK, CLS, SEP, MASK), np.packbits(CONTINUES).tobytes()
    facts = VocabInfo(len(CONTINUES), *special, special, more)
    known = {"limit": limit, "special": (CLS, SEP), "mask": MASK, "vocabulary": facts.vocab_size}
    known |= {"continues": CONTINUES if unit == "word" else None}
    masking = Masking(unit=unit, max_predictions=limit, dupe_factor=None)
    run, rng = jax.jit(mask_tokens, static_argnums=(0, 2)), Random(1)
    ours, theirs = [], []
    for epoch in range(passes):
        after = jax.tree.map(np.asarray, run(masking, batch(rows, length, epoch), facts, 0))
        slots = [
            where[weights > 0].tolist()
            for where, weights in zip(after.masked_positions, after.masked_weights, strict=True)
        ]
        again = [released.masked_lm_predictions(row, rng, **known) for row in rows]
        ours.append([what_is_shown(*each) for each in zip(rows, after.input_ids.tolist(), slots, strict=True)])
        theirs.append([what_is_shown(row, *each) for row, each in zip(rows, again, strict=True)])
    ours, theirs = np.array(ours), np.array(theirs)  # [passes, rows, 4]
    if unit == "token":
        assert (ours[..., 0] == theirs[..., 0]).all()
    shares = lambda each: {n: (each[:, n], each[:, 0] if n else np.ones(len(rows))) for n in range(4)}
    assert_agreement(compared([shares(each) for each in ours], [shares(each) for each in theirs]))


# ELECTRA

# Beyond splitting rows near their middle, the code lets a later line that still fits there join the first segment. The
# format leaves this out, so that segments are contiguous; what depends on it is where the second one begins.
SPLIT_DEPENDS = re.compile(r"[AB]( squared)?, (two|label 0)")


@pytest.mark.parametrize("length", LENGTHS)
def test_electra_pairs_have_the_statistics_of_the_description(length):
    assert_same(ElectraPairs(), lambda documents, rng: released.electra(documents, length, rng), SPLIT, length)


@pytest.mark.parametrize("length", LENGTHS)
def test_electra_pairs_have_the_statistics_of_the_code_but_for_where_the_second_segment_begins(length):
    author = lambda documents, rng: released.electra(documents, length, rng, back=True)
    tables, given, ours, theirs = both(ElectraPairs(), author, SPLIT, length)
    assert_agreement([row for row in compared(ours, theirs) if not SPLIT_DEPENDS.fullmatch(row[0])])
    assert distances(*(one_each(side, SPLIT, Random(0)) for side in (tables, given)))[2] < 1


def test_electra_draws_short_rows_and_single_segments_as_often_as_the_released_code():
    author = lambda documents, rng: released.electra(documents, 20, rng)  # lines of one token: none goes back
    *_, ours, theirs = both(ElectraPairs(), author, WORD_BY_WORD, 20, passes=20)
    assert_agreement(compared(ours, theirs))


# RoBERTa

ROWS = (32, 33, 35, 48, 128, 512)


def texts(table, split: Split) -> list[list[int]]:
    return [split.tokens[a:a_end].tolist() for a, a_end in table[["a_start", "a_end"]].tolist()]


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("length", ROWS)
def test_full_sentences_are_those_of_the_paper_row_by_row(length, within):
    expected = [a for a, *_ in released.full_sentences(DOCUMENTS, length, SEP, within)]
    assert texts(whole(FullSentences(within), SPLIT, length), SPLIT) == expected


@pytest.mark.parametrize("length", ROWS)
def test_doc_sentences_are_the_blocks_of_fairseq_where_lines_have_no_separators(length):
    expected = list(released.blocks(DOCUMENTS, length - 2, SEP, within=True, ends=False))
    assert texts(whole(FullSentences(within_document=True), SPLIT, length), SPLIT) == expected


@pytest.mark.parametrize("length", ROWS)
def test_full_sentences_of_documents_of_one_line_are_the_blocks_of_fairseq_without_blank_lines(length):
    split = split_of(lines := [[sentence] for document in DOCUMENTS for sentence in document])
    rows = [[*row, SEP] for row in texts(whole(FullSentences(), split, length), split)]  # with the row's own [SEP]
    assert rows == list(released.blocks(lines, length - 1, SEP, within=False, blanks=False))


@pytest.mark.parametrize("within", [False, True])
def test_fairseq_has_more_rows_for_it_ends_every_line_with_a_separator(within):
    # The paper (§4.2) separates documents alone, and so do we: rows hold more text, and there are fewer of them.
    rows = whole(FullSentences(within), SPLIT, 128)
    blocks = list(released.blocks(DOCUMENTS, 127, SEP, within))
    of_text = lambda rows: sum(token != SEP for row in rows for token in row)
    assert len(blocks) > len(rows) and of_text(blocks) == of_text(texts(rows, SPLIT))


@pytest.mark.parametrize("within", [False, True])
def test_a_line_longer_than_a_row_is_whole_in_fairseq_and_full_rows_here(within):
    split = split_of(lines := [[list(range(100, 350))], [list(range(350, 400))]])
    rows = texts(whole(FullSentences(within), split, 102), split)
    assert [len(row) for row in rows] == [100, 100, 50, 50] and sum(rows, []) == list(range(100, 400))
    theirs = list(released.blocks(lines, 100, SEP, within, ends=False))
    assert [len(block) for block in theirs] == ([250, 50] if within else [250, 1 + 50 + 1])  # with the blank lines


# Rows that are packed


def best_fit(sizes: list[int], length: int) -> list[int]:
    """How full each row is when every example, the largest first, goes where the least room is left (Krell et al.)."""
    rows: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [n for n, filled in enumerate(rows) if filled + size <= length]
        if fitting:
            rows[max(fitting, key=rows.__getitem__)] += size
        else:
            rows.append(size)
    return sorted(rows)


def test_packing_fills_rows_of_the_released_examples_as_best_fit_does():
    examples = released.pairs(places(SPLIT), 64, Random(0), swap=False, short=0.5)
    sizes = [len(a) + len(b) + 3 for a, b, _ in examples]
    row, _ = pack_examples(np.array(sizes), 64, 64)
    assert sorted(np.bincount(row, sizes).astype(int).tolist()) == best_fit(sizes, 64)


# Wikipedia


def articles(count: int) -> list[released.Document]:
    """The first articles in BERT's vocabulary; a sentence ends where a capital letter follows its full stop.

    Neither [unused1] nor [unused2], which stand for [CLS] and [SEP] here, is a token of theirs.
    """
    text, words = (SHARED / "data" / name for name in ("text/wiki-1.txt.xz", "vocab/bert-uncased-vocab.txt"))
    if not text.is_file():
        pytest.skip(f"{text} is not there")
    tokenizer, found = tokenization.load_tokenizer(words), []
    with lzma.open(text, "rt", encoding="utf-8") as lines:
        for blank, article in groupby(lines, lambda line: not line.strip()):
            if not blank:
                found.append([s for line in article for s in re.split(r"(?<=[.!?]) (?=[A-Z])", line.strip())])
            if len(found) == count:
                break
    return [[ids for ids in tokenizer.encode_batch(article) if ids] for article in found]


def printed(title: str, rows: list[tuple[str, float, float, float]], apart: list[float]) -> None:
    print(f"\n{title:40} released       here   errors")
    for name, theirs, ours, error in rows:
        off = (ours - theirs) / error if error else 0.0
        print(f"  {name:36} {theirs:10.4f} {ours:10.4f} {off:8.1f}")
    print("  Kolmogorov-Smirnov, of the allowed: " + ", ".join(f"{share:.2f}" for share in apart))


@pytest.mark.live
@pytest.mark.parametrize("length", [128, 512])
def test_rows_of_wikipedia_have_the_statistics_of_the_released_code(length):
    documents = articles(300)
    split = split_of(documents)
    pairs = lambda swap: lambda documents, rng: released.pairs(documents, length, rng, swap)
    electra = lambda back: lambda documents, rng: released.electra(documents, length, rng, back)
    fitting = [document for document in documents if max(map(len, document)) < length - 3]
    of_fitting = split_of(fitting)
    cases = {
        "BERT": (SegmentPairs("random", match_released_code=True), pairs(False), split),
        "ALBERT": (SegmentPairs("swapped", match_released_code=True), pairs(True), split),
        "ELECTRA as described": (ElectraPairs(), electra(False), split),
        "ELECTRA": (ElectraPairs(), electra(True), split),
        "corrected, swapped": (SegmentPairs("swapped", short_seq_prob=0), chunked(of_fitting, length), of_fitting),
    }
    results = {}
    for name, (form, author, of) in cases.items():
        tables, given, ours, theirs = both(form, author, of, length, passes=4)
        apart = distances(*(one_each(side, of, Random(0)) for side in (tables, given)))
        results[name] = compared(ours, theirs), apart
        printed(f"{name}, rows of {length}, {of.num_documents} articles", *results[name])
    for within in (False, True):
        table, name = whole(FullSentences(within), of_fitting, length), "DOC" if within else "FULL"
        rows = list(released.full_sentences(fitting, length, SEP, within))
        fairseq = list(released.blocks(fitting, length - 1, SEP, within))
        print(f"{name}-SENTENCES: {len(rows)} rows released, {len(table)} here; fairseq's blocks: {len(fairseq)}")
        assert texts(table, of_fitting) == [row for row, *_ in rows]
    for name, (found, apart) in results.items():
        goes_back = name == "ELECTRA"
        assert_agreement([row for row in found if not (goes_back and SPLIT_DEPENDS.fullmatch(row[0]))])
        assert max(apart[2:] if goes_back else apart) < 1
