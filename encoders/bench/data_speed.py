"""Text to batches: how many tokens a second of one core's time makes, and how many accelerators that feeds."""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from encoders.bench.inputs import sizes
from encoders.bench.rounds import Row, clocked
from encoders.costs.ledger import step_flops
from encoders.data.formats import Format, FullSentences, SegmentPairs, row_sizes
from encoders.data.packing import Packed, pack
from encoders.data.prepare import Data, prepared
from encoders.data.store import Store
from encoders.data.stream import Phase, Rows, Stream, block
from encoders.experiment import Experiment

SHAPES = ((256, 128), (64, 512))  # rows and length of a batch
BATCHES = 32  # read in a round
PATIENCE = 20  # seconds, after which there are no more rounds
RANDOM, SWAPPED = SegmentPairs("random"), SegmentPairs("swapped")
FORMATS = {"full sentences": FullSentences(), "pairs": SWAPPED, "packed pairs": Packed(SWAPPED)}


def feeds(tokens_per_second: float, flops_per_token: float, peak_flops: float = 989e12, mfu: float = 0.5) -> float:
    """How many accelerators use up `tokens_per_second`; the peak is that of one H200 in bfloat16.

    >>> round(feeds(45e6, 0.546e9), 1)
    49.7
    """
    return tokens_per_second * flops_per_token / (peak_flops * mfu)


def measure(members: Sequence[Experiment], options) -> Iterator[Row]:
    """Everything between text and masks, for the text of each member; all on the core `options.core`."""
    with on_core(options.core), tempfile.TemporaryDirectory() as folder:
        for data in dict.fromkeys(member.data for member in members):
            store, own = prepared(data, options.say), [member for member in members if member.data == data]
            yield writing(data, store, options.rounds)
            for batch, length in SHAPES:
                yield from building(store, length, options.rounds)
                yield packing(store, length, options.rounds)
                for name, form in FORMATS.items():
                    phase, where = Phase(1 << 30, length, batch, form), f"{name}, {batch} x {length}"
                    tables = Path(folder) / store.key
                    opened = partial(Stream, store.train, store.facts, (phase,), 0, 1, tables)
                    yield reading(where, opened(), own, options.rounds)
                    yield restarting(where, opened, options.rounds)
                    for member in own if name != "full sentences" else ():  # they cost what pairs do
                        yield masking(where, member, store, opened().batch(0), options.rounds)


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """This thread, and the threads it starts, on one core."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def timed(what: str, tokens: float, work: Callable[[], object], rounds: int, **columns) -> Row:
    """A row with the medians of processor and wall seconds of `work`, which makes `tokens` tokens."""
    spent: list[tuple[float, float]] = []
    while len(spent) < rounds and sum(wall for _, wall in spent) <= PATIENCE:
        spent.append(clocked(work)[:2])
    seconds, wall = (statistics.median(each) for each in zip(*spent, strict=True))
    return {"what": what, "seconds": seconds, "wall": wall, "tokens_per_cpu_second": tokens / seconds} | columns


def tokens_of(rows: Rows) -> int:
    return int((rows["example"] > 0).sum())


def writing(data: Data, store: Store, rounds: int) -> Row:
    """Text to a store, with its vocabulary known."""
    known = replace(data, vocabulary=replace(data.vocabulary, path=str(store.path / "tokenizer.json")))

    def work():
        with tempfile.TemporaryDirectory() as folder:
            prepared(replace(known, folder=folder))

    tokens = sum(split["tokens"] for split in store.meta["splits"].values())
    row = timed("tokenise and write a store", tokens, work, rounds)
    return row | {"megabytes_per_second": store.meta["characters"] / 1e6 / row["seconds"]}


def whole_table(store: Store, form: Format, length: int) -> np.ndarray:
    split = store.train
    return np.concatenate([form.table(split, shard, length, 0, 0) for shard in split.shards()])


def building(store: Store, length: int, rounds: int) -> Iterator[Row]:
    """The tables of one pass."""
    for name, form in (("random", RANDOM), ("swapped", SWAPPED), ("full sentences", FORMATS["full sentences"])):
        work = lambda form=form: whole_table(store, form, length)
        yield timed(f"example table, {name}, length {length}", len(store.train.tokens), work, rounds)


def packing(store: Store, length: int, rounds: int) -> Row:
    """Examples to rows."""
    sizes, most = row_sizes(whole_table(store, SWAPPED, length)), FORMATS["packed pairs"].most
    work = lambda: pack(sizes, length, most)
    rows = work()[0].max() + 1
    padding = {"padding_before": 1 - sizes.mean() / length, "padding": 1 - sizes.sum() / (rows * length)}
    return timed(f"pack pairs, length {length}", sizes.sum(), work, rounds, **padding)


def reading(where: str, stream: Stream, members: Sequence[Experiment], rounds: int) -> Row:
    """Batches, one after the other; what counts is the tokens that are no padding."""
    counted = [(tokens_of(rows), rows["tokens"].size) for rows in map(stream.batch, range(BATCHES))]
    tokens, cells = np.sum(counted, axis=0)
    lengths = sizes([stream.batch(0)])
    starts = itertools.count(BATCHES, BATCHES)  # others in every round, as in training

    def work():
        first = next(starts)
        deque(map(stream.batch, range(first, first + BATCHES)), maxlen=0)  # keeps none of them

    row = timed(f"read {where}", tokens, work, rounds, padding=1 - tokens / cells)
    for member in members:
        flops = step_flops(member, lengths).sum() / lengths.sum()
        row[f"feeds {member.name}"] = feeds(row["tokens_per_cpu_second"], flops)
    return row


def restarting(where: str, stream: Callable[[], Stream], rounds: int) -> Row:
    """The first batch of a run that goes on in the middle of its second epoch, with its tables on disk."""
    (phase,) = stream().phases
    size = len(stream().tables.get(phase.format, phase.length, 0))
    step = 3 * size // (2 * phase.batch)
    tokens = tokens_of(stream().batch(step))

    def work():
        block.cache_clear()
        stream().batch(step)

    return timed(f"first batch after a restart, {where}", tokens, work, rounds)


def masking(where: str, member: Experiment, store: Store, rows: Rows, rounds: int) -> Row:
    """The masks of an objective, which are drawn inside jit, here on the processor."""
    batch = jax.tree.map(jnp.asarray, rows)
    corrupt = jax.jit(lambda batch: member.objective.corrupt(batch, store.facts, 0))
    work = lambda: [jax.block_until_ready(corrupt(batch)) for _ in range(BATCHES)]
    work()
    return timed(f"mask {where}, {member.name}", BATCHES * tokens_of(rows), work, rounds)
