"""EXAMPLES → BATCHES: `batch(step)`, a pure function of (seed, step).

There is no iterator to save: resuming is asking for the next step. A batch has, for rows of length l with at most s
examples each, which is 1 unless the format packs several:

    tokens, example, segments, positions   int32 [b l]   example: 0 on padding, n on the n-th example of the row
    start, id, epoch, valid                int32 [b s]   where [CLS] stands, the example's name, its pass, is it real
    next_sentence, label, ...              [b s ...]     the labels of the format, where it has some
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from encoders.data.formats import A_END, B_END, VERSION, A, B, Format, examples, row_sizes
from encoders.data.mixing import unmixed, weights_of
from encoders.data.store import Split
from encoders.text.tokenization import Facts

Rows = dict[str, np.ndarray]
BLOCK = 1 << 14  # rows that are shuffled at a time
CHUNK = 64  # batches among whose rows those of like length are found
CUTS = 8  # lengths that held-out batches may have, each of which is compiled


@dataclass(frozen=True)
class Phase:
    """Training up to step `until` with `batch` rows of `length` tokens. BERT's 128-then-512 is two of them.

    With `cuts` above 1 a batch holds rows of like length, found among those of `CHUNK` batches, and is only as long as
    the least of that many equal parts of `length` that holds them. Every length is compiled.
    """

    until: int
    length: int
    batch: int
    format: Format
    cuts: int = 1

    def __post_init__(self):
        for name, least in (("until", 1), ("length", 8), ("batch", 1), ("cuts", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"phases.{name}={getattr(self, name)} must be at least {least}")


def permuted(index: np.ndarray, size: int, key: object) -> np.ndarray:
    """Where a pseudo-random permutation of `size` numbers puts `index`, without a list of them all.

    A four-round Feistel network on the least even number of bits, walked until it lands below `size`.
    """
    half = max(((size - 1).bit_length() + 1) // 2, 1)
    mask = np.uint64((1 << half) - 1)
    keys = np.frombuffer(hashlib.blake2b(repr((key, size)).encode(), digest_size=32).digest(), np.uint64)

    def shuffle(x: np.ndarray) -> np.ndarray:
        left, right = x >> np.uint64(half), x & mask
        for key in keys:
            mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        return (left << np.uint64(half)) | right

    place = shuffle(np.asarray(index, np.uint64))
    while (outside := place >= size).any():
        place[outside] = shuffle(place[outside])
    return place.astype(np.int64)


@lru_cache(maxsize=4)
def block(number: int, size: int, key: object) -> np.ndarray:
    """Where a permutation puts the `number`-th `BLOCK` of its numbers, kept: all cost little more than a few."""
    return permuted(np.arange(number * BLOCK, min((number + 1) * BLOCK, size)), size, key)


def shuffled(index: np.ndarray, size: int, key: object) -> np.ndarray:
    """`permuted` for numbers that follow one another."""
    first, last = int(index[0]) // BLOCK, int(index[-1]) // BLOCK
    whole = np.concatenate([block(number, size, key) for number in range(first, last + 1)])
    return whole[index - first * BLOCK]


class Tables:
    """The example tables of a split, built when needed, kept on disk, and the next pass built in the background."""

    def __init__(self, folder: Path, split: Split, seed: int, copies: int | None):
        self.folder, self.split, self.seed, self.copies = folder, split, seed, copies
        self.open: dict[tuple, Future] = {}
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="tables")

    def name(self, form: Format, length: int, epoch: int) -> tuple:
        """What an epoch's table depends on: the pass, for formats that draw anew in each, and nothing else."""
        parts = any(weight % 1 for weight in weights_of(form) or ())  # of a corpus, which all epochs go through
        number = 0 if not form.random else epoch if self.copies is None or parts else epoch % self.copies
        return form, length, number

    def ask(self, form: Format, length: int, epoch: int) -> Future:
        name = self.name(form, length, epoch)
        if name not in self.open:
            for old in list(self.open)[:-3]:
                del self.open[old]
            self.open[name] = self.worker.submit(self.make, *name)
        return self.open[name]

    def get(self, form: Format, length: int, epoch: int) -> np.ndarray:
        return self.ask(form, length, epoch).result()

    def make(self, form: Format, length: int, number: int) -> np.ndarray:
        seed = self.seed if form.random else 0
        digest = hashlib.sha256(repr((VERSION, form, length, seed, number)).encode()).hexdigest()[:16]
        path = self.folder / f"{self.split.name}-{digest}.npy"
        if not path.exists():
            parts = [form.table(self.split, shard, length, seed, number) for shard in self.split.shards()]
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".partial-{secrets.token_hex(4)}")
            with open(partial, "wb") as file:
                np.save(file, np.concatenate(parts))
            partial.rename(path)
        table = np.asarray(np.load(path, mmap_mode="r"))
        if not len(table):
            raise ValueError(f"{form} makes no example of the {self.split.name} split; it has too little text for it")
        return table


