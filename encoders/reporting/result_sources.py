"""Sources of the scores and costs of a table: a folder of runs, or a file of results (`records.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from encoders.costs.ledger import count_encoder_params, count_phase_rows, run_flops
from encoders.experiment import Experiment
from encoders.inference import cross_evaluation
from encoders.measures.base import read_measurement
from encoders.objectives.base import SupervisedObjective
from encoders.reporting.comparisons import ItemVariance
from encoders.reporting.page import parse_device_kind
from encoders.run.folder import RECORD_FILE, differing_fields, read_result, read_run_record, read_run_rows
from encoders.sweeps.paper_table import PaperRow, PaperTable
from encoders.sweeps.score_columns import NUM_PARAMS, ScoreColumn
from encoders.utils.errors import UserError, describe_error
from encoders.utils.overrides import shorten_text


@dataclass(frozen=True)
class Score:
    """A score of a run and, where it is a mean over test items that are known, the value of each item `[m]`."""

    value: float
    items: np.ndarray | None = None


@dataclass(frozen=True)
class RunCost:
    """Cost of a run: tokens, FLOPs of matrix products, seconds times devices, and the kinds of device."""

    tokens: float
    flops: float
    device_seconds: float
    devices: tuple[str, ...]


class ResultSource(Protocol):
    """Source of what a table needs to know of its runs.

    `item_variances` are those that are known without items, by the column and one row or two; `notes` are sentences
    for the reader of the table.
    """

    item_variances: Mapping[tuple[str, ...], ItemVariance]
    notes: Sequence[str]

    def read_score(self, experiment: Experiment, column: ScoreColumn) -> Score | None:
        """Return the score of an experiment for a column, or None if it does not exist yet."""
        ...

    def find_problem(self, table: PaperTable, experiment: Experiment) -> str | None:
        """Return why a run cannot count, or None."""
        ...

    def read_cost(self, experiment: Experiment) -> RunCost | None:
        """Return the cost of a run so far, or None before it has started."""
        ...

    def read_corpus(self, experiment: Experiment) -> str | None:
        """Return the names of the texts that a run was pre-trained on; None before it has started, and for others."""
        ...

    def describe_training(self, row: PaperRow) -> str:
        """Return size, batches, steps and learning rate of a row's pre-training."""
        ...


@dataclass(frozen=True)
class RunsFolder:
    """A folder of runs as the source of a table's results."""

    path: Path
    item_variances: ClassVar[Mapping] = {}  # the items are at hand
    notes: ClassVar[Sequence[str]] = ()

    def read_score(self, experiment: Experiment, column: ScoreColumn) -> Score | None:
        return read_score(experiment, column, self.path)

    def find_problem(self, table: PaperTable, experiment: Experiment) -> str | None:
        """Return why a run cannot count: its folder, or one it starts from, is damaged or holds other settings."""
        if not (self.path / experiment.name).exists():
            return None
        for source in table.trace_init_chain(experiment):
            try:
                read_result(self.path / source.name)
                read_run_rows(self.path / source.name)
                changes = differing_fields(source, self.path / source.name)
            except (UserError, OSError) as error:
                return f"{source.name} cannot be read ({describe_error(error)})"
            if changes:
                return f"{source.name} was trained with other settings ({shorten_text('; '.join(changes))})"
        return None

    def read_cost(self, experiment: Experiment) -> RunCost | None:
        folder = self.path / experiment.name
        if not folder.exists():
            return None
        rows = read_run_rows(folder)
        tokens = max((row["tokens"] for row in rows if "tokens" in row), default=0)
        planned = sum(count * phase.seq_length for count, phase in count_phase_rows(experiment))
        devices = read_run_record(folder)["devices"] if (folder / RECORD_FILE).exists() else []
        seconds = sum(row["time"]["seconds"] for row in rows) * len(devices)
        kinds = tuple(sorted(set(map(parse_device_kind, devices))))
        return RunCost(tokens, run_flops(experiment) * tokens / planned, seconds, kinds)

    def read_corpus(self, experiment: Experiment) -> str | None:
        folder = self.path / experiment.name
        if not (folder / RECORD_FILE).exists():
            return None
        corpus = read_run_record(folder)["experiment"]["data"].get("corpus", ())
        # A folder of this machine means nothing elsewhere, where a record may be read.
        return ", ".join(Path(name).name if Path(name).is_absolute() else name for name in corpus) or None

    def describe_training(self, row: PaperRow) -> str:
        return describe_training(row)


def read_score(experiment: Experiment, column: ScoreColumn, runs_dir: Path) -> Score | None:
    """Return the score of an experiment for a column, or None if it does not exist yet."""
    if column.score == NUM_PARAMS.score:
        return Score(float(count_encoder_params(experiment.model, experiment.objective)))
    folder, items = runs_dir / experiment.name, {}
    result = read_result(folder)
    if result is None:
        return None
    if column.overrides:
        scores = cross_evaluation.cached_scores(folder, column.overrides) or {}
    elif column.measure:
        measurement = read_measurement(folder, column.measure)
        scores, items = (measurement.scores, measurement.items) if measurement else ({}, {})
    else:
        scores = result["best" if isinstance(experiment.objective, SupervisedObjective) else "heldout"]
    return Score(scores[column.score], items.get(column.score)) if column.score in scores else None


def describe_training(row: PaperRow) -> str:
    """Return size, batches, steps and learning rate of a row's pre-training, for example "L2 H128; 64 x 64, ..."."""
    if not row.pretrain_runs:
        return "-"
    run = row.pretrain_runs[0]
    size = f"L{run.model.num_layers} H{run.model.hidden_size}"
    if run.model.embedding_size != run.model.hidden_size:
        size += f" E{run.model.embedding_size}"
    if run.model.hidden_size != 64 * run.model.num_heads:
        size += f" A{run.model.num_heads}"
    batches = " then ".join(f"{phase.batch_size:,} x {phase.seq_length}" for phase in run.phases)
    return f"{size}; {batches}, {run.num_steps:,} steps, {run.optimizer.learning_rate:g}"
