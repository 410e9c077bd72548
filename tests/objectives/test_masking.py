import itertools
import math
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.objectives.masking import Masking, choose_whole_words, draw_ngram_lengths, mask_tokens, scatter_tokens
from encoders.text.tokenization import VocabInfo
from tests.batches import make_batch
from tests.refusals import raises_naming

QUICK = {"xla_backend_optimization_level": 0}  # compiles in a third of the time
PAD, UNK, CLS, SEP, MASK = range(5)
SIZE = 31
CONTINUES = np.arange(SIZE) >= 20  # ids 20 to 30 continue a word
FACTS = VocabInfo(
    vocab_size=SIZE, pad_id=PAD, unk_id=UNK, cls_id=CLS, sep_id=SEP, mask_id=MASK, special_ids=(0, 1, 2, 3, 4),
    continuation_bits=np.packbits(CONTINUES).tobytes(), most_frequent_id=5,
)  # fmt: skip
WORDS = Masking(unit="word", max_ngram=3)
VARIANTS = [
    Masking(),
    Masking(mask_rate=0.45, mask_special=True),
    Masking(max_predictions=3),
    Masking(rounding="random"),
]
VARIANTS += [
    Masking(rounding="random", mask_rate=0.3, max_predictions=7),
    WORDS,
    replace(WORDS, rounding="random", max_predictions=4),
]

corrupted = jax.jit(mask_tokens, static_argnums=(0, 2), compiler_options=QUICK)
runs = jax.jit(choose_whole_words, static_argnums=5)


def example(size, seed=0):
    """`size` tokens from [CLS] to [SEP], words of one to a few pieces between them, and an id."""
    rng = np.random.default_rng((size, seed))
    ids = rng.integers(5, SIZE, size)
    ids[1:2] = 7  # a sentence begins with a word
    ids[:1], ids[size - 1 :][: size > 1] = CLS, SEP
    return ids


def batch(*rows, length, epoch=0, cap=None):
    """Rows of examples, each an id and its tokens, packed behind one another and padded to `length`."""
    cap = cap or max(map(len, rows))
    fields = {
        name: np.zeros((len(rows), length), np.int32)
        for name in ("input_ids", "example_ids", "token_type_ids", "position_ids")
    }
    fields |= {
        name: np.zeros((len(rows), cap), np.int32) for name in ("cls_positions", "example_index", "example_mask")
    }
    for b, row in enumerate(rows):
        at = 0
        for n, (name, tokens) in enumerate(row):
            here = slice(at, at + len(tokens))
            fields["input_ids"][b, here], fields["example_ids"][b, here] = tokens, n + 1
            fields["position_ids"][b, here] = np.arange(len(tokens))
            fields["cls_positions"][b, n], fields["example_index"][b, n], fields["example_mask"][b, n] = at, name, 1
            at += len(tokens)
    return make_batch(**fields, pass_index=np.full((len(rows), cap), epoch, np.int32))


def masked(masking, rows, seed=3):
    """What `corrupt` makes of a batch, on the host."""
    return jax.tree.map(np.asarray, corrupted(masking, rows, FACTS, seed))


def choices(masking, rows, seed=3):
    """The chosen tokens of every example: {id: {position in the example: (token, what is shown)}}."""
    found, after = {}, masked(masking, rows, seed)
    for b in range(len(rows.input_ids)):
        for n in range(int(rows.example_ids[b].max(initial=0))):
            found[int(rows.example_index[b, n])] = {}
        for at, weight in zip(after.masked_positions[b], after.masked_weights[b], strict=True):
            if weight:
                name = int(rows.example_index[b, rows.example_ids[b, at] - 1])
                found[name][int(rows.position_ids[b, at])] = int(rows.input_ids[b, at]), int(after.input_ids[b, at])
    return found


def within_four_sigma(count, n, p):
    return abs(count - n * p) <= 4 * math.sqrt(n * p * (1 - p))


# What is shown --------------------------------------------------------------------------------------------------------


def shown(masking, facts, tokens=100_000):
    """Tokens and what stands in their place, of 250 rows of 800 ordinary tokens of which half are chosen."""
    rows = np.random.default_rng(0).integers(5, facts.vocab_size, (250, 800))
    given = batch(*([(i, row)] for i, row in enumerate(rows)), length=800)
    after = jax.tree.map(np.asarray, corrupted(replace(masking, mask_rate=0.5), given, facts, 3))
    assert after.masked_weights.sum() == tokens
    np.testing.assert_array_equal(after.clean_ids, given.input_ids)
    np.testing.assert_array_equal(after.masked_labels, np.take_along_axis(given.input_ids, after.masked_positions, 1))
    left = np.ones_like(given.input_ids, bool)
    np.put_along_axis(left, after.masked_positions, False, 1)
    np.testing.assert_array_equal(after.input_ids[left], given.input_ids[left])  # what is not chosen stays
    return after.masked_labels.ravel(), np.take_along_axis(after.input_ids, after.masked_positions, 1).ravel()


