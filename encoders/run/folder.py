"""The folder of a run: names of its files, its record, its lock and its result.

    runs/NAME/
      experiment.json     the experiment, its fingerprint, the sizes of its vocabulary, and the path of its store.
      tokenizer.json.
      checkpoints/        the newest ones and the best one.
      damaged/            checkpoints and metrics that were damaged.
      saved_steps.json    the latest and the best step that were saved.
      metrics.jsonl       a row for each log and each evaluation, numbered and with a checksum.
      times.jsonl         what the seconds of each process were spent on, likewise.
      result.json         the result of a finished run.
      .lock               locked by the process that trains the run, which it names; in a bucket `.lease`.

The record of an imported run holds a model and an objective instead of an experiment, and lacks a store.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from encoders.data.store import Store
from encoders.experiment import Experiment, RunSpec, describe_differences
from encoders.families.conventions import infer_conventions
from encoders.text.tokenization import VOCAB_SHAPE, VocabInfo
from encoders.training.checkpoint import SAVED_STEPS_FILE
from encoders.training.metric_log import METRICS_FILE, TIMES_FILE, find_row_problem, read_metric_rows
from encoders.utils.buckets import make_absolute, parse_path
from encoders.utils.errors import UserError
from encoders.utils.files import (
    NUMBER,
    DamagedFile,
    check_shape,
    hash_file,
    lock_dir,
    lock_owner,
    read_signed_json,
    write_signed_json,
)
from encoders.utils.lease import LEASE_SCHEMES, LEASE_SECONDS, is_lockable
from encoders.utils.serialization import from_json_value, to_json_value

RECORD_FILE, RESULT_FILE, TOKENIZER_FILE = "experiment.json", "result.json", "tokenizer.json"
CHECKPOINTS_FOLDER = "checkpoints"
TRAINED_FILES = (CHECKPOINTS_FOLDER, SAVED_STEPS_FILE, METRICS_FILE, TIMES_FILE, RESULT_FILE)
RECORD_SHAPE = {
    "fingerprint": str,
    "versions": {str: str},
    "devices": [str],
    "facts": VOCAB_SHAPE,
    "experiment": {"model": dict},
}
RESULT_SHAPE = {
    "name": str,
    "steps": int,
    "parameters": int,
    "tokens_per_second": NUMBER,
    "heldout": {str: (*NUMBER, dict)},
}
PATH_FIELD_PREFIXES = ("data.corpus is ", "data.root is ", "data.tokenizer.path is ")


class RunError(UserError):
    """A run that cannot start or resume."""


class RunInUse(RunError):
    """A run that another process trains."""


def open_run_folder(name: str | Path) -> Path:
    """Return the folder of a run, or of runs. Raises `RunError` for a bucket in which nobody can hold a run."""
    if not is_lockable(name):
        kept = f"in folders of this machine and at {' and '.join(f'{scheme}://' for scheme in LEASE_SCHEMES)}"
        raise RunError(f"{name}: runs are kept {kept}; `copy {name} DIR` gets one")
    return parse_path(name)


def lock_run(folder: Path, log: Callable[[str], None] = lambda line: None) -> AbstractContextManager[None]:
    """Hold the lock of a run's folder. Raises `RunInUse` while another process trains the run."""

    def raise_in_use() -> None:
        raise RunInUse(f"{folder} is in use by {lock_owner(folder) or 'another process'}")

    def log_watch(owner: str) -> None:
        log(f"{folder} was in use by {owner}; waiting up to {LEASE_SECONDS:.0f} s for a sign of it")

    return lock_dir(folder, on_wait=raise_in_use, on_watch=log_watch)


def build_run_record(spec: RunSpec, fingerprint: str, vocab: VocabInfo) -> dict:
    """Return the content of `experiment.json`, for trained and imported runs."""
    return {
        "fingerprint": fingerprint,
        "versions": {package.__name__: package.__version__ for package in (jax, np)},
        "devices": [str(device) for device in jax.devices()],
        "facts": vocab.to_json_value(),
        "experiment": to_json_value(spec),
    }


def register_run(folder: Path, experiment: Experiment, store: Store, fingerprint: str) -> None:
    """Record an experiment in its folder, with its tokenizer. Raises `RunError` if the folder has another one."""
    if (folder / RECORD_FILE).exists():
        record = read_run_record(folder)
        if record["fingerprint"] != fingerprint:
            differences = describe_differences(parse_run_spec(record), experiment)
            content = "the content of data.corpus, data.root or init_from, or how this version reads it"
            raise wrong_experiment(folder, differences or [content])
        return
    if found := [name for name in TRAINED_FILES if (folder / name).exists()]:
        remedy = "restore that file; to start over, remove the folder"
        raise RunError(f"{folder} was trained, for it has {', '.join(found)}, but {RECORD_FILE} is missing: {remedy}")
    folder.mkdir(parents=True, exist_ok=True)
    store.tokenizer.save(folder / TOKENIZER_FILE)
    record = build_run_record(experiment, fingerprint, store.vocab)
    store_path = make_absolute(parse_path(experiment.data.store_dir)) / store.key
    write_run_record(folder, record | {"store": str(store_path), "store_key": store.key})


