"""The gain from pre-training at small scale: each family pre-trained, or with its initial values.

    python launch.py train pays --with corpus=wiki-1.txt.xz root=GLUE
    python launch.py measure runs/pays-* --with blimp=blimp.jsonl.xz probes=UD_ENGLISH-EWT

Cost at 2 M tokens and without fine-tuning: 15 minutes of one core (Intel Xeon, beside other work). Score: parts of
speech 65.4 % after pre-training and 63.7 % from initial values (BERT), 67.4 and 64.6 % (RoBERTa), 62.5 and 60.4 %
(ALBERT), 64.1 and 63.5 % (ELECTRA).

Every family is pre-trained on 10 M tokens of the corpus, or as many as `--with tokens=2e6` says, and once for a single
step, as a baseline of what is measured without fine-tuning. Both are then fine-tuned on 10,000 rows of SST-2 and on
CoLA, or for `--with tasks=...`.
"""

from dataclasses import replace

from encoders.finetuning.grids import build_finetuning_grid
from encoders.library import albert, bert, electra, roberta
from encoders.sweeps.small_scale import SCALES
from encoders.tasks.glue import GLUE_TASKS, NUM_GLUE_TRAIN_ROWS

SMALL = SCALES["small"]
BASES = {
    name: next(experiment for experiment in module.experiments if experiment.name == f"{name}-base")
    for name, module in {"bert": bert, "roberta": roberta, "albert": albert, "electra": electra}.items()
}


def experiments(
    corpus: tuple[str, ...],
    root: str = "glue",
    runs: str = "runs",
    seeds: int = 3,
    tokens: float = SMALL.num_tokens,
    tasks: tuple[str, ...] = ("SST-2", "CoLA"),
):
    experiments = []
    for family, base in BASES.items():
        base = replace(base, data=replace(base.data, corpus=corpus))
        for suffix, num_tokens in (("pretrained", tokens), ("untrained", SMALL.batch_tokens)):
            run = replace(SMALL.shrink_experiment(base, num_tokens), name=f"pays-{family}-{suffix}")
            experiments.append(run)
            for task in tasks:
                experiments += build_finetuning_grid(
                    f"{run.name}-{task}",
                    GLUE_TASKS[task],
                    f"{root}/{task}",
                    [SMALL.recipe],
                    NUM_GLUE_TRAIN_ROWS[task],
                    init_from=f"{runs}/{run.name}",
                    config=run.model,
                    tokenizer_path=f"{runs}/{run.name}/tokenizer.json",
                    max_train_rows=10_000,
                    num_seeds=seeds,
                )
    return experiments
