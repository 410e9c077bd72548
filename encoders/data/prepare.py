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
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial, singledispatch
from pathlib import Path

import numpy as np

from encoders.data import filters, work_units
from encoders.data.beam_runner import DEFAULT_RUNNER, LogFunction, Runner, UnfinishedWork
from encoders.data.spec import PretrainingData, StoreSpec, WorkUnit, hash_content, hash_path
from encoders.data.store import OFFSET_FILES, Store
from encoders.data.unit_files import TEXT_SPLITS, FinishedUnit, append_unit_split, choose_token_dtype
from encoders.data.work_units import PreparationJob
from encoders.text import tokenization
from encoders.text.tokenization import VocabInfo
from encoders.utils.files import atomic_dir, check_local_paths, is_disk_full, lock_dir


def prepare_store(
    data: StoreSpec, log: LogFunction = work_units.ignore_log_line, runner: Runner = DEFAULT_RUNNER
) -> Store:
    """Return the store of `data`, and make it first if it does not exist.

    Raises `CorpusError` or `ValueError` before any long work.
    """
    check_local_paths(data.store_dir)
    data.check_readable()
    content = data.describe_content()
    path = Path(data.store_dir) / hash_content(content)
    if not path.exists():
        runner.check_available()
        build_store(data, content, path, runner, log)
    elif (work_dir := get_work_dir(path)).exists():  # its process was killed at the very end
        shutil.rmtree(work_dir, ignore_errors=True)
    return Store.open(path)


@singledispatch
def write_store(data: StoreSpec, path: Path, work_dir: Path, runner: Runner, log: LogFunction) -> dict:
    """Fill the folder `path`, and return the fields of `store.json` beside its key and content.

    Intermediate results in `work_dir` survive an interruption. Each class of data registers its own function.
    """
    raise TypeError(
        f"{type(data).__name__} is not registered with write_store; decorate a function by write_store.register"
    )


def get_work_dir(path: Path) -> Path:
    """Return the folder of a store's finished units until the store is complete."""
    return path.with_name(f".{path.name}.work")


def build_store(data: StoreSpec, content: dict, path: Path, runner: Runner, log: LogFunction) -> None:
    work_dir, folder = get_work_dir(path), path.parent
    new_parents = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    with lock_dir(work_dir, lambda: log(f"{path}: another process prepares it; waiting")):
        try:
            if path.exists():
                return
            for partial_dir in (*folder.glob(f".{path.name}.partial-*"), *work_dir.glob("units/.*.partial-*")):
                shutil.rmtree(partial_dir, ignore_errors=True)  # of a killed process
            with atomic_dir(path) as partial_dir:
                metadata = {"key": path.name, "content": content}
                metadata |= write_store(data, partial_dir, work_dir, runner, log)
                (partial_dir / "store.json").write_text(json.dumps(metadata, indent=1), encoding="utf-8")
        except UnfinishedWork:
            raise
        except ValueError:  # the corpus must change, and no finished unit would be of use
            shutil.rmtree(work_dir, ignore_errors=True)
            raise
        except OSError as error:
            if is_disk_full(error):
                raise ValueError(
                    f"no space is left in {folder} for the store; finished units are kept in {work_dir}: free some "
                    "space and run the same command again"
                ) from error
            raise
        finally:
            if path.exists():
                shutil.rmtree(work_dir, ignore_errors=True)
            for parent in new_parents:
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()


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
    log_progress = make_progress_logger("tokens", len(all_units), log)
    runner.run_items(partial(work_units.tokenize_unit, job), all_units, log_progress, log)
    record_seconds("tokens")
    units, counts = join_finished_units(job, all_units, path, tokenizer.vocab, log)
    record_seconds("joined")
    splits = {split: sum_split_counts(unit.splits[split] for unit in units) for split in TEXT_SPLITS}
    num_documents = sum(split["documents"] for split in splits.values())
    for split, split_counts in splits.items():
        if not split_counts["documents"]:
            raise ValueError(
                f"the {split} split is empty: {num_documents} document(s) in {', '.join(data.corpus)}; separate the "
                f"documents of a text file by blank lines; about {data.heldout_fraction:.0%} of them are held out"
            )
    vocab, ordinary_counts = tokenizer.vocab, counts.copy()
    ordinary_counts[list(vocab.special_ids)] = 0
    own_memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "dtype": np.dtype(choose_token_dtype(vocab)).name,
        "vocab": replace(vocab, most_frequent_id=int(ordinary_counts.argmax())).to_json_value(),
        "tokenizer": hash_path(path / "tokenizer.json"),
        "splits": splits,
        "filtered": filters.sum_filter_counts(Counter(unit.filtered) for unit in units),
        "unknown_rate": float(counts[vocab.unk_id] / max(counts.sum(), 1)),
        "characters": sum(unit.characters for unit in units),
        "seconds": seconds,
        "peak_memory_mb": max(own_memory_mb, *(unit.peak_memory_mb for unit in units)),
        "units": [unit.describe_in_store() for unit in units],
    }


