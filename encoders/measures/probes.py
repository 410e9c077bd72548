"""Linear probes: what a linear classifier reads from the frozen hidden states of each layer.

Probes are those of Alain & Bengio (2016, https://arxiv.org/abs/1610.01644), and of words in context those of Liu et al.
(2019, https://arxiv.org/abs/1903.08855, figure 1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import jax
import numpy as np

from encoders.data.labelled import Example
from encoders.data.row_files import RowReader
from encoders.inference.predictor import Predictor
from encoders.inference.text_batch import TextBatch, chunk_items, cut_texts, measure_row
from encoders.measures.base import Measure, Measurement, check_path
from encoders.measures.treebanks import UPOS_TAGS, find_treebank_files, read_treebank
from encoders.model.config import EncoderConfig
from encoders.model.encoder import Encoder, find_encoder_name, merge_word_tables
from encoders.model.heads import average_examples
from encoders.tasks.text_tasks import TextTask
from encoders.tasks.token_classification import TokenTask, find_first_tokens
from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields

ProbePooling = Literal["mean", "cls"]
NOT_READ = -1  # the position of an item without a vector
CHUNK_ROWS = 512  # rows of a test whose hidden states are in memory at a time
TOLERANCE = 1e-4  # of the solver; 1e-6 changes the accuracies of 25,000 words by at most 0.0003
MAX_ITERATIONS = 10_000  # of the solver, which takes some hundreds


@dataclass(frozen=True)
class LinearProbe(Measure):
    """Logistic regression of the labels of a task on the hidden states of each layer, standardised.

    Rows of `task` are in the folder `path`: the training rows, and as test rows the first development file, of which
    nothing is tuned. Without a task labels are the parts of speech of `find_treebank_files`. The vector of a word is
    that of its first token, and the vector of a text or a pair is by `pooling`. `max_train_rows` and `max_test_rows`
    are drawn at equal distances from the files, and None takes all rows. The inverse strength of the L2 penalty is
    one of `regularisations` for each layer, by the accuracy of a cross-validation over `folds` parts of the training
    rows. Scores, all but the first behind `name` and an underscore:

    - `name`: the accuracy on the test rows of the layer that is best in the cross-validation, and `best_layer`, its
      number;
    - `layer_0`, the embedding, to `layer_N`: the accuracy of each layer;
    - `baseline`: the share of the commonest label of the test rows;
    - `cut` and `train_cut`, where there are any: words without a vector, which are behind the cut of the model's
      positions or have no tokens, or texts that were cut. Test words without a vector count as wrong.
    """

    path: str = ""
    task: TextTask | TokenTask | None = None
    max_train_rows: int | None = 400
    max_test_rows: int | None = None
    regularisations: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    folds: int = 3
    pooling: ProbePooling = "mean"

    def __post_init__(self):
        if self.task is not None and not isinstance(self.task, TextTask | TokenTask):
            raise UserError(f"probe: a {type(self.task).__name__} lacks classes; take a TextTask or a TokenTask")
        if self.task is not None and not self.task.labels:
            raise UserError(f"{self.name}: the labels of {self.task.name} are numbers, and a probe needs classes")
        is_limit = lambda limit: limit is None or limit >= 1
        poolings = get_args(ProbePooling)
        checks = [
            ("max_train_rows max_test_rows", is_limit, "at least 1, or None for all rows"),
            ("regularisations", lambda strengths: strengths and min(strengths) > 0, "one or more numbers above 0"),
            ("folds", lambda folds: folds >= 2, "at least 2"),
            ("pooling", lambda pooling: pooling in poolings, f"one of {', '.join(poolings)}"),
        ]
        check_fields(self, f"{self.name}.", checks)

    @property
    def name(self) -> str:
        """The name of the scores: "probe" for parts of speech, else with the name of the task, as in "probe_sst_2"."""
        return "probe" if self.task is None else "probe_" + re.sub(r"\W", "_", self.task.name.lower())

    def list_files(self) -> tuple[Path, ...]:
        """Return the file that trains and the one that tests. Raises `UserError` where one is missing."""
        folder = check_path(self.path, self.name)
        if self.task is None:
            return find_treebank_files(folder)
        return tuple(folder / dict(self.task.files)[split] for split in find_splits(self.task, folder))

    def read_examples(self) -> tuple[list[Example], list[Example]]:
        """Return the training rows and the test rows. Raises `RowError` for a bad row."""
        if self.task is None:
            task = TokenTask(UPOS_TAGS)
            train, test = ([task.parse_row(row) for row in read_treebank(path)] for path in self.list_files())
        else:
            splits = find_splits(self.task, check_path(self.path, self.name))
            train, test = (list(self.task.read_examples(self.path, split, RowReader())) for split in splits)
        return draw_rows(train, self.max_train_rows), draw_rows(test, self.max_test_rows)

    def compute(self, predictor: Predictor) -> Measurement:
        is_of_texts = isinstance(self.task, TextTask)
        encode, pooling = (encode_texts, self.pooling) if is_of_texts else (encode_words, None)
        train, test = ([encode(predictor, example) for example in rows] for rows in self.read_examples())
        labels, is_read = join_labels(train)
        row_folds = assign_folds(len(train), self.folds)
        item_folds = np.repeat(row_folds, [len(row.labels) for row in train])[is_read]
        self.check_folds(len(train), labels[is_read], item_folds)
        features = compute_features(predictor, train, pooling)
        probes = [fit_probe(layer, labels[is_read], item_folds, self.regularisations) for layer in features]
        is_right = score_rows(predictor, test, pooling, probes)
        best_layer = int(np.argmax([probe.best_score_ for probe in probes]))  # the lowest of equal ones
        scores = {self.name: float(is_right[best_layer].mean()), f"{self.name}_best_layer": best_layer}
        scores |= {f"{self.name}_layer_{i}": float(layer.mean()) for i, layer in enumerate(is_right)}
        test_labels, _ = join_labels(test)
        scores[f"{self.name}_baseline"] = float(np.bincount(test_labels).max() / len(test_labels))
        for name, rows in (("cut", test), ("train_cut", train)):
            if num_cut := sum(row.num_cut for row in rows):
                scores[f"{self.name}_{name}"] = num_cut
        return Measurement(scores, {self.name: is_right[best_layer]})

    def check_folds(self, num_rows: int, labels: np.ndarray, folds: np.ndarray) -> None:
        """Raise `UserError` for fewer rows than folds, and for a fold whose training rows are all of one class."""
        if num_rows < self.folds:
            raise UserError(f"{self.name}: folds={self.folds} exceeds the {num_rows} training rows")
        if any(len(np.unique(labels[folds != fold])) < 2 for fold in range(self.folds)):
            problem = f"without one of folds={self.folds} the {num_rows} training rows have fewer than two labels"
            raise UserError(f"{self.name}: {problem}; raise max_train_rows={self.max_train_rows} or give other rows")


@dataclass(frozen=True)
class ProbeRow:
    """Row of a task as the model reads it: the token ids of its one or two texts, cut to the model's positions.

    An item is a word, or the row itself. It has a label and the position of its vector among the row's, or `NOT_READ`.
    `num_cut` counts words without a vector, or is 1 for a text that was cut.
    """

    token_ids: list[list[int]]
    labels: np.ndarray
    positions: np.ndarray
    num_cut: int


def find_splits(task: TextTask | TokenTask, folder: Path) -> tuple[str, str]:
    """Return the training split of a task, and its first development split with a file. Raises `UserError`."""
    splits = [split for split, name in task.files if (folder / name).is_file()]
    tests = [split for split in splits if split.startswith("dev")]
    if "train" not in splits or not tests:
        names = dict(task.files)
        accepted = " or ".join(name for split, name in task.files if split.startswith("dev"))
        raise UserError(f"{task.name}: {folder} must hold {names.get('train')}, and {accepted}")
    return "train", tests[0]


def draw_rows(rows: list[Example], max_rows: int | None) -> list[Example]:
    """Return at most `max_rows` rows, at equal distances: the genres of a treebank follow one another.

    >>> draw_rows(list("abcdef"), 3)
    ['a', 'c', 'e']
    """
    count = min(len(rows), max_rows or len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def encode_words(predictor: Predictor, example: Example) -> ProbeRow:
    """Return a row whose items are the words of a `TokenTask`, each at its first token."""
    word_starts, labels = example.target
    (ids,), (offsets,) = predictor.run.tokenizer.encode_with_offsets(list(example.texts))
    max_tokens = predictor.lengths[-1] - 2
    words, first_tokens = find_first_tokens(word_starts, offsets)
    is_read, positions = first_tokens < max_tokens, np.full(len(labels), NOT_READ)
    positions[words[is_read]] = first_tokens[is_read] + 1  # behind [CLS]
    return ProbeRow([ids[:max_tokens]], np.array(labels), positions, int((positions == NOT_READ).sum()))


def encode_texts(predictor: Predictor, example: Example) -> ProbeRow:
    """Return a row whose only item is the text or pair of a `TextTask`. Raises `RunError` for a text without tokens."""
    ids = predictor.encode_text(example.texts[0] if len(example.texts) == 1 else example.texts)
    max_length, num_separators = predictor.lengths[-1], predictor.num_separators
    is_cut = measure_row(ids, num_separators) > max_length
    ids = cut_texts(ids, max_length, num_separators) if is_cut else ids
    return ProbeRow(ids, np.array([example.target]), np.zeros(1, int), int(is_cut))


def join_labels(rows: Sequence[ProbeRow]) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of all items of rows, `[i]`, and which of the items are read, bool `[i]`."""
    labels = np.concatenate([row.labels for row in rows])
    return labels, np.concatenate([row.positions for row in rows]) != NOT_READ


