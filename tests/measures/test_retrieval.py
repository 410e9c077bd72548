"""Retrieval: beside scikit-learn and plain loops on random rankings, and with the vectors of a run; refused files."""

import json
import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

import encoders
from encoders.cli.measure_runs import choose_measures
from encoders.inference.sentence_embedding import normalize_vector
from encoders.measures import base
from encoders.measures.base import load_or_measure
from encoders.measures.retrieval import Retrieval, score_ranking
from encoders.utils.errors import UserError
from tests import texts
from tests.refusals import raises_naming

NUM_DOCUMENTS = 23
DOCUMENTS = [
    {"_id": f"d{i}", "title": d[0][:20], "text": d[1][:40].strip()}
    for i, d in enumerate(texts.made_up(NUM_DOCUMENTS, seed=3))
]
QUERIES = {f"q{i}": document[0] for i, document in enumerate(texts.made_up(4, seed=4))}
JUDGEMENTS = {
    "q0": {"d1": 2, "d5": 1, "d7": 0, "d20": 1},
    "q1": {"d2": 1, "lost": 3},
    "q2": {"d3": 0},  # without a relevant document
    "d4": {"d4": 1, "d9": 1},
}


@pytest.fixture(scope="module")
def predictor(folder):
    return encoders.load(folder, lengths=(32, 64))


@pytest.fixture
def data(tmp_path):
    """BEIR's layout, with an empty document, and a query with the id of a document."""
    documents = [*DOCUMENTS, {"_id": "empty", "title": "", "text": " "}]
    queries = [{"_id": name, "text": text, "metadata": {}} for name, text in (QUERIES | {"d4": "tan here"}).items()]
    write(tmp_path / "corpus.jsonl", map(json.dumps, documents))
    write(tmp_path / "queries.jsonl", map(json.dumps, queries))
    rows = [f"{query}\t{document}\t{score}" for query, row in JUDGEMENTS.items() for document, score in row.items()]
    write(tmp_path / "qrels" / "test.tsv", ["query-id\tcorpus-id\tscore", *rows])
    return tmp_path


def write(path, lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def score_by_loops(ranking, scores):
    """nDCG@10, recall@10, recall@100 and MRR@10, rank by rank."""
    relevant = [document for document, score in scores.items() if score > 0]
    ideal = sorted((score for score in scores.values() if score > 0), reverse=True)
    best = sum(score / math.log2(rank + 1) for rank, score in enumerate(ideal[:10], 1))
    gain = reciprocal = 0.0
    found = {10: 0, 100: 0}
    for rank, document in enumerate(ranking, 1):
        score = scores.get(document, 0)
        if score > 0 and rank <= 10:
            gain += score / math.log2(rank + 1)
            reciprocal = reciprocal or 1 / rank
        for cut in found:
            found[cut] += score > 0 and rank <= cut
    return [gain / best, found[10] / len(relevant), found[100] / len(relevant), reciprocal]


@pytest.mark.parametrize("seed", range(20))
def test_scores_of_a_ranking_are_those_of_scikit_learn_and_of_plain_loops(seed):
    rng = np.random.default_rng(seed)
    names = [f"d{i}" for i in range(150)]
    gains = rng.choice([0, 0, 0, 1, 2, 3], size=150) * (rng.random(150) < rng.random())
    gains[rng.integers(150)] = 2
    cosines = rng.permutation(150) / 150  # without ties
    ranking = [names[i] for i in np.argsort(-cosines)][:100]
    scores = dict(zip(names, gains.tolist(), strict=True))
    found = score_ranking(ranking, scores)
    assert found[""] == pytest.approx(ndcg_score(gains[None], cosines[None], k=10))
    assert [*found.values()] == pytest.approx(score_by_loops(ranking, scores))


def test_judgements_below_zero_have_no_gain():
    found = score_ranking(["a", "b"], {"a": -2, "b": 1})
    assert [*found.values()] == pytest.approx([1 / math.log2(3), 1, 1, 0.5])


def test_documents_are_ranked_by_the_cosine_of_the_vectors_of_the_run(folder, predictor, data, monkeypatch):
    monkeypatch.setattr(base, "load_predictor", lambda folder, step: predictor)
    scores = load_or_measure(folder, [Retrieval(str(data))])["retrieval"].scores
    texts_by_id = QUERIES | {"d4": "tan here"}
    vectors = np.array([*map(normalize_vector, predictor.embed([f"{d['title']} {d['text']}" for d in DOCUMENTS]))])
    expected = []
    for query in ("q0", "q1", "d4"):
        cosines = vectors @ normalize_vector(next(predictor.embed(texts_by_id[query])))
        ranking = [DOCUMENTS[i]["_id"] for i in np.argsort(-cosines)]
        expected.append(score_by_loops([name for name in ranking if name != query], JUDGEMENTS[query]))
    assert [*scores][:4] == ["retrieval", "retrieval_recall_10", "retrieval_recall_100", "retrieval_mrr_10"]
    assert [*scores.values()][:4] == pytest.approx(np.mean(expected, 0).tolist())
    assert scores["retrieval_queries"] == 3 and scores["retrieval_missing"] == 1
    assert 0 < scores["retrieval"] < 1


def test_the_verb_knows_the_measure_and_its_data(data):
    measures = choose_measures(None, [f"retrieval={data}"], ["retrieval.split=dev"])
    assert Retrieval(str(data), "dev") in measures
    assert [path.name for path in Retrieval(str(data)).list_files()] == ["corpus.jsonl", "queries.jsonl", "test.tsv"]


def test_missing_files_are_named(data):
    (data / "queries.jsonl").unlink()
    with raises_naming(UserError, data / "queries.jsonl", data / "qrels" / "dev.tsv"):
        Retrieval(str(data), "dev").list_files()


@pytest.mark.parametrize(
    "name, line, values",
    [
        ("qrels/test.tsv", "q0\td1\thigh", ("test.tsv:11", "score='high'")),
        ("qrels/test.tsv", "q0\td1", ("test.tsv:11", "2 fields")),
        ("qrels/test.tsv", "q9\td1\t1", ("queries.jsonl", "1 ", "'q9'")),
        ("queries.jsonl", '{"_id": "q0", "text": "tan"}', ("queries.jsonl:6", "'q0'")),
        ("queries.jsonl", '{"_id": "q0"}', ("queries.jsonl:6", "'q0'")),
        ("queries.jsonl", '{"text": "tan"}', ("queries.jsonl:6", "_id")),
        ("corpus.jsonl", '{"_id": "d0", "text": "tan"}', ("corpus.jsonl:25", "'d0'")),
        ("corpus.jsonl", '{"_id": "d99"}', ("corpus.jsonl:25", "text")),
    ],
)
def test_bad_rows_are_named(name, line, values, predictor, data):
    with (data / name).open("a") as file:
        file.write(line + "\n")
    with raises_naming(UserError, *values):
        Retrieval(str(data)).compute(predictor)


@pytest.mark.parametrize("name", ["corpus.jsonl", "qrels/test.tsv"])
def test_data_without_documents_or_relevant_ones_are_refused(name, predictor, data):
    lines = {
        "corpus.jsonl": ['{"_id": "a", "text": ""}'],
        "qrels/test.tsv": ["query-id\tcorpus-id\tscore", "q0\td1\t0"],
    }
    write(data / name, lines[name])
    with raises_naming(UserError, data / name):
        Retrieval(str(data)).compute(predictor)
