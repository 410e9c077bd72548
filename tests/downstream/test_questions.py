"""The three designs of answerability: losses, scores of answers and gradients, counted again in NumPy."""

from dataclasses import replace
from math import erf

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.data.store import Split
from encoders.downstream.questions import BEST, ConditionedSpans, JudgedSpans, Spans
from encoders.metrics import value
from encoders.model.config import Model
from encoders.model.encoder import Encoder
from encoders.text.vocab import Facts
from encoders.training.step import parameters

SIZES = dict(vocab=20, hidden=8, layers=1, heads=2, intermediate=12, embedding=8, positions=30)
MODEL = Model(**SIZES, dropout=0.0, attention_dropout=0.0)
PAD, CLS, SEP = 0, 2, 3
FACTS = Facts(size=20, pad=PAD, unk=1, cls=CLS, sep=SEP, mask=4, special=(0, 1, 2, 3, 4), continuations=bytes(3))
ALBERT = ConditionedSpans()
ELECTRA = ConditionedSpans(12, "gelu", norm=False, dropout=0.0, beam=3)
UNCONDITIONED = pytest.mark.parametrize("objective", [Spans(), JudgedSpans()], ids=["bert", "roberta"])
CONDITIONED = pytest.mark.parametrize("objective", [ALBERT, ELECTRA], ids=["albert", "electra"])
FAMILIES = ["bert", "roberta", "albert", "electra"]
DESIGNS = pytest.mark.parametrize("objective", [Spans(), JudgedSpans(), ALBERT, ELECTRA], ids=FAMILIES)
# (row, example of the row) of each example, its tokens, its text, and its answer: the second has none.
EXAMPLES = [((0, 0), range(8), range(4, 7), (5, 6)), ((0, 1), range(8, 14), range(11, 13), (8, 8))]
EXAMPLES += [((1, 0), range(9), range(3, 8), (4, 7))]


def packed() -> dict:
    """Two rows: `[CLS] a b [SEP] c d e [SEP]` and `[CLS] f [SEP] g h [SEP]`, then one such example with longer text."""
    example = np.array([[1] * 8 + [2] * 6 + [0], [1] * 9 + [0] * 6], np.int32)
    positions = np.array([[*range(8), *range(6), 0], [*range(9)] + [0] * 6], np.int32)
    tokens = [[CLS, 5, 6, SEP, 7, 8, 9, SEP, CLS, 10, SEP, 11, 12, SEP, PAD]]
    tokens += [[CLS, 13, SEP, 14, 15, 16, 17, 18, SEP] + [PAD] * 6]
    segments = [[0] * 4 + [1] * 4 + [0] * 3 + [1] * 3 + [0], [0] * 3 + [1] * 6 + [0] * 6]
    fields = {"tokens": tokens, "example": example, "segments": segments, "positions": positions}
    fields |= {"id": [[7, 8], [9, 0]], "start": [[0, 8], [0, 0]], "valid": [[1, 1], [1, 0]]}
    fields |= {"first": [[5, 8], [4, 0]], "last": [[6, 8], [7, 0]], "answerable": [[1, 0], [1, 0]]}
    return {name: jnp.asarray(np.array(rows, np.int32)) for name, rows in fields.items()}


@cache
def made(objective):
    """A module, parameters so large that nothing is close to nothing, and what both make of the rows: the hidden
    states, the metrics and what is said."""
    module = objective.module(MODEL, FACTS)
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: parameters(0, module)))
    rng = np.random.default_rng(1)
    variables = {"params": tree.unflatten([rng.normal(0, 0.5, x.shape).astype(np.float32) for x in leaves])}

    @jax.jit
    def run(variables, batch):
        inputs = (batch[name] for name in ("tokens", "example", "segments", "positions"))
        hidden = Encoder(MODEL).apply({"params": variables["params"]["encoder"]}, *inputs)
        return hidden, *module.apply(variables, batch, method="evaluate")

    return module, variables, run


