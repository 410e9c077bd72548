"""TEXT → STORE: corpus to tokens on disk, once, with memory that does not grow with the corpus.

Any number of processes finish the units of work in any order; their files are then joined. The bytes do not depend on
the number of processes, and an interrupted preparation resumes with the unfinished units.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable
from functools import partial, singledispatch
from pathlib import Path

import numpy as np

from encoders.data import unit_files, work_units
from encoders.data.beam_runner import DEFAULT_RUNNER, LogFunction, Runner, UnfinishedWork
from encoders.data.spec import PretrainingData, StoreSpec, WorkUnit, hash_content, hash_path
from encoders.data.store import OFFSET_FILES, Store
from encoders.data.unit_files import COUNT_NAMES, TEXT_SPLITS, FinishedUnit
from encoders.data.work_units import PreparationJob
from encoders.text import tokenization
from encoders.utils.files import atomic_dir, check_local_paths, is_disk_full, lock_dir


def prepare_store(
    data: StoreSpec, log: LogFunction = work_units.ignore_log_line, runner: Runner = DEFAULT_RUNNER
) -> Store:
    """Return the store of `data`, and make it first if it does not exist. Raises `CorpusError` or `ValueError` before
    any long work."""
    check_local_paths(data.store_dir)
    data.check_readable()
    content = data.describe_content()
    folder = Path(data.store_dir)
    path = folder / hash_content(content)
    work_dir = path.with_name(f".{path.name}.work")  # of the finished units, until the store is complete
    if path.exists():
        shutil.rmtree(work_dir, ignore_errors=True)  # its process was killed at the very end
        return Store.open(path)
    runner.check_available()
    new_parents = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    with lock_dir(work_dir, lambda: log(f"{path}: another process prepares it; waiting")):
        try:
            if path.exists():
                return Store.open(path)
            for partial_dir in (*folder.glob(f".{path.name}.partial-*"), *work_dir.glob("units/.*.partial-*")):
                shutil.rmtree(partial_dir, ignore_errors=True)  # of a killed process
            with atomic_dir(path) as partial_dir:
                metadata = {"key": path.name, "content": content}
                metadata |= write_store(data, partial_dir, work_dir, runner, log)
                (partial_dir / "store.json").write_text(json.dumps(metadata, indent=1), encoding="utf-8")
        except ValueError as error:
            if not isinstance(error, UnfinishedWork):  # the corpus must change, and no finished unit would be of use
                shutil.rmtree(work_dir, ignore_errors=True)
            raise
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise ValueError(
                f"no space is left in {folder} for the store; finished units are kept in {work_dir}: free some space "
                "and run the same command again"
            ) from error
        finally:
            if path.exists():
                shutil.rmtree(work_dir, ignore_errors=True)
            for parent in new_parents:
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()
    return Store.open(path)


@singledispatch
def write_store(data: StoreSpec, path: Path, work_dir: Path, runner: Runner, log: LogFunction) -> dict:
    """Fill the folder `path`, and return the fields of `store.json` beside its key and content. Intermediate results in
    `work_dir` survive an interruption. Each class of data registers its own function."""
    raise TypeError(
        f"{type(data).__name__} is not registered with write_store; decorate a function by write_store.register"
    )


@write_store.register
def write_text_store(data: PretrainingData, path: Path, work_dir: Path, runner: Runner, log: LogFunction) -> dict:
    """Write a store of running text: find repeats, train the vocabulary, tokenise all units, join their files."""
    job, seconds, clock = PreparationJob.in_folder(data, work_dir), {}, time.monotonic()

    def record_seconds(stage: str) -> None:
        nonlocal clock
        seconds[stage], clock = round(time.monotonic() - clock, 2), time.monotonic()

    all_units = job.data.list_units()
    find_corpus_repeats(job, all_units, runner, log)
    record_seconds("repeats")
    tokenizer = load_or_train_tokenizer(job, all_units, log)
    tokenizer.save(path / "tokenizer.json")
    record_seconds("vocabulary")
    run_stage("tokens", partial(work_units.tokenize_unit, job), all_units, runner, log)
    record_seconds("tokens")
    units, counts = join_finished_units(job, all_units, path, log)
    record_seconds("joined")
    splits = {
        split: {name: sum(unit.splits[split][name] for unit in units) for name in COUNT_NAMES} for split in TEXT_SPLITS
    }
    num_documents = sum(split["documents"] for split in splits.values())
    for split, split_counts in splits.items():
        if not split_counts["documents"]:
            raise ValueError(
                f"the {split} split is empty: {num_documents} document(s) in {', '.join(data.corpus)}; separate the "
                f"documents of a text file by blank lines; about {data.heldout_fraction:.0%} of them are held out"
            )
    own_memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return unit_files.describe_vocab(tokenizer.vocab, counts) | {
        "tokenizer": hash_path(path / "tokenizer.json"),
        "splits": splits,
        "filtered": dict(sum((Counter(unit.filtered) for unit in units), Counter())),
        "unknown_rate": float(counts[tokenizer.vocab.unk_id] / max(counts.sum(), 1)),
        "characters": sum(unit.characters for unit in units),
        "seconds": seconds,
        "peak_memory_mb": max(own_memory_mb, *(unit.peak_memory_mb for unit in units)),
        "units": [{"name": unit.name, "item_index": unit.item_index, "splits": unit.splits} for unit in units],
    }


def find_corpus_repeats(job: PreparationJob, all_units: list[WorkUnit], runner: Runner, log: LogFunction) -> None:
    """Find equal documents or paragraphs over the whole corpus, if the filters drop them."""
    if job.data.filters.compared_levels:
        run_stage("hashes", partial(work_units.hash_unit, job), all_units, runner, log)
        buckets = work_units.plan_hash_buckets(job, len(all_units))
        run_stage("repeats", partial(work_units.find_repeats_in_bucket, job), buckets, runner, log)


def run_stage(name: str, function: Callable, items: list, runner: Runner, log: LogFunction) -> None:
    """Run a stage of the preparation, whose finished items are logged at most once a second."""
    started = last = time.monotonic()

    def log_progress(num_done: int) -> None:
        nonlocal last
        if len(items) > 1 and (num_done == len(items) or time.monotonic() - last > 1):
            last = time.monotonic()
            log(f"{name}: {num_done:,} of {len(items):,} units, {last - started:,.0f} s")

    runner.run_items(function, items, log_progress, log)


def load_or_train_tokenizer(job: PreparationJob, all_units: list[WorkUnit], log: LogFunction):
    """Return the tokenizer, and save it in the work folder, from which every process reads it."""
    path, spec = job.work_dir / "tokenizer.json", job.data.tokenizer
    if not path.exists():
        if spec.path:
            log(f"vocabulary: read from {spec.path}")
            tokenizer = tokenization.load_tokenizer(spec.path, spec.lowercase)
        else:
            log(f"vocabulary: training {spec.kind} of {spec.vocab_size:,}")
            tokenizer = tokenization.train_tokenizer(spec, work_units.sample_documents(job, all_units))
        partial_file = path.with_suffix(".partial")
        tokenizer.save(partial_file)
        partial_file.rename(path)
    return tokenization.load_tokenizer(path)


def join_finished_units(
    job: PreparationJob, all_units: list[WorkUnit], path: Path, log: LogFunction
) -> tuple[list[FinishedUnit], np.ndarray]:
    """Concatenate the files of all units into those of the store; return the units' records and token counts. A unit
    whose bytes have changed since they were written is made again."""
    for split in TEXT_SPLITS:
        (path / split).mkdir()
        (path / split / "tokens.bin").touch()
        for name in OFFSET_FILES:
            (path / split / f"{name}.bin").write_bytes(bytes(8))
    finished_units, token_counts, dtype = [], 0, unit_files.choose_token_dtype(job.get_tokenizer().vocab)
    end_counts = {split: Counter() for split in TEXT_SPLITS}
    for unit in all_units:
        unit_dir = job.get_unit_dir(unit.unit_index)
        if (finished := FinishedUnit.read_intact(unit_dir)) is None:
            log(f"unit {unit.unit_index} ({unit}) is damaged; making it again")
            shutil.rmtree(unit_dir, ignore_errors=True)
            work_units.tokenize_unit(job, unit, log)
            finished = FinishedUnit.read_intact(unit_dir)
        finished_units.append(finished)
        token_counts += np.load(unit_dir / "counts.npy")
        for split in TEXT_SPLITS:
            spans = unit_files.locate_unit(end_counts[split], finished.splits[split], dtype)
            unit_files.write_unit_split(unit_dir / split, path / split, spans)
    return finished_units, token_counts
