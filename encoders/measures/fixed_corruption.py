"""A discriminator on text that is corrupted in the same way for every run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from encoders.data.batch import Batch
from encoders.inference.predictor import Predictor
from encoders.measures.base import Measure, Measurement
from encoders.measures.heldout_text import count_train_tokens, find_text_problem, iter_heldout_batches
from encoders.objectives.base import ObjectiveModule
from encoders.objectives.replaced_tokens import build_score_histogram
from encoders.run.run import Run
from encoders.utils.field_checks import check_fields
from encoders.utils.metrics import roc_auc, sum_means


@dataclass(frozen=True)
class FixedCorruption(Measure):
    """Area under the ROC curve of a discriminator, on held-out text with a share `rate` of its tokens replaced.

    Against samples of its own generator the area does not compare runs: a better generator makes a harder task. Here
    new tokens are drawn by their frequencies in the training text (`corruption_auc_unigram`), or all ordinary tokens
    alike (`corruption_auc_uniform`). The random numbers are the same for every run on a store. Special tokens stay, and
    a new token that equals the old one counts as original. At most `max_batches` batches are read.
    """

    rate: float = 0.15
    max_batches: int = 100

    name: ClassVar[str] = "corruption"
    main_scores: ClassVar[tuple[str, ...]] = ("corruption_auc_unigram", "corruption_auc_uniform")

    def __post_init__(self):
        check_fields(self, "", [("rate", lambda rate: 0 < rate < 1, "above 0 and below 1")])

    def find_problem(self, run: Run) -> str | None:
        if not hasattr(run.module, "compute_replaced_logits"):
            return "it has no discriminator"
        return find_text_problem(run)

    def compute(self, predictor: Predictor) -> Measurement:
        run, counts = predictor.run, count_train_tokens(predictor.run)
        is_ordinary = ~np.isin(np.arange(run.vocab.vocab_size), run.vocab.special_ids)
        compute_histogram = jax.jit(lambda params, *rows: compute_verdict_histogram(run.module, params, *rows))
        scores = {}
        for kind, weights in {"unigram": counts, "uniform": is_ordinary}.items():
            batches = self.corrupt_batches(run, weights, is_ordinary)
            sums = sum_means({"histogram": compute_histogram(predictor.params, *rows)} for rows in batches)
            auc, error = roc_auc(sums["histogram"].total)
            scores |= {f"{self.name}_auc_{kind}": auc, f"{self.name}_auc_{kind}_error": error}
        return Measurement(scores)

    def corrupt_batches(
        self, run: Run, weights: np.ndarray, is_ordinary: np.ndarray
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        """Yield held-out batches with tokens drawn in the shares of `weights [vocab_size]`, and the tokens before."""
        rng, cumulative = np.random.default_rng(0), np.cumsum(weights)
        cumulative = cumulative / cumulative[-1]
        for batch in iter_heldout_batches(run, self.max_batches):
            clean_ids = batch.input_ids
            draws = rng.random((2, *clean_ids.shape))
            is_replaced = (draws[0] < self.rate) & (batch.example_ids > 0) & is_ordinary[clean_ids]
            new_ids = np.searchsorted(cumulative, draws[1], side="right")
            yield batch.replace(input_ids=np.where(is_replaced, new_ids, clean_ids).astype(np.int32)), clean_ids


def compute_verdict_histogram(module: ObjectiveModule, params: dict, batch: Batch, clean_ids: jax.Array):
    """Return the counts of tokens by label and by the discriminator's probability, as `roc_auc` reads them."""
    verdicts = module.apply({"params": params}, batch, method="compute_replaced_logits")
    is_replaced = (batch.input_ids != clean_ids).astype(jnp.int32)
    return build_score_histogram(verdicts, is_replaced, (batch.example_ids > 0).astype(jnp.float32))
