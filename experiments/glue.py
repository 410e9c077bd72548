"""GLUE: any run, trained or imported, on every task that lies in a folder, by the recipe of its paper.

    python launch.py train glue --with start=runs/bert-base root=GLUE
    python launch.py train glue --with start=runs/minilm root=GLUE tasks=RTE,MRPC recipe=bert seeds=3

The folder is in GLUE's layout, TASK/train.tsv and so on; `root=tfds` reads glue/... of TFDS.

`recipe`, without which it is that of the model's family:

- bert: 3 epochs, 32 rows, rates 5e-5, 4e-5, 3e-5, 2e-5 (Devlin et al., 2019, §4.1). The released code has no bias
  correction; `--set optimizer.correction=true` does without the failed runs that this is known for.
- roberta: per task (fairseq, examples/roberta/config/finetuning), weight decay 0.1 on everything.
- albert: per task (Lan et al., 2020, table 14); the dropout is ALBERT's own, in the hidden states alone.
- electra: 3 epochs, 10 of RTE and STS-B, 32 rows, layer-wise decay (Clark et al., 2020, table 7), with the released
  code's weight decay 0.01 (0 in the paper), its decay of the top layer twice, and MRPC and STS-B in both orders.

`rates` and `epochs` take the place of the recipe's. With `mnli=runs/...` RTE, MRPC and STS-B begin with that run, as in
RoBERTa's and ALBERT's best results.
"""

from dataclasses import replace
from typing import Literal

from encoders.downstream.conventions import conventions
from encoders.downstream.glue import ROWS, TASKS, TFDS
from encoders.finetune import Recipe, grid, network
from encoders.training.optimizer import AdamW

# Updates, warm-up, rate, batch.
FAIRSEQ = {
    "CoLA": (5336, 320, 1e-5, 16),
    "MNLI": (123_873, 7432, 1e-5, 32),
    "MRPC": (2296, 137, 1e-5, 16),
    "QNLI": (33_112, 1986, 1e-5, 32),
    "QQP": (113_272, 28_318, 1e-5, 32),
    "RTE": (2036, 122, 2e-5, 16),
    "SST-2": (20_935, 1256, 1e-5, 32),
    "STS-B": (3598, 214, 2e-5, 16),
}
# Rate, batch, ALBERT's dropout, updates, warm-up.
TABLE_14 = {
    "CoLA": (1e-5, 16, 0.0, 5336, 320),
    "STS-B": (2e-5, 16, 0.0, 3598, 214),
    "SST-2": (1e-5, 32, 0.0, 20_935, 1256),
    "MNLI": (3e-5, 128, 0.0, 10_000, 1000),
    "QNLI": (1e-5, 32, 0.0, 33_112, 1986),
    "QQP": (5e-5, 128, 0.1, 14_000, 1000),
    "RTE": (3e-5, 32, 0.1, 800, 200),
    "MRPC": (2e-5, 32, 0.0, 800, 200),
    "WNLI": (2e-5, 16, 0.1, 2000, 250),
}
FROM_MNLI = ("RTE", "MRPC", "STS-B")


def bert(task, model):
    return [Recipe(rate, 32) for rate in (5e-5, 4e-5, 3e-5, 2e-5)]


def roberta(task, model):
    steps, warmup, rate, batch = FAIRSEQ.get(task, FAIRSEQ["RTE"])  # of WNLI there is no file
    adam = AdamW(1.0, 0, decay=0.1, betas=(0.9, 0.98), correction=True, schedule="peak", clip=None, exclude=())
    return [Recipe(rate, batch, steps=steps, warmup=warmup, length=512, optimizer=adam)]


def albert(task, model):
    rate, batch, dropout, steps, warmup = TABLE_14[task]
    changes = (("dropout", dropout), ("attention_dropout", 0.0))
    return [Recipe(rate, batch, steps=steps, warmup=warmup, length=512, model=changes)]


def electra(task, model):
    rate, decay = {256: (3e-4, 0.8), 768: (1e-4, 0.8), 1024: (5e-5, 0.9)}.get(model.hidden, (1e-4, 0.8))
    adam = AdamW(1.0, 0, schedule="product", layer_decay=decay, released_layer_decay=True)
    return [Recipe(rate, 32, epochs=10 if task in ("RTE", "STS-B") else 3, optimizer=adam, both_orders=True)]


RECIPES = {"bert": bert, "roberta": roberta, "albert": albert, "electra": electra}


def experiments(
    start: str,
    root: str = "glue",
    tasks: tuple[str, ...] = tuple(TASKS),
    recipe: Literal["family", "bert", "roberta", "albert", "electra"] = "family",
    seeds: int = 1,
    rates: tuple[float, ...] = (),
    epochs: float | None = None,
    mnli: str | None = None,
):
    model = network(start).model
    usual = RECIPES[conventions(model).name if recipe == "family" else recipe]

    def recipes(task):
        found = usual(task, model)
        found = [replace(found[0], rate=rate) for rate in rates] or found
        return found if epochs is None else [replace(each, epochs=epochs, steps=None) for each in found]

    name = start.rstrip("/").rpartition("/")[2]
    return [
        member
        for task in tasks
        for member in grid(
            f"{name}-{task}",
            TASKS[task],
            f"tfds:{TFDS[task]}" if root == "tfds" else f"{root}/{task}",
            recipes(task),
            ROWS[task],
            seeds=seeds,
            start=mnli if mnli and task in FROM_MNLI else start,
        )
    ]
