"""Prepared TFDS data sets by name or folder, read through their random access, without TensorFlow."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from encoders.text.source import ByteRange, CorpusError, DigestCache, Document, import_optional, split_paragraphs

TEXT_FEATURES = ("text", "sentence", "content", "review", "document")  # the first one that a data set has is read
WIKI40B_MARKERS = re.compile(r"_START_(?:ARTICLE|SECTION|PARAGRAPH)_|_NEWLINE_")  # wiki40b marks its lines with words


@dataclass(frozen=True)
class TfdsSource:
    """Source of a prepared data set; `item` is "tfds:NAME@SPLIT". `text_field` names the text feature where it is
    neither one of `TEXT_FEATURES` nor the only one."""

    item: str
    text_field: str | None = None

    def check_readable(self) -> None:
        self.find_text_feature(open_tfds_dataset(self.item)[0])

    def describe_content(self, digest_cache: DigestCache) -> list[dict]:
        builder, split, _ = open_tfds_dataset(self.item)
        name = builder.info.full_name.removesuffix(f"/{builder.version}")
        return [{"tfds": name, "split": split, "version": str(builder.version)}]

    def split_ranges(self, target_bytes: int) -> Iterator[ByteRange]:
        builder, split, records = open_tfds_dataset(self.item)
        split_info = builder.info.splits[split.partition("[")[0]]
        record_bytes = max(1, (split_info.num_bytes or 0) // max(split_info.num_examples, 1))
        range_records = max(1, target_bytes // record_bytes)
        for start in range(0, len(records), range_records):
            stop = min(start + range_records, len(records))
            yield ByteRange(self.item, start, stop, (stop - start) * record_bytes)

    def read_documents(self, byte_range: ByteRange) -> Iterator[Document]:
        builder, _, records = open_tfds_dataset(self.item)
        feature = self.find_text_feature(builder)
        for index in range(byte_range.start, byte_range.stop):
            text = records[index][feature]
            try:
                text = text.decode() if isinstance(text, bytes) else str(text)
            except UnicodeDecodeError as error:
                raise CorpusError(f"corpus {self.item!r}: record {index} is not UTF-8") from error
            if document := split_paragraphs(WIKI40B_MARKERS.sub("\n", text)):
                yield document

    def find_text_feature(self, builder) -> str:
        tfds = import_optional("tensorflow_datasets", f"corpus {self.item!r}")
        texts = [key for key, kind in builder.info.features.items() if isinstance(kind, tfds.features.Text)]
        candidates = (self.text_field,) if self.text_field else TEXT_FEATURES
        matches = [name for name in candidates if name in texts]
        if matches or (len(texts) == 1 and not self.text_field):
            return [*matches, *texts][0]
        raise CorpusError(f"corpus {self.item!r} has the text features {texts}; one must be {', '.join(candidates)}")


def read_tfds_records(item: str) -> Iterator[dict]:
    """Yield the records of a prepared data set "tfds:NAME@SPLIT", bytes as text. Raises `CorpusError`."""
    _, _, records = open_tfds_dataset(item)
    yield from (decode_tfds_value(records[index]) for index in range(len(records)))


def describe_tfds_version(item: str) -> str:
    """Return the name, version and split of a prepared data set. Raises `CorpusError` where it cannot be read."""
    builder, split, _ = open_tfds_dataset(item)
    return f"{builder.info.full_name}@{split}"


def decode_tfds_value(value):
    if isinstance(value, dict):
        return {name: decode_tfds_value(inner) for name, inner in value.items()}
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    kind = value.dtype.kind if getattr(value, "ndim", 0) else None
    return [decode_tfds_value(inner) for inner in value] if isinstance(value, list) or kind in ("O", "S") else value


@contextmanager
def log_errors_only(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def open_tfds_dataset(item: str):
    """Return the builder, split name and records of a prepared data set."""
    name, _, split = item.removeprefix("tfds:").partition("@")
    split = split or "train"
    tfds = import_optional("tensorflow_datasets", f"corpus {item!r}")
    try:
        tfds.text.Glue  # noqa: B018 - registers the older text builders, which fails silently without h5py
        folder = Path(name).expanduser()
        builder = tfds.builder_from_directory(folder) if folder.is_dir() else tfds.builder(name, try_gcs=False)
    except Warning:  # of a package, where warnings are errors
        raise
    except Exception as error:
        known = re.findall(r"^\s*- (\S+)$", str(error), re.MULTILINE)
        if near := difflib.get_close_matches(name, known, 3):
            reason = f"TFDS does not know {name!r}; similar names: {', '.join(near)}"
        else:
            reason = "neither a TFDS dataset nor a folder of a prepared one, which holds dataset_info.json: "
            reason += (str(error).strip() or repr(error)).splitlines()[0]
        raise CorpusError(f"corpus {item!r}: {reason}") from error
    with log_errors_only(logging.getLogger("absl")):  # its warning is the error below
        is_prepared = builder.is_prepared()
    if not is_prepared:
        raise CorpusError(
            f"corpus {item!r} is not prepared in {builder.data_dir} (TFDS_DATA_DIR sets where); nothing is downloaded "
            f"unasked: run `tfds build {name} --file_format=array_record`, or "
            f"tfds.builder({name!r}, file_format='array_record').download_and_prepare()"
        )
    if split.partition("[")[0] not in builder.info.splits:
        raise CorpusError(f"corpus {item!r} lacks the split {split!r}; it has {', '.join(builder.info.splits)}")
    try:
        records = builder.as_data_source(split=split)
    except Exception as error:
        raise CorpusError(
            f"corpus {item!r} in {builder.data_dir} cannot be read: {error}; without TensorFlow it must have been "
            "prepared with file_format='array_record'"
        ) from error
    return builder, split, records
