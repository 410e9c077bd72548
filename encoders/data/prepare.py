"""TEXT → STORE: corpus to tokens on disk, once, with memory that does not grow with the corpus.

Any number of processes finish the units of work in any order; their files are then joined. The bytes do not depend on
the number of processes, and an interrupted preparation resumes with the unfinished units.
"""

from __future__ import annotations

import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable
from functools import partial, singledispatch
from pathlib import Path

import numpy as np

from encoders.data import store as store_files
from encoders.data import work_units
from encoders.data.beam_runner import DEFAULT_RUNNER, LogFunction, Runner, UnfinishedWork
from encoders.data.bucket_store import find_local_stores, open_or_send_store
from encoders.data.spec import PretrainingData, StoreSpec, WorkUnit, compute_store_key, hash_content, hash_path
from encoders.data.store import OFFSET_FILES, STORE_FILE, TEXT_SPLITS, Store, UnitSpan
from encoders.data.work_units import PreparationJob
from encoders.text import tokenization
from encoders.text.tokenization import Tokenizer, VocabInfo
from encoders.utils.buckets import is_in_bucket
from encoders.utils.errors import UserError, is_disk_full
from encoders.utils.files import atomic_dir, hash_file, lock_dir, write_signed_json

UnitGroup = tuple[WorkUnit, ...]
WARNED_UNKNOWN_RATE = 0.01  # of a text's tokens
SAMPLE_CHARS = 200_000  # in which unknown tokens are counted before the whole text is tokenised


def prepare_store(
    data: StoreSpec, log: LogFunction = work_units.ignore_log_line, runner: Runner = DEFAULT_RUNNER
) -> Store:
    """Return the store of `data`, and make it first if it does not exist. Raises `CorpusError` or `ValueError` before
    any long work, also where more than `data.max_unknown_rate` of its tokens are unknown."""
    store = open_or_make_store(data, log, runner)
    check_unknown_rate(data, store.metadata.get("unknown_rate", 0.0), log)
    return store


def check_unknown_rate(data: StoreSpec, unknown_rate: float, log: LogFunction) -> None:
    """Log a warning where more than a hundredth of the tokens are unknown. Raises `ValueError` above
    `data.max_unknown_rate`."""
    problem = f"{unknown_rate:.1%} of the tokens are unknown to the vocabulary"
    remedy = "raise data.tokenizer.vocab_size, or take data.tokenizer.kind=bpe, unigram or character"
    if data.tokenizer.path:
        remedy = f"data.tokenizer.path={data.tokenizer.path} is of another language or kind of text"
    if unknown_rate > data.max_unknown_rate:
        limit = f"data.max_unknown_rate={data.max_unknown_rate:g}"
        raise UserError(f"{problem}, more than {limit}: {remedy}; a higher limit accepts them")
    if unknown_rate > WARNED_UNKNOWN_RATE:
        log(f"warning: {problem}: {remedy}")


def compute_unknown_rate(vocab: VocabInfo, token_counts: np.ndarray) -> float:
    return float(token_counts[vocab.unk_id] / max(token_counts.sum(), 1))


def open_or_make_store(data: StoreSpec, log: LogFunction, runner: Runner) -> Store:
    data.check_readable()
    content = data.describe_content()
    make_store = partial(open_or_make_local_store, data, content, find_local_stores(data.store_dir), log, runner)
    if is_in_bucket(data.store_dir):
        return open_or_send_store(data.store_dir, hash_content(content), make_store, log)
    return make_store()


