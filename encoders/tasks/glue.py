"""Tasks of GLUE (Wang et al., 2018, https://arxiv.org/abs/1804.07461), in their original layout or TFDS's.

Scores: Matthews' correlation for CoLA, accuracy and F1 for MRPC and QQP, Spearman's (reported by the papers) and
Pearson's correlation for STS-B, accuracy for the others. AX lacks training rows; an MNLI run predicts it.
"""

from __future__ import annotations

from encoders.tasks.text_tasks import TextTask
from encoders.utils.serialization import ExperimentError

BINARY_LABELS, ENTAILMENT_LABELS = ("0", "1"), ("entailment", "not_entailment")
SENTENCE_COLUMNS = ("sentence1", "sentence2")
MNLI_LABELS = ("entailment", "neutral", "contradiction")
MNLI_FILES = (
    ("train", "train.tsv"),
    ("dev_matched", "dev_matched.tsv"),
    ("dev_mismatched", "dev_mismatched.tsv"),
    ("test_matched", "test_matched.tsv"),
    ("test_mismatched", "test_mismatched.tsv"),
    ("test_ax", "diagnostic.tsv"),
)

GLUE_TASKS = {
    "CoLA": TextTask(
        "CoLA",
        ("sentence",),
        labels=BINARY_LABELS,
        score_names=("matthews", "accuracy"),
        column_names=("source", "label", "star", "sentence"),
    ),
    "SST-2": TextTask("SST-2", ("sentence",), labels=BINARY_LABELS, score_names=("accuracy",)),
    "MRPC": TextTask(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        BINARY_LABELS,
        ("accuracy", "f1"),
        symmetric=True,
        tfds_columns=SENTENCE_COLUMNS,
    ),
    "STS-B": TextTask("STS-B", SENTENCE_COLUMNS, "score", score_names=("spearman", "pearson"), symmetric=True),
    "QQP": TextTask("QQP", ("question1", "question2"), "is_duplicate", BINARY_LABELS, ("accuracy", "f1")),
    "MNLI": TextTask(
        "MNLI",
        SENTENCE_COLUMNS,
        "gold_label",
        MNLI_LABELS,
        ("accuracy",),
        files=MNLI_FILES,
        tfds_columns=("premise", "hypothesis"),
    ),
    "QNLI": TextTask("QNLI", ("question", "sentence"), labels=ENTAILMENT_LABELS, score_names=("accuracy",)),
    "RTE": TextTask("RTE", SENTENCE_COLUMNS, labels=ENTAILMENT_LABELS, score_names=("accuracy",)),
    "WNLI": TextTask("WNLI", SENTENCE_COLUMNS, labels=BINARY_LABELS, score_names=("accuracy",)),
}


def get_glue_task(name: str) -> TextTask:
    """Return a task of GLUE. Raises `ExperimentError` for another name."""
    if name == "AX":
        raise ExperimentError("AX lacks training rows; `submit` writes the predictions of an MNLI run for it")
    if name not in GLUE_TASKS:
        raise ExperimentError(f"{name!r} is not a task of GLUE; choose one of {', '.join(GLUE_TASKS)}")
    return GLUE_TASKS[name]


def locate_glue_rows(root: str, name: str) -> str:
    """Return the location of a task's rows: its folder in `root`, or its TFDS name for the root "tfds"."""
    return f"tfds:glue/{name.lower().replace('-', '')}" if root == "tfds" else f"{root}/{name}"


# Of the released data sets.
NUM_GLUE_TRAIN_ROWS = {
    "CoLA": 8551, "SST-2": 67_349, "MRPC": 3668, "STS-B": 5749, "QQP": 363_846, "MNLI": 392_702, "QNLI": 104_743,
    "RTE": 2490, "WNLI": 635,
}  # fmt: skip
