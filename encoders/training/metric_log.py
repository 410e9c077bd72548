"""Intervals of logging; progress on the screen, metrics as JSON lines, and TensorBoard events where it is installed."""

import hashlib
import io
import json
import secrets
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO

from encoders.utils.buckets import copy_file, is_in_bucket
from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields
from encoders.utils.files import NUMBER, DamagedFile, check_shape, write_file_atomically

METRICS_FILE, TIMES_FILE, DAMAGED_FOLDER = "metrics.jsonl", "times.jsonl", "damaged"

ROW_SHAPE = {"step": int, "split": str, "time": {str: NUMBER}}


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


def format_row(number: int, row: dict) -> str:
    """Return a row as a line of the metrics file: JSON with its number and a checksum of both."""
    checksum = zlib.crc32(f"{number} {json.dumps(row)}".encode())
    return json.dumps(row | {"check": f"{number}-{checksum:08x}"}) + "\n"


def parse_row(line: bytes) -> tuple[int | None, dict]:
    """Return the number and the content of a row; rows of earlier versions have no number.

    Raises `ValueError` for a line that has changed.
    """
    row = json.loads(line)
    check = row.pop("check", None)
    number = None if check is None else int(check.partition("-")[0])
    check_shape(row, ROW_SHAPE, "row")
    if number is not None and format_row(number, row).encode() != line + b"\n":
        raise UserError(line)
    return number, row


def scan_metric_rows(path: Path) -> tuple[list[dict], list[str]]:
    """Return the intact rows of a metrics file in their order, and a description of each damage.

    A last line without its end is what a crash leaves, and no damage.
    """
    rows, problems = {}, []
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for line_number, line in enumerate(lines, 1):
        try:
            number, row = parse_row(line)
        except (ValueError, TypeError, AttributeError, RecursionError):
            problems.append(f"line {line_number} is damaged")
            continue
        number = line_number if number is None else number
        if number in rows:
            problems.append(f"line {line_number} repeats another")
        elif rows and number < max(rows):
            problems.append(f"line {line_number} is out of order")
        rows[number] = row
    if missing := sorted(set(range(1, max(rows, default=0) + 1)) - set(rows)):
        problems.append(f"of {max(rows)} rows {len(missing)} are lost, the first is row {missing[0]}")
    return [rows[number] for number in sorted(rows)], problems


def read_metric_rows(path: Path) -> list[dict]:
    """Return the rows of a metrics file. Raises `DamagedFile` where a line has changed or is missing."""
    rows, problems = scan_metric_rows(path)
    if problems:
        raise DamagedFile(f"{path} is damaged: {'; '.join(problems)}")
    return rows


def digest_metric_rows(rows: list[dict]) -> str:
    """Return 16 hexadecimal digits that two runs share if their rows are equal, apart from `time`."""
    content = [{name: value for name, value in row.items() if name != "time"} for row in rows]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def find_row_problem(rows: list[dict], notes: Mapping) -> str | None:
    """Return how rows differ from those whose number and digest a checkpoint or a result has, if they do."""
    if (expected := notes.get("metric_rows", len(rows))) != len(rows):
        return f"it holds {len(rows)} of {expected} rows"
    digest = notes.get("metric_digest")
    return "its rows are those of another run" if digest and digest != digest_metric_rows(rows) else None


class MetricLog:
    """Metrics of a run in `metrics.jsonl`, where all but the entry `time` depend on the experiment alone.

    Of several processes only the `is_writer` writes; all hold the same rows in memory.
    """

    def __init__(
        self,
        folder: Path,
        resumed_step: int,
        total_steps: int,
        run_name: str,
        is_writer: bool = True,
        notes: Mapping = MappingProxyType({}),
        log: Callable[[str], None] = print,
    ):
        """Keep the rows up to `resumed_step`, of which `notes` of the checkpoint have the number and the digest.

        A damaged file is copied into the folder of damaged files, and `log` says what is wrong with it.
        """
        from tqdm import tqdm

        path = folder / METRICS_FILE
        rows, problems = scan_metric_rows(path)
        self.rows = [row for row in rows if row["step"] <= resumed_step]
        if problem := find_row_problem(self.rows, notes):
            problems.append(f"up to step {resumed_step} {problem}")
        self.file = self.event_writer = None
        if is_writer:
            self.file = reopen_rows(path, self.rows, problems, log)
            self.event_writer = open_event_writer(folder, log)
        seconds = 0.5 if sys.stderr.isatty() else 30.0
        steps = {"total": total_steps, "initial": resumed_step, "desc": run_name, "unit": "step"}
        # The rate is the mean of all steps so far: a recent mean would extrapolate the pause of an evaluation.
        pace = {"smoothing": 0, "mininterval": seconds, "maxinterval": seconds}
        self.progress_bar = tqdm(**steps, **pace, file=sys.stderr, disable=not is_writer)

    def to_notes(self) -> dict:
        """Return what a checkpoint knows of the rows."""
        return {"metric_rows": len(self.rows), "metric_digest": digest_metric_rows(self.rows)}

    def write_row(self, step: int, split: str, scores: dict, timing: dict[str, float]) -> None:
        row = {"step": step, "split": split} | scores | {"time": timing}
        self.rows.append(row)
        if self.file:
            self.file.write(format_row(len(self.rows), row))
            self.file.flush()
        if self.event_writer:
            numbers = {name: score for name, score in scores.items() if not isinstance(score, dict)}
            for name, value in (numbers | timing).items():
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


def open_event_writer(folder: Path, log: Callable[[str], None]):
    """Return a writer of TensorBoard's events, or None where the extra `tensorboard` is not installed."""
    try:
        from tensorboard.summary import Writer
    except ImportError:
        return None
    if is_in_bucket(folder):
        log(f"{folder}: no TensorBoard events in a bucket; {METRICS_FILE} has every number")
        return None
    return Writer(str(folder / "tensorboard"))


def reopen_rows(path: Path, rows: list[dict], problems: list[str], log: Callable[[str], None]) -> IO[str]:
    """Write intact rows anew and return the file, open for more; a damaged file is copied, and `log` says so."""
    if problems:
        log(f"{path} is damaged: {'; '.join(problems)}; the intact rows are kept{copy_damaged(path)}")
    lines = "".join(format_row(number, row) for number, row in enumerate(rows, 1))
    write_file_atomically(path, lines.encode())
    return BucketLog(path, lines) if is_in_bucket(path) else open(path, "a", encoding="utf-8")


class BucketLog(io.StringIO):
    """Text file in a bucket, to which lines are appended: each `flush` writes it as a whole."""

    def __init__(self, path: Path, content: str):
        super().__init__(content)
        self.path = path
        self.seek(0, io.SEEK_END)

    def flush(self) -> None:
        write_file_atomically(self.path, self.getvalue().encode())


def copy_damaged(path: Path) -> str:
    """Copy a damaged file, if there is one, to the folder of damaged files, and return where as a clause."""
    if not path.exists():
        return ""
    copy = path.parent / DAMAGED_FOLDER / f"{path.name}-{secrets.token_hex(4)}"
    copy.parent.mkdir(exist_ok=True)
    copy_file(path, copy)
    return f", and the file as it was in {copy}"
