import math
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.data import stream
from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs
from encoders.data.store import Split
from encoders.data.stream import Phase, Stream, Tables, assemble, heldout_batches, permuted
from encoders.text.vocab import Facts

PAD, CLS, SEP = 1, 2, 3  # padding is not 0, as in RoBERTa
FACTS = Facts(size=100, pad=PAD, unk=0, cls=CLS, sep=SEP, mask=4, special=(0, 1, 2, 3, 4), continuations=bytes(13))
PAIRS, FULL = SegmentPairs("swapped"), FullSentences()


def split_of(documents, name="train"):
    """A split from the tokens of the sentences of each document."""
    flat, sentences, ends = [], [0], [0]
    for document in documents:
        for i, sentence in enumerate(document):
            flat += sentence + [SEP] * (i == len(document) - 1)
            sentences.append(len(flat))
        ends.append(len(sentences) - 1)
    return Split(name, np.array(flat, np.uint16), np.array(sentences), np.array(ends))


def prose(count=12, seed=0, name="train"):
    rng = np.random.default_rng(seed)
    sentence = lambda: rng.integers(5, 100, rng.integers(2, 9)).tolist()
    return split_of([[sentence() for _ in range(rng.integers(3, 9))] for _ in range(count)], name)


PROSE = prose()
ONE = (Phase(until=100, length=16, batch=6, format=PAIRS),)
TWO = (
    Phase(until=5, length=16, batch=6, format=PAIRS),
    Phase(until=8, length=24, batch=4, format=PAIRS),
    Phase(until=20, length=16, batch=2, format=PAIRS),
)


def share(number, of):
    """Which rows of a batch the process of this number holds, where each has as many."""
    return lambda batch: np.arange(batch).reshape(of, -1)[number]


@pytest.fixture
def opened(tmp_path):
    """Makes streams that share a folder of tables."""

    def new(phases=ONE, seed=0, copies=None, split=PROSE, folder=tmp_path, **held):
        return Stream(split, FACTS, phases, seed, copies, folder, **held)

    return new


def same(x, y):
    return x.keys() == y.keys() and all(np.array_equal(x[name], y[name]) for name in x)


def names(batch):
    """(epoch, id) of each row."""
    return list(zip(batch["epoch"][:, 0].tolist(), batch["id"][:, 0].tolist(), strict=True))


def counts(made, phase, epochs):
    return [len(made.tables.get(phase.format, phase.length, epoch)) for epoch in range(epochs)]


# One row


def test_a_row_by_hand():
    split = split_of([[[11, 12], [13], [14, 15, 16]], [[21, 22]]])  # tokens 11 12 13 14 15 16 SEP 21 22 SEP
    table = np.array([[0, 2, 2, 5, 1], [7, 8, 2, 3, 0], [4, 9, 0, 0, 0]])
    rows = assemble(split, table, 8, FACTS, SegmentPairs("random"))
    assert rows["tokens"].tolist() == [
        [CLS, 11, 12, SEP, 13, 14, 15, SEP],
        [CLS, 21, SEP, 13, SEP, PAD, PAD, PAD],
        [CLS, 15, 16, SEP, 21, 22, SEP, PAD],  # one segment over two documents, the separator between them its own
    ]
    assert rows["segments"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0, 0], [0] * 8]
    assert rows["example"].tolist() == [[1] * 8, [1] * 5 + [0] * 3, [1] * 7 + [0]]
    assert rows["positions"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 0]]
    assert rows["next_sentence"].tolist() == [[1], [0], [0]]
    assert rows["start"].tolist() == [[0]] * 3 and rows["valid"].tolist() == [[1]] * 3
    assert all(field.dtype == np.int32 for field in rows.values())


