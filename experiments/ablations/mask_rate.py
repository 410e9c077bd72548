"""No paper's: how many tokens are masked, for BERT's objective and for ELECTRA's.

    python launch.py train mask_rate --with corpus=wiki-1.txt.xz glue=GLUE

BERT and ELECTRA chose 15 %, ELECTRA's large model 25 %; Wettig et al. (2022) find 40 % better for large masked language
models. Does what is best for the one hold for the other, of the same size and at the same tokens? Masked tokens are
held out at 15 % for all.
"""

from dataclasses import replace

from encoders.sweeps.paper_table import SST2, Column, Study, Table
from experiments.ablations.electra_t5 import BASE, masked

SAME = ("objective.tokens.rate=0.15",)
COLUMNS = (
    SST2,
    Column("MLM at [MASK], of 15 %", "mlm_mask_accuracy", under=SAME),
    Column("RTD AUC, of 15 %", "rtd_auc", under=SAME),
)


def table(study: Study) -> Table:
    rows = []
    for name, base in (("MLM", masked(BASE)), ("RTD", BASE)):
        for rate in (0.05, 0.15, 0.4):
            tokens = replace(base.objective.tokens, rate=rate)
            member = replace(base, objective=replace(base.objective, tokens=tokens))
            run = "electra" if member == BASE else f"rate-{name.lower()}-{100 * rate:g}"
            rows.append(study.row(f"{name}, {100 * rate:g} % masked", (), COLUMNS, run, member))
    return study.table("mask_rate", "Mask rate and objective", COLUMNS, rows, "tokens")
