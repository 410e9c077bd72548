"""ELECTRA, figure 3, right: how the two networks are trained (Clark et al., 2020, §3.2 and appendix F).

    python launch.py train electra_training --with corpus=wiki-1.txt.xz glue=GLUE

Cost and score: not measured here.

- joint: as ELECTRA;
- adversarial: the generator learns from the discriminator's errors, by REINFORCE;
- two stages: half of the steps for the generator alone, then half for the discriminator, initialised from it.

The figure shows the score on GLUE without numbers: both are below joint training, and above BERT. By the text the
adversarial generator predicts 58 % of the masked tokens and the joint one 65 %.
"""

from dataclasses import replace
from functools import partial

from encoders.library.ablations.electra_t5 import BASE, replace_with_masked_lm

from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import ELECTRA_COLUMNS, GLUE_COLUMNS, ScoreColumn

COLUMNS = (*GLUE_COLUMNS, ScoreColumn("generator, all chosen", "generator_accuracy"), *ELECTRA_COLUMNS)

CAVEAT = "with two stages both networks have one size, so that one can be initialised from the other; else 1/3 of it"
NO_TASK_SCORES = (None,) * len(GLUE_COLUMNS)


def table(study: Study) -> PaperTable:
    half_study = replace(study, tokens=study.num_tokens / 2)
    half_phases = tuple(replace(phase, until_step=phase.until_step // 2) for phase in BASE.phases)
    generator = replace_with_masked_lm(replace(BASE, phases=half_phases))
    first_stage = [half_study.build_pretrain_run("electra-stage-1", generator, seed) for seed in study.pretrain_seeds]
    adversarial = replace(BASE, objective=replace(BASE.objective, generator_training="adversarial"))
    second_stage = replace(
        BASE,
        phases=half_phases,
        objective=replace(BASE.objective, generator_width=1.0, tie="none", generator_training="two_stage"),
        init_from=first_stage[0].name,
    )
    build_stage = partial(half_study.build_row, source_runs=first_stage, small_changes={"objective": {"tie": "none"}})
    rows = [
        study.build_row("joint", (*NO_TASK_SCORES, 65), COLUMNS, "electra", BASE),
        study.build_row("adversarial", (*NO_TASK_SCORES, 58), COLUMNS, "electra-adversarial", adversarial),
        build_stage("two stages", (), COLUMNS, "electra-stage-2", second_stage),
    ]
    title = "ELECTRA, figure 3: training procedures"
    return study.build_table("electra_training", title, COLUMNS, rows, "tokens of both stages", CAVEAT)
