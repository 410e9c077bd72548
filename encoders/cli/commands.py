"""What the verbs of `launch.py` do."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import jax

from encoders.cli.experiment_files import Found, load, members, renewed
from encoders.cli.inspect_store import View, described, numbers
from encoders.costs.ledger import show as ledger
from encoders.data.beam_runner import Beam, Here, Runner, Unfinished
from encoders.data.labelled import Labelled
from encoders.data.prepare import Data, prepared
from encoders.data.repair import damaged, repair
from encoders.data.store import Store
from encoders.exchange import convert
from encoders.exchange.weights import CheckpointError
from encoders.experiment import describe
from encoders.inference.cross_evaluation import under
from encoders.reporting import summaries, tables
from encoders.reporting.page import page
from encoders.run import loop
from encoders.run.preemption import STATUS, Stop, duration, seconds
from encoders.run.run import Run, RunError, foreign, mismatch
from encoders.sweeps.local_workers import shared, spread
from encoders.sweeps.paper_table import keep, kept
from encoders.sweeps.sweep import WORKER, Sweep, progress
from encoders.text.source import CorpusError
from encoders.training import distributed
from encoders.utils.files import check_local, write_whole
from encoders.utils.overrides import ExperimentError

PROGRAM = Path(__file__).parents[2] / "launch.py"


def is_expected(error: Exception) -> bool:
    """Whether an error speaks for itself, so that no traceback is shown."""
    named = ExperimentError | CorpusError | RunError | CheckpointError | Unfinished | distributed.HostsError
    return isinstance(error, named) or type(error) is ValueError


def check_places(options) -> None:
    """Raises `ValueError` for folders that are none of this machine."""
    check_local(*(getattr(options, name, None) for name in ("runs", "run", "folder", "store", "out", "root")))


def say(line: str) -> None:
    if distributed.primary():
        print(line, file=sys.stderr)


def show(options) -> int:
    if options.experiment == "table-2.1":
        print(summaries.table_2_1())
        return 0
    chosen = members(options)
    if len(chosen) > 1:
        print(f"{len(chosen)} members: {', '.join(e.name for e in chosen)}\n")
    for experiment in chosen:
        print(f"== {experiment.name}")
        if len(chosen) == 1:
            print(describe(experiment))
        print(ledger(experiment), end="\n\n")
    return 0


def prepare(options) -> int:
    runner = runner_of(options)
    seen = set()
    for experiment in members(options):
        if isinstance(experiment.data, Labelled) and not Path(experiment.data.vocabulary.path).exists():
            say(f"{experiment.name}: left out, since {experiment.start} is not trained yet and has no vocabulary")
            continue
        store = prepared(experiment.data, say, runner)
        if options.repair and store.key not in seen:
            mend(store, experiment.data, runner)
        if store.key not in seen:
            seen.add(store.key)
            meta = store.meta
            print(f"{experiment.name}: {store.path}")
            keys = ("splits", "skipped", "filtered", "unknown_rate", "characters", "seconds", "peak_memory_mb")
            found = {key: meta[key] for key in keys if key in meta}
            if "seconds" in meta:
                found["speed"] = speed(meta)
            print(json.dumps(found, indent=1))
        for phase in experiment.phases if isinstance(experiment.data, Data) else ():
            if (rows := (store.key, phase.format, phase.length)) not in seen:
                seen.add(rows)
                print("\n".join(numbers(phase, store.train, experiment.seed)))
    return 0


def speed(meta: dict) -> dict[str, int]:
    """What a store's preparation had done in a second while it made tokens."""
    seconds = max(meta["seconds"]["tokens"], 0.01)
    tokens = sum(split["tokens"] for split in meta["splits"].values())
    return {"characters": round(meta["characters"] / seconds), "tokens": round(tokens / seconds)}


def runner_of(options) -> Runner:
    """Where `prepare` works."""
    if options.runner:
        if options.workers is not None:
            raise ExperimentError("--workers is for this machine; a Beam runner takes its own options after --")
        return Beam(options.runner, tuple(options.passed))
    if options.passed:
        raise ExperimentError(f"{' '.join(options.passed)}: pipeline options go with --runner")
    return Here(len(os.sched_getaffinity(0)) if options.workers is None else options.workers)


