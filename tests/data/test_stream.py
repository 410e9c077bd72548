import math
import threading
from dataclasses import replace

import jax
import numpy as np
import pytest

from encoders.data import stream
from encoders.data.example_table import build_empty_table, rows_to_table
from encoders.data.formats import ElectraPairs, SegmentPairs
from encoders.data.stream import ExampleTables, Phase, assemble_rows
from tests.batches import EXAMPLE_FIELDS, TOKEN_FIELDS
from tests.data.streams import (
    CLS,
    FACTS,
    FULL,
    ONE,
    PAD,
    PAIRS,
    PROSE,
    SEP,
    TWO,
    concatenate,
    counts,
    names,
    opener,
    prose,
    same,
    shapes_of,
    share,
    split_of,
)  # fmt: skip
from tests.refusals import raises_naming


@pytest.fixture
def opened(tmp_path):
    return opener(tmp_path)


# One row


def test_a_row_by_hand():
    split = split_of([[[11, 12], [13], [14, 15, 16]], [[21, 22]]])  # tokens 11 12 13 14 15 16 SEP 21 22 SEP
    table = rows_to_table([(0, 2, 2, 5, 1, 0), (7, 8, 2, 3, 0, 1), (4, 9, 0, 0, 0, 0)])
    rows = assemble_rows(split, table, 8, FACTS, SegmentPairs("random"))
    assert rows.input_ids.tolist() == [
        [CLS, 11, 12, SEP, 13, 14, 15, SEP],
        [CLS, 21, SEP, 13, SEP, PAD, PAD, PAD],
        [CLS, 15, 16, SEP, 21, 22, SEP, PAD],  # one segment over two documents, the separator between them its own
    ]
    assert rows.token_type_ids.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0, 0], [0] * 8]
    assert rows.example_ids.tolist() == [[1] * 8, [1] * 5 + [0] * 3, [1] * 7 + [0]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 0]]
    assert rows.labels["next_sentence"].tolist() == [[1], [0], [0]]
    assert rows.cls_positions.tolist() == [[0]] * 3 and rows.example_mask.tolist() == [[1]] * 3
    assert all(field.dtype == np.int32 for field in jax.tree.leaves(rows))


def test_a_row_of_two_examples_by_hand():
    split = split_of([[[11, 12], [13], [14, 15, 16]], [[21, 22]]])  # tokens 11 12 13 14 15 16 SEP 21 22 SEP
    table = build_empty_table(2, 3)
    table[0, :2], table[1, 0] = [(7, 9, 2, 3, 1, 1), (4, 6, 0, 0, 0, 0)], (0, 6, 0, 0, 1, 0)
    rows = assemble_rows(split, table, 12, FACTS, SegmentPairs("random"))
    assert rows.input_ids.tolist() == [
        [CLS, 21, 22, SEP, 13, SEP, CLS, 15, 16, SEP, PAD, PAD],
        [CLS, 11, 12, 13, 14, 15, 16, SEP, PAD, PAD, PAD, PAD],
    ]
    assert rows.example_ids.tolist() == [[1] * 6 + [2] * 4 + [0] * 2, [1] * 8 + [0] * 4]
    assert rows.token_type_ids.tolist() == [[0] * 4 + [1] * 2 + [0] * 6, [0] * 12]
    assert rows.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 0, 0], [0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0]]
    assert rows.cls_positions.tolist() == [[0, 6, 0], [0, 0, 0]] and rows.example_mask.tolist() == [
        [1, 1, 0],
        [1, 0, 0],
    ]
    assert rows.labels["next_sentence"].tolist() == [[1, 0, 0], [1, 0, 0]]


def test_a_format_without_a_label_makes_no_label():
    rows = assemble_rows(PROSE, FULL.build_example_table(PROSE, range(3), 16, 0, 0), 16, FACTS, FULL)
    assert rows.labels == {}


