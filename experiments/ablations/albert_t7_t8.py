"""ALBERT, tables 7 and 8: more data, and no dropout (Lan et al., 2020).

    python launch.py train albert_t7_t8 --with scale=paper "corpus=TEXTS/*.txt" "more=MORE/*.txt" glue=GLUE

Table 7 adds the text of XLNet and RoBERTa to Wikipedia and books, for the base model; here `more`, by default news of
TFDS. Table 8 takes the dropout from xxlarge after a million steps; the released configuration has none from the start,
and so has the row without, while the other has 0.1, as the smaller sizes. Of both only averages are given here.
"""

from dataclasses import replace

from encoders.families import albert
from encoders.sweeps.paper_table import ALBERT, MASKED, Study, Table
from experiments.albert import experiments

COLUMNS = (*ALBERT, MASKED)
SAID = (
    "tokens within each table",
    "the paper takes the dropout from a model trained with it for a million steps, and here two are trained, one with "
    "it and one without, from the start",
)
BEFORE = (None,) * (len(ALBERT) - 1)  # of the average


def table(study: Study) -> Table:
    base = experiments[0]
    longer = tuple(replace(phase, until=1_000_000) for phase in base.phases)
    large = replace(base, model=albert.XXLARGE, phases=longer)
    dropped = replace(large, model=replace(albert.XXLARGE, dropout=0.1, attention_dropout=0.1))
    xx, drop = {"hidden": 256, "heads": 4, "intermediate": 1024}, {"dropout": 0.1, "attention_dropout": 0.1}
    more = replace(study, corpus=(*study.corpus, *study.more))
    rows = [
        study.row("T7: base", (*BEFORE, 80.1), COLUMNS, "albert", base),
        more.row("T7: base, more data", (*BEFORE, 80.8), COLUMNS, "albert-more", base),
        study.row("T8: xxlarge, dropout", (*BEFORE, 90.4), COLUMNS, "xx-dropout", dropped, small={"model": xx | drop}),
        study.row("T8: xxlarge, none", (*BEFORE, 90.7), COLUMNS, "xx-no-dropout", large, small={"model": xx}),
    ]
    return study.table("albert_t7_t8", "ALBERT, tables 7 and 8: more data, no dropout", COLUMNS, rows, *SAID)