def mend(store: Store, data, runner: Runner) -> None:
    """Make damaged parts of a store again."""
    if "parts" not in store.meta:
        say(f"{store.path}: it has no checksums (labelled rows, or written by an earlier version), and stays as it is")
        return
    found = damaged(store)
    for number in found:
        say(f"{store.path}: part {number} ({store.meta['parts'][number]['of']}) is damaged")
    if found:
        repair(store, data, found, say, runner)
    say(f"{store.path}: {len(found) or 'no'} damaged part(s){', made again' * bool(found)}")


def inspect_store(options) -> int:
    store, view = Store.open(Path(options.store)), View()
    if options.experiment:
        chosen = members(options)
        if len(chosen) > 1:
            raise ExperimentError(f"--only must name one of {', '.join(e.name for e in chosen)}")
        view = View(chosen[0].phases, chosen[0].objective, chosen[0].seed)
    elif options.set or options.only or options.given:
        raise ExperimentError("--set, --only and --with are for an EXPERIMENT, and none is named")
    if options.verify:
        found = damaged(store)
        for number in found:
            say(f"part {number} ({store.meta['parts'][number]['of']}) is damaged; prepare --repair makes it again")
        say(f"{len(store.meta['parts'])} parts, {len(found) or 'none'} damaged")
        if found:
            return 1
    for line in described(store, view, options.rows, sys.stdout.isatty() and not options.plain):
        print(line)
    return 0


def keep_compiled() -> None:
    """Compiled steps stay on disk between runs: where `JAX_COMPILATION_CACHE_DIR` says, else in the user's cache."""
    if not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "encoders" / "compiled"))


def train(options) -> int:
    limit, wait, patience = (text and seconds(text) for text in (options.stop_after, options.wait, options.watchdog))
    if options.processes is not None and options.processes < 1:
        raise distributed.HostsError(f"--processes {options.processes} must be at least 1")
    if options.processes and options.coordinator is None and options.process is None:
        return spread(PROGRAM, options.line, options.processes, say)
    if options.jobs is not None:
        return at_once(options)
    distributed.join(options.coordinator, options.processes, options.process, wait)
    keep_compiled()
    with Stop(limit) as stop:
        return trained(options, distributed.agreed(lambda: load(options)), stop, patience)


def at_once(options) -> int:
    """Train members side by side, in processes that share them; stores of text are made beforehand."""
    if options.jobs < 1 or options.processes or options.coordinator or options.process is not None:
        raise distributed.HostsError(
            f"--jobs {options.jobs} must be at least 1, and goes without --processes and the like"
        )
    found = load(options)
    ready(found, Path(options.runs))
    for data in dict.fromkeys(member.data for member in found.members if isinstance(member.data, Data)):
        prepared(data, say)
    line = iter(options.line)
    kept = [word for word in line if not (word == "--jobs" and next(line)) and not word.startswith("--jobs=")]
    status = shared(PROGRAM, kept, options.jobs, WORKER, say)
    if status != STATUS:
        runs = Path(options.runs)
        results = {each.name: done for each in found.members if (done := loop.result(runs / each.name))}
        print_results(found, results, runs)
    return status


def ready(found: Found, runs: Path) -> None:
    """Refuse what would be found out hours later, folders of other experiments and text or rows that are missing; then
    keep the table beside its runs."""
    for each in found.members:
        if changes := mismatch(each, runs / each.name):
            raise foreign(runs / each.name, changes)
    for data in sorted(dict.fromkeys(e.data for e in found.members), key=lambda data: isinstance(data, Data)):
        data.check()
    if found.table and distributed.primary():
        keep(found.table, runs)


