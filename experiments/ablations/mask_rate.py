"""The share of tokens that is masked, for BERT's objective and for ELECTRA's; not a table of the four papers.

    python launch.py train mask_rate --with corpus=wiki-1.txt.xz glue=GLUE

Cost and score, measured on one core of a shared Intel Xeon with `tokens=2e6 'tasks=()' seeds=3`: 2 to 5 minutes a run
of masked tokens, 5 to 9 of replaced ones. 40 % of masks are best for both: experiments/README.md, "The papers' tables".

BERT and ELECTRA mask 15 %, the large ELECTRA 25 %; Wettig et al. (2022) find 40 % better for large masked language
models. The table compares the rates for both objectives at one size and equal tokens. Held-out tokens are masked at
15 % for all.
"""

from dataclasses import replace

from encoders.library.ablations.electra_t5 import BASE, replace_with_masked_lm

from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import SST2, ScoreColumn

SAME_MASK_RATE = ("objective.masking.mask_rate=0.15",)
COLUMNS = (
    SST2,
    ScoreColumn("MLM at [MASK], of 15 %", "mlm_mask_accuracy", overrides=SAME_MASK_RATE),
    ScoreColumn("RTD AUC, of 15 %", "rtd_auc", overrides=SAME_MASK_RATE),
)


def table(study: Study) -> PaperTable:
    rows = []
    for name, base in (("MLM", replace_with_masked_lm(BASE)), ("RTD", BASE)):
        for rate in (0.05, 0.15, 0.4):
            masking = replace(base.objective.masking, mask_rate=rate)
            experiment = replace(base, objective=replace(base.objective, masking=masking))
            run_name = "electra" if experiment == BASE else f"rate-{name.lower()}-{100 * rate:g}"
            rows.append(study.build_row(f"{name}, {100 * rate:g} % masked", (), COLUMNS, run_name, experiment))
    return study.build_table("mask_rate", "Mask rate and objective", COLUMNS, rows, "tokens")
