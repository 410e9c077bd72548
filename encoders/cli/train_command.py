"""The verb `train`: experiments one after the other, side by side, or in several processes each."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from encoders.cli.experiment_files import (
    ExperimentChoice,
    ExperimentFile,
    load_experiment_file,
)
from encoders.cli.messages import is_expected, log_to_stderr
from encoders.data.prepare import PretrainingData, prepare_store
from encoders.experiment import Experiment
from encoders.reporting import summaries, table_results
from encoders.run.folder import differing_fields, read_result, wrong_experiment
from encoders.run.preemption import STOPPED_STATUS, StopRequest, parse_duration
from encoders.sweeps.local_workers import launch_processes, launch_workers
from encoders.sweeps.paper_table import save_table
from encoders.sweeps.sweep import WORKER_VARIABLE, Sweep
from encoders.training import distributed

WORKER_COMMAND = [sys.executable, "-m", "encoders"]


def enable_compilation_cache() -> None:
    """Keep compiled steps on disk: in `JAX_COMPILATION_CACHE_DIR` where that is set, else in the user's cache."""
    if not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "encoders" / "compiled"))


def train_experiments(
    choice: ExperimentChoice,
    stop_after: str | None = None,
    num_jobs: int | None = None,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    wait: str = "5m",
    watchdog: str = "30m",
    profile: bool = False,
    command_line: Sequence[str] = (),
) -> int:
    """Train experiments in this process, in several processes of one run, or side by side in `num_jobs` processes.

    `command_line` is what those processes are started with.
    """
    time_limit = stop_after and parse_duration(stop_after)
    wait_seconds, hang_timeout = parse_duration(wait), parse_duration(watchdog)
    if num_processes is not None and num_processes < 1:
        raise distributed.DistributedError(f"--processes {num_processes} must be at least 1")
    if num_processes and coordinator is None and process_id is None:
        return launch_processes(WORKER_COMMAND, command_line, num_processes, log_to_stderr)
    if num_jobs is not None:
        if num_jobs < 1 or num_processes or coordinator or process_id is not None:
            raise distributed.DistributedError(
                f"--jobs {num_jobs} must be at least 1, without --processes, --process and --coordinator"
            )
        return train_in_parallel(choice, num_jobs, command_line)
    distributed.initialize_distributed(coordinator, num_processes, process_id, wait_seconds)
    enable_compilation_cache()
    with StopRequest(time_limit) as stop:
        experiment_file = distributed.raise_on_all(lambda: load_experiment_file(choice))
        return run_sweep(experiment_file, Path(choice.runs), profile, stop, hang_timeout)


def train_in_parallel(choice: ExperimentChoice, num_jobs: int, command_line: Sequence[str]) -> int:
    """Train experiments side by side, in processes that share them; stores of text are prepared before."""
    experiment_file, runs_dir = load_experiment_file(choice), Path(choice.runs)
    check_and_save_table(experiment_file, runs_dir)
    for data in dict.fromkeys(experiment.data for experiment in experiment_file.experiments):
        if isinstance(data, PretrainingData):
            prepare_store(data, log_to_stderr)
    status = launch_workers(WORKER_COMMAND, drop_jobs_option(command_line), num_jobs, WORKER_VARIABLE, log_to_stderr)
    if status != STOPPED_STATUS:
        print_results(experiment_file, read_results(experiment_file.experiments, runs_dir), runs_dir)
    return status


def drop_jobs_option(command_line: Sequence[str]) -> list[str]:
    """Return a command line without `--jobs N` and `--jobs=N`."""
    words, previous = [], ""
    for word in command_line:
        if "--jobs" not in (word, previous) and not word.startswith("--jobs="):
            words.append(word)
        previous = word
    return words


def read_results(experiments: Sequence[Experiment], runs_dir: Path) -> dict[str, dict]:
    """Return the results of finished experiments by name."""
    results = {experiment.name: read_result(runs_dir / experiment.name) for experiment in experiments}
    return {name: result for name, result in results.items() if result}


def check_and_save_table(experiment_file: ExperimentFile, runs_dir: Path) -> None:
    """Refuse folders of other experiments and missing texts or rows before any work; then save the table of the file.

    Raises `RunError` and what `check_readable` raises.
    """
    for experiment in experiment_file.experiments:
        if changes := differing_fields(experiment, runs_dir / experiment.name):
            raise wrong_experiment(runs_dir / experiment.name, changes)
    datasets = dict.fromkeys(experiment.data for experiment in experiment_file.experiments)
    # Labelled rows first: the check of a corpus reads it.
    for data in sorted(datasets, key=lambda data: isinstance(data, PretrainingData)):
        data.check_readable()
    if experiment_file.table and distributed.is_primary():
        save_table(experiment_file.table, runs_dir)


def run_sweep(
    experiment_file: ExperimentFile, runs_dir: Path, profile: bool, stop: StopRequest, hang_timeout: float
) -> int:
    """Train one experiment after the other and return the status of the process."""
    distributed.raise_on_all(lambda: check_and_save_table(experiment_file, runs_dir))
    experiments, table = experiment_file.experiments, experiment_file.table
    sweep = Sweep(experiments, runs_dir, log_to_stderr, is_expected, experiment_file.other_experiments)
    if table:
        sweep.on_finished = lambda experiment: table_results.compute_extra_scores(table, experiment, runs_dir)
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
    finished = [
        (experiment, results[experiment.name])
        for experiment in experiment_file.experiments
        if experiment.name in results
    ]
    print(summaries.summarize_results(finished))
    if experiment_file.table:
        comparison = table_results.collect_table_results(experiment_file.table, runs_dir)
        print(f"\n{table_results.format_results(comparison)}")
