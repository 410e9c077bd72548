"""ELECTRA, §3.2: the parameters that the generator shares with the discriminator (Clark et al., 2020).

    python launch.py train electra_tying --with corpus=wiki-1.txt.xz glue=GLUE

Cost: not measured here. Score: SST-2 66.2, 68.9 and 70.1, medians of three seeds within the spread; the first row is
from the CPU and the others are from an NVIDIA H100 (experiments/README.md, "The papers' tables at small scale").

Both networks have one size, for 500,000 steps at paper scale, and share nothing, the token embeddings, or all
embeddings. The paper's third row shares the whole encoders; the released code, and this table, all embeddings.
"""

from dataclasses import replace

from encoders.library.ablations.electra_t5 import BASE

from encoders.sweeps.paper_table import ELECTRA_COLUMNS, GLUE_COLUMNS, PaperTable, Study

COLUMNS = (*GLUE_COLUMNS, *ELECTRA_COLUMNS)
CAVEAT = "the paper's third row ties the whole encoders, and ours all embeddings"
# By what is tied: the name of the run, the published average.
ROWS = {
    "none": ("electra-tied-none", 83.6),
    "tokens": ("electra-tied-tokens", 84.3),
    "embeddings": ("electra-width-1", 84.4),
}


def table(study: Study) -> PaperTable:
    rows = []
    phases = tuple(replace(phase, until_step=500_000) for phase in BASE.phases)
    for tie, (run_name, average) in ROWS.items():
        experiment = replace(BASE, objective=replace(BASE.objective, generator_width=1.0, tie=tie), phases=phases)
        published = (*(None,) * (len(GLUE_COLUMNS) - 1), average)
        rows.append(study.build_row(f"tied: {tie}", published, COLUMNS, run_name, experiment))
    return study.build_table("electra_tying", "ELECTRA, §3.2: weight sharing", COLUMNS, rows, "tokens", CAVEAT)
