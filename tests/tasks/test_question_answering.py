"""The three designs of answerability: losses, scores of answers and gradients, counted again in NumPy."""

from functools import cache, partial
from math import erf

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.data.batch import Batch, build_single_example_batch
from encoders.data.example_table import rows_to_table
from encoders.data.store import Split
from encoders.model.config import EncoderConfig
from encoders.model.encoder import Encoder
from encoders.tasks.question_answering import (
    N_BEST_SIZE,
    ConditionedSpanPrediction,
    SpanPrediction,
    SpanWithClassifier,
)
from encoders.training.step import init_params
from encoders.utils.metrics import mean_value
from tests.batches import make_batch
from tests.networks import make_vocab

SIZES = dict(
    vocab_size=20, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=12, embedding_size=8, max_positions=30
)
MODEL = EncoderConfig(**SIZES, hidden_dropout=0.0, attention_dropout=0.0)
CLS, SEP = 2, 3
FACTS = make_vocab(20)
ALL = [
    SpanPrediction(),
    SpanWithClassifier(),
    ConditionedSpanPrediction(),
    ConditionedSpanPrediction(12, "gelu", use_layer_norm=False, head_dropout=0.0, beam_size=3),
]
NAMES = ["bert", "roberta", "albert", "electra"]
DESIGNS = pytest.mark.parametrize("objective", ALL, ids=NAMES)
UNCONDITIONED = pytest.mark.parametrize("objective", ALL[:2], ids=NAMES[:2])
CONDITIONED = pytest.mark.parametrize("objective", ALL[2:], ids=NAMES[2:])
# Of each example its row and place there, the row's tokens that are its own, its text, and its answer, or twice [CLS].
EXAMPLES = [((0, 0), range(8), range(4, 7), (5, 6)), ((0, 1), range(8, 14), range(11, 13), (8, 8))]
EXAMPLES += [((1, 0), range(9), range(3, 8), (4, 7))]
near = partial(pytest.approx, rel=1e-4, abs=1e-4)  # float32


def packed() -> Batch:
    """Two rows; the first holds two examples and padding, with texts of 3 and 2 tokens, the second one with 5."""
    first, second = [CLS, 5, 6, SEP, 7, 8, 9, SEP, CLS, 10, SEP, 11, 12, SEP], [CLS, 13, SEP, 14, 15, 16, 17, 18, SEP]
    fields = {"input_ids": [first + [0], second + [0] * 6], "example_ids": [[1] * 8 + [2] * 6 + [0], [1] * 9 + [0] * 6]}
    fields |= {"token_type_ids": [[0] * 4 + [1] * 4 + [0] * 3 + [1] * 3 + [0], [0] * 3 + [1] * 6 + [0] * 6]}
    fields |= {"position_ids": [[*range(8), *range(6), 0], [*range(9)] + [0] * 6]}
    fields |= {"example_index": [[7, 8], [9, 0]], "cls_positions": [[0, 8], [0, 0]], "example_mask": [[1, 1], [1, 0]]}
    fields |= {"first": [[5, 8], [4, 0]], "last": [[6, 8], [7, 0]], "answerable": [[1, 0], [1, 0]]}
    return jax.tree.map(jnp.asarray, make_batch(**fields))


@partial(jax.jit, static_argnames=("module", "method"))
def apply(params, batch, *, module, method="__call__"):
    return module.apply({"params": params}, batch, method=method)


@cache
def made(objective):
    """A module, and parameters so large that nothing is close to nothing."""
    module, rng = objective.module(MODEL, FACTS), np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: init_params(0, module))
    return module, jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)


@cache
def ran(objective):
    """The parameters, the hidden states of the rows, and the metrics and what is said of these."""
    module, params = made(objective)
    hidden = jax.jit(Encoder(MODEL).apply)({"params": params["encoder"]}, packed())
    return params, np.asarray(hidden, float), *apply(params, packed(), module=module, method="evaluate_batch")


def layer(params, name: str, x: np.ndarray) -> np.ndarray:
    return x @ np.asarray(params[name]["kernel"], float) + params[name].get("bias", 0)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def cross_entropy(null: list[float]) -> float:
    """Of the logits that there is no answer, which is true of the second example."""
    none = 1 / (1 + np.exp(-np.array(null)))
    return -np.log([1 - none[0], none[1], 1 - none[2]]).mean()


def candidates(said: dict, row: int, slot: int) -> dict[tuple[int, int], float]:
    """The scores of the spans that may be answers."""
    first, last, score = (np.asarray(said[name])[row, slot] for name in ("first", "last", "score"))
    possible = np.isfinite(score)
    spans = list(zip(first[possible].tolist(), last[possible].tolist(), strict=True))
    assert len(set(spans)) == len(spans)
    return dict(zip(spans, score[possible].tolist(), strict=True))


# Start and end apart


