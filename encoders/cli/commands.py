"""The verbs of the command line, as functions with plain arguments that return the status of the process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from encoders.cli.experiment_files import (
    ExperimentChoice,
    load_experiment_file,
    refresh_table,
)
from encoders.cli.inspect_store import RowSettings, describe_pass, describe_store
from encoders.cli.messages import is_expected, log_to_stderr
from encoders.cli.train_command import train_experiments
from encoders.costs.ledger import format_ledger
from encoders.data.beam_runner import BeamRunner, LocalRunner, Runner
from encoders.data.labelled import LabelledData
from encoders.data.prepare import prepare_store
from encoders.data.repair import find_damaged_units, repair_store
from encoders.data.spec import PretrainingData
from encoders.data.store import Store
from encoders.exchange import convert
from encoders.experiment import describe_experiment
from encoders.inference.cross_evaluation import evaluate_with_overrides
from encoders.reporting import summaries, table_results
from encoders.reporting.page import build_page
from encoders.reporting.table_formats import format_grid
from encoders.run.evaluate import evaluate_run
from encoders.run.preemption import format_duration
from encoders.run.run import Run
from encoders.sweeps.paper_table import load_saved_tables
from encoders.sweeps.sweep import RunProgress, Sweep, measure_progress
from encoders.utils.code_files import import_file
from encoders.utils.files import check_local_paths, write_file_atomically
from encoders.utils.serialization import ExperimentError

ALL_BATCHES = 10**9
FOLDER_ARGUMENTS = ("runs", "run", "folder", "store", "out", "root")


def run_verb(verb: str, code: Sequence[str] = (), **arguments) -> int:
    """Call the function of a verb; the arguments that choose experiments become an `ExperimentChoice`.

    `code` lists Python files to import first.
    """
    check_local_paths(*(arguments.get(name) for name in FOLDER_ARGUMENTS))
    for path in code:
        import_file(path)
    if "experiment" in arguments:
        names = [f.name for f in fields(ExperimentChoice) if f.name in arguments]
        choice = ExperimentChoice(**{name: arguments.pop(name) for name in names})
        arguments["choice"] = choice
    return VERBS[verb](**arguments)


# Experiments and stores -----------------------------------------------------------------------------------------------


def show_experiments(choice: ExperimentChoice) -> int:
    if choice.experiment == "table-2.1":
        print(summaries.format_table_2_1())
        return 0
    experiments = load_experiment_file(choice).experiments
    if len(experiments) > 1:
        print(f"{len(experiments)} experiments: {', '.join(experiment.name for experiment in experiments)}\n")
    for experiment in experiments:
        print(f"== {experiment.name}")
        if len(experiments) == 1:
            print(describe_experiment(experiment))
        print(format_ledger(experiment), end="\n\n")
    return 0


def prepare_stores(
    choice: ExperimentChoice,
    num_workers: int | None = None,
    runner: str | None = None,
    repair: bool = False,
    pipeline_options: Sequence[str] = (),
) -> int:
    work_runner = build_runner(num_workers, runner, pipeline_options)
    printed = set()
    for experiment in load_experiment_file(choice).experiments:
        if isinstance(experiment.data, LabelledData) and not Path(experiment.data.tokenizer.path).exists():
            log_to_stderr(
                f"skipped {experiment.name}: {experiment.init_from} is not trained yet, and its vocabulary is "
                "missing; train it first"
            )
            continue
        store = prepare_store(experiment.data, log_to_stderr, work_runner)
        if store.key not in printed:
            printed.add(store.key)
            if repair:
                repair_damaged_units(store, experiment.data, work_runner)
            print(f"{experiment.name}: {store.path}")
            print(json.dumps(summarize_preparation(store.metadata), indent=1))
        for phase in experiment.phases if isinstance(experiment.data, PretrainingData) else ():
            rows = (store.key, phase.format, phase.seq_length)
            if rows not in printed:
                printed.add(rows)
                print("\n".join(describe_pass(phase, store.train_split, experiment.seed)))
    return 0


def summarize_preparation(metadata: dict) -> dict:
    """Return the counts of a store and, where its preparation was timed, characters and tokens per second."""
    keys = ("splits", "skipped", "filtered", "unknown_rate", "characters", "seconds", "peak_memory_mb")
    summary = {key: metadata[key] for key in keys if key in metadata}
    if "seconds" in metadata:
        seconds = max(metadata["seconds"]["tokens"], 0.01)
        tokens = sum(split["tokens"] for split in metadata["splits"].values())
        summary["speed"] = {"characters": round(metadata["characters"] / seconds), "tokens": round(tokens / seconds)}
    return summary


def build_runner(num_workers: int | None, runner: str | None, pipeline_options: Sequence[str]) -> Runner:
    """Return the runner that prepares a store: processes of this machine, or Beam's. Raises `ExperimentError`."""
    if runner:
        if num_workers is not None:
            raise ExperimentError(
                f"--workers {num_workers} is for this machine; --runner {runner} takes its own options after --"
            )
        return BeamRunner(runner, tuple(pipeline_options))
    if pipeline_options:
        raise ExperimentError(f"{' '.join(pipeline_options)}: pipeline options need --runner NAME")
    return LocalRunner(len(os.sched_getaffinity(0)) if num_workers is None else num_workers)


