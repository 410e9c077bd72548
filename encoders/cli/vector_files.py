"""Vectors of texts as files: .npy, .npz and .parquet."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from encoders.data.store import encode_npy
from encoders.text.source import import_optional
from encoders.utils.files import write_file_atomically
from encoders.utils.serialization import ExperimentError

SUFFIXES = (".npy", ".npz", ".parquet")


def check_vector_file(out: str, kind: str) -> None:
    """Raise `ExperimentError` for a file that `write_vectors` cannot write, and for predictions that are no vectors."""
    path = Path(out)
    if kind != "embed":
        raise ExperimentError(f"--out {out} is for the vectors of `embed`; {kind} prints lines, or with --json JSON")
    if path.suffix not in SUFFIXES:
        raise ExperimentError(f"--out {out} must end in one of {', '.join(SUFFIXES)}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ExperimentError(f"--out {out} cannot be written: {path.parent} must be a folder that you may write to")
    if path.suffix == ".parquet":
        import_optional("pyarrow.parquet", f"--out {out}")


def write_vectors(
    out: str, vectors: Sequence[tuple[str | tuple[str, str], np.ndarray]], bad_indices: Sequence[int], size: int
) -> None:
    """Write texts and their vectors `[size]` as a whole file, or leave the old one.

    Each of `bad_indices` adds a row of NaN, so that row n is that of the n-th line. An .npz file holds the array
    `vectors`; a .parquet file the columns text, second and vector, null for such a row.
    """
    path, has_vector = Path(out), np.ones(len(vectors) + len(bad_indices), bool)
    has_vector[np.array(bad_indices, int)] = False
    rows = np.full((len(has_vector), size), np.nan, np.float32)
    rows[has_vector] = np.reshape([vector for _, vector in vectors], (-1, size))
    if path.suffix == ".npy":
        content = encode_npy(rows)
    elif path.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez(buffer, vectors=rows)
        content = buffer.getbuffer()
    else:
        texts = iter([text for text, _ in vectors])
        content = encode_parquet([next(texts) if has_text else None for has_text in has_vector], rows)
    write_file_atomically(path, content)


def encode_parquet(texts: Sequence[str | tuple[str, str] | None], rows: np.ndarray) -> memoryview:
    """Return texts and their vectors `[n d]` as the bytes of a Parquet file."""
    arrow, parquet = import_optional("pyarrow", "a Parquet file"), import_optional("pyarrow.parquet", "a Parquet file")
    pairs = [(text, None) if text is None or isinstance(text, str) else text for text in texts]
    vectors = [None if text is None else row for text, row in zip(texts, rows, strict=True)]
    columns = {
        "text": arrow.array([first for first, _ in pairs], arrow.string()),
        "second": arrow.array([second for _, second in pairs], arrow.string()),
        "vector": arrow.array(vectors, arrow.list_(arrow.float32())),
    }
    buffer = io.BytesIO()
    parquet.write_table(arrow.table(columns), buffer)
    return buffer.getbuffer()
