"""What the verbs of `launch.py` do."""

from __future__ import annotations

import difflib
import fnmatch
import importlib.util
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import jax

from encoders import convert, report
from encoders.data.labelled import Labelled
from encoders.data.prepare import Data, prepared
from encoders.data.repair import damaged, repair
from encoders.data.runners import Beam, Here, Runner, Unfinished
from encoders.data.store import Store
from encoders.exchange.weights import CheckpointError
from encoders.experiment import Experiment, describe, override
from encoders.files import check_local
from encoders.inspect import View, described, numbers
from encoders.ledger import show as ledger
from encoders.text.source import CorpusError
from encoders.training import hosts, loop
from encoders.training.local import spread
from encoders.training.run import Run, RunError
from encoders.training.stopping import STATUS, Stop, Stopped, seconds
from encoders.values import ExperimentError, read

PROGRAM = Path(__file__).parents[1] / "launch.py"


def is_expected(error: Exception) -> bool:
    """Whether an error speaks for itself, so that no traceback is shown."""
    named = ExperimentError | CorpusError | RunError | CheckpointError | Unfinished | hosts.HostsError
    return isinstance(error, named) or type(error) is ValueError


def check_places(options) -> None:
    """Raises `ValueError` for folders that are none of this machine."""
    check_local(*(getattr(options, name, None) for name in ("runs", "run", "folder", "store", "out", "root")))


def find(name: str) -> Path:
    """The experiment file that `name` means: a path, or a file of experiments/ without its ending."""
    home = Path("experiments")
    for path in (Path(name), home / f"{name}.py", home / name):
        if path.is_file():
            return path
    known = sorted(str(path.relative_to(home).with_suffix("")) for path in home.rglob("*.py"))
    near = difflib.get_close_matches(name.removeprefix("experiments/").removesuffix(".py"), known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ExperimentError(f"there is no experiment {name!r}{hint} There are {', '.join(known) or 'none here'}")


def members(options) -> list[Experiment]:
    """The experiments of a file, those that `--only` names, with every `--set` applied."""
    path = find(options.experiment)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, "experiments", None)
    if callable(found):
        found = found(**arguments(found, options))
    elif options.given:
        raise ExperimentError(f"{path} lists its experiments and takes nothing --with")
    if not found or not all(isinstance(each, Experiment) for each in found):
        raise ExperimentError(f"{path} must define `experiments`, a list of Experiment values")
    names = [experiment.name for experiment in found]
    if len(set(names)) < len(names):
        raise ExperimentError(f"{path}: two members have the same name")
    for pattern in options.only:
        if not fnmatch.filter(names, pattern):
            raise ExperimentError(f"--only {pattern}: no member has that name; there are {', '.join(names)}")
    chosen = [e for e in found if not options.only or any(fnmatch.fnmatch(e.name, p) for p in options.only)]
    if len(chosen) > 1 and any(setting.startswith("name=") for setting in options.set):
        raise ExperimentError(f"--set name=... would give {len(chosen)} members one name; choose one with --only")
    return [override(experiment, options.set) for experiment in chosen]


def arguments(make: Callable, options) -> dict:
    """What `--with` gives the function that makes the experiments of a file, each read by its declared type."""
    declared = inspect.signature(make, eval_str=True).parameters
    given = {}
    for setting in options.given:
        name, equals, text = setting.partition("=")
        if not equals or name not in declared:
            raise ExperimentError(f"--with {setting!r} must be NAME=VALUE with a name of {', '.join(declared)}")
        given[name] = read(text, declared[name].annotation, f"--with {name}")
    missing = [name for name, each in declared.items() if each.default is each.empty and name not in given]
    if missing:
        raise ExperimentError(f"{options.experiment} needs --with {' '.join(f'{name}=...' for name in missing)}")
    return given


def say(line: str) -> None:
    if hosts.primary():
        print(line, file=sys.stderr)


def show(options) -> int:
    if options.experiment == "table-2.1":
        print(report.table_2_1())
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
        raise hosts.HostsError(f"--processes {options.processes} must be at least 1")
    if options.processes and options.coordinator is None and options.process is None:
        return spread(PROGRAM, options.line, options.processes, say)
    hosts.join(options.coordinator, options.processes, options.process, wait)
    keep_compiled()
    with Stop(limit) as stop:
        return trained(options, hosts.agreed(lambda: members(options)), stop, patience)


def trained(options, chosen: list[Experiment], stop: Stop, patience: float) -> int:
    """Train one member after the other; the status of the process."""
    results, failed, finished = [], [], []
    for experiment in chosen:
        folder = Path(options.runs) / experiment.name
        if loop.result(folder):
            finished.append(experiment.name)
        try:
            results.append((experiment, loop.train(experiment, folder, say, options.profile, stop, patience)))
        except Stopped as reason:
            say(f"{reason}; the same command goes on")
            return STATUS
        except Exception as error:
            if len(chosen) == 1:
                raise
            if not is_expected(error):
                traceback.print_exc()
            say(f"{experiment.name} failed: {error}")
            failed.append(experiment.name)
    if finished:
        say(f"already finished: {', '.join(finished)}. To start one over, remove its folder in {options.runs}/")
    if results and hosts.primary():
        print(report.summary(results))
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def opened(options) -> tuple[Run, int, dict]:
    """The run that the options name, the step they name, and its parameters."""
    run = Run.open(Path(options.run), options.store)
    return run, *run.params(options.step)


def evaluate(options) -> int:
    run, step, params = opened(options)
    scores = run.evaluate(params, batches=options.batches or 10**9)
    print(json.dumps({"run": run.experiment.name, "step": step} | scores, indent=1))
    return 0


def predict(options) -> int:
    from encoders.ask import ask

    return ask(options, say)


def submit(options) -> int:
    from encoders.predict import load

    predictor = load(options.run, options.step)
    data = predictor.run.experiment.data
    if not isinstance(data, Labelled):
        raise ExperimentError(f"{options.run} was trained on no task whose rows could be answered")
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = list(data.task.submission(predictor, options.root or data.root))
    for name, text in files:
        (folder / name).write_text(text, encoding="utf-8")
        print(folder / name)
    if not files:
        raise ExperimentError(f"{options.root or data.root} has no test rows of {data.task.name}")
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
    from encoders.bench.table import measured

    return measured(options, members(options), say)


VERBS = {
    "bench": measure,
    "show": show,
    "prepare": prepare,
    "inspect": inspect_store,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "submit": submit,
    "import": bring_in,
    "export": write_out,
}
