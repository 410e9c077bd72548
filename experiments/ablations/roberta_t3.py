"""RoBERTa, table 3: the size of the batch at equal passes (Liu et al., 2019).

    python launch.py train roberta_t3 --with corpus=wiki-1.txt.xz glue=GLUE

The paper's is BERT-base on books and Wikipedia: 256 rows, 2,000 and 8,000, the rate tuned for each; ours has RoBERTa's
vocabulary. The paper does not give the warm-up: 1 % of the steps for the least batch, as BERT, and 4 % for the others,
as RoBERTa, are ours. The small rates are in the paper's proportions about the one of all small runs, not tuned.
"""

from dataclasses import replace

from encoders.library.ablations.roberta_t1 import build_base_experiment

from encoders.sweeps.paper_table import (
    MLM_AT_MASK,
    MLM_PERPLEXITY,
    MNLI,
    SMALL_BATCH_SIZE,
    SMALL_LEARNING_RATE,
    SMALL_SEQ_LENGTH,
    SST2,
    PaperTable,
    Study,
)

COLUMNS = (MLM_PERPLEXITY, MNLI, SST2, MLM_AT_MASK)
# Rows, steps, rate; the small batch as a share of the usual one; the published row.
ROWS = (
    (256, 1_000_000, 1e-4, 1 / 4, (3.99, 84.7, 92.7)),
    (2048, 125_000, 7e-4, 2, (3.68, 85.2, 92.9)),
    (8192, 31_000, 1e-3, 8, (3.77, 84.6, 92.8)),
)


def table(study: Study) -> PaperTable:
    base, rows = build_base_experiment(), []
    for batch, steps, rate, share, published in ROWS:
        warmup = steps // 100 * (4 if batch > 256 else 1)
        phases = tuple(replace(phase, until_step=steps, batch_size=batch) for phase in base.phases)
        member = replace(
            base, phases=phases, optimizer=replace(base.optimizer, learning_rate=rate, warmup_steps=warmup)
        )
        few = round(SMALL_BATCH_SIZE * share)
        count = round(study.tokens / SMALL_SEQ_LENGTH / few)
        small = {
            "phases": {"*": {"batch_size": few, "until_step": count}},
            "optimizer": {"learning_rate": SMALL_LEARNING_RATE * rate / 7e-4, "warmup_steps": max(count // 12, 1)},
            "intervals": {
                "eval_every": max(count // 5, 1),
                "save_every": max(count // 5, 1),
                "eval_batches": round(50 / share),
            },
        }
        name, run = f"{batch:,} rows, {steps:,} steps, {rate:g}", f"roberta-batch{batch}"
        if not study.is_small and batch == 256:
            run = "roberta-full-sentences"
        rows.append(study.build_row(name, published, COLUMNS, run, member, small_changes=small))
    return study.build_table("roberta_t3", "RoBERTa, table 3: batch size", COLUMNS, rows, "tokens")
