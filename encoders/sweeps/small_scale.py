"""Scales of a paper's table below the paper's: the same experiments in sizes that train in minutes or hours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from encoders.data.formats import Format
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.finetuning.grids import Recipe
from encoders.model.rotary import RotaryFeatures
from encoders.training.metric_log import Intervals
from encoders.training.optimizer import AdamW
from encoders.utils.overrides import apply_changes


@dataclass(frozen=True)
class Scale:
    """Values that replace those of the paper in its experiments.

    A step reads `batch_tokens` tokens, and a run about `num_tokens`. They are in rows of each of `row_lengths` tokens,
    shortest first, in equal parts. Rotary positions replace learned ones, dropout is 0, and all experiments have one
    optimizer. Objectives that have the fields of `objective_changes` take these values. Tasks are learned with
    `recipe`.
    """

    name: str
    vocab_size: int
    num_layers: int
    hidden_size: int
    row_lengths: tuple[int, ...]
    batch_tokens: int
    learning_rate: float
    warmup_steps: int
    num_tokens: float
    num_seeds: int
    objective_changes: tuple[tuple[str, Any], ...]
    recipe: Recipe
    train_chars: int = 20_000_000  # of the text that the vocabulary is trained on

    @property
    def min_tokens(self) -> int:
        """Return the tokens of a step in each length of a row."""
        return self.batch_tokens * len(self.row_lengths)

    def count_steps(self, num_tokens: float) -> int:
        """Return the steps that read about `num_tokens` tokens."""
        return round(num_tokens / self.batch_tokens)

    def build_phases(self, num_tokens: float, form: Format) -> tuple[Phase, ...]:
        """Return phases of about equal parts of `num_tokens`, one for each length of a row."""
        phases, num_steps, count = [], self.count_steps(num_tokens), len(self.row_lengths)
        for i, length in enumerate(self.row_lengths, start=1):
            phases.append(Phase(num_steps * i // count, length, self.batch_tokens // length, form))
        return tuple(phases)

    @property
    def sizes(self) -> dict[str, Any]:
        """Return the fields of the model, with heads of 64 and an initial deviation of one over the root of the width.

        At the papers' 0.02 so narrow a model stays on the unigram plateau for millions of tokens.
        """
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "num_heads": self.hidden_size // 64,
            "intermediate_size": 4 * self.hidden_size,
            "max_positions": max(128, *self.row_lengths),
            "init_std": self.hidden_size**-0.5,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "unroll_layers": True,
        }

    def shrink_experiment(
        self, experiment: Experiment, num_tokens: float, changes: Mapping[str, Any] = {}
    ) -> Experiment:
        """Return a pre-training experiment at this scale, trained on about `num_tokens` tokens, with nested `changes`.

        Its shared parts, format and kind of tokenizer stay; a format that repeats a fault of released code is
        corrected. A factorised embedding keeps its share of the width.
        """
        model, form = experiment.model, experiment.phases[-1].format
        if getattr(form, "match_released_code", False):
            form = replace(form, match_released_code=False)
        embedding_size = self.hidden_size
        if model.embedding_size != model.hidden_size:
            embedding_size = model.embedding_size * self.hidden_size // 512
        positions = model.row_features or RotaryFeatures
        vocabulary = {"vocab_size": self.vocab_size, "train_chars": self.train_chars}
        tokenizer = replace(experiment.data.tokenizer, **vocabulary)
        num_steps = self.count_steps(num_tokens)
        interval = max(num_steps // NUM_EVALS, 1)
        known = {field.name for field in fields(experiment.objective)}
        objective_changes = {name: value for name, value in self.objective_changes if name in known}
        changes = {**changes, "objective": objective_changes | changes.get("objective", {})}
        shrunk = replace(
            experiment,
            model=replace(model, **self.sizes, embedding_size=embedding_size, row_features=positions),
            data=replace(experiment.data, tokenizer=tokenizer),
            optimizer=AdamW(self.learning_rate, min(self.warmup_steps, num_steps // 10), bias_correction=True),
            phases=self.build_phases(num_tokens, form),
            intervals=Intervals(
                log_every=100, eval_every=interval, save_every=interval, keep_checkpoints=1, eval_batches=EVAL_BATCHES
            ),
        )
        return apply_changes(shrunk, changes)

    def describe(self) -> str:
        """Return what the scale replaces, in a sentence's part for a table's notes."""
        changes = ", ".join(f"{name}={value}" for name, value in self.objective_changes)
        lengths = ", then ".join(map(str, self.row_lengths))
        return (
            f"ours has {self.num_layers} layers of {self.hidden_size}, a vocabulary of {self.vocab_size:,}, steps of "
            f"{self.batch_tokens:,} tokens in rows of {lengths}, rotary positions instead of learned ones, no dropout, "
            f"AdamW with bias correction at {self.learning_rate:g}, an initial deviation of "
            f"{self.sizes['init_std']:.3f} and, with a generator, {changes}, whatever the paper has, unless the row is "
            "about that, and the corrected formats"
        )


def make_recipe(seq_length: int) -> Recipe:
    """Return how tasks are learned below the paper's scale, in rows of a length."""
    optimizer = AdamW(1.0, 0, bias_correction=True)
    return Recipe(3e-4, 32, num_epochs=4, max_seq_length=seq_length, optimizer=optimizer)


NUM_EVALS = 3  # of a run
EVAL_BATCHES = 200  # of as many tokens as a step, so that scores on held-out rows resolve half a point
# A generator a quarter as wide as a network of 128 learns nothing, and at the paper's weight of 50 neither leaves the
# unigram plateau. Learned positions leave it late: experiments/ablations/small_scale.py.
SMALL_GENERATOR = (("generator_width", 1.0), ("tie", "tokens"), ("rtd_weight", 10.0))
SCALES = {
    scale.name: scale
    for scale in (
        Scale("small", 2048, 2, 128, (64,), 512, 1e-3, 200, 10e6, 3, SMALL_GENERATOR, make_recipe(64)),
        Scale("night", 4096, 4, 256, (128,), 2048, 1e-3, 500, 40e6, 3, SMALL_GENERATOR, make_recipe(128)),
        Scale("gpu", 8192, 4, 256, (128,), 16_384, 1e-3, 1000, 500e6, 5, SMALL_GENERATOR, make_recipe(128)),
    )
}
