"""Tables of the papers as values: their rows, the experiments behind each, and the published numbers.

A file of experiments/ablations/ defines `table(study)`. A `Study` has the scale, the text, the tasks and the number of
seeds. At paper scale an experiment is the paper's own with one thing changed. Below it, it is shrunk as a `Scale` of
`small_scale.py` says, and the property that the table compares is kept.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from encoders.costs.ledger import run_flops
from encoders.data.labelled import LabelledData, TaskSpec
from encoders.data.spec import PretrainingData
from encoders.experiment import Experiment, strip_seeds
from encoders.finetuning.grids import build_finetuning, build_finetuning_grid
from encoders.finetuning.recipes import build_recipes
from encoders.sweeps.score_columns import ScoreColumn, build_measure_columns, list_tasks
from encoders.sweeps.small_scale import SCALES, Scale
from encoders.tasks import glue, squad
from encoders.tasks.multiple_choice import MultipleChoiceTask
from encoders.tasks.token_classification import TokenTask
from encoders.utils.errors import UserError
from encoders.utils.files import read_json_file, write_json
from encoders.utils.serialization import ExperimentError, fingerprint_content, from_json_value, to_json_value

PublishedNumber = float | tuple[float, ...] | None  # two where a paper contradicts itself, None where it has none
RUN_KINDS = ("source_runs", "pretrain_runs", "finetune_runs")  # of a row, in the order of training
SQUAD_TASKS = {"SQuAD1.1": squad.SQUAD_1_1, "SQuAD2.0": squad.SQUAD_2_0}
NER_TAGS = ("O", *(f"{edge}-{kind}" for kind in ("PER", "ORG", "LOC", "MISC") for edge in "BI"))


@dataclass(frozen=True)
class PaperRow:
    """A row of a table: published numbers for each column, and experiments."""

    name: str
    published: tuple[tuple[float, ...], ...]  # a cell is empty without a number, and has two that contradict each other
    pretrain_runs: tuple[Experiment, ...] = ()  # one for each seed
    finetune_runs: tuple[Experiment, ...] = ()
    source_runs: tuple[Experiment, ...] = ()  # that `pretrain_runs` start from

    def group_by_seed(self, column: ScoreColumn) -> dict[str, list[Experiment]]:
        """Return the experiments of a column's score, with the seeds of one experiment together."""
        groups: dict[str, list[Experiment]] = {}
        for run in self.finetune_runs if column.task else self.pretrain_runs:
            if not column.task or parse_task_name(run) == column.task:
                groups.setdefault(strip_seeds(run.name), []).append(run)
        return groups


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper, as `Study.build_table` makes it."""

    name: str
    title: str
    columns: tuple[ScoreColumn, ...]
    rows: tuple[PaperRow, ...]
    equal_in: str  # what all its experiments have in common, such as "tokens"
    caveats: tuple[str, ...] = ()  # why our numbers differ from the paper's
    source_file: str = ""  # the file of experiments/ablations/ that made it of `study`
    study: Study | None = None

    def __post_init__(self):
        names = [column.name for column in self.columns]
        for column in self.columns:
            if unknown := [name for name in itertools.chain(*column.mean_of) if name not in names]:
                known = ", ".join(names)
                raise ExperimentError(f"{self.name}: {column.name} averages {unknown[0]!r}; the columns are {known}")
        for row in self.rows:
            if len(row.published) != len(names):
                counts = f"{len(row.published)} published numbers for {len(names)} columns"
                raise ExperimentError(f"{self.name}, {row.name}: {counts}")
        self.check_rows_differ()

    def check_rows_differ(self) -> None:
        """Raise `ExperimentError` for two rows that train the same experiments, names aside."""
        rows_by_content: dict[str, str] = {}
        for row in (row for row in self.rows if row.pretrain_runs or row.finetune_runs):
            chain = self.trace_init_chain((row.pretrain_runs or row.finetune_runs)[0])
            content = str([*map(fingerprint_content, chain), chain[-1].init_from])
            if (other := rows_by_content.setdefault(content, row.name)) != row.name:
                hint = "pass what a row is about as `small_changes`, which small scale applies last"
                raise ExperimentError(f"{self.name}: rows {other!r} and {row.name!r} are the same experiment; {hint}")

    @cached_property
    def experiments_by_name(self) -> dict[str, Experiment]:
        """Every experiment by name, sources first. Raises `ExperimentError` if two differ under one name."""
        experiments: dict[str, Experiment] = {}
        for kind in RUN_KINDS:
            for experiment in (run for row in self.rows for run in getattr(row, kind)):
                if experiments.setdefault(experiment.name, experiment) != experiment:
                    raise ExperimentError(f"{self.name}: two experiments have the name {experiment.name!r}")
        return experiments

    @property
    def experiments(self) -> list[Experiment]:
        return list(self.experiments_by_name.values())

    def map_experiments(self, transform: Callable[[Experiment], Experiment]) -> PaperTable:
        """Return the table with `transform` applied to every experiment."""
        transform_row = lambda row: {kind: tuple(map(transform, getattr(row, kind))) for kind in RUN_KINDS}
        return replace(self, rows=tuple(replace(row, **transform_row(row)) for row in self.rows))

    def trace_init_chain(self, experiment: Experiment) -> list[Experiment]:
        """Return an experiment and the experiments of this table that it starts from, directly or not."""
        chain, source = [], experiment
        while source is not None:
            chain.append(source)
            source = self.experiments_by_name.get((source.init_from or "").rpartition("/")[2])
        return chain


def parse_task_name(experiment: Experiment) -> str:
    """Return the task in a name of `Study.build_finetune_runs`: "SST-2" of "bert-paper-seed0@SST-2-rate5e-05-seed3"."""
    return re.sub(r"-(rate|batch|epochs|seed)[\d.]+(e-?\d+)?", "", experiment.name.rpartition("@")[2])


TABLE_SUFFIX = ".table.json"


def save_table(table: PaperTable, runs_dir: Path) -> None:
    """Write a table into the folder of its runs."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    write_json(runs_dir / f"{table.name}{TABLE_SUFFIX}", to_json_value(table))


