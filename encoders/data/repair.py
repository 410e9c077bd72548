"""Verification of a store against the checksums of its units, and repair of the units that differ."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

from encoders.data import unit_files, work_units
from encoders.data.beam_runner import DEFAULT_RUNNER, LogFunction, Runner
from encoders.data.prepare import find_corpus_repeats
from encoders.data.spec import PretrainingData, compute_store_key, hash_path
from encoders.data.store import Store
from encoders.data.unit_files import TEXT_SPLITS, UnitSpan
from encoders.data.work_units import PreparationJob
from encoders.utils.files import lock_dir


def locate_all_units(store: Store, split: str) -> list[list[UnitSpan]]:
    end_counts, dtype = Counter(), store.metadata["dtype"]
    return [unit_files.locate_unit(end_counts, unit["splits"][split], dtype) for unit in store.metadata["units"]]


def find_damaged_units(store: Store) -> list[int]:
    """Return the indices of the units whose bytes differ from those that were written. All units are returned where a
    file is too long or its first offset is not 0. Raises `ValueError` for a store without checksums, and for one whose
    tokenizer.json has changed."""
    if "units" not in store.metadata:
        raise ValueError(f"{store.path} holds no checksums, as every store of labelled rows: prepare it anew")
    if hash_path(store.path / "tokenizer.json") != store.metadata["tokenizer"]:
        raise ValueError(f"tokenizer.json of {store.path} has changed: remove the store, and prepare it anew")
    units, damaged = store.metadata["units"], set()
    for split in TEXT_SPLITS:
        folder, unit_spans = store.path / split, locate_all_units(store, split)
        if not all(has_valid_ends(folder, last_span) for last_span in unit_spans[-1]):
            damaged.update(range(len(units)))
        for unit_index, (unit, spans) in enumerate(zip(units, unit_spans, strict=True)):
            digest = hashlib.sha256()
            for file_name, dtype, start, stop, base_offset in spans:
                if file_name != "tokens.bin":
                    digest.update(bytes(8))  # the first offset of a unit's file is 0
                if (folder / file_name).exists():
                    for block in unit_files.read_number_blocks(folder / file_name, dtype, start, stop):
                        digest.update((block - dtype.type(base_offset)).tobytes())
            if digest.hexdigest() != unit["splits"][split]["sha256"]:
                damaged.add(unit_index)
    return sorted(damaged)


def has_valid_ends(folder: Path, last_span: UnitSpan) -> bool:
    """Return whether a file exists, does not exceed the last unit's span and, if it holds offsets, starts at 0."""
    path = folder / last_span.file_name
    if not path.exists() or path.stat().st_size > last_span.stop * last_span.dtype.itemsize:
        return False
    with open(path, "rb") as file:
        return path.name == "tokens.bin" or file.read(8) == bytes(8)


def repair_store(
    store: Store,
    data: PretrainingData,
    unit_indices: list[int],
    log: LogFunction = work_units.ignore_log_line,
    runner: Runner = DEFAULT_RUNNER,
) -> None:
    """Make units again from the corpus and write them to their positions; remove the store's example tables. Raises
    `ValueError`, and leaves the store as it is, where `data` differs from the store's origin."""
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
            if unit_files.hash_split_files(job.get_unit_dir(index) / split) != recorded:
                raise ValueError(f"unit {index} of {store.path} comes out otherwise than it was: prepare it anew")
    shutil.rmtree(store.path / "tables", ignore_errors=True)  # built of damaged tokens, possibly
    for split in TEXT_SPLITS:
        spans = locate_all_units(store, split)
        for file_name, dtype, _, stop, _ in spans[-1]:
            (store.path / split / file_name).touch()
            with open(store.path / split / file_name, "r+b") as file:
                file.truncate(stop * dtype.itemsize)
                if file_name != "tokens.bin":
                    file.write(bytes(8))
        for index in unit_indices:
            unit_files.write_unit_split(job.get_unit_dir(index) / split, store.path / split, spans[index])
