"""How a run gives the vector of a text: pooling, prompts, size and scaling, and where these are written down."""

import json

import numpy as np
import pytest

from encoders.inference.sentence_embedding import SentenceEmbedding
from encoders.run.folder import RunError
from encoders.tasks.encoder_only import EncoderOnly
from encoders.utils.errors import UserError
from tests.inference.small_runs import TEXTS
from tests.refusals import raises_naming

PROMPTS = {"query": "who: ", "passage": "here: "}


class TrainedForVectors:
    """An objective that says how its encoder gives vectors."""

    embedding_settings = {"pooling": "last", "normalize": True}


@pytest.fixture
def prompted(features, monkeypatch):
    own = SentenceEmbedding("mean", normalize=True, size=5, prompts=PROMPTS, default_prompt="query")
    monkeypatch.setattr(features, "sentence_embedding", own)
    return features


def scale(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_the_last_token_of_a_text_and_of_a_pair_is_its_separator(features):
    texts = ["tan ber sin", (TEXTS[0], "who here")]
    tokens = list(features.embed_tokens(texts))
    assert [row[-1][0] for row in tokens] == ["[SEP]", "[SEP]"]
    expected = [row[-1][1] for row in tokens]
    np.testing.assert_allclose(list(features.embed(texts, "last")), expected, atol=2e-5)
    assert np.abs(expected[0] - tokens[0][0][1]).max() > 0.001


def test_vectors_are_prompted_cut_and_then_scaled(prompted):
    full = {text: next(prompted.embed(text, "mean", prompt="")) for text in ("who: tan", "here: tan", "tan")}
    expected = {text: scale(vector[:5]) for text, vector in full.items()}
    np.testing.assert_allclose(next(prompted.embed("tan")), expected["who: tan"], atol=1e-5)
    np.testing.assert_allclose(next(prompted.embed("tan", prompt="passage")), expected["here: tan"], atol=1e-5)
    np.testing.assert_allclose(next(prompted.embed("tan", prompt="")), expected["tan"], atol=1e-5)
    np.testing.assert_allclose(next(prompted.embed("tan", prompt="", size=3)), scale(full["tan"][:3]), atol=1e-5)
    np.testing.assert_allclose(next(prompted.embed("tan", "mean", prompt="", size=7)), full["tan"][:7], atol=1e-5)
    np.testing.assert_allclose(next(prompted.embed("tan", "mean")), full["who: tan"], atol=1e-5)


def test_a_prompt_is_in_front_of_the_first_text_of_a_pair(prompted):
    expected = scale(next(prompted.embed([("here: tan", "ber sin")], "mean", prompt=""))[:5])
    np.testing.assert_allclose(next(prompted.embed([("tan", "ber sin")], prompt="passage")), expected, atol=1e-5)


def test_other_prompts_and_sizes_are_refused_with_what_is_accepted(features, monkeypatch):
    with raises_naming(RunError, "prompt='query'", "no prompts"):
        next(features.embed("tan", prompt="query"))
    with raises_naming(RunError, "size=17", "1 to 16"):
        next(features.embed("tan", size=17))
    with raises_naming(UserError, "size=0", "from 1"):
        next(features.embed("tan", size=0))
    with raises_naming(UserError, "pooling='max'", "cls", "mean", "last", "pooled"):
        next(features.embed("tan", "max"))
    monkeypatch.setattr(features, "sentence_embedding", SentenceEmbedding(prompts=PROMPTS))
    with raises_naming(RunError, "prompt='document'", "query", "passage"):
        next(features.embed("tan", prompt="document"))


def test_records_of_before_and_of_now_are_read(tmp_path):
    old = {"sentence_embedding": {"pooling": "cls", "normalize": True, "max_length": 8}}
    assert SentenceEmbedding.choose_settings(old, EncoderOnly()) == SentenceEmbedding("cls", True, 8)
    own = SentenceEmbedding("last", True, 8, 4, PROMPTS, "passage", "dot", ("tanh", "identity"))
    record = json.loads(json.dumps(own.to_record()))
    assert SentenceEmbedding.choose_settings(record, TrainedForVectors()) == own
    assert SentenceEmbedding().to_record() == {}


def test_a_record_comes_before_the_objective_and_that_before_the_mean():
    record = {"sentence_embedding": {"pooling": "cls"}}
    assert SentenceEmbedding.choose_settings(record, TrainedForVectors()) == SentenceEmbedding("cls")
    assert SentenceEmbedding.choose_settings({}, TrainedForVectors()) == SentenceEmbedding("last", normalize=True)
    assert SentenceEmbedding.choose_settings({}, EncoderOnly()) == SentenceEmbedding("mean")


@pytest.mark.parametrize(
    "field, value", [("pooling", "max"), ("similarity", "l2"), ("default_prompt", "query"), ("dense", ("swish",))]
)
def test_fields_with_other_values_are_refused(field, value):
    with raises_naming(UserError, f"{field}={value!r}"):
        SentenceEmbedding(**{field: value})
