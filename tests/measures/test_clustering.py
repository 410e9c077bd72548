"""Clustering: beside scikit-learn's clusters and entropies by plain loops, and the files that are refused."""

import csv
import json
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans

from encoders.measures.clustering import Clustering
from encoders.utils.errors import UserError
from encoders.utils.serialization import from_json_value, to_json_value
from tests.refusals import raises_naming

LABELS = ("sea", "hill", "7")


def make_rows(count, seed, spread):
    """Texts with a label each, and vectors by text around a centre of their label."""
    rng = np.random.default_rng(seed)
    rows = [(f"text {i}", LABELS[rng.integers(len(LABELS))]) for i in range(count)]
    centres = {label: centre for label, centre in zip(LABELS, 10 * np.eye(4, dtype=np.float32), strict=False)}
    vectors = {text: centres[label] + spread * rng.normal(size=4).astype(np.float32) for text, label in rows}
    return rows, vectors


def write_tsv(path, rows, header=("text", "label")):
    path.write_text("".join("\t".join(row) + "\n" for row in (header, *rows)), encoding="utf-8")
    return str(path)


def measure(path, vectors, **fields):
    predictor = SimpleNamespace(embed=lambda texts: (vectors[text] for text in texts))
    return Clustering(path, **fields).compute(predictor)


def score_by_loops(labels, clusters):
    """V-measure of Rosenberg & Hirschberg, from the shares of labels in clusters and of clusters in labels."""

    def explain(ours, others):
        """1 - H(ours | others) / H(ours)."""
        total, joint = len(ours), Counter(zip(ours, others, strict=True))
        entropy = -sum(n / total * math.log(n / total) for n in Counter(ours).values())
        sizes = Counter(others)
        left = -sum(n / total * math.log(n / sizes[other]) for (_, other), n in joint.items())
        return 1 - left / entropy

    homogeneity, completeness = explain(labels, clusters), explain(clusters, labels)
    return 2 * homogeneity * completeness / (homogeneity + completeness)


@pytest.mark.parametrize("seed, spread", [(0, 6.0), (1, 8.0), (2, 5.0)])
def test_the_score_is_the_v_measure_of_the_clusters_of_scikit_learn(seed, spread, tmp_path):
    rows, vectors = make_rows(150, seed, spread)
    measurement = measure(write_tsv(tmp_path / "rows.tsv", rows), vectors)
    kmeans = MiniBatchKMeans(n_clusters=3, batch_size=32, n_init="auto", random_state=42)
    clusters = kmeans.fit(np.array([vectors[text] for text, _ in rows])).labels_.tolist()
    expected = score_by_loops([label for _, label in rows], clusters)
    assert measurement.scores == {"clustering": pytest.approx(expected), "clustering_texts": 150}
    assert 0 < expected < 0.9 and not measurement.items


def test_vectors_that_are_apart_by_label_score_one_in_every_kind_of_file(tmp_path):
    rows, vectors = make_rows(40, 3, 0.1)
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "sentence", "label"), *((i, *row) for i, row in enumerate(rows))])
    lines = [{"title": text, "topic": LABELS.index(label)} for text, label in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected = {"clustering": pytest.approx(1), "clustering_texts": 40}
    assert measure(str(tmp_path / "rows.csv"), vectors).scores == expected
    assert measure(str(tmp_path / "rows.jsonl"), vectors, columns=("title", "topic")).scores == expected


def test_the_columns_of_a_measure_are_read_back_from_json():
    chosen = Clustering("rows.tsv", ("title", "topic"))
    assert from_json_value(json.loads(json.dumps(to_json_value(chosen)))) == chosen


@pytest.mark.parametrize(
    "header, rows, fields, values",
    [
        (("words", "label"), [("tan", "a")], {}, ["rows.tsv:2", "words, label", "text, label", "clustering.columns"]),
        (("text", "label"), [("tan", "a")], {"columns": ("text", "topic")}, ["rows.tsv:2", "text, topic"]),
        (("text", "label"), [("tan", "a"), ("ber", " ")], {}, ["rows.tsv:3", "label is empty"]),
        (("text", "label"), [("tan", "a"), ("", "b")], {}, ["rows.tsv:3", "text is empty"]),
        (("text", "label"), [("tan", "a"), ("ber", "a")], {}, ["rows.tsv", "1 label", "column label", "at least 2"]),
        (("text", "label"), [("tan", "a"), ("ber", "b")], {}, ["rows.tsv", "2 labels", "2 texts"]),
        (("text", "label"), [], {}, ["rows.tsv", "no rows"]),
    ],
)
def test_rows_that_cannot_be_clustered_are_named_in_one_line(header, rows, fields, values, tmp_path):
    with raises_naming(UserError, *values) as caught:
        measure(write_tsv(tmp_path / "rows.tsv", rows, header), {}, **fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", [None, 0.5, ["a"]])
def test_a_label_that_is_neither_text_nor_a_whole_number_is_refused(label, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "tan", "label": label}))
    with raises_naming(UserError, "rows.jsonl:1", f"label={label!r}"):
        measure(str(path), {})


def test_one_column_is_refused():
    with raises_naming(UserError, "clustering.columns=('text',)", "two columns"):
        Clustering(columns=("text",))
