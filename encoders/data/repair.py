"""A store's bytes against the checksums of its parts, and the parts that differ made again from the corpus."""

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
from encoders.data.prepare import PretrainingData, compute_store_key, find_corpus_repeats, hash_path
from encoders.data.store import OFFSET_FILES, Store
from encoders.data.work_units import TEXT_SPLITS, PreparationJob
from encoders.utils.files import lock_dir


@dataclass(frozen=True)
class UnitSpan:
    """Where a part's numbers stand in one file of a split, and what is added to them there."""

    file_name: str
    dtype: str
    start: int
    stop: int
    base_offset: int

    def read_unit_numbers(self, folder: Path) -> Iterator[np.ndarray]:
        """As the part had them."""
        kind, path = np.dtype(self.dtype), folder / self.file_name
        for piece in work_units.read_number_blocks(path, kind, self.start, self.stop) if path.exists() else ():
            yield piece - kind.type(self.base_offset)

    def write_unit_numbers(self, folder: Path, unit_dir: Path, num_skipped: int) -> None:
        """Put the numbers of the part's file, but for the `skipped` first ones, in their place."""
        kind = np.dtype(self.dtype)
        with open(folder / self.file_name, "r+b") as target:
            target.seek(self.start * kind.itemsize)
            for piece in work_units.read_number_blocks(unit_dir / self.file_name, kind, num_skipped):
                target.write((piece + kind.type(self.base_offset)).tobytes())


def iter_unit_spans(store: Store, split: str) -> Iterator[tuple[UnitSpan, ...]]:
    """The spans of each part in the files of tokens, sentences and documents."""
    tokens = sentences = documents = 0
    for part in store.metadata["parts"]:
        size = part["splits"][split]
        yield (
            UnitSpan("tokens.bin", store.metadata["dtype"], tokens, tokens + size["tokens"], 0),
            UnitSpan("sentences.bin", "int64", sentences + 1, sentences + 1 + size["sentences"], tokens),
            UnitSpan("documents.bin", "int64", documents + 1, documents + 1 + size["documents"], sentences),
        )
        tokens, sentences = tokens + size["tokens"], sentences + size["sentences"]
        documents += size["documents"]


def find_damaged_units(store: Store) -> list[int]:
    """The numbers of the parts whose bytes in the store are not those that were written; all of them where a file is
    too long or does not begin as it must.

    Raises `ValueError` for a store without checksums, and for one whose tokenizer.json has changed.
    """
    if "parts" not in store.metadata:
        raise ValueError(f"{store.path} holds no checksums: it has labelled rows, or an earlier version has written it")
    if hash_path(store.path / "tokenizer.json") != store.metadata["tokenizer"]:
        raise ValueError(f"tokenizer.json of {store.path} has changed: remove the store, and prepare it anew")
    found = set()
    for split in TEXT_SPLITS:
        folder = store.path / split
        for name, size in compute_file_sizes(store, split).items():
            path = folder / name
            if (
                not path.exists()
                or path.stat().st_size > size
                or name != "tokens.bin"
                and not has_zero_first_offset(path)
            ):
                found.update(range(len(store.metadata["parts"])))
        for number, (part, places) in enumerate(
            zip(store.metadata["parts"], iter_unit_spans(store, split), strict=True)
        ):
            whole = hashlib.sha256()
            for span in places:
                if span.file_name != "tokens.bin":
                    whole.update(bytes(8))  # a part's offsets begin with 0
                for piece in span.read_unit_numbers(folder):
                    whole.update(piece.tobytes())
            if whole.hexdigest() != part["splits"][split]["sha256"]:
                found.add(number)
    return sorted(found)


def has_zero_first_offset(path: Path) -> bool:
    """Whether a file of offsets begins with 0."""
    with open(path, "rb") as file:
        return file.read(8) == bytes(8)


def compute_file_sizes(store: Store, split: str) -> dict[str, int]:
    """The bytes of each file of a split."""
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
    """Make the parts again from the corpus and put them in their places; tables go, which may be of damaged tokens.

    Raises `ValueError`, and leaves the store as it is, where `data` is not what it was made of.
    """
    if compute_store_key(data) != store.key:
        raise ValueError(f"{store.path} was made of another corpus or vocabulary than {data.corpus}: it stays as it is")
    folder = store.path.with_name(f".{store.key}.repair").resolve()
    with lock_dir(folder, lambda: log(f"{store.path}: another process repairs it; waiting")):
        try:
            rebuild_units(store, data.make_job(folder), unit_indices, log, runner)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def rebuild_units(store: Store, job: PreparationJob, unit_indices: list[int], log: LogFunction, runner: Runner) -> None:
    shutil.copy(store.path / "tokenizer.json", job.work_dir / "tokenizer.json")
    todo = job.list_units()
    find_corpus_repeats(job, todo, runner, log)
    runner.run_items(
        partial(work_units.tokenize_unit, job), [todo[number] for number in unit_indices], lambda count: None, log
    )
    for split in TEXT_SPLITS:
        for number in unit_indices:
            recorded = store.metadata["parts"][number]["splits"][split]["sha256"]
            if work_units.hash_split_files(job.get_unit_dir(number) / split) != recorded:
                raise ValueError(f"part {number} of {store.path} comes out otherwise than it was: prepare it anew")
    shutil.rmtree(store.path / "tables", ignore_errors=True)
    for split in TEXT_SPLITS:
        for name, size in compute_file_sizes(store, split).items():
            with open(store.path / split / name, "ab") as file:
                file.truncate(size)
            if name != "tokens.bin":
                with open(store.path / split / name, "r+b") as file:
                    file.write(bytes(8))
        places = list(iter_unit_spans(store, split))
        for number in unit_indices:
            for span in places[number]:
                span.write_unit_numbers(
                    store.path / split, job.get_unit_dir(number) / split, 0 if span.file_name == "tokens.bin" else 1
                )
