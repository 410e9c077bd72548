"""ELECTRA, §3.2: what the generator shares with the discriminator (Clark et al., 2020).

    python launch.py train electra_tying --with corpus=wiki-1.txt.xz glue=GLUE

Equal sizes, 500,000 steps: nothing, the token embeddings, or all weights. The paper's third row ties the whole
encoders; here as in the released code it is all embeddings, and the generator of the last row is as large.
"""

from dataclasses import replace

from encoders.library.ablations.electra_t5 import BASE

from encoders.sweeps.paper_table import ELECTRA_COLUMNS, GLUE_COLUMNS, PaperTable, Study

COLUMNS = (*GLUE_COLUMNS, *ELECTRA_COLUMNS)
CAVEATS = ("the paper's third row ties the whole encoders, and ours all embeddings",)
ROWS = {"none": 83.6, "tokens": 84.3, "embeddings": 84.4}


def table(study: Study) -> PaperTable:
    none, rows = (None,) * (len(GLUE_COLUMNS) - 1), []
    for tie, average in ROWS.items():
        phases = tuple(replace(phase, until_step=500_000) for phase in BASE.phases)
        member = replace(BASE, objective=replace(BASE.objective, generator_width=1.0, tie=tie), phases=phases)
        rows.append(
            study.build_row(
                f"tied: {tie}",
                (*none, average),
                COLUMNS,
                "electra-width-1" if tie == "embeddings" else f"electra-tied-{tie}",
                member,
            )
        )
    return study.build_table("electra_tying", "ELECTRA, §3.2: weight sharing", COLUMNS, rows, "tokens", *CAVEATS)
