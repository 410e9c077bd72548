"""What a run says of new texts: the same as it says of them one by one, in their order, and what it refuses."""

import json
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

import encoders
import launch
from encoders.data.batch import build_single_example_batch
from encoders.experiment import RunSpec
from encoders.families import bert, electra, roberta
from encoders.inference import predictor
from encoders.model.encoder import Encoder
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.run.folder import RunError, build_run_record
from encoders.tasks.classification import Classification
from encoders.tasks.encoder_only import EncoderOnly
from encoders.tasks.question_answering import SpanPrediction, SpanWithClassifier
from encoders.text.tokenization import load_tokenizer
from encoders.training import step
from encoders.training.checkpoint import save_params
from encoders.utils.files import write_json
from tests import task_examples, texts
from tests.refusals import assert_names, raises_naming

TINY = dict(
    vocab_size=400, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24, max_positions=64, init_std=0.3
)
BERT = replace(bert.TINY, **TINY, embedding_size=16)
TEXTS = [" ".join(sentence for sentence in document)[:150] for document in texts.made_up(6, seed=3)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "NUM_LENGTH_BUCKETS", 2)  # two lengths to compile
        yield tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(home):
    """Makes a run of fresh parameters, and opens it."""
    vocabulary = task_examples.vocabulary(home)
    tokenizer = load_tokenizer(vocabulary)

    def make(name, objective, model=BERT):
        folder = home / "runs" / name
        if not folder.exists():
            network = RunSpec(name=name, model=model, objective=objective)
            folder.mkdir(parents=True)
            tokenizer.save(folder)
            write_json(folder / "experiment.json", build_run_record(network, "0" * 16, tokenizer.vocab))
            init_params = jax.jit(partial(step.init_params, 0, objective.module(model, tokenizer.vocab)))
            save_params(folder / "checkpoints", init_params(), "none")
        return encoders.load(folder, batch_size=4)

    return make


@pytest.fixture(scope="module")
def features(run):
    return run("features", EncoderOnly(has_pooler=True))


@partial(jax.jit, static_argnums=2)
def encode(params, batch, config):
    return Encoder(config).apply({"params": params}, batch, output_hidden_states=True)


def alone(predictor, text):
    """The hidden states of a text, read by itself and unpadded: `[layers + 1, l, d]`."""
    facts, tokenizer = predictor.run.vocab, predictor.run.tokenizer
    ids = np.array([[facts.cls_id, *tokenizer.encode_batch([text])[0], facts.sep_id]])
    return np.asarray(encode(predictor.params["encoder"], build_single_example_batch(ids), predictor.config))[:, 0]


def test_batched_texts_have_the_vectors_of_single_texts_in_order(features, monkeypatch):
    monkeypatch.setattr(predictor, "CHUNK_SIZE", 4)  # the texts in two chunks
    for pool, of in (("mean", lambda x: x.mean(0)), ("cls", lambda x: x[0])):
        found = list(features.embed(TEXTS, pool))
        assert len(found) == len(TEXTS)
        for text, vector in zip(TEXTS, found, strict=True):
            np.testing.assert_allclose(vector, of(alone(features, text)[-1]), atol=2e-5)


def test_every_vector_has_the_same_size(features):
    assert {vector.shape for vector in features.embed(["tan", " ".join(TEXTS)], "cls")} == {(16,)}


def test_the_same_word_has_another_vector_in_another_sentence(features):
    first, second = features.embed_tokens(["tan here", "tan what who"])
    assert first[1][0] == second[1][0] == "tan"
    assert np.abs(first[1][1] - second[1][1]).max() > 0.01
    below, other = features.embed_tokens(
        ["tan here", "tan what who"], layer=0
    )  # before any attention they are the same
    np.testing.assert_allclose(below[1][1], other[1][1], atol=1e-6)


def test_every_layer_can_be_read(features):
    states = alone(features, TEXTS[0])
    for layer in (0, 1, 2, -1):
        (tokens,) = features.embed_tokens([TEXTS[0]], layer)
        np.testing.assert_allclose(np.stack([vector for _, vector in tokens]), states[layer], atol=2e-5)
    with raises_naming(RunError, "layer=3", " 2, "):
        next(features.embed(TEXTS, layer=3))


def test_similarity_is_the_cosine_of_separately_encoded_texts(features):
    first, second = (alone(features, text)[-1].mean(0) for text in TEXTS[:2])
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert list(features.compare_pairs([(TEXTS[0], TEXTS[1])])) == [pytest.approx(cosine, abs=1e-5)]
    matrix = features.similarity_matrix(TEXTS[:3])
    assert matrix.shape == (3, 3) and matrix[0, 1] == pytest.approx(cosine, abs=1e-5)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-6)


def test_a_long_text_is_cut_and_counted(features):
    long = " ".join(["tan"] * 200)
    before = features.num_truncated
    (vector,) = features.embed([long])
    (cut,) = features.embed([" ".join(["tan"] * 62)])
    np.testing.assert_allclose(vector, cut, atol=1e-6)
    assert features.num_truncated == before + 1


