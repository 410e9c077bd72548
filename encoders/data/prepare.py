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
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np

from encoders.data import filters, work_units
from encoders.data.beam_runner import HERE, Runner, Say, Unfinished
from encoders.data.filters import Filters
from encoders.data.store import OFFSETS, Store
from encoders.data.work_units import SPLITS, Unit, Work
from encoders.text import corpus as corpora
from encoders.text import tokenization
from encoders.text.tokenization import Facts, Vocabulary
from encoders.utils.files import appearing, check_local, owned

VERSION = 1  # of the store's layout; a change makes old stores another key


class Source(Protocol):
    """What a store is made of; a frozen dataclass. The store is kept in `folder`."""

    vocabulary: Vocabulary
    folder: str
    labels: tuple[str, ...]  # what the rows are labelled with, if they are

    def check(self) -> None:
        """Raises a `ValueError` for what cannot be read, before any long work."""

    def content(self) -> dict:
        """What determines the store's content: file hashes or versions rather than paths."""

    def write(self, path: Path, work: Path, runner: Runner, say: Say) -> dict:
        """Fill the folder `path`, and return what `store.json` says of it beside its name and content. What is finished
        before that is kept in `work`, so that it need not be done again."""


@dataclass(frozen=True)
class Data:
    """Where text comes from and how it becomes tokens.

    `corpus` names what is read, item by item: "embedded" (the docstrings of the packages this one depends on),
    "tfds:NAME", or paths and globs of text, JSON lines or Parquet files, whose text is in the field or column `text`
    ("text" unless it is named). `sentences`: are lines paragraphs to be split, or sentences. `filters`: what is left
    out. `heldout` is the share of documents that evaluation reads and training does not. Stores are kept in `folder`.
    """

    corpus: tuple[str, ...] = ("embedded",)
    vocabulary: Vocabulary = Vocabulary()
    sentences: Literal["split", "lines"] = "split"
    language: str = "en"
    heldout: float = 0.02
    folder: str = field(default="stores", metadata={"aside": True})
    text: str | None = None
    filters: Filters = Filters()

    labels: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        if not self.corpus:
            raise ValueError("data.corpus is empty; it takes 'embedded', 'tfds:NAME', or files")
        if not 0 < self.heldout < 1:
            raise ValueError(f"data.heldout={self.heldout} must be above 0 and below 1")

    def check(self) -> None:
        corpora.check(self.corpus, self.sentences, self.language, self.text)

    def content(self) -> dict:
        spec = asdict(self)
        del spec["folder"]
        spec["corpus"] = corpora.identity(self.corpus, self.text, Path(self.folder) / ".digests.json")
        if self.vocabulary.path:
            spec["vocabulary"]["path"] = digest(Path(self.vocabulary.path))
        # What is younger than the first stores counts where it is used.
        spec |= {"filters": None if self.filters == Filters() else spec["filters"]}
        spec = {name: value for name, value in spec.items() if name not in ("text", "filters") or value is not None}
        items = Counter(unit.item for unit in self.work(Path(self.folder)).units())
        if items.total() > 1:  # then where units begin decides what is held out, and items are told apart
            spec["units"] = {"size": corpora.PART, "items": [items[i] for i in range(len(self.corpus))]}
        return spec | {"version": VERSION}

    def write(self, path: Path, work: Path, runner: Runner, say: Say) -> dict:
        return write(self.work(work), path, runner, say)

    def work(self, folder: Path) -> Work:
        """Its preparation in `folder`, for processes with other working directories too."""
        absolute = tuple(corpora.absolute(item) for item in self.corpus)
        return Work(replace(self, corpus=absolute), folder.resolve())


def digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder."""
    path = path.expanduser()
    if not path.exists():
        raise ValueError(f"there is no {str(path)!r}")
    files = sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).hexdigest()


def key(data: Source) -> str:
    """The content key of the store that `data` makes."""
    return named(data.content())


def named(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def prepared(data: Source, say: Say = work_units.quiet, runner: Runner = HERE) -> Store:
    """The store of `data`, made now if it is not there. Raises `CorpusError` or `ValueError` before any long work."""
    check_local(data.folder)
    data.check()
    content = data.content()
    path = Path(data.folder) / named(content)
    if not path.exists():
        runner.check()
        make(data, content, path, runner, say)
    elif (left := work_of(path)).exists():  # its process was killed at the very end
        shutil.rmtree(left, ignore_errors=True)
    return Store.open(path)


def work_of(path: Path) -> Path:
    """Where the finished units of a store lie until it is whole."""
    return path.with_name(f".{path.name}.work")


def make(data: Source, content: dict, path: Path, runner: Runner, say: Say) -> None:
    work, folder = work_of(path), path.parent
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    with owned(work, lambda: say(f"{path}: another process prepares it; waiting")):
        try:
            if path.exists():
                return
            killed = (*folder.glob(f".{path.name}.partial-*"), *work.glob("parts/.*.partial-*"))
            for left in killed:
                shutil.rmtree(left, ignore_errors=True)
            with appearing(path) as partial:
                meta = {"key": path.name, "content": content} | data.write(partial, work, runner, say)
                (partial / "store.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        except Unfinished:
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


def write(work: Work, path: Path, runner: Runner, say: Say) -> dict:
    """The files of a store of running text, and what it is: what goes, vocabulary, tokens, all joined."""
    seconds, clock = {}, time.monotonic()

    def lap(stage: str) -> None:
        nonlocal clock
        seconds[stage], clock = round(time.monotonic() - clock, 2), time.monotonic()

    todo = work.units()
    compare(work, todo, runner, say)
    lap("repeats")
    tokenizer = vocabulary(work, todo, say)
    tokenizer.save(path / "tokenizer.json")
    lap("vocabulary")
    runner.run(partial(work_units.tokenise_unit, work), todo, heard("tokens", len(todo), say), say)
    lap("tokens")
    parts, counts = joined(work, todo, path, tokenizer.facts, say)
    lap("joined")
    splits = {split: total(part["splits"][split] for part in parts) for split in SPLITS}
    documents = sum(split["documents"] for split in splits.values())
    for split, found in splits.items():
        if not found["documents"]:
            raise ValueError(
                f"the {split} split is empty: {documents} document(s) in {', '.join(work.data.corpus)}; documents of a "
                f"text file are separated by blank lines, and about {work.data.heldout:.0%} of them are held out"
            )
    facts, ordinary = tokenizer.facts, counts.copy()
    ordinary[list(facts.special)] = 0
    return {
        "dtype": np.dtype(work_units.kind_of(facts)).name,
        "facts": replace(facts, common=int(ordinary.argmax())).to_json(),
        "tokenizer": digest(path / "tokenizer.json"),
        "splits": splits,
        "filtered": filters.report(Counter(part["filtered"]) for part in parts),
        "unknown_rate": float(counts[facts.unk] / max(counts.sum(), 1)),
        "characters": sum(part["characters"] for part in parts),
        "seconds": seconds,
        "peak_memory_mb": max(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, *(part["peak_memory_mb"] for part in parts)
        ),
        "parts": [{name: part[name] for name in ("of", "item", "splits")} for part in parts],
    }


def compare(work: Work, todo: list[Unit], runner: Runner, say: Say) -> None:
    """Find what goes because it stands elsewhere too, if that is asked for."""
    if work.data.filters.compared:
        runner.run(partial(work_units.hash_unit, work), todo, heard("hashes", len(todo), say), say)
        buckets = work_units.buckets(work, len(todo))
        runner.run(partial(work_units.find_repeats, work), buckets, heard("repeats", len(buckets), say), say)


def heard(stage: str, count: int, say: Say) -> Callable[[int], None]:
    """Says now and then how many of `count` units a stage has done."""
    began = last = time.monotonic()

    def done(number: int) -> None:
        nonlocal last
        if count > 1 and (number == count or time.monotonic() - last > 1):
            last = time.monotonic()
            say(f"{stage}: {number:,} of {count:,} units, {last - began:,.0f} s")

    return done


def total(summaries) -> dict[str, int]:
    """Documents, sentences and tokens of several parts."""
    whole = Counter(documents=0, sentences=0, tokens=0)
    for summary in summaries:
        whole.update({name: summary[name] for name in whole})
    return dict(whole)


def vocabulary(work: Work, todo: list[Unit], say: Say):
    """The tokenizer, in the folder of the work too, where every process finds it."""
    path, spec = work.folder / "tokenizer.json", work.data.vocabulary
    if not path.exists():
        say(f"vocabulary: {'read from ' + spec.path if spec.path else f'training {spec.kind} of {spec.size:,}'}")
        if spec.path:
            tokenizer = tokenization.load(spec.path, spec.lowercase)
        else:
            tokenizer = tokenization.train(spec, work_units.sample(work, todo))
        partial = path.with_suffix(".partial")
        tokenizer.save(partial)
        partial.rename(path)
    return tokenization.load(path)


def joined(work: Work, todo: list[Unit], path: Path, facts: Facts, say: Say) -> tuple[list[dict], np.ndarray]:
    """The parts' files as those of the store, one after another, and their summaries and counts of tokens.

    A part whose bytes are not those that were written is made again.
    """
    for split in SPLITS:
        (path / split).mkdir()
        for name in OFFSETS:
            (path / split / f"{name}.bin").write_bytes(bytes(8))
    found, counts = [], np.zeros(facts.size, np.int64)
    ends = {split: Counter() for split in SPLITS}
    for unit in todo:
        part = work.part(unit.number)
        if (summary := sound(part)) is None:
            say(f"part {unit.number} ({unit}) is damaged, and made again")
            shutil.rmtree(part, ignore_errors=True)
            work_units.tokenise_unit(work, unit, say)
            summary = sound(part)
        found.append(summary)
        counts += np.load(part / "counts.npy")
        for split in SPLITS:
            append(part / split, path / split, ends[split])
            ends[split].update(summary["splits"][split] | {"sha256": 0})
    return found, counts


def sound(part: Path) -> dict | None:
    """The summary of a part whose files are as they were written."""
    try:
        summary = json.loads((part / "part.json").read_text(encoding="utf-8"))
        counts = hashlib.sha256((part / "counts.npy").read_bytes()).hexdigest()
        splits = (work_units.digest(part / split) == summary["splits"][split]["sha256"] for split in SPLITS)
        return summary if counts == summary["counts"] and all(splits) else None
    except (OSError, ValueError, KeyError):
        return None


def append(part: Path, whole: Path, ends: Counter) -> None:
    """The files of a part's split behind those of the store, whose offsets go on from `ends`."""
    with open(part / "tokens.bin", "rb") as source, open(whole / "tokens.bin", "ab") as target:
        shutil.copyfileobj(source, target, 1 << 22)
    for name, start in zip(OFFSETS, (ends["tokens"], ends["sentences"]), strict=True):
        with open(whole / f"{name}.bin", "ab") as target:
            for piece in work_units.pieces(part / f"{name}.bin", np.int64, 1):
                target.write((piece + start).tobytes())
