"""ALBERT, tables 7 and 8: more data, and no dropout (Lan et al., 2020).

    python launch.py train albert_t7_t8 --with scale=paper "corpus=TEXTS/*.txt" "more=MORE/*.txt" glue=GLUE

Table 7 adds the text of XLNet and RoBERTa to Wikipedia and books, for the base model; here `more`, by default news of
TFDS. Table 8 takes the dropout from xxlarge after a million steps; the released configuration has none from the start,
and so has the row without, while the other has 0.1, as the smaller sizes. Of both only averages are given here.
"""

from dataclasses import replace

from encoders.library.albert import experiments

from encoders.families import albert
from encoders.sweeps.paper_table import ALBERT_COLUMNS, MLM_AT_MASK, PaperTable, Study

COLUMNS = (*ALBERT_COLUMNS, MLM_AT_MASK)
CAVEATS = (
    "tokens within each table",
    "the paper takes the dropout from a model trained with it for a million steps, and here two are trained, one with "
    "it and one without, from the start",
)
NO_TASK_SCORES = (None,) * (len(ALBERT_COLUMNS) - 1)  # of the average


def table(study: Study) -> PaperTable:
    base = experiments[0]
    longer = tuple(replace(phase, until_step=1_000_000) for phase in base.phases)
    large = replace(base, model=albert.XXLARGE, phases=longer)
    dropped = replace(large, model=replace(albert.XXLARGE, hidden_dropout=0.1, attention_dropout=0.1))
    xx, drop = (
        {"hidden_size": 256, "num_heads": 4, "intermediate_size": 1024},
        {"hidden_dropout": 0.1, "attention_dropout": 0.1},
    )
    more = replace(study, corpus=(*study.corpus, *study.extra_corpus))
    rows = [
        study.build_row("T7: base", (*NO_TASK_SCORES, 80.1), COLUMNS, "albert", base),
        more.build_row("T7: base, more data", (*NO_TASK_SCORES, 80.8), COLUMNS, "albert-more", base),
        study.build_row(
            "T8: xxlarge, dropout",
            (*NO_TASK_SCORES, 90.4),
            COLUMNS,
            "xx-dropout",
            dropped,
            small_changes={"model": xx | drop},
        ),
        study.build_row(
            "T8: xxlarge, none", (*NO_TASK_SCORES, 90.7), COLUMNS, "xx-no-dropout", large, small_changes={"model": xx}
        ),
    ]
    return study.build_table("albert_t7_t8", "ALBERT, tables 7 and 8: more data, no dropout", COLUMNS, rows, *CAVEATS)
