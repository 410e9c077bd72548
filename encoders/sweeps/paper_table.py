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
from encoders.data.labelled import TaskSpec as Rows
from encoders.data.stream import Phase
from encoders.experiment import Experiment, strip_seeds
from encoders.finetuning.grids import Recipe, build_finetuning, build_finetuning_grid
from encoders.finetuning.recipes import family_recipes
from encoders.tasks import glue, squad
from encoders.tasks.multiple_choice import MultipleChoiceTask
from encoders.tasks.token_classification import TokenTask
from encoders.training.metric_log import Intervals
from encoders.training.optimizer import AdamW
from encoders.utils.files import write_json
from encoders.utils.overrides import apply_changes
from encoders.utils.serialization import ExperimentError, from_json_value, to_json_value

SMALL_SIZES = dict(
    vocab_size=8000, hidden_size=128, num_layers=2, num_heads=2, intermediate_size=512, max_positions=128,
    init_std=128**-0.5, hidden_dropout=0.0, attention_dropout=0.0, unroll_layers=True,
)  # fmt: skip
SMALL_SEQ_LENGTH, SMALL_BATCH_SIZE, SMALL_WARMUP_STEPS = 64, 64, 200
SMALL_LEARNING_RATE = 2e-3
SMALL_RECIPE = Recipe(
    3e-4, 32, num_epochs=2, max_seq_length=SMALL_SEQ_LENGTH, optimizer=AdamW(1.0, 0, bias_correction=True)
)
NER_TAGS = ("O", *(f"{edge}-{kind}" for kind in ("PER", "ORG", "LOC", "MISC") for edge in "BI"))


@dataclass(frozen=True)
class ScoreColumn:
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
    overrides: tuple[str, ...] = ()
    mean_of: tuple[tuple[str, ...], ...] = ()
    order_column: str = ""
    lower_is_better: bool = False


NUM_PARAMS = ScoreColumn("M parameters", "parameters", factor=1e-6)
MLM_AT_MASK = ScoreColumn("MLM at [MASK]", "mlm_mask_accuracy")
MLM_PERPLEXITY = ScoreColumn("MLM perplexity", "mlm_perplexity", factor=1.0, lower_is_better=True)
NSP, SOP = ScoreColumn("NSP", "nsp_accuracy"), ScoreColumn("SOP", "sop_accuracy")
SQUAD1_F1, SQUAD1_EM = ScoreColumn("SQuAD1.1 F1", "f1", "SQuAD1.1"), ScoreColumn("SQuAD1.1 EM", "exact", "SQuAD1.1")
SQUAD2_F1, SQUAD2_EM = ScoreColumn("SQuAD2.0 F1", "f1", "SQuAD2.0"), ScoreColumn("SQuAD2.0 EM", "exact", "SQuAD2.0")
MNLI, SST2, RACE = (ScoreColumn(task, "accuracy", task) for task in ("MNLI", "SST-2", "RACE"))
QNLI, MRPC, NER_F1 = (
    ScoreColumn("QNLI", "accuracy", "QNLI"),
    ScoreColumn("MRPC", "accuracy", "MRPC"),
    ScoreColumn("NER", "f1", "NER"),
)
SQUAD_PAIRS = (("SQuAD1.1 F1", "SQuAD1.1 EM"), ("SQuAD2.0 F1", "SQuAD2.0 EM"))
ALBERT_AVERAGE = ScoreColumn("Avg", "mean", mean_of=(*SQUAD_PAIRS, ("MNLI",), ("SST-2",), ("RACE",)))
ALBERT_COLUMNS = (
    SQUAD1_F1,
    SQUAD1_EM,
    SQUAD2_F1,
    SQUAD2_EM,
    MNLI,
    SST2,
    RACE,
    ALBERT_AVERAGE,
)  # as ALBERT's tables have them
GLUE_TASK_COLUMNS = tuple(
    ScoreColumn(task, score, task, order_column="GLUE avg")
    for task, score in (
        ("CoLA", "matthews"), ("SST-2", "accuracy"), ("MRPC", "accuracy"), ("STS-B", "spearman"), ("QQP", "accuracy"),
        ("MNLI", "accuracy"), ("QNLI", "accuracy"), ("RTE", "accuracy"),
    )
)  # fmt: skip
GLUE_COLUMNS = (
    *GLUE_TASK_COLUMNS,
    ScoreColumn("GLUE avg", "mean", mean_of=tuple((column.name,) for column in GLUE_TASK_COLUMNS)),
)  # of ELECTRA's tables
ELECTRA_COLUMNS = (ScoreColumn("RTD AUC", "rtd_auc"), ScoreColumn("generator at [MASK]", "generator_mask_accuracy"))


