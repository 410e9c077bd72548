"""Prepared TFDS data sets by name or folder, read through their random access, without TensorFlow."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from encoders.text.source import CorpusError, Digests, Document, Part, needed, paragraphs

TEXTS = ("text", "sentence", "content", "review", "document")  # features that are read, the first that exists
MARKS = re.compile(r"_START_(?:ARTICLE|SECTION|PARAGRAPH)_|_NEWLINE_")  # wiki40b marks its lines with words


@dataclass(frozen=True)
class Tfds:
    """`item` is "tfds:NAME@SPLIT"; `field` names the text feature, where it is not one of `TEXTS` or the only one."""

    item: str
    field: str | None = None

    def check(self) -> None:
        self.feature(dataset(self.item)[0])

    def identity(self, digests: Digests) -> list[dict]:
        builder, split, _ = dataset(self.item)
        name = builder.info.full_name.removesuffix(f"/{builder.version}")
        return [{"tfds": name, "split": split, "version": str(builder.version)}]

    def parts(self, size: int) -> Iterator[Part]:
        builder, split, records = dataset(self.item)
        whole, count = builder.info.splits[split.partition("[")[0]], len(records)
        record = max(1, (whole.num_bytes or 0) // max(whole.num_examples, 1))
        each = max(1, size // record)
        for start in range(0, count, each):
            stop = min(start + each, count)
            yield Part(self.item, start, stop, (stop - start) * record)

    def documents(self, part: Part) -> Iterator[Document]:
        builder, _, records = dataset(self.item)
        feature = self.feature(builder)
        for index in range(part.start, part.stop):
            text = records[index][feature]
            try:
                text = text.decode() if isinstance(text, bytes) else str(text)
            except UnicodeDecodeError as error:
                raise CorpusError(f"corpus {self.item!r}: record {index} is not UTF-8") from error
            if document := paragraphs(MARKS.sub("\n", text)):
                yield document

    def feature(self, builder) -> str:
        tfds = needed("tensorflow_datasets", f"corpus {self.item!r}")
        texts = [key for key, kind in builder.info.features.items() if isinstance(kind, tfds.features.Text)]
        wanted = (self.field,) if self.field else TEXTS
        found = next((key for key in wanted if key in texts), None)
        if found is None and not self.field and len(texts) == 1:
            return texts[0]
        if found is None:
            raise CorpusError(f"corpus {self.item!r} has the text features {texts}; one must be {', '.join(wanted)}")
        return found


def tfds_records(item: str) -> Iterator[dict]:
    """The records of a prepared data set "tfds:NAME@SPLIT", bytes as text. Raises `CorpusError`."""
    _, _, records = dataset(item)
    for index in range(len(records)):
        yield as_text(records[index])


def tfds_version(item: str) -> str:
    """The name, version and split of a prepared data set. Raises `CorpusError` where it cannot be read."""
    builder, split, _ = dataset(item)
    return f"{builder.info.full_name}@{split}"


def as_text(value):
    if isinstance(value, dict):
        return {name: as_text(inner) for name, inner in value.items()}
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    kind = value.dtype.kind if getattr(value, "ndim", 0) else None
    return [as_text(inner) for inner in value] if isinstance(value, list) or kind in ("O", "S") else value


def dataset(item: str):
    """The builder, split name and records of a prepared data set."""
    name, _, split = item.removeprefix("tfds:").partition("@")
    split = split or "train"
    tfds = needed("tensorflow_datasets", f"corpus {item!r}")
    try:
        tfds.text.Glue  # noqa: B018 - registers the older text builders, which fails unseen without h5py
        if Path(name).expanduser().is_dir():
            builder = tfds.builder_from_directory(Path(name).expanduser())
        else:
            builder = tfds.builder(name, try_gcs=False)
    except Exception as error:
        known = re.findall(r"^\s*- (\S+)$", str(error), re.MULTILINE)
        if near := difflib.get_close_matches(name, known, 3):
            raise CorpusError(f"corpus {item!r}: TFDS has no {name!r}; near it: {', '.join(near)}") from error
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise CorpusError(
            f"corpus {item!r}: neither a TFDS dataset nor a folder of a prepared one, which holds "
            f"dataset_info.json: {first}"
        ) from error
    if not builder.is_prepared():
        raise CorpusError(
            f"corpus {item!r} is not prepared in {builder.data_dir} (TFDS_DATA_DIR sets where); nothing is downloaded "
            f"unasked: run `tfds build {name} --file_format=array_record`, or "
            f"tfds.builder({name!r}, file_format='array_record').download_and_prepare()"
        )
    if split.partition("[")[0] not in builder.info.splits:
        raise CorpusError(f"corpus {item!r} has no split {split!r}; it has {', '.join(builder.info.splits)}")
    try:
        records = builder.as_data_source(split=split)
    except Exception as error:
        raise CorpusError(
            f"corpus {item!r} in {builder.data_dir} cannot be read: {error}; without TensorFlow it must have been "
            "prepared with file_format='array_record'"
        ) from error
    return builder, split, records
