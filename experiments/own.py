"""A task of your own: any run, trained or imported, on rows of one text or two with a class or a number.

    python launch.py train own --with init_from=runs/bert-base root=REVIEWS texts=title,body label=stars labels=1,2,3

The folder has `train` and `dev` as .tsv, .csv or .jsonl with those columns; without `labels` the label is a number. The
recipe is BERT's for GLUE at one rate; `rates`, `batches`, `epochs` and `seeds` make a grid.
"""

from pathlib import Path

from encoders.data.row_files import RowReader
from encoders.finetuning.grids import build_finetuning_grid, load_run_spec
from encoders.finetuning.recipes import family_recipes
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
    reader = RowReader("skip")  # training stops at bad rows, unless told to skip them
    rows = sum(1 for _ in task.read_examples(root, "train", reader))
    if not rows:
        raise ExperimentError(f"no row can be used; the first one: {reader.skipped_rows[0]}")
    whole = f"{init_from.rstrip('/').rpartition('/')[2]}-{name}"
    usual = family_recipes("bert", name, load_run_spec(init_from).model, rates, batches, epochs)
    return build_finetuning_grid(whole, task, root, usual, rows, num_seeds=seeds, init_from=init_from)


def find_split_file(root: str, split: str) -> str:
    """The name of the file that has a split's rows. Raises `ExperimentError` where there is none, or more than one."""
    names = [f"{split}{ending}" for ending in FILE_ENDINGS]
    found = [name for name in names if (Path(root).expanduser() / name).is_file()]
    if len(found) != 1:
        raise ExperimentError(f"{root} has {' and '.join(found) or 'none'} of {', '.join(names)}; it needs one")
    return found[0]
