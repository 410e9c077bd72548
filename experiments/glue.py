"""GLUE: any run, trained or imported, on every task that lies in a folder, by the recipe of its paper.

    python launch.py train glue --with start=runs/bert-base root=GLUE
    python launch.py train glue --with start=runs/minilm root=GLUE tasks=RTE,MRPC recipe=bert seeds=3
    python launch.py train glue --with start=runs/roberta root=GLUE tasks=RTE rates=1e-5,2e-5 batches=16,32 epochs=10

The folder is in GLUE's layout, TASK/train.tsv and so on; `root=tfds` reads glue/... of TFDS.

`recipe` names whose recipe it is (encoders/recipes.py); without it that of the model's family. `rates`, `batches` and
`epochs` take the place of the recipe's, and span a grid. `--set stop_after=2` ends a run two evaluations after its
best. With `mnli=runs/...` RTE, MRPC and STS-B begin with that run, as in RoBERTa's and ALBERT's best results.
"""

from typing import Literal

from encoders.finetuning.grids import grid, network
from encoders.finetuning.recipes import recipes
from encoders.tasks.conventions import conventions
from encoders.tasks.glue import ROWS, TASKS, named, rows_in

FROM_MNLI = ("RTE", "MRPC", "STS-B")


def experiments(
    start: str,
    root: str = "glue",
    tasks: tuple[str, ...] = tuple(TASKS),
    recipe: Literal["family", "bert", "roberta", "albert", "electra"] = "family",
    seeds: int = 1,
    rates: tuple[float, ...] = (),
    batches: tuple[int, ...] = (),
    epochs: tuple[float, ...] = (),
    mnli: str | None = None,
):
    model = network(start).model
    family = conventions(model).name if recipe == "family" else recipe
    name = start.rstrip("/").rpartition("/")[2]
    return [
        member
        for task in tasks
        for member in grid(
            f"{name}-{task}",
            named(task),
            rows_in(root, task),
            recipes(family, task, model, rates, batches, epochs),
            ROWS[task],
            seeds=seeds,
            start=mnli if mnli and task in FROM_MNLI else start,
        )
    ]
