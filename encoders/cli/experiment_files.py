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

from encoders.experiment import Experiment, override
from encoders.sweeps.paper_table import Study, Table, kept
from encoders.utils.overrides import ExperimentError, read, shortened


def find(name: str) -> Path:
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


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Found:
    """What a file has: its members that are chosen, with every `--set` applied; the others, those of a table as they
    were last kept; its table, if it has one, of both."""

    members: list[Experiment]
    others: list[Experiment]
    table: Table | None


def members(options) -> list[Experiment]:
    """The experiments of a file, those that `--only` names, with every `--set` applied."""
    return load(options).members


def load(options) -> Found:
    path = find(options.experiment)
    module = module_of(path)
    table = tabled(module, options) if hasattr(module, "table") else None
    found = table.members if table else listed(module, path, options)
    before = kept_members(table, options) if table and options.only else {}
    names = [experiment.name for experiment in found]
    if len(set(names)) < len(names):
        raise ExperimentError(f"{path}: two members have the same name")
    for pattern in options.only:
        if not fnmatch.filter(names, pattern):
            raise ExperimentError(shortened(f"--only {pattern}: no member has that name; there are {', '.join(names)}"))
    chosen = [name for name in names if not options.only or any(fnmatch.fnmatch(name, each) for each in options.only)]
    if any(setting.startswith("name=") for setting in options.set) and (table or len(chosen) > 1):
        told = "the members of a table are known by their names" if table else "choose one with --only"
        raise ExperimentError(f"--set name=... would give {len(chosen)} members one name; {told}")

    def wanted(each: Experiment) -> Experiment:
        if each.name not in chosen:
            return before.get(each.name, each)
        return override(each, options.set) if options.set else each

    mine = [wanted(each) for each in found if each.name in chosen]
    others = [wanted(each) for each in found if each.name not in chosen]
    return Found(mine, others, table and table.changed(wanted))


def listed(module: ModuleType, path: Path, options) -> Sequence[Experiment]:
    """The `experiments` that a file defines, as a list or as a function of what `--with` gives."""
    found = getattr(module, "experiments", None)
    if callable(found):
        found = found(**arguments(found, options))
    elif options.given:
        raise ExperimentError(f"{path} lists its experiments and takes nothing --with")
    if not found or not all(isinstance(each, Experiment) for each in found):
        raise ExperimentError(f"{path} must define `experiments`, a list of Experiment values, or `table`")
    return found


def tabled(module: ModuleType, options) -> Table:
    """The table that a file makes of a `Study`; without `--with` the one that was trained in the folder of runs."""
    runs = getattr(options, "runs", "runs")
    if not options.given and options.verb in ("status", "table"):
        before = [each for each in kept(Path(runs)) if each.file == Path(module.__file__).stem]
        if len(before) > 1:
            told = ", ".join(each.name for each in before)
            raise ExperimentError(f"{runs} has {told}: say which with --with scale=... and what else was given")
        if before:
            return renewed(before[0], module)
    given = arguments(Study, options)
    if given.get("scale") == "paper" and (useless := sorted(given.keys() & {"tokens", "rows", "tasks"})):
        raise ExperimentError(f"--with {useless[0]}=... is of small scale, and scale=paper was given")
    return replace(module.table(Study(**given)), file=Path(module.__file__).stem)


def renewed(table: Table, module: ModuleType | None = None) -> Table:
    """A kept table as its file makes it today, of the members that were kept; as it was kept, where no such file is
    found."""
    try:
        module = module or module_of(find(table.file))
    except ExperimentError:
        return table
    if table.study is None or not hasattr(module, "table"):
        return table
    made = replace(module.table(table.study), file=table.file)
    return made.changed(lambda member: table.places.get(member.name, member))


def kept_members(table: Table, options) -> dict[str, Experiment]:
    """The members of a table by name, as it was kept beside its runs."""
    runs = Path(getattr(options, "runs", "runs"))
    return next((each.places for each in kept(runs) if each.name == table.name), {})


def arguments(make: Callable, options) -> dict:
    """What `--with` gives the function that makes the experiments of a file, each read by its declared type; its `runs`
    is the folder of `--runs`."""
    known = inspect.signature(make, eval_str=True).parameters
    declared = {name: each for name, each in known.items() if name != "runs"}
    given = {}
    for setting in options.given:
        name, equals, text = setting.partition("=")
        if not equals or name not in declared:
            raise ExperimentError(f"--with {setting!r} must be NAME=VALUE with a name of {', '.join(declared)}")
        given[name] = read(text, declared[name].annotation, f"--with {name}")
    missing = [name for name, each in declared.items() if each.default is each.empty and name not in given]
    if missing:
        raise ExperimentError(f"{options.experiment} needs --with {' '.join(f'{name}=...' for name in missing)}")
    return given | ({"runs": getattr(options, "runs", "runs")} if "runs" in known else {})