def test_four_fifths_become_masks_and_a_tenth_each_is_replaced_and_kept():
    targets, seen = shown(Masking(), replace(FACTS, vocab_size=1000, continuation_bits=bytes(125)))
    # A tenth is a random one of 1000 entries, of which one is [MASK] and one the token itself.
    assert within_four_sigma((seen == MASK).sum(), 100_000, 0.8 + 0.1 / 1000)
    assert within_four_sigma((seen == targets).sum(), 100_000, 0.1 + 0.1 / 1000)
    assert within_four_sigma(((seen != targets) & (seen != MASK)).sum(), 100_000, 0.1 - 0.2 / 1000)


@pytest.mark.parametrize("replacements, entries", [("all", range(SIZE)), ("words", range(5, SIZE))])
def test_a_random_token_is_any_entry_or_any_that_is_not_special(replacements, entries):
    _, seen = shown(Masking(split=(0.0, 1.0, 0.0), replacements=replacements), FACTS)
    counts = np.bincount(seen, minlength=SIZE)
    assert all(within_four_sigma(counts[i], 100_000, 1 / len(entries)) for i in entries)
    assert counts[list(entries)].sum() == 100_000


def test_empty_slots_write_nothing():
    where, new = np.array([[2, 0, 3], [1, 1, 1]]), np.full((2, 3), 9)
    weights = np.array([[1, 0, 1], [0, 0, 0]], np.float32)
    found = jax.jit(scatter_tokens)(np.zeros((2, 5), int), where, new, weights)
    np.testing.assert_array_equal(found, [[0, 0, 9, 9, 0], [0] * 5])


# How many are chosen --------------------------------------------------------------------------------------------------


def quota(masking, size):
    """Least and most tokens to choose of an example of `size` tokens."""
    exact = size * masking.mask_rate
    low, high = (round(exact),) * 2 if masking.rounding == "nearest" else (math.floor(exact), math.floor(exact) + 1)
    return tuple(min(max(n, 1), masking.max_predictions or size) for n in (low, high))


PACKED = [[64], [1, 2, 3, 58], [20, 21, 23], [5] * 12 + [4], [2] * 13, [1] * 13, [30, 4, 30], [10, 17], [7] * 9]


@pytest.mark.parametrize(
    "masking, packed",
    [
        *((masking, True) for masking in VARIANTS),
        *((masking, False) for masking in (VARIANTS[0], VARIANTS[-1])),
        *(pytest.param(masking, False, marks=pytest.mark.live) for masking in VARIANTS[1:-1]),
    ],
)
def test_as_many_are_chosen_as_the_quota_says_and_none_is_cut(masking, packed):
    sizes = PACKED if packed else [[size] for size in range(1, 65)]
    names = itertools.count()
    rows = [[(next(names), example(size, seed=i)) for i, size in enumerate(row)] for row in sizes]
    found = choices(masking, batch(*rows, length=64))
    examples = {name: tokens for row in rows for name, tokens in row}
    assert set(found) == set(examples)
    for name, tokens in examples.items():
        chosen, (low, high) = len(found[name]), quota(masking, len(tokens))
        candidates = len(tokens) if masking.mask_special else max(len(tokens) - 2, 0)
        if masking.unit == "token":
            assert min(low, candidates) <= chosen <= min(high, candidates)
        else:  # whole words may not fill it; a cut would leave a part of one
            word = np.cumsum(~CONTINUES[tokens])
            assert chosen <= high and sum(np.isin(word, word[list(found[name])])) == chosen
    after = masked(masking, batch(*rows, length=64))
    assert after.masked_weights.sum() == sum(map(len, found.values()))  # no position is in two slots
    assert after.masked_positions.shape[1] == masking.max_predictions_per_row(64, 13 if packed else 1)


def test_fifteen_percent_are_chosen():
    rows = batch([(0, example(128))], [(1, example(64))], [(2, example(10))], [(3, example(3))], length=128)
    # 19.2 and 9.6 to the nearest, 1.5 to the even neighbour as Python has it; [CLS] and [SEP] count; at least one.
    assert [len(chosen) for chosen in choices(Masking(), rows).values()] == [19, 10, 2, 1]


def test_random_rounding_chooses_fifteen_percent_in_the_mean():
    rows = batch(*([(i, example(37, seed=i))] for i in range(400)), length=37)  # full rows: the sixth must have a slot
    counts = Counter(len(chosen) for chosen in choices(Masking(rounding="random"), rows).values())
    assert set(counts) == {5, 6} and within_four_sigma(counts[6], 400, 0.55)  # 37 x 0.15 = 5.55


