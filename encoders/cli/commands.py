"""The verbs of the command line, as functions with plain arguments; None, if returned, is the status 0."""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import jax

from encoders.bench.results_table import run_measurement
from encoders.cli.experiment_files import (
    ExperimentChoice,
    ExperimentFile,
    load_experiment_file,
    refresh_table,
)
from encoders.cli.measure_runs import measure_runs
from encoders.cli.mine_pairs import mine_pairs
from encoders.cli.predict_lines import predict_lines
from encoders.cli.print_prices import price_experiments
from encoders.cli.recorded_tables import build_results_page, check_choice_of_record, open_record
from encoders.cli.show import describe_experiment_export, show_experiments
from encoders.cli.stores import inspect_store, prepare_stores
from encoders.data.labelled import LabelledData
from encoders.data.prepare import prepare_store
from encoders.data.spec import PretrainingData
from encoders.exchange import convert
from encoders.experiment import Experiment
from encoders.inference.cross_evaluation import evaluate_with_overrides
from encoders.inference.predictor import load_predictor
from encoders.measures.base import list_measurements, load_or_measure
from encoders.reporting import summaries, table_results
from encoders.reporting.measure_tables import build_measure_table
from encoders.reporting.page import build_page, write_charts
from encoders.reporting.records import record_table
from encoders.reporting.result_sources import RunsFolder
from encoders.reporting.table_formats import format_grid
from encoders.run.copy_run import copy_run
from encoders.run.evaluate import evaluate_run, open_corpus
from encoders.run.folder import differing_fields, open_run_folder, read_result, wrong_experiment
from encoders.run.preemption import STOPPED_STATUS, StopRequest, format_duration, parse_duration
from encoders.run.run import Run
from encoders.run.time_account import format_time
from encoders.sweeps.local_workers import end_with_parent, launch_processes, launch_workers
from encoders.sweeps.paper_table import PaperTable, load_saved_tables, save_table
from encoders.sweeps.sweep import WORKER_VARIABLE, Sweep, measure_progress
from encoders.training import distributed, sharding
from encoders.utils.buckets import check_local_paths
from encoders.utils.code_files import import_file
from encoders.utils.errors import UserError, describe_error, escape_control
from encoders.utils.files import find_cache_dir, write_file_atomically
from encoders.utils.serialization import ExperimentError

LOCAL_ARGUMENTS = ("out", "root", "charts_dir", "record", "recorded", "results")
WORKER_COMMAND = [sys.executable, "-m", "encoders"]


def run_verb(verb: str, code: Sequence[str] = (), **arguments) -> int:
    """Import the Python files `code`, and call the function of a verb, with an `ExperimentChoice` of its arguments."""
    check_local_paths(*(arguments.get(name) for name in LOCAL_ARGUMENTS))
    for path in code:
        import_file(path)
    if "experiment" in arguments:
        names = [f.name for f in fields(ExperimentChoice) if f.name in arguments]
        arguments["choice"] = ExperimentChoice(**{name: arguments.pop(name) for name in names})
    return VERB_FUNCTIONS[verb](**arguments) or 0


def log_to_stderr(line: str) -> None:
    if distributed.is_primary():
        print(escape_control(line), file=sys.stderr)