@dataclass(frozen=True)
class PaperRow:
    """What the paper gives for each column of the table, two numbers where it contradicts itself and none where there
    is none; the pre-training `runs`, one a seed; the `tasks` they are fine-tuned for; what they begin with, `before`.
    """

    name: str
    published: tuple[tuple[float, ...], ...]
    pretrain_runs: tuple[Experiment, ...] = ()
    finetune_runs: tuple[Experiment, ...] = ()
    source_runs: tuple[Experiment, ...] = ()

    def group_by_seed(self, column: ScoreColumn) -> dict[str, list[Experiment]]:
        """The members that a column's score is of, with the seeds of one experiment together."""
        groups: dict[str, list[Experiment]] = {}
        for member in (
            self.pretrain_runs
            if not column.task
            else (e for e in self.finetune_runs if parse_task_name(e) == column.task)
        ):
            groups.setdefault(strip_seeds(member.name), []).append(member)
        return groups


@dataclass(frozen=True)
class PaperTable:
    """`equal` says in what the members of a table are alike; `differs` why our numbers are not the paper's; `file` is
    the one of experiments/ablations/ that made it, of `study`."""

    name: str
    title: str
    columns: tuple[ScoreColumn, ...]
    rows: tuple[PaperRow, ...]
    equal_in: str
    caveats: tuple[str, ...] = ()
    source_file: str = ""
    study: Study | None = None

    def __post_init__(self):
        names = [column.name for column in self.columns]
        for column in self.columns:
            if unknown := [name for part in column.mean_of for name in part if name not in names]:
                raise ExperimentError(f"{self.name}: {column.name} is a mean of {unknown[0]}, which is no column")
        for row in self.rows:
            if len(row.published) != len(self.columns):
                raise ExperimentError(f"{self.name}, {row.name}: {len(row.published)} for {len(self.columns)} columns")

    @cached_property
    def experiments_by_name(self) -> dict[str, Experiment]:
        """Every member by name, those that others begin with first. Raises `ExperimentError` for two of one name."""
        found: dict[str, Experiment] = {}
        for part in ("source_runs", "pretrain_runs", "finetune_runs"):
            for member in (member for row in self.rows for member in getattr(row, part)):
                if found.setdefault(member.name, member) != member:
                    raise ExperimentError(f"{self.name}: two members are called {member.name!r}")
        return found

    @property
    def experiments(self) -> list[Experiment]:
        return list(self.experiments_by_name.values())

    def map_experiments(self, transform: Callable[[Experiment], Experiment]) -> PaperTable:
        """The table with `how` applied to every member."""
        map_all = lambda experiments: tuple(map(transform, experiments))
        rows = (
            replace(
                row,
                pretrain_runs=map_all(row.pretrain_runs),
                finetune_runs=map_all(row.finetune_runs),
                source_runs=map_all(row.source_runs),
            )
            for row in self.rows
        )
        return replace(self, rows=tuple(rows))

    def trace_init_chain(self, experiment: Experiment) -> list[Experiment]:
        """The member, and what it begins with, as far as that is in the table."""
        found = [experiment]
        while found[-1].init_from and (before := self.experiments_by_name.get(found[-1].init_from.rpartition("/")[2])):
            found.append(before)
        return found


def parse_task_name(experiment: Experiment) -> str:
    """The task in a member's name, as `Study.fine` gives it, without recipe and seed.

    >>> import types
    >>> parse_task_name(types.SimpleNamespace(name="bert-paper-seed0@SST-2-rate5e-05-seed3"))
    'SST-2'
    """
    return re.sub(r"-(rate|batch|epochs|seed)[\d.]+(e-?\d+)?", "", experiment.name.rpartition("@")[2])


TABLE_SUFFIX = ".table.json"


