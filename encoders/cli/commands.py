"""What the verbs of `launch.py` do."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import jax

from encoders.cli.experiment_files import ExperimentFile, load_experiment_file, load_experiments, refresh_table
from encoders.cli.inspect_store import RowSettings, describe_pass, describe_store
from encoders.costs.ledger import format_ledger as ledger
from encoders.data.beam_runner import BeamRunner, LocalRunner, Runner, UnfinishedWork
from encoders.data.labelled import LabelledData
from encoders.data.prepare import PretrainingData, prepare_store
from encoders.data.repair import find_damaged_units, repair_store
from encoders.data.store import Store
from encoders.exchange import convert
from encoders.exchange.weights import CheckpointError
from encoders.experiment import describe_experiment
from encoders.inference.cross_evaluation import evaluate_with_overrides
from encoders.reporting import summaries, table_results
from encoders.reporting.page import build_page
from encoders.reporting.table_formats import format_grid
from encoders.run import loop
from encoders.run.evaluate import evaluate_run
from encoders.run.folder import RunError, differing_fields, wrong_experiment
from encoders.run.preemption import STOPPED_STATUS, StopRequest, format_duration, parse_duration
from encoders.run.run import Run
from encoders.sweeps.local_workers import launch_processes, launch_workers
from encoders.sweeps.paper_table import load_saved_tables, save_table
from encoders.sweeps.sweep import WORKER_VARIABLE, Sweep, measure_progress
from encoders.text.source import CorpusError
from encoders.training import distributed
from encoders.utils.files import check_local_paths, write_file_atomically
from encoders.utils.overrides import ExperimentError

PROGRAM = Path(__file__).parents[2] / "launch.py"


def is_expected(error: Exception) -> bool:
    """Whether an error speaks for itself, so that no traceback is shown."""
    named = ExperimentError | CorpusError | RunError | CheckpointError | UnfinishedWork | distributed.DistributedError
    return isinstance(error, named) or type(error) is ValueError


def check_local_folders(options) -> None:
    """Raises `ValueError` for folders that are none of this machine."""
    check_local_paths(*(getattr(options, name, None) for name in ("runs", "run", "folder", "store", "out", "root")))


def log_to_stderr(line: str) -> None:
    if distributed.is_primary():
        print(line, file=sys.stderr)


def show_experiments(options) -> int:
    if options.experiment == "table-2.1":
        print(summaries.format_table_2_1())
        return 0
    chosen = load_experiments(options)
    if len(chosen) > 1:
        print(f"{len(chosen)} members: {', '.join(e.name for e in chosen)}\n")
    for experiment in chosen:
        print(f"== {experiment.name}")
        if len(chosen) == 1:
            print(describe_experiment(experiment))
        print(ledger(experiment), end="\n\n")
    return 0


def prepare_stores(options) -> int:
    runner = build_runner(options)
    seen = set()
    for experiment in load_experiments(options):
        if isinstance(experiment.data, LabelledData) and not Path(experiment.data.tokenizer.path).exists():
            log_to_stderr(
                f"{experiment.name}: left out, since {experiment.init_from} is not trained yet and has no vocabulary"
            )
            continue
        store = prepare_store(experiment.data, log_to_stderr, runner)
        if options.repair and store.key not in seen:
            repair_damaged_parts(store, experiment.data, runner)
        if store.key not in seen:
            seen.add(store.key)
            meta = store.metadata
            print(f"{experiment.name}: {store.path}")
            keys = ("splits", "skipped", "filtered", "unknown_rate", "characters", "seconds", "peak_memory_mb")
            found = {key: meta[key] for key in keys if key in meta}
            if "seconds" in meta:
                found["speed"] = compute_prepare_speed(meta)
            print(json.dumps(found, indent=1))
        for phase in experiment.phases if isinstance(experiment.data, PretrainingData) else ():
            if (rows := (store.key, phase.format, phase.seq_length)) not in seen:
                seen.add(rows)
                print("\n".join(describe_pass(phase, store.train_split, experiment.seed)))
    return 0


def compute_prepare_speed(meta: dict) -> dict[str, int]:
    """What a store's preparation had done in a second while it made tokens."""
    seconds = max(meta["seconds"]["tokens"], 0.01)
    tokens = sum(split["tokens"] for split in meta["splits"].values())
    return {"characters": round(meta["characters"] / seconds), "tokens": round(tokens / seconds)}


def build_runner(options) -> Runner:
    """Where `prepare` works."""
    if options.runner:
        if options.workers is not None:
            raise ExperimentError("--workers is for this machine; a Beam runner takes its own options after --")
        return BeamRunner(options.runner, tuple(options.passed))
    if options.passed:
        raise ExperimentError(f"{' '.join(options.passed)}: pipeline options go with --runner")
    return LocalRunner(len(os.sched_getaffinity(0)) if options.workers is None else options.workers)


