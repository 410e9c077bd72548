"""SimCSE, table 6: the vector of a sentence (Gao et al., 2021, §6.3).

    python launch.py train simcse_pooling --with corpus=wiki-1.txt.xz sentences=SENTENCES.txt glue=GLUE

Cost and score: not measured here.

- [CLS] w/ MLP: a dense layer and tanh of the hidden state of [CLS], BERT's pooler, kept afterwards;
- [CLS] w/ MLP (train): the same in training only;
- [CLS] w/o MLP: the hidden state of [CLS];
- Mean: that over the tokens of the last layer, without a published number.

All runs learn from sentences alone. The supervised column and "First-last avg.", the mean of the first and the last
layer, are the paper's alone. Files and scales are those of `simcse_dropout`.
"""

from encoders.library.ablations.simcse_dropout import COLUMNS, SimcseRows

from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import ScoreColumn

SUPERVISED = ScoreColumn("supervised", "")
CAVEAT = "the dense layer that is kept starts from BERT's pooler in ours, and from random parameters in the paper"
# The published numbers, the name of the run, and what it changes.
ROWS = {
    "[CLS] w/ MLP": ((86.2, 81.7), "simcse-pooled", {"pooling": "pooled", "projection_size": None}),
    "[CLS] w/ MLP (train)": ((85.8, 82.5), "simcse", {}),
    "[CLS] w/o MLP": ((86.2, 80.9), "simcse-cls", {"projection_size": None}),
    "Mean": ((), "simcse-mean", {"pooling": "mean", "projection_size": None}),
}


def table(study: Study) -> PaperTable:
    # The last column is the one whose order further measures are compared with.
    rows = SimcseRows(study, columns=(SUPERVISED, *COLUMNS))
    chosen = [
        rows.build_row(name, published, run_name, {"objective": changes})
        for name, (published, run_name, changes) in ROWS.items()
    ]
    chosen.append(study.build_published_row("First-last avg.", (86.1, 81.2), rows.columns))
    caveats = () if study.is_scaled_down else (CAVEAT,)
    return rows.build_table("simcse_pooling", "SimCSE, table 6: pooling", chosen, "tokens", *caveats)