def train_experiments(
    choice: ExperimentChoice,
    stop_after: str | None = None,
    num_jobs: int | None = None,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    wait: str = "5m",
    watchdog: str = "30m",
    compilation_cache: str | None = None,
    profile: bool = False,
    command_line: Sequence[str] = (),
) -> int:
    """Train here, in several processes of one run, or in `num_jobs` side by side, which `command_line` starts."""
    time_limit = stop_after and parse_duration(stop_after)
    wait_seconds, hang_timeout = parse_duration(wait), parse_duration(watchdog)
    if num_processes is not None and num_processes < 1:
        raise distributed.DistributedError(f"--processes {num_processes} must be at least 1")
    if num_processes and coordinator is None and process_id is None:
        return launch_processes(WORKER_COMMAND, command_line, num_processes, log_to_stderr)
    if num_jobs is not None:
        if num_jobs < 1 or num_processes or coordinator or process_id is not None:
            others = "--processes, --process and --coordinator"
            raise distributed.DistributedError(f"--jobs {num_jobs} must be at least 1, without {others}")
        return train_in_parallel(choice, num_jobs, command_line)
    end_with_parent()
    command = repr([choice.experiment, *choice.with_settings, *choice.settings, *choice.only])
    distributed.initialize_distributed(coordinator, num_processes, process_id, wait_seconds, command)
    enable_compilation_cache(compilation_cache)
    sharding.list_devices()  # raises `UserError` where it finds none
    with StopRequest(time_limit) as stop:
        try:
            experiment_file = distributed.raise_on_all(lambda: load_experiment_file(choice))
            return run_sweep(experiment_file, open_run_folder(choice.runs), profile, stop, hang_timeout)
        except Exception as error:
            if distributed.is_multi_process() and not isinstance(error, distributed.DistributedError):
                distributed.abort_all(error)
            raise


def enable_compilation_cache(folder: str | None = None) -> None:
    """Keep compiled steps in a folder or bucket, else in `JAX_COMPILATION_CACHE_DIR`, else in the user's cache."""
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
    if not jax.config.jax_compilation_cache_dir:
        try:
            jax.config.update("jax_compilation_cache_dir", str(find_cache_dir() / "compiled"))
        except RuntimeError:
            log_to_stderr("compiled steps are not kept, for the home folder is unknown; set JAX_COMPILATION_CACHE_DIR")


def train_in_parallel(choice: ExperimentChoice, num_jobs: int, command_line: Sequence[str]) -> int:
    """Train experiments side by side, in processes that share them; stores of text are prepared before."""
    experiment_file, runs_dir = load_experiment_file(choice), open_run_folder(choice.runs)
    check_and_save_table(experiment_file, runs_dir)
    for data in dict.fromkeys(experiment.data for experiment in experiment_file.experiments):
        if isinstance(data, PretrainingData):
            prepare_store(data, log_to_stderr)
    words = [  # without --jobs N and --jobs=N
        word
        for previous, word in zip(("", *command_line), command_line, strict=False)
        if "--jobs" not in (previous, word) and not word.startswith("--jobs=")
    ]
    status = launch_workers(WORKER_COMMAND, words, num_jobs, WORKER_VARIABLE, log_to_stderr)
    if status != STOPPED_STATUS:
        print_results(experiment_file, read_results(experiment_file.experiments, runs_dir), runs_dir)
    return status


def read_results(experiments: Sequence[Experiment], runs_dir: Path) -> dict[str, dict]:
    """Return the results of finished experiments by name, without damaged ones, which a sweep names."""
    results = {}
    for experiment in experiments:
        with suppress(UserError):
            if result := read_result(runs_dir / experiment.name):
                results[experiment.name] = result
    return results


def check_and_save_table(experiment_file: ExperimentFile, runs_dir: Path) -> None:
    """Refuse folders of other experiments, and missing texts or rows, before any work; then save the file's table."""
    for experiment in experiment_file.experiments:
        folder, changes = runs_dir / experiment.name, []
        with suppress(UserError) if len(experiment_file.experiments) > 1 else nullcontext():  # a sweep names the damage
            changes = differing_fields(experiment, folder)
        if changes:
            raise wrong_experiment(folder, changes)
    datasets = dict.fromkeys(experiment.data for experiment in experiment_file.experiments)
    # Labelled rows first: the check of a corpus reads it.
    for data in sorted(datasets, key=lambda data: isinstance(data, PretrainingData)):
        check_readable(data, experiment_file.table)
    exports = {}
    for experiment in experiment_file.experiments:
        exports.setdefault(describe_experiment_export(experiment), []).append(experiment.name)
    for description, names in exports.items():
        log_to_stderr(f"{', '.join(names)}: {description}")
    if experiment_file.table and distributed.is_primary():
        save_table(experiment_file.table, runs_dir)


