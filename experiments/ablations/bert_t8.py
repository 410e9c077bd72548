"""BERT, table 8: the replacements of the masked tokens (Devlin et al., 2019, appendix C.2).

    python launch.py train bert_t8 --with corpus=wiki-1.txt.xz glue=GLUE

Cost and score: not measured here at this small scale. What the one before could tell is in experiments/README.md, "The
papers' tables at the scale before".

The shares that become [MASK], become a random token, and stay the same. NER is CoNLL-2003, fine-tuned by the recipe of
GLUE; the paper's second column of NER, with frozen features, is not reproduced. Held-out tokens are masked 80/10/10 for
every row, whatever it was trained with.
"""

from dataclasses import replace

from encoders.library.bert import experiments

from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import MNLI, NER_F1, SST2, ScoreColumn

SAME_SPLIT = ("objective.masking.split=0.8,0.1,0.1",)
COLUMNS = (
    MNLI,
    NER_F1,
    ScoreColumn("NER, features", ""),
    replace(SST2, order_column="MNLI"),
    ScoreColumn("MLM of 80/10/10", "mlm_accuracy", overrides=SAME_SPLIT, order_column="MNLI"),
    ScoreColumn("MLM at [MASK]", "mlm_mask_accuracy", overrides=SAME_SPLIT, order_column="MNLI"),
)
# Shares of mask, random and same tokens; the paper's columns are mask, same, random.
ROWS = {
    (0.8, 0.1, 0.1): (84.2, 95.4, 94.9),
    (1.0, 0.0, 0.0): (84.3, 94.9, 94.0),
    (0.8, 0.2, 0.0): (84.1, 95.2, 94.6),
    (0.8, 0.0, 0.2): (84.4, 95.2, 94.7),
    (0.0, 0.8, 0.2): (83.7, 94.8, 94.6),
    (0.0, 1.0, 0.0): (83.6, 94.9, 94.6),
}


def table(study: Study) -> PaperTable:
    base, rows = next(experiment for experiment in experiments if experiment.name == "bert-base"), []
    for split, published in ROWS.items():
        mask, random, same = (round(100 * share) for share in split)
        masking = replace(base.objective.masking, split=split)
        experiment = replace(base, objective=replace(base.objective, masking=masking))
        run_name = "bert" if experiment == base else f"bert-split-{mask}-{random}-{same}"
        row_name = f"mask {mask} random {random} same {same}"
        rows.append(study.build_row(row_name, published, COLUMNS, run_name, experiment))
    return study.build_table("bert_t8", "BERT, table 8: the mask split", COLUMNS, rows, "tokens")
