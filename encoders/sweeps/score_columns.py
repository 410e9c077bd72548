"""Columns of the papers' tables: which score of which runs, and in which unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from encoders.measures.base import Measure
from encoders.measures.fixed_corruption import FixedCorruption
from encoders.measures.minimal_pairs import MinimalPairs
from encoders.measures.probes import LinearProbe
from encoders.measures.sts import SentenceSimilarity


@dataclass(frozen=True)
class ScoreColumn:
    """One score of each row, times `factor` in the unit of the paper."""

    name: str
    score: str  # "" in a column that is published only
    task: str = ""  # whose fine-tuned runs have the score; "" is the held-out split of the pre-trained runs
    factor: float = 100.0
    overrides: tuple[str, ...] = ()  # settings under which the runs are scored, as if their experiments had them
    mean_of: tuple[tuple[str, ...], ...] = ()  # columns by name, averaged in groups and then over the groups
    measure: Measure | None = None  # of the pre-trained runs, which has the score
    order_column: str = ""  # whose published order is compared with ours, where the paper lacks this score
    lower_is_better: bool = False


NUM_PARAMS = ScoreColumn("M parameters", "parameters", factor=1e-6)
MLM_AT_MASK = ScoreColumn("MLM at [MASK]", "mlm_mask_accuracy")
MLM_PERPLEXITY = ScoreColumn("MLM perplexity", "mlm_perplexity", factor=1.0, lower_is_better=True)
NSP, SOP = ScoreColumn("NSP", "nsp_accuracy"), ScoreColumn("SOP", "sop_accuracy")
SQUAD1_F1, SQUAD1_EM = ScoreColumn("SQuAD1.1 F1", "f1", "SQuAD1.1"), ScoreColumn("SQuAD1.1 EM", "exact", "SQuAD1.1")
SQUAD2_F1, SQUAD2_EM = ScoreColumn("SQuAD2.0 F1", "f1", "SQuAD2.0"), ScoreColumn("SQuAD2.0 EM", "exact", "SQuAD2.0")
MNLI, SST2, RACE, QNLI, MRPC = (
    ScoreColumn(task, "accuracy", task) for task in ("MNLI", "SST-2", "RACE", "QNLI", "MRPC")
)
NER_F1 = ScoreColumn("NER", "f1", "NER")
SQUAD_PAIRS = (("SQuAD1.1 F1", "SQuAD1.1 EM"), ("SQuAD2.0 F1", "SQuAD2.0 EM"))
ALBERT_AVERAGE = ScoreColumn("Avg", "mean", mean_of=(*SQUAD_PAIRS, ("MNLI",), ("SST-2",), ("RACE",)))
ALBERT_COLUMNS = (SQUAD1_F1, SQUAD1_EM, SQUAD2_F1, SQUAD2_EM, MNLI, SST2, RACE, ALBERT_AVERAGE)
GLUE_TASK_COLUMNS = tuple(
    ScoreColumn(task, {"CoLA": "matthews", "STS-B": "spearman"}.get(task, "accuracy"), task, order_column="GLUE avg")
    for task in ("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE")
)
GLUE_AVERAGE = ScoreColumn("GLUE avg", "mean", mean_of=tuple((column.name,) for column in GLUE_TASK_COLUMNS))
GLUE_COLUMNS = (*GLUE_TASK_COLUMNS, GLUE_AVERAGE)  # of ELECTRA's tables
ELECTRA_COLUMNS = (
    ScoreColumn("AUC, unigram", "corruption_auc_unigram", measure=FixedCorruption()),
    ScoreColumn("generator at [MASK]", "generator_mask_accuracy"),
)
MEASURE_COLUMNS = {
    "blimp": ("BLiMP", "blimp", MinimalPairs),
    "probes": ("parts of speech", "probe", LinearProbe),
    "sts": ("STS", "sts", SentenceSimilarity),
}


def build_measure_columns(paths: Mapping[str, str], published: Sequence[ScoreColumn]) -> list[ScoreColumn]:
    """Return a column for each measure whose data has a path; "" leaves it out.

    Their rows are compared with the order of the last published score, such as a paper's average.
    """
    order = [column for column in published if column.score != NUM_PARAMS.score]
    columns = []
    for name, (title, score, measure_class) in MEASURE_COLUMNS.items():
        if paths[name]:
            order_column = order[-1].name if order else ""
            measure = measure_class(path=paths[name])
            columns.append(ScoreColumn(title, score, measure=measure, order_column=order_column))
    return columns


def list_tasks(columns: Iterable[ScoreColumn]) -> list[str]:
    """Return the tasks that columns score, in their order."""
    return list(dict.fromkeys(column.task for column in columns if column.task))