def ran(objective, **changes):
    """The parameters of the heads, the hidden states, the metrics and what is said of the rows."""
    _, variables, run = made(objective)
    hidden, metrics, said = run(variables, packed() | changes)
    return variables["params"], np.asarray(hidden, float), metrics, said


def layer(variables, name: str, x: np.ndarray) -> np.ndarray:
    kernel = np.asarray(variables["params"][name]["kernel"], float)
    return x @ kernel + np.asarray(variables["params"][name].get("bias", 0.0), float)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def cross_entropy(null: list[float]) -> float:
    """Of the logits that there is no answer, which is true of the second example."""
    none = 1 / (1 + np.exp(-np.array(null)))
    return -np.log([1 - none[0], none[1], 1 - none[2]]).mean()


def candidates(said: dict, row: int, slot: int) -> dict[tuple[int, int], float]:
    """The scores of the spans that may be answers."""
    first, last, score = (np.asarray(said[name])[row, slot] for name in ("first", "last", "score"))
    found = [(int(a), int(b), float(c)) for a, b, c in zip(first, last, score, strict=True) if np.isfinite(c)]
    assert len({(a, b) for a, b, _ in found}) == len(found)
    return {(a, b): c for a, b, c in found}


# Start and end apart


@UNCONDITIONED
def test_the_losses_of_spans_are_cross_entropies_over_the_tokens_of_the_example(objective):
    module, variables = made(objective)
    logits = layer(variables, "spans", hidden_states(variables, packed()))
    metrics = module.apply(variables, packed())
    for i, name in enumerate(("first_loss", "last_loss")):
        chances = [log_softmax(logits[row, list(tokens), i]) for (row, _), tokens, *_ in EXAMPLES]
        losses = [-each[answer[i] - tokens[0]] for each, (_, tokens, _, answer) in zip(chances, EXAMPLES, strict=True)]
        assert value(metrics[name]) == pytest.approx(np.mean(losses), rel=1e-4)


@UNCONDITIONED
def test_the_score_of_a_span_is_the_sum_of_its_two_logits(objective):
    """Without limit where the text is shorter than 20 tokens: each start goes with each end."""
    module, variables = made(objective)
    logits = layer(variables, "spans", hidden_states(variables, packed()))
    said = module.apply(variables, packed(), method="outputs")
    assert said["score"].shape == said["first"].shape == (2, 2, 15 * 15)
    for (row, slot), _, text, _ in EXAMPLES:
        pairs = {(a - text[0], b - text[0]): logits[row, a, 0] + logits[row, b, 1] for a in text for b in text}
        assert candidates(said, row, slot) == pytest.approx(pairs, rel=1e-4, abs=1e-4)


def test_the_null_of_spans_is_the_sum_of_both_logits_of_cls():
    module, variables = made(Spans())
    logits = layer(variables, "spans", hidden_states(variables, packed()))
    said = module.apply(variables, packed(), method="outputs")
    for (row, slot), tokens, *_ in EXAMPLES:
        assert float(said["null"][row, slot]) == pytest.approx(logits[row, tokens[0]].sum(), rel=1e-4)


def test_a_judge_reads_cls_and_its_loss_is_the_binary_cross_entropy():
    module, variables = made(JudgedSpans())
    judged = layer(variables, "answerable", hidden_states(variables, packed()))[..., 0]
    said = module.apply(variables, packed(), method="outputs")["null"]
    null = [judged[row, tokens[0]] for (row, _), tokens, *_ in EXAMPLES]
    assert [float(said[place]) for place, *_ in EXAMPLES] == pytest.approx(null, rel=1e-4)
    metrics = module.apply(variables, packed())
    assert value(metrics["answerable_loss"]) == pytest.approx(cross_entropy(null), rel=1e-4)
    right = np.mean([null[0] < 0, null[1] > 0, null[2] < 0])
    assert value(metrics["answerable_accuracy"]) == pytest.approx(right)


# The end given the start


