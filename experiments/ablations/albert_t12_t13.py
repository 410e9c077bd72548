"""ALBERT, tables 12 and 13: width of three layers, and depth of the widest (Lan et al., 2020).

    python launch.py train albert_t12_t13 --with corpus=wiki-1.txt.xz glue=GLUE

Of both only averages are given here. Table 12 counts 18, 60, 225 and 499 million parameters; by their sizes the models
have 17.7, 58.7, 222.6 and 495.5. Heads of 64 in table 12 are ours.
"""

from dataclasses import replace

from encoders.library.albert import experiments

from encoders.families import albert
from encoders.sweeps.paper_table import ALBERT_COLUMNS, MLM_AT_MASK, NUM_PARAMS, PaperTable, Study

COLUMNS = (NUM_PARAMS, *ALBERT_COLUMNS, MLM_AT_MASK)
NO_TASK_SCORES = (None,) * (len(ALBERT_COLUMNS) - 1)
# Width; at small scale; parameters and average.
WIDTHS = ((1024, 64, 18, 71.2), (2048, 128, 60, 74.6), (4096, 256, 225, 76.3), (6144, 384, 499, 74.0))
DEPTHS = ((12, 2), (24, 4))


def table(study: Study) -> PaperTable:
    base, rows = experiments[0], []
    for width, narrow, count, average in WIDTHS:
        model_sizes = lambda hidden_size, num_layers: dict(
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=hidden_size // 64,
            intermediate_size=4 * hidden_size,
        )
        member = replace(base, model=replace(albert.LARGE, **model_sizes(width, 3)))
        published, small = (count, *NO_TASK_SCORES, average), {"model": model_sizes(narrow, 3)}
        rows.append(
            study.build_row(f"T12: H={width}", published, COLUMNS, f"albert-wide{width}", member, small_changes=small)
        )
    for layers, few in DEPTHS:
        member = replace(base, model=replace(albert.XXLARGE, num_layers=layers))
        small = {"model": model_sizes(512, few)}
        published = ((235, 233, 225), *NO_TASK_SCORES, 88.7)
        rows.append(
            study.build_row(
                f"T13: {layers} layers",
                published,
                COLUMNS,
                "albert-xxlarge" if layers == 12 else f"albert-xx{layers}",
                member,
                small_changes=small,
            )
        )
    return study.build_table("albert_t12_t13", "ALBERT, tables 12 and 13: width and depth", COLUMNS, rows, "tokens")
