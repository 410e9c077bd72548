"""EXAMPLES → BATCHES: `batch(step)`, a pure function of (seed, step).

A run resumes by asking for its next step, without the state of an iterator. `Batch` describes the fields.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np

from encoders.data.batch import Batch
from encoders.data.distinct_batches import LEFT_OUT, separate_equal_texts
from encoders.data.example_table import (
    Table,
    add_example_axis,
    build_empty_table,
    count_row_tokens,
    measure_segments,
)
from encoders.data.formats import TABLE_VERSION, Format
from encoders.data.mixing import find_corpus_weights, remove_mixing
from encoders.data.store import Split, Store, save_array
from encoders.text.tokenization import VocabInfo
from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields
from encoders.utils.files import hash_named_file, write_file_atomically

SHUFFLE_BLOCK_ROWS = 1 << 14  # rows whose permuted indices are computed at a time
WINDOW_STEPS = 64  # batches whose rows are arranged together


@dataclass(frozen=True)
class BatchRamp:
    """Growth of a batch over the first `num_steps` updates of a phase: from `start` rows in steps of `unit` rows.

    Each size is held for the same number of updates, to within one (ModernBERT, https://arxiv.org/abs/2412.13663,
    "Batch Size Schedule", in units of one row). Every size is compiled, so a large `unit` saves time.
    """

    start: int
    unit: int
    num_steps: int

    def __post_init__(self):
        check_fields(self, "phases.batch_ramp.", [("start unit num_steps", lambda count: count >= 1, "at least 1")])


@dataclass(frozen=True)
class Phase:
    """Training up to `until_step` with `batch_size` rows of `seq_length` tokens. BERT's 128-then-512 is two phases.

    With `num_length_buckets` above 1 a batch, of training or held out, holds rows of similar length. It is only as
    long as the smallest bucket, a multiple of `seq_length / num_length_buckets`, that holds them. Every length is
    compiled.

    `mask_rate` replaces that of the objective in training; evaluation keeps the objective's. With `batch_ramp` the
    batch grows to `batch_size`.
    """

    until_step: int
    seq_length: int
    batch_size: int
    format: Format
    num_length_buckets: int = 1
    mask_rate: float | None = None
    batch_ramp: BatchRamp | None = None

    def __post_init__(self):
        for name, least in (("until_step", 1), ("seq_length", 8), ("batch_size", 1), ("num_length_buckets", 1)):
            if getattr(self, name) < least:
                raise UserError(f"phases.{name}={getattr(self, name)} must be at least {least}")
        is_rate = lambda rate: rate is None or 0 < rate < 1
        check_fields(self, "phases.", [("mask_rate", is_rate, "above 0 and below 1, or None")])

    @property
    def ramp_sizes(self) -> range:
        """The batch sizes before `batch_size`."""
        return range(self.batch_ramp.start, self.batch_size, self.batch_ramp.unit) if self.batch_ramp else range(0)


def find_phase(phases: Sequence[Phase], step: int) -> Phase:
    """Return the phase of `step`, from 0."""
    return next(phase for phase in phases if step < phase.until_step)


def find_ramp_problem(phase: Phase, first_step: int) -> str | None:
    """Return why a phase that begins at `first_step` cannot have its batch ramp, if it cannot."""
    ramp, num_sizes, num_steps = phase.batch_ramp, len(phase.ramp_sizes), phase.until_step - first_step
    if ramp is None or (num_sizes and num_sizes <= ramp.num_steps <= num_steps):
        return None
    if not num_sizes:
        return f"phases.batch_ramp.start={ramp.start} must be below phases.batch_size={phase.batch_size}"
    limits = f"at least its {num_sizes} batch sizes and at most the {num_steps} steps of its phase"
    return f"phases.batch_ramp.num_steps={ramp.num_steps} must be {limits}"


def expand_batch_ramps(phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """Return phases of one batch size each, which have the same batches."""
    expanded, first_step = [], 0
    for phase in phases:
        for i, size in enumerate(sizes := phase.ramp_sizes, start=1):
            until_step = first_step + phase.batch_ramp.num_steps * i // len(sizes)
            expanded.append(replace(phase, until_step=until_step, batch_size=size, batch_ramp=None))
        expanded.append(replace(phase, batch_ramp=None))
        first_step = phase.until_step
    return tuple(expanded)


def permute_indices(indices: np.ndarray, size: int, key: object) -> np.ndarray:
    """Return the images of `indices` under a pseudo-random permutation of `size` numbers, without a list of all. A
    four-round Feistel network on the least even number of bits is repeated until its output is below `size`."""
    half = max(((size - 1).bit_length() + 1) // 2, 1)
    mask = np.uint64((1 << half) - 1)
    keys = np.frombuffer(hashlib.blake2b(repr((key, size)).encode(), digest_size=32).digest(), np.uint64)

    def apply_feistel_rounds(x: np.ndarray) -> np.ndarray:
        left, right = x >> np.uint64(half), x & mask
        for key in keys:
            mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        return (left << np.uint64(half)) | right

    permuted = apply_feistel_rounds(np.asarray(indices, np.uint64))
    while (outside := permuted >= size).any():
        permuted[outside] = apply_feistel_rounds(permuted[outside])
    return permuted.astype(np.int64)


@lru_cache(maxsize=4)
def permute_block(block_index: int, size: int, key: object) -> np.ndarray:
    start = block_index * SHUFFLE_BLOCK_ROWS
    return permute_indices(np.arange(start, min(start + SHUFFLE_BLOCK_ROWS, size)), size, key)


def permute_index_range(indices: np.ndarray, size: int, key: object) -> np.ndarray:
    """Return `permute_indices` of ascending indices, computed block by block."""
    first, last = int(indices[0]) // SHUFFLE_BLOCK_ROWS, int(indices[-1]) // SHUFFLE_BLOCK_ROWS
    permuted = np.concatenate([permute_block(block_index, size, key) for block_index in range(first, last + 1)])
    return permuted[indices - first * SHUFFLE_BLOCK_ROWS]


class ExampleTables:
    """Example tables of a split, cached on disk; the table of the next pass is built in the background."""

    def __init__(self, folder: Path, split: Split, seed: int, num_distinct_passes: int | None):
        self.folder, self.split, self.seed, self.num_distinct_passes = folder, split, seed, num_distinct_passes
        self.table_futures: dict[tuple, Future] = {}
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="tables")

    def request_table(self, example_format: Format, seq_length: int, pass_index: int) -> Future:
        """Return the future of the table of a pass, which equals that of other passes where nothing varies."""
        # A fractional weight takes another part of its corpus in each pass, so that no table is repeated.
        has_fractional_weights = any(weight % 1 for weight in find_corpus_weights(example_format) or ())
        if not example_format.varies_by_pass:
            pass_index = 0
        elif self.num_distinct_passes is not None and not has_fractional_weights:
            pass_index %= self.num_distinct_passes
        key = example_format, seq_length, pass_index
        if key not in self.table_futures:
            for old_key in list(self.table_futures)[:-3]:
                del self.table_futures[old_key]
            self.table_futures[key] = self.executor.submit(self.load_or_build_table, *key)
        return self.table_futures[key]

    def get_table(self, example_format: Format, seq_length: int, pass_index: int) -> np.ndarray:
        return self.request_table(example_format, seq_length, pass_index).result()

    def load_or_build_table(self, example_format: Format, seq_length: int, pass_index: int) -> np.ndarray:
        seed = self.seed if example_format.varies_by_pass else 0
        content = repr((TABLE_VERSION, example_format, seq_length, seed, pass_index))
        digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        path = self.folder / f"{self.split.name}-{digest}.npy"
        digest_path = path.with_suffix(".sha256")
        if not (path.exists() and digest_path.exists() and digest_path.read_bytes() == hash_named_file(path)):
            build_table, shards = example_format.build_example_table, self.split.split_shards()
            tables = [build_table(self.split, shard, seq_length, seed, pass_index) for shard in shards]
            # An empty table does not say how many examples a row of the others has.
            save_array(path, np.concatenate([table for table in tables if len(table)] or tables[:1]))
            write_file_atomically(digest_path, hash_named_file(path))
        table = np.asarray(np.load(path, mmap_mode="r"))
        if not len(table):
            raise UserError(
                f"{example_format} makes no example of the {self.split.name} split, which has "
                f"{len(self.split.tokens):,} tokens in {self.split.num_documents:,} documents; it needs more text"
            )
        return table


cached_arange = lru_cache(maxsize=4)(np.arange)  # a new range for each batch makes `assemble_rows` 20 % slower


def assemble_rows(
    split: Split, table: Table, seq_length: int, vocab: VocabInfo, example_format: Format, row_ids=None, pass_indices=0
) -> Batch:
    """Return rows of an example table as a batch; `row_ids` and `pass_indices`, `[rows]`, number its examples. A row is
    runs of tokens: `[CLS] A [SEP]` and `B [SEP]` of each example, then padding. A value that is constant over a run is
    repeated over its tokens. The second of two separators (RoBERTa) is the first token of B's run."""
    spans, more = add_example_axis(table), example_format.num_separators - 1
    row_ids = np.arange(len(spans)) if row_ids is None else row_ids
    size_a, size_b = measure_segments(spans)
    slots, valid, pair = spans.shape[1], size_a > 0, size_b > 0
    runs = np.zeros((len(spans), 2 * slots + 1), np.int64)
    first, last, padding = np.s_[:, :-1:2], np.s_[:, 1::2], np.s_[:, -1]
    runs[first], runs[last] = (size_a + 2) * valid, (size_b + 1 + more) * pair
    runs[padding] = seq_length - runs.sum(axis=1)
    cells = runs.cumsum().reshape(runs.shape) - runs  # start of each run, counted over all rows
    repeat_over_runs = lambda values, dtype: np.repeat(values.astype(dtype).ravel(), runs.ravel())

    source = np.zeros_like(runs)
    source[first], source[last] = spans["a_start"] - 1, spans["b_start"] - more
    sources = repeat_over_runs(source - cells, np.int64)
    sources += cached_arange(len(sources), dtype=np.int64)
    tokens = np.asarray(split.tokens).take(sources, mode="clip").astype(np.int32)  # special tokens and padding follow
    tokens[cells[first][valid]] = vocab.cls_id
    tokens[(cells[first] + size_a + 1)[valid]] = vocab.sep_id
    tokens[(cells[last] + size_b + more)[pair]] = vocab.sep_id
    if more:
        tokens[cells[last][pair]] = vocab.sep_id

    numbers, segments, starts = np.zeros((3, *runs.shape), np.int32)
    numbers[first] = numbers[last] = np.arange(1, slots + 1)
    segments[last] = 1
    starts[first] = starts[last] = cells[first]
    example, positions = repeat_over_runs(numbers, np.int32), repeat_over_runs(starts, np.int32)
    np.subtract(cached_arange(len(sources), dtype=np.int32), positions, out=positions)
    padding_tokens = np.flatnonzero(example == 0)
    tokens[padding_tokens], positions[padding_tokens] = vocab.pad_id, 0
    if (largest := tokens.max(initial=0)) >= vocab.vocab_size:  # JAX would clip it silently
        raise UserError(
            f"{split.folder or split.name} has the token id {largest}; ids are below {vocab.vocab_size}: "
            "`inspect STORE --verify` names the damaged units"
        )
    shape = len(spans), seq_length
    cls_positions = ((cells[first] - seq_length * np.arange(len(spans))[:, None]) * valid).astype(np.int32)
    return Batch(
        input_ids=tokens.reshape(shape),
        example_ids=example.reshape(shape),
        token_type_ids=repeat_over_runs(segments, np.int32).reshape(shape),
        position_ids=positions.reshape(shape),
        cls_positions=cls_positions,
        example_index=(row_ids[:, None] * slots + np.arange(slots)).astype(np.int32),
        pass_index=(np.zeros_like(cls_positions) + np.reshape(pass_indices, (-1, 1))).astype(np.int32),
        example_mask=valid.astype(np.int32),
        labels=example_format.build_label_fields(split, spans, cls_positions, seq_length),
    )


