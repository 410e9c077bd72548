"""EXAMPLES → BATCHES: `batch(step)`, a pure function of (seed, step).

There is no iterator to save: a run resumes by asking for its next step. `Batch` describes the fields.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np

from encoders.data.batch import Batch
from encoders.data.example_table import add_example_axis, count_row_tokens
from encoders.data.formats import TABLE_VERSION, Format
from encoders.data.mixing import find_corpus_weights, remove_mixing
from encoders.data.store import Split
from encoders.text.tokenization import VocabInfo

SHUFFLE_BLOCK_ROWS = 1 << 14  # rows that are shuffled at a time
BUCKETING_WINDOW_STEPS = 64  # batches among whose rows those of like length are found
EVAL_LENGTH_BUCKETS = 8  # lengths that held-out batches may have, each of which is compiled


@dataclass(frozen=True)
class Phase:
    """Training up to step `until` with `batch` rows of `length` tokens. BERT's 128-then-512 is two of them.

    With `cuts` above 1 a batch holds rows of like length, found among those of `CHUNK` batches, and is only as long as
    the least of that many equal parts of `length` that holds them. Every length is compiled.
    """

    until_step: int
    seq_length: int
    batch_size: int
    format: Format
    num_length_buckets: int = 1

    def __post_init__(self):
        for name, least in (("until_step", 1), ("seq_length", 8), ("batch_size", 1), ("num_length_buckets", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"phases.{name}={getattr(self, name)} must be at least {least}")


def permute_indices(indices: np.ndarray, size: int, key: object) -> np.ndarray:
    """Where a pseudo-random permutation of `size` numbers puts `index`, without a list of them all.

    A four-round Feistel network on the least even number of bits, walked until it lands below `size`.
    """
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

    place = apply_feistel_rounds(np.asarray(indices, np.uint64))
    while (outside := place >= size).any():
        place[outside] = apply_feistel_rounds(place[outside])
    return place.astype(np.int64)


@lru_cache(maxsize=4)
def permute_block(block_index: int, size: int, key: object) -> np.ndarray:
    """Where a permutation puts the `number`-th `BLOCK` of its numbers, kept: all cost little more than a few."""
    return permute_indices(
        np.arange(block_index * SHUFFLE_BLOCK_ROWS, min((block_index + 1) * SHUFFLE_BLOCK_ROWS, size)), size, key
    )


def permute_index_range(indices: np.ndarray, size: int, key: object) -> np.ndarray:
    """`permuted` for numbers that follow one another."""
    first, last = int(indices[0]) // SHUFFLE_BLOCK_ROWS, int(indices[-1]) // SHUFFLE_BLOCK_ROWS
    whole = np.concatenate([permute_block(number, size, key) for number in range(first, last + 1)])
    return whole[indices - first * SHUFFLE_BLOCK_ROWS]


class ExampleTables:
    """The example tables of a split, built when needed, kept on disk, and the next pass built in the background."""

    def __init__(self, folder: Path, split: Split, seed: int, num_distinct_passes: int | None):
        self.folder, self.split, self.seed, self.num_distinct_passes = folder, split, seed, num_distinct_passes
        self.table_futures: dict[tuple, Future] = {}
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="tables")

    def compute_table_key(self, example_format: Format, seq_length: int, pass_index: int) -> tuple:
        """What an epoch's table depends on: the pass, for formats that draw anew in each, and nothing else."""
        parts = any(
            weight % 1 for weight in find_corpus_weights(example_format) or ()
        )  # of a corpus, which all epochs go through
        number = (
            0
            if not example_format.varies_by_pass
            else pass_index
            if self.num_distinct_passes is None or parts
            else pass_index % self.num_distinct_passes
        )
        return example_format, seq_length, number

    def request_table(self, example_format: Format, seq_length: int, pass_index: int) -> Future:
        name = self.compute_table_key(example_format, seq_length, pass_index)
        if name not in self.table_futures:
            for old in list(self.table_futures)[:-3]:
                del self.table_futures[old]
            self.table_futures[name] = self.executor.submit(self.load_or_build_table, *name)
        return self.table_futures[name]

    def get_table(self, example_format: Format, seq_length: int, pass_index: int) -> np.ndarray:
        return self.request_table(example_format, seq_length, pass_index).result()

    def load_or_build_table(self, example_format: Format, seq_length: int, pass_index: int) -> np.ndarray:
        seed = self.seed if example_format.varies_by_pass else 0
        digest = hashlib.sha256(
            repr((TABLE_VERSION, example_format, seq_length, seed, pass_index)).encode()
        ).hexdigest()[:16]
        path = self.folder / f"{self.split.name}-{digest}.npy"
        if not path.exists():
            parts = [
                example_format.build_example_table(self.split, shard, seq_length, seed, pass_index)
                for shard in self.split.split_shards()
            ]
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".partial-{secrets.token_hex(4)}")
            with open(partial, "wb") as file:
                np.save(file, np.concatenate(parts))
            partial.rename(path)
        table = np.asarray(np.load(path, mmap_mode="r"))
        if not len(table):
            raise ValueError(
                f"{example_format} makes no example of the {self.split.name} split; it has too little text for it"
            )
        return table