def save_table(table: PaperTable, runs_dir: Path) -> None:
    """Keep a table beside its runs."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    write_json(runs_dir / f"{table.name}{TABLE_SUFFIX}", to_json_value(table))


def load_saved_tables(runs_dir: Path) -> list[PaperTable]:
    """The tables that were trained in a folder. Raises `ExperimentError` for one that cannot be read."""
    found = []
    for path in sorted(runs_dir.glob(f"*{TABLE_SUFFIX}")):
        try:
            found.append(from_json_value(json.loads(path.read_text(encoding="utf-8"))))
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
    extra_corpus: tuple[str, ...] = ("tfds:c4/realnewslike",)
    seeds: int | None = None
    tokens: float = 10e6
    rows: int = 10_000

    def __post_init__(self):
        for name, least in (("seeds", 1), ("rows", 1), ("tokens", SMALL_SEQ_LENGTH * SMALL_BATCH_SIZE)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ExperimentError(f"--with {name}={getattr(self, name):g} must be at least {least}")
        for task in self.tasks:
            self.find_task(task)

    @property
    def is_small(self) -> bool:
        return self.scale == "small"

    @property
    def pretrain_seeds(self) -> range:
        return range(self.seeds or 3) if self.is_small else range(1)

    def build_table(
        self,
        name: str,
        title: str,
        columns: Sequence[ScoreColumn],
        rows: Iterable[PaperRow],
        equal_in: str,
        *caveats: str,
    ) -> PaperTable:
        """The table; at small scale with what any of them has of its own."""
        if self.is_small:
            caveats = (
                f"ours has a vocabulary of {SMALL_SIZES['vocab_size']:,}, no dropout, AdamW with bias correction "
                f"at {SMALL_LEARNING_RATE:g} whatever the paper has, unless the row is about that, an initial "
                f"deviation of {SMALL_SIZES['init_std']:.3f} at every width, and the corrected formats; tasks are "
                f"learned from their first {self.rows:,} training rows in {SMALL_RECIPE.num_epochs:g} epochs at "
                f"{SMALL_RECIPE.learning_rate:g}, and scored on the development set at the better epoch. "
                "Compare rows, not numbers",
                *caveats,
            )
        scored = [column.task for column in columns]
        if useless := [task for task in self.tasks if self.is_small and task not in scored]:
            known = ", ".join(dict.fromkeys(filter(None, scored)))
            raise ExperimentError(f"--with tasks={useless[0]}: {name} has no such column; it has {known}")
        title = f"{title}, {self.scale} scale"
        return PaperTable(f"{name}_{self.scale}", title, tuple(columns), tuple(rows), equal_in, caveats, study=self)

    def build_row(
        self,
        name: str,
        published: Sequence[float | tuple[float, ...] | None],
        columns: Sequence[ScoreColumn],
        run_name: str,
        experiment: Experiment,
        *,
        small_changes: Mapping[str, Any] | None = None,
        total_flops: float | None = None,
        source_runs: Sequence[Experiment] = (),
    ) -> PaperRow:
        """A row whose runs are `experiment`, at small scale with the changes `small` after all others, or trained for
        as many `flops`; where there are runs `before`, each begins with the one of its seed.
        """
        seeds = self.pretrain_seeds
        runs = [
            self.build_pretrain_run(
                run_name, experiment, seed, small_changes or {}, total_flops, start.name if start else None
            )
            for seed, start in zip(seeds, source_runs or [None] * len(seeds), strict=True)
        ]
        wanted = dict.fromkeys(column.task for column in columns if column.task)
        wanted = [task for task in wanted if not self.is_small or task in self.tasks]
        fine = [member for each in runs for task in wanted for member in self.build_finetune_runs(each, task)]
        return PaperRow(
            name, pad_published_numbers(published, len(columns)), tuple(runs), tuple(fine), tuple(source_runs)
        )

    def build_published_row(
        self, name: str, published_numbers: Sequence[float | None], columns: Sequence[ScoreColumn]
    ) -> PaperRow:
        """A row of which there are no runs here."""
        return PaperRow(name, pad_published_numbers(published_numbers, len(columns)))

    def build_pretrain_run(
        self,
        name: str,
        experiment: Experiment,
        seed: int = 0,
        small_changes: Mapping[str, Any] = {},
        total_flops: float | None = None,
        init_from: str | None = None,
    ) -> Experiment:
        """A pre-training member."""
        whole = replace(
            experiment,
            name=f"{name}-{self.scale}-seed{seed}",
            seed=seed,
            data=replace(experiment.data, corpus=self.corpus),
            init_from=init_from and f"{self.runs}/{init_from}",
        )
        if self.is_small:
            whole = apply_changes(self.shrink_experiment(whole), small_changes)
        if total_flops is not None:
            share = total_flops / run_flops(whole)
            untils = [max(round(phase.until_step * share), 2) for phase in whole.phases]
            warmup = min(whole.optimizer.warmup_steps, max(round(whole.optimizer.warmup_steps * share), 1))
            cut = {str(i): {"until_step": until} for i, until in enumerate(untils)}
            whole = apply_changes(whole, {"phases": cut, "optimizer": {"warmup_steps": warmup}})
        return whole

    def shrink_experiment(self, experiment: Experiment) -> Experiment:
        """The same at small scale."""
        model, form = experiment.model, experiment.phases[-1].format
        if getattr(form, "match_released_code", False):
            form = replace(form, match_released_code=False)
        embedding = (
            SMALL_SIZES["hidden_size"] if model.embedding_size == model.hidden_size else model.embedding_size // 4
        )
        words = replace(experiment.data.tokenizer, vocab_size=SMALL_SIZES["vocab_size"], train_chars=20_000_000)
        steps = round(self.tokens / SMALL_SEQ_LENGTH / SMALL_BATCH_SIZE)
        return replace(
            experiment,
            model=replace(model, **SMALL_SIZES | {"embedding_size": embedding}),
            data=replace(experiment.data, tokenizer=words),
            optimizer=AdamW(
                learning_rate=SMALL_LEARNING_RATE,
                warmup_steps=min(SMALL_WARMUP_STEPS, steps // 10),
                bias_correction=True,
            ),
            phases=(Phase(steps, SMALL_SEQ_LENGTH, SMALL_BATCH_SIZE, form),),
            intervals=Intervals(log_every=100, eval_every=500, save_every=500, keep_checkpoints=1),
        )

    def build_finetune_runs(self, pretrain_run: Experiment, task_name: str) -> list[Experiment]:
        """The members that fine-tune `run` for `task`: by the recipes of its family, at small scale by one."""
        rows, root, count = self.find_task(task_name)
        given = {
            "init_from": f"{self.runs}/{pretrain_run.name}",
            "config": pretrain_run.model,
            "tokenizer_path": f"{self.runs}/{pretrain_run.name}/tokenizer.json",
        }
        name = f"{pretrain_run.name}@{task_name}"
        if self.is_small:
            few = {"seed": pretrain_run.seed, "max_train_rows": self.rows}
            return [
                build_finetuning(f"{name}-seed{pretrain_run.seed}", rows, root, SMALL_RECIPE, count, **few, **given)
            ]
        return build_finetuning_grid(
            name,
            rows,
            root,
            family_recipes(pretrain_run.model.conventions.name, task_name, pretrain_run.model),
            count,
            num_seeds=self.seeds or 5,
            **given,
        )

    def find_task(self, name: str) -> tuple[Rows, str, int]:
        """A task's rows, the folder they are in, and how many train."""
        others = {
            "SQuAD1.1": (
                squad.SQUAD_1_1,
                squad.locate_squad_rows(self.squad, squad.SQUAD_1_1),
                squad.NUM_SQUAD_TRAIN_QUESTIONS[squad.SQUAD_1_1.name],
            ),
            "SQuAD2.0": (
                squad.SQUAD_2_0,
                squad.locate_squad_rows(self.squad, squad.SQUAD_2_0),
                squad.NUM_SQUAD_TRAIN_QUESTIONS[squad.SQUAD_2_0.name],
            ),
            "RACE": (MultipleChoiceTask(name="RACE"), self.race, 87_866),
            "NER": (TokenTask(NER_TAGS, name="NER"), self.entities, 14_041),
        }
        if name not in {*others, *glue.GLUE_TASKS}:
            raise ExperimentError(f"there is no task {name!r}; there are {', '.join([*glue.GLUE_TASKS, *others])}")
        return others.get(name) or (
            glue.GLUE_TASKS[name],
            glue.locate_glue_rows(self.glue, name),
            glue.NUM_GLUE_TRAIN_ROWS[name],
        )


def pad_published_numbers(
    published: Iterable[float | tuple[float, ...] | None], num_columns: int
) -> tuple[tuple[float, ...], ...]:
    """For each of `count` columns the published numbers; those that are not given are the last."""
    given = [() if x is None else x if isinstance(x, tuple) else (x,) for x in published]
    return (*given, *[()] * (num_columns - len(given)))