def check_readable(data: PretrainingData | LabelledData, table: PaperTable | None) -> None:
    """Raise `ValueError` for texts or rows that cannot be read; that of a table names the argument of `--with`."""
    try:
        data.check_readable()
    except ValueError as error:
        if table is None or table.study is None:
            raise
        raise ExperimentError(
            f"{error}; --with {table.study.find_argument(data)}=... names the folder or the files"
        ) from None


def run_sweep(
    experiment_file: ExperimentFile, runs_dir: Path, profile: bool, stop: StopRequest, hang_timeout: float
) -> int:
    """Train one experiment after the other and return the status of the process."""
    distributed.raise_on_all(lambda: check_and_save_table(experiment_file, runs_dir))
    experiments, table = experiment_file.experiments, experiment_file.table
    sweep = Sweep(experiments, runs_dir, log_to_stderr, experiment_file.other_experiments)

    def measure_finished(experiment: Experiment) -> None:
        if table:
            table_results.compute_extra_scores(table, experiment, runs_dir, log_to_stderr)
        if experiment_file.measures:
            load_or_measure(runs_dir / experiment.name, experiment_file.measures, log=log_to_stderr)

    sweep.on_finished = measure_finished
    finished = read_results(experiments, runs_dir)
    status = sweep.train(profile, stop, hang_timeout)
    if finished:
        log_to_stderr(f"already finished: {', '.join(finished)}. To start one over, remove its folder in {runs_dir}/")
    if status != STOPPED_STATUS and distributed.is_primary():
        print_results(experiment_file, sweep.results, runs_dir)
    return status


def print_results(experiment_file: ExperimentFile, results: dict[str, dict], runs_dir: Path) -> None:
    """Print finished experiments as one table, and the paper's table of the file."""
    if not results:
        return
    finished = [(e, results[e.name]) for e in experiment_file.experiments if e.name in results]
    print(summaries.summarize_results(finished))
    measured = {}
    for experiment, _ in finished:
        try:
            measured[runs_dir / experiment.name] = list_measurements(runs_dir / experiment.name)
        except UserError as error:
            log_to_stderr(describe_error(error))
    if measure_table := build_measure_table(measured):
        print(f"\n{format_grid([measure_table.header, *measure_table.rows])}")
    if experiment_file.table:
        comparison = table_results.collect_table_results(experiment_file.table, RunsFolder(runs_dir))
        print(f"\n{table_results.format_results(comparison)}")


