"""Results as records: one JSON file for each table, from which the table is made without the folders of its runs.

A file has what a run's folder has of each run, by the run's name: its scores by column, before the column's factor, the
number of their test items, cost, text, devices and versions. Runs of several sessions and machines accumulate. The file
also has the study that makes the table, and the settings of each recipe without those of its seeds. For means of rows
and differences of pairs it has the part of the variance that is due to test items.
"""

from __future__ import annotations

import itertools
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any

from encoders.data.spec import PretrainingData
from encoders.experiment import Experiment, list_differences, strip_seeds
from encoders.reporting.comparisons import ItemVariance
from encoders.reporting.page import parse_device_kind
from encoders.reporting.result_sources import RunCost, RunsFolder, Score, describe_training
from encoders.reporting.table_cells import parse_seed
from encoders.reporting.table_results import TableResults, collect_table_results
from encoders.run.folder import RECORD_FILE, RESULT_FILE, read_run_record
from encoders.sweeps.paper_table import PaperRow, PaperTable, Study, parse_task_name
from encoders.sweeps.score_columns import ScoreColumn, list_tasks
from encoders.training.sharding import list_devices
from encoders.utils.buckets import get_modified_at
from encoders.utils.errors import UserError
from encoders.utils.files import NUMBER, DamagedFile, check_shape, read_signed_json, write_signed_json
from encoders.utils.machine import describe_processor, find_commit
from encoders.utils.overrides import shorten_text
from encoders.utils.serialization import fingerprint_content, from_json_value, to_json_value

TEXT_OR_NONE = (str, NoneType)
SESSION_SHAPE = {
    "commit": TEXT_OR_NONE,
    "command": str,
    "processor": str,
    "accelerator": TEXT_OR_NONE,
    "devices": [str],
    "versions": {str: str},
}
RUN_SHAPE = {
    "row": str,
    "seed": int,
    "fingerprint": str,
    "store_key": TEXT_OR_NONE,
    "scores": {str: NUMBER},
    "num_items": {str: int},
    "cost": {"tokens": NUMBER, "flops": NUMBER, "device_seconds": NUMBER, "devices": [str]},
    "corpus": TEXT_OR_NONE,
    "finished": TEXT_OR_NONE,
    "session": int,
}
VARIANCE_SHAPE = {"column": str, "rows": [str], "variance": NUMBER, "num_items": int, "num_seeds": int}
RECORD_SHAPE = {
    "table": str,
    "file": str,
    "study": {"class": str},
    "training": {str: str},
    "settings": {str: dict},
    "sessions": [SESSION_SHAPE],
    "runs": {str: RUN_SHAPE},
    "item_variances": [VARIANCE_SHAPE],
}
PATH_FIELDS = ("data.corpus", "data.root", "data.tokenizer.path")  # the fingerprint covers the contents instead


@dataclass(frozen=True)
class RecordedRuns:
    """A file of results as the source of a table's results."""

    path: Path
    record: dict
    table: PaperTable

    @cached_property
    def item_variances(self) -> Mapping[tuple[str, ...], ItemVariance]:
        entries = self.record["item_variances"]
        return {(e["column"], *e["rows"]): ItemVariance(e["variance"], e["num_items"]) for e in entries}

    @cached_property
    def notes(self) -> list[str]:
        """Return what the runs were trained on, and in which settings today's experiments differ from them."""
        notes = [
            f"Recorded: {describe_session(session, runs)}."
            for number, session in enumerate(self.record["sessions"])
            if (runs := [run for run in self.record["runs"].values() if run["session"] == number])
        ]
        current = collect_settings(self.table.experiments)
        for name, settings in self.record["settings"].items():
            if name in current and (differences := list_differences(settings, current[name])):
                notes.append(f"{name} has other settings in its file today: {shorten_text('; '.join(differences))}.")
        return notes

    def read_score(self, experiment: Experiment, column: ScoreColumn) -> Score | None:
        scores = self.record["runs"].get(experiment.name, {}).get("scores", {})
        return Score(scores[column.name]) if column.name in scores else None

    def find_problem(self, table: PaperTable, experiment: Experiment) -> str | None:
        return None  # a run with a problem is not recorded

    def read_cost(self, experiment: Experiment) -> RunCost | None:
        run = self.record["runs"].get(experiment.name)
        return run and RunCost(**run["cost"] | {"devices": tuple(run["cost"]["devices"])})

    def read_corpus(self, experiment: Experiment) -> str | None:
        return self.record["runs"].get(experiment.name, {}).get("corpus")

    def describe_training(self, row: PaperRow) -> str:
        return self.record["training"].get(row.name) or describe_training(row)


