"""ELECTRA, table 5: from BERT to ELECTRA in steps (Clark et al., 2020, §3.5).

    python launch.py train electra_t5 --with corpus=wiki-1.txt.xz glue=GLUE

- ELECTRA 15%: the discriminator's loss over the tokens that were masked out alone;
- Replace MLM: masked-token prediction, with the generator's samples in the place of [MASK];
- All-Tokens MLM: the same for every token, with a gate that copies the input;
- BERT: masked tokens alone, as `electra_objective: false` of the released code.

Averages over eight tasks of GLUE on the development sets. All have the FLOPs of ELECTRA as `show` reckons them; the
paper does not say in what its rows are equal.
"""

from dataclasses import replace

from encoders.library.electra import experiments

from encoders.costs.ledger import run_flops
from encoders.experiment import Experiment
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.restored_tokens import ReplaceMLM
from encoders.sweeps.paper_table import ELECTRA_COLUMNS, GLUE_COLUMNS, MLM_AT_MASK, PaperTable, Study

TEN_FINETUNINGS_CAVEAT = "the paper's scores are medians of ten fine-tunings"
COLUMNS = (*GLUE_COLUMNS, MLM_AT_MASK, *ELECTRA_COLUMNS)
SMALL, BASE = (next(e for e in experiments if e.name == f"electra-{size}") for size in ("small", "base"))


def replace_with_masked_lm(experiment: Experiment) -> Experiment:
    """The discriminator's network, with masked tokens as its only objective."""
    return replace(experiment, objective=MaskedLM(experiment.objective.masking))


def table(study: Study) -> PaperTable:
    usual = BASE.objective
    build_replace_mlm = lambda loss_over: ReplaceMLM(
        generator_width=usual.generator_width, masking=usual.masking, tie=usual.tie, loss_over=loss_over
    )
    rows = {
        "ELECTRA": ("electra", usual, 85.0),
        "All-Tokens MLM": ("electra-all-tokens", build_replace_mlm("all"), 84.3),
        "Replace MLM": ("electra-replace", build_replace_mlm("chosen"), 82.4),
        "ELECTRA 15%": ("electra-15", replace(usual, loss_over="chosen"), 82.4),
        "BERT": ("electra-bert", replace_with_masked_lm(BASE).objective, 82.2),
    }
    none, compute = (None,) * (len(GLUE_COLUMNS) - 1), run_flops(study.build_pretrain_run("electra", BASE))
    made = [
        study.build_row(name, (*none, average), COLUMNS, run, replace(BASE, objective=objective), total_flops=compute)
        for name, (run, objective, average) in rows.items()
    ]
    return study.build_table(
        "electra_t5",
        "ELECTRA, table 5: from BERT to ELECTRA",
        COLUMNS,
        made,
        "FLOPs",
        "the paper does not say in what its rows are equal",
        TEN_FINETUNINGS_CAVEAT,
    )