def assign_folds(num_rows: int, num_folds: int) -> np.ndarray:
    """Return the fold of each row, drawn at random, so that the words of a sentence share one."""
    return np.random.default_rng(0).permutation(num_rows) % num_folds


def compute_hidden_states(
    params: dict, batch: TextBatch, config: EncoderConfig, pooling: ProbePooling | None
) -> jax.Array:
    """Return the embedding and the hidden states of every layer, `[n b l d]`, or pooled, `[n b 1 d]`."""
    rows, params = batch.to_batch(), merge_word_tables(params)
    encoder_params = {"params": params[find_encoder_name(params)]}
    hidden = Encoder(config).apply(encoder_params, rows, output_hidden_states=True)
    if pooling == "mean":
        return jax.vmap(lambda states: average_examples(states, rows))(hidden)
    return hidden[:, :, :1] if pooling == "cls" else hidden


def compute_features(predictor: Predictor, rows: Sequence[ProbeRow], pooling: ProbePooling | None) -> np.ndarray:
    """Return the vectors of the items of rows that are read, in the embedding and every layer, float32 `[n i d]`."""
    features: list = [None] * len(rows)
    for indices, batch in predictor.iter_batches([row.token_ids for row in rows]):
        hidden = predictor.compute(compute_hidden_states, batch, predictor.config, pooling)
        for i, index in enumerate(indices):
            positions = rows[index].positions
            features[index] = hidden[:, i, positions[positions != NOT_READ]].astype(np.float32)
    return np.concatenate(features, axis=1)