def describe_hardware(session: Mapping) -> str:
    """Return the number and the kind of the devices of a session, and the machine's processor."""
    kinds = Counter(map(parse_device_kind, session["devices"]))
    devices = " and ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{devices} ({', '.join(filter(None, (session['accelerator'], session['processor'])))})"


def describe_session(session: Mapping, runs: Iterable[Mapping]) -> str:
    """Return number, hardware, versions, commit, command and dates of runs that were recorded together."""
    runs = list(runs)
    versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
    dates = sorted({run["finished"] for run in runs if run["finished"]})
    parts = [f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} on {describe_hardware(session)}", versions]
    parts += [f"commit {session['commit']}"] if session["commit"] else []
    parts += [" to ".join(dict.fromkeys((dates[0], dates[-1])))] if dates else []
    return f"{', '.join(parts)}: {session['command']}"


# Files ----------------------------------------------------------------------------------------------------------------


def read_record(path: Path) -> dict:
    """Return the content of a file of results. Raises `UserError` where it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; `table NAME --record {path}` writes one")
    record = read_signed_json(path)
    check_shape(record, RECORD_SHAPE, path)
    if any(not 0 <= run["session"] < len(record["sessions"]) for run in record["runs"].values()):
        raise DamagedFile(f"{path} is damaged: a run names a session that it lacks")
    return record


def parse_study(record: Mapping, path: Path) -> Study:
    """Return the study of a record. Raises `DamagedFile` for another value."""
    try:
        study = from_json_value(record["study"])
    except UserError as error:
        raise DamagedFile(f"{path}: its study cannot be read ({error})") from None
    if not isinstance(study, Study):
        raise DamagedFile(f"{path}: its study is another value, {type(study).__name__}")
    return study


def record_table(path: Path, table: PaperTable, runs_dir: Path, log: Callable[[str], None]) -> None:
    """Write the results of a table's runs into a file, beside those that it has.

    Raises `UserError`, and leaves the file as it was, where it has the results of another table or of other settings.
    """
    record = build_record(table, RunsFolder(runs_dir), log)
    if path.exists():
        record = merge_records(read_record(path), record, path, log)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_signed_json(path, record)


def build_record(table: PaperTable, source: RunsFolder, log: Callable[[str], None]) -> dict:
    """Return the record of a table's runs in a folder; runs that cannot count are logged and left out."""
    if table.study is None or not table.source_file:
        raise UserError(f"{table.name}: only tables that a file makes of a study can be recorded")
    results = collect_table_results(table, source)
    for reason in results.excluded:
        log(f"not recorded: {reason}")
    present = [e for e in table.experiments if (source.path / e.name / RECORD_FILE).exists()]
    experiments = [e for e in present if not source.find_problem(table, e)]
    if not experiments:
        raise UserError(f"{source.path} lacks runs of {table.name} to record")
    scores = collect_scores(table, {experiment.name for experiment in experiments}, source)
    machine, sessions, runs = describe_machine(table), [], {}
    for experiment in experiments:
        session = machine | describe_run_devices(source.path / experiment.name)
        if session not in sessions:
            sessions.append(session)
        run = build_run_entry(experiment, scores[experiment.name], source) | {"session": sessions.index(session)}
        row = next(row for row in table.rows if experiment.name in {run.name for run in list_runs(row)})
        runs[experiment.name] = {"row": row.name} | run
    recorded_rows = [row for row in table.rows if any(run.name in runs for run in row.pretrain_runs)]
    return {
        "table": table.name,
        "file": table.source_file,
        "study": to_json_value(resolve_study(table)),
        "training": {row.name: describe_training(row) for row in recorded_rows},
        "settings": collect_settings(experiments),
        "sessions": sessions,
        "runs": runs,
        "item_variances": list_item_variances(results),
    }


