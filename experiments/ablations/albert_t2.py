"""ALBERT, table 2: BERT and ALBERT, every size (Lan et al., 2020).

    python launch.py train albert_t2 --with corpus=wiki-1.txt.xz glue=GLUE

Cost and score: not measured here.

All are trained and fine-tuned as ALBERT is (LAMB, 4,096 rows, 125,000 steps, MLM of n-grams and sentence order). The
paper's speed is that of training, in units of BERT-large. ALBERT-xxlarge has 235M parameters in this table, 233M in the
text and 225M in table 12; by its sizes it has 223M. The MNLI of ALBERT-base is 81.6 here and in table 3, and 82.0 in
tables 4 and 5.
"""

from dataclasses import replace

from encoders.library.albert import experiments

from encoders.families import albert
from encoders.model.config import EncoderConfig
from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import ALBERT_COLUMNS, MLM_AT_MASK, NUM_PARAMS, ScoreColumn

COLUMNS = (NUM_PARAMS, *ALBERT_COLUMNS, ScoreColumn("speed", ""), MLM_AT_MASK)
# The published row, layers and width at small scale.
ROWS = {
    "bert-base": ((108, 90.4, 83.2, 80.4, 77.6, 84.5, 92.8, 68.2, 82.3, 4.7), 2, 128),
    "bert-large": ((334, 92.2, 85.5, 85.0, 82.2, 86.6, 93.0, 73.9, 85.2, 1.0), 4, 192),
    "albert-base": ((12, 89.3, 82.3, 80.0, 77.1, (81.6, 82.0), 90.3, 64.0, 80.1, 5.6), 2, 128),
    "albert-large": ((18, 90.6, 83.9, 82.3, 79.4, 83.5, 91.7, 68.5, 82.4, 1.7), 4, 192),
    "albert-xlarge": ((60, 92.5, 86.1, 86.1, 83.1, 86.4, 92.4, 74.8, 85.5, 0.6), 4, 256),
    "albert-xxlarge": (((235, 233, 225), 94.1, 88.3, 88.1, 85.1, 88.0, 95.2, 82.3, 88.7, 0.3), 2, 512),
}
# Runs that other tables share.
RUN_NAMES = {"albert-base": "albert", "bert-base": "albert-e768-none"}


def table(study: Study) -> PaperTable:
    base, rows = experiments[0], []
    for name, (published, num_layers, hidden_size) in ROWS.items():
        if name.startswith("bert"):
            model = albert.SIZES[name.replace("bert", "albert")]
            model = replace(model, embedding_size=model.hidden_size, shared_parts=())
        else:
            model = albert.SIZES[name]
        changes = {}
        if name not in RUN_NAMES:
            changes = {"model": build_small_sizes(model, num_layers, hidden_size)}
        run_name, experiment = RUN_NAMES.get(name, name), replace(base, model=model)
        rows.append(study.build_row(name, published, COLUMNS, run_name, experiment, small_changes=changes))
    return study.build_table("albert_t2", "ALBERT, table 2: sizes of BERT and ALBERT", COLUMNS, rows, "tokens")


def build_small_sizes(model: EncoderConfig, num_layers: int, hidden_size: int) -> dict[str, int]:
    """Return the fields that a row changes at small scale."""
    sizes = dict(
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=hidden_size // 64,
        intermediate_size=4 * hidden_size,
    )
    if model.embedding_size == model.hidden_size:
        sizes["embedding_size"] = hidden_size
    return sizes