@UNCONDITIONED
def test_the_losses_of_spans_are_cross_entropies_over_the_tokens_of_the_example(objective):
    params, hidden, metrics, _ = ran(objective)
    logits = layer(params, "spans", hidden)
    for i, name in enumerate(("first_loss", "last_loss")):
        chances = [
            log_softmax(logits[row, tokens, i])[answer[i] - tokens[0]] for (row, _), tokens, _, answer in EXAMPLES
        ]
        assert mean_value(metrics[name]) == near(-np.mean(chances))


@UNCONDITIONED
def test_the_score_of_a_span_is_the_sum_of_its_two_logits(objective):
    """A row has fewer than 20 tokens, so each start goes with each end; places count from the text's first token."""
    params, hidden, _, said = ran(objective)
    logits = layer(params, "spans", hidden)
    assert said["score"].shape == said["first"].shape == said["last"].shape == (2, 2, N_BEST_SIZE**2)
    for (row, slot), _, text, _ in EXAMPLES:
        pairs = {(a - text[0], b - text[0]): logits[row, a, 0] + logits[row, b, 1] for a in text for b in text}
        assert candidates(said, row, slot) == near(pairs)


def test_the_null_score_of_spans_is_the_sum_of_both_logits_of_cls():
    params, hidden, _, said = ran(SpanPrediction())
    logits = layer(params, "spans", hidden)
    null = [logits[row, tokens[0]].sum() for (row, _), tokens, *_ in EXAMPLES]
    assert [float(said["null"][place]) for place, *_ in EXAMPLES] == near(null)


def test_the_answerability_classifier_reads_cls_with_a_binary_cross_entropy():
    params, hidden, metrics, said = ran(SpanWithClassifier())
    judged = layer(params, "answerable", hidden)[..., 0]
    null = [judged[row, tokens[0]] for (row, _), tokens, *_ in EXAMPLES]
    assert [float(said["null"][place]) for place, *_ in EXAMPLES] == near(null)
    assert mean_value(metrics["answerable_loss"]) == near(cross_entropy(null))
    assert mean_value(metrics["answerable_accuracy"]) == near(np.mean([null[0] < 0, null[1] > 0, null[2] < 0]))


# The end given the start


def act(objective, x: np.ndarray) -> np.ndarray:
    return np.tanh(x) if objective.activation == "tanh" else x * (1 + np.vectorize(erf)(x / 2**0.5)) / 2


def starts(params, hidden):
    """Of each example the hidden states of [CLS] and of the text, and the log-probabilities of a start there."""
    for (row, _), tokens, text, _ in EXAMPLES:
        mine = hidden[row, [tokens[0], *text]]
        yield mine, log_softmax(layer(params, "start", mine)[:, 0])


def ends(objective, params, hidden: np.ndarray, start: int) -> np.ndarray:
    """The log-probabilities of an end given a start, by one dense layer on the states of both beside each other."""
    both = np.concatenate([hidden, np.broadcast_to(hidden[start], hidden.shape)], axis=-1)
    kernel = np.concatenate([params["end_token"]["kernel"], params["end_start"]["kernel"]])
    x = act(objective, both @ kernel + params["end_token"]["bias"])
    if objective.use_layer_norm:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + MODEL.layer_norm_eps)
        x = x * params["end_norm"]["scale"] + params["end_norm"]["bias"]
    return log_softmax(layer(params, "end", x)[:, 0])


@CONDITIONED
def test_the_losses_of_conditioned_spans_are_cross_entropies_over_cls_and_the_text(objective):
    params, hidden, metrics, said = ran(objective)
    first, last, null = [], [], []
    for (_, tokens, text, answer), (mine, chances) in zip(EXAMPLES, starts(params, hidden), strict=True):
        a, b = ([tokens[0], *text].index(place) for place in answer)
        first.append(-chances[a])
        last.append(-ends(objective, params, mine, a)[b])
        expected = np.exp(chances) @ mine
        x = act(objective, layer(params, "answer", np.concatenate([expected, mine[0]])))
        null.append(layer(params, "answerable", x)[0])
    assert mean_value(metrics["first_loss"]) == near(np.mean(first))
    assert mean_value(metrics["last_loss"]) == near(np.mean(last))
    assert mean_value(metrics["answerable_loss"]) == near(cross_entropy(null))
    assert [float(said["null"][place]) for place, *_ in EXAMPLES] == near(null)


