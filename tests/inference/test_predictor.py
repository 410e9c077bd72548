"""What a run says of new texts: the same as it says of them one by one, in their order, and what it refuses."""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import encoders
from encoders.data.batch import build_single_example_batch
from encoders.data.stream import assemble_rows
from encoders.families import roberta
from encoders.inference import predictor, text_batch
from encoders.inference.text_batch import build_split
from encoders.model.encoder import Encoder
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.run.folder import RunError
from encoders.tasks.classification import Classification
from encoders.tasks.encoder_only import EncoderOnly
from encoders.tasks.question_answering import ConditionedSpanPrediction, SpanPrediction, SpanWithClassifier
from encoders.tasks.text_tasks import TextRows
from encoders.tasks.token_classification import TokenClassification
from encoders.text.tokenization import make_blank_vocab
from tests.inference.small_runs import BERT, ELECTRA, LENGTHS, TEXTS, TINY
from tests.refusals import raises_naming


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


@pytest.mark.parametrize(
    "objective", [SpanPrediction(), ConditionedSpanPrediction()], ids=lambda objective: type(objective).__name__
)
def test_questions_of_short_and_long_windows_are_answered_alike_in_any_batches(objective, run):
    folder = run(type(objective).__name__, objective).run.folder
    asked = [("where", " ".join(TEXTS)), ("who", "tan sat")]  # windows of 64 tokens, and one of 6
    alone, together = (list(encoders.load(folder, batch_size=n).answer_questions(asked)) for n in (1, 4))
    assert [said["answer"] for said in alone] == [said["answer"] for said in together]
    assert alone[1]["answer"] and alone[1]["answer"] in "tan sat"


def test_words_are_tagged_at_their_places_in_the_text(run):
    objective = TokenClassification(("O", "B-PER", "B-LOC"))
    tagging = run("tags", objective)
    text, other = " Tan-ber's sin,  tan!", "here"
    first, second = tagging.tag_words([text, other])
    assert (
        [word["word"] for word in first]
        == ["Tan-ber's", "sin", ",", "tan", "!"]
        == [text[word["start"] : word["end"]] for word in first]
    )
    words = [word["word"] for word in first]
    ids, (offsets,) = tagging.run.tokenizer.encode_with_offsets([" ".join(words)])
    starts = [0, 10, 14, 16, 20]
    facts = tagging.run.vocab
    batch = jax.tree.map(jnp.asarray, build_single_example_batch(np.array([[facts.cls_id, *ids[0], facts.sep_id]])))
    logits = tagging.run.module.apply({"params": tagging.params}, batch, method="compute_logits")
    shares = np.asarray(jax.nn.softmax(logits[0]))
    rows = [1 + next(i for i, (a, _) in enumerate(offsets) if a == start) for start in starts]
    assert [word["tag"] for word in first] == [objective.labels[shares[row].argmax()] for row in rows]
    np.testing.assert_allclose([word["probability"] for word in first], shares[rows].max(-1), atol=1e-5)
    assert [word["word"] for word in second] == ["here"]


def test_words_behind_the_cut_have_no_tag_and_are_counted(run):
    tagging = run("tags", TokenClassification(("O", "B-PER", "B-LOC")))
    (words,) = tagging.tag_words([" ".join(["tan"] * 200)])
    assert len(words) == 62 and tagging.num_truncated == 1


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
    (said,) = run("pair", ReplacedTokenDetection(generator_width=1 / 2), ELECTRA).detect_replaced("tan here")
    assert [token for token, _ in said] == ["[CLS]", "tan", "here", "[SEP]"]
    assert all(0 < p < 1 for _, p in said)


@pytest.mark.parametrize(
    "objective, ask, text",
    [
        (EncoderOnly(has_pooler=True), lambda run: run.embed, TEXTS[0]),
        (EncoderOnly(has_pooler=True), lambda run: run.embed_tokens, TEXTS[0]),
        (EncoderOnly(has_pooler=True), lambda run: run.compare_pairs, (TEXTS[0], TEXTS[1])),
        (EncoderOnly(has_pooler=True), lambda run: run.similarity_matrix, TEXTS[0]),
        (MaskedLM(), lambda run: run.fill_masks, "[MASK] here"),
        (Classification(("no", "yes")), lambda run: run.classify, TEXTS[0]),
        (SpanPrediction(), lambda run: run.answer_questions, ("who", TEXTS[0])),
    ],
)
def test_one_text_alone_has_the_result_of_a_list_of_it(objective, ask, text, run):
    predict = ask(run(f"alone-{type(objective).__name__}", objective))
    alone, listed = (list(predict(given)) for given in (text, [text]))
    assert len(alone) == 1 and jax.tree.all(jax.tree.map(np.array_equal, alone, listed))


