"""ALBERT, table 11: depth (Lan et al., 2020).

    python launch.py train albert_t11 --with corpus=wiki-1.txt.xz glue=GLUE

The large model with all parameters shared, so that every row has the same number. In the paper each network of three
layers and more begins with the parameters of the shallower one, and so do ours.
"""

from dataclasses import replace

from encoders.library.albert import experiments

from encoders.families import albert
from encoders.sweeps.paper_table import ALBERT_COLUMNS, MLM_AT_MASK, NUM_PARAMS, PaperTable, Study

COLUMNS = (NUM_PARAMS, *ALBERT_COLUMNS, MLM_AT_MASK)
# Layers; at small scale; the published row.
ROWS = (
    (1, 1, (18, 31.1, 22.9, 50.1, 50.1, 66.4, 80.8, 40.1, 52.9)),
    (3, 2, (18, 79.8, 69.7, 64.4, 61.7, 77.7, 86.7, 54.0, 71.2)),
    (6, 3, (18, 86.4, 78.4, 73.8, 71.1, 81.2, 88.9, 60.9, 77.2)),
    (12, 4, (18, 89.8, 83.3, 80.7, 77.9, 83.3, 91.7, 66.7, 81.5)),
    (24, 6, (18, 90.3, 83.3, 81.8, 79.0, 83.3, 91.5, 68.7, 82.1)),
    (48, 8, (18, 90.0, 83.1, 81.8, 78.9, 83.4, 91.9, 66.9, 81.8)),
)


def table(study: Study) -> PaperTable:
    base, rows = replace(experiments[0], model=albert.LARGE), []
    for layers, few, published in ROWS:
        member = replace(base, model=replace(albert.LARGE, num_layers=layers))
        before = rows[-1].pretrain_runs if rows else ()
        given = dict(small_changes={"model": {"num_layers": few}}, source_runs=before)
        rows.append(study.build_row(f"{layers} layers", published, COLUMNS, f"albert-deep{layers}", member, **given))
    return study.build_table("albert_t11", "ALBERT, table 11: depth", COLUMNS, rows, "tokens of each stage")
