"""Table of the measurements of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from encoders.measures.base import MeasuredStep
from encoders.reporting.table_formats import ReportTable
from encoders.run.time_account import read_time_report


def build_measure_table(measured: Mapping[Path, Sequence[MeasuredStep]]) -> ReportTable | None:
    """Return the main scores of what was measured of runs, a row for each run and step; None if nothing was.

    Its hours are those of training with all restarts, without the time between them; an imported run has none.
    """
    rows: dict[tuple[Path, int], dict[str, float]] = {}
    for folder, steps in measured.items():
        for measure, step, measurement in steps:
            scores = {name: measurement.scores[name] for name in measure.main_scores if name in measurement.scores}
            rows.setdefault((folder, step), {}).update(scores)
    names = list(dict.fromkeys(name for scores in rows.values() for name in scores))
    if not names:
        return None
    hours = {folder: format_hours(folder) for folder, _ in rows}
    cells = tuple(
        (
            folder.name,
            f"{step:,}",
            hours[folder],
            *(f"{scores[name]:.4g}" if name in scores else "-" for name in names),
        )
        for (folder, step), scores in rows.items()
    )
    header = ("run", "step", "hours", *(name.replace("_", " ") for name in names))
    return ReportTable("Measures", header, cells)


def format_hours(folder: Path) -> str:
    """Return the hours in which a run was trained, or a dash."""
    report = read_time_report(folder)
    return f"{(report.total - report.seconds.get('not running', 0.0)) / 3600:.2f}" if report else "-"
