"""ELECTRA, table 1: small and base beside BERT at equal compute, and shorter runs of small (Clark et al., 2020).

    python launch.py train electra_t1 --with corpus=wiki-1.txt.xz glue=GLUE

Cost and score at small scale: not measured here. At `scale=paper`, cut to 5,000 steps of ELECTRA-Small and 5,400 of
BERT-Small at 5e-4 on one NVIDIA H200: SST-2 75.8 and 77.1, STS-B 0.712 and 0.158, one seed
(experiments/README.md, "On a GPU").

The paper's scores are averages over eight tasks of GLUE on the development sets, medians of ten fine-tunings. Its
BERT-Small is the network of ELECTRA-Small with masked tokens alone (`electra_objective: false` of the released code: a
new mask each time, no next sentence) and as many FLOPs. At small scale all have the FLOPs of 10 M tokens of
ELECTRA-Small, or the share that a row names, and base is not run.
"""

from encoders.library.ablations.electra_t5 import BASE, SMALL, TEN_FINETUNINGS_CAVEAT, replace_with_masked_lm

from encoders.costs.ledger import run_flops
from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import ELECTRA_COLUMNS, GLUE_COLUMNS, MLM_AT_MASK

COLUMNS = (*GLUE_COLUMNS, MLM_AT_MASK, *ELECTRA_COLUMNS)
STEPS_CAVEAT = "BERT has ELECTRA's FLOPs as counted here, 1.08 M steps where the paper has 1.5 M for small"
COMPUTE_SHARES = {1: 79.9, 1 / 2: 79.0, 1 / 4: 77.7, 1 / 8: 76.0, 1 / 16: 74.1}
NO_TASK_SCORES = (None,) * (len(GLUE_COLUMNS) - 1)


def table(study: Study) -> PaperTable:
    compute = run_flops(study.build_pretrain_run("electra-s", SMALL))
    bert_small = study.build_row(
        "BERT-Small", (*NO_TASK_SCORES, 75.1), COLUMNS, "electra-s-bert", replace_with_masked_lm(SMALL),
        total_flops=compute,
    )  # fmt: skip
    small_rows = []
    for share, average in COMPUTE_SHARES.items():
        name, run_name = "ELECTRA-Small", "electra-s"
        if share < 1:
            name, run_name = f"{name}, {100 * share:g} % trained", f"{run_name}-1of{1 / share:g}"
        row = study.build_row(
            name, (*NO_TASK_SCORES, average), COLUMNS, run_name, SMALL, total_flops=compute * share
        )  # fmt: skip
        small_rows.append(row)
    if study.is_scaled_down:
        caveats = [TEN_FINETUNINGS_CAVEAT]
        bert_base = study.build_published_row("BERT-Base", (*NO_TASK_SCORES, 82.2), COLUMNS)
        electra_base = study.build_published_row("ELECTRA-Base", (*NO_TASK_SCORES, 85.1), COLUMNS)
    else:
        caveats = [STEPS_CAVEAT, TEN_FINETUNINGS_CAVEAT]
        bert_base = study.build_row(
            "BERT-Base", (*NO_TASK_SCORES, 82.2), COLUMNS, "electra-bert", replace_with_masked_lm(BASE),
            total_flops=run_flops(BASE),
        )  # fmt: skip
        electra_base = study.build_row("ELECTRA-Base", (*NO_TASK_SCORES, 85.1), COLUMNS, "electra", BASE)
    rows = [bert_small, bert_base, *small_rows, electra_base]
    equal_in = "FLOPs, but for the shares"
    return study.build_table("electra_t1", "ELECTRA, table 1: small and base", COLUMNS, rows, equal_in, *caveats)
