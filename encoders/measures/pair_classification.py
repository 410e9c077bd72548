"""Classification of pairs of texts as in MTEB: how well the cosine of two vectors shows equal meaning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from encoders.data.row_files import RowError, iter_checked_records
from encoders.inference.predictor import Predictor
from encoders.inference.sentence_embedding import normalize_vector
from encoders.measures.base import Measure, Measurement, check_path
from encoders.measures.row_columns import choose_columns
from encoders.tasks.glue import BINARY_LABELS, GLUE_TASKS, SENTENCE_COLUMNS
from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields

PAIR_LAYOUTS = (
    (*SENTENCE_COLUMNS, "label"),
    *((*GLUE_TASKS[name].text_columns, GLUE_TASKS[name].label_column) for name in ("MRPC", "QQP")),
)


@dataclass(frozen=True)
class PairClassification(Measure):
    """Average precision of the cosine of two texts' vectors, by which pairs are ranked; no vector is trained.

    `path` is a .tsv, .csv, .jsonl or .parquet file with two texts and a label of 0 or 1 a row; 1 is a pair of one
    meaning. `columns` names the three. By default they are sentence1, sentence2 and label, or those of GLUE's MRPC or
    QQP. Vectors are those of `Predictor.embed`: with the run's own pooling, dense layers and default prompt.

    Scores, as in pair classification of MTEB (Muennighoff et al., 2023, https://arxiv.org/abs/2210.07316, section 3.2):

    - `pairs`: average precision;
    - `pairs_accuracy` and `pairs_f1`, of label 1, each at its own best threshold on these pairs. Pairs of equal cosine
      are on one side. A threshold may accept no pair or all, as in sentence-transformers; mteb leaves both out.
    """

    path: str = ""
    columns: tuple[str, str, str] | None = None

    name: ClassVar[str] = "pairs"

    def __post_init__(self):
        accepted = "the names of three columns, of two texts and labels, or None"
        check_fields(self, f"{self.name}.", [("columns", lambda names: names is None or len(names) == 3, accepted)])

    def list_files(self) -> tuple[Path]:
        return (check_path(self.path, self.name),)

    def read_rows(self) -> tuple[list[tuple[str, str]], np.ndarray]:
        """Return the pairs and their labels, int `[n]`. Raises `RowError` for a bad row, `UserError` for one label."""
        (path,) = self.list_files()
        pairs, labels, columns = [], [], None
        for row in iter_checked_records(path):
            columns = columns or choose_columns(row, self.columns, PAIR_LAYOUTS, self.name)
            first_column, second_column, label_column = columns
            pairs.append((row.get_text(first_column), row.get_text(second_column)))
            label = row[label_column]
            if str(label) not in BINARY_LABELS:
                raise RowError(row.location, f"{label_column}={label!r} is not one of {', '.join(BINARY_LABELS)}")
            labels.append(int(label))
        if len(set(labels)) == 1:
            raise UserError(f"{path}: {label_column} is {labels[0]} in all rows; {self.name} needs both 0 and 1")
        return pairs, np.array(labels)

    def compute(self, predictor: Predictor) -> Measurement:
        """Return the scores. Raises `UserError` for bad rows before long work."""
        pairs, labels = self.read_rows()
        texts = [*dict.fromkeys(text for pair in pairs for text in pair)]
        vectors = dict(zip(texts, map(normalize_vector, predictor.embed(texts)), strict=True))
        cosines = np.array([vectors[first] @ vectors[second] for first, second in pairs])
        return Measurement({f"{self.name}{suffix}": score for suffix, score in score_cosines(cosines, labels).items()})


def score_cosines(cosines: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the scores of pairs by the suffix of their name, from cosines `[n]` and labels of 0 and 1, `[n]`.

    >>> score_cosines(np.array([0.9, 0.4, 0.6, 0.2]), np.array([1, 1, 0, 0]))["_accuracy"]
    0.75
    """
    from sklearn.metrics import average_precision_score, roc_curve

    num_positive, num_negative = int(labels.sum()), int((1 - labels).sum())
    false_rates, true_rates, _ = roc_curve(labels, cosines, drop_intermediate=False)  # at each threshold, and at none
    num_true, num_false = true_rates * num_positive, false_rates * num_negative
    return {
        "": float(average_precision_score(labels, cosines)),
        "_accuracy": float((num_true + num_negative - num_false).max() / len(labels)),
        "_f1": float((2 * num_true / (num_true + num_false + num_positive)).max()),
    }
