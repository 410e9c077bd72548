"""Retrieval in the layout of BEIR (Thakur et al., 2021, https://arxiv.org/abs/2104.08663): queries find documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from encoders.data.row_files import RowError, iter_checked_records
from encoders.inference.corpus_file import CorpusFile, iter_corpus_texts
from encoders.inference.predictor import Predictor
from encoders.inference.vector_index import embed_side, iter_vector_blocks
from encoders.inference.vector_search import CORPUS_BLOCK_SIZE, VectorSearch
from encoders.measures.base import Measure, Measurement, check_path
from encoders.utils.errors import UserError

CORPUS_FILE, QUERIES_FILE, JUDGEMENTS_FOLDER = "corpus.jsonl", "queries.jsonl", "qrels"
NUM_RANKED = 100  # documents that are ranked for each query


@dataclass(frozen=True)
class Retrieval(Measure):
    """Ranking of documents for queries by the run's similarity of their vectors, with its prompts; nothing is trained.

    `path` is a folder with corpus.jsonl (`_id`, title, text), queries.jsonl (`_id`, text) and qrels/SPLIT.tsv, whose
    columns are query-id, corpus-id and score. Title and text are joined by a space. `split` is test, dev or train.

    Scores, as BEIR computes them, are means over the queries with a relevant document, one of a score above 0:

    - `retrieval`: nDCG of the first 10 documents, with the score as gain and a discount of log2(1 + rank);
    - `retrieval_recall_10` and `retrieval_recall_100`: the share of the relevant documents among the first ones;
    - `retrieval_mrr_10`: 1 / rank of the first relevant document, and 0 behind rank 10;
    - `retrieval_queries`: their number, and `retrieval_missing`: the relevant documents that the corpus lacks, or
      that are empty. They count as not found.

    A document with the id of the query is left out of its ranking. An empty document is never found. Documents of equal
    similarity are in the order of the corpus, while trec_eval orders them by id.
    """

    path: str = ""
    split: str = "test"

    name: ClassVar[str] = "retrieval"

    def list_files(self) -> tuple[Path, ...]:
        folder = check_path(self.path, self.name)
        files = (folder / CORPUS_FILE, folder / QUERIES_FILE, folder / JUDGEMENTS_FOLDER / f"{self.split}.tsv")
        if missing := [str(file) for file in files if not file.is_file()]:
            raise UserError(f"{self.name}: {', '.join(missing)} is missing; {folder} needs the layout of BEIR")
        return files

    def compute(self, predictor: Predictor) -> Measurement:
        """Return the scores. Raises `RowError` for a bad row before long work."""
        corpus_path, queries_path, judgements_path = self.list_files()
        judgements = read_judgements(judgements_path)
        queries = read_queries(queries_path, judgements)
        corpus, document_ids = read_documents(corpus_path)
        search = VectorSearch(embed_side(predictor, [*queries.values()], "query"), NUM_RANKED + 1)
        for vectors in iter_vector_blocks(predictor, corpus, CORPUS_BLOCK_SIZE, 0, log=lambda line: None):
            search.add_vectors(vectors)
        _, indices = search.get_best()
        rows = []
        for query_id, row in zip(queries, indices.tolist(), strict=True):
            ranked = [document_ids[i] for i in row if document_ids[i] != query_id][:NUM_RANKED]
            rows.append(score_ranking(ranked, judgements[query_id]))
        scores = {f"{self.name}{suffix}": float(np.mean([row[suffix] for row in rows])) for suffix in rows[0]}
        relevant_ids = {document_id for query_id in queries for document_id in list_relevant(judgements[query_id])}
        num_missing = len(relevant_ids.difference(document_ids))
        return Measurement(scores | {f"{self.name}_queries": len(rows), f"{self.name}_missing": num_missing})


def read_judgements(path: Path) -> dict[str, dict[str, int]]:
    """Return the scores of documents by query, of the queries with a relevant document.

    The last of several scores of a document counts. Raises `RowError` for a bad row, and `UserError` without queries.
    """
    judgements: dict[str, dict[str, int]] = {}
    for row in iter_checked_records(path):
        try:
            score = int(row["score"])
        except ValueError:
            raise RowError(row.location, f"score={row['score']!r} is not a whole number") from None
        judgements.setdefault(row.get_text("query-id"), {})[row.get_text("corpus-id")] = score
    judgements = {query_id: scores for query_id, scores in judgements.items() if list_relevant(scores)}
    if not judgements:
        raise UserError(f"{path} lacks a document with a score above 0")
    return judgements


def list_relevant(scores: Mapping[str, int]) -> list[str]:
    return [document_id for document_id, score in scores.items() if score > 0]


def read_queries(path: Path, judgements: Mapping[str, dict]) -> dict[str, str]:
    """Return the texts of the judged queries by id.

    Raises `RowError` for a bad row and a repeated id, and `UserError` where a query is missing.
    """
    queries = {}
    for row in iter_checked_records(path):
        if (query_id := str(row["_id"])) in judgements:
            if query_id in queries:
                raise RowError(row.location, f"_id={query_id!r} occurs a second time")
            queries[query_id] = row.get_text("text")
    if missing := [query_id for query_id in judgements if query_id not in queries]:
        raise UserError(f"{path} lacks {len(missing)} queries that are judged, such as {missing[0]!r}")
    return queries


def read_documents(path: Path) -> tuple[CorpusFile, list[str]]:
    """Return the documents of a file that are not empty, and their ids.

    Raises `RowError` for an id that occurs twice, and `UserError` where all are empty.
    """
    ids, all_ids = [], set()
    for document, _ in iter_corpus_texts(path):
        if document.id in all_ids:
            raise RowError(document.location, f"_id={document.id!r} occurs a second time")
        all_ids.add(document.id)
        if document.text:
            ids.append(document.id)
    return CorpusFile.scan_file(path), ids


def score_ranking(ranked: Sequence[str], scores: Mapping[str, int]) -> dict[str, float]:
    """Return the scores of one query by the suffix of their name, from its ranking and the scores of documents.

    nDCG (Järvelin & Kekäläinen, 2002) has the gains of trec_eval: scores, and not 2 to their power.

    >>> score_ranking(["b", "a"], {"a": 1})["_mrr_10"]
    0.5
    """
    relevant = set(list_relevant(scores))
    gains = [max(scores.get(document_id, 0), 0) for document_id in ranked]
    best_gains = sorted((scores[document_id] for document_id in relevant), reverse=True)
    hits = [document_id in relevant for document_id in ranked]
    return {
        "": discount_gains(gains[:10]) / discount_gains(best_gains[:10]),
        "_recall_10": sum(hits[:10]) / len(relevant),
        "_recall_100": sum(hits[:100]) / len(relevant),
        "_mrr_10": 1 / (1 + hits.index(True)) if any(hits[:10]) else 0.0,
    }


def discount_gains(gains: Sequence[float]) -> float:
    """Return the discounted cumulative gain of a ranking."""
    return float(np.sum(np.array(gains) / np.log2(np.arange(2, len(gains) + 2))))
