"""Clustering of texts as in MTEB: how well the clusters of a run's vectors agree with labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from encoders.data.row_files import Record, RowError, iter_checked_records
from encoders.inference.predictor import Predictor
from encoders.measures.base import Measure, Measurement, check_path
from encoders.measures.row_columns import choose_columns
from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields

CLUSTERING_LAYOUTS = (("text", "label"), ("sentence", "label"))  # the second is that of GLUE's SST-2
BATCH_SIZE = 32  # texts in a step of k-means; the paper's, while the package mteb has since taken 500
SEED = 42  # the seed of mteb


@dataclass(frozen=True)
class Clustering(Measure):
    """V-measure (Rosenberg & Hirschberg, 2007) of k-means clusters of a run's vectors; no vector is trained.

    `path` is a .tsv, .csv, .jsonl or .parquet file with a text and a label a row. `columns` names both, and by default
    they are text or sentence, and label. A label is text or a whole number. Vectors are those of `Predictor.embed`:
    with the run's own pooling, dense layers, scaling and default prompt.

    Vectors are clustered once by mini-batch k-means with batches of 32 texts, and as many clusters as labels
    (Muennighoff et al., 2023, https://arxiv.org/abs/2210.07316, section 3.2). The seed is fixed.

    Scores: `clustering`, from 0 to 1 where each cluster is a label, and `clustering_texts`, the number of texts.
    """

    path: str = ""
    columns: tuple[str, str] | None = None

    name: ClassVar[str] = "clustering"

    def __post_init__(self):
        accepted = "the names of two columns, of texts and labels, or None"
        check_fields(self, f"{self.name}.", [("columns", lambda names: names is None or len(names) == 2, accepted)])

    def list_files(self) -> tuple[Path]:
        return (check_path(self.path, self.name),)

    def read_rows(self) -> tuple[list[str], np.ndarray]:
        """Return the texts and the number of the label of each, int `[n]`.

        Raises `RowError` for a bad row, and `UserError` for one label alone and for labels that all differ.
        """
        (path,) = self.list_files()
        texts, labels, columns = [], [], None
        for row in iter_checked_records(path):
            columns = columns or choose_columns(row, self.columns, CLUSTERING_LAYOUTS, self.name)
            text_column, label_column = columns
            texts.append(row.get_text(text_column))
            labels.append(parse_cluster_label(row, label_column))
        names, numbers = np.unique(labels, return_inverse=True)
        if not 2 <= len(names) < len(texts):
            problem = f"{path} has {len(names)} labels in the column {label_column} of {len(texts)} texts"
            raise UserError(f"{problem}; {self.name} needs at least 2, and fewer than texts")
        return texts, numbers

    def compute(self, predictor: Predictor) -> Measurement:
        """Return the scores. Raises `UserError` for bad rows before long work."""
        from sklearn.metrics import v_measure_score

        texts, labels = self.read_rows()
        clusters = cluster_vectors(np.stack([*predictor.embed(texts)]), labels.max() + 1)
        return Measurement({self.name: float(v_measure_score(labels, clusters)), f"{self.name}_texts": len(texts)})


def parse_cluster_label(row: Record, column: str) -> str:
    """Return a label as text. Raises `RowError` for one that is empty, and for one of another type."""
    label = row[column]
    if isinstance(label, str):
        return row.get_text(column)
    if not isinstance(label, int):
        raise RowError(row.location, f"{column}={label!r} is neither text nor a whole number")
    return str(label)


def cluster_vectors(vectors: np.ndarray, num_clusters: int) -> np.ndarray:
    """Return the number of the cluster of each vector, `[n]`, by k-means on vectors `[n d]`."""
    from sklearn.cluster import MiniBatchKMeans

    kmeans = MiniBatchKMeans(num_clusters, batch_size=BATCH_SIZE, n_init="auto", random_state=SEED)
    return kmeans.fit_predict(vectors)
