"""SQuAD 1.1 and 2.0: any run, trained or imported, by the recipe of its family's paper.

    python launch.py train squad --with start=runs/bert-base root=SQUAD
    python launch.py train squad --with start=runs/bert-base root=SQUAD version=2.0 design=electra

The folder holds train-v1.1.json and dev-v1.1.json, or those of v2.0, or the files that `train` and `dev` name;
`root=tfds` reads TFDS. Whether there is an answer (2.0) is said as the family does it, or by `design`: null (BERT:
[CLS] as answer), judged (RoBERTa: a classifier, §5.2 of the paper), albert or electra (an end that depends on the
start).

- bert: 5e-5, 32 rows, 3 epochs; 2.0: 3e-5, 24 rows, 2 epochs (README of the released code). Rows of 384.
- roberta: 1.5e-5, 48 rows, 2 epochs, warm-up 6 % (table 10).
- albert: table 14. electra: 32 rows, 2 epochs, rows of 512, layer-wise decay (table 7).

Epochs are counted in questions, as the released code of BERT does, though a long text is several rows.
"""

from dataclasses import replace
from typing import Literal

from encoders.downstream.conventions import ALBERT, BERT, ELECTRA, ROBERTA, conventions
from encoders.downstream.squad import V1, V2
from encoders.finetune import Recipe, grid, network
from encoders.training.optimizer import AdamW

TASKS = {"1.1": V1, "2.0": V2}
QUESTIONS = {"1.1": 87_599, "2.0": 130_319}
TFDS = {"1.1": "tfds:squad", "2.0": "tfds:squad/v2.0"}
DESIGNS = {"null": BERT, "judged": ROBERTA, "albert": ALBERT, "electra": ELECTRA}


def bert(version, model):
    return Recipe(5e-5, 32, 3, length=384) if version == "1.1" else Recipe(3e-5, 24, 2, length=384)


def roberta(version, model):
    adam = AdamW(1.0, 0, betas=(0.9, 0.98), correction=True, schedule="peak", clip=None, exclude=())
    return Recipe(1.5e-5, 48, 2, warmup=0.06, length=512, optimizer=adam)


def albert(version, model):
    changes = (("dropout", 0.0), ("attention_dropout", 0.0))
    if version == "1.1":
        return Recipe(5e-5, 48, steps=3649, warmup=365, length=384, model=changes)
    return Recipe(3e-5, 48, steps=8144, warmup=814, length=512, model=changes)


def electra(version, model):
    rate, decay = {256: (3e-4, 0.8), 768: (1e-4, 0.8), 1024: (5e-5, 0.9)}.get(model.hidden, (1e-4, 0.8))
    adam = AdamW(1.0, 0, schedule="product", layer_decay=decay, released_layer_decay=True)
    return Recipe(rate, 32, 2, length=512, optimizer=adam)


RECIPES = {"bert": bert, "roberta": roberta, "albert": albert, "electra": electra}


def experiments(
    start: str,
    root: str = "squad",
    version: Literal["1.1", "2.0"] = "1.1",
    design: Literal["family", "null", "judged", "albert", "electra"] = "family",
    recipe: Literal["family", "bert", "roberta", "albert", "electra"] = "family",
    train: str | None = None,
    dev: str | None = None,
    questions: int | None = None,
    rate: float | None = None,
    epochs: float | None = None,
    seeds: int = 1,
):
    model = network(start).model
    family, task = conventions(model), TASKS[version]
    files = dict(task.files) | {split: name for split, name in (("train", train), ("dev", dev)) if name}
    task = replace(task, files=tuple(files.items()))
    usual = RECIPES[family.name if recipe == "family" else recipe](version, model)
    usual = usual if rate is None else replace(usual, rate=rate)
    usual = usual if epochs is None else replace(usual, epochs=epochs, steps=None)
    asked = None if design == "family" or version == "1.1" else DESIGNS[design].unanswerable
    name = "-".join([start.rstrip("/").rpartition("/")[2], f"squad{version}", *[design] * (asked is not None)])
    where = TFDS[version] if root == "tfds" else root
    return grid(name, task, where, [usual], questions or QUESTIONS[version], seeds=seeds, start=start, objective=asked)