@pytest.mark.parametrize("separators", [1, 2])
def test_rows_are_those_of_training(separators):
    rng, vocab = np.random.default_rng(0), replace(make_blank_vocab(99), continuation_bits=bytes(13))
    rows = [[rng.integers(9, 99, size).tolist() for size in sizes] for sizes in ([3], [40], [5, 2], [30, 9], [20, 31])]
    split, form = build_split(rows, vocab, {"label": np.zeros(len(rows))}), TextRows(num_separators=separators)
    table = form.build_example_table(split, range(len(rows)), 24, 0, 0)
    expected = assemble_rows(split, table, 24, vocab, form)
    cut = [text_batch.cut_texts(ids, 24, separators) for ids in rows]
    found = text_batch.build_text_batch(cut, (len(rows), 24), vocab, separators).to_batch()
    for name in ("input_ids", "example_ids", "token_type_ids", "position_ids", "cls_positions", "example_mask"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize(
    "method, arguments, text",
    [
        ("embed", {"pooling": "cls"}, "tan"),
        pytest.param("embed_tokens", {"layer": 0}, "tan", marks=pytest.mark.live),
        pytest.param("compare_pairs", {}, ("tan", "tan"), marks=pytest.mark.live),
    ],
)
def test_a_warm_predictor_compiles_nothing_more(method, arguments, text, features, monkeypatch):
    run = predictor.Predictor(features.run, features.params, batch_size=5, lengths=LENGTHS)
    run.warm_up(method, **arguments)
    (programs,) = run.programs.values()
    expected = {(size, length) for size in (1, 4, 5) for length in LENGTHS}
    if method != "embed_tokens":
        expected |= {(1, 64, 8), (2, 64, 8)}  # of packed texts
    assert programs.keys() == expected
    monkeypatch.setattr(jax, "jit", lambda *_: 1 / 0)
    for count, words in [(1, 1), (2, 40), (5, 9), (13, 62), (20, 5)]:
        texts = [tuple(f"{part} " * words for part in text) if isinstance(text, tuple) else f"{text} " * words] * count
        assert len(list(getattr(run, method)(texts, **arguments))) == count


def test_a_batch_is_no_larger_than_its_texts_need(features):
    run = predictor.Predictor(features.run, features.params, batch_size=32)
    list(run.embed(["tan"] * 37))
    list(run.embed([" ".join(["tan"] * 60)] * 2))
    (programs,) = run.programs.values()
    assert programs.keys() == {(32, 16), (16, 16), (4, 64)}


@pytest.mark.parametrize("settings", [{"lengths": (32, 16)}, {"lengths": ()}, {"lengths": (65,)}, {"batch_size": 0}])
def test_lengths_and_sizes_that_cannot_be_are_named(settings, features):
    ((name, value),) = settings.items()
    with pytest.raises(RunError, match=re.escape(f"{name}={value}")):
        predictor.Predictor(features.run, features.params, **settings)


def test_the_last_length_cuts_texts(features):
    run = predictor.Predictor(features.run, features.params, lengths=(12,))
    (cut,), (short,) = run.embed(" ".join(["tan"] * 40)), run.embed(" ".join(["tan"] * 10))
    np.testing.assert_allclose(cut, short, atol=1e-6)
    assert run.num_truncated == 1


def test_windows_of_any_length_are_answered_as_alone(run):
    answering = run("SpanPrediction", SpanPrediction())
    answering = predictor.Predictor(answering.run, answering.params, batch_size=1)  # rows of 16, 24, 64 ...
    asked = [("what here", "tan who tan"), ("who", " ".join(TEXTS)), ("who", "tan")]
    together = list(answering.answer_questions(asked))
    for question, said in zip(asked, together, strict=True):
        (one,) = answering.answer_questions(question)
        assert said["answer"] == one["answer"] and said["start"] == one["start"]
        assert [said["score"], said["null"]] == pytest.approx([one["score"], one["null"]], rel=1e-4)


@pytest.mark.parametrize(
    "ask, named",
    [
        (lambda run: run.classify(["tan"]), ["classification head", "encoder, pooler", "train own --with init_from="]),
        (
            lambda run: run.answer_questions([("who", "tan")]),
            ["question-answering head", "train squad --with init_from="],
        ),
        (lambda run: run.tag_words(["tan"]), ["token-classification head", "train tags --with init_from="]),
        (lambda run: run.fill_masks(["[MASK]"]), ["masked-token head", "encoder, pooler"]),
        (lambda run: run.detect_replaced(["tan"]), ["replaced-token head", "encoder, pooler"]),
        (lambda run: run.embed(["tan", " "]), ["' '", "token"]),
        (lambda run: run.embed(b"tan"), ["116"]),
        (lambda run: run.embed(["tan", None]), ["None"]),
        (lambda run: run.embed_tokens([("a", "b", "c")]), ["'c'"]),
        (lambda run: run.compare_pairs("tan"), ["'tan'", "second"]),
        (lambda run: run.compare_pairs(["ta", "he", "tan"]), ["'ta'", "second"]),
    ],
)
def test_a_missing_head_and_what_is_no_text_are_named(ask, named, features):
    with raises_naming(RunError, *named):
        list(ask(features))
