"""TEXT → STORE: corpus to tokens on disk, once, with memory that does not grow with the corpus.

The corpus falls into units of work (encoders/data/units.py), which any number of processes finish in any order; what
they have written is then joined. The bytes are the same however many there were, and an interrupted preparation goes
on with the units that are not finished.
"""

from __future__ import annotations

import errno
import hashlib
import json
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np

from encoders.data import filters, work_units
from encoders.data.beam_runner import DEFAULT_RUNNER, LogFunction, Runner, UnfinishedWork
from encoders.data.filters import CorpusFilters
from encoders.data.store import OFFSET_FILES, Store
from encoders.data.work_units import TEXT_SPLITS, PreparationJob, WorkUnit
from encoders.text import corpus as corpora
from encoders.text import tokenization
from encoders.text.tokenization import TokenizerSpec, VocabInfo
from encoders.utils.files import atomic_dir, check_local_paths, lock_dir

STORE_VERSION = 1  # of the store's layout; a change makes old stores another key


class StoreSpec(Protocol):
    """What a store is made of; a frozen dataclass. The store is kept in `folder`."""

    tokenizer: TokenizerSpec
    store_dir: str
    label_names: tuple[str, ...]  # what the rows are labelled with, if they are

    def check_readable(self) -> None:
        """Raises a `ValueError` for what cannot be read, before any long work."""

    def describe_content(self) -> dict:
        """What determines the store's content: file hashes or versions rather than paths."""

    def write_store(self, path: Path, work_dir: Path, runner: Runner, log: LogFunction) -> dict:
        """Fill the folder `path`, and return what `store.json` says of it beside its name and content. What is finished
        before that is kept in `work`, so that it need not be done again."""


@dataclass(frozen=True)
class PretrainingData:
    """Where text comes from and how it becomes tokens.

    `corpus` names what is read, item by item: "embedded" (the docstrings of the packages this one depends on),
    "tfds:NAME", or paths and globs of text, JSON lines or Parquet files, whose text is in the field or column `text`
    ("text" unless it is named). `sentences`: are lines paragraphs to be split, or sentences. `filters`: what is left
    out. `heldout` is the share of documents that evaluation reads and training does not. Stores are kept in `folder`.
    """

    corpus: tuple[str, ...] = ("embedded",)
    tokenizer: TokenizerSpec = TokenizerSpec()
    sentence_splitting: Literal["split", "lines"] = "split"
    language: str = "en"
    heldout_fraction: float = 0.02
    store_dir: str = field(default="stores", metadata={"not_fingerprinted": True})
    text_field: str | None = None
    filters: CorpusFilters = CorpusFilters()

    label_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        if not self.corpus:
            raise ValueError("data.corpus is empty; it takes 'embedded', 'tfds:NAME', or files")
        if not 0 < self.heldout_fraction < 1:
            raise ValueError(f"data.heldout_fraction={self.heldout_fraction} must be above 0 and below 1")

    def check_readable(self) -> None:
        corpora.check_corpus(self.corpus, self.sentence_splitting, self.language, self.text_field)

    def describe_content(self) -> dict:
        # These keys are hashed: they keep their spelling when a field is renamed, so that stores stay valid.
        spec = {
            "corpus": corpora.describe_corpus(self.corpus, self.text_field, Path(self.store_dir) / ".digests.json"),
            "vocabulary": {
                "kind": self.tokenizer.kind,
                "size": self.tokenizer.vocab_size,
                "path": self.tokenizer.path and hash_path(Path(self.tokenizer.path)),
                "lowercase": self.tokenizer.lowercase,
                "sample": self.tokenizer.train_chars,
            },
            "sentences": self.sentence_splitting,
            "language": self.language,
            "heldout": self.heldout_fraction,
        }
        # Fields added after the first stores count only where they are used.
        if self.text_field is not None:
            spec["text"] = self.text_field
        if self.filters != CorpusFilters():
            spec["filters"] = {
                "duplicates": self.filters.deduplicate,
                "boilerplate": self.filters.max_paragraph_repeats,
                "characters": self.filters.min_characters,
                "letters": self.filters.min_letter_fraction,
            }
        items = Counter(unit.item_index for unit in self.make_job(Path(self.store_dir)).list_units())
        if items.total() > 1:  # then where units begin decides what is held out, and items are told apart
            spec["units"] = {"size": corpora.RANGE_BYTES, "items": [items[i] for i in range(len(self.corpus))]}
        return spec | {"version": STORE_VERSION}

    def write_store(self, path: Path, work_dir: Path, runner: Runner, log: LogFunction) -> dict:
        return write_text_store(self.make_job(work_dir), path, runner, log)

    def make_job(self, work_dir: Path) -> PreparationJob:
        """Its preparation in `folder`, for processes with other working directories too."""
        absolute = tuple(corpora.resolve_item(item) for item in self.corpus)
        return PreparationJob(replace(self, corpus=absolute), work_dir.resolve())