@lru_cache(maxsize=4)
def cached_arange(count: int, dtype: type) -> np.ndarray:
    """0, 1, 2, ..., kept: making it takes longer than adding it."""
    return np.arange(count, dtype=dtype)


def assemble_rows(split: Split, table: np.ndarray, seq_length: int, vocab: VocabInfo, example_format: Format) -> Batch:
    """Return rows of an example table as a batch in which `example_index` and `pass_index` are 0.

    A row is runs of tokens: `[CLS] A [SEP]` and `B [SEP]` of each example, then padding. What is one number for a whole
    run is repeated over its tokens. Where two separators stand between A and B (RoBERTa), the second begins B's run.
    """
    spans, more = add_example_axis(table), example_format.num_separators - 1
    a, a_end, b, b_end = (spans[name] for name in ("a_start", "a_end", "b_start", "b_end"))
    size_a, size_b, slots = a_end - a, b_end - b, spans.shape[1]
    valid, pair = size_a > 0, size_b > 0
    runs = np.zeros((len(spans), 2 * slots + 1), np.int64)
    first, last, padding = np.s_[:, :-1:2], np.s_[:, 1::2], np.s_[:, -1]
    runs[first], runs[last] = (size_a + 2) * valid, (size_b + 1 + more) * pair
    runs[padding] = seq_length - runs.sum(axis=1)
    cells = runs.cumsum().reshape(runs.shape) - runs  # where each run starts, counted over all rows
    repeat_over_runs = lambda values, dtype: np.repeat(values.astype(dtype).ravel(), runs.ravel())

    source = np.zeros_like(runs)
    source[first], source[last] = a - 1, b - more
    where = repeat_over_runs(source - cells, np.int64)
    where += cached_arange(len(where), np.int64)
    tokens = np.asarray(split.tokens).take(where, mode="clip").astype(np.int32)  # special tokens and padding follow
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
    np.subtract(cached_arange(len(where), np.int32), positions, out=positions)
    outside = np.flatnonzero(example == 0)
    tokens[outside], positions[outside] = vocab.pad_id, 0
    if (largest := tokens.max(initial=0)) >= vocab.vocab_size:  # JAX would take another one for it
        raise ValueError(
            f"{split.folder or split.name} has the token {largest}, and the vocabulary ends at {vocab.vocab_size - 1}; "
            "`inspect STORE --verify` names the part that is damaged"
        )
    shape = len(spans), seq_length
    row_starts = seq_length * np.arange(len(spans))[:, None]
    cls_positions = ((cells[first] - row_starts) * valid).astype(np.int32)
    return Batch(
        input_ids=tokens.reshape(shape),
        example_ids=example.reshape(shape),
        token_type_ids=repeat_over_runs(segments, np.int32).reshape(shape),
        position_ids=positions.reshape(shape),
        cls_positions=cls_positions,
        example_index=np.zeros_like(cls_positions),
        pass_index=np.zeros_like(cls_positions),
        example_mask=valid.astype(np.int32),
        labels=example_format.build_label_fields(split, spans, cls_positions, seq_length),
    )


