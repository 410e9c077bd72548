"""Differences that are known, at small scale: does the scale tell them?

    python launch.py train known_differences --jobs 2 --with corpus=wiki-1.txt.xz probes=UD_ENGLISH-EWT

Measured on one core of an Intel Xeon beside other work, 2 M tokens and three seeds (experiments/results/README.md): 3
to 12 minutes a run. At [MASK] all differences come out: 23.7 % with 15 % masked, 3.8 % with 1 %, 7.7 % after a third.
ELECTRA after the scale's 10 M tokens, one seed, 21 minutes: 40.2 % at [MASK], AUC 82.2 on unigram corruptions.

No paper has this table. A scale at which it does not tell that training longer is better than training shorter, and
that masking 15 % of the tokens is better than masking 1 %, tells nothing else either. Held-out tokens are masked at
15 % for all.
"""

from dataclasses import replace

from encoders.library.ablations.electra_t5 import BASE, replace_with_masked_lm
from encoders.library.ablations.mask_rate import SAME_MASK_RATE

from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import ELECTRA_COLUMNS, ScoreColumn

COLUMNS = (
    ScoreColumn("MLM at [MASK], of 15 %", "mlm_mask_accuracy", overrides=SAME_MASK_RATE),
    ScoreColumn("MLM loss, of 15 %", "mlm_loss", factor=1.0, overrides=SAME_MASK_RATE, lower_is_better=True),
    *ELECTRA_COLUMNS,
)


def table(study: Study) -> PaperTable:
    study.require_small_scale("known_differences")
    rows = []
    for name, base, run_name in (("MLM", replace_with_masked_lm(BASE), "rate-mlm-15"), ("RTD", BASE, "electra")):
        build_masked = lambda rate, base=base: replace(
            base, objective=replace(base.objective, masking=replace(base.objective.masking, mask_rate=rate))
        )
        rare, short = f"rate-{name.lower()}-1", f"{run_name}-third"
        third = replace(study, tokens=study.num_tokens / 3)
        rows += [
            study.build_row(f"{name}, 15 % masked", (), COLUMNS, run_name, base),
            study.build_row(f"{name}, 1 % masked", (), COLUMNS, rare, build_masked(0.01)),
            third.build_row(f"{name}, a third of the tokens", (), COLUMNS, short, base),
        ]
    return study.build_table("known_differences", "Differences that are known", COLUMNS, rows, "model and batch")
