"""RoBERTa, table 3: the size of the batch at equal passes over the data (Liu et al., 2019).

    python launch.py train roberta_t3 --with corpus=wiki-1.txt.xz glue=GLUE

Cost and score: not measured here.

The paper trains BERT-base on books and Wikipedia with 256, 2,000 and 8,000 rows and tunes the learning rate for each;
here the vocabulary is RoBERTa's. The warm-up is not in the paper: 1 % of the steps for the smallest batch, as BERT, and
4 % for the others, as RoBERTa, are ours. At small scale the learning rates have the paper's proportions and are not
tuned.
"""

from dataclasses import replace

from encoders.library.ablations.roberta_t1 import build_base_experiment

from encoders.data.formats import FullSentences
from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import MLM_AT_MASK, MLM_PERPLEXITY, MNLI, SST2
from encoders.sweeps.small_scale import EVAL_BATCHES, NUM_EVALS

COLUMNS = (MLM_PERPLEXITY, MNLI, SST2, MLM_AT_MASK)
# Batch size, steps, learning rate, small batch as a multiple of the usual one, the published row.
ROWS = (
    (256, 1_000_000, 1e-4, 1 / 4, (3.99, 84.7, 92.7)),
    (2048, 125_000, 7e-4, 2, (3.68, 85.2, 92.9)),
    (8192, 31_000, 1e-3, 8, (3.77, 84.6, 92.8)),
)


def table(study: Study) -> PaperTable:
    base, rows = build_base_experiment(), []
    for batch_size, steps, learning_rate, multiple, published in ROWS:
        warmup_steps = steps // 100 * (4 if batch_size > 256 else 1)
        experiment = replace(
            base,
            phases=tuple(replace(phase, until_step=steps, batch_size=batch_size) for phase in base.phases),
            optimizer=replace(base.optimizer, learning_rate=learning_rate, warmup_steps=warmup_steps),
        )
        run_name = f"roberta-batch{batch_size}"
        if not study.is_scaled_down and batch_size == 256:
            run_name = "roberta-full-sentences"
        name = f"{batch_size:,} rows, {steps:,} steps, {learning_rate:g}"
        small = build_small_changes(study, multiple, learning_rate) if study.is_scaled_down else {}
        rows.append(study.build_row(name, published, COLUMNS, run_name, experiment, small_changes=small))
    return study.build_table("roberta_t3", "RoBERTa, table 3: batch size", COLUMNS, rows, "tokens")


def build_small_changes(study: Study, multiple: float, learning_rate: float) -> dict:
    """Return a row's changes at small scale: as many tokens in batches of `multiple` times the usual size."""
    scale = study.small_scale
    larger = replace(scale, batch_tokens=round(scale.batch_tokens * multiple))
    steps = larger.count_steps(study.num_tokens)
    interval = max(steps // NUM_EVALS, 1)
    return {
        "phases": larger.build_phases(study.num_tokens, FullSentences()),
        "optimizer": {
            "learning_rate": scale.learning_rate * learning_rate / 7e-4,
            "warmup_steps": max(steps // 12, 1),
        },
        "intervals": {"eval_every": interval, "save_every": interval, "eval_batches": round(EVAL_BATCHES / multiple)},
    }
