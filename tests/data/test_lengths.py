"""Batches that are as long as their rows need: of held-out text, and in training with `cuts`."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from encoders.data import stream
from encoders.data.formats import FullSentences
from encoders.data.stream import ExampleTables, Phase, assemble_rows, iter_eval_batches, permute_indices
from tests.batches import TOKEN_FIELDS
from tests.data.streams import FACTS, FULL, ONE, PAIRS, concatenate, counts, names, opener, prose, same, share, split_of
from tests.refusals import raises_naming


@pytest.fixture
def opened(tmp_path):
    return opener(tmp_path)


# Held-out batches


def test_held_out_batches_are_the_same_for_every_run(opened, tmp_path):
    heldout = prose(8, seed=1, name="heldout")
    phase = replace(ONE[0], batch_size=5)
    for seed in (0, 3):
        opened(seed=seed).build_batch(0)
    first = list(iter_eval_batches(heldout, FACTS, phase, 4, 100, tmp_path))
    again = list(iter_eval_batches(heldout, FACTS, replace(phase, until_step=7), 4, 100, tmp_path / "elsewhere"))
    assert len(first) == len(again) > 2 and all(same(x, y) for x, y in zip(first, again, strict=True))
    assert not np.concatenate([batch.pass_index for batch in first]).any()


def test_held_out_batches_hold_every_example_once_and_end_with_rows_that_count_nowhere(tmp_path):
    heldout = prose(8, seed=1, name="heldout")
    table = ExampleTables(tmp_path, heldout, 0, 1).get_table(PAIRS, 16, 0)
    batch = len(table) - 3
    first, last = iter_eval_batches(heldout, FACTS, ONE[0], batch, 100, tmp_path)
    assert first.example_mask.all() and last.example_mask[:, 0].tolist() == [1, 1, 1] + [0] * (batch - 3)
    assert not last.example_ids[3:].any() and all(len(rows) == batch for rows in jax.tree.leaves(last))
    ids = np.concatenate([first.example_index[:, 0], last.example_index[:3, 0]])
    assert sorted(ids.tolist()) == list(range(len(table))) and ids.tolist() != sorted(ids.tolist())
    assert same(first, assemble_rows(heldout, table[ids[:batch]], 16, FACTS, PAIRS, ids[:batch]))


def test_held_out_batches_are_as_long_as_the_smallest_bucket_that_holds_their_rows(tmp_path):
    heldout, whole = prose(60, seed=1, name="heldout"), Phase(until_step=1, seq_length=44, batch_size=5, format=PAIRS)
    assert {b.input_ids.shape for b in iter_eval_batches(heldout, FACTS, whole, 5, 100, tmp_path)} == {(5, 44)}
    phase = replace(whole, num_length_buckets=8)
    batches = list(iter_eval_batches(heldout, FACTS, phase, 5, 100, tmp_path))
    sizes = [(batch.example_ids > 0).sum(axis=1) for batch in batches]
    longest = np.concatenate(sizes)
    assert (np.diff(longest) <= 0).all() and longest[0] == 44
    eighths = [6, 11, 17, 22, 28, 33, 39, 44]  # 44 n / 8, rounded up
    lengths = [batch.input_ids.shape[1] for batch in batches]
    assert lengths == [min(n for n in eighths if n >= size[0]) for size in sizes]
    assert len(set(lengths)) > 4 and 1 - longest.sum() / (5 * sum(lengths)) < 0.12 < 0.3 < 1 - longest.mean() / 44
    table = ExampleTables(tmp_path, heldout, 0, 1).get_table(PAIRS, 44, 0)
    for batch, length in zip(batches, lengths, strict=True):
        whole, real = (
            assemble_rows(heldout, table[batch.example_index[:, 0]], 44, FACTS, FULL),
            batch.example_mask[:, 0] == 1,
        )
        assert np.array_equal(whole.input_ids[real, :length], batch.input_ids[real])
        assert np.array_equal(whole.token_type_ids[real, :length], batch.token_type_ids[real])


def test_a_limit_leaves_the_same_held_out_examples_whatever_their_lengths(tmp_path):
    heldout = prose(60, seed=1, name="heldout")
    size = len(ExampleTables(tmp_path, heldout, 0, 1).get_table(PAIRS, 16, 0))
    batches = list(iter_eval_batches(heldout, FACTS, ONE[0], 4, 3, tmp_path))
    chosen = sorted(id for batch in batches for id in batch.example_index[:, 0].tolist())
    assert chosen == sorted(permute_indices(np.arange(size), size, 0)[:12].tolist())


def test_held_out_batches_stop_at_their_limit(tmp_path):
    batches = list(iter_eval_batches(prose(8, seed=1, name="heldout"), FACTS, ONE[0], 4, 2, tmp_path))
    assert [batch.example_mask.sum() for batch in batches] == [4, 4]


def test_too_little_held_out_text_is_named(tmp_path):
    with raises_naming(ValueError, "SegmentPairs", "heldout"):
        list(iter_eval_batches(split_of([[[5, 6]]], "heldout"), FACTS, ONE[0], 4, 2, tmp_path))


# Rows of like length

WITHIN = FullSentences(within_document=True)
ALIKE = (
    Phase(until_step=7, seq_length=20, batch_size=6, format=WITHIN, num_length_buckets=4),
    Phase(until_step=40, seq_length=20, batch_size=4, format=WITHIN, num_length_buckets=4),
)


@pytest.fixture
def chunks(monkeypatch):
    """Rows of like length are found among those of three batches: chunks end in the midst of epochs and phases."""
    monkeypatch.setattr(stream, "WINDOW_STEPS", 3)


def longest(batch):
    return int((batch.example_ids > 0).sum(axis=1).max())


def padding(batches):
    return 1 - sum((batch.example_ids > 0).sum() for batch in batches) / sum(
        batch.example_ids.size for batch in batches
    )


def test_rows_of_like_length_are_all_seen_once_an_epoch(opened, chunks):
    made = opened(ALIKE)
    seen = [name for step in range(40) for name in names(made.build_batch(step))]
    (size,) = counts(made, ALIKE[0], 1)
    epochs, rest = divmod(7 * 6 + 33 * 4, size)
    assert epochs > 1 and rest and len(seen) == len(set(seen)) == 7 * 6 + 33 * 4
    for epoch in range(epochs):
        assert sorted(id for at, id in seen if at == epoch) == list(range(size))
    assert {at for at, _ in seen} == set(range(epochs + 1))


def test_rows_of_like_length_are_those_that_the_same_steps_would_read(opened, chunks):
    alike, plain = opened(ALIKE), opened(tuple(replace(phase, num_length_buckets=1) for phase in ALIKE))
    for start, stop in ((0, 3), (3, 6), (6, 7), (7, 10), (37, 40)):  # chunks begin anew with a phase
        read, expected = (
            [n for step in range(start, stop) for n in names(x.build_batch(step))] for x in (alike, plain)
        )
        assert sorted(read) == sorted(expected)


def test_a_batch_is_as_long_as_the_quarter_that_holds_its_longest_row(opened):
    rows = split_of([[[5] * (size - 2)] for size in range(3, 21)] * 3)  # of every size from 3 to 20
    batches = list(opened(ALIKE, split=rows).iter_batches(0, 40))
    lengths = [batch.input_ids.shape[1] for batch in batches]
    assert lengths == [min(n for n in (5, 10, 15, 20) if n >= longest(batch)) for batch in batches]
    assert set(lengths) == {5, 10, 15, 20}
    together = lengths[7:]  # the second phase is one chunk, whose batches are shuffled
    assert together != sorted(together) and together != sorted(together, reverse=True)


@pytest.mark.parametrize("size, length", [(1, 8), (8, 8), (9, 16), (16, 16), (17, 24), (31, 32), (32, 32)])
def test_the_least_part_that_holds_a_row_is_its_length(size, length):
    assert stream.round_up_to_bucket(size, 32, 4) == length


def test_a_batch_of_like_length_depends_on_its_step_alone(opened, chunks, tmp_path):
    first = opened(ALIKE)
    batches = [first.build_batch(step) for step in range(40)]
    for step in (39, 3, 7, 0, 6, 22, 5):
        assert same(opened(ALIKE).build_batch(step), batches[step]) and same(first.build_batch(step), batches[step])
    other = opened(ALIKE, folder=tmp_path / "elsewhere")
    assert all(same(other.build_batch(step), batches[step]) for step in reversed(range(40)))
    assert all(same(x, y) for x, y in zip(opened(ALIKE).iter_batches(5, 12), batches[5:12], strict=True))
    assert not all(same(opened(ALIKE, seed=1).build_batch(step), batches[step]) for step in range(3))


def test_two_processes_share_a_batch_at_one_length(opened, chunks):
    alone, shares = opened(ALIKE), [opened(ALIKE, select_local_rows=share(n, 2)) for n in range(2)]
    shorter = 0
    for step in range(12):
        parts = [each.build_batch(step) for each in shares]
        assert len({part.input_ids.shape for part in parts}) == 1
        assert same(concatenate(parts), alone.build_batch(step))
        shorter += len({stream.round_up_to_bucket(longest(part), 20, 4) for part in parts}) > 1
    assert shorter  # one share alone would have been shorter


def test_a_row_holds_the_same_in_a_batch_of_like_length(opened):
    phase = replace(ONE[0], until_step=30, seq_length=24)
    rows, found = {}, {}
    for held, made in ((rows, opened((phase,))), (found, opened((replace(phase, num_length_buckets=4),)))):
        for batch in made.iter_batches(0, 30):
            held |= {name: jax.tree.map(lambda x, n=n: x[n], batch) for n, name in enumerate(names(batch))}
    assert found.keys() == rows.keys() and {epoch for epoch, _ in found} > {0, 1}
    for name, row in found.items():
        length, size = len(row.input_ids), (row.example_ids > 0).sum()
        for field in TOKEN_FIELDS:
            assert np.array_equal(getattr(row, field), getattr(rows[name], field)[:length])
        assert (rows[name].example_ids > 0).sum() == size
        assert row.labels["sentence_order"] == rows[name].labels["sentence_order"]
        assert row.cls_positions == rows[name].cls_positions and row.example_mask == rows[name].example_mask


def test_rows_of_like_length_leave_less_padding(opened):
    rows = split_of([[[5] * 3], [[6] * 18]] * 12)  # rows of 5 and of 20 tokens
    phase = replace(ALIKE[0], until_step=4)
    apart = opened((phase,), split=rows).iter_batches(0, 4)
    mixed = opened((replace(phase, num_length_buckets=1),), split=rows).iter_batches(0, 4)
    assert (padding(list(mixed)), padding(list(apart))) == (12 * 15 / (24 * 20), 0)


def test_a_phase_without_a_cut_is_refused():
    with raises_naming(ValueError, "phases.num_length_buckets=0 ", "1"):
        replace(ONE[0], num_length_buckets=0)
