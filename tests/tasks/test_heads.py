"""What fine-tuned checkpoints compute: classes, numbers and spans, and losses counted by hand."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.data.batch import Batch, build_single_example_batch
from encoders.model.config import EncoderConfig
from encoders.model.layers import CausalSelfAttention
from encoders.tasks.classification import Classification
from encoders.tasks.encoder_only import EncoderOnly
from encoders.tasks.question_answering import SpanPrediction
from encoders.training.step import init_params
from encoders.utils.metrics import mean_value
from tests.batches import make_batch
from tests.networks import make_vocab

MODEL = EncoderConfig(
    vocab_size=20,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    intermediate_size=12,
    embedding_size=8,
    max_positions=10,
    hidden_dropout=0.0,
    attention_dropout=0.0,
)
FACTS = make_vocab(20)


def packed(**labels) -> Batch:
    """Two rows; the first holds two examples of 4 and 3 tokens and padding, the second one of 5."""
    example = np.array([[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 0, 0, 0]], np.int32)
    positions = np.array([[0, 1, 2, 3, 0, 1, 2, 0], [0, 1, 2, 3, 4, 0, 0, 0]], np.int32)
    tokens = np.where(example > 0, 5 + positions + example, 0).astype(np.int32)
    slots = {"example_index": [[7, 8], [9, 0]], "cls_positions": [[0, 4], [0, 0]], "example_mask": [[1, 1], [1, 0]]}
    batch = make_batch(tokens, example_ids=example, position_ids=positions, **slots, **labels)
    return jax.tree.map(jnp.asarray, batch)


@cache
def build_network(objective, model=MODEL):
    """Return a function of a batch and a method of the module, and the module's fresh parameters."""
    module = objective.module(model, FACTS)
    variables = {"params": jax.jit(partial(init_params, 0, module))()}
    apply = jax.jit(module.apply, static_argnames="method")
    return partial(apply, variables), variables["params"]


@pytest.mark.parametrize(
    "head", ["pooled", *(pytest.param(h, marks=pytest.mark.live) for h in ("linear", "tanh", "gelu"))]
)
def test_every_example_of_a_packed_row_gets_its_own_logits(head):
    apply, params = build_network(Classification(("a", "b", "c"), head))
    batch = packed()
    together = apply(batch, method="compute_logits")
    alone = build_single_example_batch(batch.input_ids[:1, 4:7])
    assert together.shape == (2, 2, 3)
    np.testing.assert_allclose(together[0, 1], apply(alone, method="compute_logits")[0, 0], atol=1e-6)
    assert ("pooler" in params) == (head == "pooled")


@pytest.mark.parametrize("head", ["pooled", "linear"])
def test_causal_attention_classifies_by_the_last_token(head):
    apply, params = build_network(Classification(("a", "b", "c"), head), replace(MODEL, attention=CausalSelfAttention))
    logits = partial(apply, method="compute_logits")
    batch = packed()
    before = np.asarray(logits(batch))
    for place in (4, 5, 6):  # of the second example
        after = np.asarray(logits(batch.replace(input_ids=batch.input_ids.at[0, place].set(15))))
        np.testing.assert_array_equal(after[0, 0], before[0, 0])
        assert not np.isclose(after[0, 1], before[0, 1], rtol=1e-6, atol=0).any()


def test_the_classification_loss_is_the_cross_entropy_over_examples():
    apply, params = build_network(Classification(("a", "b", "c")))
    batch = packed(label=jnp.array([[2, 0], [1, 1]]))
    logits = np.asarray(apply(batch, method="compute_logits"), float)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log([shares[0, 0, 2], shares[0, 1, 0], shares[1, 0, 1]]).mean()
    metrics = apply(batch)
    assert mean_value(metrics["label_loss"]) == pytest.approx(expected, rel=1e-5)
    said = logits.argmax(-1)
    right = np.mean([said[0, 0] == 2, said[0, 1] == 0, said[1, 0] == 1])
    assert mean_value(metrics["label_accuracy"]) == pytest.approx(right)


def test_the_regression_loss_is_the_squared_error():
    apply, params = build_network(Classification(("score",)))
    batch = packed(label=jnp.array([[2.5, 0.0], [1.0, 9.0]]))
    said = np.asarray(apply(batch, method="compute_logits"))[..., 0]
    expected = np.mean([(said[0, 0] - 2.5) ** 2, said[0, 1] ** 2, (said[1, 0] - 1.0) ** 2])
    assert mean_value(apply(batch)["label_loss"]) == pytest.approx(expected, rel=1e-5)


def test_a_span_lies_in_its_example():
    """Start and end are chosen among the tokens of the example, so others in the row change nothing."""
    apply, params = build_network(SpanPrediction())
    batch = packed(first=jnp.array([[1, 5], [2, 0]]), last=jnp.array([[3, 6], [2, 0]]))
    logits = np.asarray(apply(batch, method="compute_logits")[0], float)
    spans = [(0, range(4), 1, 3), (0, range(4, 7), 5, 6), (1, range(5), 2, 2)]
    losses = {"first_loss": [], "last_loss": []}
    for row, inside, *answer in spans:
        for i, name in enumerate(losses):
            among = logits[row, list(inside), i]
            losses[name].append(np.log(np.exp(among).sum()) - logits[row, answer[i], i])
    metrics = apply(batch)
    for name, each in losses.items():
        assert mean_value(metrics[name]) == pytest.approx(np.mean(each), rel=1e-5)
    best = [[list(inside)[logits[row, list(inside), i].argmax()] for i in (0, 1)] for row, inside, *_ in spans]
    right = np.mean([found == answer for found, (_, _, *answer) in zip(best, spans, strict=True)])
    assert mean_value(metrics["span_accuracy"]) == pytest.approx(right)


def test_features_are_the_hidden_states_and_the_pooled_first_token():
    apply, params = build_network(EncoderOnly(has_pooler=True))
    hidden, pooled = apply(packed(), method="encode_batch")
    kernel, bias = (params["pooler"]["dense"][leaf] for leaf in ("kernel", "bias"))
    np.testing.assert_allclose(pooled[0, 1], jnp.tanh(hidden[0, 4] @ kernel + bias), atol=1e-6)
    apply, params = build_network(EncoderOnly())
    assert apply(packed(), method="encode_batch")[1] is None and set(params) == {"encoder"}


def test_a_loss_may_be_summed_over_micro_batches():
    """Total and count of the whole are those of its rows, so accumulated steps equal one large step."""
    apply, params = build_network(Classification(("a", "b")))
    batch = packed(label=jnp.array([[1, 0], [1, 1]]))
    whole = apply(batch)["label_loss"]
    rows = [jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(2)]
    parts = [apply(row)["label_loss"] for row in rows]
    assert float(whole.total) == pytest.approx(float(sum(part.total for part in parts)), rel=1e-6)
    assert float(whole.count) == 3 == float(sum(part.count for part in parts))


@pytest.mark.parametrize(
    "wrong, named",
    [
        ({"labels": ()}, r"objective.labels=\(\)"),
        ({"labels": ("a", "a")}, r"objective.labels=\('a', 'a'\)"),
        ({"head_dropout": 1.0}, "objective.head_dropout=1.0"),
        ({"score_names": ("f1",)}, "objective.score_names=.*pearson, spearman"),
    ],
)
def test_invalid_fields_of_a_classification_are_named(wrong, named):
    with pytest.raises(ValueError, match=named):
        Classification(**{"labels": ("a",)} | wrong)