def states(objective, variables, batch):
    """The hidden states, and of each example its allowed tokens and the log-probabilities of its starts."""
    hidden = hidden_states(variables, batch)
    logits = layer(variables, "start", hidden)[..., 0]
    allowed = [[tokens[0], *text] for _, tokens, text, _ in EXAMPLES]
    return (
        hidden,
        allowed,
        [log_softmax(logits[row, mine]) for ((row, _), *_), mine in zip(EXAMPLES, allowed, strict=True)],
    )


def act(objective, x: np.ndarray) -> np.ndarray:
    return np.tanh(x) if objective.activation == "tanh" else x * (1 + np.vectorize(erf)(x / 2**0.5)) / 2


def ends(objective, variables, hidden: np.ndarray, start: int) -> np.ndarray:
    """Log-probabilities of the ends among the tokens `hidden`: one dense layer on each beside the start's."""
    both = np.concatenate([hidden, np.broadcast_to(hidden[start], hidden.shape)], axis=-1)
    params = variables["params"]
    kernel = np.concatenate([params["end_token"]["kernel"], params["end_start"]["kernel"]])
    x = act(objective, both @ kernel + np.asarray(params["end_token"]["bias"]))
    if objective.norm:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + MODEL.norm_epsilon)
        x = x * np.asarray(params["end_norm"]["scale"]) + np.asarray(params["end_norm"]["bias"])
    return log_softmax(layer(variables, "end", x)[..., 0])


@CONDITIONED
def test_the_losses_of_conditioned_spans_are_cross_entropies_over_cls_and_the_text(objective):
    module, variables = made(objective)
    hidden, allowed, starts = states(objective, variables, packed())
    first, last, null = [], [], []
    for ((row, _), tokens, _, answer), mine, chances in zip(EXAMPLES, allowed, starts, strict=True):
        a, b = (mine.index(place) for place in answer)
        first.append(-chances[a])
        last.append(-ends(objective, variables, hidden[row, mine], a)[b])
        expected = np.exp(chances) @ hidden[row, mine]
        x = act(objective, layer(variables, "answer", np.concatenate([expected, hidden[row, tokens[0]]])))
        null.append(layer(variables, "answerable", x)[0])
    metrics = module.apply(variables, packed())
    assert value(metrics["first_loss"]) == pytest.approx(np.mean(first), rel=1e-4)
    assert value(metrics["last_loss"]) == pytest.approx(np.mean(last), rel=1e-4)
    assert value(metrics["answerable_loss"]) == pytest.approx(cross_entropy(null), rel=1e-4)
    said = module.apply(variables, packed(), method="outputs")["null"]
    assert [float(said[place]) for place, *_ in EXAMPLES] == pytest.approx(null, rel=1e-4, abs=1e-5)


@CONDITIONED
def test_the_score_of_a_conditioned_span_is_the_log_probability_of_its_start_and_its_end(objective):
    """Of the likeliest starts, and for each of the likeliest ends."""
    module, variables = made(objective)
    hidden, allowed, starts = states(objective, variables, packed())
    said = module.apply(variables, packed(), method="outputs")
    assert said["score"].shape == (2, 2, objective.beam**2)
    for ((row, slot), *_), mine, chances in zip(EXAMPLES, allowed, starts, strict=True):
        pairs, best = {}, lambda chances: 1 + np.argsort(-chances[1:])[: objective.beam]  # the first is [CLS]
        for a in best(chances):
            given = ends(objective, variables, hidden[row, mine], a)
            pairs |= {(int(a) - 1, int(b) - 1): chances[a] + given[b] for b in best(given)}
        assert len(pairs) == min(objective.beam, len(mine) - 1) ** 2
        assert candidates(said, row, slot) == pytest.approx(pairs, rel=1e-4, abs=1e-4)


@DESIGNS
def test_only_conditioned_ends_depend_on_the_true_start_in_training(objective):
    module, variables = made(objective)
    moved = packed() | {"first": jnp.array([[4, 8], [4, 0]])}
    one, other = (module.apply(variables, batch)["last_loss"] for batch in (packed(), moved))
    assert (float(one.total) != float(other.total)) == isinstance(objective, ConditionedSpans)


# All designs


