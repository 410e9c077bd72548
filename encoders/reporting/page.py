"""One self-contained HTML page about all runs of a folder: tables, learning curves, each run's experiment."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from encoders.experiment import Experiment, RunSpec, describe_experiments
from encoders.measures.base import MeasuredStep, list_measurements
from encoders.reporting import plots
from encoders.reporting.layer_charts import build_layer_charts
from encoders.reporting.measure_tables import build_measure_table
from encoders.reporting.table_formats import ReportTable
from encoders.run.folder import (
    METRICS_FILE,
    RECORD_FILE,
    RESULT_FILE,
    RunError,
    count_saved_steps,
    parse_run_spec,
    read_result,
    read_run_record,
    read_run_rows,
)
from encoders.run.preemption import format_duration
from encoders.run.time_account import format_time, read_time_report
from encoders.utils.buckets import get_modified_at, make_absolute
from encoders.utils.errors import UserError, describe_error, escape_control
from encoders.utils.files import write_file_atomically


def build_page(folder: Path, report_tables: Sequence[ReportTable], title: str = "Runs") -> str:
    """Return one HTML page: the given tables, what was measured, then curves and details of all runs in `folder`.

    Raises `RunError` for a folder without runs, and `ValueError` if matplotlib or jinja2 is not installed.
    """
    runs, unreadable = read_runs(folder)
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise UserError("a report needs jinja2, which is not installed; run pip install 'encoders[report]'") from None
    measure_table = build_measure_table({run.folder: run.measured for run in runs})
    loader = PackageLoader("encoders.reporting")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: escape_control(value) if type(value) is str else value,
    )
    return environment.get_template("page.html").render(
        title=title,
        summary=summarize_folder(folder, runs, unreadable),
        tables=[*report_tables, *([measure_table] if measure_table else [])],
        chart_groups=build_all_charts(runs),
        runs=runs,
        unreadable=unreadable,
        choose_column_classes=choose_column_classes,
        draw_svg=plots.draw_svg,
        line_width=plots.LINE_WIDTH,
        describe_experiments=describe_experiments,
        format_json=lambda value: json.dumps(value, indent=1, ensure_ascii=False),
    )


def write_charts(folder: Path, charts_dir: Path) -> list[Path]:
    """Write the learning curves of all runs in `folder`, and their probes, as SVG files, and return their paths.

    Raises `RunError` for a folder without runs, and `ValueError` if matplotlib is not installed.
    """
    runs, _ = read_runs(folder)
    charts = [chart for group in build_all_charts(runs).values() for chart in group]
    charts_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, chart in enumerate(charts, 1):
        paths.append(charts_dir / f"{number}-{chart.plot.split}-{chart.plot.score}-{chart.plot.axis}.svg")
        write_file_atomically(paths[-1], plots.draw_file(chart).encode())
    return paths


def build_all_charts(runs: Sequence[RunSummary]) -> dict[str, list[plots.Chart]]:
    """Return learning curves, and what probes read from each layer, by the title of their group."""
    curves = plots.build_charts([(run.spec, run.metric_rows) for run in runs if run.is_trained])
    return curves | build_layer_charts({run.folder: run.measured for run in runs})


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
    sentences = [f"{total:,} {'run' if total == 1 else 'runs'} in {make_absolute(folder).name}: {states}."]
    kinds = [Counter(map(parse_device_kind, run.record["devices"])) for run in runs if run.is_trained]
    if devices := sorted({" and ".join(f"{count} {kind}" for kind, count in run.items()) for run in kinds}):
        sentences.append(f"Trained on {' or '.join(devices)}.")
    names = (RECORD_FILE, METRICS_FILE, RESULT_FILE)
    files = [run.folder / name for run in runs for name in names if (run.folder / name).exists()]
    if files:
        times = sorted(f"{datetime.fromtimestamp(get_modified_at(file), UTC):%Y-%m-%d %H:%M}" for file in files)
        sentences.append(f"Their files are from {times[0]} to {times[-1]} UTC.")
    return " ".join(sentences)


def choose_column_classes(report_table: ReportTable) -> list[str]:
    """Return the CSS class of each column: "prose" where a cell has 30 characters, else "number" unless letters
    outnumber digits in its cells, else "words".

    >>> choose_column_classes(ReportTable("Runs", ("score", "run"), (("12.5 ±0.3", "bert"), ("-", "albert-v2"))))
    ['number', 'words']
    >>> choose_column_classes(ReportTable("Runs", ("ours",), (("L2 H128; 64 x 128, 625 steps, 0.0003",),)))
    ['prose']
    """
    classes = []
    for cells in list(zip(*report_table.rows, strict=True)) or [()] * len(report_table.header):
        text = "".join(cells)
        is_number = sum(map(str.isalpha, text)) <= sum(map(str.isdigit, text))
        is_long = max(map(len, cells), default=0) >= 30
        classes.append("prose" if is_long else "number" if is_number else "words")
    return classes


NESTED_SCORES = ("classes", "confusion")

# Runs -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunSummary:
    """The record, the rows of metrics and, once the run is finished, the result in a run's folder."""

    folder: Path
    record: dict
    spec: RunSpec
    metric_rows: tuple[dict, ...]
    result: dict | None
    saved_step: int | None  # of the newest checkpoint, where one was recorded
    measured: tuple[MeasuredStep, ...] = ()

    @property
    def is_trained(self) -> bool:
        """Return False for an imported run, which was trained elsewhere."""
        return isinstance(self.spec, Experiment)

    def select_split(self, split: str) -> list[dict]:
        """Return the rows of metrics of one split, "train" or "heldout"."""
        return [row for row in self.metric_rows if row["split"] == split]

    def describe_progress(self) -> str:
        """Return the state of the run in a few words, for example "not finished: 20 of 40 steps (50%)"."""
        if not self.is_trained:
            return "imported"
        if self.result:
            return f"finished, {self.result['steps']:,} steps"
        last_step = self.saved_step
        if last_step is None:
            last_step = self.metric_rows[-1]["step"] if self.metric_rows else 0
        num_steps = self.spec.num_steps
        return f"not finished: {last_step:,} of {num_steps:,} steps ({last_step / num_steps:.0%})"

    def collect_details(self) -> dict[str, str]:
        """Return facts about the run by name, each of one line."""
        details = {
            "fingerprint": self.record["fingerprint"],
            "state": self.describe_progress(),
            "folder": str(self.folder),
            "versions": ", ".join(f"{name} {version}" for name, version in self.record["versions"].items()),
            "devices": ", ".join(self.record["devices"]),
        }
        if self.result:
            details["parameters"] = f"{self.result['parameters']:,}"
        if train := self.select_split("train"):
            speed = self.result or train[-1]["time"]
            details["tokens"] = f"{train[-1]['tokens']:,}"
            details["tokens/s"] = f"{speed['tokens_per_second']:,.0f}"
            details["time"] = format_duration(sum(row["time"]["seconds"] for row in self.metric_rows))
        if report := read_time_report(self.folder):
            details["all time"] = f"{format_duration(report.total)}: {format_time([report])}"
        return details

    def build_score_table(self) -> ReportTable | None:
        """Return the held-out scores of the last evaluation and, for a finished run, of the best one."""
        evaluations = {}
        if self.result:
            evaluations["last"] = self.result["heldout"]
            if best := self.result.get("best"):
                evaluations[f"best, step {best['step']:,}"] = best
        elif heldout := self.select_split("heldout"):
            evaluations[f"step {heldout[-1]['step']:,}"] = heldout[-1]
        rows = tuple(
            (name.replace("_", " "), *(format_score(scores, name) for scores in evaluations.values()))
            for name in next(iter(evaluations.values()), ())
            if name not in ("step", "split", "time")
            and not name.endswith("_error")
            and not name.endswith(NESTED_SCORES)
        )
        return ReportTable("Held-out scores", ("score", *evaluations), rows) if evaluations else None

    def build_class_table(self) -> ReportTable | None:
        """Return the scores of each class at the best evaluation, and how often each class was predicted for it."""
        best = (self.result or {}).get("best", {})
        classes, confusion = best.get("classes"), best.get("confusion", {})
        if not classes:
            return None
        columns = ("precision", "recall", "f1", "count")
        rows = tuple(
            (name, *(f"{scores[column]:.4g}" for column in columns), *map(str, confusion.get(name, {}).values()))
            for name, scores in classes.items()
        )
        return ReportTable("Classes", ("class", *columns, *(f"predicted {name}" for name in confusion)), rows)