def show_status(choice: ExperimentChoice) -> None:
    chosen = load_experiment_file(replace(choice, reuse_saved_table=True))
    sweep = Sweep(
        chosen.experiments, open_run_folder(choice.runs), log_to_stderr, chosen.other_experiments, started_at=0.0
    )
    runs = measure_progress(sweep)
    rows = [["experiment", "state", "steps", "left", "goodput", ""]]
    for run in runs:
        time_left = "unknown" if run.seconds_left is None else format_duration(run.seconds_left)
        steps = f"{run.step:,} of {run.experiment.num_steps:,}"
        goodput = f"{run.time_report.goodput:.0%}" if run.time_report else ""
        time_left = "" if run.state == "done" else time_left
        rows.append([run.experiment.name, run.state, steps, time_left, goodput, run.note])
    print(format_grid(rows))
    states = [run.state for run in runs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    seconds_left = [run.seconds_left for run in runs if run.seconds_left is not None]
    total = format_duration(sum(seconds_left))
    if num_unknown := len(runs) - len(seconds_left):
        total += f" and {num_unknown} of unknown length"
    print(f"{len(runs)} experiments: {counts}; left, one after the other: {total}")
    if reports := [run.time_report for run in runs if run.time_report]:
        print(f"time so far, {format_duration(sum(report.total for report in reports))}: {format_time(reports)}")


def show_table(
    choice: ExperimentChoice, table_format: str = "text", record: str | None = None, recorded: str | None = None
) -> None:
    """Print a table from its runs, or from a file of results that `record` writes and `recorded` names."""
    if record and recorded:
        raise ExperimentError("--record and --from exclude each other: --record prints what it has written")
    if recorded:
        check_choice_of_record(choice)
    else:
        table = load_experiment_file(replace(choice, reuse_saved_table=True)).table
        if table is None:
            raise ExperimentError(f"{choice.experiment} defines no `table`, as the files of experiments/ablations/ do")
        runs_dir = open_run_folder(choice.runs)
        if record:
            record_table(Path(record), table, runs_dir, log_to_stderr)
    if path := record or recorded:
        opened = open_record(Path(path), choice.experiment)
        results = table_results.collect_table_results(opened.table, opened)
    else:
        results = table_results.collect_table_results(table, RunsFolder(runs_dir))
    print(table_results.format_results(results, table_format))


def write_report(
    folder: str = "runs",
    out: str | None = None,
    title: str | None = None,
    charts_dir: str | None = None,
    results: str | None = None,
) -> None:
    """Write the page of a folder of runs, its charts, or the page of a folder of recorded results."""
    if results and charts_dir:
        raise ExperimentError("--charts draws runs, and --results DIR holds none; leave one of them out")
    if results:
        path = Path(out or f"{results}/README.md")
        write_file_atomically(path, build_results_page(Path(results), title or "Results").encode())
        print(path)
        return
    runs_dir, report_tables = open_run_folder(folder), []
    if charts_dir:
        print(*write_charts(runs_dir, Path(charts_dir)), sep="\n")
        return
    for table in load_saved_tables(runs_dir):
        comparison = table_results.collect_table_results(refresh_table(table), RunsFolder(runs_dir))
        report_tables += comparison.build_report_tables()
    path = Path(out) if out else runs_dir / "report.html"
    write_file_atomically(path, build_page(runs_dir, report_tables, title or "Runs").encode())
    print(path)


def print_scores(
    run: str,
    step: str = "latest",
    store: str | None = None,
    num_batches: int | None = None,
    settings: Sequence[str] = (),
    corpus: Sequence[str] = (),
) -> None:
    opened, num_batches = Run.open(run, store), num_batches or 10**9  # all
    step_number, params = opened.load_params(step)
    with open_corpus(opened, corpus) if corpus else nullcontext(opened) as evaluated:
        if settings:
            scores = evaluate_with_overrides(evaluated, params, settings, num_batches)
        else:
            scores = evaluate_run(evaluated, params, num_batches=num_batches)
    print(json.dumps({"run": opened.spec.name, "step": step_number} | scores, indent=1))


def write_submission(run: str, folder: str, root: str | None = None, step: str = "best") -> None:
    check_local_paths(folder)
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
            write_file_atomically(Path(folder) / name, text.encode())
            print(Path(folder) / name)


def measure_speed(choice: ExperimentChoice, measurement: str, **bench_options) -> int:
    experiments = load_experiment_file(choice).experiments
    return run_measurement(measurement, experiments, log=log_to_stderr, **bench_options)


VERB_FUNCTIONS = {
    "bench": measure_speed,
    "show": show_experiments,
    "price": partial(price_experiments, log=log_to_stderr),
    "status": show_status,
    "table": show_table,
    "report": write_report,
    "prepare": partial(prepare_stores, log=log_to_stderr),
    "inspect": partial(inspect_store, log=log_to_stderr),
    "train": train_experiments,
    "evaluate": print_scores,
    "measure": partial(measure_runs, log=log_to_stderr),
    "predict": partial(predict_lines, log=log_to_stderr),
    "mine": partial(mine_pairs, log=log_to_stderr),
    "submit": write_submission,
    "copy": partial(copy_run, log=print),
    "import": partial(convert.import_checkpoint, log=print),
    "export": partial(convert.export_run, log=print),
}
