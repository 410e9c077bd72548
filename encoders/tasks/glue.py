"""The tasks of GLUE (Wang et al., 2018, https://arxiv.org/abs/1804.07461): in their original layout, or TFDS's.

CoLA is judged by Matthews' correlation, MRPC and QQP by accuracy and F1, STS-B by Pearson's and Spearman's correlation
(the papers here report Spearman's), the others by accuracy. AX has no training rows: an MNLI run answers it.
"""

from __future__ import annotations

from encoders.tasks.text_tasks import Texts
from encoders.utils.overrides import ExperimentError

BINARY, ENTAILS = ("0", "1"), ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")
MNLI_LABELS = ("entailment", "neutral", "contradiction")
MNLI_FILES = (
    ("train", "train.tsv"),
    ("dev_matched", "dev_matched.tsv"),
    ("dev_mismatched", "dev_mismatched.tsv"),
    ("test_matched", "test_matched.tsv"),
    ("test_mismatched", "test_mismatched.tsv"),
    ("test_ax", "diagnostic.tsv"),
)

TASKS = {
    "CoLA": Texts(
        "CoLA",
        ("sentence",),
        labels=BINARY,
        scores=("matthews", "accuracy"),
        columns=("source", "label", "star", "sentence"),
    ),
    "SST-2": Texts("SST-2", ("sentence",), labels=BINARY, scores=("accuracy",)),
    "MRPC": Texts(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        BINARY,
        ("accuracy", "f1"),
        symmetric=True,
        tfds=PAIR,
    ),
    "STS-B": Texts("STS-B", PAIR, "score", scores=("spearman", "pearson"), symmetric=True),
    "QQP": Texts("QQP", ("question1", "question2"), "is_duplicate", BINARY, ("accuracy", "f1")),
    "MNLI": Texts(
        "MNLI", PAIR, "gold_label", MNLI_LABELS, ("accuracy",), files=MNLI_FILES, tfds=("premise", "hypothesis")
    ),
    "QNLI": Texts("QNLI", ("question", "sentence"), labels=ENTAILS, scores=("accuracy",)),
    "RTE": Texts("RTE", PAIR, labels=ENTAILS, scores=("accuracy",)),
    "WNLI": Texts("WNLI", PAIR, labels=BINARY, scores=("accuracy",)),
}


def named(name: str) -> Texts:
    """A task of GLUE. Raises `ExperimentError` for another name."""
    if name == "AX":
        raise ExperimentError("AX has no training rows: `submit` writes what a run of MNLI says of it")
    if name not in TASKS:
        raise ExperimentError(f"there is no task {name!r} in GLUE; there are {', '.join(TASKS)}")
    return TASKS[name]


def rows_in(root: str, name: str) -> str:
    """Where a task's rows are: in a folder of its name, or in TFDS where `root` says "tfds"."""
    return f"tfds:glue/{name.lower().replace('-', '')}" if root == "tfds" else f"{root}/{name}"


# Training rows, as released.
ROWS = {
    "CoLA": 8551, "SST-2": 67_349, "MRPC": 3668, "STS-B": 5749, "QQP": 363_846, "MNLI": 392_702, "QNLI": 104_743,
    "RTE": 2490, "WNLI": 635,
}  # fmt: skip
