"""The members of an experiment file, as `--with`, `--set` and `--only` choose them."""

from __future__ import annotations

import difflib
import fnmatch
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from encoders.ablation import Study, Table
from encoders.experiment import Experiment, override
from encoders.values import ExperimentError, read


def find(name: str) -> Path:
    """The experiment file that `name` means: a path, or a file of experiments/ or its ablations/ without its ending."""
    home = Path("experiments")
    for path in (Path(name), home / f"{name}.py", home / name, home / "ablations" / f"{name}.py"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in home.rglob("*.py"))
    near = difflib.get_close_matches(name.rpartition("/")[2].removesuffix(".py"), known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ExperimentError(f"there is no experiment {name!r}{hint} There are {', '.join(known) or 'none here'}")


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def members(options) -> list[Experiment]:
    """The experiments of a file, those that `--only` names, with every `--set` applied."""
    path = find(options.experiment)
    module = module_of(path)
    found = listed(module, path, options) if not hasattr(module, "table") else tabled(module, options).members
    names = [experiment.name for experiment in found]
    if len(set(names)) < len(names):
        raise ExperimentError(f"{path}: two members have the same name")
    for pattern in options.only:
        if not fnmatch.filter(names, pattern):
            raise ExperimentError(f"--only {pattern}: no member has that name; there are {', '.join(names)}")
    found = [e for e in found if not options.only or any(fnmatch.fnmatch(e.name, each) for each in options.only)]
    if len(found) > 1 and any(setting.startswith("name=") for setting in options.set):
        raise ExperimentError(f"--set name=... would give {len(found)} members one name; choose one with --only")
    return [override(experiment, options.set) for experiment in found]


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
    return module.table(Study(**{"runs": getattr(options, "runs", "runs")} | arguments(Study, options)))


def table(options) -> Table | None:
    """The table of a file of experiments/ablations/, with every `--set` applied to its members; None of other files."""
    module = module_of(find(options.experiment))
    if not hasattr(module, "table"):
        return None
    found = tabled(module, options)
    return found.changed(lambda member: override(member, options.set)) if options.set else found


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