def repair_damaged_parts(store: Store, data, runner: Runner) -> None:
    """Make damaged parts of a store again."""
    if "parts" not in store.metadata:
        log_to_stderr(
            f"{store.path}: it has no checksums (labelled rows, or written by an earlier version), and stays as it is"
        )
        return
    found = find_damaged_units(store)
    for number in found:
        log_to_stderr(f"{store.path}: part {number} ({store.metadata['parts'][number]['of']}) is damaged")
    if found:
        repair_store(store, data, found, log_to_stderr, runner)
    log_to_stderr(f"{store.path}: {len(found) or 'no'} damaged part(s){', made again' * bool(found)}")


def inspect_store(options) -> int:
    store, view = Store.open(Path(options.store)), RowSettings()
    if options.experiment:
        chosen = load_experiments(options)
        if len(chosen) > 1:
            raise ExperimentError(f"--only must name one of {', '.join(e.name for e in chosen)}")
        view = RowSettings(chosen[0].phases, chosen[0].objective, chosen[0].seed)
    elif options.set or options.only or options.given:
        raise ExperimentError("--set, --only and --with are for an EXPERIMENT, and none is named")
    if options.verify:
        found = find_damaged_units(store)
        for number in found:
            log_to_stderr(
                f"part {number} ({store.metadata['parts'][number]['of']}) is damaged; prepare --repair makes it again"
            )
        log_to_stderr(f"{len(store.metadata['parts'])} parts, {len(found) or 'none'} damaged")
        if found:
            return 1
    for line in describe_store(store, view, options.rows, sys.stdout.isatty() and not options.plain):
        print(line)
    return 0


def enable_compilation_cache() -> None:
    """Compiled steps stay on disk between runs: where `JAX_COMPILATION_CACHE_DIR` says, else in the user's cache."""
    if not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "encoders" / "compiled"))


def train_experiments(options) -> int:
    limit, wait, patience = (
        text and parse_duration(text) for text in (options.stop_after, options.wait, options.watchdog)
    )
    if options.processes is not None and options.processes < 1:
        raise distributed.DistributedError(f"--processes {options.processes} must be at least 1")
    if options.processes and options.coordinator is None and options.process is None:
        return launch_processes(PROGRAM, options.line, options.processes, log_to_stderr)
    if options.jobs is not None:
        return train_in_parallel(options)
    distributed.initialize_distributed(options.coordinator, options.processes, options.process, wait)
    enable_compilation_cache()
    with StopRequest(limit) as stop:
        return run_sweep(options, distributed.raise_on_all(lambda: load_experiment_file(options)), stop, patience)


def train_in_parallel(options) -> int:
    """Train members side by side, in processes that share them; stores of text are made beforehand."""
    if options.jobs < 1 or options.processes or options.coordinator or options.process is not None:
        raise distributed.DistributedError(
            f"--jobs {options.jobs} must be at least 1, and goes without --processes and the like"
        )
    found = load_experiment_file(options)
    check_and_save_table(found, Path(options.runs))
    for data in dict.fromkeys(member.data for member in found.experiments if isinstance(member.data, PretrainingData)):
        prepare_store(data, log_to_stderr)
    line = iter(options.line)
    kept = [word for word in line if not (word == "--jobs" and next(line)) and not word.startswith("--jobs=")]
    status = launch_workers(PROGRAM, kept, options.jobs, WORKER_VARIABLE, log_to_stderr)
    if status != STOPPED_STATUS:
        runs = Path(options.runs)
        results = {each.name: done for each in found.experiments if (done := loop.read_result(runs / each.name))}
        print_results(found, results, runs)
    return status


def check_and_save_table(experiment_file: ExperimentFile, runs_dir: Path) -> None:
    """Refuse what would be found out hours later, folders of other experiments and text or rows that are missing; then
    keep the table beside its runs."""
    for each in experiment_file.experiments:
        if changes := differing_fields(each, runs_dir / each.name):
            raise wrong_experiment(runs_dir / each.name, changes)
    for data in sorted(
        dict.fromkeys(e.data for e in experiment_file.experiments), key=lambda data: isinstance(data, PretrainingData)
    ):
        data.check_readable()
    if experiment_file.table and distributed.is_primary():
        save_table(experiment_file.table, runs_dir)


