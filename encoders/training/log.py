"""Progress on the screen, metrics as JSON lines, and TensorBoard events where its library is installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


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
    """The metrics of a run: `metrics.jsonl`, in which everything but `time` is the same for the same run."""

    def __init__(self, folder: Path, resumed: int, total: int, name: str):
        self.path = folder / "metrics.jsonl"
        kept = [row for row in rows(self.path) if row["step"] <= resumed]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        partial.rename(self.path)
        self.file = open(self.path, "a", encoding="utf-8")
        self.events = events(folder / "tensorboard")
        self.bar = progress(total, resumed, name)

    def write(self, step: int, split: str, scores: dict[str, float], time: dict[str, float]) -> None:
        row = {"step": step, "split": split} | scores | {"time": time}
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
        self.bar.write(line, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()
        self.file.close()
        if self.events:
            self.events.close()


def progress(total: int, start: int, name: str):
    """A bar with steps, rate and time left; on anything but a terminal a line now and then."""
    from tqdm import tqdm

    every = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=total, initial=start, desc=name, unit="step", mininterval=every, maxinterval=every, file=sys.stderr
    )


def events(folder: Path):
    """A TensorBoard writer, or None where the `tensorboard` extra is not installed."""
    try:
        from tensorboard.summary import Writer
    except ImportError:
        return None
    return Writer(str(folder))
