"""Tables of recorded results: the experiment file and the study of a record make its table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from encoders.cli.experiment_files import ExperimentChoice, find_experiment_file, import_experiment_file
from encoders.reporting.records import RecordedRuns, parse_study, read_record
from encoders.reporting.results_page import format_results_page
from encoders.utils.errors import UserError
from encoders.utils.serialization import ExperimentError


def open_record(path: Path, name: str | None = None) -> RecordedRuns:
    """Return a file of results with its table, made by the experiment file `name`, by default the one it was made by.

    Raises `UserError` for a damaged file, and where the experiment file makes another table.
    """
    record = read_record(path)
    module_path = find_experiment_file(name or record["file"])
    module, study = import_experiment_file(module_path), parse_study(record, path)
    table = replace(module.table(study), source_file=module_path.stem) if hasattr(module, "table") else None
    if table is None or (table.name, table.source_file) != (record["table"], record["file"]):
        raise UserError(f"{path} has the results of {record['table']}, which {module_path} does not make")
    return RecordedRuns(path, record, table)


def check_choice_of_record(choice: ExperimentChoice) -> None:
    """Raise `ExperimentError` for options that choose what a record has already chosen."""
    given = {"--with": choice.with_settings, "--set": choice.settings, "--only": choice.only}
    if options := [option for option, values in given.items() if values]:
        raise ExperimentError(f"{options[0]} is not for --from, whose file has the settings of its runs")


def build_results_page(folder: Path, title: str) -> str:
    """Return the Markdown page of all files of results in a folder. Raises `UserError` for a folder without them."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise UserError(f"{folder} holds no files of results; `table NAME --record {folder}/NAME.json` writes one")
    return format_results_page([open_record(path) for path in paths], title)
