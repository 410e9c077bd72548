"""UNITS OF WORK: groups of units of a corpus become finished files on their own, in any process of any machine.

    work/
      tokenizer.json
      documents/ paragraphs/       hashes of texts and the repeats among them, where duplicates are dropped;
      units/000012/                a finished group of adjacent units (encoders.data.store), named by its first one.

The content of a unit depends on the corpus and the unit's number alone. Small units share a group, so that thousands of
files cost no folders of their own. A folder or file under its final name is complete and is not made again.
"""

from __future__ import annotations

import hashlib
import json
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice
from math import inf
from pathlib import Path

import numpy as np

from encoders.data import filters
from encoders.data.beam_runner import LogFunction
from encoders.data.spec import PretrainingData, WorkUnit
from encoders.data.store import FINISHED_UNITS_FILE, TEXT_SPLITS, SplitWriter, encode_npy, hash_units, save_array
from encoders.text import corpus, tokenization
from encoders.text.source import Document
from encoders.utils.buckets import AnyPath, is_in_bucket, parse_path
from encoders.utils.files import atomic_dir, hash_file

TOKENIZE_CHUNK_CHARS = 4_000_000  # characters that are tokenised at a time
MAX_SAMPLED_UNITS = 64  # units from which a vocabulary's sample is taken
MAX_BUCKET_HASHES = 1 << 22  # hashes that are compared at a time


def ignore_log_line(line: str) -> None:
    pass


@dataclass(frozen=True)
class PreparationJob:
    """Corpus and folder of the finished units: all that a process needs."""

    data: PretrainingData
    work_dir: Path

    @classmethod
    def in_folder(cls, data: PretrainingData, work_dir: Path) -> PreparationJob:
        """Return a job with absolute paths, for processes with other working directories."""
        is_path = lambda item: item != "embedded" and not item.startswith("tfds:")
        items = (str(locate_text(item)) if is_path(item) else item for item in data.corpus)
        return cls(replace(data, corpus=tuple(items)), work_dir.resolve())

    def read_filtered_documents(self, unit: WorkUnit, counts: Counter) -> Iterator[Document]:
        """Yield the documents of a unit that pass the filters of single documents."""
        item, data = self.data.corpus[unit.item_index], self.data
        source = make_source_cached(item, data.text_field, data.document_per_line)
        documents = chain.from_iterable(map(source.read_documents, unit.byte_ranges))
        return self.data.filters.filter_documents(drop_null_documents(documents, counts), counts)

    def read_sentences(self, unit: WorkUnit, counts: Counter) -> Iterator[Document]:
        """Yield the documents of a unit as sentences, after all filters."""
        split = corpus.make_sentence_splitter(self.data.sentence_splitting, self.data.language)
        dropped = {level: self.load_repeats(level, unit) for level in self.data.filters.compared_levels}
        for document in self.data.filters.drop_repeats(self.read_filtered_documents(unit, counts), dropped, counts):
            if sentences := [sentence for line in document for sentence in split(line)]:
                yield sentences
            else:
                counts["documents without a sentence"] += 1

    def load_repeats(self, level: str, unit: WorkUnit) -> np.ndarray:
        """Return the repeats of a unit: indices in the unit and reasons, `[n, 2]`."""
        paths = sorted((self.work_dir / level).glob("drop-*.npy"))
        return np.concatenate([load_sorted_rows(path, unit.unit_index, unit.unit_index) for path in paths])[:, 1:]

    def get_group_dir(self, units: Sequence[WorkUnit]) -> Path:
        return self.work_dir / "units" / f"{units[0].unit_index:06}"

    def get_tokenizer(self) -> tokenization.Tokenizer:
        path = self.work_dir / "tokenizer.json"
        return load_tokenizer_cached(path, path.stat().st_mtime_ns)


def locate_text(item: str) -> AnyPath:
    """Return the absolute path of a text. A symbolic link keeps its own name, whose suffix tells the format."""
    path = parse_path(item).expanduser()
    return path if is_in_bucket(path) else path.absolute()


def drop_null_documents(documents: Iterator[Document], counts: Counter) -> Iterator[Document]:
    """Yield the documents with text; count the records whose text is null."""
    for document in documents:
        if document:
            yield document
        else:
            counts["records with a null text"] += 1


