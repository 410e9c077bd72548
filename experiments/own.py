"""Fine-tuning on a task of your own: rows of one or two texts with a class or a number.

    python launch.py train own --with init_from=runs/bert-base root=REVIEWS texts=title,body label=stars labels=1,2,3

Cost and score: not measured here; they depend on the rows.

The folder has `train` and `dev` as .tsv, .csv or .jsonl with those columns. Without `labels` the label is a number.
The recipe is that of BERT for GLUE at one learning rate; `rates`, `batches`, `epochs` and `seeds` span a grid.
"""

from pathlib import Path

from encoders.data.row_files import RowReader
from encoders.finetuning.grids import build_finetuning_grid, load_run_spec
from encoders.finetuning.recipes import build_recipes
from encoders.tasks.text_tasks import TextTask
from encoders.utils.serialization import ExperimentError

FILE_ENDINGS = (".tsv", ".csv", ".jsonl")


def experiments(
    init_from: str,
    root: str,
    texts: tuple[str, ...] = ("text",),
    label: str = "label",
    labels: tuple[str, ...] = (),
    name: str = "own",
    rates: tuple[float, ...] = (3e-5,),
    batches: tuple[int, ...] = (),
    epochs: tuple[float, ...] = (),
    seeds: int = 1,
):
    files = tuple((split, find_split_file(root, split)) for split in ("train", "dev"))
    task = TextTask(name, texts, label, labels, files=files)
    reader = RowReader("skip")  # bad rows stop the training run later, unless it skips them too
    num_rows = sum(1 for _ in task.read_examples(root, "train", reader))
    if not num_rows:
        raise ExperimentError(f"{root} has no usable row in the split train; the first one: {reader.skipped_rows[0]}")
    run_name = f"{init_from.rstrip('/').rpartition('/')[2]}-{name}"
    recipes = build_recipes("bert", name, load_run_spec(init_from).model, rates, batches, epochs)
    return build_finetuning_grid(run_name, task, root, recipes, num_rows, num_seeds=seeds, init_from=init_from)


def find_split_file(root: str, split: str) -> str:
    """Return the name of the file with the rows of a split. Raises `ExperimentError` unless exactly one exists."""
    accepted = [f"{split}{ending}" for ending in FILE_ENDINGS]
    existing = [name for name in accepted if (Path(root).expanduser() / name).is_file()]
    if len(existing) != 1:
        raise ExperimentError(f"{root} has {' and '.join(existing) or 'none'} of {', '.join(accepted)}; it needs one")
    return existing[0]