@lru_cache(maxsize=4)
def counting(count: int, dtype: type) -> np.ndarray:
    """0, 1, 2, ..., kept: making it takes longer than adding it."""
    return np.arange(count, dtype=dtype)


def assemble(split: Split, table: np.ndarray, length: int, facts: Facts, form: Format) -> Rows:
    """Rows of a table as batch fields; only `id` and `epoch` are left to the caller.

    A row is runs of tokens: `[CLS] A [SEP]` and `B [SEP]` of each example, then padding. What is one number for a whole
    run is repeated over its tokens. Where two separators stand between A and B (RoBERTa), the second begins B's run.
    """
    spans, more = examples(table), form.between - 1
    a, a_end, b, b_end = (spans[..., column] for column in (A, A_END, B, B_END))
    size_a, size_b, slots = a_end - a, b_end - b, spans.shape[1]
    valid, pair = size_a > 0, size_b > 0
    runs = np.zeros((len(spans), 2 * slots + 1), np.int64)
    first, last, padding = np.s_[:, :-1:2], np.s_[:, 1::2], np.s_[:, -1]
    runs[first], runs[last] = (size_a + 2) * valid, (size_b + 1 + more) * pair
    runs[padding] = length - runs.sum(axis=1)
    cells = runs.cumsum().reshape(runs.shape) - runs  # where each run starts, counted over all rows
    over = lambda values, dtype: np.repeat(values.astype(dtype).ravel(), runs.ravel())

    source = np.zeros_like(runs)
    source[first], source[last] = a - 1, b - more
    where = over(source - cells, np.int64)
    where += counting(len(where), np.int64)
    tokens = np.asarray(split.tokens).take(where, mode="clip").astype(np.int32)  # special tokens and padding follow
    tokens[cells[first][valid]] = facts.cls
    tokens[(cells[first] + size_a + 1)[valid]] = facts.sep
    tokens[(cells[last] + size_b + more)[pair]] = facts.sep
    if more:
        tokens[cells[last][pair]] = facts.sep

    numbers, segments, starts = np.zeros((3, *runs.shape), np.int32)
    numbers[first] = numbers[last] = np.arange(1, slots + 1)
    segments[last] = 1
    starts[first] = starts[last] = cells[first]
    example, positions = over(numbers, np.int32), over(starts, np.int32)
    np.subtract(counting(len(where), np.int32), positions, out=positions)
    outside = np.flatnonzero(example == 0)
    tokens[outside], positions[outside] = facts.pad, 0
    if (largest := tokens.max(initial=0)) >= facts.size:  # JAX would take another one for it
        raise ValueError(
            f"{split.folder or split.name} has the token {largest}, and the vocabulary ends at {facts.size - 1}; "
            "`inspect STORE --verify` names the part that is damaged"
        )
    flat = {"tokens": tokens, "example": example, "segments": over(segments, np.int32), "positions": positions}
    start = (cells[first] - length * np.arange(len(spans))[:, None]) * valid
    rows = {name: values.reshape(len(spans), length) for name, values in flat.items()}
    rows |= {"start": start.astype(np.int32), "valid": valid.astype(np.int32)}
    return rows | form.fields(split, spans, rows["start"], length)


def named(rows: Rows, ids: np.ndarray, epochs: np.ndarray) -> Rows:
    """Rows with the name of each example: its place in the table, and its epoch."""
    slots = rows["valid"].shape[1]
    names, passes = ids[:, None] * slots + np.arange(slots), np.repeat(epochs[:, None], slots, axis=1)
    return rows | {"id": names.astype(np.int32), "epoch": passes.astype(np.int32)}


