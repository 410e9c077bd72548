"""BERT, table 8: what becomes of the chosen tokens (Devlin et al., 2019, appendix C.2).

    python launch.py train bert_t8 --with corpus=wiki-1.txt.xz glue=GLUE

The shares that become [MASK], a random token, and stay. NER is CoNLL-2003, fine-tuned; the paper's second column of it,
with features that stay as they are, has no counterpart here; the recipe of NER is that of GLUE. Masked tokens are held
out with 80/10/10 for every row, whatever it is trained with.
"""

from dataclasses import replace

from encoders.library.bert import experiments

from encoders.sweeps.paper_table import MNLI, NER_F1, SST2, PaperTable, ScoreColumn, Study

SAME_SPLIT = ("objective.masking.split=0.8,0.1,0.1",)
COLUMNS = (
    MNLI,
    NER_F1,
    ScoreColumn("NER, features", ""),
    replace(SST2, order_column="MNLI"),
    ScoreColumn("MLM of 80/10/10", "mlm_accuracy", overrides=SAME_SPLIT, order_column="MNLI"),
    ScoreColumn("MLM at [MASK]", "mlm_mask_accuracy", overrides=SAME_SPLIT, order_column="MNLI"),
)
# mask, random, same; the paper's columns are mask, same, random.
ROWS = {
    (0.8, 0.1, 0.1): (84.2, 95.4, 94.9),
    (1.0, 0.0, 0.0): (84.3, 94.9, 94.0),
    (0.8, 0.2, 0.0): (84.1, 95.2, 94.6),
    (0.8, 0.0, 0.2): (84.4, 95.2, 94.7),
    (0.0, 0.8, 0.2): (83.7, 94.8, 94.6),
    (0.0, 1.0, 0.0): (83.6, 94.9, 94.6),
}


def table(study: Study) -> PaperTable:
    base, rows = next(e for e in experiments if e.name == "bert-base"), []
    for split, published in ROWS.items():
        shares = [round(100 * share) for share in split]
        tokens = replace(base.objective.masking, split=split)
        member = replace(base, objective=replace(base.objective, masking=tokens))
        run = "bert" if split == (0.8, 0.1, 0.1) else "bert-split-{}-{}-{}".format(*shares)
        rows.append(study.build_row("mask {} random {} same {}".format(*shares), published, COLUMNS, run, member))
    return study.build_table("bert_t8", "BERT, table 8: the mask split", COLUMNS, rows, "tokens")
