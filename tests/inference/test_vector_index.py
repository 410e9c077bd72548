"""Search in files of texts, in memory and in an index, beside NumPy; what a killed build resumes; what is refused."""

import json

import numpy as np
import pytest

from encoders.inference import vector_index
from encoders.inference.corpus_file import CorpusFile
from encoders.inference.sentence_embedding import SentenceEmbedding, normalize_vector
from encoders.inference.vector_index import build_index, search_corpus
from encoders.utils.errors import UserError
from encoders.utils.files import DamagedFile
from tests import texts
from tests.refusals import raises_naming

TEXTS = [" ".join(document)[:90].strip() for document in texts.made_up(11, seed=7)]
QUERIES = ["tan here", "what is good ?", TEXTS[4]]
BLOCK_SIZE = 4


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    return path


def rank_with_numpy(predictor, corpus_texts, queries, top_k):
    """Cosines and indices of the nearest texts, from the predictor's vectors alone."""
    vectors, query_vectors = ([*map(normalize_vector, predictor.embed(each))] for each in (corpus_texts, queries))
    cosines = np.array(query_vectors) @ np.array(vectors).T
    indices = np.argsort(-cosines, axis=1, kind="stable")[:, :top_k]
    return np.take_along_axis(cosines, indices, 1), indices


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_the_nearest_texts_are_found_in_memory_and_in_an_index(features, lines, tmp_path):
    scores, indices = rank_with_numpy(features, TEXTS, QUERIES, 3)
    index = build_index(features, 0, lines, tmp_path / "index", block_size=BLOCK_SIZE)
    for found in (search_corpus(features, QUERIES, lines, 3), index.search_texts(features, QUERIES, 3)):
        found = [*found]
        np.testing.assert_allclose([[hit.score for hit in hits] for hits in found], scores, atol=1e-5)
        assert [[hit.text for hit in hits] for hits in found] == [[TEXTS[i] for i in row] for row in indices]
        assert [[hit.id for hit in hits] for hits in found] == [[str(i + 1) for i in row] for row in indices]
    assert found[2][0].text == TEXTS[4] and found[2][0].score == pytest.approx(1, abs=1e-5)
    blocks = [np.load(path) for path in sorted((tmp_path / "index").glob("vectors-*.npy"))]
    assert [len(block) for block in blocks] == [4, 4, 3] and {block.dtype for block in blocks} == {np.dtype("float32")}
    np.testing.assert_allclose(np.linalg.norm(np.concatenate(blocks), axis=1), 1, atol=1e-6)


def test_prompts_of_both_sides_and_the_inner_product_are_those_of_the_run(features, lines, monkeypatch):
    prompts = {"query": "what is ", "passage": "here "}
    monkeypatch.setattr(features, "sentence_embedding", SentenceEmbedding(prompts=prompts, similarity="dot"))
    (hits,) = search_corpus(features, ["tan"], lines, 4)
    (query,), vectors = features.embed(["what is tan"]), [*features.embed([f"here {text}" for text in TEXTS])]
    products = np.array(vectors) @ query
    indices = np.argsort(-products)[:4]
    assert [hit.text for hit in hits] == [TEXTS[i] for i in indices]
    np.testing.assert_allclose([hit.score for hit in hits], products[indices], rtol=1e-4)


def test_a_corpus_with_fewer_texts_than_asked_for_gives_all(features, lines):
    (hits,) = search_corpus(features, ["tan here"], lines, 50)
    assert sorted(hit.text for hit in hits) == sorted(TEXTS)
    assert [*search_corpus(features, [], lines)] == []


def test_json_lines_have_ids_and_titles_and_texts_are_found_by_their_offsets(tmp_path):
    path, logged = tmp_path / "corpus.jsonl", []
    rows = [{"_id": "é", "title": "Tür", "text": "tan\nhere "}, {"_id": 7, "text": "né"}, {"title": "", "text": " "}]
    rows += [{"title": None, "text": "what"}, {"_id": "z", "title": "only a title", "text": ""}]
    content = "\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=row.get("_id") == 7) for row in rows) + "\n\n"
    path.write_bytes(content.encode())
    corpus = CorpusFile.scan_file(path, logged.append)
    assert len(corpus) == 4 and len(logged) == 1 and "1 empty" in logged[0] and f"{path}:3" in logged[0]
    found = [(text.id, text.text, text.location) for text in corpus.read_texts([3, 0, 2, 1])]
    expected = [("z", "only a title", 5), ("é", "Tür tan\nhere", 1), ("4", "what", 4), ("7", "né", 2)]
    assert found == [(text_id, text, f"{path}:{number}") for text_id, text, number in expected]


