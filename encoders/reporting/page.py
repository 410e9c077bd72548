"""One self-contained HTML page about all runs of a folder: tables, learning curves, each run's experiment."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from encoders.experiment import describe_experiment
from encoders.reporting import plots
from encoders.reporting.run_summary import RunSummary, parse_device_kind, read_runs
from encoders.reporting.table_formats import ReportTable


def build_page(folder: Path, report_tables: Sequence[ReportTable], title: str = "Runs") -> str:
    """Return one HTML page: the given tables, then the curves and details of all runs in `folder`.

    Raises `RunError` for a folder without runs, and `ValueError` if matplotlib or jinja2 is not installed.
    """
    runs, unreadable = read_runs(folder)
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise ValueError("a report needs jinja2, which is not installed; run pip install 'encoders[report]'") from None
    loader = PackageLoader("encoders.reporting")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        title=title,
        summary=summarize_folder(folder, runs, unreadable),
        tables=report_tables,
        chart_groups=plots.build_charts([(run.spec, run.metric_rows) for run in runs if run.is_trained]),
        runs=runs,
        unreadable=unreadable,
        choose_column_classes=choose_column_classes,
        draw_svg=plots.draw_svg,
        line_width=plots.LINE_WIDTH,
        describe_experiment=describe_experiment,
        format_json=lambda value: json.dumps(value, indent=1, ensure_ascii=False),
    )


def summarize_folder(folder: Path, runs: Sequence[RunSummary], unreadable: Sequence[str]) -> str:
    """Return the number of runs by state, the devices they used and the dates of their files."""
    finished = sum(run.result is not None for run in runs)
    imported = sum(not run.is_trained for run in runs)
    counts = {
        "finished": finished,
        "not finished": len(runs) - finished - imported,
        "imported": imported,
        "not readable": len(unreadable),
    }
    states = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    total = len(runs) + len(unreadable)
    sentences = [f"{total:,} {'run' if total == 1 else 'runs'} in {Path(folder).resolve().name}: {states}."]
    kinds = [Counter(map(parse_device_kind, run.record["devices"])) for run in runs if run.is_trained]
    if devices := sorted({" and ".join(f"{count} {kind}" for kind, count in run.items()) for run in kinds}):
        sentences.append(f"Trained on {' or '.join(devices)}.")
    names = ("experiment.json", "metrics.jsonl", "result.json")
    files = [run.folder / name for run in runs for name in names if (run.folder / name).exists()]
    if files:
        times = sorted(f"{datetime.fromtimestamp(file.stat().st_mtime, UTC):%Y-%m-%d %H:%M}" for file in files)
        sentences.append(f"Their files are from {times[0]} to {times[-1]} UTC.")
    return " ".join(sentences)


def choose_column_classes(report_table: ReportTable) -> list[str]:
    """Return the CSS class of each column: "number" unless letters outnumber digits in its cells, "words" or "prose".

    >>> choose_column_classes(ReportTable("Runs", ("score", "run"), (("12.5 ±0.3", "bert"), ("-", "albert-v2"))))
    ['number', 'words']
    """
    classes = []
    for cells in list(zip(*report_table.rows, strict=True)) or [()] * len(report_table.header):
        text = "".join(cells)
        is_number = sum(map(str.isalpha, text)) <= sum(map(str.isdigit, text))
        words = "words" if max(map(len, cells), default=0) < 30 else "prose"
        classes.append("number" if is_number else words)
    return classes