def format_score(scores: dict[str, float], score_name: str) -> str:
    """Return a score with its standard error if the run logged one, for example "5 ± 0.012"."""
    error = scores.get(f"{score_name}_error")
    return f"{scores[score_name]:.4g}" + ("" if error is None else f" ± {error:.2g}")


def read_runs(folder: Path) -> tuple[list[RunSummary], list[str]]:
    """Return the readable runs in `folder` by name, and "NAME: REASON" for each of the others.

    Raises `RunError` if `folder` contains no run.
    """
    runs, unreadable = [], []
    for run_folder in sorted(path for path in folder.iterdir() if (path / RECORD_FILE).exists()):
        try:
            record = read_run_record(run_folder)
            rows = tuple(read_run_rows(run_folder))
            spec, saved_step = parse_run_spec(record), count_saved_steps(run_folder)
            result, measured = read_result(run_folder), tuple(list_measurements(run_folder))
            runs.append(RunSummary(run_folder, record, spec, rows, result, saved_step, measured))
        except (UserError, OSError) as error:  # a damaged file, or one of an unknown version
            unreadable.append(f"{run_folder.name}: {describe_error(error)}")
    if not runs and not unreadable:
        raise RunError(f"{folder} holds no runs (no */experiment.json); pass the folder that `train` wrote to")
    return runs, unreadable


def parse_device_kind(device: str) -> str:
    """Return the kind of a device from its name in JAX.

    >>> parse_device_kind("cuda:0"), parse_device_kind("TFRT_CPU_0")
    ('cuda', 'cpu')
    """
    return device.removeprefix("TFRT_").partition(":")[0].partition("_")[0].lower()