@dataclass(eq=False)
class BatchStream:
    """Batches of a run. `select_local_rows(batch_size)` names the rows that this process builds, by default all."""

    split: Split
    vocab: VocabInfo
    phases: tuple[Phase, ...]
    seed: int
    num_distinct_passes: int | None
    folder: Path
    select_local_rows: Callable[[int], np.ndarray] = np.arange

    @classmethod
    def from_store(
        cls,
        store: Store,
        phases: tuple[Phase, ...],
        seed: int,
        num_distinct_passes: int | None,
        select_local_rows: Callable[[int], np.ndarray] = np.arange,
    ) -> BatchStream:
        """Return the training batches of a store, with its vocabulary and its tables."""
        split, folder = store.train_split, store.path / "tables"
        return cls(split, store.vocab, phases, seed, num_distinct_passes, folder, select_local_rows)

    def __post_init__(self):
        self.phases = expand_batch_ramps(self.phases)
        self.tables = ExampleTables(self.folder, self.split, self.seed, self.num_distinct_passes)
        # The first step, and for the steps from it on: rows, their lengths, rows of each batch `[steps, batch_size]`.
        self.window: tuple[int, list[np.ndarray], np.ndarray, np.ndarray] | None = None
        self.cumulative_rows: dict[tuple, list[int]] = {}  # of all passes up to each one, by format and length

    def find_phase(self, step: int) -> Phase:
        return find_phase(self.phases, step)

    def count_consumed_rows(self, step: int) -> int:
        """Return how many rows of this step's format and length earlier steps have read."""
        current, starts = self.find_phase(step), [0, *(phase.until_step for phase in self.phases)]
        return sum(
            max(min(phase.until_step, step) - start, 0) * phase.batch_size
            for start, phase in zip(starts, self.phases, strict=False)
            if (phase.format, phase.seq_length) == (current.format, current.seq_length)
        )

    def draw_rows(self, phase: Phase, first: int, count: int) -> list[np.ndarray]:
        """Return `count` rows from the `first` on in the order of training, their indices in the table, and passes."""
        edges = self.cumulative_rows.setdefault((phase.format, phase.seq_length), [0])
        while edges[-1] < first + count:
            edges.append(edges[-1] + len(self.tables.get_table(phase.format, phase.seq_length, len(edges) - 1)))
        indices, drawn = np.arange(first, first + count), []
        pass_indices = np.searchsorted(edges, indices, side="right") - 1
        for pass_index in range(pass_indices[0], pass_indices[-1] + 1):
            table = self.tables.get_table(phase.format, phase.seq_length, pass_index)
            indices_in_pass = indices[pass_indices == pass_index] - edges[pass_index]
            ids = permute_index_range(indices_in_pass, len(table), (self.seed, pass_index))
            drawn.append((table.take(ids, axis=0), ids, np.full(len(ids), pass_index)))
        if phase.format.varies_by_pass:
            self.tables.request_table(phase.format, phase.seq_length, int(pass_indices[-1]) + 1)
        return [np.concatenate(columns) for columns in zip(*drawn, strict=True)]

    def draw_arranged_rows(self, step: int) -> tuple[list[np.ndarray], int]:
        """Return rows, and the length of their batch. The rows of `WINDOW_STEPS` steps are arranged together. With
        several length buckets they are sorted by length and divided into batches, which are shuffled. Rows that are
        compared are not: batches of one length would teach to compare texts of one length alone. Of these, rows of an
        equal text are separated; one that no batch of the window can take is left empty."""
        phase = self.find_phase(step)
        phase_start = max((other.until_step for other in self.phases if other.until_step <= step), default=0)
        step_in_window = (step - phase_start) % WINDOW_STEPS
        start = step - step_in_window
        if self.window is None or self.window[0] != start:
            count = min(WINDOW_STEPS, phase.until_step - start)
            rows = self.draw_rows(phase, self.count_consumed_rows(start), count * phase.batch_size)
            lengths = count_row_tokens(rows[0], phase.format.num_separators)
            batches = np.arange(len(lengths)).reshape(count, -1)
            if phase.format.separates_equal_texts:
                batches = separate_equal_texts(batches, rows[0], phase.format.num_texts)
            else:
                order = permute_indices(np.arange(count), count, (self.seed, start))
                batches = np.argsort(lengths, kind="stable").reshape(count, -1)[order]
            self.window = start, rows, lengths, batches
        _, rows, lengths, batches = self.window
        selected = batches[step_in_window]
        length = round_up_to_bucket(int(lengths[selected].max()), phase.seq_length, phase.num_length_buckets)
        table, *columns = (column.take(selected, axis=0) for column in rows)
        table[selected == LEFT_OUT] = build_empty_table()
        return [table, *columns], length

    def build_batch(self, step: int) -> Batch:
        """Return the rows of `step`, from 0, that this process holds."""
        phase = self.find_phase(step)
        if phase.num_length_buckets > 1 or phase.format.separates_equal_texts:
            rows, length = self.draw_arranged_rows(step)
        else:
            rows, length = self.draw_rows(phase, self.count_consumed_rows(step), phase.batch_size), phase.seq_length
        local_rows = self.select_local_rows(phase.batch_size)
        table, row_ids, pass_indices = (column.take(local_rows, axis=0) for column in rows)
        return assemble_rows(self.split, table, length, self.vocab, phase.format, row_ids, pass_indices)

    def iter_batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of steps `start` to `stop`; a thread builds two ahead."""
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as worker:
            ahead = []
            for step in range(start, stop + 2):
                if step < stop:
                    ahead.append(worker.submit(self.build_batch, step))
                if start + 2 <= step:
                    yield ahead.pop(0).result()


def round_up_to_bucket(num_tokens: int, seq_length: int, num_length_buckets: int) -> int:
    """Return the smallest of `num_length_buckets` evenly spaced lengths that holds `num_tokens`."""
    lengths = (-(-seq_length * k // num_length_buckets) for k in range(1, num_length_buckets + 1))
    return next(length for length in lengths if length >= num_tokens)


def iter_eval_batches(
    split: Split, vocab: VocabInfo, phase: Phase, batch_size: int, max_batches: int, folder: Path
) -> Iterator[Batch]:
    """Yield up to `max_batches` batches of a held-out split, the same for every run: seed, pass and order are fixed."""
    phase = replace(phase, format=remove_mixing(phase.format))
    table = load_eval_table(split, phase, folder)
    ids = permute_indices(np.arange(len(table)), len(table), 0)[: batch_size * max_batches]
    yield from iter_batches_longest_first(split, vocab, table, ids, phase, batch_size, phase.num_length_buckets)


def iter_batches_longest_first(
    split: Split, vocab: VocabInfo, table: Table, row_ids: np.ndarray, phase: Phase, batch_size: int, num_buckets: int
) -> Iterator[Batch]:
    """Yield batches of the rows `row_ids` of a table, the longest rows first. A batch has the smallest of `num_buckets`
    lengths that holds its rows. Padding fills the last batch."""
    sizes = count_row_tokens(table.take(row_ids, axis=0), phase.format.num_separators)
    order = np.argsort(-sizes, kind="stable")
    for start in range(0, len(row_ids), batch_size):
        selected = row_ids[order[start : start + batch_size]]
        length = round_up_to_bucket(int(sizes[order[start]]), phase.seq_length, num_buckets)
        rows = assemble_rows(split, table.take(selected, axis=0), length, vocab, phase.format, selected)
        missing = batch_size - len(selected)
        pad_rows = lambda x, missing=missing: np.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1)))
        yield jax.tree.map(pad_rows, rows) if missing else rows


def load_eval_table(split: Split, phase: Phase, folder: Path) -> np.ndarray:
    """Return the example table that the `example_index` of held-out batches refers to."""
    return ExampleTables(folder, split, 0, 1).get_table(remove_mixing(phase.format), phase.seq_length, 0)