def resolve_study(table: PaperTable) -> Study:
    """Return the study of a table with the number of seeds and the tasks that its runs have, also if by default."""
    tuned = {parse_task_name(run) for row in table.rows for run in row.finetune_runs}
    tasks = tuple(task for task in list_tasks(table.columns) if task in tuned)
    return replace(table.study, seeds=len({parse_seed(e) for e in table.experiments}), tasks=tasks)


def build_run_entry(experiment: Experiment, scores: Mapping[str, Score], source: RunsFolder) -> dict:
    """Return what a record has of a run, its row and session aside; `scores` are by column."""
    folder = source.path / experiment.name
    run_record, cost = read_run_record(folder), source.read_cost(experiment)
    return {
        "seed": parse_seed(experiment),
        "fingerprint": run_record["fingerprint"],
        "store_key": run_record.get("store_key"),
        "scores": {column: score.value for column, score in scores.items()},
        "num_items": {column: len(score.items) for column, score in scores.items() if score.items is not None},
        "cost": vars(cost) | {"devices": list(cost.devices)},
        "corpus": source.read_corpus(experiment) if isinstance(experiment.data, PretrainingData) else None,
        "finished": find_date(folder / RESULT_FILE),
    }


def list_runs(row: PaperRow) -> tuple[Experiment, ...]:
    return (*row.source_runs, *row.pretrain_runs, *row.finetune_runs)


def collect_scores(table: PaperTable, names: Collection[str], source: RunsFolder) -> dict[str, dict[str, Score]]:
    """Return the scores by column of the runs with these names."""
    scores: dict[str, dict[str, Score]] = {name: {} for name in names}
    for row, column in itertools.product(table.rows, (column for column in table.columns if not column.mean_of)):
        for run in itertools.chain(*row.group_by_seed(column).values()):
            if run.name in names and (score := source.read_score(run, column)) is not None:
                scores[run.name][column.name] = score
    return scores


def list_item_variances(results: TableResults) -> list[dict]:
    """Return the variances by items of a table, with the number of seeds that each is from."""
    entries = []
    for (column, *rows), variance in results.item_variances.items():
        seeds = set.intersection(*(set(results.cells[row, column].scores) for row in rows))
        entries.append({"column": column, "rows": rows, **vars(variance), "num_seeds": len(seeds)})
    return entries


def collect_settings(experiments: Iterable[Experiment]) -> dict[str, dict]:
    """Return what the fingerprint covers of each recipe, without seed and paths, by its name without seeds."""
    settings = {}
    for experiment in experiments:
        content = flatten_json(fingerprint_content(replace(experiment, seed=0)))
        settings[strip_seeds(experiment.name)] = {
            path: value for path, value in content.items() if path not in PATH_FIELDS
        }
    return settings


