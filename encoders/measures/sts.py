"""Semantic textual similarity: the rank correlation of the cosine of two sentences' vectors with people's scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, get_args

import numpy as np

from encoders.data.row_files import Record, RowError, iter_checked_records, split_tsv_lines
from encoders.inference.predictor import Predictor
from encoders.inference.sentence_embedding import Pooling, normalize_vector
from encoders.measures.base import Measure, Measurement, check_path
from encoders.tasks.scores import score_spearman
from encoders.utils.buckets import open_text
from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields

YEARS = ("2012", "2013", "2014", "2015", "2016")
SEMEVAL_PATTERN, SICK_FILE, GLUE_FILE, GLUE_FOLDER = "*.test.tsv", "sick/SICK_test_annotated.txt", "dev.tsv", "STS-B"
SICK_COLUMNS = ("relatedness_score", "sentence_A", "sentence_B")
GLUE_COLUMNS = ("score", "sentence1", "sentence2")


class ScoredPair(NamedTuple):
    """Two sentences and how similar people find them, on the scale of their set."""

    similarity: float
    first: str
    second: str


@dataclass(frozen=True)
class SentenceSimilarity(Measure):
    """Spearman's correlation of the cosine of two sentences' vectors with the gold score; no vector is trained.

    `path` is a folder with the files 2012/*.test.tsv to 2016/*.test.tsv of SemEval and sick/SICK_test_annotated.txt,
    or GLUE's, or its STS-B, with dev.tsv. It may be one file with the columns score, sentence1 and sentence2. A folder
    need not hold all of them. Files have no quoting, and a pair with an empty score is left out.

    Scores: `sts_2012` to `sts_2016`, each over all pairs of a year together ("all" of SimCSE: Gao et al., 2021,
    https://arxiv.org/abs/2104.08821, appendix B), `sts_sick`, `sts_b`, and `sts`, the mean of those that were found.
    One file gives `sts` alone. `pooling` and `layer` are those of `Predictor.embed`, by default as the run was trained
    or imported for, else the mean; longer texts are cut as there.
    """

    path: str = ""
    pooling: Pooling | None = None
    layer: int = -1

    name: ClassVar[str] = "sts"

    def __post_init__(self):
        accepted = f"{', '.join(get_args(Pooling))}, or None for the run's own"
        check_fields(self, f"{self.name}.", [("pooling", lambda p: p is None or p in get_args(Pooling), accepted)])

    def list_files(self) -> tuple[Path, ...]:
        return tuple(path for paths in self.find_sets().values() for path in paths)

    def find_sets(self) -> dict[str, list[Path]]:
        """Return the files of each set, by the name of its score. Raises `UserError` for a path without any."""
        path = check_path(self.path, self.name)
        if path.is_file():
            return {self.name: [path]}
        glue_files = [file for file in (path / GLUE_FOLDER / GLUE_FILE, path / GLUE_FILE) if file.is_file()]
        sets = {f"{self.name}_{year}": sorted((path / year).glob(SEMEVAL_PATTERN)) for year in YEARS}
        sets[f"{self.name}_sick"] = [path / SICK_FILE] if (path / SICK_FILE).is_file() else []
        sets[f"{self.name}_b"] = glue_files[:1]
        found = {name: files for name, files in sets.items() if files}
        if not found:
            accepted = f"{YEARS[0]}/{SEMEVAL_PATTERN} to {YEARS[-1]}/{SEMEVAL_PATTERN}, {SICK_FILE}, "
            accepted += f"{GLUE_FOLDER}/{GLUE_FILE} and {GLUE_FILE}, or one file with the columns"
            raise UserError(f"{self.name}: {path} holds no pairs; accepted are {accepted} {', '.join(GLUE_COLUMNS)}")
        return found

    def read_pairs(self) -> dict[str, list[ScoredPair]]:
        """Return the pairs of each set. Raises `UserError` for a damaged row, and for a set of fewer than two pairs."""
        sets = self.find_sets()
        pairs = {name: [pair for path in paths for pair in read_scored_pairs(path)] for name, paths in sets.items()}
        for name, paths in sets.items():
            if len(pairs[name]) < 2:
                raise UserError(f"{paths[0]} has {len(pairs[name])} pairs with a score; {name} needs at least 2")
        return pairs

    def compute(self, predictor: Predictor) -> Measurement:
        sets = self.read_pairs()
        texts = [*dict.fromkeys(text for pairs in sets.values() for pair in pairs for text in pair[1:])]
        embedded = predictor.embed(texts, self.pooling, self.layer)
        vectors = dict(zip(texts, map(normalize_vector, embedded), strict=True))
        scores = {}
        for name, pairs in sets.items():
            cosines = np.array([vectors[pair.first] @ vectors[pair.second] for pair in pairs])
            scores[name] = score_spearman(cosines, np.array([pair.similarity for pair in pairs]))
        return Measurement(scores | {self.name: float(np.mean([*scores.values()]))})


def read_scored_pairs(path: Path) -> Iterator[ScoredPair]:
    """Yield the pairs of a file that have a score. Raises `RowError` for a damaged row."""
    rows = read_semeval_rows(path) if path.match(SEMEVAL_PATTERN) else iter_checked_records(path)
    columns = SICK_COLUMNS if path.match(SICK_FILE) else GLUE_COLUMNS
    for row in rows:
        score_column, *text_columns = columns
        if str(row[score_column]).strip():
            similarity = parse_similarity(row.location, row[score_column])
            yield ScoredPair(similarity, *(row.get_text(column) for column in text_columns))


def read_semeval_rows(path: Path) -> Iterator[Record]:
    """Yield the rows of a file without a header, whose first three columns are a score and two sentences.

    Raises `RowError` for a row of fewer columns.
    """
    with open_text(path, errors="surrogateescape") as file:
        for number, fields in split_tsv_lines(file):
            location = f"{path}:{number}"
            if len(fields) < len(GLUE_COLUMNS):
                raise RowError(location, f"{len(fields)} fields; a row is {', '.join(GLUE_COLUMNS)}, with tabs between")
            yield Record(location, dict(zip(GLUE_COLUMNS, fields, strict=False)))


def parse_similarity(location: str, score: object) -> float:
    """Return a gold score. Raises `RowError` for one that is not a finite number."""
    try:
        similarity = float(score)
    except (TypeError, ValueError):
        similarity = math.nan
    if not math.isfinite(similarity):
        raise RowError(location, f"score={score!r} is not a number")
    return similarity