def test_a_row_of_two_examples_by_hand():
    split = split_of([[[11, 12], [13], [14, 15, 16]], [[21, 22]]])  # tokens 11 12 13 14 15 16 SEP 21 22 SEP
    table = np.array([[[7, 9, 2, 3, 1], [4, 6, 0, 0, 0], [0] * 5], [[0, 6, 0, 0, 1], [0] * 5, [0] * 5]])
    rows = assemble(split, table, 12, FACTS, SegmentPairs("random"))
    assert rows["tokens"].tolist() == [
        [CLS, 21, 22, SEP, 13, SEP, CLS, 15, 16, SEP, PAD, PAD],
        [CLS, 11, 12, 13, 14, 15, 16, SEP, PAD, PAD, PAD, PAD],
    ]
    assert rows["example"].tolist() == [[1] * 6 + [2] * 4 + [0] * 2, [1] * 8 + [0] * 4]
    assert rows["segments"].tolist() == [[0] * 4 + [1] * 2 + [0] * 6, [0] * 12]
    assert rows["positions"].tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 0, 0], [0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0]]
    assert rows["start"].tolist() == [[0, 6, 0], [0, 0, 0]] and rows["valid"].tolist() == [[1, 1, 0], [1, 0, 0]]
    assert rows["next_sentence"].tolist() == [[1, 0, 0], [1, 0, 0]]


def test_a_format_without_a_label_makes_no_label():
    rows = assemble(PROSE, FULL.table(PROSE, range(3), 16, 0, 0), 16, FACTS, FULL)
    assert set(rows) == {"tokens", "example", "segments", "positions", "start", "valid"}


def test_a_batch_has_the_fields_that_models_and_objectives_read(opened):
    batch = opened().batch(0)
    assert {name: rows.shape for name, rows in batch.items()} == {
        **dict.fromkeys(["tokens", "example", "segments", "positions"], (6, 16)),
        **dict.fromkeys(["start", "valid", "id", "epoch", "sentence_order"], (6, 1)),
    }
    assert all(rows.dtype == np.int32 for rows in batch.values())


def test_a_large_vocabulary_keeps_its_ids():
    split = replace(PROSE, tokens=np.full(len(PROSE.tokens), 70_000, np.uint32))
    facts = replace(FACTS, size=70_001)
    assert assemble(split, np.array([[0, 2, 0, 0, 0]]), 8, facts, FULL)["tokens"][0, 1] == 70_000


# A pure function of (seed, step)


def test_a_batch_depends_on_its_step_alone(opened, tmp_path):
    first = opened(TWO)
    batches = [first.batch(step) for step in range(20)]
    for step in (19, 3, 7, 0, 12, 4, 5):
        assert same(opened(TWO).batch(step), batches[step])
    other = opened(TWO, folder=tmp_path / "elsewhere")
    assert all(same(other.batch(step), batches[step]) for step in reversed(range(20)))


def test_another_seed_gives_other_batches(opened):
    assert not same(opened(seed=0).batch(0), opened(seed=1).batch(0))
    full = (Phase(until=9, length=16, batch=6, format=FULL),)
    assert names(opened(full, seed=0).batch(0)) != names(opened(full, seed=1).batch(0))


def test_batches_are_those_of_their_steps_from_any_start(opened):
    expected = [opened(TWO).batch(step) for step in range(20)]
    for start, stop in [(0, 20), (4, 9), (19, 20), (18, 20), (7, 7)]:
        got = list(opened(TWO).batches(start, stop))
        assert len(got) == stop - start
        assert all(same(x, y) for x, y in zip(got, expected[start:stop], strict=True))


def test_an_error_in_the_making_of_a_batch_reaches_the_reader(opened):
    short = split_of([[[5, 6]], [[7]]])
    with pytest.raises(ValueError, match="SegmentPairs.* makes no example of the train split; it has too little text"):
        next(opened(split=short).batches(0, 3))


# Epochs


