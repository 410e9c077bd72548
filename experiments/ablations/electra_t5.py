"""ELECTRA, table 5: from BERT to ELECTRA in steps (Clark et al., 2020, §3.5).

    python launch.py train electra_t5 --with corpus=wiki-1.txt.xz glue=GLUE

Cost and score: not measured here at this small scale. What the one before could tell is in experiments/README.md, "The
papers' tables at the scale before".

- ELECTRA 15%: the discriminator's loss over the masked positions alone;
- Replace MLM: masked-token prediction, with the generator's samples instead of [MASK];
- All-Tokens MLM: the same for every token, with a gate that copies the input;
- BERT: masked tokens alone, as `electra_objective: false` of the released code.

The paper's scores are averages over eight tasks of GLUE on the development sets. All rows have the FLOPs of ELECTRA as
`show` counts them; the paper does not say what its rows have in common.
"""

from dataclasses import replace
from typing import Literal

from encoders.library.electra import experiments

from encoders.costs.ledger import run_flops
from encoders.experiment import Experiment
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.restored_tokens import ReplaceMLM
from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import ELECTRA_COLUMNS, GLUE_COLUMNS, MLM_AT_MASK

TEN_FINETUNINGS_CAVEAT = "the paper's scores are medians of ten fine-tunings"
COLUMNS = (*GLUE_COLUMNS, MLM_AT_MASK, *ELECTRA_COLUMNS)
SMALL, BASE = (next(e for e in experiments if e.name == f"electra-{size}") for size in ("small", "base"))


def replace_with_masked_lm(experiment: Experiment) -> Experiment:
    """Return an experiment with the discriminator's network and masked tokens as the only objective."""
    return replace(experiment, objective=MaskedLM(experiment.objective.masking))


def build_replace_mlm(loss_over: Literal["all", "chosen"]) -> ReplaceMLM:
    """Return Replace MLM with the generator of ELECTRA."""
    electra = BASE.objective
    return ReplaceMLM(
        generator_width=electra.generator_width, masking=electra.masking, tie=electra.tie, loss_over=loss_over
    )


def table(study: Study) -> PaperTable:
    no_task_scores = (None,) * (len(GLUE_COLUMNS) - 1)
    objectives = {
        "ELECTRA": ("electra", BASE.objective, 85.0),
        "All-Tokens MLM": ("electra-all-tokens", build_replace_mlm("all"), 84.3),
        "Replace MLM": ("electra-replace", build_replace_mlm("chosen"), 82.4),
        "ELECTRA 15%": ("electra-15", replace(BASE.objective, loss_over="chosen"), 82.4),
        "BERT": ("electra-bert", replace_with_masked_lm(BASE).objective, 82.2),
    }
    compute = run_flops(study.build_pretrain_run("electra", BASE))
    rows = []
    for name, (run_name, objective, average) in objectives.items():
        experiment, published = replace(BASE, objective=objective), (*no_task_scores, average)
        rows.append(study.build_row(name, published, COLUMNS, run_name, experiment, total_flops=compute))
    return study.build_table(
        "electra_t5",
        "ELECTRA, table 5: from BERT to ELECTRA",
        COLUMNS,
        rows,
        "FLOPs",
        "the paper does not say in what its rows are equal",
        TEN_FINETUNINGS_CAVEAT,
    )
