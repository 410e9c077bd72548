"""ELECTRA, §3.2: the parameters that the generator shares with the discriminator (Clark et al., 2020).

    python launch.py train electra_tying --with corpus=wiki-1.txt.xz glue=GLUE

Cost and score, measured on one core of a shared Intel Xeon with `tokens=2e6 'tasks=()' seeds=5`: 4 to 8 minutes a run.
No two rows can be told apart yet: experiments/README.md, "The papers' tables".

Both networks have one size, for 500,000 steps at paper scale, and share nothing, the token embeddings, or all
embeddings. The paper's third row shares the whole encoders; the released code, and this table, all embeddings.
"""

from dataclasses import replace

from encoders.library.ablations.electra_t5 import BASE

from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import ELECTRA_COLUMNS, GLUE_COLUMNS

COLUMNS = (*GLUE_COLUMNS, *ELECTRA_COLUMNS)
CAVEAT = "the paper's third row ties the whole encoders, and ours all embeddings"
PUBLISHED = {"none": 83.6, "tokens": 84.3, "embeddings": 84.4}  # averages


def table(study: Study) -> PaperTable:
    rows = []
    phases = tuple(replace(phase, until_step=500_000) for phase in BASE.phases)
    other_tables = {"tokens": "electra"} if study.is_scaled_down else {"embeddings": "electra-width-1"}
    for tie, average in PUBLISHED.items():
        run_name = other_tables.get(tie, f"electra-tied-{tie}")
        experiment = replace(BASE, objective=replace(BASE.objective, generator_width=1.0, tie=tie), phases=phases)
        published = (*(None,) * (len(GLUE_COLUMNS) - 1), average)
        small = {"objective": {"tie": tie}}
        rows.append(study.build_row(f"tied: {tie}", published, COLUMNS, run_name, experiment, small_changes=small))
    return study.build_table("electra_tying", "ELECTRA, §3.2: weight sharing", COLUMNS, rows, "tokens", CAVEAT)
