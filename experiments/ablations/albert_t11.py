"""ALBERT, table 11: depth (Lan et al., 2020).

    python launch.py train albert_t11 --with corpus=wiki-1.txt.xz glue=GLUE

Cost and score: not measured here.

The large model with all parameters shared, so that every row has the same number of them. In the paper each network of
three layers and more is initialised from the shallower one, and so it is here.
"""

from dataclasses import replace

from encoders.library.albert import experiments

from encoders.families import albert
from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import ALBERT_COLUMNS, MLM_AT_MASK, NUM_PARAMS

COLUMNS = (NUM_PARAMS, *ALBERT_COLUMNS, MLM_AT_MASK)
# Layers at paper and at small scale, the published row.
ROWS = (
    (1, 1, (18, 31.1, 22.9, 50.1, 50.1, 66.4, 80.8, 40.1, 52.9)),
    (3, 2, (18, 79.8, 69.7, 64.4, 61.7, 77.7, 86.7, 54.0, 71.2)),
    (6, 3, (18, 86.4, 78.4, 73.8, 71.1, 81.2, 88.9, 60.9, 77.2)),
    (12, 4, (18, 89.8, 83.3, 80.7, 77.9, 83.3, 91.7, 66.7, 81.5)),
    (24, 6, (18, 90.3, 83.3, 81.8, 79.0, 83.3, 91.5, 68.7, 82.1)),
    (48, 8, (18, 90.0, 83.1, 81.8, 78.9, 83.4, 91.9, 66.9, 81.8)),
)


def table(study: Study) -> PaperTable:
    rows = []
    for num_layers, num_small_layers, published in ROWS:
        experiment = replace(experiments[0], model=replace(albert.LARGE, num_layers=num_layers))
        row = study.build_row(
            f"{num_layers} layers",
            published,
            COLUMNS,
            f"albert-deep{num_layers}",
            experiment,
            small_changes={"model": {"num_layers": num_small_layers}},
            source_runs=rows[-1].pretrain_runs if rows else (),
        )
        rows.append(row)
    return study.build_table("albert_t11", "ALBERT, table 11: depth", COLUMNS, rows, "tokens of each stage")
