"""Progress on the screen, metrics as JSON lines, and TensorBoard events where its library is installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from encoders.utils.files import write_file_atomically


@dataclass(frozen=True)
class Intervals:
    """How often a run records what: in steps. `heldout` is the number of batches of an evaluation, `keep` of the newest
    checkpoints. The number of skipped updates in a row that stops a run is `patience`."""

    log_every: int = 100
    eval_every: int = 1000
    save_every: int = 1000
    keep_checkpoints: int = 2
    eval_batches: int = 50
    max_bad_updates: int = 20

    def __post_init__(self):
        for name in ("log_every", "eval_every", "save_every", "keep_checkpoints", "eval_batches", "max_bad_updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"intervals.{name}={getattr(self, name)} must be at least 1")


def read_metric_rows(path: Path) -> Iterator[dict]:
    """The rows of a metrics file; a last line that a crash has torn is left out."""
    if path.exists():
        with open(path, encoding="utf-8") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except ValueError:
                    return


class MetricLog:
    """The metrics of a run: `metrics.jsonl`, in which everything but `time` is the same for the same run.

    Of several processes one writes (`writes`), and the others keep the same rows in memory.
    """

    def __init__(self, folder: Path, resumed_step: int, total_steps: int, run_name: str, is_writer: bool = True):
        path = folder / "metrics.jsonl"
        self.rows = [row for row in read_metric_rows(path) if row["step"] <= resumed_step]
        self.file = self.event_writer = None
        if is_writer:
            write_file_atomically(path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
            self.file = open(path, "a", encoding="utf-8")
            self.event_writer = open_event_writer(folder / "tensorboard")
        self.progress_bar = make_progress_bar(total_steps, resumed_step, run_name, is_writer)

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


def make_progress_bar(total_steps: int, start_step: int, run_name: str, is_shown: bool):
    """A bar with steps, rate and time left, by the mean of all steps so far, else an evaluation would seem to be the
    rate of all to come; on anything but a terminal a line now and then."""
    from tqdm import tqdm

    every = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=total_steps, initial=start_step, desc=run_name, unit="step", mininterval=every, maxinterval=every, smoothing=0,
        file=sys.stderr, disable=not is_shown,
    )  # fmt: skip


def open_event_writer(folder: Path):
    """A TensorBoard writer, or None where the `tensorboard` extra is not installed."""
    try:
        from tensorboard.summary import Writer
    except ImportError:
        return None
    return Writer(str(folder))