def test_a_batch_has_the_fields_that_models_and_objectives_read(opened):
    batch = opened().build_batch(0)
    assert shapes_of(batch) == {
        **dict.fromkeys(TOKEN_FIELDS, (6, 16)),
        **dict.fromkeys([*EXAMPLE_FIELDS, "sentence_order"], (6, 1)),
    }
    assert all(rows.dtype == np.int32 for rows in jax.tree.leaves(batch))


def test_a_large_vocabulary_keeps_its_ids():
    split = replace(PROSE, tokens=np.full(len(PROSE.tokens), 70_000, np.uint32))
    facts = replace(FACTS, vocab_size=70_001)
    assert assemble_rows(split, rows_to_table([(0, 2, 0, 0, 0, 0)]), 8, facts, FULL).input_ids[0, 1] == 70_000


# A pure function of (seed, step)


def test_a_batch_depends_on_its_step_alone(opened, tmp_path):
    first = opened(TWO)
    batches = [first.build_batch(step) for step in range(20)]
    for step in (19, 3, 7, 0, 12, 4, 5):
        assert same(opened(TWO).build_batch(step), batches[step])
    other = opened(TWO, folder=tmp_path / "elsewhere")
    assert all(same(other.build_batch(step), batches[step]) for step in reversed(range(20)))


def test_another_seed_gives_other_batches(opened):
    assert not same(opened(seed=0).build_batch(0), opened(seed=1).build_batch(0))
    full = (Phase(until_step=9, seq_length=16, batch_size=6, format=FULL),)
    assert names(opened(full, seed=0).build_batch(0)) != names(opened(full, seed=1).build_batch(0))


def test_batches_are_those_of_their_steps_from_any_start(opened):
    expected = [opened(TWO).build_batch(step) for step in range(20)]
    for start, stop in [(0, 20), (4, 9), (19, 20), (18, 20), (7, 7)]:
        got = list(opened(TWO).iter_batches(start, stop))
        assert len(got) == stop - start
        assert all(same(x, y) for x, y in zip(got, expected[start:stop], strict=True))


def test_an_error_in_the_making_of_a_batch_reaches_the_reader(opened):
    short = split_of([[[5, 6]], [[7]]])
    with raises_naming(ValueError, "SegmentPairs", "train"):
        next(opened(split=short).iter_batches(0, 3))


# Epochs