@pytest.mark.parametrize(
    "family, model", [("bert", BERT), ("roberta", replace(roberta.BASE, **TINY, embedding_size=16))]
)
def test_probabilities_of_one_text_and_of_two(family, model, run):
    classes = run(f"classes-{family}", Classification(("no", "yes", "maybe"), "tanh"), model)
    pair = (TEXTS[0], TEXTS[1][:40])
    one, two = classes.classify([TEXTS[2], pair])
    assert sum(one.values()) == pytest.approx(1) and list(two) == ["no", "yes", "maybe"]
    facts, tokenizer = classes.run.vocab, classes.run.tokenizer
    first, second = tokenizer.encode_batch(list(pair))
    between = [facts.sep_id] * (2 if family == "roberta" else 1)
    ids = np.array([[facts.cls_id, *first, *between, *second, facts.sep_id]])
    segments = (np.arange(ids.size) > len(first) + 1)[None].astype(int)
    batch = build_single_example_batch(ids, segments)
    compute_logits = jax.jit(partial(classes.run.module.apply, method="compute_logits"))
    logits = compute_logits({"params": classes.params}, batch)
    np.testing.assert_allclose(list(two.values()), jax.nn.softmax(logits[0, 0]), atol=1e-5)


def test_one_label_is_a_number(run):
    (said,) = run("number", Classification(("score",))).classify(["tan"])
    assert list(said) == ["score"] and isinstance(said["score"], float)


@pytest.mark.parametrize("objective", [SpanPrediction(), SpanWithClassifier()], ids=lambda x: type(x).__name__)
def test_an_answer_is_a_substring_at_its_offsets(objective, run):
    answering = run(type(objective).__name__, objective)
    asked = [("what here", TEXTS[0]), ("who", " ".join(TEXTS))]  # the second is several windows
    for (_, text), said in zip(asked, answering.answer_questions(asked), strict=True):
        assert said["answer"] and text[said["start"] : said["end"]] == said["answer"]
    nothing = list(answering.answer_questions(asked, null_threshold=-1e9))
    assert [said["answer"] for said in nothing] == ["", ""] and "start" not in nothing[0]


def test_masks_are_filled_with_the_likeliest_tokens(run):
    filling = run("masked", MaskedLM())
    one, two = filling.fill_masks([f"{TEXTS[0]} [MASK] tan", "[MASK] here <mask>"], top_k=3)
    assert [len(one), len(two)] == [1, 2] and all(len(words) == 3 for words in (*one, *two))
    (again,) = filling.fill_masks(["[MASK] here <mask>"], top_k=3)
    for words, others in zip(two, again, strict=True):
        assert [word for word, _ in words] == [word for word, _ in others]
        np.testing.assert_allclose([p for _, p in words], [p for _, p in others], rtol=1e-4)
    with raises_naming(RunError, "nothing here", "MASK"):
        next(filling.fill_masks(["nothing here"]))


def test_electra_scores_each_token(run):
    model = replace(electra.BASE, **TINY, embedding_size=16)
    (said,) = run("pair", ReplacedTokenDetection(generator_width=1 / 2), model).detect_replaced(["tan here"])
    assert [token for token, _ in said] == ["[CLS]", "tan", "here", "[SEP]"]
    assert all(0 < p < 1 for _, p in said)


@pytest.mark.parametrize(
    "ask, named",
    [
        (lambda run: run.classify(["tan"]), ["classification head", "encoder, pooler"]),
        (lambda run: run.answer_questions([("who", "tan")]), ["question answering", "EncoderOnly"]),
        (lambda run: run.fill_masks(["[MASK]"]), ["masked-token head", "encoder, pooler"]),
        (lambda run: run.detect_replaced(["tan"]), ["replaced-token head", "encoder, pooler"]),
        (lambda run: run.embed(["tan", " "]), ["' '", "token"]),
    ],
)
def test_a_missing_head_and_an_empty_text_are_named(ask, named, features):
    with raises_naming(RunError, *named):
        list(ask(features))


# On the command line --------------------------------------------------------------------------------------------------


def asked(capsys, *command) -> list[str]:
    assert launch.main(["predict", *map(str, command)]) == 0
    return capsys.readouterr().out.splitlines()


def test_predictions_for_lines_of_a_file_are_json_lines(features, home, capsys):
    path = home / "pairs.txt"
    path.write_text('tan here\ttan\n{"text": "what", "second": "who"}\n', encoding="utf-8")
    lines = [json.loads(line) for line in asked(capsys, features.run.folder, "similarity", "--file", path, "--json")]
    assert [line["text"] for line in lines] == [["tan here", "tan"], ["what", "who"]]
    expected = list(features.compare_pairs([("tan here", "tan"), ("what", "who")]))
    assert [line["similarity"] for line in lines] == pytest.approx(expected, abs=1e-4)


def test_texts_without_a_second_one_are_compared_with_each_other(features, capsys):
    lines = asked(capsys, features.run.folder, "similarity", "tan here", "what who")
    assert lines[0] == "tan here" and lines[1].split()[0] == "1.000"


def test_pairs_among_single_texts_are_not_compared(features, home, capsys):
    path = home / "mixed.txt"
    path.write_text("tan here\nwhat\twho\n", encoding="utf-8")
    assert launch.main(["predict", str(features.run.folder), "similarity", "--file", str(path)]) == 1
    assert_names(capsys.readouterr().err, "('what', 'who')", "'tan here'")


@pytest.mark.parametrize(
    "content, said",
    [(b"a\tb\tc\n", ":1"), (b"tan\n\n", ":2"), (b"caf\xe9\n", ":1"), (b"{]\n", ":1")],
)
def test_a_bad_line_is_named(content, said, features, home, capsys):
    (home / "pairs.txt").write_bytes(content)
    assert launch.main(["predict", str(features.run.folder), "embed", "--file", str(home / "pairs.txt")]) == 1
    assert f"pairs.txt{said}" in capsys.readouterr().err


def test_a_wrong_number_of_second_texts_is_named(features, capsys):
    arguments = ["predict", str(features.run.folder), "similarity", "a tan", "b", "--second", "c", "d", "e"]
    assert launch.main(arguments) == 1
    assert_names(capsys.readouterr().err, "--second", "3 texts", " 2")