def fit_probe(features: np.ndarray, labels: np.ndarray, folds: np.ndarray, regularisations: Sequence[float]):
    """Return scikit-learn's search of the strength of a penalty, fitted to features `[i d]` and labels `[i]`.

    It predicts with the strength of the highest mean accuracy over the folds `[i]`, its `best_score_`, and of equal
    ones with the strongest penalty.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(StandardScaler(), LogisticRegression(tol=TOLERANCE, max_iter=MAX_ITERATIONS))
    grid = {"logisticregression__C": sorted(regularisations)}
    search = GridSearchCV(pipeline, grid, cv=PredefinedSplit(folds), error_score="raise")
    return search.fit(features.astype(np.float64), labels)  # whose type is that of the solver's sums


def score_rows(
    predictor: Predictor, rows: Sequence[ProbeRow], pooling: ProbePooling | None, probes: Sequence
) -> np.ndarray:
    """Return where the probe of each layer is right, bool `[n i]`; it is wrong about an item that is not read."""
    is_right = []
    for chunk in chunk_items(rows, CHUNK_ROWS):
        labels, is_read = join_labels(chunk)
        chunk_right = np.zeros((len(probes), len(labels)), bool)
        if is_read.any():
            features = compute_features(predictor, chunk, pooling).astype(np.float64)
            for layer, probe in enumerate(probes):
                chunk_right[layer, is_read] = probe.predict(features[layer]) == labels[is_read]
        is_right.append(chunk_right)
    return np.concatenate(is_right, axis=1)
