"""A task of your own: any run, trained or imported, on rows of one text or two with a class or a number.

    python launch.py train own --with start=runs/bert-base root=REVIEWS texts=title,body label=stars labels=1,2,3

The folder has `train` and `dev` as .tsv, .csv or .jsonl with those columns; without `labels` the label is a number. The
recipe is BERT's for GLUE at one rate; `rates`, `batches`, `epochs` and `seeds` make a grid.
"""

from pathlib import Path

from encoders.data.row_files import Reader
from encoders.finetuning.grids import grid, network
from encoders.finetuning.recipes import recipes
from encoders.tasks.text_tasks import Texts
from encoders.utils.overrides import ExperimentError

ENDINGS = (".tsv", ".csv", ".jsonl")


def experiments(
    start: str,
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
    files = tuple((split, file(root, split)) for split in ("train", "dev"))
    task = Texts(name, texts, label, labels, files=files)
    reader = Reader("skip")  # training stops at bad rows, unless told to skip them
    rows = sum(1 for _ in task.read(root, "train", reader))
    if not rows:
        raise ExperimentError(f"no row can be used; the first one: {reader.skipped[0]}")
    whole = f"{start.rstrip('/').rpartition('/')[2]}-{name}"
    usual = recipes("bert", name, network(start).model, rates, batches, epochs)
    return grid(whole, task, root, usual, rows, seeds=seeds, start=start)


def file(root: str, split: str) -> str:
    """The name of the file that has a split's rows. Raises `ExperimentError` where there is none, or more than one."""
    names = [f"{split}{ending}" for ending in ENDINGS]
    found = [name for name in names if (Path(root).expanduser() / name).is_file()]
    if len(found) != 1:
        raise ExperimentError(f"{root} has {' and '.join(found) or 'none'} of {', '.join(names)}; it needs one")
    return found[0]
