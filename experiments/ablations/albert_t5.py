"""ALBERT, table 5: no sentence objective, next sentence, sentence order (Lan et al., 2020).

    python launch.py train albert_t5 --with corpus=wiki-1.txt.xz glue=GLUE

Cost and score, measured on one core of a shared Intel Xeon with `tokens=2e6 'tasks=()' seeds=5`: 2 to 5 minutes a run.
Both sentence tasks are at chance for all rows (49.7 to 50.7 %): experiments/README.md, "The papers' tables".

Every model is scored on both sentence tasks with the head it was trained with: a pair that is not the continuation has
label 1 in both. The model without a sentence objective reads the pairs of sentence order. It is scored by a
logistic regression on its [CLS] vectors (encoders/inference/cross_evaluation.py), since the paper does not describe its
head. The MNLI of the last row is 82.0 here and 81.6 in tables 2 and 3.
"""

from dataclasses import replace

from encoders.library.albert import experiments

from encoders.data.formats import SegmentPairs
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import ALBERT_COLUMNS, ScoreColumn

NSP_OVERRIDES = ("objective.sentence_task=NextSentencePrediction", "phases.*.format.negatives=random")
SOP_OVERRIDES = ("objective.sentence_task=SentenceOrderPrediction", "phases.*.format.negatives=swapped")
COLUMNS = (
    ScoreColumn("MLM", "mlm_accuracy"),
    ScoreColumn("NSP", "nsp_accuracy", overrides=NSP_OVERRIDES),
    ScoreColumn("SOP", "sop_accuracy", overrides=SOP_OVERRIDES),
    *ALBERT_COLUMNS,
)
CAVEAT = "the model without a sentence objective is scored by a regression on its [CLS], and the paper does not say how"
# Sentence task, negatives of the format, name of the run, the published row.
ROWS = {
    "none": (None, "swapped", "albert-alone", (54.9, 52.4, 53.3, 88.6, 81.5, 78.1, 75.3, 81.5, 89.9, 61.7, 79.0)),
    "NSP": (
        NextSentencePrediction(), "random", "albert-nsp",
        (54.5, 90.5, 52.0, 88.4, 81.5, 77.2, 74.6, 81.6, 91.1, 62.3, 79.2),
    ),
    "SOP": (
        SentenceOrderPrediction(), "swapped", "albert",
        (54.0, 78.9, 86.5, 89.3, 82.3, 80.0, 77.1, (82.0, 81.6), 90.3, 64.0, 80.1),
    ),
}  # fmt: skip


def table(study: Study) -> PaperTable:
    base, rows = experiments[0], []
    for name, (sentence_task, negatives, run_name, published) in ROWS.items():
        phases = tuple(replace(phase, format=SegmentPairs(negatives)) for phase in base.phases)
        objective = replace(base.objective, sentence_task=sentence_task)
        experiment = replace(base, objective=objective, phases=phases)
        rows.append(study.build_row(name, published, COLUMNS, run_name, experiment))
    return study.build_table("albert_t5", "ALBERT, table 5: sentence objectives", COLUMNS, rows, "tokens", CAVEAT)
