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
from encoders.data.beam_runner import HERE, Runner, Say
from encoders.data.prepare import Data, compare, digest, key
from encoders.data.store import OFFSETS, Store
from encoders.data.work_units import SPLITS, Work
from encoders.utils.files import owned


@dataclass(frozen=True)
class Span:
    """Where a part's numbers stand in one file of a split, and what is added to them there."""

    file: str
    kind: str
    first: int
    last: int
    base: int

    def read(self, folder: Path) -> Iterator[np.ndarray]:
        """As the part had them."""
        kind, path = np.dtype(self.kind), folder / self.file
        for piece in work_units.pieces(path, kind, self.first, self.last) if path.exists() else ():
            yield piece - kind.type(self.base)

    def write(self, folder: Path, part: Path, skipped: int) -> None:
        """Put the numbers of the part's file, but for the `skipped` first ones, in their place."""
        kind = np.dtype(self.kind)
        with open(folder / self.file, "r+b") as target:
            target.seek(self.first * kind.itemsize)
            for piece in work_units.pieces(part / self.file, kind, skipped):
                target.write((piece + kind.type(self.base)).tobytes())


def spans(store: Store, split: str) -> Iterator[tuple[Span, ...]]:
    """The spans of each part in the files of tokens, sentences and documents."""
    tokens = sentences = documents = 0
    for part in store.meta["parts"]:
        size = part["splits"][split]
        yield (
            Span("tokens.bin", store.meta["dtype"], tokens, tokens + size["tokens"], 0),
            Span("sentences.bin", "int64", sentences + 1, sentences + 1 + size["sentences"], tokens),
            Span("documents.bin", "int64", documents + 1, documents + 1 + size["documents"], sentences),
        )
        tokens, sentences = tokens + size["tokens"], sentences + size["sentences"]
        documents += size["documents"]


def damaged(store: Store) -> list[int]:
    """The numbers of the parts whose bytes in the store are not those that were written; all of them where a file is
    too long or does not begin as it must.

    Raises `ValueError` for a store without checksums, and for one whose tokenizer.json has changed.
    """
    if "parts" not in store.meta:
        raise ValueError(f"{store.path} holds no checksums: it has labelled rows, or an earlier version has written it")
    if digest(store.path / "tokenizer.json") != store.meta["tokenizer"]:
        raise ValueError(f"tokenizer.json of {store.path} has changed: remove the store, and prepare it anew")
    found = set()
    for split in SPLITS:
        folder = store.path / split
        for name, size in sizes(store, split).items():
            path = folder / name
            if not path.exists() or path.stat().st_size > size or name != "tokens.bin" and not begins(path):
                found.update(range(len(store.meta["parts"])))
        for number, (part, places) in enumerate(zip(store.meta["parts"], spans(store, split), strict=True)):
            whole = hashlib.sha256()
            for span in places:
                if span.file != "tokens.bin":
                    whole.update(bytes(8))  # a part's offsets begin with 0
                for piece in span.read(folder):
                    whole.update(piece.tobytes())
            if whole.hexdigest() != part["splits"][split]["sha256"]:
                found.add(number)
    return sorted(found)


def begins(path: Path) -> bool:
    """Whether a file of offsets begins with 0."""
    with open(path, "rb") as file:
        return file.read(8) == bytes(8)


def sizes(store: Store, split: str) -> dict[str, int]:
    """The bytes of each file of a split."""
    counts, width = store.meta["splits"][split], np.dtype(store.meta["dtype"]).itemsize
    offsets = {f"{name}.bin": 8 * (counts[name] + 1) for name in OFFSETS}
    return {"tokens.bin": width * counts["tokens"]} | offsets


def repair(store: Store, data: Data, numbers: list[int], say: Say = work_units.quiet, runner: Runner = HERE) -> None:
    """Make the parts again from the corpus and put them in their places; tables go, which may be of damaged tokens.

    Raises `ValueError`, and leaves the store as it is, where `data` is not what it was made of.
    """
    if key(data) != store.key:
        raise ValueError(f"{store.path} was made of another corpus or vocabulary than {data.corpus}: it stays as it is")
    folder = store.path.with_name(f".{store.key}.repair").resolve()
    with owned(folder, lambda: say(f"{store.path}: another process repairs it; waiting")):
        try:
            remake(store, data.work(folder), numbers, say, runner)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remake(store: Store, work: Work, numbers: list[int], say: Say, runner: Runner) -> None:
    shutil.copy(store.path / "tokenizer.json", work.folder / "tokenizer.json")
    todo = work.units()
    compare(work, todo, runner, say)
    runner.run(partial(work_units.tokenise_unit, work), [todo[number] for number in numbers], lambda count: None, say)
    for split in SPLITS:
        for number in numbers:
            recorded = store.meta["parts"][number]["splits"][split]["sha256"]
            if work_units.digest(work.part(number) / split) != recorded:
                raise ValueError(f"part {number} of {store.path} comes out otherwise than it was: prepare it anew")
    shutil.rmtree(store.path / "tables", ignore_errors=True)
    for split in SPLITS:
        for name, size in sizes(store, split).items():
            with open(store.path / split / name, "ab") as file:
                file.truncate(size)
            if name != "tokens.bin":
                with open(store.path / split / name, "r+b") as file:
                    file.write(bytes(8))
        places = list(spans(store, split))
        for number in numbers:
            for span in places[number]:
                span.write(store.path / split, work.part(number) / split, 0 if span.file == "tokens.bin" else 1)
