"""No paper's: how many tokens are masked, for BERT's objective and for ELECTRA's.

    python launch.py train mask_rate --with corpus=wiki-1.txt.xz glue=GLUE

BERT and ELECTRA chose 15 %, ELECTRA's large model 25 %; Wettig et al. (2022) find 40 % better for large masked language
models. Does what is best for the one hold for the other, of the same size and at the same tokens? Masked tokens are
held out at 15 % for all.
"""

from dataclasses import replace

from encoders.library.ablations.electra_t5 import BASE, replace_with_masked_lm

from encoders.sweeps.paper_table import SST2, PaperTable, ScoreColumn, Study

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
            tokens = replace(base.objective.masking, mask_rate=rate)
            member = replace(base, objective=replace(base.objective, masking=tokens))
            run = "electra" if member == BASE else f"rate-{name.lower()}-{100 * rate:g}"
            rows.append(study.build_row(f"{name}, {100 * rate:g} % masked", (), COLUMNS, run, member))
    return study.build_table("mask_rate", "Mask rate and objective", COLUMNS, rows, "tokens")