def repair_damaged_units(store: Store, data: PretrainingData | LabelledData, runner: Runner) -> None:
    if "units" not in store.metadata:
        log_to_stderr(
            f"{store.path} is without checksums (labelled rows, or an earlier version) and cannot be repaired"
        )
        return
    damaged = list_damaged_units(store)
    if damaged:
        repair_store(store, data, damaged, log_to_stderr, runner)
    log_to_stderr(f"{store.path}: {len(damaged)} damaged unit(s) repaired" if damaged else f"{store.path}: no damage")


def list_damaged_units(store: Store) -> list[int]:
    """Return the indices of a store's damaged units, and log each."""
    damaged = find_damaged_units(store)
    for index in damaged:
        source = store.metadata["units"][index]["name"]
        log_to_stderr(f"{store.path}: unit {index} ({source}) is damaged; prepare --repair makes it again")
    return damaged


def inspect_store(
    choice: ExperimentChoice, store: str, num_rows: int = 3, plain: bool = False, verify: bool = False
) -> int:
    opened, row_settings = Store.open(Path(store)), RowSettings()
    if choice.experiment:
        experiments = load_experiment_file(choice).experiments
        if len(experiments) > 1:
            raise ExperimentError(f"--only must name one of {', '.join(experiment.name for experiment in experiments)}")
        row_settings = RowSettings(experiments[0].phases, experiments[0].objective, experiments[0].seed)
    elif choice.settings or choice.only or choice.with_settings:
        raise ExperimentError("--set, --only and --with need an EXPERIMENT, and none is named")
    if verify:
        damaged = list_damaged_units(opened)
        log_to_stderr(f"{len(opened.metadata['units'])} units, {len(damaged)} damaged")
        if damaged:
            return 1
    for line in describe_store(opened, row_settings, num_rows, sys.stdout.isatty() and not plain):
        print(line)
    return 0


# Progress and tables --------------------------------------------------------------------------------------------------