class Stream:
    """The batches of a run; of several processes each makes the rows that `held(batch)` names, by default all."""

    def __init__(
        self,
        split: Split,
        facts: Facts,
        phases: tuple[Phase, ...],
        seed: int,
        copies: int | None,
        folder: Path,
        held: Callable[[int], np.ndarray] = np.arange,
    ):
        self.split, self.facts, self.phases, self.seed = split, facts, phases, seed
        self.held = held
        self.tables = Tables(folder, split, seed, copies)
        np.empty(1 << 24, np.uint8)  # freed at once: glibc then keeps the memory of batches rather than give it back
        self.chunk: tuple = (None,)  # rows of like length: the step they are from, and what `alike` makes of them
        self.edges: dict[tuple, list[int]] = {}  # example counts of the epochs so far, summed, by format and length

    def phase(self, step: int) -> Phase:
        """The phase that `step` (from 0) falls in."""
        return next(phase for phase in self.phases if step < phase.until)

    def consumed(self, step: int) -> int:
        """Examples of this step's format and length that earlier steps have read."""
        here, start, total = self.phase(step), 0, 0
        for phase in self.phases:
            stop = min(phase.until, step)
            if (phase.format, phase.length) == (here.format, here.length):
                total += max(stop - start, 0) * phase.batch
            start = phase.until
        return total

    def locate(self, phase: Phase, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and row (before the shuffle) of the index-th examples of a phase's format and length."""
        edges = self.edges.setdefault((phase.format, phase.length), [0])
        while edges[-1] <= index[-1]:
            edges.append(edges[-1] + len(self.tables.get(phase.format, phase.length, len(edges) - 1)))
        epoch = np.searchsorted(edges, index, side="right") - 1
        return epoch, index - np.asarray(edges)[epoch]

    def drawn(self, phase: Phase, first: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`count` rows of the tables from the `first` on in the order of training, their places and their epochs."""
        epochs, rows = self.locate(phase, np.arange(first, first + count))
        parts = []
        for epoch in range(epochs[0], epochs[-1] + 1):
            table = self.tables.get(phase.format, phase.length, epoch)
            ids = shuffled(rows[epochs == epoch], len(table), (self.seed, epoch))
            parts.append((table[ids], ids, np.full(len(ids), epoch)))
        if phase.format.random:
            self.tables.ask(phase.format, phase.length, int(epochs[-1]) + 1)
        return tuple(map(np.concatenate, zip(*parts, strict=True)))

    def alike(self, step: int) -> tuple[list[np.ndarray], int]:
        """What `drawn` gives for a batch of rows of like length, and that length.

        The rows of `CHUNK` steps are sorted by size, cut into batches, and the batches shuffled.
        """
        phase = self.phase(step)
        begun = max((other.until for other in self.phases if other.until <= step), default=0)
        at, place = divmod(step - begun, CHUNK)
        start = begun + at * CHUNK
        if self.chunk[0] != start:
            count = min(CHUNK, phase.until - start)
            rows = self.drawn(phase, self.consumed(start), count * phase.batch)
            sizes = row_sizes(rows[0], phase.format.between)
            batches = np.argsort(sizes, kind="stable").reshape(count, -1)
            self.chunk = start, rows, sizes, batches[permuted(np.arange(count), count, (self.seed, start))]
        _, rows, sizes, batches = self.chunk
        mine = batches[place]
        return [column[mine] for column in rows], cut(int(sizes[mine].max()), phase.length, phase.cuts)

    def batch(self, step: int) -> Rows:
        """The rows of `step` that this process holds."""
        phase = self.phase(step)
        if phase.cuts == 1:
            whole, length = self.drawn(phase, self.consumed(step), phase.batch), phase.length
        else:
            whole, length = self.alike(step)
        mine = self.held(phase.batch)
        table, ids, epochs = (column[mine] for column in whole)
        return named(assemble(self.split, table, length, self.facts, phase.format), ids, epochs)

    def batches(self, start: int, stop: int) -> Iterator[Rows]:
        """The batches of steps `start` to `stop`, each made by a thread while the one before is used."""
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as worker:
            ahead = [worker.submit(self.batch, step) for step in range(start, min(start + 2, stop))]
            for step in range(start, stop):
                if step + 2 < stop:
                    ahead.append(worker.submit(self.batch, step + 2))
                yield ahead.pop(0).result()


def cut(size: int, length: int, cuts: int) -> int:
    """The least of `cuts` equal parts of `length` that holds `size` tokens."""
    return next(part for k in range(1, cuts + 1) if (part := -(-length * k // cuts)) >= size)


def heldout_batches(split: Split, facts: Facts, phase: Phase, batch: int, limit: int, folder: Path) -> Iterator[Rows]:
    """Up to `limit` batches of a held-out split, the same for every run: seed, pass and order are fixed."""
    phase = replace(phase, format=unmixed(phase.format))
    table = heldout_table(split, phase, folder)
    ids = permuted(np.arange(len(table)), len(table), 0)[: batch * limit]
    yield from longest_first(split, facts, table, ids, phase, batch, CUTS)


def longest_first(
    split: Split, facts: Facts, table: np.ndarray, ids: np.ndarray, phase: Phase, batch: int, cuts: int
) -> Iterator[Rows]:
    """The rows `ids` of a table, the longest ones first, in batches.

    A batch is as long as the least part of `phase.length` in `cuts` equal ones that holds its rows. The last batch is
    filled up with rows that are all padding and count nowhere.
    """
    sizes = row_sizes(table[ids], phase.format.between)
    order = np.argsort(-sizes, kind="stable")
    for start in range(0, len(ids), batch):
        some = order[start : start + batch]
        length = cut(int(sizes[some[0]]), phase.length, cuts)
        rows = assemble(split, table[ids[some]], length, facts, phase.format)
        rows = named(rows, ids[some], np.zeros(len(some)))
        missing = batch - len(some)
        padding = lambda x, missing=missing: np.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1)))
        yield {name: padding(x) for name, x in rows.items()} if missing else rows


def heldout_table(split: Split, phase: Phase, folder: Path) -> np.ndarray:
    """The example table whose rows the `id`s of held-out batches name."""
    return Tables(folder, split, 0, 1).get(unmixed(phase.format), phase.length, 0)