@DESIGNS
def test_the_question_and_padding_hold_no_answer_however_likely(objective):
    module, variables = made(objective)
    batch, inside = packed(), np.zeros((2, 15), bool)
    for (row, _), _, text, _ in EXAMPLES:
        inside[row, list(text)] = True
    *before, spans, null = module.apply(variables, batch, method="logits")  # [b l 2], or of starts alone [b s l]
    spans = jnp.where(inside[:, None] if before else inside[..., None], spans, 50.0)
    said = module.apply(variables, (*before, spans, null), batch, method="said")
    for (row, slot), _, text, _ in EXAMPLES:
        found = candidates(said, row, slot)
        assert found and all(0 <= place < len(text) for pair in found for place in pair)
    assert candidates(said, 1, 1) == {}  # there is no second example


@pytest.mark.parametrize(
    "objective, tried", [(Spans(), 20), (JudgedSpans(), 20), (ALBERT, 5), (ELECTRA, 3)], ids=FAMILIES
)
def test_so_many_starts_and_ends_are_combined(objective, tried):
    """`n_best_size` of BERT's code, 20, and the beam of the others, in a text of 24 tokens."""
    module, variables = made(objective, replace(MODEL, positions=30))
    tokens = [CLS, 5, SEP, *np.arange(24) % 15 + 5, SEP]
    batch = {"tokens": [tokens], "example": [[1] * 28], "segments": [[0] * 3 + [1] * 25], "positions": [[*range(28)]]}
    batch |= {"id": [[0]], "start": [[0]], "valid": [[1]]}
    said = module.apply(variables, {name: jnp.array(rows) for name, rows in batch.items()}, method="outputs")
    assert BEST == 20 and len(candidates(said, 0, 0)) == tried**2 == said["score"].shape[-1]


@DESIGNS
def test_only_spans_weigh_that_there_is_no_answer_against_the_best_one(objective):
    notes = ({"context": "old fox", "answers": ["fox"]},)
    split = Split("dev", *np.zeros((3, 1)), {"places": np.array([(0, 3), (0, 3), (4, 7), (0, 0)])}, kept=notes)
    said = {"first": [[[0, 1]]], "last": [[[1, 1]]], "score": [[[0.5, 1.5]]], "null": [[4.0]]}
    said, rows = {name: np.array(each) for name, each in said.items()}, np.array([[[0, 1, 1, 3, 0]]])
    verdict = objective.verdicts(said, rows, split)[0]
    assert [answer.text for answer in verdict.answers] == ["fox", "old fox"]
    assert verdict.null == (2.5 if isinstance(objective, Spans) else 4.0)
    assert objective.score(said, rows, split) == {"exact": 100, "f1": 100}


ANSWERABLE = {"answerable_loss": {"answerable"}}
GIVEN = {"end_token", "end_start", "end"}
# The expected start is read where an answer is judged.
BOTH = {"first_loss": {"start"}, "last_loss": GIVEN, "answerable_loss": {"start", "answer", "answerable"}}


@pytest.mark.parametrize(
    "objective, heads",
    [
        (Spans(), {"first_loss": {"spans"}, "last_loss": {"spans"}}),
        (JudgedSpans(), {"first_loss": {"spans"}, "last_loss": {"spans"}} | ANSWERABLE),
        (ALBERT, BOTH | {"last_loss": GIVEN | {"end_norm"}}),
        (ELECTRA, BOTH),
    ],
    ids=FAMILIES,
)
def test_the_gradient_of_each_loss_reaches_its_heads_and_the_encoder(objective, heads):
    module, variables = made(objective)
    loss = lambda params: {name: module.apply({"params": params}, packed())[name].total for name in heads}
    assert objective.weights.keys() == heads.keys()
    for name, gradient in jax.jacrev(loss)(variables["params"]).items():
        size = {part: max(float(abs(x).max()) for x in jax.tree.leaves(tree)) for part, tree in gradient.items()}
        assert {part for part in size if size[part] > 1e-4} == heads[name] | {"encoder"}
        assert all(size[part] == 0 for part in size.keys() - heads[name] - {"encoder"})