def run_sweep(options, experiment_file: ExperimentFile, stop: StopRequest, hang_timeout: float) -> int:
    """Train one member after the other; the status of the process."""
    runs = Path(options.runs)
    distributed.raise_on_all(lambda: check_and_save_table(experiment_file, runs))
    sweep = Sweep(experiment_file.experiments, runs, log_to_stderr, is_expected, experiment_file.other_experiments)
    if experiment_file.table:
        sweep.on_finished = lambda member: table_results.compute_extra_scores(experiment_file.table, member, runs)
    finished = [member.name for member in experiment_file.experiments if loop.read_result(runs / member.name)]
    status = sweep.train(options.profile, stop, hang_timeout)
    if finished:
        log_to_stderr(
            f"already finished: {', '.join(finished)}. To start one over, remove its folder in {options.runs}/"
        )
    if status != STOPPED_STATUS and distributed.is_primary():
        print_results(experiment_file, sweep.results, runs)
    return status


def print_results(experiment_file: ExperimentFile, results: dict[str, dict], runs_dir: Path) -> None:
    if results:
        print(
            summaries.summarize_results(
                [(each, results[each.name]) for each in experiment_file.experiments if each.name in results]
            )
        )
        if experiment_file.table:
            comparison = table_results.collect_table_results(experiment_file.table, runs_dir)
            print(f"\n{table_results.format_results(comparison)}")


def show_status(options) -> int:
    known = load_experiment_file(options)
    found = measure_progress(
        Sweep(
            known.experiments, Path(options.runs), log_to_stderr, is_expected, known.other_experiments, started_at=0.0
        )
    )
    rows = [["member", "state", "steps", "left", ""]]
    for each in found:
        left = (
            ""
            if each.state == "done"
            else "unknown"
            if each.seconds_left is None
            else format_duration(each.seconds_left)
        )
        rows.append(
            [each.experiment.name, each.state, f"{each.step:,} of {each.experiment.num_steps:,}", left, each.note]
        )
    states = [each.state for each in found]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    left = [each.seconds_left for each in found if each.seconds_left is not None]
    unknown = f" and {len(found) - len(left)} of unknown length" * (len(left) < len(found))
    print(format_grid(rows))
    print(f"{len(found)} members: {counts}; left, one after the other: {format_duration(sum(left))}{unknown}")
    return 0


def show_table(options) -> int:
    if (found := load_experiment_file(options).table) is None:
        raise ExperimentError(f"{options.experiment} defines no `table`, as the files of experiments/ablations/ do")
    results = table_results.collect_table_results(found, Path(options.runs))
    print(table_results.format_results(results, options.format))
    return 0


def write_report(options) -> int:
    folder = Path(options.folder)
    sheets = [
        sheet
        for table in map(refresh_table, load_saved_tables(folder))
        for sheet in table_results.collect_table_results(table, folder).build_report_tables()
    ]
    out = Path(options.out) if options.out else folder / "report.html"
    write_file_atomically(out, build_page(folder, sheets, options.title).encode())
    print(out)
    return 0


def open_run(options) -> tuple[Run, int, dict]:
    """The run that the options name, the step they name, and its parameters."""
    run = Run.open(Path(options.run), options.store)
    return run, *run.load_params(options.step)


def print_scores(options) -> int:
    run, step, params = open_run(options)
    batches = options.batches or 10**9
    scores = (
        evaluate_with_overrides(run, params, options.set, batches)
        if options.set
        else evaluate_run(run, params, num_batches=batches)
    )
    print(json.dumps({"run": run.experiment.name, "step": step} | scores, indent=1))
    return 0


def predict_texts(options) -> int:
    from encoders.cli.predict_lines import predict_lines

    return predict_lines(options, log_to_stderr)


def write_submission(options) -> int:
    from encoders.inference.predictor import load_predictor

    predictor = load_predictor(options.run, options.step)
    data = predictor.run.experiment.data
    if not isinstance(data, LabelledData):
        raise ExperimentError(f"{options.run} was trained on no task whose rows could be answered")
    if not (answers := getattr(data.task, "build_submission", None)):
        raise ExperimentError(f"{data.task.name}: GLUE's tasks and SQuAD have files to submit, and this is neither")
    folder, root = Path(options.folder), options.root or data.root
    files = dict(answers(predictor, root))
    if not any(files.values()):
        raise ExperimentError(f"{root} has no test rows of {data.task.name}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        if text is None:
            log_to_stderr(f"{name}: left out, since its rows are not in {root}")
        else:
            (folder / name).write_text(text, encoding="utf-8")
            print(folder / name)
    return 0


def import_to_run(options) -> int:
    convert.import_checkpoint(
        options.folder, options.run, generator=options.generator, tokenizer_files=options.vocabulary, log=print
    )
    return 0


def export_to_folder(options) -> int:
    convert.export_run(options.run, options.folder, step=options.step, log=print)
    return 0


def run_bench(options) -> int:
    from encoders.bench.results_table import run_measurement

    return run_measurement(options, load_experiments(options), log_to_stderr)


VERBS = {
    "bench": run_bench,
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
