"""RoBERTa, table 4: more text, and longer (Liu et al., 2019).

    python launch.py train roberta_t4 --with scale=paper "corpus=TEXTS/*.txt" "more=MORE/*.txt" glue=GLUE squad=SQUAD

RoBERTa-large with 8,000 rows on books and Wikipedia (16 GB), then on 160 GB, for up to 500,000 steps. Of the larger
corpus TFDS has no part but news like that of CC-News, which `more` is unless told otherwise.
"""

from dataclasses import replace

from encoders.library.roberta import experiments

from encoders.sweeps.paper_table import MLM_AT_MASK, MNLI, SQUAD1_F1, SQUAD2_F1, SST2, PaperTable, Study

COLUMNS = (SQUAD1_F1, SQUAD2_F1, MNLI, SST2, MLM_AT_MASK)
# Steps, with more text, at small scale a share of the tokens, the published row.
ROWS = {
    "books + wiki": (100_000, False, 1, (93.6, 87.3, 89.0, 95.3)),
    "+ additional data": (100_000, True, 1, (94.0, 87.7, 89.3, 95.6)),
    "+ longer": (300_000, True, 3, (94.4, 88.7, 90.0, 96.1)),
    "+ even longer": (500_000, True, 5, (94.6, 89.4, 90.2, 96.4)),
}


def table(study: Study) -> PaperTable:
    base, rows = next(e for e in experiments if e.name == "roberta-large"), []
    for name, (steps, more, share, published) in ROWS.items():
        at = replace(study, tokens=study.tokens * share, corpus=(*study.corpus, *(study.extra_corpus if more else ())))
        phases = tuple(replace(phase, until_step=steps) for phase in base.phases)
        run = f"roberta-large{'-more' * more}-{steps // 1000}k"
        rows.append(
            at.build_row(
                name, published, COLUMNS, run, replace(base, phases=phases), small_changes={"model": {"num_layers": 4}}
            )
        )
    return study.build_table("roberta_t4", "RoBERTa, table 4: more text, and longer", COLUMNS, rows, "model and batch")