def open_or_make_local_store(data: StoreSpec, content: dict, folder: Path, log: LogFunction, runner: Runner) -> Store:
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
            with atomic_dir(path) as partial_dir:
                metadata = {"key": path.name, "content": content}
                metadata |= write_store(data, partial_dir, work_dir, runner, log)
                files = sorted(file for file in partial_dir.rglob("*") if file.is_file())
                metadata["files"] = {str(file.relative_to(partial_dir)): hash_file(file) for file in files}
                write_signed_json(partial_dir / STORE_FILE, metadata)
        except ValueError as error:
            if not isinstance(error, UnfinishedWork):  # the corpus must change, and no finished unit would be of use
                shutil.rmtree(work_dir, ignore_errors=True)
            raise
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise UserError(
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
    name = type(data).__name__
    raise TypeError(f"{name} is not registered with write_store; decorate a function by write_store.register")


@write_store.register
def write_text_store(data: PretrainingData, path: Path, work_dir: Path, runner: Runner, log: LogFunction) -> dict:
    """Write a store of running text: find repeats, train the vocabulary, tokenise all units, join their files."""
    job, seconds, clock = PreparationJob.in_folder(data, work_dir), {}, time.monotonic()

    def record_seconds(stage: str) -> None:
        nonlocal clock
        seconds[stage], clock = round(time.monotonic() - clock, 2), time.monotonic()

    all_units = job.data.list_units()
    groups = work_units.group_units(all_units)
    find_corpus_repeats(job, groups, runner, log)
    record_seconds("repeats")
    tokenizer = load_or_train_tokenizer(job, all_units, log)
    tokenizer.save(path / "tokenizer.json")
    record_seconds("vocabulary")
    run_stage("tokens", partial(work_units.tokenize_group, job), groups, runner, log)
    record_seconds("tokens")
    units, counts, splits = join_finished_units(job, groups, path, log)
    record_seconds("joined")
    num_documents = sum(split["documents"] for split in splits.values())
    for split, split_counts in splits.items():
        if not split_counts["documents"]:
            raise UserError(
                f"the {split} split is empty: {num_documents} document(s) in {', '.join(data.corpus)}; separate the "
                f"documents of a text file by blank lines; about {data.heldout_fraction:.0%} of them are held out"
            )
    own_memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return store_files.describe_vocab(tokenizer.vocab, counts) | {
        "tokenizer": hash_path(path / "tokenizer.json"),
        "splits": splits,
        "filtered": dict(sum((Counter(unit["filtered"]) for unit in units), Counter())),
        "unknown_rate": compute_unknown_rate(tokenizer.vocab, counts),
        "characters": sum(unit["characters"] for unit in units),
        "seconds": seconds,
        "peak_memory_mb": max(own_memory_mb, *(unit["peak_memory_mb"] for unit in units)),
        "units": [{name: unit[name] for name in ("name", "item_index", "splits")} for unit in units],
    }


def find_corpus_repeats(job: PreparationJob, groups: list[UnitGroup], runner: Runner, log: LogFunction) -> None:
    """Find equal documents or paragraphs over the whole corpus, if the filters drop them."""
    if job.data.filters.compared_levels:
        run_stage("hashes", partial(work_units.hash_group, job), groups, runner, log)
        buckets = work_units.plan_hash_buckets(job)
        run_stage("repeats", partial(work_units.find_repeats_in_bucket, job), buckets, runner, log)


def run_stage(name: str, function: Callable, items: list, runner: Runner, log: LogFunction) -> None:
    """Run a stage of the preparation, whose finished items are logged at most once a second."""
    started = last = time.monotonic()

    def log_progress(num_done: int) -> None:
        nonlocal last
        if len(items) > 1 and (num_done == len(items) or time.monotonic() - last > 1):
            last = time.monotonic()
            log(f"{name}: {num_done:,} of {len(items):,} groups of units, {last - started:,.0f} s")

    runner.run_items(function, items, log_progress, log)


def load_or_train_tokenizer(job: PreparationJob, all_units: list[WorkUnit], log: LogFunction):
    """Return the tokenizer, and save it in the work folder, from which every process reads it."""
    path, spec = job.work_dir / "tokenizer.json", job.data.tokenizer
    if not path.exists():
        if spec.path:
            log(f"vocabulary: read from {spec.path}")
            tokenizer = spec.load()
            if lost := tokenizer.describe_lost_capitals():
                log(f"warning: {spec.path}: {lost}; data.tokenizer.lowercase=false keeps capitals")
        else:
            log(f"vocabulary: training {spec.kind} of {spec.vocab_size:,}")
            tokenizer = tokenization.train_tokenizer(spec, work_units.sample_documents(job, all_units))
        check_sample(job, all_units, tokenizer, log)
        tokenizer.save(path)
    return tokenization.load_tokenizer(path)


def check_sample(job: PreparationJob, all_units: list[WorkUnit], tokenizer: Tokenizer, log: LogFunction) -> None:
    """Check the share of unknown tokens in the first `SAMPLE_CHARS` characters, before all are tokenised."""
    counts, num_chars = np.zeros(tokenizer.vocab.vocab_size, int), 0
    for document in work_units.sample_documents(job, all_units):
        for row in tokenizer.encode_batch(document):
            counts += np.bincount(np.array(row, int), minlength=len(counts))
        if (num_chars := num_chars + sum(map(len, document))) >= SAMPLE_CHARS:
            break
    check_unknown_rate(job.data, compute_unknown_rate(tokenizer.vocab, counts), work_units.ignore_log_line)


def join_finished_units(
    job: PreparationJob, groups: list[UnitGroup], path: Path, log: LogFunction
) -> tuple[list[dict], np.ndarray, dict[str, Counter]]:
    """Concatenate the files of all units into those of the store; return the units' records, the counts of each token,
    and the counts of each split. A group whose bytes have changed since they were written is made again."""
    for split in TEXT_SPLITS:
        (path / split).mkdir()
        (path / split / "tokens.bin").touch()
        for name in OFFSET_FILES:
            (path / split / f"{name}.bin").write_bytes(bytes(8))
    finished_units, token_counts, dtype = [], 0, store_files.choose_token_dtype(job.get_tokenizer().vocab)
    end_counts = {split: Counter() for split in TEXT_SPLITS}
    for units in groups:
        folder = job.get_group_dir(units)
        if (finished := store_files.read_intact_units(folder)) is None:
            ends = " to ".join(f"{unit.unit_index} ({unit})" for unit in units[:: len(units) - 1 or 1])
            log(f"unit {ends} is damaged; making it again")
            shutil.rmtree(folder, ignore_errors=True)
            work_units.tokenize_group(job, units, log)
            finished = store_files.read_intact_units(folder)
        finished_units += finished
        token_counts += np.load(folder / "counts.npy")
        for split in TEXT_SPLITS:
            spans = store_files.locate_unit(end_counts[split], store_files.sum_counts(finished, split), dtype)
            store_files.write_unit_split(folder / split, path / split, spans)
    return finished_units, token_counts, end_counts


# Verification against the checksums of the units, and repair of those that differ


def locate_all_units(store: Store, split: str) -> list[list[UnitSpan]]:
    end_counts, dtype = Counter(), store.metadata["dtype"]
    return [store_files.locate_unit(end_counts, unit["splits"][split], dtype) for unit in store.metadata["units"]]


def find_damaged_units(store: Store) -> list[int]:
    """Return the indices of the units whose bytes differ from those that were written. All units are returned where a
    file is too long or its first offset is not 0. Raises `ValueError` for a store without checksums, and for one whose
    tokenizer.json has changed."""
    if "units" not in store.metadata:
        raise UserError(f"{store.path} holds no checksums, as every store of labelled rows: prepare it anew")
    if hash_path(store.path / "tokenizer.json") != store.metadata["tokenizer"]:
        raise UserError(f"tokenizer.json of {store.path} has changed: remove the store, and prepare it anew")
    units, damaged = store.metadata["units"], set()
    for split in TEXT_SPLITS:
        folder, counts = store.path / split, [unit["splits"][split] for unit in units]
        if not all(has_valid_ends(folder, last_span) for last_span in locate_all_units(store, split)[-1]):
            damaged.update(range(len(units)))
        digests = store_files.hash_units(folder, counts, store.metadata["dtype"])
        damaged.update(i for i, digest in enumerate(digests) if digest != counts[i]["sha256"])
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
        raise UserError(f"{store.path} was made of another corpus or vocabulary than {data.corpus}: it stays as it is")
    folder = store.path.with_name(f".{store.key}.repair").resolve()
    with lock_dir(folder, lambda: log(f"{store.path}: another process repairs it; waiting")):
        try:
            rebuild_units(store, PreparationJob.in_folder(data, folder), unit_indices, log, runner)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def rebuild_units(store: Store, job: PreparationJob, unit_indices: list[int], log: LogFunction, runner: Runner) -> None:
    shutil.copy(store.path / "tokenizer.json", job.work_dir / "tokenizer.json")
    all_units = job.data.list_units()
    find_corpus_repeats(job, work_units.group_units(all_units), runner, log)
    folders = {index: job.get_group_dir([all_units[index]]) for index in unit_indices}
    damaged_units = [(all_units[index],) for index in unit_indices]
    runner.run_items(partial(work_units.tokenize_group, job), damaged_units, lambda num_done: None, log)
    for index, folder in folders.items():
        (finished,) = store_files.read_intact_units(folder)
        if finished["splits"] != store.metadata["units"][index]["splits"]:
            raise UserError(f"unit {index} of {store.path} comes out otherwise than it was: prepare it anew")
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
            store_files.write_unit_split(folders[index] / split, store.path / split, spans[index])
