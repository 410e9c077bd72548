"""ALBERT, table 4: the parameters that the layers share, at E = 768 and E = 128 (Lan et al., 2020).

    python launch.py train albert_t4 --with corpus=wiki-1.txt.xz glue=GLUE

Cost and score: not measured here at this small scale. What the one before could tell is in experiments/README.md, "The
papers' tables at the scale before".

The paper's base model: the layers share all parameters, those of attention, those of the feed-forward network, or none.
The paper's counts leave the pooler out where nothing is shared, and include it elsewhere. At E = 128 other tables
differ: MNLI 81.6 in tables 2 and 3 (here 82.0) with all shared; 83.7 in table 3 (here 83.2) with nothing shared, whose
average is 81.7 there and 81.6 here.
"""

from dataclasses import replace

from encoders.library.albert import experiments

from encoders.families import albert
from encoders.sweeps.paper_table import PaperRow, PaperTable, Study
from encoders.sweeps.score_columns import ALBERT_COLUMNS, MLM_AT_MASK, NUM_PARAMS, SOP

COLUMNS = (NUM_PARAMS, *ALBERT_COLUMNS, MLM_AT_MASK, SOP)
SHARED_PARTS = {"all": albert.ALL_PARTS, "attention": ("attention",), "ffn": ("feed_forward",), "none": ()}
PUBLISHED = {
    (768, "all"): (31, 88.6, 81.5, 79.2, 76.6, 82.0, 90.6, 63.3, 79.8),
    (768, "attention"): (83, 89.9, 82.7, 80.0, 77.2, 84.0, 91.4, 67.7, 81.6),
    (768, "ffn"): (57, 89.2, 82.1, 78.2, 75.4, 81.5, 90.8, 62.6, 79.5),
    (768, "none"): (108, 90.4, 83.2, 80.4, 77.6, 84.5, 92.8, 68.2, 82.3),
    (128, "all"): (12, 89.3, 82.3, 80.0, 77.1, (82.0, 81.6), 90.3, 64.0, 80.1),
    (128, "attention"): (64, 89.9, 82.8, 80.7, 77.9, 83.4, 91.9, 67.6, 81.7),
    (128, "ffn"): (38, 88.9, 81.6, 78.6, 75.6, 82.3, 91.7, 64.4, 80.2),
    (128, "none"): (89, 89.9, 82.8, 80.3, 77.3, (83.2, 83.7), 91.5, 67.9, (81.6, 81.7)),
}


def table(study: Study) -> PaperTable:
    rows = build_sharing_rows(study, PUBLISHED, "E={width} shared: {shared}")
    return study.build_table("albert_t4", "ALBERT, table 4: cross-layer sharing", COLUMNS, rows, "tokens")


def build_sharing_rows(study: Study, published: dict[tuple[int, str], tuple], label: str) -> list[PaperRow]:
    """Return a row for each width of the embedding and each way of sharing of the base model."""
    base, rows = experiments[0], []
    for (width, shared), numbers in published.items():
        model = replace(base.model, embedding_size=width, shared_parts=SHARED_PARTS[shared])
        experiment = replace(base, model=model)
        run_name = "albert" if experiment == base else f"albert-e{width}-{shared}"
        row_name = label.format(width=width, shared=shared)
        rows.append(study.build_row(row_name, numbers, COLUMNS, run_name, experiment))
    return rows