@pytest.mark.parametrize("form", [PAIRS, FULL, ElectraPairs()])
def test_every_example_is_seen_once_an_epoch(opened, form):
    phase = Phase(until_step=1000, seq_length=16, batch_size=7, format=form)
    made = opened((phase,))
    sizes = counts(made, phase, 3)
    seen = [name for step in range(sum(sizes) // 7 + 1) for name in names(made.build_batch(step))]
    for epoch, size in enumerate(sizes):
        ids = [id for at, id in seen if at == epoch]
        assert len(ids) == size and sorted(ids) == list(range(size)) and ids != sorted(ids)
    assert [epoch for epoch, _ in seen] == sorted(epoch for epoch, _ in seen)


def test_every_epoch_has_an_order_of_its_own(opened):
    phase = Phase(until_step=1000, seq_length=16, batch_size=1, format=FULL)
    made = opened((phase,))
    (size,) = counts(made, phase, 1)
    first, second = ([names(made.build_batch(step))[0][1] for step in range(e * size, e * size + size)] for e in (0, 1))
    assert sorted(first) == sorted(second) and first != second


def test_a_batch_over_two_epochs_names_both(opened):
    made = opened()
    size = counts(made, ONE[0], 1)[0]
    assert size % 6  # so that one batch straddles
    batch = made.build_batch(size // 6)
    assert batch.pass_index[:, 0].tolist() == [0] * (size % 6) + [1] * (6 - size % 6)
    for epoch in (0, 1):
        which = batch.pass_index[:, 0] == epoch
        table = made.tables.get_table(PAIRS, 16, epoch)[batch.example_index[which, 0]]
        rows = assemble_rows(PROSE, table, 16, FACTS, PAIRS)
        assert all(np.array_equal(getattr(rows, name), getattr(batch, name)[which]) for name in TOKEN_FIELDS)
    assert np.array_equal(rows.labels["sentence_order"], batch.labels["sentence_order"][which])


def test_a_batch_may_hold_many_epochs_of_a_small_corpus(opened):
    tiny = split_of([[[5], [6], [7]], [[8], [9]]])  # two rows
    phase = Phase(until_step=4, seq_length=8, batch_size=11, format=replace(PAIRS, short_seq_prob=0.0))
    made = opened((phase,), split=tiny)
    seen = [name for step in range(4) for name in names(made.build_batch(step))]
    assert [epoch for epoch, _ in seen] == [n // 2 for n in range(44)]
    assert all({seen[n][1], seen[n + 1][1]} == {0, 1} for n in range(0, 44, 2))


def test_passes_start_again_after_the_number_of_copies(tmp_path):
    tables = ExampleTables(tmp_path, PROSE, 0, 10)
    made = {epoch: tables.get_table(PAIRS, 16, epoch) for epoch in (0, 1, 2, 9, 10, 11, 21)}
    assert np.array_equal(made[11], made[1]) and np.array_equal(made[21], made[1]) and np.array_equal(made[10], made[0])
    assert len({made[epoch].tobytes() for epoch in (0, 1, 2, 9)}) == 4
    dynamic = ExampleTables(tmp_path, PROSE, 0, None)
    assert not np.array_equal(dynamic.get_table(PAIRS, 16, 11), dynamic.get_table(PAIRS, 16, 1))


def test_with_one_copy_every_epoch_has_the_same_examples_in_another_order(opened):
    made = opened(copies=1)
    (size,) = counts(made, ONE[0], 1)
    rows = {}
    for step in range(math.ceil(3 * size / 6)):
        batch = made.build_batch(step)
        for name, tokens, label in zip(names(batch), batch.input_ids, batch.labels["sentence_order"], strict=True):
            rows[name] = (*tokens.tolist(), *label.tolist())
    assert all(rows[0, id] == rows[1, id] == rows[2, id] for id in range(size))


def test_formats_that_draw_nothing_have_one_table_for_all_seeds_and_passes(tmp_path):
    for seed in (0, 1):
        tables = ExampleTables(tmp_path, PROSE, seed, None)
        for epoch in (0, 3):
            tables.get_table(FULL, 16, epoch)
    assert len(list(tmp_path.glob("*.npy"))) == 1


# Tables on disk


def test_a_table_is_built_once(tmp_path, monkeypatch):
    built = ExampleTables(tmp_path, PROSE, 0, 10).get_table(PAIRS, 16, 3)
    monkeypatch.setattr(SegmentPairs, "build_example_table", lambda *arguments: pytest.fail("it is there"))
    assert np.array_equal(ExampleTables(tmp_path, PROSE, 0, 10).get_table(PAIRS, 16, 3), built)


def test_a_table_depends_on_everything_that_makes_it(tmp_path):
    for seed, copies, split, form, length in [
        (0, 10, PROSE, PAIRS, 16),
        (1, 10, PROSE, PAIRS, 16),
        (0, 10, prose(name="heldout"), PAIRS, 16),
        (0, 10, PROSE, replace(PAIRS, short_seq_prob=0.2), 16),
        (0, 10, PROSE, SegmentPairs("random"), 16),
        (0, 10, PROSE, PAIRS, 17),
    ]:
        ExampleTables(tmp_path, split, seed, copies).get_table(form, length, 0)
    assert len(list(tmp_path.glob("*.npy"))) == 6


def test_the_next_pass_is_built_ahead(opened):
    made = opened()
    made.build_batch(0)
    assert {number for _, _, number in made.tables.table_futures} == {0, 1}


def test_few_tables_are_held_open(opened):
    made = opened()
    for step in range(40):
        made.build_batch(step)
    assert len(made.tables.table_futures) <= 4


def test_a_table_does_not_depend_on_how_its_shards_were_cut(tmp_path, monkeypatch):
    whole = ExampleTables(tmp_path / "a", PROSE, 0, 1).get_table(PAIRS, 16, 0)
    monkeypatch.setattr("encoders.data.store.SHARD_TOKENS", 60)
    assert len(PROSE.split_shards()) > 3
    assert np.array_equal(ExampleTables(tmp_path / "b", PROSE, 0, 1).get_table(PAIRS, 16, 0), whole)


def test_two_hosts_whose_processes_have_one_number_build_the_same_table(tmp_path, monkeypatch):
    # In containers every training process may be number 1; threads have one number too.
    both, save = threading.Barrier(2, timeout=20), np.save
    monkeypatch.setattr(stream.np, "save", lambda *arguments: (both.wait(), save(*arguments)))
    hosts = [ExampleTables(tmp_path, PROSE, 0, 1) for _ in range(2)]
    made = [each.result() for each in [host.request_table(PAIRS, 16, 0) for host in hosts]]
    assert np.array_equal(*made)


def test_a_token_that_the_vocabulary_has_not_is_named(opened):
    tokens = np.full_like(PROSE.tokens, FACTS.vocab_size)
    with raises_naming(ValueError, f"token id {FACTS.vocab_size}"):
        opened(split=replace(PROSE, tokens=tokens)).build_batch(0)


# Processes


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_the_rows_of_all_processes_are_the_rows_of_one(opened, processes):
    phases = tuple(replace(phase, batch_size=6 * n) for n, phase in enumerate(TWO, 1))
    alone = opened(phases, copies=1)
    shares = [opened(phases, copies=1, select_local_rows=share(n, processes)) for n in range(processes)]
    for step in range(10):
        parts = [each.build_batch(step) for each in shares]
        together = concatenate(parts)
        assert same(together, alone.build_batch(step))


def test_a_process_may_hold_any_rows_of_a_batch(opened):
    some, whole = opened(select_local_rows=lambda batch: np.array([0, 3, 4])), opened()
    for step in range(4):
        assert same(some.build_batch(step), jax.tree.map(lambda rows: rows[[0, 3, 4]], whole.build_batch(step)))


# Phases


def test_a_step_falls_in_the_phase_that_has_not_ended(opened):
    made = opened(TWO)
    assert [made.find_phase(step) for step in (0, 4, 5, 7, 8, 19)] == [TWO[n] for n in (0, 0, 1, 1, 2, 2)]
    assert [made.build_batch(step).input_ids.shape for step in (4, 5, 8)] == [(6, 16), (4, 24), (2, 16)]


def test_examples_are_counted_on_where_format_and_length_come_again(opened):
    made = opened(TWO)
    assert [made.count_consumed_rows(step) for step in (0, 1, 4)] == [0, 6, 24]
    assert [made.count_consumed_rows(step) for step in (5, 6, 7)] == [0, 4, 8]
    assert [made.count_consumed_rows(step) for step in (8, 9, 19)] == [30, 32, 52]


def test_a_later_phase_goes_on_with_the_examples_that_were_not_read(opened):
    made = opened(TWO)
    seen = [name for step in (*range(5), *range(8, 20)) for name in names(made.build_batch(step))]
    (size,) = counts(made, TWO[0], 1)
    assert len(seen) == 54 and len(set(seen)) == 54
    assert {id for epoch, id in seen if epoch == 0} == set(range(min(size, 54)))


def test_phases_of_another_format_count_apart(opened):
    phases = (replace(ONE[0], until_step=3), Phase(until_step=6, seq_length=16, batch_size=6, format=FULL))
    assert [opened(phases).count_consumed_rows(step) for step in range(6)] == [0, 6, 12, 0, 6, 12]


@pytest.mark.parametrize("wrong", [{"until_step": 0}, {"seq_length": 7}, {"batch_size": 0}])
def test_a_phase_that_cannot_be_is_refused_by_name(wrong):
    ((name, value),) = wrong.items()
    with raises_naming(ValueError, f"phases.{name}={value} "):
        replace(ONE[0], **wrong)
