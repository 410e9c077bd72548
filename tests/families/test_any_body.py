"""Every objective and every task trains every encoder: one update of each pair moves every parameter that it should."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from encoders.costs.ledger import make_blank_vocab
from encoders.data.batch import build_single_example_batch
from encoders.families import albert, bert, deberta, electra, esm, eurobert, modernbert, neobert, roberta
from encoders.model.config import EncoderConfig
from encoders.model.rotary import RotaryFeatures
from encoders.objectives.embedding_losses import NoComparison
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.restored_tokens import ReplaceMLM
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.tasks.classification import Classification
from encoders.tasks.contrastive import Contrastive
from encoders.tasks.question_answering import ConditionedSpanPrediction, SpanPrediction, SpanWithClassifier
from encoders.tasks.token_classification import TokenClassification
from encoders.training import step
from encoders.training.optimizer import flatten_with_paths

SIZES = dict(vocab_size=90, hidden_size=128, num_layers=4, num_heads=2, intermediate_size=24, max_positions=12)
BODIES: dict[str, EncoderConfig] = {
    "bert": replace(bert.BASE, **SIZES, embedding_size=128),
    "roberta": replace(roberta.BASE, **SIZES, embedding_size=128),
    "albert": replace(albert.BASE, **SIZES, embedding_size=8),
    "electra": replace(electra.BASE, **SIZES, embedding_size=8),
    "albert with rotary positions": replace(albert.BASE, **SIZES, embedding_size=8, row_features=RotaryFeatures),
    "modernbert": replace(modernbert.BASE, **SIZES, embedding_size=128, local_window=4),
    "eurobert": eurobert.make_eurobert_config(128, 4, 2, 24, vocab_size=90, max_positions=12, num_key_heads=1),
    "neobert": replace(neobert.BASE, **SIZES, embedding_size=128),
    "esm": replace(esm.SIZES["esm2-8m"], **SIZES, embedding_size=128, mask_token_id=4),
    "deberta": replace(deberta.BASE, **SIZES, embedding_size=128, position_buckets=4),
    "deberta with shared layers": replace(
        deberta.BASE, **SIZES, embedding_size=8, position_buckets=4, shared_parts=("attention", "feed_forward")
    ),
    "modernbert with shared layers": replace(
        modernbert.BASE, **SIZES, embedding_size=8, local_window=4, shared_parts=("attention", "feed_forward")
    ),
}
OBJECTIVES = {
    "masked tokens": MaskedLM(),
    "next sentence": MaskedLM(sentence_task=NextSentencePrediction()),
    "sentence order": MaskedLM(sentence_task=SentenceOrderPrediction()),
    "replaced tokens, tied": ReplacedTokenDetection(generator_width=0.5),
    "replaced tokens, tied table": ReplacedTokenDetection(generator_width=1, generator_depth=0.5, tie="tokens"),
    "replaced tokens, disentangled table": ReplacedTokenDetection(
        generator_width=1, generator_depth=0.5, tie="disentangled"
    ),
    "restored tokens": ReplaceMLM(generator_width=0.5),
    "restored tokens, disentangled table": ReplaceMLM(generator_width=0.5, tie="disentangled"),
    "classes": Classification(("a", "b"), "pooled"),
    "number": Classification(("a",), "linear"),
    "tags": TokenClassification(("O", "B-X"), 0.1, "pooled"),
    "spans": SpanPrediction("pooled"),
    "spans and a classifier": SpanWithClassifier(),
    "conditioned spans": ConditionedSpanPrediction(),
    "denoised texts": Contrastive(NoComparison(), "mean", deletion_rate=0.5),
}

DEFAULT_OBJECTIVES = ("masked tokens", "replaced tokens, tied", "tags")  # the live tests have all


@pytest.mark.live
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("body", BODIES)
def test_the_loss_is_finite_and_every_parameter_has_a_gradient(body, objective):
    check_gradients(BODIES[body], objective)


@pytest.mark.parametrize("body", ["modernbert", "deberta"])
@pytest.mark.parametrize(
    "objective",
    [pytest.param(name, marks=[] if name in DEFAULT_OBJECTIVES else pytest.mark.live) for name in OBJECTIVES],
)
def test_an_objective_or_task_has_a_module_on_a_modern_encoder(body, objective):
    objective = OBJECTIVES[objective]
    module = objective.module(BODIES[body], make_blank_vocab(90))
    batch = make_rows(objective)
    params = step.eval_module_shapes(module)
    (loss, _), gradients = jax.eval_shape(lambda p, b: step.compute_gradients(p, b, 0, 0, module=module), params, batch)
    assert loss.shape == () and jax.tree.structure(gradients) == jax.tree.structure(params)


def make_rows(objective):
    """Two rows of random tokens, in two segments, with labels of 0 or 1."""
    ids = np.random.default_rng(0).integers(5, 90, (2, 12))
    labels = {name: np.array([[0], [1]]) for name in objective.required_fields}
    if "tags" in labels:
        labels["tags"] = ids % 2
    return build_single_example_batch(ids, (np.arange(12) > 5) * np.ones_like(ids), labels=labels)


def check_gradients(config, objective):
    """Assert a finite loss, and a gradient in every parameter but the biases of keys, which cancel out."""
    module = objective.module(config, make_blank_vocab(90))
    params = step.init_params(0, module)
    compute = jax.jit(lambda p, b: step.compute_gradients(p, b, 0, 0, module=module))
    (loss, _), gradients = compute(params, make_rows(objective))
    assert np.isfinite(loss)
    still = {path for path, leaf in flatten_with_paths(gradients) if not np.any(leaf) and "key/bias" not in path}
    assert not still, still
