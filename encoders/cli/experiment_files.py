"""Experiment files: where they are, and the experiments that `--with`, `--set` and `--only` choose in them."""

import difflib
import fnmatch
import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from encoders.experiment import Experiment, apply_settings, list_differences
from encoders.library import LIBRARY_FOLDER
from encoders.measures.base import Measure
from encoders.run.folder import open_run_folder
from encoders.sweeps.paper_table import PaperTable, Study, load_saved_tables
from encoders.sweeps.small_scale import SCALES
from encoders.utils.code_files import import_file
from encoders.utils.overrides import parse_value, shorten_text
from encoders.utils.serialization import ExperimentError, flatten_fields


@dataclass(frozen=True)
class ExperimentChoice:
    """The arguments of a command that choose experiments: a file or a name of the library, and options.

    With `reuse_saved_table` a table without arguments is the one that was trained in `runs`.
    """

    experiment: str
    with_settings: Sequence[str] = ()
    settings: Sequence[str] = ()
    only: Sequence[str] = ()
    runs: str = "runs"
    reuse_saved_table: bool = False


@dataclass(frozen=True)
class ExperimentFile:
    """The chosen experiments of a file, with every setting applied; the others, of a table as last saved; its table.

    `measures`, a list that the file defines, are computed of every finished run.
    """

    experiments: list[Experiment]
    other_experiments: list[Experiment]
    table: PaperTable | None
    measures: Sequence[Measure] = ()


def find_experiment_file(name: str) -> Path:
    """Return the file of a path or of a name in the library. Raises `ExperimentError` with the nearest name."""
    library = LIBRARY_FOLDER
    for path in (Path(name), library / f"{name}.py", library / name, library / "ablations" / f"{name}.py"):
        if path.is_file():
            if path.suffix != ".py":
                raise ExperimentError(f"{path} must be a Python file that lists experiments")
            return path
    known = sorted(path.stem for path in library.rglob("*.py") if path.stem != "__init__")
    similar = difflib.get_close_matches(name.rpartition("/")[2].removesuffix(".py"), known, 1)
    hint = f"; did you mean {similar[0]!r}?" if similar else "."
    raise ExperimentError(f"{name!r} is neither a file nor a named experiment{hint} The names are {', '.join(known)}")


def import_experiment_file(path: Path) -> ModuleType:
    """Import a file of the library, or one anywhere on disk, which may import what lies beside it."""
    library = LIBRARY_FOLDER.resolve()
    if library in path.resolve().parents:
        inner = path.resolve().relative_to(library).with_suffix("").parts
        return importlib.import_module(".".join(("encoders.library", *inner)))
    return import_file(path)


def load_experiments(name: str, only: Sequence[str] = (), **arguments) -> dict[str, Experiment]:
    """Return the experiments of a file, or of a name of the library, by their names.

    `arguments` are those of a file whose experiments are a function. Raises `ExperimentError`.

    >>> import encoders
    >>> list(encoders.load_experiments("quickstart", only=["*-bert", "*-electra"]))
    ['quickstart-bert', 'quickstart-electra']
    """
    choice = ExperimentChoice(name, [f"{key}={value}" for key, value in arguments.items()], only=only)
    return {experiment.name: experiment for experiment in load_experiment_file(choice).experiments}


def load_experiment_file(choice: ExperimentChoice) -> ExperimentFile:
    """Return what a command has chosen of a file. Raises `ExperimentError`."""
    path = find_experiment_file(choice.experiment)
    module = import_experiment_file(path)
    table = load_paper_table(module, choice) if hasattr(module, "table") else None
    experiments = table.experiments if table else list_experiments(module, path, choice)
    names, patterns = [experiment.name for experiment in experiments], choice.only or ["*"]
    if len(set(names)) < len(names):
        raise ExperimentError(f"{path}: two experiments have the same name; give each its own")
    if missing := [pattern for pattern in choice.only if not fnmatch.filter(names, pattern)]:
        raise ExperimentError(shorten_text(f"--only {missing[0]} matches no experiment; there are {', '.join(names)}"))
    chosen = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    if any(setting.startswith("name=") for setting in choice.settings) and (table or len(chosen) > 1):
        hint = "a table finds its experiments by name" if table else "choose one with --only"
        raise ExperimentError(f"--set name=... would rename {len(chosen)} experiments: {hint}")
    # Experiments that are not chosen stay as they were trained.
    saved_tables = load_saved_tables(open_run_folder(choice.runs)) if table and choice.only else []
    saved = next((other.experiments_by_name for other in saved_tables if other.name == table.name), {})

    def resolve_experiment(experiment: Experiment) -> Experiment:
        if experiment.name not in chosen:
            return saved.get(experiment.name, experiment)
        return apply_settings(experiment, choice.settings) if choice.settings else experiment

    selected = [resolve_experiment(experiment) for experiment in experiments if experiment.name in chosen]
    others = [resolve_experiment(experiment) for experiment in experiments if experiment.name not in chosen]
    measures = getattr(module, "measures", ())
    if not all(isinstance(measure, Measure) for measure in measures):
        raise ExperimentError(f"{path} must define `measures` as a list of Measure values")
    return ExperimentFile(selected, others, table and table.map_experiments(resolve_experiment), measures)


