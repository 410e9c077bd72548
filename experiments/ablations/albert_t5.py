"""ALBERT, table 5: no sentence objective, next sentence, sentence order (Lan et al., 2020).

    python launch.py train albert_t5 --with corpus=wiki-1.txt.xz glue=GLUE

Every model is scored on both sentence tasks, with the head it was trained with: a pair that is not the continuation has
label 1 in both. The model without a sentence objective has no head; a logistic regression on its [CLS] vectors takes
its place (encoders/crossed.py), and the paper does not say what took it there. That model reads the pairs of sentence
order. The MNLI of the last row is 82.0 here and 81.6 in tables 2 and 3.
"""

from dataclasses import replace

from encoders.data.formats import SegmentPairs
from encoders.objectives.sentence_pair import NextSentence, SentenceOrder
from encoders.sweeps.paper_table import ALBERT, Column, Study, Table
from experiments.albert import experiments

NEXT = ("objective.sentences=NextSentence", "phases.*.format.second=random")
ORDER = ("objective.sentences=SentenceOrder", "phases.*.format.second=swapped")
COLUMNS = (
    Column("MLM", "mlm_accuracy"),
    Column("NSP", "nsp_accuracy", under=NEXT),
    Column("SOP", "sop_accuracy", under=ORDER),
    *ALBERT,
)
ROWS = {
    "none": (None, "swapped", "albert-alone", (54.9, 52.4, 53.3, 88.6, 81.5, 78.1, 75.3, 81.5, 89.9, 61.7, 79.0)),
    "NSP": (NextSentence(), "random", "albert-nsp", (54.5, 90.5, 52.0, 88.4, 81.5, 77.2, 74.6, 81.6, 91.1, 62.3, 79.2)),
    "SOP": (
        SentenceOrder(), "swapped", "albert", (54.0, 78.9, 86.5, 89.3, 82.3, 80.0, 77.1, (82.0, 81.6), 90.3, 64.0, 80.1)
    ),
}  # fmt: skip


def table(study: Study) -> Table:
    base = experiments[0]
    rows = []
    for name, (task, second, run, published) in ROWS.items():
        phases = tuple(replace(phase, format=SegmentPairs(second)) for phase in base.phases)
        member = replace(base, objective=replace(base.objective, sentences=task), phases=phases)
        rows.append(study.row(name, published, COLUMNS, run, member))
    reason = (
        "the model without a sentence objective is scored by a regression on its [CLS], of which the paper says nothing"
    )
    return study.table("albert_t5", "ALBERT, table 5: sentence objectives", COLUMNS, rows, "tokens", reason)
