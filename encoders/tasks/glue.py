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
MNLI_SPLITS = ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")
MNLI_FILES = (*((split, f"{split}.tsv") for split in MNLI_SPLITS), ("test_ax", "diagnostic.tsv"))
MNLI_TFDS_COLUMNS, MRPC_COLUMNS = ("premise", "hypothesis"), ("#1 String", "#2 String")
COLA_COLUMNS = ("source", "label", "star", "sentence")
F1_SCORES = ("accuracy", "f1")

GLUE_TASKS = {
    "CoLA": TextTask(
        "CoLA", ("sentence",), "label", BINARY_LABELS, ("matthews", "accuracy"), column_names=COLA_COLUMNS
    ),
    "SST-2": TextTask("SST-2", ("sentence",), labels=BINARY_LABELS, score_names=("accuracy",)),
    "MRPC": TextTask(
        "MRPC", MRPC_COLUMNS, "Quality", BINARY_LABELS, F1_SCORES, symmetric=True, tfds_columns=SENTENCE_COLUMNS
    ),
    "STS-B": TextTask("STS-B", SENTENCE_COLUMNS, "score", score_names=("spearman", "pearson"), symmetric=True),
    "QQP": TextTask("QQP", ("question1", "question2"), "is_duplicate", BINARY_LABELS, F1_SCORES),
    "MNLI": TextTask(
        "MNLI", SENTENCE_COLUMNS, "gold_label", MNLI_LABELS, ("accuracy",), MNLI_FILES, tfds_columns=MNLI_TFDS_COLUMNS
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