def list_experiments(module: ModuleType, path: Path, choice: ExperimentChoice) -> Sequence[Experiment]:
    """Return the `experiments` that a file defines, as a list or as a function of the `--with` arguments."""
    experiments = getattr(module, "experiments", None)
    if callable(experiments):
        experiments = experiments(**parse_with_settings(experiments, choice))
    elif choice.with_settings:
        raise ExperimentError(f"--with {' '.join(choice.with_settings)}: {path} lists experiments without arguments")
    if not experiments or not all(isinstance(experiment, Experiment) for experiment in experiments):
        raise ExperimentError(f"{path} must define `experiments`, a list of Experiment values, or `table`")
    return experiments


def parse_with_settings(function: Callable, choice: ExperimentChoice) -> dict:
    """Return the `--with` arguments of a file's function, each read by its declared type, with `runs` from `--runs`."""
    parameters = dict(inspect.signature(function, eval_str=True).parameters)
    arguments = {"runs": choice.runs} if parameters.pop("runs", None) else {}
    for setting in choice.with_settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in parameters:
            raise ExperimentError(f"--with {setting!r} must be NAME=VALUE with a name of {', '.join(parameters)}")
        arguments[name] = parse_value(text, parameters[name].annotation, f"--with {name}")
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if missing := [name for name in required if name not in arguments]:
        raise ExperimentError(f"{choice.experiment} needs --with {' '.join(f'{name}=...' for name in missing)}")
    return arguments


def load_paper_table(module: ModuleType, choice: ExperimentChoice) -> PaperTable:
    """Return the table that a file makes of a `Study`, or the one that was trained in the folder of runs."""
    stem = Path(module.__file__).stem
    if choice.reuse_saved_table and not choice.with_settings:
        saved = [table for table in load_saved_tables(open_run_folder(choice.runs)) if table.source_file == stem]
        if len(saved) > 1:
            names = ", ".join(table.name for table in saved)
            raise ExperimentError(f"{choice.runs} has {names}; choose one with --with scale=... as it was trained")
        if saved:
            return refresh_table(saved[0], module)
    arguments = parse_with_settings(Study, choice)
    small_only = sorted(arguments.keys() & {"tokens", "rows", "tasks"})
    if arguments.get("scale") == "paper" and small_only:
        accepted = ", ".join(f"scale={name}" for name in SCALES)
        raise ExperimentError(f"--with {small_only[0]}=... is for {accepted}, and scale=paper was given")
    return replace(module.table(Study(**arguments)), source_file=stem)


def describe_small_scale(table: PaperTable, source: str) -> Iterator[str]:
    """Yield what small scale changes in the experiments of a table, and in which fields its rows differ no longer.

    `source` is the name or the path of its file.
    """
    if table.study is None or not table.study.is_scaled_down:
        return
    module = import_experiment_file(find_experiment_file(source))
    paper_rows = {row.name: row for row in module.table(replace(table.study, scale="paper")).rows}
    pairs = {
        row.name: (flatten_fields(paper_rows[row.name].pretrain_runs[0]), flatten_fields(row.pretrain_runs[0]))
        for row in table.rows
        if row.pretrain_runs and row.name in paper_rows and paper_rows[row.name].pretrain_runs
    }
    changes = {name: list_differences(paper, small) for name, (paper, small) in pairs.items()}
    shared = [line for line in next(iter(changes.values()), []) if all(line in lines for lines in changes.values())]
    yield f"small scale ({table.name}): what is in the paper's experiments (there) and in these (here)"
    for name, lines in {"every row": shared, **changes}.items():
        if own := [line for line in lines if name == "every row" or line not in shared]:
            yield f"  {name}: {'; '.join(own)}"
    count_values = lambda side, path: len({str(pair[side].get(path)) for pair in pairs.values()})
    paths = sorted({path for paper, _ in pairs.values() for path in paper})
    if lost := [path for path in paths if count_values(0, path) > 1 and count_values(1, path) == 1]:
        yield f"  the rows differ in the paper, and no longer here, in {', '.join(lost)} (`small_changes` keeps them)"


def refresh_table(table: PaperTable, module: ModuleType | None = None) -> PaperTable:
    """Return a saved table with its file's rows of today and the saved experiments; unchanged if the file is gone."""
    try:
        module = module or import_experiment_file(find_experiment_file(table.source_file))
    except ExperimentError:
        return table
    if table.study is None or not hasattr(module, "table"):
        return table
    refreshed = replace(module.table(table.study), source_file=table.source_file)
    saved = table.experiments_by_name
    return refreshed.map_experiments(lambda experiment: saved.get(experiment.name, experiment))
