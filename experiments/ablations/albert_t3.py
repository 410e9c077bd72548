"""ALBERT, table 3: the size of the embeddings, shared and not shared (Lan et al., 2020).

    python launch.py train albert_t3 --with corpus=wiki-1.txt.xz glue=GLUE

Cost and score: not measured here, but for the four rows at E = 128 and E = 768 that table 4 has too (`albert_t4.py`).

The paper's base model. Its counts leave the pooler out where nothing is shared, and include it elsewhere. At E = 128
table 4 differs: MNLI 82.0 (here 81.6) with all shared, 83.2 (here 83.7) with nothing shared, average 81.6 (here 81.7).
"""

from encoders.library.ablations.albert_t4 import COLUMNS, build_sharing_rows

from encoders.sweeps.paper_table import PaperTable, Study

PUBLISHED = {
    (64, "none"): (87, 89.9, 82.9, 80.1, 77.8, 82.9, 91.5, 66.7, 81.3),
    (128, "none"): (89, 89.9, 82.8, 80.3, 77.3, (83.7, 83.2), 91.5, 67.9, (81.7, 81.6)),
    (256, "none"): (93, 90.2, 83.2, 80.3, 77.4, 84.1, 91.9, 67.3, 81.8),
    (768, "none"): (108, 90.4, 83.2, 80.4, 77.6, 84.5, 92.8, 68.2, 82.3),
    (64, "all"): (10, 88.7, 81.4, 77.5, 74.8, 80.8, 89.4, 63.5, 79.0),
    (128, "all"): (12, 89.3, 82.3, 80.0, 77.1, (81.6, 82.0), 90.3, 64.0, 80.1),
    (256, "all"): (16, 88.8, 81.5, 79.1, 76.3, 81.5, 90.3, 63.4, 79.6),
    (768, "all"): (31, 88.6, 81.5, 79.2, 76.6, 82.0, 90.6, 63.3, 79.8),
}


def table(study: Study) -> PaperTable:
    rows = build_sharing_rows(study, PUBLISHED, "shared: {shared}, E={width}")
    return study.build_table("albert_t3", "ALBERT, table 3: embedding size", COLUMNS, rows, "tokens")