def hash_path(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder."""
    path = path.expanduser()
    if not path.exists():
        raise ValueError(f"there is no {str(path)!r}")
    files = sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).hexdigest()


def compute_store_key(data: StoreSpec) -> str:
    """The content key of the store that `data` makes."""
    return hash_content(data.describe_content())


def hash_content(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def prepare_store(
    data: StoreSpec, log: LogFunction = work_units.ignore_log_line, runner: Runner = DEFAULT_RUNNER
) -> Store:
    """The store of `data`, made now if it is not there. Raises `CorpusError` or `ValueError` before any long work."""
    check_local_paths(data.store_dir)
    data.check_readable()
    content = data.describe_content()
    path = Path(data.store_dir) / hash_content(content)
    if not path.exists():
        runner.check_available()
        build_store(data, content, path, runner, log)
    elif (left := get_work_dir(path)).exists():  # its process was killed at the very end
        shutil.rmtree(left, ignore_errors=True)
    return Store.open(path)


def get_work_dir(path: Path) -> Path:
    """Where the finished units of a store lie until it is whole."""
    return path.with_name(f".{path.name}.work")


def build_store(data: StoreSpec, content: dict, path: Path, runner: Runner, log: LogFunction) -> None:
    work, folder = get_work_dir(path), path.parent
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    with lock_dir(work, lambda: log(f"{path}: another process prepares it; waiting")):
        try:
            if path.exists():
                return
            killed = (*folder.glob(f".{path.name}.partial-*"), *work.glob("parts/.*.partial-*"))
            for left in killed:
                shutil.rmtree(left, ignore_errors=True)
            with atomic_dir(path) as partial:
                meta = {"key": path.name, "content": content} | data.write_store(partial, work, runner, log)
                (partial / "store.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        except UnfinishedWork:
            raise
        except ValueError:  # the corpus must change, and then nothing that is there would help
            shutil.rmtree(work, ignore_errors=True)
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise ValueError(
                    f"no space is left in {folder} for the store; what is finished is kept in {work}, and the same "
                    "command goes on with it"
                ) from error
            raise
        finally:
            if path.exists():
                shutil.rmtree(work, ignore_errors=True)
            for each in made:
                if each.is_dir() and not any(each.iterdir()):
                    each.rmdir()


def write_text_store(job: PreparationJob, path: Path, runner: Runner, log: LogFunction) -> dict:
    """The files of a store of running text, and what it is: what goes, vocabulary, tokens, all joined."""
    seconds, clock = {}, time.monotonic()

    def record_seconds(stage: str) -> None:
        nonlocal clock
        seconds[stage], clock = round(time.monotonic() - clock, 2), time.monotonic()

    todo = job.list_units()
    find_corpus_repeats(job, todo, runner, log)
    record_seconds("repeats")
    tokenizer = load_or_train_tokenizer(job, todo, log)
    tokenizer.save(path / "tokenizer.json")
    record_seconds("vocabulary")
    runner.run_items(partial(work_units.tokenize_unit, job), todo, make_progress_logger("tokens", len(todo), log), log)
    record_seconds("tokens")
    parts, counts = join_finished_units(job, todo, path, tokenizer.vocab, log)
    record_seconds("joined")
    splits = {split: sum_split_counts(part["splits"][split] for part in parts) for split in TEXT_SPLITS}
    documents = sum(split["documents"] for split in splits.values())
    for split, found in splits.items():
        if not found["documents"]:
            raise ValueError(
                f"the {split} split is empty: {documents} document(s) in {', '.join(job.data.corpus)}; documents of a "
                f"text file are separated by blank lines, and about {job.data.heldout_fraction:.0%} of them are held "
                "out"
            )
    facts, ordinary = tokenizer.vocab, counts.copy()
    ordinary[list(facts.special_ids)] = 0
    return {
        "dtype": np.dtype(work_units.choose_token_dtype(facts)).name,
        "facts": replace(facts, most_frequent_id=int(ordinary.argmax())).to_json_value(),
        "tokenizer": hash_path(path / "tokenizer.json"),
        "splits": splits,
        "filtered": filters.sum_filter_counts(Counter(part["filtered"]) for part in parts),
        "unknown_rate": float(counts[facts.unk_id] / max(counts.sum(), 1)),
        "characters": sum(part["characters"] for part in parts),
        "seconds": seconds,
        "peak_memory_mb": max(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, *(part["peak_memory_mb"] for part in parts)
        ),
        "parts": [{name: part[name] for name in ("of", "item", "splits")} for part in parts],
    }


def find_corpus_repeats(job: PreparationJob, all_units: list[WorkUnit], runner: Runner, log: LogFunction) -> None:
    """Find what goes because it stands elsewhere too, if that is asked for."""
    if job.data.filters.compared_levels:
        runner.run_items(
            partial(work_units.hash_unit, job), all_units, make_progress_logger("hashes", len(all_units), log), log
        )
        buckets = work_units.plan_hash_buckets(job, len(all_units))
        runner.run_items(
            partial(work_units.find_repeats_in_bucket, job),
            buckets,
            make_progress_logger("repeats", len(buckets), log),
            log,
        )


def make_progress_logger(stage: str, num_units: int, log: LogFunction) -> Callable[[int], None]:
    """Says now and then how many of `count` units a stage has done."""
    began = last = time.monotonic()

    def log_progress(num_done: int) -> None:
        nonlocal last
        if num_units > 1 and (num_done == num_units or time.monotonic() - last > 1):
            last = time.monotonic()
            log(f"{stage}: {num_done:,} of {num_units:,} units, {last - began:,.0f} s")

    return log_progress


def sum_split_counts(summaries) -> dict[str, int]:
    """Documents, sentences and tokens of several parts."""
    whole = Counter(documents=0, sentences=0, tokens=0)
    for summary in summaries:
        whole.update({name: summary[name] for name in whole})
    return dict(whole)


def load_or_train_tokenizer(job: PreparationJob, all_units: list[WorkUnit], log: LogFunction):
    """The tokenizer, in the folder of the work too, where every process finds it."""
    path, spec = job.work_dir / "tokenizer.json", job.data.tokenizer
    if not path.exists():
        log(f"vocabulary: {'read from ' + spec.path if spec.path else f'training {spec.kind} of {spec.vocab_size:,}'}")
        if spec.path:
            tokenizer = tokenization.load_tokenizer(spec.path, spec.lowercase)
        else:
            tokenizer = tokenization.train_tokenizer(spec, work_units.sample_documents(job, all_units))
        partial = path.with_suffix(".partial")
        tokenizer.save(partial)
        partial.rename(path)
    return tokenization.load_tokenizer(path)


def join_finished_units(
    job: PreparationJob, all_units: list[WorkUnit], path: Path, vocab: VocabInfo, log: LogFunction
) -> tuple[list[dict], np.ndarray]:
    """The parts' files as those of the store, one after another, and their summaries and counts of tokens.

    A part whose bytes are not those that were written is made again.
    """
    for split in TEXT_SPLITS:
        (path / split).mkdir()
        for name in OFFSET_FILES:
            (path / split / f"{name}.bin").write_bytes(bytes(8))
    found, counts = [], np.zeros(vocab.vocab_size, np.int64)
    ends = {split: Counter() for split in TEXT_SPLITS}
    for unit in all_units:
        part = job.get_unit_dir(unit.unit_index)
        if (summary := read_intact_summary(part)) is None:
            log(f"part {unit.unit_index} ({unit}) is damaged, and made again")
            shutil.rmtree(part, ignore_errors=True)
            work_units.tokenize_unit(job, unit, log)
            summary = read_intact_summary(part)
        found.append(summary)
        counts += np.load(part / "counts.npy")
        for split in TEXT_SPLITS:
            append_unit_split(part / split, path / split, ends[split])
            ends[split].update(summary["splits"][split] | {"sha256": 0})
    return found, counts


def read_intact_summary(unit_dir: Path) -> dict | None:
    """The summary of a part whose files are as they were written."""
    try:
        summary = json.loads((unit_dir / "part.json").read_text(encoding="utf-8"))
        counts = hashlib.sha256((unit_dir / "counts.npy").read_bytes()).hexdigest()
        splits = (
            work_units.hash_split_files(unit_dir / split) == summary["splits"][split]["sha256"] for split in TEXT_SPLITS
        )
        return summary if counts == summary["counts"] and all(splits) else None
    except (OSError, ValueError, KeyError):
        return None


def append_unit_split(unit_split_dir: Path, store_split_dir: Path, base_offsets: Counter) -> None:
    """The files of a part's split behind those of the store, whose offsets go on from `ends`."""
    with open(unit_split_dir / "tokens.bin", "rb") as source, open(store_split_dir / "tokens.bin", "ab") as target:
        shutil.copyfileobj(source, target, 1 << 22)
    for name, start in zip(OFFSET_FILES, (base_offsets["tokens"], base_offsets["sentences"]), strict=True):
        with open(store_split_dir / f"{name}.bin", "ab") as target:
            for piece in work_units.read_number_blocks(unit_split_dir / f"{name}.bin", np.int64, 1):
                target.write((piece + start).tobytes())
