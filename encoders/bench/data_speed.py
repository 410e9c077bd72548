"""Speed of the data pipeline from text to masks: tokens per second of one core, and accelerators that they feed."""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
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
BATCHES_PER_ROUND = 32
MAX_SECONDS = 20  # after which no further round starts
RANDOM_PAIRS, SWAPPED_PAIRS = SegmentPairs("random"), SegmentPairs("swapped")
ROW_FORMATS = {"full sentences": FullSentences(), "pairs": SWAPPED_PAIRS, "packed pairs": PackedFormat(SWAPPED_PAIRS)}


def count_fed_accelerators(
    tokens_per_second: float, flops_per_token: float, peak_flops: float = 989e12, mfu: float = 0.5
) -> float:
    """Return the number of accelerators that consume `tokens_per_second`; the default peak is an H200's in bfloat16.

    >>> round(count_fed_accelerators(45e6, 0.546e9), 1)
    49.7
    """
    return tokens_per_second * flops_per_token / (peak_flops * mfu)


def measure_data_speed(experiments: Sequence[Experiment], options) -> Iterator[ResultRow]:
    """Yield every step between text and masks, for the text of each experiment, on the core `options.core`."""
    with pin_to_core(options.core), tempfile.TemporaryDirectory() as folder:
        for data in dict.fromkeys(experiment.data for experiment in experiments):
            store = prepare_store(data, options.log)
            data_experiments = [experiment for experiment in experiments if experiment.data == data]
            yield measure_store_writing(data, store, options.rounds)
            for batch_size, seq_length in BATCH_SHAPES:
                yield from measure_table_building(store, seq_length, options.rounds)
                yield measure_packing(store, seq_length, options.rounds)
                for name, row_format in ROW_FORMATS.items():
                    phase = Phase(1 << 30, seq_length, batch_size, row_format)
                    label = f"{name}, {batch_size} x {seq_length}"
                    tables = Path(folder) / store.key
                    open_stream = partial(BatchStream, store.train_split, store.vocab, (phase,), 0, 1, tables)
                    yield measure_batch_reading(label, open_stream(), data_experiments, options.rounds)
                    yield measure_restart(label, open_stream, options.rounds)
                    if name == "full sentences":  # masks cost the same as those of pairs
                        continue
                    for experiment in data_experiments:
                        yield measure_masking(label, experiment, store, open_stream().build_batch(0), options.rounds)


@contextmanager
def pin_to_core(core: int | None) -> Iterator[None]:
    """Pin this thread, and the threads it starts, to one core."""
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
    """Return a row with the median processor and wall seconds of `work`, which makes `num_tokens` tokens."""
    timings: list[tuple[float, float]] = []
    while len(timings) < rounds and sum(wall for _, wall in timings) <= MAX_SECONDS:
        timings.append(time_call(work)[:2])
    seconds, wall = (statistics.median(column) for column in zip(*timings, strict=True))
    return {"what": label, "seconds": seconds, "wall": wall, "tokens_per_cpu_second": num_tokens / seconds} | columns


def count_tokens(rows: Batch) -> int:
    return int(rows.num_tokens)


def measure_store_writing(data: PretrainingData, store: Store, rounds: int) -> ResultRow:
    """Return a row for writing a store from text, with a trained tokenizer."""
    data = replace(data, tokenizer=replace(data.tokenizer, path=str(store.path / "tokenizer.json")))

    def write_store():
        with tempfile.TemporaryDirectory() as folder:
            prepare_store(replace(data, store_dir=folder))

    tokens = sum(split["tokens"] for split in store.metadata["splits"].values())
    row = time_token_work("tokenise and write a store", tokens, write_store, rounds)
    return row | {"megabytes_per_second": store.metadata["characters"] / 1e6 / row["seconds"]}


def build_full_table(store: Store, row_format: Format, seq_length: int) -> np.ndarray:
    split = store.train_split
    return np.concatenate(
        [row_format.build_example_table(split, shard, seq_length, 0, 0) for shard in split.split_shards()]
    )


def measure_table_building(store: Store, seq_length: int, rounds: int) -> Iterator[ResultRow]:
    """Yield a row for the example tables of one pass, by format."""
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
    """Return a row for packing examples into rows."""
    sizes = count_row_tokens(build_full_table(store, SWAPPED_PAIRS, seq_length))
    pack_rows = lambda: pack_examples(sizes, seq_length, ROW_FORMATS["packed pairs"].max_examples_per_row)
    rows = pack_rows()[0].max() + 1
    padding = {"padding_before": 1 - sizes.mean() / seq_length, "padding": 1 - sizes.sum() / (rows * seq_length)}
    return time_token_work(f"pack pairs, length {seq_length}", sizes.sum(), pack_rows, rounds, **padding)


def measure_batch_reading(label: str, stream: BatchStream, experiments: Sequence[Experiment], rounds: int) -> ResultRow:
    """Return a row for reading batches in order; padding counts as no token."""
    counted = [(count_tokens(rows), rows.input_ids.size) for rows in map(stream.build_batch, range(BATCHES_PER_ROUND))]
    tokens, cells = np.sum(counted, axis=0)
    lengths = count_example_tokens([stream.build_batch(0)])
    starts = itertools.count(BATCHES_PER_ROUND, BATCHES_PER_ROUND)  # new ones in every round, as in training

    def read_batches():
        first = next(starts)
        for step in range(first, first + BATCHES_PER_ROUND):
            stream.build_batch(step)

    row = time_token_work(f"read {label}", tokens, read_batches, rounds, padding=1 - tokens / cells)
    for experiment in experiments:
        flops = step_flops(experiment, lengths).sum() / lengths.sum()
        row[f"feeds {experiment.name}"] = count_fed_accelerators(row["tokens_per_cpu_second"], flops)
    return row


def measure_restart(label: str, open_stream: Callable[[], BatchStream], rounds: int) -> ResultRow:
    """Return a row for the first batch of a run that resumes in its second pass, with its tables on disk."""
    (phase,) = open_stream().phases
    size = len(open_stream().tables.get_table(phase.format, phase.seq_length, 0))
    step = 3 * size // (2 * phase.batch_size)
    tokens = count_tokens(open_stream().build_batch(step))

    def read_first_batch():
        permute_block.cache_clear()
        open_stream().build_batch(step)

    return time_token_work(f"first batch after a restart, {label}", tokens, read_first_batch, rounds)


def measure_masking(label: str, experiment: Experiment, store: Store, rows: Batch, rounds: int) -> ResultRow:
    """Return a row for the masks of an objective, drawn inside jit on the CPU."""
    batch = jax.tree.map(jnp.asarray, rows)
    corrupt = jax.jit(lambda batch: experiment.objective.corrupt(batch, store.vocab, 0))
    mask_batches = lambda: [jax.block_until_ready(corrupt(batch)) for _ in range(BATCHES_PER_ROUND)]
    mask_batches()
    return time_token_work(
        f"mask {label}, {experiment.name}", BATCHES_PER_ROUND * count_tokens(rows), mask_batches, rounds
    )
