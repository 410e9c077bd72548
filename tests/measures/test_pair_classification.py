"""Classification of pairs: beside every threshold by plain loops, with the vectors of a run, and refused files."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

import encoders
import launch
from encoders.cli.measure_runs import choose_measures
from encoders.measures import base
from encoders.measures.clustering import Clustering, cluster_vectors
from encoders.measures.pair_classification import PairClassification, score_cosines
from encoders.utils.errors import UserError
from tests import texts
from tests.inference.small_runs import LENGTHS
from tests.refusals import raises_naming

HEADER = ("sentence1", "sentence2", "label")
MRPC_HEADER = ("\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String")
SENTENCES = [document[0] for document in texts.made_up(16, seed=5)]
LABELS = [1, 0, 0, 1, 1, 0, 0, 1]


def write_tsv(path, header, rows):
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in (header, *rows)), encoding="utf-8")
    return str(path)


def score_by_loops(cosines, labels):
    """Average precision, and accuracy and F1 at the best of all thresholds, the one above all cosines included."""
    accuracies, f1s, precision_sum, recall_before = [], [], 0.0, 0.0
    for threshold in [np.inf, *sorted({*cosines}, reverse=True)]:
        accepted = [cosine >= threshold for cosine in cosines]
        num_true = sum(yes and label for yes, label in zip(accepted, labels, strict=True))
        accuracies.append(np.mean([yes == label for yes, label in zip(accepted, labels, strict=True)]))
        f1s.append(2 * num_true / (sum(accepted) + sum(labels)))
        recall = num_true / sum(labels)
        precision_sum += (recall - recall_before) * num_true / max(sum(accepted), 1)
        recall_before = recall
    return {"": precision_sum, "_accuracy": max(accuracies), "_f1": max(f1s)}


@pytest.mark.parametrize("seed", range(20))
def test_scores_are_those_of_every_threshold_tried(seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random(30) < rng.uniform(0.1, 0.9)).astype(int)
    labels[:2] = 0, 1
    cosines = np.round(rng.normal(size=30) + labels * rng.normal(), seed % 3)  # with ties
    scores = score_cosines(cosines, labels)
    assert scores == pytest.approx(score_by_loops(cosines, labels))
    assert scores[""] == pytest.approx(average_precision_score(labels, cosines))


@pytest.mark.parametrize("labels, accuracy", [([0, 0, 0, 1], 3 / 4), ([0, 1, 1, 1], 3 / 4)])
def test_a_threshold_may_accept_no_pair_or_all(labels, accuracy):
    assert score_cosines(np.array([0.4, 0.3, 0.2, 0.1]), np.array(labels))["_accuracy"] == accuracy


def test_pairs_of_equal_cosine_are_on_one_side():
    scores = score_cosines(np.full(4, 0.5), np.array([1, 0, 1, 1]))
    assert scores == pytest.approx({"": 3 / 4, "_accuracy": 3 / 4, "_f1": 6 / 7})


def test_cosines_and_clusters_are_of_the_vectors_of_a_run(folder, tmp_path, monkeypatch, capsys):
    predictor = encoders.load(folder, lengths=LENGTHS)
    monkeypatch.setattr(base, "load_predictor", lambda folder, step: predictor)
    pairs = [*zip(SENTENCES[:8], SENTENCES[7:], strict=False)]
    rows = [(label, i, i, *pair) for i, (label, pair) in enumerate(zip(LABELS, pairs, strict=True))]
    pairs_file = write_tsv(tmp_path / "mrpc.tsv", MRPC_HEADER, rows)
    topics = [i % 3 for i in range(16)]
    texts_file = write_tsv(tmp_path / "texts.tsv", ("text", "label"), zip(SENTENCES, topics, strict=True))
    command = ["measure", str(folder), "--what", "clustering,pairs"]
    assert launch.main([*command, "--with", f"clustering={texts_file}", f"pairs={pairs_file}"]) == 0
    shown = json.loads(capsys.readouterr().out)

    embedded = np.stack([*predictor.embed(SENTENCES)])
    vectors = dict(zip(SENTENCES, embedded / np.linalg.norm(embedded, axis=1, keepdims=True), strict=True))
    cosines = np.array([vectors[first] @ vectors[second] for first, second in pairs])
    expected = {f"pairs{suffix}": score for suffix, score in score_by_loops(cosines, LABELS).items()}
    assert {name: score for name, score in shown.items() if name.startswith("pairs")} == pytest.approx(expected)
    stub = SimpleNamespace(embed=lambda texts: embedded)
    assert shown["clustering"] == pytest.approx(Clustering(texts_file).compute(stub).scores["clustering"])
    assert shown["clustering_texts"] == 16 and len({*cluster_vectors(embedded, 3).tolist()}) == 3


def test_the_verb_takes_columns():
    chosen = choose_measures("pairs", ["pairs=a.tsv"], ["pairs.columns=left,right,same"])
    assert chosen == [PairClassification("a.tsv", ("left", "right", "same"))]


@pytest.mark.parametrize(
    "header, rows, columns, values",
    [
        (("a", "b", "label"), [("x", "y", 1)], None, ["rows.tsv:2", "a, b, label", "#1 String", "pairs.columns"]),
        (HEADER, [("x", "y", 1)], ("sentence1", "b", "label"), ["rows.tsv:2", "sentence1, b, label"]),
        (HEADER, [("x", "y", 1), ("x", "z", 2)], None, ["rows.tsv:3", "label='2'", "0, 1"]),
        (HEADER, [("x", "y", 1), ("x", "z", "")], None, ["rows.tsv:3", "label=''", "0, 1"]),
        (HEADER, [("x", "y", 1), ("x", " ", 0)], None, ["rows.tsv:3", "sentence2 is empty"]),
        (HEADER, [("x", "y", 1), ("x", "z", 1)], None, ["rows.tsv", "label is 1", "both 0 and 1"]),
        (HEADER, [], None, ["rows.tsv", "no rows"]),
    ],
)
def test_rows_without_pairs_of_both_labels_are_named_in_one_line(header, rows, columns, values, tmp_path):
    measure = PairClassification(write_tsv(tmp_path / "rows.tsv", header, rows), columns)
    with raises_naming(UserError, *values) as caught:
        measure.compute(SimpleNamespace(embed=None))
    assert "\n" not in str(caught.value)


def test_two_columns_are_refused():
    with raises_naming(UserError, "pairs.columns=('a', 'b')", "three columns"):
        PairClassification(columns=("a", "b"))


@pytest.mark.live
def test_scores_are_those_of_sentence_transformers(folder, tmp_path):
    pytest.importorskip("torch")
    from sentence_transformers.sentence_transformer.evaluation import BinaryClassificationEvaluator

    encoder = encoders.load_sentence_encoder(folder)
    first, second = SENTENCES[:8], SENTENCES[7:15]
    evaluator = BinaryClassificationEvaluator(first, second, LABELS, write_csv=False)
    theirs = evaluator(encoder)
    path = write_tsv(tmp_path / "rows.tsv", HEADER, zip(first, second, LABELS, strict=True))
    ours = PairClassification(path).compute(encoder.predictor).scores
    names = {"pairs": "cosine_ap", "pairs_accuracy": "cosine_accuracy", "pairs_f1": "cosine_f1"}
    assert ours == pytest.approx({name: theirs[their_name] for name, their_name in names.items()})
