"""ELECTRA, figure 3, left: the size of the generator (Clark et al., 2020).

    python launch.py train electra_generator --with corpus=wiki-1.txt.xz glue=GLUE

The figure shows the score on GLUE without numbers: best are generators of 1/4 to 1/2 of the discriminator's width, for
every size of it, at 500,000 steps. The paper's generator without a network gives every token its frequency; ours draws
all ordinary tokens alike.
"""

from dataclasses import replace

from encoders.library.ablations.electra_t5 import BASE

from encoders.sweeps.paper_table import ELECTRA_COLUMNS, GLUE_COLUMNS, PaperTable, Study

COLUMNS = (*GLUE_COLUMNS, *ELECTRA_COLUMNS)
CAVEATS = ("without a network the paper draws tokens by their frequency, and ours all alike",)
WIDTHS = {None: "no network", 1 / 8: "1/8", 1 / 4: "1/4", 1 / 2: "1/2", 3 / 4: "3/4", 1.0: "1"}


def table(study: Study) -> PaperTable:
    rows = []
    for width, name in WIDTHS.items():
        phases = tuple(replace(phase, until_step=500_000) for phase in BASE.phases)
        member = replace(BASE, objective=replace(BASE.objective, generator_width=width), phases=phases)
        rows.append(
            study.build_row(name, (), COLUMNS, f"electra-width-{name.replace(' ', '-').replace('/', 'of')}", member)
        )
    return study.build_table(
        "electra_generator", "ELECTRA, figure 3: generator size", COLUMNS, rows, "tokens", *CAVEATS
    )
