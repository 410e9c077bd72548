import math
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from encoders.data.example_table import SPAN_DTYPE, measure_segments
from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs, make_keyed_rng, truncate_pair
from encoders.data.store import Split

# Samples are drawn from fixed seeds; a share or a mean is then asked to lie within four standard errors.
ERRORS = 4


def split_of(documents):
    """A split from the sentence lengths of each document; the separators are counted on top."""
    sizes = [size + (i == len(sentences) - 1) for sentences in documents for i, size in enumerate(sentences)]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    counts = np.concatenate([[0], np.cumsum([len(sentences) for sentences in documents])]).astype(np.int64)
    return Split("train", np.arange(offsets[-1], dtype=np.uint32), offsets, counts)


def prose(count=200, seed=0, least=1, sentences=(2, 25), words=(1, 30)):
    """Sentence lengths of random documents."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(words[0], words[1], rng.integers(max(sentences[0], least), sentences[1])).tolist()
        for _ in range(count)
    ]


def whole(form, split, length, seed=0, number=0):
    return form.build_example_table(split, range(split.num_documents), length, seed, number)


def owners(split, starts):
    """The document that each token belongs to."""
    return np.searchsorted(split.sentence_offsets[split.document_offsets], starts, side="right") - 1


def close(share, expected, count):
    return abs(share - expected) < ERRORS * math.sqrt(expected * (1 - expected) / count)


def same_mean(ours, theirs):
    """Whether two samples of independent values have one mean, as far as they can tell."""
    error = math.sqrt(np.var(ours, ddof=1) / len(ours) + np.var(theirs, ddof=1) / len(theirs))
    return abs(np.mean(ours) - np.mean(theirs)) <= ERRORS * error


PROSE = split_of(prose())
PAIRS = [SegmentPairs(second) for second in ("random", "swapped")]
RELEASED = [SegmentPairs(second, match_released_code=True) for second in ("random", "swapped")]

documents = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=9), min_size=1, max_size=8)


# Fitting two segments into a row


@given(st.integers(0, 50), st.integers(0, 50), st.integers(2, 60), st.integers(0, 99))
@settings(deadline=None, derandomize=True)
def test_a_pair_is_shortened_from_the_longer_segment_one_token_at_a_time(size_a, size_b, budget, seed):
    a, a_end, b, b_end = truncate_pair((100, 100 + size_a), (500, 500 + size_b), budget, Random(seed))
    while size_a + size_b > budget:  # the released truncate_seq_pair: of two equal ones, B
        if size_a > size_b:
            size_a -= 1
        else:
            size_b -= 1
    assert (a_end - a, b_end - b) == (size_a, size_b)
    assert 100 <= a <= a_end <= 150 and 500 <= b <= b_end <= 550


def test_tokens_are_dropped_from_front_and_back_with_equal_chance():
    rng = Random(0)
    fronts = [
        truncate_pair((0, 100), (200, 210), 70, rng)[0] for _ in range(1000)
    ]  # 40 of A go, Binomial(40, 1/2) in front
    assert abs(np.mean(fronts) - 20) < ERRORS * math.sqrt(10 / 1000)
    assert abs(np.var(fronts) - 10) < 2


def test_a_generator_depends_on_its_whole_key_and_is_the_same_everywhere():
    assert make_keyed_rng(1, 2, 3).random() == make_keyed_rng(1, 2, 3).random()
    assert len({make_keyed_rng(*key).random() for key in [(1, 2, 3), (1, 3, 2), (12, 3), (1, 23), (0, 2, 3)]}) == 5
    assert make_keyed_rng(1, 2, 3).getrandbits(32) == 703_089_555  # must never change: runs could not be continued


# Segment pairs


@pytest.mark.parametrize("form", PAIRS + RELEASED)
@pytest.mark.parametrize("length", [8, 33, 128])
def test_a_pair_fits_its_row_and_both_segments_hold_text(form, length):
    table = whole(form, PROSE, length)
    size_a, size_b = measure_segments(table)
    assert size_a.min() >= 1 and size_b.min() >= 1
    assert (size_a + size_b).max() == length - 3
    for start, end in (("a_start", "a_end"), ("b_start", "b_end")):  # within one document, and never its separator
        assert (owners(PROSE, table[start]) == owners(PROSE, table[end])).all()


@given(documents, st.integers(8, 40), st.sampled_from(PAIRS + RELEASED), st.integers(0, 99))
@settings(deadline=None, derandomize=True)
def test_any_documents_make_pairs_that_fit(lengths, length, form, seed):
    split = split_of(lengths)
    table = whole(form, split, length, seed)
    size_a, size_b = measure_segments(table)
    assert (size_a >= 1).all() and (size_b >= 1).all() and (size_a + size_b <= length - 3).all()
    assert set(table["label"].tolist()) <= {0, 1}
    assert (table["document"] == owners(split, table["a_start"])).all()
    if not form.match_released_code:
        assert set(owners(split, table["a_start"]).tolist()) == {n for n, d in enumerate(lengths) if len(d) > 1}


@pytest.mark.parametrize("form", PAIRS)
def test_half_of_the_pairs_have_label_1(form):
    labels = np.concatenate([whole(form, PROSE, 64, number=n)["label"] for n in range(3)])
    assert len(labels) > 2000 and close(labels.mean(), 0.5, len(labels))


ONE_BY_ONE = split_of([[1] * n for n in range(2, 150)])  # sentences of one token: nothing is ever truncated


def test_the_true_next_segment_begins_where_the_first_one_ends():
    for form in (*PAIRS, *RELEASED):
        table = whole(form, ONE_BY_ONE, 20)
        true = table[table["label"] == 0]
        assert len(true) > 100 and (true["b_start"] == true["a_end"]).all()


def test_the_true_next_segment_follows_in_its_document_also_when_the_pair_is_truncated():
    for form in (*PAIRS, *RELEASED):
        table = whole(form, PROSE, 33)
        true = table[table["label"] == 0]
        assert (true["b_start"] >= true["a_end"]).all()
        assert (owners(PROSE, true["a_start"]) == owners(PROSE, true["b_start"])).all()
        edges = np.searchsorted(
            PROSE.sentence_offsets, [true["a_end"], true["b_start"]]
        )  # a sentence ends between the two
        assert (PROSE.sentence_offsets[edges[0]] <= true["b_start"]).all()


@pytest.mark.parametrize("form", [PAIRS[0], RELEASED[0]])
def test_a_random_next_segment_comes_from_another_document(form):
    table = whole(form, PROSE, 64)
    chosen = table[table["label"] == 1]
    assert (owners(PROSE, chosen["a_start"]) != owners(PROSE, chosen["b_start"])).all()


def test_without_another_document_the_next_segment_is_the_true_one():
    for lengths in ([[5] * 200], [[5] * 200, [7]]):
        table = whole(PAIRS[0], split_of(lengths), 64)
        assert len(table) > 10 and not table["label"].any() and (table["b_start"] >= table["a_end"]).all()


def test_swapped_pairs_are_true_pairs_with_their_segments_exchanged():
    table = whole(PAIRS[1], ONE_BY_ONE, 20)
    swapped = table[table["label"] == 1]
    assert len(swapped) > 100 and (swapped["b_end"] == swapped["a_start"]).all()
    swapped = (table := whole(PAIRS[1], PROSE, 33))[table["label"] == 1]
    assert (swapped["b_end"] <= swapped["a_start"]).all()
    assert (owners(PROSE, swapped["a_start"]) == owners(PROSE, swapped["b_start"])).all()


LONG = split_of(prose(1000, seed=1))


@pytest.mark.parametrize("form", PAIRS)
@pytest.mark.parametrize("length", [32, 64])
def test_lengths_do_not_tell_the_label(form, length):
    table = whole(form, LONG, length)
    size_a, size_b = measure_segments(table)
    one = table["label"] == 1
    for measure in (size_a, size_b, size_a + size_b, size_a - size_b):
        assert same_mean(measure[one], measure[~one])
        assert ks_2samp(measure[one], measure[~one]).pvalue > 0.001
    quantiles = [np.quantile(size_b[which], np.linspace(0, 1, 21)) for which in (one, ~one)]
    assert np.abs(quantiles[0] - quantiles[1]).max() <= 3


@pytest.mark.parametrize("form", PAIRS)
@pytest.mark.parametrize("length", [32, 33])
def test_the_token_that_cannot_be_split_evenly_does_not_tell_the_label(form, length):
    # Where truncation made both segments equal, an odd budget leaves one of them a token longer.
    table = whole(form, LONG, length)
    size_a, size_b = measure_segments(table)
    for difference in (-1, 1):
        labels = table["label"][(size_a + size_b == length - 3) & (size_a - size_b == difference)]
        assert len(labels) == 0 or close(labels.mean(), 0.5, len(labels))


def test_pairs_of_whole_sentences_leave_out_nothing_but_a_lone_sentence():
    table = whole(PAIRS[1], ONE_BY_ONE, 20)
    used = np.zeros(len(ONE_BY_ONE.tokens), int)
    for a, a_end, b, b_end, *_ in table.tolist():
        used[a:a_end] += 1
        used[b:b_end] += 1
    assert used.max() == 1
    for document in range(ONE_BY_ONE.num_documents):
        offsets = ONE_BY_ONE.get_sentence_offsets(document)
        assert (used[offsets[0] : offsets[-1]] == 0).sum() <= 1
        assert used[offsets[-1]] == 0  # the separator


def test_text_is_lost_next_to_full_rows_only():
    table, length = whole(PAIRS[1], PROSE, 33), 33
    spans = sorted((min(a, b), max(ae, be), ae - a + be - b) for a, ae, b, be, *_ in table.tolist())
    for start, end, size in spans:
        assert size == length - 3 or (size == end - start and {start, end} <= edges(PROSE))
    for (start, end, size), (following, _, next_size) in pairwise(spans):
        if owners(PROSE, start) == owners(PROSE, following) and length - 3 not in (size, next_size):
            assert end == following


def edges(split):
    """Where sentences start and end, the separators left out."""
    return {offset for document in range(split.num_documents) for offset in split.get_sentence_offsets(document)}


def test_a_random_next_segment_is_a_true_one_elsewhere_and_shortened_only_in_a_full_row():
    table = whole(PAIRS[0], PROSE, 33)
    size_a, size_b = measure_segments(table)
    short = table[(table["label"] == 1) & (size_a + size_b < 30)]
    assert len(short) > 30
    assert {edge for row in short.tolist() for edge in row[:4]} <= edges(PROSE)


def test_nearly_all_segments_stay_in_use_when_half_of_them_are_exchanged():
    table = whole(PAIRS[0], ONE_BY_ONE, 20)
    used = np.zeros(len(ONE_BY_ONE.tokens), int)
    for a, a_end, b, b_end, *_ in table.tolist():
        used[a:a_end] += 1
        used[b:b_end] += 1
    text = len(used) - ONE_BY_ONE.num_documents
    assert (used > 0).sum() > 0.95 * text


@pytest.mark.parametrize("form", [SegmentPairs, lambda *a, **k: SegmentPairs(*a, match_released_code=True, **k)])
def test_a_tenth_of_the_documents_is_cut_into_shorter_rows(form):
    split = split_of([[1] * 200] * 600)
    for share in (0.0, 0.1, 1.0):
        table = whole(form("swapped", short_seq_prob=share), split, 63)
        size = sum(measure_segments(table))
        last = np.flatnonzero(np.diff(owners(split, table["a_start"]), append=-1))
        inner = np.setdiff1d(np.arange(len(table)), last)  # what a document has left over is short in any case
        targets = [
            set(size[inner][owners(split, table["a_start"][inner]) == n].tolist()) for n in range(split.num_documents)
        ]
        assert all(len(target) <= 1 for target in targets)  # drawn once a document
        drawn = [target.pop() if target else 60 for target in targets]
        shorter = np.mean([target < 60 for target in drawn])
        expected = share * 58 / 59  # uniform in 2..60, which may be 60
        assert shorter == 0 if share == 0 else close(shorter, expected, split.num_documents)
        if share == 1:
            assert abs(np.mean(drawn) - 31) < ERRORS * 59 / math.sqrt(12 * split.num_documents)


@pytest.mark.parametrize(
    "form", [*PAIRS, *RELEASED, ElectraPairs(), FullSentences(), FullSentences(within_document=True)]
)
def test_a_table_is_a_function_of_seed_and_pass(form):
    split = split_of(prose(30))
    tables = [whole(form, split, 40, seed, number) for seed in (0, 1) for number in (0, 1)]
    again = [whole(form, split, 40, seed, number) for seed in (0, 1) for number in (0, 1)]
    assert all(x.dtype == SPAN_DTYPE and x.ndim == 1 for x in tables)
    assert all(np.array_equal(x, y) for x, y in zip(tables, again, strict=True))
    assert len({x.tobytes() for x in tables}) == (4 if form.varies_by_pass else 1)


@pytest.mark.parametrize("form", [PAIRS[1], *RELEASED, ElectraPairs(), FullSentences(within_document=True)])
def test_the_examples_of_a_document_do_not_depend_on_the_others_of_its_shard(form):
    split = split_of(prose(30))
    parts = [form.build_example_table(split, part, 40, 0, 0) for part in (range(17, 30), range(5, 17), range(5))]
    assert np.array_equal(np.concatenate(parts[::-1]), whole(form, split, 40))


def test_the_shard_of_a_document_decides_only_which_random_segments_it_gets():
    split = split_of(prose(30))
    later, earlier = (PAIRS[0].build_example_table(split, part, 40, 0, 0) for part in (range(12, 30), range(12)))
    together = whole(PAIRS[0], split, 40)
    apart = np.concatenate([earlier, later])
    assert len(apart) == len(together)
    assert (owners(split, apart["a_start"]) == owners(split, together["a_start"])).all()
    assert np.array_equal(
        earlier, PAIRS[0].build_example_table(split, range(12), 40, 0, 0)
    )  # in whatever order they are built
    assert set(owners(split, earlier["b_start"]).tolist()) <= set(range(12))


def test_documents_without_two_sentences_make_no_pair():
    for form in PAIRS:
        assert whole(form, split_of([[30], [2]]), 16).shape == (0,)


@pytest.mark.parametrize("wrong", [{"short_seq_prob": -0.1}, {"short_seq_prob": 1.1}, {"negatives": "swap"}])
def test_a_pair_format_that_is_none_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        SegmentPairs(**wrong)


# Pairs as the released code of BERT and ALBERT has them; test_released.py has their statistics beside it


def test_more_than_half_of_the_released_pairs_are_random():
    table = whole(RELEASED[0], split_of(prose(200, seed=2, sentences=(1, 25))), 48)
    error = 0.5 / math.sqrt(len(table))
    assert table["label"].mean() > 0.5 + ERRORS * error


def test_a_chunk_of_one_sentence_gets_a_random_segment_in_the_released_code_of_both():
    split = split_of([[50]] * 6)  # every sentence fills its row
    for form in RELEASED:
        table = whole(form, split, 40)
        assert len(table) == 6 and table["label"].all()
        assert (owners(split, table["a_start"]) == np.arange(6)).all()
        assert (owners(split, table["b_start"]) != np.arange(6)).all()


def test_the_released_code_takes_up_what_a_random_segment_left_over():
    split = split_of([[4] * 40, [4] * 40])
    table = whole(
        SegmentPairs("random", short_seq_prob=0.0, match_released_code=True), split, 43
    )  # 10 sentences a chunk
    mine = table[owners(split, table["a_start"]) == 0]
    for row, following in pairwise(mine):
        assert following["a_start"] == (row["a_end"] if row["label"] else row["b_end"])


# ELECTRA's rows


@given(documents, st.integers(8, 40), st.integers(0, 99))
@settings(deadline=None, derandomize=True)
def test_any_documents_make_electra_rows_that_fit(lengths, length, seed):
    split = split_of(lengths)
    table = whole(ElectraPairs(), split, length, seed)
    size_a, size_b = measure_segments(table)
    assert (size_a >= 1).all() and (size_b >= 0).all()
    assert (size_a + size_b + 2 + (size_b > 0) <= length).all()
    two = table[size_b > 0]
    assert (two["b_start"] >= two["a_end"]).all() and (
        owners(split, two["a_start"]) == owners(split, two["b_start"])
    ).all()
    assert not table["label"].any()
    assert (table["document"] == owners(split, table["a_start"])).all()
    assert set(table["document"].tolist()) == set(range(split.num_documents))


def test_nine_electra_rows_in_ten_have_two_segments():
    split = split_of([[3] * 400] * 200)
    table = whole(ElectraPairs(), split, 64)
    inner = table[
        np.diff(owners(split, table["a_start"]), append=-1) == 0
    ]  # what is left over may be too short for two
    _, size_b = measure_segments(inner)
    assert len(size_b) > 3000 and close((size_b > 0).mean(), 0.9, len(size_b))


def test_electra_throws_away_what_lies_beyond_the_row():
    split = split_of([[7] * 40])
    table = whole(ElectraPairs(), split, 32, seed=1)
    full = table[(table["b_start"] > 0) & (table["b_end"] - table["a_start"] >= 29)]
    # 5 sentences reach 32 tokens. Two (14 of 14: the second straddles) or one are A; the rest is cut at 29 in all.
    for a, a_end, b, b_end, *_ in full.tolist():
        assert a_end - a in (7, 14) and b == a_end and b_end - a == 29
    assert {7, 14} == {a_end - a for a, a_end, *_ in full.tolist()}
    assert len(full) > 3 and (np.diff(full["a_start"]) % 35 == 0).any()  # the next row starts after the whole sentences


def test_one_electra_row_in_twenty_has_a_shorter_target_also_the_first_of_a_document():
    split = split_of([[1] * 64] * 4000)  # a row each, unless its target is shorter
    table = whole(ElectraPairs(), split, 64)
    first = np.flatnonzero(np.diff(owners(split, table["a_start"]), prepend=-1))
    shorter = np.mean(np.maximum(table["a_end"], table["b_end"])[first] - table["a_start"][first] < 60)
    assert close(shorter, 0.05 * 55 / 60, len(first))  # uniform in 5..64, of which 5..59 show
