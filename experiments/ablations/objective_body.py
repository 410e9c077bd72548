"""Objective and layers: masked tokens and replaced tokens, on BERT's layers and on ModernBERT's; no paper's table.

    python launch.py train objective_body --with corpus=wiki-1.txt.xz glue=GLUE

Measured on one core of an AMD EPYC beside other work, 4 M tokens a masked language model and three seeds
(experiments/results/README.md): half an hour a row. ModernBERT's layers are better with both objectives: 31.2 against
24.7 % at [MASK], 65.0 against 62.8 % of parts of speech. Masked tokens teach more of these than replaced ones.

All rows have the FLOPs of masked tokens on BERT's layers. ModernBERT's second layer attends within a window of 16
tokens; its feed-forward network has two thirds of BERT's inner width, so that its three matrices have the size of
BERT's two. Generators have the layers of their discriminators and half their width.
"""

from dataclasses import replace

from encoders.library.ablations.electra_t5 import BASE, replace_with_masked_lm

from encoders.costs.ledger import run_flops
from encoders.families import modernbert
from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import ELECTRA_COLUMNS, MLM_AT_MASK, SST2

COLUMNS = (SST2, MLM_AT_MASK, *ELECTRA_COLUMNS)
LEARNED_POSITIONS = {"model": {"row_features": None}}  # which small scale would replace
ROW_LENGTHS = (16, 32, 64)  # one after the other: learned positions need short rows at first
MODERN = {"model": {"intermediate_size": 344, "local_window": 16, "global_every": 2}}


def build_short_rows(study: Study) -> dict:
    """Return the phases of a run whose rows have each of `ROW_LENGTHS`."""
    scale = replace(study.small_scale, row_lengths=ROW_LENGTHS)
    return {"phases": scale.build_phases(study.num_tokens, BASE.phases[0].format)}


def table(study: Study) -> PaperTable:
    bert = replace(BASE, objective=replace(BASE.objective, generator_width=1 / 2))
    modern = replace(bert, model=replace(modernbert.BASE, vocab_size=BASE.model.vocab_size, pooling="cls"))
    masked_lm, short_rows = replace_with_masked_lm(bert), build_short_rows(study)
    learned = LEARNED_POSITIONS | short_rows
    masked_name = "body-bert-mlm" if study.is_scaled_down else "rate-mlm-15"  # of the table `mask_rate` as well
    compute = run_flops(study.build_pretrain_run(masked_name, masked_lm, small_changes=learned))
    runs = {
        "MLM, BERT's layers": (masked_name, masked_lm, learned),
        "RTD, BERT's layers": ("body-bert-rtd", bert, learned),
        "MLM, ModernBERT's layers": ("body-modernbert-mlm", replace_with_masked_lm(modern), MODERN | short_rows),
        "RTD, ModernBERT's layers": ("body-modernbert-rtd", modern, MODERN | short_rows),
    }
    rows = []
    for name, (run_name, experiment, changes) in runs.items():
        scaling = dict(small_changes=changes, total_flops=compute)
        rows.append(study.build_row(name, (), COLUMNS, run_name, experiment, **scaling))
    return study.build_table("objective_body", "Objective and layers", COLUMNS, rows, "FLOPs")