def test_an_example_never_has_more_predictions_than_the_limit():
    rows = batch([(0, example(64)), (1, example(30)), (2, example(9))], length=128)
    assert [len(chosen) for chosen in choices(Masking(max_predictions=4), rows).values()] == [4, 4, 1]
    assert (
        Masking(max_predictions=20).max_predictions_per_row(128, 1) == 19
        and Masking(max_predictions=20).max_predictions_per_row(512, 1) == 20
    )


def test_a_row_without_examples_has_nothing_to_predict():
    after = masked(WORDS, batch([], [(1, example(9))], length=12, cap=1))
    assert after.masked_weights.sum(1).tolist() == [0, 1] and not after.input_ids[0].any()


# Which are chosen -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["token", "word"])
def test_special_tokens_are_chosen_only_where_they_may_be(unit):
    rows = batch(*([(i, example(20, seed=i))] for i in range(200)), length=24)

    def special(allowed):
        found = choices(Masking(unit=unit, mask_special=allowed, mask_rate=0.3), rows)
        return sum(token in (PAD, CLS, SEP, MASK) for chosen in found.values() for token, _ in chosen.values())

    assert special(False) == 0
    if unit == "token":  # two in twenty tokens are special, and six of twenty are chosen: each with 3 in 10
        assert within_four_sigma(special(True), 400, 0.3)


def test_every_token_is_as_likely_as_the_others():
    rows = batch(*([(i, example(22, seed=i))] for i in range(1000)), length=22)
    counts = Counter(at for chosen in choices(Masking(), rows).values() for at in chosen)
    assert set(counts) == set(range(1, 21))  # 22 x 0.15 = 3.3: three of the twenty between [CLS] and [SEP]
    assert all(within_four_sigma(count, 1000, 3 / 20) for count in counts.values())


@pytest.mark.parametrize("ngrams", [1, 3])
def test_whole_words_are_chosen_whole(ngrams):
    rows = [(i, example(60, seed=i)) for i in range(100)]
    found = choices(replace(WORDS, max_ngram=ngrams, mask_rate=0.3), batch(*([row] for row in rows), length=60))
    parts = 0
    for name, tokens in rows:
        word = np.cumsum(~CONTINUES[tokens])
        chosen = np.isin(np.arange(60), list(found[name]))
        assert all(len({*chosen[word == w]}) == 1 for w in set(word))
        parts += sum(CONTINUES[tokens[at]] for at in found[name])
    assert parts > 500  # many words have more than one piece


def test_runs_of_words_have_one_two_or_three_with_6_3_and_2_elevenths():
    words = jnp.asarray(np.random.default_rng(0).integers(0, 2**32, 110_000, np.uint32))
    drawn = jax.jit(draw_ngram_lengths, static_argnums=1)
    counts = np.bincount(drawn(words, 3))
    assert counts[0] == 0 and len(counts) == 4
    assert all(within_four_sigma(counts[n], 110_000, share / 11) for n, share in ((1, 6), (2, 3), (3, 2)))
    assert set(np.unique(drawn(words, 1))) == {1}


# Four words, by their positions: A = 1 2, B = 3, C = 4 5 6, D = 8 9; 0 and 7 are no candidates.
FIRST = {"A": 1, "B": 3, "C": 4, "D": 8}


@pytest.mark.parametrize(
    "order, lengths, quota, expected",
    [
        ("BACD", {}, 1, [3]),
        ("ABCD", {}, 2, [1, 2]),
        ("ABCD", {"A": 2}, 3, [1, 2, 3]),
        ("ABCD", {"A": 3}, 6, [1, 2, 3, 4, 5, 6]),
        ("ABCD", {"A": 3}, 3, [1, 2, 3]),  # three words would overflow the quota: two fit
        ("ABCD", {"A": 3}, 2, [1, 2]),  # and here one
        ("ABCD", {"A": 3}, 5, [1, 2, 3, 8, 9]),  # of the rest B is taken and C too long
        ("CABD", {}, 2, [1, 2]),  # C does not fit at all: the next one's turn
        ("BACD", {"A": 2}, 4, [3, 4, 5, 6]),  # the run A B touches B, which is chosen: skipped
        ("BACD", {"A": 2}, 8, [3, 4, 5, 6, 8, 9]),  # and skipped for good
        ("BACD", {"A": 2}, 3, [1, 2, 3]),  # but shortened to A it does not
        ("CDAB", {"C": 2}, 5, [4, 5, 6, 8, 9]),  # a run goes on behind [SEP], as in ALBERT's code
        ("DABC", {"D": 3}, 3, [3, 8, 9]),  # a run ends with the row
        ("BCDA", {}, 9, [1, 2, 3, 4, 5, 6, 8, 9]),  # a quota that nothing can fill
    ],
)
def test_runs_of_words_are_taken_in_order_shortened_and_skipped(order, lengths, quota, expected):
    scores, starts, drawn = np.full(10, -1.0, np.float32), np.zeros(10, bool), np.ones(10, np.int32)
    scores[[2, 5, 6, 9]] = 0.99  # only a word's first token counts
    for rank, name in enumerate(order):
        scores[FIRST[name]], starts[FIRST[name]] = 0.9 - 0.1 * rank, True
    for name, n in lengths.items():
        drawn[FIRST[name]] = n
    # Beside it a row that is finished at once, and must stay so.
    two = (np.stack([x, x]) for x in (scores, starts, drawn))
    found = np.asarray(runs(*two, np.ones((2, 1, 10), bool), np.array([[quota], [0]]), 3))
    assert np.flatnonzero(found[0]).tolist() == expected and not found[1].any()


