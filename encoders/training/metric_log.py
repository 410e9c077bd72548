"""Progress on the screen, metrics as JSON lines, and TensorBoard events where its library is installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from encoders.utils.files import write_whole


@dataclass(frozen=True)
class Cadence:
    """How often a run records what: in steps. `heldout` is the number of batches of an evaluation, `keep` of the newest
    checkpoints. The number of skipped updates in a row that stops a run is `patience`."""

    log: int = 100
    evaluate: int = 1000
    save: int = 1000
    keep: int = 2
    heldout: int = 50
    patience: int = 20

    def __post_init__(self):
        for name in ("log", "evaluate", "save", "keep", "heldout", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"cadence.{name}={getattr(self, name)} must be at least 1")


def rows(path: Path) -> Iterator[dict]:
    """The rows of a metrics file; a last line that a crash has torn is left out."""
    if path.exists():
        with open(path, encoding="utf-8") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except ValueError:
                    return


class Log:
    """The metrics of a run: `metrics.jsonl`, in which everything but `time` is the same for the same run.

    Of several processes one writes (`writes`), and the others keep the same rows in memory.
    """

    def __init__(self, folder: Path, resumed: int, total: int, name: str, writes: bool = True):
        path = folder / "metrics.jsonl"
        self.rows = [row for row in rows(path) if row["step"] <= resumed]
        self.file = self.events = None
        if writes:
            write_whole(path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
            self.file = open(path, "a", encoding="utf-8")
            self.events = events(folder / "tensorboard")
        self.bar = progress(total, resumed, name, writes)

    def write(self, step: int, split: str, scores: dict[str, float], time: dict[str, float]) -> None:
        row = {"step": step, "split": split} | scores | {"time": time}
        self.rows.append(row)
        if self.file:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        if self.events:
            for name, value in (scores | time).items():
                self.events.add_scalar(f"{split}/{name}", value, step)

    def advance(self, step: int, text: str = "") -> None:
        self.bar.update(step - self.bar.n)
        if text:
            self.bar.set_postfix_str(text, refresh=False)

    def say(self, line: str) -> None:
        if self.file:
            self.bar.write(line, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()
        if self.file:
            self.file.close()
        if self.events:
            self.events.close()


def progress(total: int, start: int, name: str, shown: bool):
    """A bar with steps, rate and time left, by the mean of all steps so far, else an evaluation would seem to be the
    rate of all to come; on anything but a terminal a line now and then."""
    from tqdm import tqdm

    every = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=total, initial=start, desc=name, unit="step", mininterval=every, maxinterval=every, smoothing=0,
        file=sys.stderr, disable=not shown,
    )  # fmt: skip


def events(folder: Path):
    """A TensorBoard writer, or None where the `tensorboard` extra is not installed."""
    try:
        from tensorboard.summary import Writer
    except ImportError:
        return None
    return Writer(str(folder))
