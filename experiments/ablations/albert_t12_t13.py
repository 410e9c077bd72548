"""ALBERT, tables 12 and 13: width of three layers, and depth of the widest model (Lan et al., 2020).

    python launch.py train albert_t12_t13 --with corpus=wiki-1.txt.xz glue=GLUE

Cost and score: not measured here.

Only the averages of both tables are given here. Table 12 counts 18, 60, 225 and 499 million parameters; by their sizes
the models have 17.7, 58.7, 222.6 and 495.5. The paper does not give the number of heads of table 12; heads of 64 are
ours.
"""

from dataclasses import replace

from encoders.library.albert import experiments

from encoders.families import albert
from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import ALBERT_COLUMNS, MLM_AT_MASK, NUM_PARAMS

COLUMNS = (NUM_PARAMS, *ALBERT_COLUMNS, MLM_AT_MASK)
NO_TASK_SCORES = (None,) * (len(ALBERT_COLUMNS) - 1)
# Width at paper and at small scale, millions of parameters, average.
WIDTHS = ((1024, 64, 18, 71.2), (2048, 128, 60, 74.6), (4096, 256, 225, 76.3), (6144, 384, 499, 74.0))
# Layers at paper and at small scale, name of the run.
DEPTHS = ((12, 2, "albert-xxlarge"), (24, 4, "albert-xx24"))


def table(study: Study) -> PaperTable:
    base, rows = experiments[0], []
    for width, small_width, count, average in WIDTHS:
        experiment = replace(base, model=replace(albert.LARGE, **build_sizes(width, 3)))
        published = (count, *NO_TASK_SCORES, average)
        small = {"model": build_sizes(small_width, 3)}
        name = f"T12: H={width}"
        rows.append(study.build_row(name, published, COLUMNS, f"albert-wide{width}", experiment, small_changes=small))
    for num_layers, num_small_layers, run_name in DEPTHS:
        experiment = replace(base, model=replace(albert.XXLARGE, num_layers=num_layers))
        published = ((235, 233, 225), *NO_TASK_SCORES, 88.7)
        small = {"model": build_sizes(512, num_small_layers)}
        name = f"T13: {num_layers} layers"
        rows.append(study.build_row(name, published, COLUMNS, run_name, experiment, small_changes=small))
    return study.build_table("albert_t12_t13", "ALBERT, tables 12 and 13: width and depth", COLUMNS, rows, "tokens")


def build_sizes(hidden_size: int, num_layers: int) -> dict[str, int]:
    """Return the fields of a model with heads of 64 and a feed-forward network of four times the width."""
    return dict(
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=hidden_size // 64,
        intermediate_size=4 * hidden_size,
    )
