"""`predict RUN search` on the command line: its lines, its JSON, its index, and the options that it refuses."""

import json

import numpy as np
import pytest

import launch
from encoders.cli import predict_lines
from encoders.inference.vector_index import search_corpus
from tests import texts
from tests.refusals import assert_names

ROWS = [
    {"_id": f"doc{i}", "title": document[0][:30], "text": f"{document[1][:30]}\n{document[2][:30]}"}
    for i, document in enumerate(texts.made_up(9, seed=8))
]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.fixture
def search(features, monkeypatch):
    """Runs the command with a predictor that is compiled already."""
    monkeypatch.setattr(predict_lines, "load_predictor", lambda *arguments: features)
    return lambda *words: launch.main(["predict", str(features.run.folder), "search", *map(str, words)])


def test_the_nearest_texts_are_printed_with_score_and_id(search, features, corpus, capsys):
    assert search("tan here", "what", "--corpus", corpus, "--top", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line[0] != " "] == ["tan here", "what"]
    expected = [hit for hits in search_corpus(features, ["tan here", "what"], corpus, 2) for hit in hits]
    for line, hit in zip([line for line in lines if line[0] == " "], expected, strict=True):
        score, text_id, text = line.strip().split("  ", 2)
        assert float(score) == pytest.approx(hit.score, abs=6e-4) and text_id == hit.id
        assert text.removesuffix("...") == hit.text.replace("\n", " ")[:200]


def test_json_lines_are_the_same_with_an_index_which_is_used_again(search, features, corpus, tmp_path, capsys):
    shown = []
    for words in ([], ["--index", tmp_path / "index"], ["--index", tmp_path / "index"]):
        assert search("tan here", "--json", "--corpus", corpus, *words) == 0
        shown.append(capsys.readouterr())
    first, *others = [json.loads(each.out) for each in shown]
    assert first["text"] == "tan here" and len(first["hits"]) == 5
    (expected,) = search_corpus(features, ["tan here"], corpus, 5)
    assert [hit["id"] for hit in first["hits"]] == [hit.id for hit in expected]
    for other in others:
        assert [(hit["id"], hit["text"]) for hit in other["hits"]] == [(hit.id, hit.text) for hit in expected]
        np.testing.assert_allclose([hit["score"] for hit in other["hits"]], [hit.score for hit in expected], atol=1e-5)
    assert [f"embedded {len(ROWS)} of {len(ROWS)}" in each.err for each in shown] == [True, True, False]


def test_a_bad_query_is_named_and_the_others_are_searched(search, corpus, tmp_path, capsys):
    (tmp_path / "queries.txt").write_text("tan here\n\na\tb\nwhat\n")
    assert search("--file", tmp_path / "queries.txt", "--corpus", corpus, "--json") == 1
    shown = capsys.readouterr()
    assert [json.loads(line)["text"] for line in shown.out.splitlines()] == ["tan here", "what"]
    assert_names(shown.err, "queries.txt:2: ", "queries.txt:3: ", "2 of 4")


@pytest.mark.parametrize(
    "words, named",
    [
        (["search", "tan"], ["--corpus"]),
        (["search", "tan", "--corpus", "c.txt", "--pool", "cls", "--layer", "1"], ["pooling=cls", "layer=1"]),
        (["embed", "tan", "--corpus", "c.txt"], ["--corpus", "embed"]),
        (["search", "tan", "--corpus", "missing.txt"], ["missing.txt"]),
        (["search", "tan", "--corpus", "c.txt", "--index", "i", "--step", "average:2"], ["average:2", "best"]),
        (["search", "tan", "--corpus", "c.txt", "--top", "0"], ["top_k=0", "at least 1"]),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(words, named, features, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.txt").write_text("tan\n")
    assert launch.main(["predict", str(features.run.folder), *words]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert_names(error, *named)