def load_sorted_rows(path: Path, lowest: int | np.uint64, highest: int | np.uint64) -> np.ndarray:
    """Return the rows of a sorted file whose first column is from `lowest` to `highest`."""
    rows = np.load(path, mmap_mode="r")
    first, last = np.searchsorted(rows[:, 0], lowest), np.searchsorted(rows[:, 0], highest, side="right")
    return np.array(rows[first:last])  # a copy: a file that stays mapped stays open


make_source_cached = lru_cache(maxsize=64)(corpus.make_source)  # a glob of many files is looked up once


@lru_cache(maxsize=1)
def load_tokenizer_cached(path: Path, modified_ns: int) -> tokenization.Tokenizer:
    return tokenization.load_tokenizer(path)


def group_units(units: list[WorkUnit]) -> list[tuple[WorkUnit, ...]]:
    """Group adjacent units of about `RANGE_BYTES` together."""
    groups, num_bytes = [], inf
    for unit in units:
        unit_bytes = sum(byte_range.approx_bytes for byte_range in unit.byte_ranges)
        if (num_bytes := num_bytes + unit_bytes) > corpus.RANGE_BYTES:
            groups.append([])
            num_bytes = unit_bytes
        groups[-1].append(unit)
    return [tuple(group) for group in groups]


# Stages of a group of units, in this order. Any process may run them, and running one twice does no harm.


def hash_group(job: PreparationJob, units: Sequence[WorkUnit], log: LogFunction = ignore_log_line) -> None:
    """Write the sorted hashes of the documents or paragraphs of some units."""
    levels = job.data.filters.compared_levels
    paths = {level: job.work_dir / level / f"hashes-{units[0].unit_index:06}.npy" for level in levels}
    if not all(path.exists() for path in paths.values()):
        tables = [
            filters.hash_texts(job.read_filtered_documents(unit, Counter()), levels, unit.unit_index) for unit in units
        ]
        for level, path in paths.items():
            rows = np.concatenate([table[level] for table in tables])
            save_array(path, rows[np.lexsort(rows.T[::-1])])


def find_repeats_in_bucket(job: PreparationJob, bucket: tuple, log: LogFunction = ignore_log_line) -> None:
    """Write the repeats among the hashes of all units that fall into one bucket (level, index, buckets)."""
    level, bucket_index, num_buckets = bucket
    path = job.work_dir / level / f"drop-{bucket_index:06}.npy"
    if path.exists():
        return
    width = 2**64 // num_buckets
    low, high = np.uint64(bucket_index * width), np.uint64(min((bucket_index + 1) * width, 2**64) - 1)
    hashes = [load_sorted_rows(hash_file, low, high) for hash_file in list_hash_files(job, level)]
    save_array(path, filters.find_bucket_repeats(np.concatenate(hashes), level, job.data.filters))


def list_hash_files(job: PreparationJob, level: str) -> list[Path]:
    """Return the files that `hash_group` wrote, in the order of the corpus."""
    return sorted((job.work_dir / level).glob("hashes-*.npy"), key=lambda path: int(path.stem.partition("-")[2]))


