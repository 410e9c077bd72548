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

from encoders.bench.inputs import count_example_tokens
from encoders.bench.rounds import ResultRow, time_call
from encoders.costs.ledger import step_flops
from encoders.data.batch import Batch
from encoders.data.example_table import count_row_tokens
from encoders.data.formats import Format, FullSentences, SegmentPairs
from encoders.data.packing import PackedFormat, pack_examples
from encoders.data.prepare import prepare_store
from encoders.data.spec import PretrainingData
from encoders.data.store import Store
from encoders.data.stream import BatchStream, Phase, permute_block
from encoders.experiment import Experiment

BATCH_SHAPES = ((256, 128), (64, 512))  # rows and length of a batch
BATCHES_PER_ROUND = 32  # read in a round
MAX_SECONDS = 20  # seconds, after which there are no more rounds
RANDOM_PAIRS, SWAPPED_PAIRS = SegmentPairs("random"), SegmentPairs("swapped")
ROW_FORMATS = {"full sentences": FullSentences(), "pairs": SWAPPED_PAIRS, "packed pairs": PackedFormat(SWAPPED_PAIRS)}


def count_fed_accelerators(
    tokens_per_second: float, flops_per_token: float, peak_flops: float = 989e12, mfu: float = 0.5
) -> float:
    """How many accelerators use up `tokens_per_second`; the peak is that of one H200 in bfloat16.

    >>> round(count_fed_accelerators(45e6, 0.546e9), 1)
    49.7
    """
    return tokens_per_second * flops_per_token / (peak_flops * mfu)


def measure_data_speed(experiments: Sequence[Experiment], options) -> Iterator[ResultRow]:
    """Everything between text and masks, for the text of each member; all on the core `options.core`."""
    with pin_to_core(options.core), tempfile.TemporaryDirectory() as folder:
        for data in dict.fromkeys(member.data for member in experiments):
            store, own = prepare_store(data, options.log), [member for member in experiments if member.data == data]
            yield measure_store_writing(data, store, options.rounds)
            for batch, length in BATCH_SHAPES:
                yield from measure_table_building(store, length, options.rounds)
                yield measure_packing(store, length, options.rounds)
                for name, form in ROW_FORMATS.items():
                    phase, where = Phase(1 << 30, length, batch, form), f"{name}, {batch} x {length}"
                    tables = Path(folder) / store.key
                    opened = partial(BatchStream, store.train_split, store.vocab, (phase,), 0, 1, tables)
                    yield measure_batch_reading(where, opened(), own, options.rounds)
                    yield measure_restart(where, opened, options.rounds)
                    for member in own if name != "full sentences" else ():  # they cost what pairs do
                        yield measure_masking(where, member, store, opened().build_batch(0), options.rounds)


@contextmanager
def pin_to_core(core: int | None) -> Iterator[None]:
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


def time_token_work(label: str, num_tokens: float, work: Callable[[], object], rounds: int, **columns) -> ResultRow:
    """A row with the medians of processor and wall seconds of `work`, which makes `tokens` tokens."""
    spent: list[tuple[float, float]] = []
    while len(spent) < rounds and sum(wall for _, wall in spent) <= MAX_SECONDS:
        spent.append(time_call(work)[:2])
    seconds, wall = (statistics.median(each) for each in zip(*spent, strict=True))
    return {"what": label, "seconds": seconds, "wall": wall, "tokens_per_cpu_second": num_tokens / seconds} | columns


def count_tokens(rows: Batch) -> int:
    return int(rows.num_tokens)


def measure_store_writing(data: PretrainingData, store: Store, rounds: int) -> ResultRow:
    """Text to a store, with its vocabulary known."""
    known = replace(data, tokenizer=replace(data.tokenizer, path=str(store.path / "tokenizer.json")))

    def write_store():
        with tempfile.TemporaryDirectory() as folder:
            prepare_store(replace(known, store_dir=folder))

    tokens = sum(split["tokens"] for split in store.metadata["splits"].values())
    row = time_token_work("tokenise and write a store", tokens, write_store, rounds)
    return row | {"megabytes_per_second": store.metadata["characters"] / 1e6 / row["seconds"]}


