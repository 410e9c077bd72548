"""The search for the small scale: each row changes one thing of it, for masked tokens and for replaced ones.

    python launch.py train small_scale --jobs 2 --with corpus=wiki-1.txt.xz probes=UD_ENGLISH-EWT

Measured on one core of an Intel Xeon beside other work, eleven rows at 2 M tokens and one seed
(experiments/results/README.md): 3 to 12 minutes a row. Rotary positions make the difference, 4.6 to 24.1 % at [MASK].

No paper has this table. All runs read as many tokens, so that smaller batches take more steps. The rows of the first
part are a masked language model in ELECTRA's format, and those of the second are ELECTRA. `known_differences` says if
the scale that was chosen can tell what is known.
"""

from dataclasses import replace

from encoders.library.ablations.electra_t5 import BASE, replace_with_masked_lm

from encoders.experiment import Experiment
from encoders.sweeps.paper_table import PaperRow, PaperTable, Study
from encoders.sweeps.score_columns import ELECTRA_COLUMNS, MLM_AT_MASK, ScoreColumn

COLUMNS = (MLM_AT_MASK, ScoreColumn("MLM loss", "mlm_loss", factor=1.0, lower_is_better=True), *ELECTRA_COLUMNS)
# Of a step: tokens, and the lengths of its rows, one after the other.
BATCHES = {
    "rows of 16 alone": (512, (16,)),
    "rows of 128 alone": (512, (128,)),
    "rows of 16, 32, then 64": (512, (16, 32, 64)),
    "1,024 tokens a step": (1024, (64,)),
    "256 tokens a step": (256, (64,)),
}
CHANGES = {
    "learned positions": {"model": {"row_features": None}},
    "2e-3": {"optimizer": {"learning_rate": 2e-3}},
    "5e-4": {"optimizer": {"learning_rate": 5e-4}},
    "warm-up 1,000": {"optimizer": {"warmup_steps": 1000}},
    "8,000 entries": {"model": {"vocab_size": 8000}, "data": {"tokenizer": {"vocab_size": 8000}}},
    "1,024 entries": {"model": {"vocab_size": 1024}, "data": {"tokenizer": {"vocab_size": 1024}}},
    "4 layers of 128": {"model": {"num_layers": 4}},
    "2 layers of 192": {"model": {"hidden_size": 192, "embedding_size": 192, "num_heads": 3, "intermediate_size": 768}},
    "deviation 0.02": {"model": {"init_std": 0.02}},
}
GENERATOR_CHANGES = {
    "weight 50": {"objective": {"rtd_weight": 50.0}},
    "generator 1/2": {"objective": {"generator_width": 0.5}},
    "all embeddings tied": {"objective": {"tie": "embeddings"}},
    "nothing tied": {"objective": {"tie": "none"}},
    "clipped by network": {"optimizer": {"clip_by_network": True}},
}

RUNS_OF_OTHER_TABLES = {
    "MLM, as chosen": "rate-mlm-15",
    "RTD, as chosen": "electra",
    "RTD, generator 1/2": "electra-width-1of2",
    "RTD, all embeddings tied": "electra-tied-embeddings",
    "RTD, nothing tied": "electra-tied-none",
}


def table(study: Study) -> PaperTable:
    study.require_small_scale("small_scale")
    parts = {"MLM": (replace_with_masked_lm(BASE), {}), "RTD": (BASE, GENERATOR_CHANGES)}
    rows = []
    for part, (base, changes_of_part) in parts.items():
        for name, changes in {"as chosen": {}, **CHANGES, **changes_of_part}.items():
            rows.append(build_row(study, f"{part}, {name}", base, changes))
        for name, (batch_tokens, row_lengths) in BATCHES.items():
            scale = replace(study.small_scale, batch_tokens=batch_tokens, row_lengths=row_lengths)
            phases = scale.build_phases(study.num_tokens, base.phases[0].format)
            rows.append(build_row(study, f"{part}, {name}", base, {"phases": phases}))
    return study.build_table("small_scale", "The search for the small scale", COLUMNS, rows, "tokens")


def build_row(study: Study, name: str, base: Experiment, changes: dict) -> PaperRow:
    run_name = f"scale-{name}".lower().replace(" ", "-").replace(",", "")
    return study.build_row(name, (), COLUMNS, RUNS_OF_OTHER_TABLES.get(name, run_name), base, small_changes=changes)
