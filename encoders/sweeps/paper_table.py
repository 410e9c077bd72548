"""A published table as a value: its rows, the runs behind each, and the papers' numbers.

A file of experiments/ablations/ defines `table(study)`, where a `Study` says at which scale, on which text and tasks,
and how often. At paper scale a member is the paper's own experiment with one thing changed. At small scale it is the
same with `SIZE` and what the row says of it, rows of 64 tokens, 10 M tokens, one optimiser and rate for all, and SST-2
from 10,000 rows; what the table compares stays as it is, in these sizes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from encoders.costs.ledger import run_flops
from encoders.data.labelled import Task as Rows
from encoders.data.stream import Phase
from encoders.experiment import Experiment, without_seeds
from encoders.finetuning.grids import Recipe, finetuned, grid
from encoders.finetuning.recipes import recipes
from encoders.tasks import glue, squad
from encoders.tasks.conventions import Conventions, conventions
from encoders.tasks.multiple_choice import MultipleChoice
from encoders.tasks.token_classification import Words
from encoders.training.metric_log import Cadence
from encoders.training.optimizer import AdamW
from encoders.utils.files import write_json
from encoders.utils.overrides import ExperimentError, change, from_json, to_json

SIZE = dict(
    vocab=8000, hidden=128, layers=2, heads=2, intermediate=512, positions=128,
    deviation=128**-0.5, dropout=0.0, attention_dropout=0.0, unroll=True,
)  # fmt: skip
LENGTH, BATCH, WARMUP = 64, 64, 200
RATE = 2e-3
FEW = Recipe(3e-4, 32, epochs=2, length=LENGTH, optimizer=AdamW(1.0, 0, correction=True))
NER = ("O", *(f"{edge}-{kind}" for kind in ("PER", "ORG", "LOC", "MISC") for edge in "BI"))


@dataclass(frozen=True)
class Column:
    """One score of each row, times `factor` in the paper's unit: of the runs fine-tuned for `task`, or held out of the
    pre-trained ones. With `under` these are scored as if their experiment had such settings; with `mean` it is the mean
    of columns by name, some of them a mean themselves. Where the paper has no such score, its order is compared with
    that of the paper's column `like`. A score `falls` where lower is better. No run has the score "" of columns that
    are published only.
    """

    name: str
    score: str
    task: str = ""
    factor: float = 100.0
    under: tuple[str, ...] = ()
    mean: tuple[tuple[str, ...], ...] = ()
    like: str = ""
    falls: bool = False


PARAMETERS = Column("M parameters", "parameters", factor=1e-6)
MASKED = Column("MLM at [MASK]", "mlm_mask_accuracy")
PERPLEXITY = Column("MLM perplexity", "mlm_perplexity", factor=1.0, falls=True)
NSP, SOP = Column("NSP", "nsp_accuracy"), Column("SOP", "sop_accuracy")
SQUAD1_F1, SQUAD1_EM = Column("SQuAD1.1 F1", "f1", "SQuAD1.1"), Column("SQuAD1.1 EM", "exact", "SQuAD1.1")
SQUAD2_F1, SQUAD2_EM = Column("SQuAD2.0 F1", "f1", "SQuAD2.0"), Column("SQuAD2.0 EM", "exact", "SQuAD2.0")
MNLI, SST2, RACE = (Column(task, "accuracy", task) for task in ("MNLI", "SST-2", "RACE"))
QNLI, MRPC, ENTITIES = (
    Column("QNLI", "accuracy", "QNLI"),
    Column("MRPC", "accuracy", "MRPC"),
    Column("NER", "f1", "NER"),
)
SQUAD = (("SQuAD1.1 F1", "SQuAD1.1 EM"), ("SQuAD2.0 F1", "SQuAD2.0 EM"))
AVERAGE = Column("Avg", "mean", mean=(*SQUAD, ("MNLI",), ("SST-2",), ("RACE",)))
ALBERT = (SQUAD1_F1, SQUAD1_EM, SQUAD2_F1, SQUAD2_EM, MNLI, SST2, RACE, AVERAGE)  # as ALBERT's tables have them
AVERAGED = tuple(
    Column(task, score, task, like="GLUE avg")
    for task, score in (
        ("CoLA", "matthews"), ("SST-2", "accuracy"), ("MRPC", "accuracy"), ("STS-B", "spearman"), ("QQP", "accuracy"),
        ("MNLI", "accuracy"), ("QNLI", "accuracy"), ("RTE", "accuracy"),
    )
)  # fmt: skip
GLUE = (*AVERAGED, Column("GLUE avg", "mean", mean=tuple((column.name,) for column in AVERAGED)))  # of ELECTRA's tables
LEARNED = (Column("RTD AUC", "rtd_auc"), Column("generator at [MASK]", "generator_mask_accuracy"))


@dataclass(frozen=True)
class Row:
    """What the paper gives for each column of the table, two numbers where it contradicts itself and none where there
    is none; the pre-training `runs`, one a seed; the `tasks` they are fine-tuned for; what they begin with, `before`.
    """

    name: str
    published: tuple[tuple[float, ...], ...]
    runs: tuple[Experiment, ...] = ()
    tasks: tuple[Experiment, ...] = ()
    before: tuple[Experiment, ...] = ()

    def of(self, column: Column) -> dict[str, list[Experiment]]:
        """The members that a column's score is of, with the seeds of one experiment together."""
        groups: dict[str, list[Experiment]] = {}
        for member in self.runs if not column.task else (e for e in self.tasks if task_of(e) == column.task):
            groups.setdefault(without_seeds(member.name), []).append(member)
        return groups