@CONDITIONED
def test_the_score_of_a_conditioned_span_is_the_log_probability_of_its_start_and_its_end(objective):
    """Of the likeliest starts, each with the likeliest ends that it has."""
    params, hidden, _, said = ran(objective)
    assert said["score"].shape == said["first"].shape == said["last"].shape == (2, 2, objective.beam_size**2)
    best = lambda chances: (1 + np.argsort(-chances[1:])[: objective.beam_size]).tolist()  # [CLS] is before the text
    for (place, _, text, _), (mine, chances) in zip(EXAMPLES, starts(params, hidden), strict=True):
        given = {a: ends(objective, params, mine, a) for a in best(chances)}
        pairs = {(a - 1, b - 1): chances[a] + given[a][b] for a in given for b in best(given[a])}
        assert len(pairs) == min(objective.beam_size, len(text)) ** 2
        assert candidates(said, *place) == near(pairs)


# All designs


@DESIGNS
def test_only_a_conditioned_end_depends_on_the_true_start_in_training(objective):
    module, params = made(objective)
    batch = packed()
    batch = batch.replace(labels=batch.labels | {"first": jnp.array([[4, 8], [4, 0]])})
    metrics, _ = apply(params, batch, module=module, method="evaluate_batch")
    unchanged = float(metrics["last_loss"].total) == float(ran(objective)[2]["last_loss"].total)
    assert unchanged != isinstance(objective, ConditionedSpanPrediction)


@DESIGNS
def test_question_and_padding_tokens_are_never_answers(objective):
    module, params = made(objective)
    inside = np.zeros((2, 15), bool)
    for (row, _), _, text, _ in EXAMPLES:
        inside[row, text] = True
    if isinstance(objective, ConditionedSpanPrediction):
        logits = jnp.ones((2, 15, 8)), jnp.where(inside[:, None], 0.0, 50.0 * jnp.ones((2, 2, 1))), jnp.zeros((2, 2))
    else:
        logits = jnp.where(inside[..., None], 0.0, 50.0 * jnp.ones(2)), jnp.zeros((2, 2))
    compute_outputs = jax.jit(partial(module.apply, method="compute_outputs"))
    said = compute_outputs({"params": params}, logits, packed())
    for place, _, text, _ in EXAMPLES:
        found = candidates(said, *place)
        assert found and all(0 <= a < len(text) and 0 <= b < len(text) for a, b in found)
    assert candidates(said, 1, 1) == {}  # there is no second example


@pytest.mark.parametrize("objective, tried", [*zip(ALL, (20, 20, 5, 3), strict=True)], ids=NAMES)
def test_the_n_best_starts_and_ends_are_combined(objective, tried):
    """The `n_best_size` of BERT's code, and the beam of the others, in a text of 24 tokens."""
    module, params = made(objective)
    tokens = np.array([[CLS, 5, SEP, *range(5, 20), *range(5, 14), SEP]])
    batch = build_single_example_batch(tokens, np.array([[0] * 3 + [1] * 25]))
    said = apply(params, batch, module=module, method="predict_outputs")
    assert len(candidates(said, 0, 0)) == tried**2 == said["score"].shape[-1]


@DESIGNS
def test_only_plain_spans_subtract_the_best_score_from_the_null_score(objective):
    notes = ({"context": "old fox", "answers": ["fox"]},)
    split = Split(
        "dev", *np.zeros((3, 1)), {"places": np.array([(0, 3), (0, 3), (4, 7), (0, 0)])}, in_memory_metadata=notes
    )
    said = {"first": [[[0, 1]]], "last": [[[1, 1]]], "score": [[[0.5, 1.5]]], "null": [[4.0]]}
    said, rows = {name: np.array(each) for name, each in said.items()}, rows_to_table([(0, 1, 1, 3, 0, 0)])[:, None]
    verdict = objective.decode_predictions(said, rows, split)[0]
    assert [answer.text for answer in verdict.answers] == ["fox", "old fox"]
    assert verdict.null_score == (2.5 if isinstance(objective, SpanPrediction) else 4.0)
    assert objective.score_outputs(said, rows, split) == {"exact": 100, "f1": 100}


SPANS, JUDGED = [{"spans"}, {"spans"}], {"start", "answer", "answerable"}  # the judge reads the expected start
GIVEN = {"end_token", "end_start", "end"}
HEADS = [SPANS, [*SPANS, {"answerable"}], [{"start"}, GIVEN | {"end_norm"}, JUDGED], [{"start"}, GIVEN, JUDGED]]


@pytest.mark.parametrize("objective, heads", [*zip(ALL, HEADS, strict=True)], ids=NAMES)
def test_the_gradient_of_each_loss_reaches_its_heads(objective, heads):
    module, params = made(objective)
    loss = lambda parts: [apply(params | parts, packed(), module=module)[name].total for name in objective.loss_weights]
    found = jax.jit(jax.jacrev(loss))({part: tree for part, tree in params.items() if part != "encoder"})
    for expected, gradient in zip(heads, found, strict=True):
        size = {part: max(float(abs(x).max()) for x in jax.tree.leaves(tree)) for part, tree in gradient.items()}
        assert {part for part in size if size[part] > 1e-5} == expected
        assert {part for part in size if size[part] == 0} == size.keys() - expected
