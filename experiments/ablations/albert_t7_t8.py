"""ALBERT, tables 7 and 8: more data, and no dropout (Lan et al., 2020).

    python launch.py train albert_t7_t8 --with scale=paper "corpus=TEXTS/*.txt" "extra_corpus=MORE/*.txt" glue=GLUE

Cost and score: not measured here.

Table 7 adds the text of XLNet and RoBERTa to Wikipedia and books, for the base model; here `extra_corpus`, by default
the news of C4 in TFDS. Table 8 removes the dropout of xxlarge after a million steps. Here one row has none from the
start, as the released configuration, and the other 0.1, as the smaller sizes. Only averages are given here.
"""

from dataclasses import replace

from encoders.library.albert import experiments

from encoders.families import albert
from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import ALBERT_COLUMNS, MLM_AT_MASK

COLUMNS = (*ALBERT_COLUMNS, MLM_AT_MASK)
CAVEAT = (
    "the paper removes the dropout from a model trained with it for a million steps, and here two are trained, one "
    "with it and one without, from the start"
)
NO_TASK_SCORES = (None,) * (len(ALBERT_COLUMNS) - 1)
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
SMALL_XXLARGE = {"hidden_size": 256, "num_heads": 4, "intermediate_size": 1024}


def table(study: Study) -> PaperTable:
    base = experiments[0]
    phases = tuple(replace(phase, until_step=1_000_000) for phase in base.phases)
    xxlarge = replace(base, model=albert.XXLARGE, phases=phases)
    with_dropout = replace(xxlarge, model=replace(albert.XXLARGE, **DROPOUT))
    more_text = replace(study, corpus=(*study.corpus, *study.extra_corpus))
    rows = [
        study.build_row("T7: base", (*NO_TASK_SCORES, 80.1), COLUMNS, "albert", base),
        more_text.build_row("T7: base, more data", (*NO_TASK_SCORES, 80.8), COLUMNS, "albert-more", base),
        study.build_row(
            "T8: xxlarge, dropout", (*NO_TASK_SCORES, 90.4), COLUMNS, "xx-dropout", with_dropout,
            small_changes={"model": SMALL_XXLARGE | DROPOUT},
        ),
        study.build_row(
            "T8: xxlarge, none", (*NO_TASK_SCORES, 90.7), COLUMNS, "xx-no-dropout", xxlarge,
            small_changes={"model": SMALL_XXLARGE},
        ),
    ]  # fmt: skip
    title = "ALBERT, tables 7 and 8: more data, no dropout"
    return study.build_table("albert_t7_t8", title, COLUMNS, rows, "tokens within each table", CAVEAT)
