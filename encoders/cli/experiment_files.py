"""The members of an experiment file, as `--with`, `--set` and `--only` choose them."""

from __future__ import annotations

import difflib
import fnmatch
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from encoders.experiment import Experiment, apply_settings
from encoders.sweeps.paper_table import PaperTable, Study, load_saved_tables
from encoders.utils.overrides import ExperimentError, parse_value, shorten_text


def find_experiment_file(name: str) -> Path:
    """The experiment file that `name` means: a path, or a file of experiments/ or its ablations/ without its ending."""
    home = Path("experiments")
    for path in (Path(name), home / f"{name}.py", home / name, home / "ablations" / f"{name}.py"):
        if path.is_file():
            if path.suffix != ".py":
                raise ExperimentError(f"{path} is no Python file that lists experiments")
            return path
    known = sorted(path.stem for path in home.rglob("*.py"))
    near = difflib.get_close_matches(name.rpartition("/")[2].removesuffix(".py"), known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ExperimentError(f"there is no experiment {name!r}{hint} There are {', '.join(known) or 'none here'}")


def import_experiment_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class ExperimentFile:
    """What a file has: its members that are chosen, with every `--set` applied; the others, those of a table as they
    were last kept; its table, if it has one, of both."""

    experiments: list[Experiment]
    other_experiments: list[Experiment]
    table: PaperTable | None


def load_experiments(options) -> list[Experiment]:
    """The experiments of a file, those that `--only` names, with every `--set` applied."""
    return load_experiment_file(options).experiments


def load_experiment_file(options) -> ExperimentFile:
    path = find_experiment_file(options.experiment)
    module = import_experiment_file(path)
    table = load_paper_table(module, options) if hasattr(module, "table") else None
    found = table.experiments if table else list_experiments(module, path, options)
    before = load_saved_experiments(table, options) if table and options.only else {}
    names = [experiment.name for experiment in found]
    if len(set(names)) < len(names):
        raise ExperimentError(f"{path}: two members have the same name")
    for pattern in options.only:
        if not fnmatch.filter(names, pattern):
            raise ExperimentError(
                shorten_text(f"--only {pattern}: no member has that name; there are {', '.join(names)}")
            )
    chosen = [name for name in names if not options.only or any(fnmatch.fnmatch(name, each) for each in options.only)]
    if any(setting.startswith("name=") for setting in options.set) and (table or len(chosen) > 1):
        told = "the members of a table are known by their names" if table else "choose one with --only"
        raise ExperimentError(f"--set name=... would give {len(chosen)} members one name; {told}")

    def resolve_experiment(experiment: Experiment) -> Experiment:
        if experiment.name not in chosen:
            return before.get(experiment.name, experiment)
        return apply_settings(experiment, options.set) if options.set else experiment

    mine = [resolve_experiment(each) for each in found if each.name in chosen]
    others = [resolve_experiment(each) for each in found if each.name not in chosen]
    return ExperimentFile(mine, others, table and table.map_experiments(resolve_experiment))


def list_experiments(module: ModuleType, path: Path, options) -> Sequence[Experiment]:
    """The `experiments` that a file defines, as a list or as a function of what `--with` gives."""
    found = getattr(module, "experiments", None)
    if callable(found):
        found = found(**parse_with_settings(found, options))
    elif options.given:
        raise ExperimentError(f"{path} lists its experiments and takes nothing --with")
    if not found or not all(isinstance(each, Experiment) for each in found):
        raise ExperimentError(f"{path} must define `experiments`, a list of Experiment values, or `table`")
    return found


def load_paper_table(module: ModuleType, options) -> PaperTable:
    """The table that a file makes of a `Study`; without `--with` the one that was trained in the folder of runs."""
    runs = getattr(options, "runs", "runs")
    if not options.given and options.verb in ("status", "table"):
        before = [each for each in load_saved_tables(Path(runs)) if each.source_file == Path(module.__file__).stem]
        if len(before) > 1:
            told = ", ".join(each.name for each in before)
            raise ExperimentError(f"{runs} has {told}: say which with --with scale=... and what else was given")
        if before:
            return refresh_table(before[0], module)
    given = parse_with_settings(Study, options)
    if given.get("scale") == "paper" and (useless := sorted(given.keys() & {"tokens", "rows", "tasks"})):
        raise ExperimentError(f"--with {useless[0]}=... is of small scale, and scale=paper was given")
    return replace(module.table(Study(**given)), source_file=Path(module.__file__).stem)


def refresh_table(table: PaperTable, module: ModuleType | None = None) -> PaperTable:
    """A kept table as its file makes it today, of the members that were kept; as it was kept, where no such file is
    found."""
    try:
        module = module or import_experiment_file(find_experiment_file(table.source_file))
    except ExperimentError:
        return table
    if table.study is None or not hasattr(module, "table"):
        return table
    made = replace(module.table(table.study), source_file=table.source_file)
    return made.map_experiments(lambda member: table.experiments_by_name.get(member.name, member))


def load_saved_experiments(table: PaperTable, options) -> dict[str, Experiment]:
    """The members of a table by name, as it was kept beside its runs."""
    runs = Path(getattr(options, "runs", "runs"))
    return next((each.experiments_by_name for each in load_saved_tables(runs) if each.name == table.name), {})


def parse_with_settings(function: Callable, options) -> dict:
    """What `--with` gives the function that makes the experiments of a file, each read by its declared type; its `runs`
    is the folder of `--runs`."""
    known = inspect.signature(function, eval_str=True).parameters
    declared = {name: each for name, each in known.items() if name != "runs"}
    given = {}
    for setting in options.given:
        name, equals, text = setting.partition("=")
        if not equals or name not in declared:
            raise ExperimentError(f"--with {setting!r} must be NAME=VALUE with a name of {', '.join(declared)}")
        given[name] = parse_value(text, declared[name].annotation, f"--with {name}")
    missing = [name for name, each in declared.items() if each.default is each.empty and name not in given]
    if missing:
        raise ExperimentError(f"{options.experiment} needs --with {' '.join(f'{name}=...' for name in missing)}")
    return given | ({"runs": getattr(options, "runs", "runs")} if "runs" in known else {})