def flatten_json(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested objects and of lists of objects by their paths.

    >>> flatten_json({"model": {"num_layers": 2}, "phases": [{"until_step": 5}]})
    {'model.num_layers': 2, 'phases.0.until_step': 5}
    """
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {str(number): item for number, item in enumerate(value)}
    if not isinstance(value, dict):
        return {path: value}
    children = [flatten_json(item, f"{path}.{name}" if path else name) for name, item in value.items()]
    return {inner: leaf for child in children for inner, leaf in child.items()}


# Merging --------------------------------------------------------------------------------------------------------------


def merge_records(old: dict, new: dict, path: Path, log: Callable[[str], None]) -> dict:
    """Return the record in a file with the runs of a new one, which replace those of the same name.

    Raises `UserError` for another table, other settings, or another text or rows.
    """
    if (old["table"], old["file"]) != (new["table"], new["file"]):
        raise UserError(f"{path} has the results of {old['table']}, and {new['table']} was given; take another file")
    for name, settings in new["settings"].items():
        if differences := list_differences(old["settings"].get(name, settings), settings):
            shown = shorten_text("; ".join(differences))
            raise UserError(f"{path} has {name} with other settings: {shown}; record these runs in another file")
    check_same_contents(old["runs"], new["runs"], path)
    sessions = list(old["sessions"])
    runs = dict(old["runs"])
    for name, run in new["runs"].items():
        run, before = dict(run), runs.get(name)
        session = new["sessions"][run["session"]]
        if before and before["cost"] == run["cost"]:  # the same execution: its machine is that of the first record
            run |= {"session": before["session"], "finished": before["finished"]}
            run |= {key: before[key] | run[key] for key in ("scores", "num_items")}
        else:
            if before and before["scores"]:
                log(f"{path}: another execution of {name} replaces the recorded one")
            sessions += [session] if session not in sessions else []
            run["session"] = sessions.index(session)
        runs[name] = run
    used = sorted({run["session"] for run in runs.values()})
    return new | {
        "study": to_json_value(merge_studies(parse_study(old, path), parse_study(new, path))),
        "training": old["training"] | new["training"],
        "settings": old["settings"] | new["settings"],
        "sessions": [sessions[number] for number in used],
        "runs": {name: run | {"session": used.index(run["session"])} for name, run in runs.items()},
        "item_variances": merge_item_variances(old["item_variances"], new["item_variances"]),
    }


def check_same_contents(old: Mapping[str, dict], new: Mapping[str, dict], path: Path) -> None:
    """Raise `UserError` for runs whose texts or rows, or the run that they start from, have other contents."""
    store_keys = {strip_seeds(name): run["store_key"] for name, run in old.items() if run["store_key"]}
    for name, run in new.items():
        store_key = store_keys.get(strip_seeds(name), run["store_key"])
        has_other_data = run["store_key"] is not None and run["store_key"] != store_key
        if has_other_data or old.get(name, run)["fingerprint"] != run["fingerprint"]:
            fields = (
                "the content of data.corpus or data.root" if has_other_data else "its fingerprint (data or init_from)"
            )
            raise UserError(f"{path} has {strip_seeds(name)} with other data: {fields} differs; take another file")


def merge_studies(old: Study, new: Study) -> Study:
    """Return the later study with the seeds, tasks and measures of both."""
    either = {name: getattr(new, name) or getattr(old, name) for name in ("blimp", "probes", "sts")}
    tasks = tuple(dict.fromkeys((*(old.tasks or ()), *(new.tasks or ()))))
    if old.tasks is None and new.tasks is None:
        tasks = None
    return replace(new, seeds=max(old.seeds or 1, new.seeds or 1), tasks=tasks, **either)


def merge_item_variances(old: Iterable[dict], new: Iterable[dict]) -> list[dict]:
    """Return the variances by items, of two for the same rows that of more seeds, and of the later one if equal."""
    merged: dict[tuple, dict] = {}
    for entry in (*old, *new):
        key = (entry["column"], *entry["rows"])
        if key not in merged or entry["num_seeds"] >= merged[key]["num_seeds"]:
            merged[key] = entry
    return list(merged.values())


# Machine --------------------------------------------------------------------------------------------------------------


def describe_machine(table: PaperTable) -> dict[str, str | None]:
    """Return commit, command and processor at the time of recording, which is best done where runs were trained."""
    return {"commit": find_commit(), "command": format_command(table), "processor": describe_processor()}


def describe_run_devices(folder: Path) -> dict[str, Any]:
    """Return the devices and versions of a run, and this machine's accelerator if it is of the same platform."""
    run_record, device = read_run_record(folder), list_devices()[0]
    kinds = set(map(parse_device_kind, run_record["devices"]))
    is_accelerator = device.platform != "cpu" and parse_device_kind(str(device)) in kinds
    accelerator = device.device_kind if is_accelerator else None  # such as NVIDIA H200
    return {"accelerator": accelerator, "devices": run_record["devices"], "versions": run_record["versions"]}


def format_command(table: PaperTable) -> str:
    """Return the command that trains a table: its file, and what its study sets."""
    defaults, settings = Study(), []
    for name in (f.name for f in fields(Study) if f.name != "runs"):
        value = getattr(table.study, name)
        if value != getattr(defaults, name):
            text = ",".join(value) or "()" if isinstance(value, tuple) else value
            settings.append(shlex.quote(f"{name}={text}"))
    return " ".join(["train", table.source_file, *(["--with", *settings] if settings else [])])


def find_date(path: Path) -> str | None:
    """Return the date of a file in UTC, or None where it is missing."""
    return f"{datetime.fromtimestamp(get_modified_at(path), UTC):%Y-%m-%d}" if path.exists() else None