def load_saved_tables(runs_dir: Path) -> list[PaperTable]:
    """Return the tables trained in a folder. Raises `ExperimentError` for one that cannot be read."""
    tables = []
    for path in sorted(runs_dir.glob(f"*{TABLE_SUFFIX}")):
        try:
            table = from_json_value(read_json_file(path))
        except UserError as error:
            raise ExperimentError(f"{path} cannot be read ({error}); remove it, and `train` writes it again") from error
        if not isinstance(table, PaperTable):
            raise ExperimentError(f"{path} holds no table; remove it, and `train` writes it again")
        tables.append(table)
    return tables


@dataclass(frozen=True)
class Study:
    """Settings of a table, from `--with`."""

    scale: Literal["paper", "small", "night", "gpu"] = "small"
    corpus: tuple[str, ...] = ("tfds:wikipedia/20230601.en",)  # the text to pre-train on
    glue: str = "glue"  # the folders of the tasks' rows; "tfds" for GLUE and SQuAD
    squad: str = "squad"
    race: str = "race"
    entities: str = "conll2003"
    sentences: str = "sentences.txt"  # files to learn the vectors of sentences from: one a line, and NLI
    nli: str = "nli.csv"
    tasks: tuple[str, ...] | None = None  # to fine-tune for below the paper's scale; None: SST-2 where scored
    runs: str = "runs"  # the folder of the runs
    extra_corpus: tuple[str, ...] = ("tfds:c4/realnewslike",)  # added by tables about more text
    seeds: int | None = None  # by default those of the scale; at paper scale one run, fine-tuned five times
    tokens: float | None = None  # of a pre-training run, by default those of the scale
    rows: int = 10_000  # to train on in a fine-tuning run below the paper's scale
    blimp: str = ""  # data to measure the pre-trained runs with: minimal pairs, tagged words, pairs of sentences
    probes: str = ""
    sts: str = ""

    def __post_init__(self):
        for name, minimum in {"seeds": 1, "rows": 1, "tokens": self.small_scale.min_tokens}.items():
            if (value := getattr(self, name)) is not None and value < minimum:
                raise ExperimentError(f"--with {name}={value:g} must be at least {minimum}")
        for task in self.tasks or ():
            self.find_task(task)

    @property
    def is_scaled_down(self) -> bool:
        return self.scale != "paper"

    @property
    def small_scale(self) -> Scale:
        """Return the scale that replaces the paper's values; it is not used at paper scale."""
        return SCALES.get(self.scale, SCALES["small"])

    @property
    def num_tokens(self) -> float:
        return self.tokens or self.small_scale.num_tokens

    @property
    def pretrain_seeds(self) -> range:
        return range(self.seeds or self.small_scale.num_seeds) if self.is_scaled_down else range(1)

    def require_small_scale(self, name: str) -> None:
        """Raise `ExperimentError` at paper scale, for a table that no paper has."""
        if not self.is_scaled_down:
            raise ExperimentError(f"--with scale=paper: no paper has {name}; it takes {', '.join(SCALES)}")

    def build_table(
        self, name: str, title: str, columns: Sequence[ScoreColumn], rows: Iterable[PaperRow], equal_in: str, *caveats
    ) -> PaperTable:
        """Return the table; below the paper's scale its first caveat is the one that all tables share."""
        if self.is_scaled_down:
            recipe = self.small_scale.recipe
            shared_caveat = (
                f"{self.small_scale.describe()}; tasks are learned from their first {self.rows:,} training rows in "
                f"{recipe.num_epochs:g} epochs at {recipe.learning_rate:g}, and scored on the development set at the "
                "best epoch. Compare rows, not numbers"
            )
            caveats = (shared_caveat, *caveats)
        tasks = list_tasks(columns)
        if unscored := [task for task in self.tasks or () if self.is_scaled_down and task not in tasks]:
            raise ExperimentError(f"--with tasks={unscored[0]}: {name} scores another set of tasks: {', '.join(tasks)}")
        title, rows = f"{title}, {self.scale} scale", tuple(rows)
        published = [column for i, column in enumerate(columns) if any(row.published[i] for row in rows)]
        measured = build_measure_columns({"blimp": self.blimp, "probes": self.probes, "sts": self.sts}, published)
        rows = [replace(row, published=(*row.published, *[()] * len(measured))) for row in rows]
        columns = (*columns, *measured)
        return PaperTable(f"{name}_{self.scale}", title, columns, tuple(rows), equal_in, caveats, study=self)

    def build_row(
        self,
        name: str,
        published: Sequence[PublishedNumber],
        columns: Sequence[ScoreColumn],
        run_name: str,
        experiment: Experiment,
        *,
        source_runs: Sequence[Experiment] = (),
        **scaling,
    ) -> PaperRow:
        """Return a row whose runs pre-train `experiment`, and fine-tune it for the tasks of `columns`.

        `scaling` is `small_changes` or `total_flops` of `build_pretrain_run`. With `source_runs` each run starts from
        the one of its seed.
        """
        build_run = partial(self.build_pretrain_run, run_name, experiment, **scaling)
        sources = [source.name for source in source_runs] or [None] * len(self.pretrain_seeds)
        runs = [build_run(seed, init_from=name) for seed, name in zip(self.pretrain_seeds, sources, strict=True)]
        chosen = ("SST-2",) if self.tasks is None else self.tasks
        tasks = [task for task in list_tasks(columns) if not self.is_scaled_down or task in chosen]
        finetune_runs = [tuned for run in runs for task in tasks for tuned in self.build_finetune_runs(run, task)]
        cells = self.build_published_row(name, published, columns).published
        return PaperRow(name, cells, tuple(runs), tuple(finetune_runs), tuple(source_runs))

    def build_published_row(
        self, name: str, published: Sequence[PublishedNumber], columns: Sequence[ScoreColumn]
    ) -> PaperRow:
        """Return a row of published numbers only; the last columns may have none."""
        cells = [() if number is None else number if isinstance(number, tuple) else (number,) for number in published]
        return PaperRow(name, (*cells, *[()] * (len(columns) - len(cells))))

    def build_pretrain_run(
        self,
        name: str,
        experiment: Experiment,
        seed: int = 0,
        *,
        small_changes: Mapping[str, Any] = {},
        total_flops: float | None = None,
        init_from: str | None = None,
    ) -> Experiment:
        """Return a pre-training experiment of this study, with its scale and seed in its name.

        Below the paper's scale `small_changes` are applied last. With `total_flops` it is shortened or lengthened to
        that cost.
        """
        run = replace(
            experiment,
            name=f"{name}-{self.scale}-seed{seed}",
            seed=seed,
            data=replace(experiment.data, corpus=self.corpus),
            init_from=init_from and f"{self.runs}/{init_from}",
        )
        if self.is_scaled_down:
            run = self.small_scale.shrink_experiment(run, self.num_tokens, small_changes)
        if total_flops is not None:
            share = total_flops / run_flops(run)
            phases = [replace(phase, until_step=max(round(phase.until_step * share), 2)) for phase in run.phases]
            warmup = run.optimizer.warmup_steps
            optimizer = replace(run.optimizer, warmup_steps=min(warmup, max(round(warmup * share), 1)))
            run = replace(run, phases=tuple(phases), optimizer=optimizer)
        return run

    def build_finetune_runs(self, pretrain_run: Experiment, task_name: str) -> list[Experiment]:
        """Return the experiments that fine-tune a run for a task: one at small scale, else the family's recipes with
        several seeds."""
        task, root, num_train_rows = self.find_task(task_name)
        folder, seed = f"{self.runs}/{pretrain_run.name}", pretrain_run.seed
        source = {"init_from": folder, "config": pretrain_run.model, "tokenizer_path": f"{folder}/tokenizer.json"}
        name = f"{pretrain_run.name}@{task_name}"
        if self.is_scaled_down:
            source |= {"seed": seed, "max_train_rows": self.rows}
            return [
                build_finetuning(f"{name}-seed{seed}", task, root, self.small_scale.recipe, num_train_rows, **source)
            ]
        recipes = build_recipes(pretrain_run.model.conventions.name, task_name, pretrain_run.model)
        return build_finetuning_grid(name, task, root, recipes, num_train_rows, num_seeds=self.seeds or 5, **source)

    def find_argument(self, data: PretrainingData | LabelledData) -> str:
        """Return the argument of `--with` that names the texts or the rows of an experiment."""
        if isinstance(data, PretrainingData):
            return "corpus"
        root = Path(data.root).expanduser()
        # Files of one task may be those of several arguments, of which the missing one counts.
        missing = [path for _, file in data.task.files if not (path := root / file).is_file()]
        paths = [parent for path in map(Path.resolve, (*missing, root)) for parent in (path, *path.parents)]
        names = ("glue", "squad", "race", "entities", "sentences", "nli")
        arguments = {Path(getattr(self, name)).expanduser().resolve(): name for name in reversed(names)}
        return next((arguments[path] for path in paths if path in arguments), "glue")

    def find_task(self, name: str) -> tuple[TaskSpec, str, int]:
        """Return a task, the folder of its rows, and the number of its training rows."""
        if name in glue.GLUE_TASKS:
            return glue.GLUE_TASKS[name], glue.locate_glue_rows(self.glue, name), glue.NUM_GLUE_TRAIN_ROWS[name]
        if name in SQUAD_TASKS:
            task = SQUAD_TASKS[name]
            return task, squad.locate_squad_rows(self.squad, task), squad.NUM_SQUAD_TRAIN_QUESTIONS[task.name]
        if name == "RACE":
            return MultipleChoiceTask(name="RACE"), self.race, 87_866
        if name == "NER":
            return TokenTask(NER_TAGS, name="NER"), self.entities, 14_041
        known = ", ".join([*glue.GLUE_TASKS, *SQUAD_TASKS, "RACE", "NER"])
        raise ExperimentError(f"unknown task {name!r}; the tasks are {known}")