def trained(options, found: Found, stop: Stop, patience: float) -> int:
    """Train one member after the other; the status of the process."""
    runs = Path(options.runs)
    distributed.agreed(lambda: ready(found, runs))
    sweep = Sweep(found.members, runs, say, is_expected, found.others)
    if found.table:
        sweep.after = lambda member: tables.complete(found.table, member, runs)
    finished = [member.name for member in found.members if loop.result(runs / member.name)]
    status = sweep.train(options.profile, stop, patience)
    if finished:
        say(f"already finished: {', '.join(finished)}. To start one over, remove its folder in {options.runs}/")
    if status != STATUS and distributed.primary():
        print_results(found, sweep.results, runs)
    return status


def print_results(found: Found, results: dict[str, dict], runs: Path) -> None:
    if results:
        print(summaries.summary([(each, results[each.name]) for each in found.members if each.name in results]))
        if found.table:
            print(f"\n{tables.as_text(tables.filled(found.table, runs))}")


def status(options) -> int:
    known = load(options)
    found = progress(Sweep(known.members, Path(options.runs), say, is_expected, known.others, begun=0.0))
    rows = [["member", "state", "steps", "left", ""]]
    for each in found:
        left = "" if each.state == "done" else "unknown" if each.left is None else duration(each.left)
        rows.append([each.member.name, each.state, f"{each.step:,} of {each.member.steps:,}", left, each.note])
    states = [each.state for each in found]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    left = [each.left for each in found if each.left is not None]
    unknown = f" and {len(found) - len(left)} of unknown length" * (len(left) < len(found))
    print(summaries.grid(rows))
    print(f"{len(found)} members: {counts}; left, one after the other: {duration(sum(left))}{unknown}")
    return 0


def show_table(options) -> int:
    if (found := load(options).table) is None:
        raise ExperimentError(f"{options.experiment} defines no `table`, as the files of experiments/ablations/ do")
    print(tables.FORMATS[options.format](tables.filled(found, Path(options.runs))))
    return 0


def report_page(options) -> int:
    folder = Path(options.folder)
    sheets = [sheet for table in map(renewed, kept(folder)) for sheet in tables.sheets(tables.filled(table, folder))]
    out = Path(options.out) if options.out else folder / "report.html"
    write_whole(out, page(folder, sheets, options.title).encode())
    print(out)
    return 0


def opened(options) -> tuple[Run, int, dict]:
    """The run that the options name, the step they name, and its parameters."""
    run = Run.open(Path(options.run), options.store)
    return run, *run.params(options.step)


def evaluate(options) -> int:
    run, step, params = opened(options)
    batches = options.batches or 10**9
    scores = under(run, params, options.set, batches) if options.set else run.evaluate(params, batches=batches)
    print(json.dumps({"run": run.experiment.name, "step": step} | scores, indent=1))
    return 0


def predict(options) -> int:
    from encoders.cli.predict_lines import ask

    return ask(options, say)


def submit(options) -> int:
    from encoders.inference.predictor import load

    predictor = load(options.run, options.step)
    data = predictor.run.experiment.data
    if not isinstance(data, Labelled):
        raise ExperimentError(f"{options.run} was trained on no task whose rows could be answered")
    if not (answers := getattr(data.task, "submission", None)):
        raise ExperimentError(f"{data.task.name}: GLUE's tasks and SQuAD have files to submit, and this is neither")
    folder, root = Path(options.folder), options.root or data.root
    files = dict(answers(predictor, root))
    if not any(files.values()):
        raise ExperimentError(f"{root} has no test rows of {data.task.name}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        if text is None:
            say(f"{name}: left out, since its rows are not in {root}")
        else:
            (folder / name).write_text(text, encoding="utf-8")
            print(folder / name)
    return 0


def bring_in(options) -> int:
    convert.import_checkpoint(
        options.folder, options.run, generator=options.generator, vocabulary=options.vocabulary, say=print
    )
    return 0


def write_out(options) -> int:
    convert.export_run(options.run, options.folder, step=options.step, say=print)
    return 0


def measure(options) -> int:
    from encoders.bench.results_table import measured

    return measured(options, members(options), say)


VERBS = {
    "bench": measure,
    "show": show,
    "status": status,
    "table": show_table,
    "report": report_page,
    "prepare": prepare,
    "inspect": inspect_store,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "submit": submit,
    "import": bring_in,
    "export": write_out,
}
