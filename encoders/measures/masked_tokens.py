"""Masked tokens of the held-out text: loss by frequency and by position, and calibration."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from encoders.data.batch import Batch
from encoders.inference.predictor import Predictor
from encoders.measures.base import Measure, Measurement
from encoders.measures.heldout_text import count_train_tokens, find_text_problem, iter_heldout_batches
from encoders.objectives.base import ObjectiveModule
from encoders.run.run import Run
from encoders.utils.metrics import calibration_error

RANK_EDGES = (10, 100, 1000)  # of tokens, by their frequency in the training text
NUM_POSITION_RANGES = 4  # equal parts of a row


@dataclass(frozen=True)
class MaskedTokens(Measure):
    """Predictions of masked tokens in at most `max_batches` held-out batches, masked as in a run's own evaluation.

    ELECTRA's are its generator's. Scores, each behind `heldout_`:

    - `loss` in nats and `accuracy`, over all masked positions;
    - `loss_rank_1_10`, `loss_rank_11_100`, `loss_rank_101_1000` and `loss_rank_1001_up`: the loss where the masked
      token has that rank by its frequency in the training text;
    - `loss_position_1` to `loss_position_4`: the loss by quarter of the row;
    - `calibration_error` of the probability of the likeliest token, and `rtd_calibration_error` of a discriminator's
      probability that a token was replaced.
    """

    max_batches: int = 100

    name: ClassVar[str] = "heldout"
    main_scores: ClassVar[tuple[str, ...]] = ("heldout_loss", "heldout_calibration_error")

    def find_problem(self, run: Run) -> str | None:
        if not hasattr(run.module, "compute_token_logits"):
            return "it predicts no masked tokens"
        return find_text_problem(run)

    def compute(self, predictor: Predictor) -> Measurement:
        run, batches = predictor.run, iter_heldout_batches(predictor.run, self.max_batches)
        compute_outputs = jax.jit(lambda params, batch: compute_masked_outputs(run.module, params, batch))
        outputs = [jax.device_get(compute_outputs(predictor.params, batch)) for batch in batches]
        values = {name: np.concatenate([output[name].ravel() for output in outputs]) for name in outputs[0]}
        is_masked = values.pop("weight") > 0
        loss, is_right, probability, labels, positions = (
            values[name][is_masked] for name in ("loss", "is_right", "probability", "label", "position")
        )
        scores = {"loss": float(loss.mean()), "accuracy": float(is_right.mean())}
        ranks = rank_by_frequency(count_train_tokens(run))[labels]
        for low, high in pairwise((0, *RANK_EDGES, run.vocab.vocab_size)):
            name = f"loss_rank_{low + 1}_{'up' if low == RANK_EDGES[-1] else high}"
            scores |= average_selected(name, loss, (ranks >= low) & (ranks < high))
        parts = positions * NUM_POSITION_RANGES // run.experiment.phases[-1].seq_length
        for part in range(NUM_POSITION_RANGES):
            scores |= average_selected(f"loss_position_{part + 1}", loss, parts == part)
        scores["calibration_error"] = calibration_error(probability, is_right)
        if "replaced_probability" in values:
            is_token = values["is_token"]
            verdicts, is_replaced = values["replaced_probability"][is_token], values["is_replaced"][is_token]
            scores["rtd_calibration_error"] = calibration_error(verdicts, is_replaced)
        items = {f"{self.name}_accuracy": is_right}
        return Measurement({f"{self.name}_{name}": score for name, score in scores.items()}, items)


def compute_masked_outputs(module: ObjectiveModule, params: dict, batch: Batch) -> dict[str, jax.Array]:
    """Return predictions at the masked positions, `[b k]`, and those of a discriminator for all tokens, `[b l]`."""
    masked = module.objective.corrupt(batch, module.vocab, 0)
    apply = lambda method, rows: module.apply({"params": params}, rows, method=method)
    log_probs = jax.nn.log_softmax(apply("compute_token_logits", masked).astype(jnp.float32))
    labels = masked.masked_labels
    outputs = {
        "loss": -jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0],
        "is_right": log_probs.argmax(-1) == labels,
        "probability": jnp.exp(log_probs.max(-1)),
        "label": labels,
        "position": masked.masked_positions,
        "weight": masked.masked_weights,
    }
    if not hasattr(module, "compute_replaced_logits"):
        return outputs
    filled = apply("fill_masks", masked).filled_ids
    verdicts = apply("compute_replaced_logits", masked.replace(input_ids=filled))
    return outputs | {
        "replaced_probability": jax.nn.sigmoid(verdicts),
        "is_replaced": filled != masked.clean_ids,
        "is_token": masked.example_ids > 0,
    }


def rank_by_frequency(counts: np.ndarray) -> np.ndarray:
    """Return the rank of each token, from 0 for the most frequent one.

    >>> rank_by_frequency(np.array([3, 9, 0])).tolist()
    [1, 0, 2]
    """
    ranks = np.empty(len(counts), int)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return ranks


def average_selected(name: str, values: np.ndarray, is_selected: np.ndarray) -> dict[str, float]:
    """Return the mean of the selected values under a name, or nothing where none is selected."""
    return {name: float(values[is_selected].mean())} if is_selected.any() else {}
