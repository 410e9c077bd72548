"""Speed of the data pipeline from text to masks: tokens per second of one core, and accelerators that they feed."""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
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
FULL_SENTENCES, SWAPPED_PAIRS = FullSentences(), SegmentPairs("swapped")
TABLE_FORMATS = {"random": SegmentPairs("random"), "swapped": SWAPPED_PAIRS, "full sentences": FULL_SENTENCES}
ROW_FORMATS = {"full sentences": FULL_SENTENCES, "pairs": SWAPPED_PAIRS, "packed pairs": PackedFormat(SWAPPED_PAIRS)}


def count_fed_accelerators(
    tokens_per_second: float, flops_per_token: float, peak_flops: float = 989e12, mfu: float = 0.5
) -> float:
    """Return the number of accelerators that consume `tokens_per_second`; the default peak is an H200's in bfloat16."""
    return tokens_per_second * flops_per_token / (peak_flops * mfu)


def measure_data_speed(experiments: Sequence[Experiment], options) -> Iterator[ResultRow]:
    """Yield every step between text and masks, for the text of each experiment, on the core `options.core`."""
    time_work = partial(time_token_work, rounds=options.rounds)
    with ExitStack() as stack:
        if options.core is not None:
            stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
            os.sched_setaffinity(0, {options.core})  # and the threads that this one starts
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for data in dict.fromkeys(experiment.data for experiment in experiments):
            store = prepare_store(data, options.log)
            data_experiments = [experiment for experiment in experiments if experiment.data == data]
            yield measure_store_writing(data, store, time_work)
            for batch_size, seq_length in BATCH_SHAPES:
                yield from measure_tables(store, seq_length, time_work)
                for name, row_format in ROW_FORMATS.items():
                    phase = Phase(1 << 30, seq_length, batch_size, row_format)
                    tables = Path(folder) / store.key
                    open_stream = partial(BatchStream, store.train_split, store.vocab, (phase,), 0, 1, tables)
                    label = f"{name}, {batch_size} x {seq_length}"
                    yield from measure_batches(label, open_stream, data_experiments, time_work)
                    if name == "full sentences":  # masks cost the same as those of pairs
                        continue
                    for experiment in data_experiments:
                        rows = open_stream().build_batch(0)
                        yield measure_masking(f"mask {label}, {experiment.name}", experiment, store, rows, time_work)


def time_token_work(label: str, num_tokens: float, work: Callable[[], object], rounds: int, **columns) -> ResultRow:
    """Return a row with the median processor and wall seconds of `work`, which makes `num_tokens` tokens."""
    timings: list[tuple[float, float]] = []
    while len(timings) < rounds and sum(wall for _, wall in timings) <= MAX_SECONDS:
        timings.append(time_call(work)[:2])
    seconds, wall = (statistics.median(column) for column in zip(*timings, strict=True))
    return {"what": label, "seconds": seconds, "wall": wall, "tokens_per_cpu_second": num_tokens / seconds} | columns


def measure_store_writing(data: PretrainingData, store: Store, time_work: Callable) -> ResultRow:
    """Return a row for writing a store from text, with a trained tokenizer."""
    data = replace(data, tokenizer=replace(data.tokenizer, path=str(store.path / "tokenizer.json")))

    def write_store():
        with tempfile.TemporaryDirectory() as folder:
            prepare_store(replace(data, store_dir=folder))

    tokens = sum(split["tokens"] for split in store.metadata["splits"].values())
    row = time_work("tokenise and write a store", tokens, write_store)
    return row | {"megabytes_per_second": store.metadata["characters"] / 1e6 / row["seconds"]}


def measure_tables(store: Store, seq_length: int, time_work: Callable) -> Iterator[ResultRow]:
    """Yield a row for the example tables of one pass, by format, and a row for packing examples into rows."""
    split = store.train_split

    def build_table(row_format: Format) -> np.ndarray:
        shards = split.split_shards()
        return np.concatenate([row_format.build_example_table(split, shard, seq_length, 0, 0) for shard in shards])

    for name, row_format in TABLE_FORMATS.items():
        label = f"example table, {name}, length {seq_length}"
        yield time_work(label, len(split.tokens), partial(build_table, row_format))
    sizes = count_row_tokens(build_table(SWAPPED_PAIRS))
    pack_rows = lambda: pack_examples(sizes, seq_length, ROW_FORMATS["packed pairs"].max_examples_per_row)
    num_cells = (pack_rows()[0].max() + 1) * seq_length
    padding = {"padding_before": 1 - sizes.mean() / seq_length, "padding": 1 - sizes.sum() / num_cells}
    yield time_work(f"pack pairs, length {seq_length}", sizes.sum(), pack_rows, **padding)


def measure_batches(
    label: str, open_stream: Callable[[], BatchStream], experiments: Sequence[Experiment], time_work: Callable
) -> Iterator[ResultRow]:
    """Yield a row for reading batches in order, and one for the first batch of a run that resumes in its second pass,
    with its tables on disk. Padding counts as no token."""
    stream = open_stream()
    batches = map(stream.build_batch, range(BATCHES_PER_ROUND))
    tokens, cells = np.sum([(int(rows.num_tokens), rows.input_ids.size) for rows in batches], axis=0)
    lengths = count_example_tokens([stream.build_batch(0)])
    steps = itertools.count(BATCHES_PER_ROUND)  # new ones in every round, as in training

    def read_batches():
        for step in itertools.islice(steps, BATCHES_PER_ROUND):
            stream.build_batch(step)

    row = time_work(f"read {label}", tokens, read_batches, padding=1 - tokens / cells)
    for experiment in experiments:
        flops = step_flops(experiment, lengths).sum() / lengths.sum()
        row[f"feeds {experiment.name}"] = count_fed_accelerators(row["tokens_per_cpu_second"], flops)
    yield row
    (phase,) = stream.phases
    second_pass = 3 * len(stream.tables.get_table(phase.format, phase.seq_length, 0)) // (2 * phase.batch_size)
    tokens = int(open_stream().build_batch(second_pass).num_tokens)

    def read_first_batch():
        permute_block.cache_clear()
        open_stream().build_batch(second_pass)

    yield time_work(f"first batch after a restart, {label}", tokens, read_first_batch)


def measure_masking(label: str, experiment: Experiment, store: Store, rows: Batch, time_work: Callable) -> ResultRow:
    """Return a row for the masks of an objective, drawn inside jit on the CPU."""
    batch = jax.tree.map(jnp.asarray, rows)
    corrupt = jax.jit(lambda batch: experiment.objective.corrupt(batch, store.vocab, 0))
    mask_batches = lambda: [jax.block_until_ready(corrupt(batch)) for _ in range(BATCHES_PER_ROUND)]
    mask_batches()
    return time_work(label, BATCHES_PER_ROUND * int(rows.num_tokens), mask_batches)
