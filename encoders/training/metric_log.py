"""Intervals of logging; progress on the screen, metrics as JSON lines, and TensorBoard events where it is installed."""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from encoders.utils.field_checks import check_fields
from encoders.utils.files import write_file_atomically


@dataclass(frozen=True)
class Intervals:
    """Intervals in steps at which a run logs, evaluates and saves, and limits. Raises `ValueError` for one below 1."""

    log_every: int = 100
    eval_every: int = 1000
    save_every: int = 1000
    keep_checkpoints: int = 2
    eval_batches: int = 50  # of an evaluation
    max_bad_updates: int = 20  # skipped updates in a row that end a run

    def __post_init__(self):
        check_fields(self, "intervals.", [(" ".join(vars(self)), lambda value: value >= 1, "at least 1")])


def read_metric_rows(path: Path) -> Iterator[dict]:
    """Yield the rows of a metrics file, up to a last line that a crash left incomplete."""
    if path.exists():
        with open(path, encoding="utf-8") as file, suppress(ValueError):
            for line in file:
                yield json.loads(line)


class MetricLog:
    """Metrics of a run in `metrics.jsonl`, where all but the entry `time` depend on the experiment alone.

    Of several processes only the `is_writer` writes; all hold the same rows in memory.
    """

    def __init__(self, folder: Path, resumed_step: int, total_steps: int, run_name: str, is_writer: bool = True):
        from tqdm import tqdm

        path = folder / "metrics.jsonl"
        self.rows = [row for row in read_metric_rows(path) if row["step"] <= resumed_step]
        self.file = self.event_writer = None
        if is_writer:
            write_file_atomically(path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
            self.file = open(path, "a", encoding="utf-8")
            with suppress(ImportError):  # the extra `tensorboard` is not installed
                from tensorboard.summary import Writer

                self.event_writer = Writer(str(folder / "tensorboard"))
        seconds = 0.5 if sys.stderr.isatty() else 30.0
        steps = {"total": total_steps, "initial": resumed_step, "desc": run_name, "unit": "step"}
        # The rate is the mean of all steps so far: a recent mean would extrapolate the pause of an evaluation.
        pace = {"smoothing": 0, "mininterval": seconds, "maxinterval": seconds}
        self.progress_bar = tqdm(**steps, **pace, file=sys.stderr, disable=not is_writer)

    def write_row(self, step: int, split: str, scores: dict[str, float], timing: dict[str, float]) -> None:
        row = {"step": step, "split": split} | scores | {"time": timing}
        self.rows.append(row)
        if self.file:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        if self.event_writer:
            for name, value in (scores | timing).items():
                self.event_writer.add_scalar(f"{split}/{name}", value, step)

    def advance_progress(self, step: int, status: str = "") -> None:
        self.progress_bar.update(step - self.progress_bar.n)
        if status:
            self.progress_bar.set_postfix_str(status, refresh=False)

    def log_line(self, line: str) -> None:
        if self.file:
            self.progress_bar.write(line, file=sys.stderr)

    def close(self) -> None:
        self.progress_bar.close()
        if self.file:
            self.file.close()
        if self.event_writer:
            self.event_writer.close()
