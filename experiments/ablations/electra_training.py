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

from encoders.library.ablations.electra_t5 import BASE, replace_with_masked_lm

from encoders.sweeps.paper_table import ELECTRA_COLUMNS, GLUE_COLUMNS, PaperTable, ScoreColumn, Study

COLUMNS = (*GLUE_COLUMNS, ScoreColumn("generator, all chosen", "generator_accuracy"), *ELECTRA_COLUMNS)

CAVEATS = (
    "both networks of two stages have one size, as they must to begin alike, and the others' generator 1/3 of it",
)


def table(study: Study) -> PaperTable:
    usual, none = BASE.objective, (None,) * len(GLUE_COLUMNS)
    half = replace(study, tokens=study.tokens / 2)
    short = replace(BASE, phases=tuple(replace(phase, until_step=phase.until_step // 2) for phase in BASE.phases))
    alone = [
        half.build_pretrain_run("electra-stage-1", replace_with_masked_lm(short), seed) for seed in study.pretrain_seeds
    ]
    second = replace(
        short,
        objective=replace(usual, generator_width=1.0, tie="none", generator_training="two_stage"),
        init_from=alone[0].name,
    )
    rows = [
        study.build_row("joint", (*none, 65), COLUMNS, "electra", BASE),
        study.build_row(
            "adversarial", (*none, 58), COLUMNS, "electra-adversarial",
            replace(BASE, objective=replace(usual, generator_training="adversarial")),
        ),
        half.build_row("two stages", (), COLUMNS, "electra-stage-2", second, source_runs=alone),
    ]  # fmt: skip
    return study.build_table(
        "electra_training", "ELECTRA, figure 3: training procedures", COLUMNS, rows, "tokens of both stages", *CAVEATS
    )
