"""SQuAD 1.1 and 2.0: any run, trained or imported, by the recipe of its family's paper.

    python launch.py train squad --with init_from=runs/bert-base root=SQUAD
    python launch.py train squad --with init_from=runs/bert-base root=SQUAD version=2.0 design=electra_conditioned_span

The folder holds train-v1.1.json and dev-v1.1.json, or those of v2.0, or the files that `train` and `dev` name;
`root=tfds` reads TFDS. `design` is the head for questions without an answer (2.0), by default the family's: null_span
(BERT: [CLS] as answer), classifier (RoBERTa: a classifier on [CLS], §5.2 of the paper), conditioned_span (ALBERT: the
end depends on the start) or electra_conditioned_span.

The recipes are in encoders/finetuning/recipes.py; `rates`, `batches` and `epochs` take the place of theirs. Epochs are
counted in questions, as the released code of BERT does, though a long text is several rows.
"""

from dataclasses import replace
from typing import Literal

from encoders.finetuning.grids import build_finetuning_grid, load_run_spec
from encoders.finetuning.recipes import family_recipes
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
    whose = model.conventions.name if recipe == "family" else recipe
    usual = family_recipes(whose, f"SQuAD{version}", model, rates, batches, epochs)
    asked = None if design == "family" or version == "1.1" else ANSWERABILITY_OBJECTIVES[design]
    name = "-".join([init_from.rstrip("/").rpartition("/")[2], f"squad{version}", *[design] * (asked is not None)])
    count = questions or NUM_SQUAD_TRAIN_QUESTIONS[task.name]
    return build_finetuning_grid(
        name, task, locate_squad_rows(root, task), usual, count, num_seeds=seeds, init_from=init_from, objective=asked
    )
