"""Measures: what a trained encoder has learned, computed from the parameters of a run and kept in its folder."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from encoders.inference.predictor import Predictor, load_predictor
from encoders.run.folder import RunError, count_saved_steps, open_run_folder, read_run_record
from encoders.run.run import Run
from encoders.training import distributed
from encoders.utils.errors import UserError
from encoders.utils.files import (
    NUMBER,
    DamagedFile,
    check_shape,
    hash_file,
    lock_dir,
    read_signed_json,
    write_signed_json,
)
from encoders.utils.serialization import from_json_value, to_json_value

MEASURES_FOLDER = "measures"  # of a run
MEASUREMENT_SHAPE = {
    "fingerprint": str,
    "name": str,
    "step": int,
    "data": {str: str},
    "scores": {str: NUMBER},
    "items": {str: str},
}


@dataclass(frozen=True)
class Measurement:
    """Scores by name, and for a score that is a mean over test items the value of each item, in the order of its file.

    `items` have values from 0 to 1 in steps of 1/2, such as right, tied and wrong.
    """

    scores: dict[str, float]
    items: dict[str, np.ndarray] = field(default_factory=dict)


class Measure:
    """Base class of measures, frozen dataclasses registered under a name, which implement `compute`.

    `name` begins the names of all scores. A measure of data has a field `path`, of a file or folder.
    """

    name: ClassVar[str]

    @property
    def main_scores(self) -> tuple[str, ...]:
        """Names of the scores that summaries show."""
        return (self.name,)

    def list_files(self) -> Sequence[Path]:
        """Return the files that the measure reads. Raises `UserError` for a path without them."""
        return ()

    def find_problem(self, run: Run) -> str | None:
        """Return why a run cannot be measured, such as a head that it lacks, or None."""
        return None

    def compute(self, predictor: Predictor) -> Measurement:
        raise NotImplementedError


MeasuredStep = tuple[Measure, int, Measurement]  # what was measured, the step of the run, and the result


def find_measurement_file(folder: Path, measure: Measure, step: int) -> Path:
    """Return the file of a measure at a step of a run, named by its settings and the name of its data."""
    settings = to_json_value(measure)
    if path := settings.get("path"):
        settings["path"] = Path(path).name
    digest = hashlib.sha256(json.dumps([settings, step], sort_keys=True).encode()).hexdigest()[:8]
    return folder / MEASURES_FOLDER / f"{measure.name}-{digest}.json"


def read_measurement(folder: Path, measure: Measure) -> Measurement | None:
    """Return what was measured of a run at its newest step, or None before it is. Raises `RunError`.

    The data of the measure need not be there.
    """
    step = count_saved_steps(folder)
    path = None if step is None else find_measurement_file(folder, measure, step)
    return parse_measurement(read_measurement_file(path)) if path and path.exists() else None


def list_measurements(folder: Path) -> list[MeasuredStep]:
    """Return what was measured of a run. Raises `RunError` for a damaged file."""
    contents = map(read_measurement_file, sorted((folder / MEASURES_FOLDER).glob("*.json")))
    return [(from_json_value(c["measure"]), c["step"], parse_measurement(c)) for c in contents]


def read_measurement_file(path: Path) -> dict:
    """Return the content of a measurement's file. Raises `RunError` for a damaged one, and for one of another run."""
    try:
        content = read_signed_json(path)
        check_shape(content, MEASUREMENT_SHAPE, path)
    except DamagedFile as error:
        raise RunError(f"{error}; remove it to measure again") from None
    if content["fingerprint"] != read_run_record(path.parent.parent)["fingerprint"]:
        raise RunError(f"{path} was measured of another run; remove it to measure again")
    return content


def parse_measurement(content: dict) -> Measurement:
    items = {name: unpack_items(text) for name, text in content["items"].items()}
    return Measurement(content["scores"], items)


def load_or_measure(
    folder: str | Path,
    measures: Sequence[Measure],
    step_name: str = "latest",
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Measurement]:
    """Return the measurements of a run by the names of the measures; what is not in its folder yet is computed.

    Measures that a run cannot have are logged and left out, and among several processes all of them are. Raises
    `RunError` for a run without checkpoints.
    """
    folder = open_run_folder(folder)
    if distributed.is_multi_process():
        log(f"{folder} is not measured, which one process does; run `measure` or the same command in one process")
        return {}
    opened, predictor, found = Run.open(folder), None, {}
    step = find_step(opened, step_name)
    with lock_dir(folder / MEASURES_FOLDER, lambda: log(f"{folder}: another process measures it; waiting")):
        for measure in measures:
            if problem := measure.find_problem(opened):
                log(f"{opened.spec.name}: {measure.name} is left out: {problem}")
                continue
            path, digests = find_measurement_file(folder, measure, step), hash_files(measure)
            content = read_measurement_file(path) if path.exists() else {"data": None}
            if content["data"] != digests:
                predictor = predictor or load_predictor(folder, str(step))
                log(f"{opened.spec.name}: measuring {measure.name}")
                content = describe_measurement(opened, measure, step, digests, measure.compute(predictor))
                path.parent.mkdir(exist_ok=True)
                write_signed_json(path, content)
            found[measure.name] = parse_measurement(content)
    return found


def find_step(run: Run, step_name: str) -> int:
    """Return the step of a checkpoint by its name. Raises `RunError` where there is none."""
    with closing(run.open_checkpoints()) as checkpoints:
        names = run.name_steps(checkpoints)
    if step_name not in names:
        raise RunError(f"--step {step_name}: {run.folder} has {', '.join(names)}")
    return names[step_name]


def hash_files(measure: Measure) -> dict[str, str]:
    """Return the SHA-256 of each file that a measure reads, by the names of its folder and its own."""
    return {f"{path.parent.name}/{path.name}": hash_file(path) for path in measure.list_files()}


def describe_measurement(
    run: Run, measure: Measure, step: int, digests: dict[str, str], measurement: Measurement
) -> dict:
    """Return the content of a measurement's file."""
    content = {"fingerprint": read_run_record(run.folder)["fingerprint"], "step": step, "data": digests}
    content |= {"name": measure.name, "measure": to_json_value(measure)}
    items = {name: pack_items(values) for name, values in measurement.items.items()}
    return content | {"scores": dict(measurement.scores), "items": items}


def pack_items(values: np.ndarray) -> str:
    """Return values of 0, 1/2 and 1 as text.

    >>> unpack_items(pack_items(np.array([0, 0.5, 1]))).tolist()
    [0.0, 0.5, 1.0]
    """
    return base64.b64encode(np.round(np.asarray(values) * 2).astype(np.uint8).tobytes()).decode()


def unpack_items(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8) / 2


def check_path(path: str, name: str) -> Path:
    """Return the path of a measure's data. Raises `UserError` where nothing is there."""
    if not path:
        raise UserError(f"{name}.path is missing: it names the file or folder of the data")
    found = Path(path).expanduser()
    if not found.exists():
        raise UserError(f"{name}: {path} does not exist")
    return found


def merge_scores(measurements: Mapping[str, Measurement]) -> dict[str, float]:
    """Return the scores of several measures by name."""
    return {name: score for measurement in measurements.values() for name, score in measurement.scores.items()}