def plan_hash_buckets(job: PreparationJob) -> list[tuple[str, int, int]]:
    """Divide the comparison of all hashes into buckets that fit in memory."""
    buckets = []
    for level in job.data.filters.compared_levels:
        num_hashes = sum(len(np.load(path, mmap_mode="r")) for path in list_hash_files(job, level))
        num_buckets = 1 << ((num_hashes - 1) // MAX_BUCKET_HASHES).bit_length() if num_hashes else 1
        buckets += [(level, bucket_index, num_buckets) for bucket_index in range(num_buckets)]
    return buckets


def tokenize_group(job: PreparationJob, units: Sequence[WorkUnit], log: LogFunction = ignore_log_line) -> None:
    """Write the tokens of the documents of some units, in a folder that appears when it is complete."""
    path = job.get_group_dir(units)
    if (path / FINISHED_UNITS_FILE).exists():
        return
    try:
        with atomic_dir(path) as partial:
            write_finished_units(job, units, partial, log)
    except OSError:
        if not path.exists():  # else another process has finished it meanwhile
            raise


def write_finished_units(job: PreparationJob, units: Sequence[WorkUnit], path: Path, log: LogFunction) -> None:
    started, tokenizer, num_chars, num_logged = time.monotonic(), job.get_tokenizer(), 0, -TOKENIZE_CHUNK_CHARS

    def log_progress(num_new_chars: int) -> None:
        nonlocal num_chars, num_logged
        num_chars += num_new_chars
        if num_chars >= num_logged + TOKENIZE_CHUNK_CHARS:
            num_logged, num_documents = num_chars, sum(writer.counts["documents"] for writer in writers.values())
            speed = num_chars / 1e6 / (time.monotonic() - started)
            log(f"tokens: {num_documents:,} documents, {num_chars / 1e6:,.0f} M characters, {speed:.1f} M/s")

    with ExitStack() as stack:
        writers = {split: SplitWriter(stack, path / split, tokenizer.vocab) for split in TEXT_SPLITS}
        records = [write_unit(job, unit, tokenizer, writers, log_progress) for unit in units]
    for split, writer in writers.items():
        counts = [record["splits"][split] for record in records]
        for unit_counts, digest in zip(counts, hash_units(path / split, counts, writer.dtype), strict=True):
            unit_counts["sha256"] = digest
    (path / "counts.npy").write_bytes(encode_npy(writers["train"].token_counts))
    files = {str(file.relative_to(path)): hash_file(file) for file in path.rglob("*.*")}
    (path / FINISHED_UNITS_FILE).write_text(json.dumps({"units": records, "files": files}), encoding="utf-8")


def write_unit(
    job: PreparationJob,
    unit: WorkUnit,
    tokenizer: tokenization.Tokenizer,
    writers: dict[str, SplitWriter],
    on_batch: Callable[[int], None],
) -> dict:
    """Write the documents of a unit behind those that the writers wrote before, and return its record. `on_batch` gets
    the number of characters that were written since its last call."""
    started, joiner, filtered, characters, num_documents = time.monotonic(), tokenizer.sentence_joiner, Counter(), 0, 0
    counts_before = {split: dict(writer.counts) for split, writer in writers.items()}
    for batch in batch_documents(job.read_sentences(unit, filtered)):
        lines = [(joiner if i else "") + line for document in batch for i, line in enumerate(document)]
        ids = iter(tokenizer.encode_batch(lines))
        for document in batch:
            held_out = is_held_out(unit.unit_index, num_documents, job.data.heldout_fraction)
            writer = writers["heldout" if held_out else "train"]
            if not writer.add_document([row for row in islice(ids, len(document)) if row]):
                filtered["documents without a token"] += 1
            num_documents += 1
        num_chars = sum(map(len, lines))
        characters += num_chars
        on_batch(num_chars)
    return {
        "name": str(unit),
        "item_index": unit.item_index,
        "splits": {
            split: {name: writer.counts[name] - count for name, count in counts_before[split].items()}
            for split, writer in writers.items()
        },
        "characters": characters,
        "filtered": filtered,
        "seconds": round(time.monotonic() - started, 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def is_held_out(unit_index: int, document_index: int, heldout_fraction: float) -> bool:
    """Spread the held-out documents evenly over a unit; the first one of the first unit is always held out."""
    digest = hashlib.blake2b(str(unit_index).encode(), digest_size=8).digest()
    start = int.from_bytes(digest, "big") if unit_index else 0
    return (start + document_index * 0x9E3779B97F4A7C15) % 2**64 < heldout_fraction * 2**64


def sample_documents(job: PreparationJob, units: list[WorkUnit]) -> Iterator[Document]:
    """Yield documents from all over the corpus, to train a vocabulary on. The first characters of up to
    `MAX_SAMPLED_UNITS` units come one unit after the other, then the rest."""
    step = -(-len(units) // MAX_SAMPLED_UNITS)
    order = [unit for first in range(step) for unit in units[first::step]]
    share, unfinished = job.data.tokenizer.train_chars // min(len(units), MAX_SAMPLED_UNITS), []
    for unit in order:
        size = 0
        for number, document in enumerate(job.read_sentences(unit, Counter()), 1):
            yield document
            if (size := size + sum(map(len, document))) >= share:
                unfinished.append((unit, number))
                break
    for unit, num_read in unfinished:
        yield from islice(job.read_sentences(unit, Counter()), num_read, None)


def batch_documents(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Group documents into lists of about `TOKENIZE_CHUNK_CHARS` characters."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += sum(map(len, document))
        if size >= TOKENIZE_CHUNK_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