def show_status(choice: ExperimentChoice) -> int:
    experiment_file = load_experiment_file(replace(choice, reuse_saved_table=True))
    sweep = Sweep(
        experiment_file.experiments,
        Path(choice.runs),
        log_to_stderr,
        is_expected,
        experiment_file.other_experiments,
        started_at=0.0,
    )
    runs = measure_progress(sweep)
    print(format_grid([["experiment", "state", "steps", "left", ""], *map(format_progress, runs)]))
    states = [run.state for run in runs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    seconds_left = [run.seconds_left for run in runs if run.seconds_left is not None]
    total = format_duration(sum(seconds_left))
    if num_unknown := len(runs) - len(seconds_left):
        total += f" and {num_unknown} of unknown length"
    print(f"{len(runs)} experiments: {counts}; left, one after the other: {total}")
    return 0


def format_progress(run: RunProgress) -> list[str]:
    """Return the cells of a run: name, state, steps, time left, note."""
    time_left = "unknown" if run.seconds_left is None else format_duration(run.seconds_left)
    if run.state == "done":
        time_left = ""
    return [run.experiment.name, run.state, f"{run.step:,} of {run.experiment.num_steps:,}", time_left, run.note]


def show_table(choice: ExperimentChoice, table_format: str = "text") -> int:
    table = load_experiment_file(replace(choice, reuse_saved_table=True)).table
    if table is None:
        raise ExperimentError(f"{choice.experiment} defines no `table`, as the files of experiments/ablations/ do")
    results = table_results.collect_table_results(table, Path(choice.runs))
    print(table_results.format_results(results, table_format))
    return 0


def write_report(folder: str, out: str | None = None, title: str = "Runs") -> int:
    runs_dir = Path(folder)
    report_tables = []
    for table in load_saved_tables(runs_dir):
        results = table_results.collect_table_results(refresh_table(table), runs_dir)
        report_tables.extend(results.build_report_tables())
    path = Path(out) if out else runs_dir / "report.html"
    write_file_atomically(path, build_page(runs_dir, report_tables, title).encode())
    print(path)
    return 0


# Runs -----------------------------------------------------------------------------------------------------------------


def print_scores(
    run: str,
    step: str = "latest",
    store: str | None = None,
    num_batches: int | None = None,
    settings: Sequence[str] = (),
) -> int:
    opened = Run.open(Path(run), store)
    step_number, params = opened.load_params(step)
    num_batches = num_batches or ALL_BATCHES
    if settings:
        scores = evaluate_with_overrides(opened, params, settings, num_batches)
    else:
        scores = evaluate_run(opened, params, num_batches=num_batches)
    print(json.dumps({"run": opened.experiment.name, "step": step_number} | scores, indent=1))
    return 0


def predict_texts(**arguments) -> int:
    from encoders.cli.predict_lines import predict_lines

    return predict_lines(log=log_to_stderr, **arguments)


def write_submission(run: str, folder: str, root: str | None = None, step: str = "best") -> int:
    from encoders.inference.predictor import load_predictor

    predictor = load_predictor(run, step)
    data = predictor.run.experiment.data
    if not isinstance(data, LabelledData):
        raise ExperimentError(f"{run} was trained on text; submit needs a run of a task")
    if not hasattr(data.task, "build_submission"):
        raise ExperimentError(f"{data.task.name} does not define files to submit; GLUE's tasks and SQuAD do")
    root = root or data.root
    files = dict(data.task.build_submission(predictor, root))
    if not any(files.values()):
        raise ExperimentError(f"the test rows of {data.task.name} are not in {root}; pass their folder with --root")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        if text is None:
            log_to_stderr(f"skipped {name}: its rows are not in {root}")
        else:
            path = Path(folder) / name
            path.write_text(text, encoding="utf-8")
            print(path)
    return 0


def import_to_run(folder: str, run: str, generator: str | None = None, tokenizer_files: str | None = None) -> int:
    convert.import_checkpoint(folder, run, generator=generator, tokenizer_files=tokenizer_files, log=print)
    return 0


def export_to_folder(run: str, folder: str, step: str = "latest") -> int:
    convert.export_run(run, folder, step=step, log=print)
    return 0


def measure_speed(choice: ExperimentChoice, measurement: str, **bench_options) -> int:
    from encoders.bench.results_table import run_measurement

    experiments = load_experiment_file(choice).experiments
    return run_measurement(measurement, experiments, log=log_to_stderr, **bench_options)


VERBS = {
    "bench": measure_speed,
    "show": show_experiments,
    "status": show_status,
    "table": show_table,
    "report": write_report,
    "prepare": prepare_stores,
    "inspect": inspect_store,
    "train": train_experiments,
    "evaluate": print_scores,
    "predict": predict_texts,
    "submit": write_submission,
    "import": import_to_run,
    "export": export_to_folder,
}