# When and where a mask repeats ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("masking", [Masking(dupe_factor=10), replace(WORDS, dupe_factor=3), Masking(dupe_factor=1)])
def test_masks_repeat_after_as_many_epochs_as_there_are_copies(masking):
    rows = lambda epoch: batch([(5, example(60))], [(6, example(50))], length=64, epoch=epoch)
    seen = [choices(masking, rows(epoch)) for epoch in range(2 * masking.dupe_factor + 1)]
    for epoch, found in enumerate(seen):
        assert found == seen[epoch % masking.dupe_factor]
    assert len({str(found) for found in seen}) == masking.dupe_factor


def test_dynamic_masks_do_not_repeat():
    rows = lambda epoch: batch([(5, example(60))], length=64, epoch=epoch)
    seen = [choices(Masking(dupe_factor=None), rows(epoch)) for epoch in range(25)]
    assert len({str(found) for found in seen}) == 25


@pytest.mark.parametrize("masking", [Masking(), replace(WORDS, dupe_factor=3)], ids=["token", "word"])
def test_the_seed_changes_the_mask_and_so_does_the_example(masking):
    rows = batch([(5, example(60))], [(6, example(60))], length=64)
    one, two, again = (choices(masking, rows, seed=seed) for seed in (3, 4, 3))
    assert one == again and one[5] != two[5] and one[6] != two[6] and one[5] != one[6]


@pytest.mark.parametrize(
    "unit, rounding, dupe_factor",
    [
        *[("token", "random", None), ("word", "nearest", 10)],
        pytest.param("token", "nearest", 10, marks=pytest.mark.live),
        pytest.param("word", "random", None, marks=pytest.mark.live),
    ],
)
def test_an_example_has_its_mask_in_any_batch_at_any_padding_and_packed(unit, rounding, dupe_factor):
    masking = Masking(
        unit=unit, max_ngram=3 if unit == "word" else 1, rounding=rounding, dupe_factor=dupe_factor, mask_rate=0.3
    )
    a, b, c, other = (71, example(29)), (72, example(12)), (73, example(3)), (9, example(35))
    alone = choices(masking, batch([a], [b], [c], length=31, epoch=12))
    packed = choices(masking, batch([b, a], [other, c], length=47, epoch=12))
    swapped = choices(masking, batch([c, other], [a, b], length=47, epoch=12))
    for name, least in ((71, 5), (72, 2), (73, 0)):
        assert len(alone[name]) >= least
        assert alone[name] == packed[name] == swapped[name]


@pytest.mark.parametrize(
    "masking", [Masking(mask_rate=0.3), replace(WORDS, mask_rate=0.3, dupe_factor=None)], ids=["token", "word"]
)
def test_padding_changes_no_mask(masking):
    rows = [[(71, example(29))], [(72, example(12))], [(73, example(3))]]
    short, long = (choices(masking, batch(*rows, length=length)) for length in (31, 44))
    assert short == long and sum(map(len, short.values())) > 9


@pytest.mark.parametrize(
    "change, values",
    [
        ({"mask_rate": 0.0}, ["mask_rate=0.0", "above 0"]),
        ({"split": (0.8, 0.1, 0.2)}, ["split=(0.8, 0.1, 0.2)", "three"]),
        ({"dupe_factor": 0}, ["dupe_factor=0", "1", "None"]),
        ({"max_predictions": 0}, ["max_predictions=0", "1", "None"]),
        ({"max_ngram": 0}, ["max_ngram=0", "1"]),
        ({"max_ngram": 3}, ["max_ngram=3", "unit='word'"]),
    ],
)
def test_a_masking_that_cannot_be_is_refused(change, values):
    with raises_naming(ValueError, *values):
        Masking(**change)