def find_corpus_repeats(job: PreparationJob, all_units: list[WorkUnit], runner: Runner, log: LogFunction) -> None:
    """Find equal documents or paragraphs over the whole corpus, if the filters drop them."""
    if job.data.filters.compared_levels:
        log_progress = make_progress_logger("hashes", len(all_units), log)
        runner.run_items(partial(work_units.hash_unit, job), all_units, log_progress, log)
        buckets = work_units.plan_hash_buckets(job, len(all_units))
        log_progress = make_progress_logger("repeats", len(buckets), log)
        runner.run_items(partial(work_units.find_repeats_in_bucket, job), buckets, log_progress, log)


def make_progress_logger(stage: str, num_units: int, log: LogFunction) -> Callable[[int], None]:
    """Return a callback that logs the finished units of a stage, at most once a second."""
    started = last = time.monotonic()

    def log_progress(num_done: int) -> None:
        nonlocal last
        if num_units > 1 and (num_done == num_units or time.monotonic() - last > 1):
            last = time.monotonic()
            log(f"{stage}: {num_done:,} of {num_units:,} units, {last - started:,.0f} s")

    return log_progress


def sum_split_counts(counts: Iterable[dict]) -> dict[str, int]:
    """Return the documents, sentences and tokens of several units, summed."""
    total = Counter(documents=0, sentences=0, tokens=0)
    for unit_counts in counts:
        total.update({name: unit_counts[name] for name in total})
    return dict(total)


def load_or_train_tokenizer(job: PreparationJob, all_units: list[WorkUnit], log: LogFunction):
    """Return the tokenizer, and save it in the work folder, from which every process reads it."""
    path, spec = job.work_dir / "tokenizer.json", job.data.tokenizer
    if not path.exists():
        log(f"vocabulary: {'read from ' + spec.path if spec.path else f'training {spec.kind} of {spec.vocab_size:,}'}")
        if spec.path:
            tokenizer = tokenization.load_tokenizer(spec.path, spec.lowercase)
        else:
            tokenizer = tokenization.train_tokenizer(spec, work_units.sample_documents(job, all_units))
        partial_file = path.with_suffix(".partial")
        tokenizer.save(partial_file)
        partial_file.rename(path)
    return tokenization.load_tokenizer(path)


def join_finished_units(
    job: PreparationJob, all_units: list[WorkUnit], path: Path, vocab: VocabInfo, log: LogFunction
) -> tuple[list[FinishedUnit], np.ndarray]:
    """Concatenate the files of all units into those of the store; return the units' records and token counts.

    A unit whose bytes have changed since they were written is made again.
    """
    for split in TEXT_SPLITS:
        (path / split).mkdir()
        for name in OFFSET_FILES:
            (path / split / f"{name}.bin").write_bytes(bytes(8))
    finished_units, counts = [], np.zeros(vocab.vocab_size, np.int64)
    end_offsets = {split: Counter() for split in TEXT_SPLITS}
    for unit in all_units:
        unit_dir = job.get_unit_dir(unit.unit_index)
        if (finished := FinishedUnit.read_intact(unit_dir)) is None:
            log(f"unit {unit.unit_index} ({unit}) is damaged; making it again")
            shutil.rmtree(unit_dir, ignore_errors=True)
            work_units.tokenize_unit(job, unit, log)
            finished = FinishedUnit.read_intact(unit_dir)
        finished_units.append(finished)
        counts += np.load(unit_dir / "counts.npy")
        for split in TEXT_SPLITS:
            append_unit_split(unit_dir / split, path / split, end_offsets[split])
            end_offsets[split].update(finished.splits[split] | {"sha256": 0})
    return finished_units, counts
