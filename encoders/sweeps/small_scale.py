"""Small scale of a paper's table: the same experiments in sizes that train in minutes on one device."""

from __future__ import annotations

from dataclasses import replace

from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.finetuning.grids import Recipe
from encoders.training.metric_log import Intervals
from encoders.training.optimizer import AdamW

SMALL_SIZES = dict(
    vocab_size=8000, hidden_size=128, num_layers=2, num_heads=2, intermediate_size=512, max_positions=128,
    init_std=128**-0.5, hidden_dropout=0.0, attention_dropout=0.0, unroll_layers=True,
)  # fmt: skip
SMALL_SEQ_LENGTH, SMALL_BATCH_SIZE, SMALL_WARMUP_STEPS = 64, 64, 200
SMALL_BATCH_TOKENS, SMALL_LEARNING_RATE = SMALL_SEQ_LENGTH * SMALL_BATCH_SIZE, 2e-3
SMALL_RECIPE = Recipe(
    3e-4, 32, num_epochs=2, max_seq_length=SMALL_SEQ_LENGTH, optimizer=AdamW(1.0, 0, bias_correction=True)
)


def shrink_experiment(experiment: Experiment, num_tokens: float) -> Experiment:
    """Return a pre-training experiment at small scale, trained on about `num_tokens` tokens.

    Its objective, shared parts, format and tokenizer stay; a format that repeats a fault of released code is corrected.
    """
    model, form = experiment.model, experiment.phases[-1].format
    if getattr(form, "match_released_code", False):
        form = replace(form, match_released_code=False)
    embedding_size = model.embedding_size // 4
    if model.embedding_size == model.hidden_size:
        embedding_size = SMALL_SIZES["hidden_size"]
    tokenizer = replace(experiment.data.tokenizer, vocab_size=SMALL_SIZES["vocab_size"], train_chars=20_000_000)
    num_steps = round(num_tokens / SMALL_BATCH_TOKENS)
    return replace(
        experiment,
        model=replace(model, **SMALL_SIZES | {"embedding_size": embedding_size}),
        data=replace(experiment.data, tokenizer=tokenizer),
        optimizer=AdamW(SMALL_LEARNING_RATE, min(SMALL_WARMUP_STEPS, num_steps // 10), bias_correction=True),
        phases=(Phase(num_steps, SMALL_SEQ_LENGTH, SMALL_BATCH_SIZE, form),),
        intervals=Intervals(log_every=100, eval_every=500, save_every=500, keep_checkpoints=1),
    )
