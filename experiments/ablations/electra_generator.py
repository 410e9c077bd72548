"""ELECTRA, figure 3, left: the size of the generator (Clark et al., 2020).

    python launch.py train electra_generator --with corpus=wiki-1.txt.xz glue=GLUE

Cost and score: not measured here.

The figure shows the score on GLUE without numbers: generators of 1/4 to 1/2 of the discriminator's width are the best
for every size of it, at 500,000 steps. The paper's generator without a network samples tokens by their frequency; ours
samples all ordinary tokens alike.
"""

from dataclasses import replace

from encoders.library.ablations.electra_t5 import BASE

from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import ELECTRA_COLUMNS, GLUE_COLUMNS

COLUMNS = (*GLUE_COLUMNS, *ELECTRA_COLUMNS)
CAVEAT = "without a network the paper samples tokens by their frequency, and ours all alike"
WIDTHS = {None: "no network", 1 / 8: "1/8", 1 / 4: "1/4", 1 / 2: "1/2", 3 / 4: "3/4", 1.0: "1"}


def table(study: Study) -> PaperTable:
    rows = []
    phases = tuple(replace(phase, until_step=500_000) for phase in BASE.phases)
    for width, name in WIDTHS.items():
        experiment = replace(BASE, objective=replace(BASE.objective, generator_width=width), phases=phases)
        run_name = f"electra-width-{name.replace(' ', '-').replace('/', 'of')}"
        if study.is_scaled_down and width == 1.0:  # the width of every other table there
            run_name = "electra"
        small = {"objective": {"generator_width": width}}
        rows.append(study.build_row(name, (), COLUMNS, run_name, experiment, small_changes=small))
    title = "ELECTRA, figure 3: generator size"
    return study.build_table("electra_generator", title, COLUMNS, rows, "tokens", CAVEAT)