@pytest.mark.parametrize("form", [PAIRS, FULL, ElectraPairs()])
def test_every_example_is_seen_once_an_epoch(opened, form):
    phase = Phase(until=1000, length=16, batch=7, format=form)
    made = opened((phase,))
    sizes = counts(made, phase, 3)
    seen = [name for step in range(sum(sizes) // 7 + 1) for name in names(made.batch(step))]
    for epoch, size in enumerate(sizes):
        ids = [id for at, id in seen if at == epoch]
        assert len(ids) == size and sorted(ids) == list(range(size)) and ids != sorted(ids)
    assert [epoch for epoch, _ in seen] == sorted(epoch for epoch, _ in seen)


def test_every_epoch_has_an_order_of_its_own(opened):
    phase = Phase(until=1000, length=16, batch=1, format=FULL)
    made = opened((phase,))
    (size,) = counts(made, phase, 1)
    first, second = ([names(made.batch(step))[0][1] for step in range(e * size, e * size + size)] for e in (0, 1))
    assert sorted(first) == sorted(second) and first != second


def test_a_batch_over_two_epochs_names_both(opened):
    made = opened()
    size = counts(made, ONE[0], 1)[0]
    assert size % 6  # so that one batch straddles
    batch = made.batch(size // 6)
    assert batch["epoch"][:, 0].tolist() == [0] * (size % 6) + [1] * (6 - size % 6)
    for epoch in (0, 1):
        which = batch["epoch"][:, 0] == epoch
        table = made.tables.get(PAIRS, 16, epoch)[batch["id"][which, 0]]
        rows = assemble(PROSE, table, 16, FACTS, PAIRS)
        assert all(np.array_equal(rows[name], batch[name][which]) for name in rows)


def test_a_batch_may_hold_many_epochs_of_a_small_corpus(opened):
    tiny = split_of([[[5], [6], [7]], [[8], [9]]])  # two rows
    phase = Phase(until=4, length=8, batch=11, format=replace(PAIRS, short=0.0))
    made = opened((phase,), split=tiny)
    seen = [name for step in range(4) for name in names(made.batch(step))]
    assert [epoch for epoch, _ in seen] == [n // 2 for n in range(44)]
    assert all({seen[n][1], seen[n + 1][1]} == {0, 1} for n in range(0, 44, 2))


def test_passes_start_again_after_the_number_of_copies(tmp_path):
    tables = Tables(tmp_path, PROSE, 0, 10)
    made = {epoch: tables.get(PAIRS, 16, epoch) for epoch in (0, 1, 2, 9, 10, 11, 21)}
    assert np.array_equal(made[11], made[1]) and np.array_equal(made[21], made[1]) and np.array_equal(made[10], made[0])
    assert len({made[epoch].tobytes() for epoch in (0, 1, 2, 9)}) == 4
    dynamic = Tables(tmp_path, PROSE, 0, None)
    assert not np.array_equal(dynamic.get(PAIRS, 16, 11), dynamic.get(PAIRS, 16, 1))


def test_with_one_copy_every_epoch_has_the_same_examples_in_another_order(opened):
    made = opened(copies=1)
    (size,) = counts(made, ONE[0], 1)
    rows = {}
    for step in range(math.ceil(3 * size / 6)):
        batch = made.batch(step)
        for name, tokens, label in zip(names(batch), batch["tokens"], batch["sentence_order"], strict=True):
            rows[name] = (*tokens.tolist(), *label.tolist())
    assert all(rows[0, id] == rows[1, id] == rows[2, id] for id in range(size))


def test_formats_that_draw_nothing_have_one_table_for_all_seeds_and_passes(tmp_path):
    for seed in (0, 1):
        tables = Tables(tmp_path, PROSE, seed, None)
        for epoch in (0, 3):
            tables.get(FULL, 16, epoch)
    assert len(list(tmp_path.iterdir())) == 1


# Tables on disk


def test_a_table_is_built_once(tmp_path, monkeypatch):
    built = Tables(tmp_path, PROSE, 0, 10).get(PAIRS, 16, 3)
    monkeypatch.setattr(SegmentPairs, "table", lambda *arguments: pytest.fail("it is there"))
    assert np.array_equal(Tables(tmp_path, PROSE, 0, 10).get(PAIRS, 16, 3), built)


def test_a_table_depends_on_everything_that_makes_it(tmp_path):
    for seed, copies, split, form, length in [
        (0, 10, PROSE, PAIRS, 16),
        (1, 10, PROSE, PAIRS, 16),
        (0, 10, prose(name="heldout"), PAIRS, 16),
        (0, 10, PROSE, replace(PAIRS, short=0.2), 16),
        (0, 10, PROSE, SegmentPairs("random"), 16),
        (0, 10, PROSE, PAIRS, 17),
    ]:
        Tables(tmp_path, split, seed, copies).get(form, length, 0)
    assert len(list(tmp_path.iterdir())) == 6


def test_the_next_pass_is_built_ahead(opened):
    made = opened()
    made.batch(0)
    assert {number for _, _, number in made.tables.open} == {0, 1}


def test_few_tables_are_held_open(opened):
    made = opened()
    for step in range(40):
        made.batch(step)
    assert len(made.tables.open) <= 4


def test_a_table_does_not_depend_on_how_its_shards_were_cut(tmp_path, monkeypatch):
    whole = Tables(tmp_path / "a", PROSE, 0, 1).get(PAIRS, 16, 0)
    monkeypatch.setattr("encoders.data.store.SHARD", 60)
    assert len(PROSE.shards()) > 3
    assert np.array_equal(Tables(tmp_path / "b", PROSE, 0, 1).get(PAIRS, 16, 0), whole)


def test_two_hosts_whose_processes_have_one_number_build_the_same_table(tmp_path, monkeypatch):
    # In containers every training process may be number 1; threads have one number too.
    both, save = threading.Barrier(2, timeout=20), np.save
    monkeypatch.setattr(stream.np, "save", lambda *arguments: (both.wait(), save(*arguments)))
    hosts = [Tables(tmp_path, PROSE, 0, 1) for _ in range(2)]
    made = [each.result() for each in [host.ask(PAIRS, 16, 0) for host in hosts]]
    assert np.array_equal(*made)


def test_a_token_that_the_vocabulary_has_not_is_named(opened):
    tokens = np.full_like(PROSE.tokens, FACTS.size)
    with pytest.raises(ValueError, match=f"has the token {FACTS.size}, and the vocabulary ends at {FACTS.size - 1}"):
        opened(split=replace(PROSE, tokens=tokens)).batch(0)


# Processes


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_the_rows_of_all_processes_are_the_rows_of_one(opened, processes):
    phases = tuple(replace(phase, batch=6 * n) for n, phase in enumerate(TWO, 1))
    alone = opened(phases, copies=1)
    shares = [opened(phases, copies=1, held=share(n, processes)) for n in range(processes)]
    for step in range(10):
        parts = [each.batch(step) for each in shares]
        together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        assert same(together, alone.batch(step))


def test_a_process_may_hold_any_rows_of_a_batch(opened):
    some, whole = opened(held=lambda batch: np.array([0, 3, 4])), opened()
    for step in range(4):
        assert same(some.batch(step), {name: rows[[0, 3, 4]] for name, rows in whole.batch(step).items()})


# Phases


def test_a_step_falls_in_the_phase_that_has_not_ended(opened):
    made = opened(TWO)
    assert [made.phase(step) for step in (0, 4, 5, 7, 8, 19)] == [TWO[n] for n in (0, 0, 1, 1, 2, 2)]
    assert [made.batch(step)["tokens"].shape for step in (4, 5, 8)] == [(6, 16), (4, 24), (2, 16)]


def test_examples_are_counted_on_where_format_and_length_come_again(opened):
    made = opened(TWO)
    assert [made.consumed(step) for step in (0, 1, 4)] == [0, 6, 24]
    assert [made.consumed(step) for step in (5, 6, 7)] == [0, 4, 8]
    assert [made.consumed(step) for step in (8, 9, 19)] == [30, 32, 52]


def test_a_later_phase_goes_on_with_the_examples_that_were_not_read(opened):
    made = opened(TWO)
    seen = [name for step in (*range(5), *range(8, 20)) for name in names(made.batch(step))]
    (size,) = counts(made, TWO[0], 1)
    assert len(seen) == 54 and len(set(seen)) == 54
    assert {id for epoch, id in seen if epoch == 0} == set(range(min(size, 54)))


def test_phases_of_another_format_count_apart(opened):
    phases = (replace(ONE[0], until=3), Phase(until=6, length=16, batch=6, format=FULL))
    assert [opened(phases).consumed(step) for step in range(6)] == [0, 6, 12, 0, 6, 12]


@pytest.mark.parametrize("wrong", [{"until": 0}, {"length": 7}, {"batch": 0}])
def test_a_phase_that_cannot_be_is_refused_by_name(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"phases.{name}={value} must be at least"):
        replace(ONE[0], **wrong)


# The shuffle


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 64, 65, 1000, 65_537])
def test_a_shuffle_moves_every_number_to_a_place_of_its_own(size):
    for key in (0, (1, 2), (2, 1)):
        assert np.array_equal(np.sort(permuted(np.arange(size), size, key)), np.arange(size))


@given(st.integers(1, 5000), st.integers(0, 2**31 - 1))
@settings(deadline=None, derandomize=True, max_examples=30)
def test_a_part_of_a_shuffle_is_that_part_of_the_whole(size, key):
    whole = permuted(np.arange(size), size, key)
    assert np.array_equal(np.sort(whole), np.arange(size))
    assert np.array_equal(permuted(np.arange(size // 2, size), size, key), whole[size // 2 :])


def test_a_shuffle_depends_on_its_key_and_looks_random():
    index = np.arange(1000)
    shuffles = [permuted(index, 1000, (seed, epoch)) for seed in range(5) for epoch in range(5)]
    assert len({x.tobytes() for x in shuffles}) == 25
    for x, y in zip(shuffles, shuffles[1:], strict=False):
        assert abs(np.corrcoef(index, x)[0, 1]) < 0.2 and abs(np.corrcoef(x, y)[0, 1]) < 0.2  # six times 1/√1000
        assert (x == y).sum() < 8 and (np.diff(x) == 1).sum() < 12  # one on average
    places = np.array([permuted(np.array([7]), 1000, key)[0] for key in range(400)])
    assert abs(places.mean() - 499.5) < 4 * 1000 / math.sqrt(12 * 400)


def test_a_shuffle_of_more_than_four_milliard_numbers_stays_one():
    index = np.arange(10_000) * 400_000
    places = permuted(index, 5_000_000_000, 1)
    assert len(set(places.tolist())) == 10_000 and 0 <= places.min() and 4_900_000_000 < places.max() < 5_000_000_000


def test_a_shuffle_is_the_same_everywhere():
    # Must never change: runs could not be continued.
    assert permuted(np.arange(8), 8, (1, 2)).tolist() == [2, 0, 3, 7, 4, 6, 1, 5]


def test_numbers_that_follow_one_another_are_shuffled_as_each_alone(monkeypatch):
    monkeypatch.setattr(stream, "BLOCK", 32)
    for size, key in ((1000, 1), (33, 2), (5, 3)):
        whole = permuted(np.arange(size), size, key)
        for start, stop in ((0, 1), (0, size), (size // 3, size // 2 + 1), (size - 1, size)):
            assert np.array_equal(stream.shuffled(np.arange(start, stop), size, key), whole[start:stop])
    stream.block.cache_clear()


# Held-out batches


def test_held_out_batches_are_the_same_for_every_run(opened, tmp_path):
    heldout = prose(8, seed=1, name="heldout")
    phase = replace(ONE[0], batch=5)
    for seed in (0, 3):
        opened(seed=seed).batch(0)
    first = list(heldout_batches(heldout, FACTS, phase, 4, 100, tmp_path))
    again = list(heldout_batches(heldout, FACTS, replace(phase, until=7), 4, 100, tmp_path / "elsewhere"))
    assert len(first) == len(again) > 2 and all(same(x, y) for x, y in zip(first, again, strict=True))
    assert not np.concatenate([batch["epoch"] for batch in first]).any()


def test_held_out_batches_hold_every_example_once_and_end_with_rows_that_count_nowhere(tmp_path):
    heldout = prose(8, seed=1, name="heldout")
    table = Tables(tmp_path, heldout, 0, 1).get(PAIRS, 16, 0)
    batch = len(table) - 3
    first, last = heldout_batches(heldout, FACTS, ONE[0], batch, 100, tmp_path)
    assert first["valid"].all() and last["valid"][:, 0].tolist() == [1, 1, 1] + [0] * (batch - 3)
    assert not last["example"][3:].any() and all(len(rows) == batch for rows in last.values())
    ids = np.concatenate([first["id"][:, 0], last["id"][:3, 0]])
    assert sorted(ids.tolist()) == list(range(len(table))) and ids.tolist() != sorted(ids.tolist())
    expected = assemble(heldout, table[ids[:batch]], 16, FACTS, PAIRS)
    assert all(np.array_equal(first[name], expected[name]) for name in expected)


def test_held_out_batches_are_as_long_as_the_eighth_that_holds_their_rows(tmp_path):
    heldout, phase = prose(60, seed=1, name="heldout"), Phase(until=1, length=44, batch=5, format=PAIRS)
    batches = list(heldout_batches(heldout, FACTS, phase, 5, 100, tmp_path))
    sizes = [(batch["example"] > 0).sum(axis=1) for batch in batches]
    longest = np.concatenate(sizes)
    assert (np.diff(longest) <= 0).all() and longest[0] == 44
    eighths = [6, 11, 17, 22, 28, 33, 39, 44]  # 44 n / 8, rounded up
    lengths = [batch["tokens"].shape[1] for batch in batches]
    assert lengths == [min(n for n in eighths if n >= size[0]) for size in sizes]
    assert len(set(lengths)) > 4 and 1 - longest.sum() / (5 * sum(lengths)) < 0.12 < 0.3 < 1 - longest.mean() / 44
    table = Tables(tmp_path, heldout, 0, 1).get(PAIRS, 44, 0)
    for batch, length in zip(batches, lengths, strict=True):
        whole, real = assemble(heldout, table[batch["id"][:, 0]], 44, FACTS, FULL), batch["valid"][:, 0] == 1
        assert all(np.array_equal(whole[name][real, :length], batch[name][real]) for name in ("tokens", "segments"))


def test_a_limit_leaves_the_same_held_out_examples_whatever_their_lengths(tmp_path):
    heldout = prose(60, seed=1, name="heldout")
    size = len(Tables(tmp_path, heldout, 0, 1).get(PAIRS, 16, 0))
    batches = list(heldout_batches(heldout, FACTS, ONE[0], 4, 3, tmp_path))
    chosen = sorted(id for batch in batches for id in batch["id"][:, 0].tolist())
    assert chosen == sorted(permuted(np.arange(size), size, 0)[:12].tolist())


def test_held_out_batches_stop_at_their_limit(tmp_path):
    batches = list(heldout_batches(prose(8, seed=1, name="heldout"), FACTS, ONE[0], 4, 2, tmp_path))
    assert [batch["valid"].sum() for batch in batches] == [4, 4]


def test_too_little_held_out_text_is_named(tmp_path):
    with pytest.raises(ValueError, match="SegmentPairs.* makes no example of the heldout split"):
        list(heldout_batches(split_of([[[5, 6]]], "heldout"), FACTS, ONE[0], 4, 2, tmp_path))


# Rows of like length

WITHIN = FullSentences(within=True)
ALIKE = (
    Phase(until=7, length=20, batch=6, format=WITHIN, cuts=4),
    Phase(until=40, length=20, batch=4, format=WITHIN, cuts=4),
)


@pytest.fixture
def chunks(monkeypatch):
    """Rows of like length are found among those of three batches: chunks end in the midst of epochs and phases."""
    monkeypatch.setattr(stream, "CHUNK", 3)


def longest(batch):
    return int((batch["example"] > 0).sum(axis=1).max())


def padding(batches):
    return 1 - sum((batch["example"] > 0).sum() for batch in batches) / sum(batch["example"].size for batch in batches)


def test_rows_of_like_length_are_all_seen_once_an_epoch(opened, chunks):
    made = opened(ALIKE)
    seen = [name for step in range(40) for name in names(made.batch(step))]
    (size,) = counts(made, ALIKE[0], 1)
    epochs, rest = divmod(7 * 6 + 33 * 4, size)
    assert epochs > 1 and rest and len(seen) == len(set(seen)) == 7 * 6 + 33 * 4
    for epoch in range(epochs):
        assert sorted(id for at, id in seen if at == epoch) == list(range(size))
    assert {at for at, _ in seen} == set(range(epochs + 1))


def test_rows_of_like_length_are_those_that_the_same_steps_would_read(opened, chunks):
    alike, plain = opened(ALIKE), opened(tuple(replace(phase, cuts=1) for phase in ALIKE))
    for start, stop in ((0, 3), (3, 6), (6, 7), (7, 10), (37, 40)):  # chunks begin anew with a phase
        read, expected = ([n for step in range(start, stop) for n in names(x.batch(step))] for x in (alike, plain))
        assert sorted(read) == sorted(expected)


def test_a_batch_is_as_long_as_the_quarter_that_holds_its_longest_row(opened):
    rows = split_of([[[5] * (size - 2)] for size in range(3, 21)] * 3)  # of every size from 3 to 20
    batches = list(opened(ALIKE, split=rows).batches(0, 40))
    lengths = [batch["tokens"].shape[1] for batch in batches]
    assert lengths == [min(n for n in (5, 10, 15, 20) if n >= longest(batch)) for batch in batches]
    assert set(lengths) == {5, 10, 15, 20}
    together = lengths[7:]  # the second phase is one chunk, whose batches are shuffled
    assert together != sorted(together) and together != sorted(together, reverse=True)


@pytest.mark.parametrize("size, length", [(1, 8), (8, 8), (9, 16), (16, 16), (17, 24), (31, 32), (32, 32)])
def test_the_least_part_that_holds_a_row_is_its_length(size, length):
    assert stream.cut(size, 32, 4) == length


def test_a_batch_of_like_length_depends_on_its_step_alone(opened, chunks, tmp_path):
    first = opened(ALIKE)
    batches = [first.batch(step) for step in range(40)]
    for step in (39, 3, 7, 0, 6, 22, 5):
        assert same(opened(ALIKE).batch(step), batches[step]) and same(first.batch(step), batches[step])
    other = opened(ALIKE, folder=tmp_path / "elsewhere")
    assert all(same(other.batch(step), batches[step]) for step in reversed(range(40)))
    assert all(same(x, y) for x, y in zip(opened(ALIKE).batches(5, 12), batches[5:12], strict=True))
    assert not all(same(opened(ALIKE, seed=1).batch(step), batches[step]) for step in range(3))


def test_two_processes_share_a_batch_at_one_length(opened, chunks):
    alone, shares = opened(ALIKE), [opened(ALIKE, held=share(n, 2)) for n in range(2)]
    shorter = 0
    for step in range(12):
        parts = [each.batch(step) for each in shares]
        assert len({part["tokens"].shape for part in parts}) == 1
        assert same({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, alone.batch(step))
        shorter += len({stream.cut(longest(part), 20, 4) for part in parts}) > 1
    assert shorter  # one share alone would have been shorter


def test_a_row_holds_the_same_in_a_batch_of_like_length(opened):
    phase = replace(ONE[0], until=30, length=24)
    rows, found = {}, {}
    for held, made in ((rows, opened((phase,))), (found, opened((replace(phase, cuts=4),)))):
        for batch in made.batches(0, 30):
            held |= {name: {field: batch[field][n] for field in batch} for n, name in enumerate(names(batch))}
    assert found.keys() == rows.keys() and {epoch for epoch, _ in found} > {0, 1}
    for name, row in found.items():
        length, size = len(row["tokens"]), (row["example"] > 0).sum()
        for field in ("tokens", "example", "segments", "positions"):
            assert np.array_equal(row[field], rows[name][field][:length])
        assert (rows[name]["example"] > 0).sum() == size
        assert all(np.array_equal(row[field], rows[name][field]) for field in ("sentence_order", "start", "valid"))


def test_rows_of_like_length_leave_less_padding(opened):
    rows = split_of([[[5] * 3], [[6] * 18]] * 12)  # rows of 5 and of 20 tokens
    phase = replace(ALIKE[0], until=4)
    apart = opened((phase,), split=rows).batches(0, 4)
    mixed = opened((replace(phase, cuts=1),), split=rows).batches(0, 4)
    assert (padding(list(mixed)), padding(list(apart))) == (12 * 15 / (24 * 20), 0)


def test_a_phase_without_a_cut_is_refused():
    with pytest.raises(ValueError, match="phases.cuts=0 must be at least 1"):
        replace(ONE[0], cuts=0)
