"""Verification of a store against the checksums of its units, and repair of the units that differ."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from encoders.data import work_units
from encoders.data.beam_runner import DEFAULT_RUNNER, LogFunction, Runner
from encoders.data.prepare import find_corpus_repeats
from encoders.data.spec import PretrainingData, compute_store_key, hash_path
from encoders.data.store import OFFSET_FILES, Store
from encoders.data.unit_files import TEXT_SPLITS, hash_split_files, read_number_blocks
from encoders.data.work_units import PreparationJob
from encoders.utils.files import lock_dir


@dataclass(frozen=True)
class UnitSpan:
    """Position of a unit's numbers in one file of a split, and the offset that is added to them there."""

    file_name: str
    dtype: str
    start: int
    stop: int
    base_offset: int

    def read_unit_numbers(self, folder: Path) -> Iterator[np.ndarray]:
        """Yield the numbers as the unit's own file has them."""
        dtype, path = np.dtype(self.dtype), folder / self.file_name
        if path.exists():
            for block in read_number_blocks(path, dtype, self.start, self.stop):
                yield block - dtype.type(self.base_offset)

    def write_unit_numbers(self, folder: Path, unit_dir: Path, num_skipped: int) -> None:
        """Write the numbers of the unit's file, without the first `num_skipped`, to their position."""
        dtype = np.dtype(self.dtype)
        with open(folder / self.file_name, "r+b") as target:
            target.seek(self.start * dtype.itemsize)
            for block in read_number_blocks(unit_dir / self.file_name, dtype, num_skipped):
                target.write((block + dtype.type(self.base_offset)).tobytes())


def iter_unit_spans(store: Store, split: str) -> Iterator[tuple[UnitSpan, ...]]:
    """Yield the spans of each unit in the files of tokens, sentences and documents."""
    tokens = sentences = documents = 0
    for unit in store.metadata["units"]:
        size = unit["splits"][split]
        yield (
            UnitSpan("tokens.bin", store.metadata["dtype"], tokens, tokens + size["tokens"], 0),
            UnitSpan("sentences.bin", "int64", sentences + 1, sentences + 1 + size["sentences"], tokens),
            UnitSpan("documents.bin", "int64", documents + 1, documents + 1 + size["documents"], sentences),
        )
        tokens, sentences = tokens + size["tokens"], sentences + size["sentences"]
        documents += size["documents"]


def find_damaged_units(store: Store) -> list[int]:
    """Return the indices of the units whose bytes differ from those that were written.

    All units are returned where a file is too long or its first offset is not 0. Raises `ValueError` for a store
    without checksums, and for one whose tokenizer.json has changed.
    """
    if "units" not in store.metadata:
        raise ValueError(f"{store.path} holds no checksums, as every store of labelled rows: prepare it anew")
    if hash_path(store.path / "tokenizer.json") != store.metadata["tokenizer"]:
        raise ValueError(f"tokenizer.json of {store.path} has changed: remove the store, and prepare it anew")
    units, damaged = store.metadata["units"], set()
    for split in TEXT_SPLITS:
        folder = store.path / split
        if not all(has_valid_ends(folder / name, size) for name, size in compute_file_sizes(store, split).items()):
            damaged.update(range(len(units)))
        for unit_index, (unit, spans) in enumerate(zip(units, iter_unit_spans(store, split), strict=True)):
            digest = hashlib.sha256()
            for span in spans:
                if span.file_name != "tokens.bin":
                    digest.update(bytes(8))  # the first offset of a unit's file is 0
                for block in span.read_unit_numbers(folder):
                    digest.update(block.tobytes())
            if digest.hexdigest() != unit["splits"][split]["sha256"]:
                damaged.add(unit_index)
    return sorted(damaged)


def has_valid_ends(path: Path, max_size: int) -> bool:
    """Return whether a file exists, is at most `max_size` bytes long and, if it holds offsets, starts at 0."""
    if not path.exists() or path.stat().st_size > max_size:
        return False
    with open(path, "rb") as file:
        return path.name == "tokens.bin" or file.read(8) == bytes(8)


def compute_file_sizes(store: Store, split: str) -> dict[str, int]:
    """Return the size in bytes of each file of a split."""
    counts, width = store.metadata["splits"][split], np.dtype(store.metadata["dtype"]).itemsize
    offsets = {f"{name}.bin": 8 * (counts[name] + 1) for name in OFFSET_FILES}
    return {"tokens.bin": width * counts["tokens"]} | offsets


def repair_store(
    store: Store,
    data: PretrainingData,
    unit_indices: list[int],
    log: LogFunction = work_units.ignore_log_line,
    runner: Runner = DEFAULT_RUNNER,
) -> None:
    """Make units again from the corpus and write them to their positions; remove the store's example tables.

    Raises `ValueError`, and leaves the store as it is, where `data` differs from the store's origin.
    """
    if compute_store_key(data) != store.key:
        raise ValueError(f"{store.path} was made of another corpus or vocabulary than {data.corpus}: it stays as it is")
    folder = store.path.with_name(f".{store.key}.repair").resolve()
    with lock_dir(folder, lambda: log(f"{store.path}: another process repairs it; waiting")):
        try:
            rebuild_units(store, PreparationJob.in_folder(data, folder), unit_indices, log, runner)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def rebuild_units(store: Store, job: PreparationJob, unit_indices: list[int], log: LogFunction, runner: Runner) -> None:
    shutil.copy(store.path / "tokenizer.json", job.work_dir / "tokenizer.json")
    all_units = job.data.list_units()
    find_corpus_repeats(job, all_units, runner, log)
    damaged_units = [all_units[index] for index in unit_indices]
    runner.run_items(partial(work_units.tokenize_unit, job), damaged_units, lambda num_done: None, log)
    for split in TEXT_SPLITS:
        for index in unit_indices:
            recorded = store.metadata["units"][index]["splits"][split]["sha256"]
            if hash_split_files(job.get_unit_dir(index) / split) != recorded:
                raise ValueError(f"unit {index} of {store.path} comes out otherwise than it was: prepare it anew")
    shutil.rmtree(store.path / "tables", ignore_errors=True)  # built of damaged tokens, possibly
    for split in TEXT_SPLITS:
        for name, size in compute_file_sizes(store, split).items():
            with open(store.path / split / name, "ab") as file:
                file.truncate(size)
            if name != "tokens.bin":
                with open(store.path / split / name, "r+b") as file:
                    file.write(bytes(8))
        spans = list(iter_unit_spans(store, split))
        for index in unit_indices:
            for span in spans[index]:
                num_skipped = 0 if span.file_name == "tokens.bin" else 1
                span.write_unit_numbers(store.path / split, job.get_unit_dir(index) / split, num_skipped)
