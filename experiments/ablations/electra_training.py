"""ELECTRA, figure 3, right: how the two networks are trained (Clark et al., 2020, §3.2 and appendix F).

    python launch.py train electra_training --with corpus=wiki-1.txt.xz glue=GLUE

- joint: as ELECTRA is;
- adversarial: the generator learns from the discriminator's errors, by REINFORCE;
- two stages: the generator alone for half of the steps, then the discriminator, which begins with its weights, for the
  other half.

The figure shows the score on GLUE without numbers: both are below joint training, and above BERT. Of the generators
the text says that the adversarial one finds 58 % of the masked tokens and the other 65 %.
"""

from dataclasses import replace

from encoders.sweeps.paper_table import GLUE, LEARNED, Column, Study, Table
from experiments.ablations.electra_t5 import BASE, masked

COLUMNS = (*GLUE, Column("generator, all chosen", "generator_accuracy"), *LEARNED)

SAID = ("both networks of two stages have one size, as they must to begin alike, and the others' generator 1/3 of it",)


def table(study: Study) -> Table:
    usual, none = BASE.objective, (None,) * len(GLUE)
    half = replace(study, tokens=study.tokens / 2)
    short = replace(BASE, phases=tuple(replace(phase, until=phase.until // 2) for phase in BASE.phases))
    alone = [half.run("electra-stage-1", masked(short), seed) for seed in study.seeds_of_runs]
    second = replace(short, objective=replace(usual, width=1.0, tie="none", training="two_stage"), start=alone[0].name)
    rows = [
        study.row("joint", (*none, 65), COLUMNS, "electra", BASE),
        study.row(
            "adversarial", (*none, 58), COLUMNS, "electra-adversarial",
            replace(BASE, objective=replace(usual, training="adversarial")),
        ),
        half.row("two stages", (), COLUMNS, "electra-stage-2", second, before=alone),
    ]  # fmt: skip
    return study.table(
        "electra_training", "ELECTRA, figure 3: training procedures", COLUMNS, rows, "tokens of both stages", *SAID
    )