def add_example_ids(batch: Batch, row_ids: np.ndarray, pass_indices: np.ndarray) -> Batch:
    """Return `batch` with the place of its rows in the example table, `row_ids [b]`, and their pass over the data."""
    slots = batch.example_mask.shape[1]
    example_index = row_ids[:, None] * slots + np.arange(slots)
    pass_index = np.repeat(pass_indices[:, None], slots, axis=1)
    return batch.replace(example_index=example_index.astype(np.int32), pass_index=pass_index.astype(np.int32))


class BatchStream:
    """The batches of a run; of several processes each makes the rows that `held(batch)` names, by default all."""

    def __init__(
        self,
        split: Split,
        vocab: VocabInfo,
        phases: tuple[Phase, ...],
        seed: int,
        num_distinct_passes: int | None,
        folder: Path,
        select_local_rows: Callable[[int], np.ndarray] = np.arange,
    ):
        self.split, self.vocab, self.phases, self.seed = split, vocab, phases, seed
        self.select_local_rows = select_local_rows
        self.tables = ExampleTables(folder, split, seed, num_distinct_passes)
        np.empty(1 << 24, np.uint8)  # freed at once: glibc then keeps the memory of batches rather than give it back
        self.bucketing_window: tuple = (
            None,
        )  # rows of like length: the step they are from, and what `alike` makes of them
        self.cumulative_examples: dict[
            tuple, list[int]
        ] = {}  # example counts of the epochs so far, summed, by format and length

    def find_phase(self, step: int) -> Phase:
        """The phase that `step` (from 0) falls in."""
        return next(phase for phase in self.phases if step < phase.until_step)

    def count_consumed_examples(self, step: int) -> int:
        """Examples of this step's format and length that earlier steps have read."""
        here, start, total = self.find_phase(step), 0, 0
        for phase in self.phases:
            stop = min(phase.until_step, step)
            if (phase.format, phase.seq_length) == (here.format, here.seq_length):
                total += max(stop - start, 0) * phase.batch_size
            start = phase.until_step
        return total

    def locate_examples(self, phase: Phase, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and row (before the shuffle) of the index-th examples of a phase's format and length."""
        edges = self.cumulative_examples.setdefault((phase.format, phase.seq_length), [0])
        while edges[-1] <= indices[-1]:
            edges.append(edges[-1] + len(self.tables.get_table(phase.format, phase.seq_length, len(edges) - 1)))
        epoch = np.searchsorted(edges, indices, side="right") - 1
        return epoch, indices - np.asarray(edges)[epoch]

    def draw_rows(self, phase: Phase, first: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`count` rows of the tables from the `first` on in the order of training, their places and their epochs."""
        epochs, rows = self.locate_examples(phase, np.arange(first, first + count))
        parts = []
        for epoch in range(epochs[0], epochs[-1] + 1):
            table = self.tables.get_table(phase.format, phase.seq_length, epoch)
            ids = permute_index_range(rows[epochs == epoch], len(table), (self.seed, epoch))
            parts.append((table.take(ids, axis=0), ids, np.full(len(ids), epoch)))
        if phase.format.varies_by_pass:
            self.tables.request_table(phase.format, phase.seq_length, int(epochs[-1]) + 1)
        return tuple(map(np.concatenate, zip(*parts, strict=True)))

    def draw_similar_length_rows(self, step: int) -> tuple[list[np.ndarray], int]:
        """What `drawn` gives for a batch of rows of like length, and that length.

        The rows of `CHUNK` steps are sorted by size, cut into batches, and the batches shuffled.
        """
        phase = self.find_phase(step)
        begun = max((other.until_step for other in self.phases if other.until_step <= step), default=0)
        at, place = divmod(step - begun, BUCKETING_WINDOW_STEPS)
        start = begun + at * BUCKETING_WINDOW_STEPS
        if self.bucketing_window[0] != start:
            count = min(BUCKETING_WINDOW_STEPS, phase.until_step - start)
            rows = self.draw_rows(phase, self.count_consumed_examples(start), count * phase.batch_size)
            sizes = count_row_tokens(rows[0], phase.format.num_separators)
            batches = np.argsort(sizes, kind="stable").reshape(count, -1)
            self.bucketing_window = (
                start,
                rows,
                sizes,
                batches[permute_indices(np.arange(count), count, (self.seed, start))],
            )
        _, rows, sizes, batches = self.bucketing_window
        mine = batches[place]
        return [column.take(mine, axis=0) for column in rows], round_up_to_bucket(
            int(sizes[mine].max()), phase.seq_length, phase.num_length_buckets
        )

    def build_batch(self, step: int) -> Batch:
        """The rows of `step` that this process holds."""
        phase = self.find_phase(step)
        if phase.num_length_buckets == 1:
            whole, length = (
                self.draw_rows(phase, self.count_consumed_examples(step), phase.batch_size),
                phase.seq_length,
            )
        else:
            whole, length = self.draw_similar_length_rows(step)
        mine = self.select_local_rows(phase.batch_size)
        table, ids, epochs = (column.take(mine, axis=0) for column in whole)
        return add_example_ids(assemble_rows(self.split, table, length, self.vocab, phase.format), ids, epochs)

    def iter_batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps `start` to `stop`, each made by a thread while the one before is used."""
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as worker:
            ahead = [worker.submit(self.build_batch, step) for step in range(start, min(start + 2, stop))]
            for step in range(start, stop):
                if step + 2 < stop:
                    ahead.append(worker.submit(self.build_batch, step + 2))
                yield ahead.pop(0).result()


def round_up_to_bucket(num_tokens: int, seq_length: int, num_length_buckets: int) -> int:
    """The least of `cuts` equal parts of `length` that holds `size` tokens."""
    return next(
        part
        for k in range(1, num_length_buckets + 1)
        if (part := -(-seq_length * k // num_length_buckets)) >= num_tokens
    )


def iter_eval_batches(
    split: Split, vocab: VocabInfo, phase: Phase, batch_size: int, max_batches: int, folder: Path
) -> Iterator[Batch]:
    """Up to `limit` batches of a held-out split, the same for every run: seed, pass and order are fixed."""
    phase = replace(phase, format=remove_mixing(phase.format))
    table = load_eval_table(split, phase, folder)
    ids = permute_indices(np.arange(len(table)), len(table), 0)[: batch_size * max_batches]
    yield from iter_batches_longest_first(split, vocab, table, ids, phase, batch_size, EVAL_LENGTH_BUCKETS)


def iter_batches_longest_first(
    split: Split,
    vocab: VocabInfo,
    table: np.ndarray,
    row_ids: np.ndarray,
    phase: Phase,
    batch_size: int,
    num_length_buckets: int,
) -> Iterator[Batch]:
    """The rows `ids` of a table, the longest ones first, in batches.

    A batch is as long as the least part of `phase.seq_length` in `num_length_buckets` equal ones that holds its rows.
    The last batch is filled up with rows that are all padding and count nowhere.
    """
    sizes = count_row_tokens(table.take(row_ids, axis=0), phase.format.num_separators)
    order = np.argsort(-sizes, kind="stable")
    for start in range(0, len(row_ids), batch_size):
        some = order[start : start + batch_size]
        length = round_up_to_bucket(int(sizes[some[0]]), phase.seq_length, num_length_buckets)
        rows = assemble_rows(split, table.take(row_ids[some], axis=0), length, vocab, phase.format)
        rows = add_example_ids(rows, row_ids[some], np.zeros(len(some)))
        missing = batch_size - len(some)
        pad_rows = lambda x, missing=missing: np.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1)))
        yield jax.tree.map(pad_rows, rows) if missing else rows


def load_eval_table(split: Split, phase: Phase, folder: Path) -> np.ndarray:
    """The example table whose rows the `id`s of held-out batches name."""
    return ExampleTables(folder, split, 0, 1).get_table(remove_mixing(phase.format), phase.seq_length, 0)