@dataclass(frozen=True)
class Table:
    """`equal` says in what the members of a table are alike; `differs` why our numbers are not the paper's; `file` is
    the one of experiments/ablations/ that made it, of `study`."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    equal: str
    differs: tuple[str, ...] = ()
    file: str = ""
    study: Study | None = None

    def __post_init__(self):
        names = [column.name for column in self.columns]
        for column in self.columns:
            if unknown := [name for part in column.mean for name in part if name not in names]:
                raise ExperimentError(f"{self.name}: {column.name} is a mean of {unknown[0]}, which is no column")
        for row in self.rows:
            if len(row.published) != len(self.columns):
                raise ExperimentError(f"{self.name}, {row.name}: {len(row.published)} for {len(self.columns)} columns")

    @cached_property
    def places(self) -> dict[str, Experiment]:
        """Every member by name, those that others begin with first. Raises `ExperimentError` for two of one name."""
        found: dict[str, Experiment] = {}
        for part in ("before", "runs", "tasks"):
            for member in (member for row in self.rows for member in getattr(row, part)):
                if found.setdefault(member.name, member) != member:
                    raise ExperimentError(f"{self.name}: two members are called {member.name!r}")
        return found

    @property
    def members(self) -> list[Experiment]:
        return list(self.places.values())

    def changed(self, how: Callable[[Experiment], Experiment]) -> Table:
        """The table with `how` applied to every member."""
        part = lambda members: tuple(map(how, members))
        rows = (replace(row, runs=part(row.runs), tasks=part(row.tasks), before=part(row.before)) for row in self.rows)
        return replace(self, rows=tuple(rows))

    def chain(self, member: Experiment) -> list[Experiment]:
        """The member, and what it begins with, as far as that is in the table."""
        found = [member]
        while found[-1].start and (before := self.places.get(found[-1].start.rpartition("/")[2])):
            found.append(before)
        return found


def task_of(member: Experiment) -> str:
    """The task in a member's name, as `Study.fine` gives it, without recipe and seed.

    >>> import types
    >>> task_of(types.SimpleNamespace(name="bert-paper-seed0@SST-2-rate5e-05-seed3"))
    'SST-2'
    """
    return re.sub(r"-(rate|batch|epochs|seed)[\d.]+(e-?\d+)?", "", member.name.rpartition("@")[2])


ENDING = ".table.json"


def keep(table: Table, runs: Path) -> None:
    """Keep a table beside its runs."""
    runs.mkdir(parents=True, exist_ok=True)
    write_json(runs / f"{table.name}{ENDING}", to_json(table))


def kept(runs: Path) -> list[Table]:
    """The tables that were trained in a folder. Raises `ExperimentError` for one that cannot be read."""
    found = []
    for path in sorted(runs.glob(f"*{ENDING}")):
        try:
            found.append(from_json(json.loads(path.read_text(encoding="utf-8"))))
        except ValueError as error:
            raise ExperimentError(f"{path} cannot be read ({error}); remove it, and train writes it anew") from error
    return found


@dataclass(frozen=True)
class Study:
    """What `--with` says of a table: the scale; the text to pre-train on, and that which tables about `more` text add;
    the folders of GLUE and of SQuAD ("tfds": TFDS has them), of RACE and of CoNLL-2003's entities (at small scale only
    the tasks of `tasks` are run); where runs are kept; how many seeds, else three pre-training runs at small scale, and
    at paper scale one, fine-tuned five times; the tokens of a small run, and the rows that it is fine-tuned on.
    """

    scale: Literal["paper", "small"] = "small"
    corpus: tuple[str, ...] = ("tfds:wikipedia/20230601.en",)
    glue: str = "glue"
    squad: str = "squad"
    race: str = "race"
    entities: str = "conll2003"
    tasks: tuple[str, ...] = ("SST-2",)
    runs: str = "runs"
    more: tuple[str, ...] = ("tfds:c4/realnewslike",)
    seeds: int | None = None
    tokens: float = 10e6
    rows: int = 10_000

    def __post_init__(self):
        for name, least in (("seeds", 1), ("rows", 1), ("tokens", LENGTH * BATCH)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ExperimentError(f"--with {name}={getattr(self, name):g} must be at least {least}")
        for task in self.tasks:
            self.task(task)

    @property
    def small(self) -> bool:
        return self.scale == "small"

    @property
    def seeds_of_runs(self) -> range:
        return range(self.seeds or 3) if self.small else range(1)

    def table(
        self, name: str, title: str, columns: Sequence[Column], rows: Iterable[Row], equal: str, *differs: str
    ) -> Table:
        """The table; at small scale with what any of them has of its own."""
        if self.small:
            differs = (
                f"ours has a vocabulary of {SIZE['vocab']:,}, no dropout, AdamW with bias correction at {RATE:g} "
                "whatever the paper has, unless the row is about that, an initial deviation of "
                f"{SIZE['deviation']:.3f} at every width, and the corrected formats; tasks are learned from their "
                f"first {self.rows:,} training rows in {FEW.epochs:g} epochs at {FEW.rate:g}, and scored on the "
                "development set at the better epoch. Compare rows, not numbers",
                *differs,
            )
        scored = [column.task for column in columns]
        if useless := [task for task in self.tasks if self.small and task not in scored]:
            known = ", ".join(dict.fromkeys(filter(None, scored)))
            raise ExperimentError(f"--with tasks={useless[0]}: {name} has no such column; it has {known}")
        title = f"{title}, {self.scale} scale"
        return Table(f"{name}_{self.scale}", title, tuple(columns), tuple(rows), equal, differs, study=self)

    def row(
        self,
        name: str,
        published: Sequence[float | tuple[float, ...] | None],
        columns: Sequence[Column],
        run: str,
        experiment: Experiment,
        *,
        small: Mapping[str, Any] | None = None,
        flops: float | None = None,
        before: Sequence[Experiment] = (),
        family: Conventions | None = None,
    ) -> Row:
        """A row whose runs are `experiment`, at small scale with the changes `small` after all others, or trained for
        as many `flops`; where there are runs `before`, each begins with the one of its seed. They are fine-tuned as a
        `family` does it, by default that of their model.
        """
        seeds = self.seeds_of_runs
        runs = [
            self.run(run, experiment, seed, small or {}, flops, start.name if start else None)
            for seed, start in zip(seeds, before or [None] * len(seeds), strict=True)
        ]
        wanted = dict.fromkeys(column.task for column in columns if column.task)
        wanted = [task for task in wanted if not self.small or task in self.tasks]
        fine = [member for each in runs for task in wanted for member in self.fine(each, task, family)]
        return Row(name, numbers(published, len(columns)), tuple(runs), tuple(fine), tuple(before))

    def published(self, name: str, numbers_of: Sequence[float | None], columns: Sequence[Column]) -> Row:
        """A row of which there are no runs here."""
        return Row(name, numbers(numbers_of, len(columns)))

    def run(
        self,
        name: str,
        experiment: Experiment,
        seed: int = 0,
        small: Mapping[str, Any] = {},
        flops: float | None = None,
        start: str | None = None,
    ) -> Experiment:
        """A pre-training member."""
        whole = replace(
            experiment,
            name=f"{name}-{self.scale}-seed{seed}",
            seed=seed,
            data=replace(experiment.data, corpus=self.corpus),
            start=start and f"{self.runs}/{start}",
        )
        if self.small:
            whole = change(self.shrunk(whole), small)
        if flops is not None:
            share = flops / run_flops(whole)
            untils = [max(round(phase.until * share), 2) for phase in whole.phases]
            warmup = min(whole.optimizer.warmup, max(round(whole.optimizer.warmup * share), 1))
            cut = {str(i): {"until": until} for i, until in enumerate(untils)}
            whole = change(whole, {"phases": cut, "optimizer": {"warmup": warmup}})
        return whole

    def shrunk(self, experiment: Experiment) -> Experiment:
        """The same at small scale."""
        model, form = experiment.model, experiment.phases[-1].format
        if getattr(form, "released", False):
            form = replace(form, released=False)
        embedding = SIZE["hidden"] if model.embedding == model.hidden else model.embedding // 4
        words = replace(experiment.data.vocabulary, size=SIZE["vocab"], sample=20_000_000)
        steps = round(self.tokens / LENGTH / BATCH)
        return replace(
            experiment,
            model=replace(model, **SIZE | {"embedding": embedding}),
            data=replace(experiment.data, vocabulary=words),
            optimizer=AdamW(rate=RATE, warmup=min(WARMUP, steps // 10), correction=True),
            phases=(Phase(steps, LENGTH, BATCH, form),),
            cadence=Cadence(log=100, evaluate=500, save=500, keep=1),
        )

    def fine(self, run: Experiment, task: str, family: Conventions | None) -> list[Experiment]:
        """The members that fine-tune `run` for `task`: by the recipes of its family, at small scale by one."""
        rows, root, count = self.task(task)
        family = family or conventions(run.model)
        given = {
            "family": family,
            "start": f"{self.runs}/{run.name}",
            "model": run.model,
            "vocabulary": f"{self.runs}/{run.name}/tokenizer.json",
        }
        name = f"{run.name}@{task}"
        if self.small:
            few = {"seed": run.seed, "limit": self.rows}
            return [finetuned(f"{name}-seed{run.seed}", rows, root, FEW, count, **few, **given)]
        return grid(name, rows, root, recipes(family.name, task, run.model), count, seeds=self.seeds or 5, **given)

    def task(self, name: str) -> tuple[Rows, str, int]:
        """A task's rows, the folder they are in, and how many train."""
        others = {
            "SQuAD1.1": (squad.V1, squad.rows_in(self.squad, squad.V1), squad.QUESTIONS[squad.V1.name]),
            "SQuAD2.0": (squad.V2, squad.rows_in(self.squad, squad.V2), squad.QUESTIONS[squad.V2.name]),
            "RACE": (MultipleChoice(name="RACE"), self.race, 87_866),
            "NER": (Words(NER, name="NER"), self.entities, 14_041),
        }
        if name not in {*others, *glue.TASKS}:
            raise ExperimentError(f"there is no task {name!r}; there are {', '.join([*glue.TASKS, *others])}")
        return others.get(name) or (glue.TASKS[name], glue.rows_in(self.glue, name), glue.ROWS[name])


def numbers(published: Iterable[float | tuple[float, ...] | None], count: int) -> tuple[tuple[float, ...], ...]:
    """For each of `count` columns the published numbers; those that are not given are the last."""
    given = [() if x is None else x if isinstance(x, tuple) else (x,) for x in published]
    return (*given, *[()] * (count - len(given)))