def test_a_killed_build_embeds_only_what_it_lacks_and_ends_with_the_same_bytes(features, lines, tmp_path, monkeypatch):
    build_index(features, 0, lines, tmp_path / "whole", block_size=BLOCK_SIZE)
    write, embed, embedded = vector_index.write_file_atomically, vector_index.embed_side, []

    def write_until_killed(path, content):
        if path.name == "vectors-00002.npy":
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(vector_index, "write_file_atomically", write_until_killed)
        with pytest.raises(KeyboardInterrupt):
            build_index(features, 0, lines, tmp_path / "index", block_size=BLOCK_SIZE)
    monkeypatch.setattr(
        vector_index, "embed_side", lambda run, texts, side: embedded.append(texts) or embed(run, texts, side)
    )
    for _ in range(2):  # the second finds it complete
        build_index(features, 0, lines, tmp_path / "index")
    assert embedded == [TEXTS[8:]]
    assert read_files(tmp_path / "index") == read_files(tmp_path / "whole")


def test_a_build_that_was_killed_before_its_first_record_starts_over(features, lines, tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "positions.npy").write_bytes(b"half")
    index = build_index(features, 0, lines, tmp_path / "index")
    assert index.corpus.read_texts([10])[0].text == TEXTS[10]


def test_an_index_of_something_else_is_refused_with_what_differs(features, lines, tmp_path, monkeypatch):
    folder = tmp_path / "index"
    build_index(features, 0, lines, folder)
    with raises_naming(UserError, folder / "index.json", "step", "0", "5"):
        build_index(features, 5, lines, folder)
    with monkeypatch.context() as patch:
        patch.setattr(features, "sentence_embedding", SentenceEmbedding("cls"))
        with raises_naming(UserError, folder / "index.json", "embedding", "mean", "cls"):
            build_index(features, 0, lines, folder)
    with monkeypatch.context() as patch:
        patch.setattr(vector_index, "read_run_record", lambda folder: {"fingerprint": "another"})
        with raises_naming(UserError, folder / "index.json", "fingerprint", "another"):
            build_index(features, 0, lines, folder)
    moved = lines.rename(tmp_path / "moved.txt")
    build_index(features, 0, moved, folder)
    moved.write_text(moved.read_text(encoding="utf-8").replace(TEXTS[2], "new"), encoding="utf-8")
    with raises_naming(UserError, folder / "index.json", "corpus"):
        build_index(features, 0, moved, folder)


@pytest.mark.parametrize("name", ["vectors-00001.npy", "positions.npy", "index.json"])
def test_a_damaged_file_of_an_index_is_named(name, features, lines, tmp_path):
    path = tmp_path / "index" / name
    build_index(features, 0, lines, tmp_path / "index", block_size=BLOCK_SIZE)
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with raises_naming(DamagedFile, path):
        build_index(features, 0, lines, tmp_path / "index")


def test_a_folder_of_something_else_is_no_index(features, lines, tmp_path):
    with raises_naming(UserError, tmp_path, "corpus.txt", "index.json"):
        build_index(features, 0, lines, tmp_path)
    with raises_naming(UserError, lines, "folder"):
        build_index(features, 0, lines, lines)


@pytest.mark.parametrize(
    "name, line, values",
    [
        ("a.txt", b"caf\xe9", ("2: ", "byte 4", "UTF-8")),
        ("a.txt", "\u200b".encode(), ("2: ", "empty")),
        ("a.jsonl", b"tan", ("2: ", "not JSON")),
        ("a.jsonl", b"[1]", ("2: ", "JSON object")),
        ("a.jsonl", b'{"_id": "a"}', ("2: ", "'text'")),
        ("a.jsonl", b'{"text": null}', ("2: ", "text=None")),
        ("a.jsonl", b'{"text": "a", "title": 3}', ("2: ", "title=3")),
        ("a.jsonl", b'{"text": "a", "_id": [1]}', ("2: ", "_id=[1]")),
        ("a.jsonl", b'{"text": "\\ud800"}', ("2: ", "text=")),
        ("a.tsv", b"tan", (".tsv", ".jsonl")),
        ("a.txt.gz", b"tan", (".gz", "not compressed")),
    ],
)
def test_a_bad_row_of_a_corpus_is_named(name, line, values, features, tmp_path):
    path = tmp_path / name
    path.write_bytes((b'{"text": "good"}' if "json" in name else b"good") + b"\n" + line + b"\n")
    with raises_naming(UserError, path, *values):
        list(search_corpus(features, ["tan"], path))


def test_a_corpus_without_texts_is_refused(features, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with raises_naming(UserError, tmp_path / "empty.txt", "no text"):
        list(search_corpus(features, ["tan"], tmp_path / "empty.txt"))


def test_vectors_of_diverged_parameters_are_refused(features, lines, monkeypatch):
    monkeypatch.setattr(features, "embed", lambda texts, prompt: (np.full(16, np.nan, np.float32) for _ in texts))
    with raises_naming(UserError, "not finite", "diverged"):
        list(search_corpus(features, ["tan"], lines))
