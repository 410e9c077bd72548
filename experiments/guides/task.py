"""Guide: a task. Text classification from files in fastText's format, `__label__NAME text` on each line.

    python launch.py train experiments/guides/task.py --with init_from=runs/bert-base root=REVIEWS labels=neg,pos

`REVIEWS` has train.txt and dev.txt. The objective, the head and the scores are those of text classification.
Cost and score: not measured here beyond the test that fine-tunes for a few steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import encoders
from encoders.data.labelled import Example
from encoders.data.row_files import Record, RowError, RowReader
from encoders.finetuning.grids import build_finetuning_grid, count_train_rows, load_run_spec
from encoders.finetuning.recipes import build_recipes
from encoders.tasks.text_tasks import TextTask

PREFIX = "__label__"


@encoders.register
@dataclass(frozen=True)
class FastTextTask(TextTask):
    """Text classification on lines of `__label__NAME text`."""

    name: str = field(default="fasttext", metadata={"not_fingerprinted": True})
    text_columns: tuple[str, ...] = ("text",)
    files: tuple[tuple[str, str], ...] = (("train", "train.txt"), ("dev", "dev.txt"))

    def read_examples(self, root: str, split: str, reader: RowReader) -> Iterator[Example]:
        """Yield the rows of a split. Raises `RowError` for a bad line where the reader stops at it."""
        path = Path(root).expanduser() / dict(self.files)[split]
        with open(path, encoding="utf-8-sig") as file:
            records = (Record(f"{path}:{n}", {"line": line}) for n, line in enumerate(file, 1) if line.strip())
            yield from reader.convert_rows(records, self.parse_line)

    def parse_line(self, record: Record) -> Example:
        label, _, text = record["line"].strip().partition(" ")
        if not label.startswith(PREFIX):
            raise RowError(record.location, f"the line starts with {label!r}, not with {PREFIX}NAME")
        return Example(record.location, (text,), self.parse_label(record.location, label.removeprefix(PREFIX)))


def experiments(init_from: str, root: str, labels: tuple[str, ...], name: str = "fasttext", seeds: int = 1):
    config = load_run_spec(init_from).model
    recipes = build_recipes("bert", name, config, learning_rates=(3e-5,))
    task = FastTextTask(name, labels=labels)
    num_rows = count_train_rows(task, root)
    return build_finetuning_grid(
        f"{Path(init_from).name}-{name}", task, root, recipes, num_rows, num_seeds=seeds, init_from=init_from
    )
