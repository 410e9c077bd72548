"""ELECTRA, table 1: small and base beside BERT at equal compute, and small ones trained for less (Clark et al., 2020).

    python launch.py train electra_t1 --with corpus=wiki-1.txt.xz glue=GLUE

Averages over eight tasks of GLUE on the development sets, medians of ten fine-tunings. The paper's BERT-Small is
ELECTRA-Small's network with masked tokens alone (`electra_objective: false` of the released code: a new mask each time,
no next sentence) and as many FLOPs. At small scale all have the FLOPs of ELECTRA-Small's 10 M tokens, or the share
that a row names, and the size of base is not run.
"""

from encoders.costs.ledger import run_flops
from encoders.sweeps.paper_table import GLUE, LEARNED, MASKED, Study, Table
from experiments.ablations.electra_t5 import BASE, SMALL, TEN, masked

COLUMNS = (*GLUE, MASKED, *LEARNED)
STEPS = "BERT has ELECTRA's FLOPs as reckoned here, 1.08 M steps where the paper has 1.5 M for small"
SHARES = {1: 79.9, 1 / 2: 79.0, 1 / 4: 77.7, 1 / 8: 76.0, 1 / 16: 74.1}


def table(study: Study) -> Table:
    none = (None,) * (len(GLUE) - 1)
    compute = run_flops(study.run("electra-s", SMALL))
    rows = [
        study.row("BERT-Small", (*none, 75.1), COLUMNS, "electra-s-bert", masked(SMALL), flops=compute),
        study.published("BERT-Base", (*none, 82.2), COLUMNS),
    ]
    for share, average in SHARES.items():
        name, run = "ELECTRA-Small", "electra-s"
        if share < 1:
            name, run = f"{name}, {100 * share:g} % trained", f"{run}-1of{1 / share:g}"
        rows.append(study.row(name, (*none, average), COLUMNS, run, SMALL, flops=compute * share))
    base, said = (*none, 85.1), [TEN] if study.small else [STEPS, TEN]
    if study.small:
        rows.append(study.published("ELECTRA-Base", base, COLUMNS))
    else:
        rows.append(study.row("ELECTRA-Base", base, COLUMNS, "electra", BASE))
        rows[1] = study.row("BERT-Base", (*none, 82.2), COLUMNS, "electra-bert", masked(BASE), flops=run_flops(BASE))
    return study.table(
        "electra_t1", "ELECTRA, table 1: small and base", COLUMNS, rows, "FLOPs, but for the shares", *said
    )
