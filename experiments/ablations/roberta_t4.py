"""RoBERTa, table 4: more text, and longer (Liu et al., 2019).

    python launch.py train roberta_t4 --with scale=paper "corpus=TEXTS/*.txt" "extra_corpus=MORE/*.txt" \\
        glue=GLUE squad=SQUAD

Cost and score: not measured here.

RoBERTa-large with 8,000 rows on books and Wikipedia (16 GB), then on 160 GB, for up to 500,000 steps. Of the larger
corpus TFDS has only news like that of CC-News, which is the default of `extra_corpus`.
"""

from dataclasses import replace

from encoders.library.roberta import experiments

from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import MLM_AT_MASK, MNLI, SQUAD1_F1, SQUAD2_F1, SST2

COLUMNS = (SQUAD1_F1, SQUAD2_F1, MNLI, SST2, MLM_AT_MASK)
# Steps, more text, multiple of the tokens at small scale, the published row.
ROWS = {
    "books + wiki": (100_000, False, 1, (93.6, 87.3, 89.0, 95.3)),
    "+ additional data": (100_000, True, 1, (94.0, 87.7, 89.3, 95.6)),
    "+ longer": (300_000, True, 3, (94.4, 88.7, 90.0, 96.1)),
    "+ even longer": (500_000, True, 5, (94.6, 89.4, 90.2, 96.4)),
}


def table(study: Study) -> PaperTable:
    base = next(experiment for experiment in experiments if experiment.name == "roberta-large")
    small_changes = {"model": {"num_layers": 4}}
    rows = []
    for name, (steps, more_text, multiple, published) in ROWS.items():
        corpus = (*study.corpus, *study.extra_corpus) if more_text else study.corpus
        row_study = replace(study, tokens=study.num_tokens * multiple, corpus=corpus)
        experiment = replace(base, phases=tuple(replace(phase, until_step=steps) for phase in base.phases))
        run_name = f"roberta-large-more-{steps // 1000}k" if more_text else f"roberta-large-{steps // 1000}k"
        rows.append(row_study.build_row(name, published, COLUMNS, run_name, experiment, small_changes=small_changes))
    return study.build_table("roberta_t4", "RoBERTa, table 4: more text, and longer", COLUMNS, rows, "model and batch")
