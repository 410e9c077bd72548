"""Vectors under the interface of sentence-transformers: the same as of `embed`, for its evaluators and for mteb."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics.pairwise import cosine_similarity

from encoders.data.batch import build_single_example_batch
from encoders.inference import predictor as predictor_module
from encoders.inference.sentence_encoder import SentenceEncoder
from encoders.model.encoder import Encoder
from encoders.run.folder import RunError
from tests.inference.small_runs import TEXTS
from tests.refusals import raises_naming

PROMPTS = {"query": "who: ", "passage": "here: ", "STS": "what: ", "News-query": "where: "}


@pytest.fixture
def encoder(features, monkeypatch):
    return change(SentenceEncoder(features), monkeypatch, prompts=PROMPTS)


def change(encoder, monkeypatch, **fields):
    """Change settings of the run until the end of a test."""
    own = replace(encoder.predictor.sentence_embedding, **fields)
    monkeypatch.setattr(encoder.predictor, "sentence_embedding", own)
    return encoder


def test_vectors_are_those_of_embed_in_one_array(encoder, features, monkeypatch):
    monkeypatch.setattr(predictor_module, "CHUNK_SIZE", 4)  # the texts in two chunks
    vectors = encoder.encode(TEXTS, batch_size=4)
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), encoder.get_embedding_dimension())
    np.testing.assert_allclose(vectors, list(features.embed(TEXTS)), atol=1e-6)
    assert encoder.encode(TEXTS[0]).shape == (16,)
    np.testing.assert_allclose(encoder.encode(np.array(TEXTS[:2])), vectors[:2], atol=1e-5)
    batches = [{"text": TEXTS[:3], "id": [1, 2, 3]}, {"text": TEXTS[3:]}]
    np.testing.assert_allclose(encoder.encode(batches), vectors, atol=1e-5)
    assert encoder.encode([]).shape == (0, 16)


def test_vectors_are_cut_and_scaled_on_request(encoder):
    (plain,) = encoder.encode(["tan ber"])
    (cut,) = encoder.encode(["tan ber"], truncate_dim=6, normalize_embeddings=True)
    np.testing.assert_allclose(cut, plain[:6] / np.linalg.norm(plain[:6]), atol=1e-6)


@pytest.mark.parametrize(
    "arguments, prompt",
    [
        ({}, ""),
        ({"prompt_name": "passage"}, "here: "),
        ({"prompt": "lon "}, "lon "),
        ({"prompt_type": "query"}, "who: "),
        ({"prompt_type": SimpleNamespace(value="document")}, "here: "),  # as of mteb
        ({"task_metadata": SimpleNamespace(name="Any", type="STS")}, "what: "),
        ({"task_metadata": SimpleNamespace(name="News", type="STS"), "prompt_type": "query"}, "where: "),
    ],
)
def test_the_prompt_of_a_name_a_side_or_a_task_is_put_in_front(arguments, prompt, encoder):
    expected = encoder.encode(prompt + "tan", prompt="")
    np.testing.assert_allclose(encoder.encode("tan", **arguments), expected, atol=1e-6)


def test_queries_and_documents_have_the_default_prompt_where_they_have_none_of_their_own(encoder, monkeypatch):
    query, document = encoder.encode(["who: tan", "lon tan"])
    change(encoder, monkeypatch, prompts={"query": "who: ", "lon": "lon "}, default_prompt="lon")
    np.testing.assert_allclose(encoder.encode_query("tan"), query, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_document("tan"), document, atol=1e-5)


def test_an_empty_text_has_the_vector_of_its_special_tokens(encoder):
    predictor, vocab = encoder.predictor, encoder.predictor.run.vocab
    batch = build_single_example_batch(np.array([[vocab.cls_id, vocab.sep_id]]))
    hidden = Encoder(predictor.config).apply({"params": predictor.params["encoder"]}, batch)
    np.testing.assert_allclose(encoder.encode(["", "tan"])[0], np.asarray(hidden[0]).mean(0), atol=2e-5)


def test_similarities_are_cosines_or_products(encoder, monkeypatch):
    first, second = encoder.encode(TEXTS[:3]), encoder.encode(TEXTS[2:5])
    cosines = cosine_similarity(first, second)
    np.testing.assert_allclose(encoder.similarity(first, second), cosines, atol=1e-5)
    np.testing.assert_allclose(encoder.similarity(first[0], list(second)), cosines[:1], atol=1e-5)
    assert float(encoder.similarity(first[0], second[1])) == pytest.approx(cosines[0, 1], abs=1e-5)
    np.testing.assert_allclose(encoder.similarity_pairwise(first, second), np.diag(cosines), atol=1e-5)
    change(encoder, monkeypatch, similarity="dot")
    assert encoder.similarity_fn_name == "dot"
    np.testing.assert_allclose(encoder.similarity(first, second), first @ second.T, rtol=1e-5)


@pytest.mark.parametrize(
    "arguments", [{"precision": "int8"}, {"output_value": "token_embeddings"}, {"device": "cuda"}, {"colour": 1}]
)
def test_arguments_that_are_not_supported_are_refused(arguments, encoder):
    ((name, value),) = arguments.items()
    with raises_naming(RunError, name):
        encoder.encode(["tan"], **arguments)


def test_other_prompt_names_are_refused(encoder):
    with raises_naming(RunError, "prompt='corpus'", "query, passage, STS"):
        encoder.encode(["tan"], prompt_name="corpus")


@pytest.mark.live
def test_evaluators_of_sentence_transformers_give_the_scores_of_our_vectors(encoder):
    torch = pytest.importorskip("torch")
    from sentence_transformers.sentence_transformer import evaluation

    gold = [0.1, 0.9, 0.4, 0.6, 0.2]
    first, second = TEXTS[:5], TEXTS[1:6]
    scores = evaluation.EmbeddingSimilarityEvaluator(first, second, gold, name="sts", write_csv=False)(encoder)
    vectors = encoder.encode(TEXTS[:6])
    cosines = np.diag(cosine_similarity(vectors[:5], vectors[1:]))
    assert scores["sts_spearman_cosine"] == pytest.approx(spearmanr(cosines, gold).statistic, abs=1e-6)
    assert encoder.model_card_data.scores == scores

    queries = {f"q{i}": text for i, text in enumerate(TEXTS[:3])}
    corpus = {f"d{i}": text for i, text in enumerate(TEXTS[2:])}
    relevant = {f"q{i}": {f"d{i}"} for i in range(3)}
    search = evaluation.InformationRetrievalEvaluator(
        queries, corpus, relevant, mrr_at_k=[10], accuracy_at_k=[1], name="ir", write_csv=False, batch_size=4
    )
    scores = search(encoder)
    found = encoder.encode_query(list(queries.values())), encoder.encode_document(list(corpus.values()))
    ranks = (-cosine_similarity(*found)).argsort(axis=1)
    reciprocal = [1 / (1 + list(row).index(i)) for i, row in enumerate(ranks)]
    assert scores["ir_cosine_mrr@10"] == pytest.approx(np.mean(reciprocal), abs=1e-6)
    assert scores["ir_cosine_accuracy@1"] == pytest.approx(np.mean([row[0] == i for i, row in enumerate(ranks)]))

    tensor = encoder.encode(TEXTS[:2], convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor) and isinstance(encoder.similarity(tensor, tensor), torch.Tensor)
    np.testing.assert_allclose(tensor.numpy(), vectors[:2], atol=1e-5)
    assert [row.shape for row in encoder.encode(TEXTS[:2], convert_to_numpy=False)] == [(16,), (16,)]


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")  # of mteb and what it imports
@pytest.mark.parametrize("name", ["MockSTSTask", "MockRetrievalTask", "MockSummarizationTask"])
def test_mteb_gives_the_scores_that_it_gives_the_exported_model(name, encoder, tmp_path, monkeypatch):
    mteb = pytest.importorskip("mteb")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from mteb.mocks import mock_tasks

    from encoders.exchange.convert import export_run

    change(encoder, monkeypatch, prompts={})
    export_run(encoder.predictor.run.folder, tmp_path / "out")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    scores = []
    for model in (encoder, theirs):
        task = getattr(mock_tasks, name)()
        result = mteb.evaluate(model, task, cache=None, encode_kwargs={"batch_size": 4})
        scores.append(result.task_results[0].scores["test"][0])
    ours, expected = ({key: value for key, value in row.items() if isinstance(value, float)} for row in scores)
    assert len(ours) > 2 and ours == pytest.approx(expected, abs=1e-5, nan_ok=True)