def write_run_record(folder: Path, record: dict) -> None:
    """Write `experiment.json` beside the tokenizer, whose digest it holds."""
    files = {TOKENIZER_FILE: hash_file(folder / TOKENIZER_FILE)}
    write_signed_json(folder / RECORD_FILE, record | {"files": files})


def check_recorded_file(folder: Path, name: str) -> Path:
    """Return the path of a file whose digest the record of a run holds. Raises `RunError` if it has changed."""
    path, record = folder / name, read_run_record(folder)
    if not path.exists():
        raise RunError(f"{path} is missing")
    if "files" in record and hash_file(path) != record["files"].get(name):
        raise RunError(f"{path} is damaged: its content differs from what was written")
    return path


def read_run_record(folder: Path) -> dict:
    """Return the content of a run's `experiment.json`. Raises `RunError` if it is missing or damaged."""
    path = (folder := parse_path(folder)) / RECORD_FILE
    if not path.exists():
        is_published = (folder / "config.json").is_file()
        hint = f"; it is a published checkpoint: `import {folder} RUN` makes it a run" if is_published else ""
        raise RunError(f"{folder} holds no run (no {RECORD_FILE}){hint}")
    return read_run_file(path, RECORD_SHAPE)


def read_run_file(path: Path, shape: dict, remedy: str = "") -> dict:
    try:
        value = read_signed_json(path)
        check_shape(value, shape, path)
        return value
    except DamagedFile as error:
        raise RunError(f"{error}{remedy}") from None


def parse_run_spec(record: dict) -> RunSpec:
    """Return the experiment or imported model of a record; one saved without conventions gets its family's."""
    spec = from_json_value(record["experiment"])
    if not isinstance(spec, RunSpec):
        raise RunError(f"the record of a run holds {type(spec).__name__} instead of an experiment")
    if "conventions" in record["experiment"]["model"]:
        return spec
    return replace(spec, model=replace(spec.model, conventions=infer_conventions(spec.model)))


def read_result(folder: Path) -> dict | None:
    """Return the result of a finished run, else None. Raises `RunError` if it is damaged, or that of another run."""
    path = (folder := parse_path(folder)) / RESULT_FILE
    if not path.exists():
        return None
    remedy = "; remove it to resume the run from its last checkpoint"
    result = read_run_file(path, RESULT_SHAPE, remedy)
    if (folder / RECORD_FILE).exists():
        fingerprint = read_run_record(folder)["fingerprint"]
        if result.get("fingerprint", fingerprint) != fingerprint:
            raise RunError(f"{path} is the result of another run: its fingerprint is not that of {RECORD_FILE}{remedy}")
    return {name: value for name, value in result.items() if name not in ("format", "digest")}


def read_run_rows(folder: Path) -> list[dict]:
    """Return the rows of a run's metrics. Raises `RunError` where a line has changed, rows of a result are lost, or the
    rows are those of another run."""
    try:
        rows = read_metric_rows(folder / METRICS_FILE)
    except DamagedFile as error:
        raise RunError(str(error)) from None
    if problem := find_row_problem(rows, read_result(folder) or {}):
        raise RunError(f"{folder / METRICS_FILE} is damaged: {problem}")
    return rows


def count_saved_steps(folder: Path) -> int | None:
    """Return the step from which a run resumes, or None where no checkpoint was recorded."""
    path = folder / SAVED_STEPS_FILE
    return read_run_file(path, {"latest": int})["latest"] if path.exists() else None


def differing_fields(experiment: Experiment, folder: Path) -> list[str]:
    """Return how an experiment differs from one recorded in `folder`, paths aside: the fingerprint covers contents."""
    if not (parse_path(folder) / RECORD_FILE).exists():
        return []
    recorded = parse_run_spec(read_run_record(folder))
    return [line for line in describe_differences(recorded, experiment) if not line.startswith(PATH_FIELD_PREFIXES)]


def wrong_experiment(folder: Path, differences: list[str]) -> RunError:
    """Return the error for a folder that holds another experiment."""
    remedy = "Give this one its own name (--set name=...) or folder (--runs ...), or remove that folder"
    return RunError(f"{folder} belongs to another experiment: {'; '.join(differences)}. {remedy}")


def wait_for_file(path: Path, timeout: float = 60.0) -> bool:
    """Return whether a file that another process writes appears within `timeout` seconds: network disks lag."""
    deadline = time.monotonic() + timeout
    while not path.exists():
        if time.monotonic() >= deadline:
            return False
        time.sleep(1)
    return True