def build_full_table(store: Store, row_format: Format, seq_length: int) -> np.ndarray:
    split = store.train_split
    return np.concatenate(
        [row_format.build_example_table(split, shard, seq_length, 0, 0) for shard in split.split_shards()]
    )


def measure_table_building(store: Store, seq_length: int, rounds: int) -> Iterator[ResultRow]:
    """The tables of one pass."""
    for name, form in (
        ("random", RANDOM_PAIRS),
        ("swapped", SWAPPED_PAIRS),
        ("full sentences", ROW_FORMATS["full sentences"]),
    ):
        build_table = lambda row_format=form: build_full_table(store, row_format, seq_length)
        yield time_token_work(
            f"example table, {name}, length {seq_length}", len(store.train_split.tokens), build_table, rounds
        )


def measure_packing(store: Store, seq_length: int, rounds: int) -> ResultRow:
    """Examples to rows."""
    sizes = count_row_tokens(build_full_table(store, SWAPPED_PAIRS, seq_length))
    pack_rows = lambda: pack_examples(sizes, seq_length, ROW_FORMATS["packed pairs"].max_examples_per_row)
    rows = pack_rows()[0].max() + 1
    padding = {"padding_before": 1 - sizes.mean() / seq_length, "padding": 1 - sizes.sum() / (rows * seq_length)}
    return time_token_work(f"pack pairs, length {seq_length}", sizes.sum(), pack_rows, rounds, **padding)


def measure_batch_reading(label: str, stream: BatchStream, experiments: Sequence[Experiment], rounds: int) -> ResultRow:
    """Batches, one after the other; what counts is the tokens that are no padding."""
    counted = [(count_tokens(rows), rows.input_ids.size) for rows in map(stream.build_batch, range(BATCHES_PER_ROUND))]
    tokens, cells = np.sum(counted, axis=0)
    lengths = count_example_tokens([stream.build_batch(0)])
    starts = itertools.count(BATCHES_PER_ROUND, BATCHES_PER_ROUND)  # others in every round, as in training

    def read_batches():
        first = next(starts)
        deque(map(stream.build_batch, range(first, first + BATCHES_PER_ROUND)), maxlen=0)  # keeps none of them

    row = time_token_work(f"read {label}", tokens, read_batches, rounds, padding=1 - tokens / cells)
    for member in experiments:
        flops = step_flops(member, lengths).sum() / lengths.sum()
        row[f"feeds {member.name}"] = count_fed_accelerators(row["tokens_per_cpu_second"], flops)
    return row


def measure_restart(label: str, open_stream: Callable[[], BatchStream], rounds: int) -> ResultRow:
    """The first batch of a run that goes on in the middle of its second epoch, with its tables on disk."""
    (phase,) = open_stream().phases
    size = len(open_stream().tables.get_table(phase.format, phase.seq_length, 0))
    step = 3 * size // (2 * phase.batch_size)
    tokens = count_tokens(open_stream().build_batch(step))

    def read_first_batch():
        permute_block.cache_clear()
        open_stream().build_batch(step)

    return time_token_work(f"first batch after a restart, {label}", tokens, read_first_batch, rounds)


def measure_masking(label: str, experiment: Experiment, store: Store, rows: Batch, rounds: int) -> ResultRow:
    """The masks of an objective, which are drawn inside jit, here on the processor."""
    batch = jax.tree.map(jnp.asarray, rows)
    corrupt = jax.jit(lambda batch: experiment.objective.corrupt(batch, store.vocab, 0))
    mask_batches = lambda: [jax.block_until_ready(corrupt(batch)) for _ in range(BATCHES_PER_ROUND)]
    mask_batches()
    return time_token_work(
        f"mask {label}, {experiment.name}", BATCHES_PER_ROUND * count_tokens(rows), mask_batches, rounds
    )
