"""Fine-tuning on a task of your own: rows of one or two texts with a class or a number.

    python launch.py train own --with init_from=runs/bert-base root=REVIEWS texts=title,body label=stars labels=1,2,3

Cost and score: not measured here; they depend on the rows.

The folder has `train` and `dev` as .tsv, .csv or .jsonl with those columns. Without `labels` they are those of the
training rows; a column of numbers is one to predict, unless it holds at most 20 different integers. `labels=number`
makes it one in any case. Texts are cut at `length` tokens, by default the model's positions.

The recipe is that of BERT for GLUE at one learning rate; `rates`, `batches`, `epochs` and `seeds` span a grid.
"""

from pathlib import Path

from encoders.data.row_files import Record, read_records
from encoders.finetuning.grids import build_finetuning_grid, count_train_rows, load_run_spec
from encoders.finetuning.recipes import build_recipes, set_row_length
from encoders.tasks.text_tasks import TextTask
from encoders.utils.serialization import ExperimentError

FILE_ENDINGS = (".tsv", ".csv", ".jsonl")
MAX_INTEGER_CLASSES = 20


def experiments(
    init_from: str,
    root: str,
    texts: tuple[str, ...] = ("text",),
    label: str = "label",
    labels: tuple[str, ...] = (),
    name: str = "own",
    length: int | None = None,
    rates: tuple[float, ...] = (3e-5,),
    batches: tuple[int, ...] = (),
    epochs: tuple[float, ...] = (),
    seeds: int = 1,
):
    files = tuple((split, find_split_file(root, split)) for split in ("train", "dev"))
    model = load_run_spec(init_from).model
    labels = labels or infer_labels(Path(root).expanduser() / files[0][1], label)
    task = TextTask(name, texts, label, () if labels == ("number",) else labels, files=files)
    run_name = f"{init_from.rstrip('/').rpartition('/')[2]}-{name}"
    recipes = set_row_length(build_recipes("bert", name, model, rates, batches, epochs), length, model)
    num_rows = count_train_rows(task, root)
    return build_finetuning_grid(run_name, task, root, recipes, num_rows, num_seeds=seeds, init_from=init_from)


def find_split_file(root: str, split: str) -> str:
    """Return the name of the file with the rows of a split. Raises `ExperimentError` unless exactly one exists."""
    accepted = [f"{split}{ending}" for ending in FILE_ENDINGS]
    existing = [name for name in accepted if (Path(root).expanduser() / name).is_file()]
    if len(existing) != 1:
        raise ExperimentError(f"{root} has {' and '.join(existing) or 'none'} of {', '.join(accepted)}; it needs one")
    return existing[0]


def infer_labels(path: Path, column: str) -> tuple[str, ...]:
    """Return the different values of a column, or ("number",) for numbers. Raises `RowError` for a missing column."""
    values = {
        str(row[column]) for row in read_records(path) if isinstance(row, Record) and row[column] not in ("", None)
    }
    try:
        numbers = {value: float(value) for value in values}
    except ValueError:
        return tuple(sorted(values))
    if len(numbers) > MAX_INTEGER_CLASSES or not all(number.is_integer() for number in numbers.values()):
        return ("number",)
    return tuple(sorted(numbers, key=numbers.get))
