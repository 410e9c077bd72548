"""ELECTRA, table 1: small and base beside BERT at equal compute, and small ones trained for less (Clark et al., 2020).

    python launch.py train electra_t1 --with corpus=wiki-1.txt.xz glue=GLUE

Averages over eight tasks of GLUE on the development sets, medians of ten fine-tunings. The paper's BERT-Small is
ELECTRA-Small's network with masked tokens alone (`electra_objective: false` of the released code: a new mask each time,
no next sentence) and as many FLOPs. At small scale all have the FLOPs of ELECTRA-Small's 10 M tokens, or the share
that a row names, and the size of base is not run.
"""

from encoders.library.ablations.electra_t5 import BASE, SMALL, TEN_FINETUNINGS_CAVEAT, replace_with_masked_lm

from encoders.costs.ledger import run_flops
from encoders.sweeps.paper_table import ELECTRA_COLUMNS, GLUE_COLUMNS, MLM_AT_MASK, PaperTable, Study

COLUMNS = (*GLUE_COLUMNS, MLM_AT_MASK, *ELECTRA_COLUMNS)
STEPS_CAVEAT = "BERT has ELECTRA's FLOPs as reckoned here, 1.08 M steps where the paper has 1.5 M for small"
COMPUTE_SHARES = {1: 79.9, 1 / 2: 79.0, 1 / 4: 77.7, 1 / 8: 76.0, 1 / 16: 74.1}


def table(study: Study) -> PaperTable:
    none = (None,) * (len(GLUE_COLUMNS) - 1)
    compute = run_flops(study.build_pretrain_run("electra-s", SMALL))
    rows = [
        study.build_row(
            "BERT-Small", (*none, 75.1), COLUMNS, "electra-s-bert", replace_with_masked_lm(SMALL), total_flops=compute
        ),
        study.build_published_row("BERT-Base", (*none, 82.2), COLUMNS),
    ]
    for share, average in COMPUTE_SHARES.items():
        name, run = "ELECTRA-Small", "electra-s"
        if share < 1:
            name, run = f"{name}, {100 * share:g} % trained", f"{run}-1of{1 / share:g}"
        rows.append(study.build_row(name, (*none, average), COLUMNS, run, SMALL, total_flops=compute * share))
    base, said = (*none, 85.1), [TEN_FINETUNINGS_CAVEAT] if study.is_small else [STEPS_CAVEAT, TEN_FINETUNINGS_CAVEAT]
    if study.is_small:
        rows.append(study.build_published_row("ELECTRA-Base", base, COLUMNS))
    else:
        rows.append(study.build_row("ELECTRA-Base", base, COLUMNS, "electra", BASE))
        rows[1] = study.build_row(
            "BERT-Base",
            (*none, 82.2),
            COLUMNS,
            "electra-bert",
            replace_with_masked_lm(BASE),
            total_flops=run_flops(BASE),
        )
    return study.build_table(
        "electra_t1", "ELECTRA, table 1: small and base", COLUMNS, rows, "FLOPs, but for the shares", *said
    )
