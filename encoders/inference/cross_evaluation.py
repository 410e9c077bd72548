"""Scores of a pre-trained run under another experiment's settings, as in ALBERT's table 5 and for `evaluate --set`.

A run without the head of a sentence task is scored by a logistic regression on its [CLS] vectors, fitted to
`NUM_PROBE_EXAMPLES` training examples and scored on held-out ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import jax
import numpy as np

from encoders.data.batch import Batch
from encoders.data.stream import BatchStream, iter_eval_batches
from encoders.experiment import apply_settings
from encoders.model.encoder import Encoder, find_encoder_name, merge_word_tables
from encoders.model.heads import gather_hidden_states
from encoders.run.evaluate import evaluate_run
from encoders.run.folder import RunError
from encoders.run.run import Run
from encoders.training import distributed
from encoders.utils.files import NUMBER, check_shape, lock_dir, read_json_file, write_json

NUM_PROBE_EXAMPLES = 8192
SENTENCE_TASK_HEADS = ("pooler", "pair")
SCORES_FOLDER = "scores"


def score_path(folder: Path, settings: Iterable[str]) -> Path:
    """Return the file of a run's scores under other settings."""
    digest = hashlib.sha256(json.dumps(sorted(settings)).encode()).hexdigest()[:8]
    return folder / SCORES_FOLDER / f"{digest}.json"


def cached_scores(folder: Path, settings: Iterable[str]) -> dict[str, float] | None:
    """Return a run's scores under other settings, or None before they are computed."""
    path = score_path(folder, settings)
    if not path.exists():
        return None
    content = read_json_file(path)
    check_shape(content, {"scores": {str: NUMBER}}, path)
    return content["scores"]


def load_or_compute_scores(folder: Path, settings: tuple[str, ...]) -> dict[str, float]:
    """Return a run's scores under other settings; compute and store them the first time."""
    # Processes of one run compute together, so they cannot exclude each other.
    lock = nullcontext() if distributed.is_multi_process() else lock_dir(folder / SCORES_FOLDER, lambda: None)
    with lock:
        scores = cached_scores(folder, settings)
        if scores is not None:
            return scores
        run = Run.open(folder)
        step, params = run.load_params("latest")
        scores = evaluate_with_overrides(run, params, settings)
        if distributed.is_primary():
            (folder / SCORES_FOLDER).mkdir(exist_ok=True)
            write_json(score_path(folder, settings), {"settings": sorted(settings), "step": step, "scores": scores})
        return scores


def evaluate_with_overrides(
    run: Run, params: dict, settings: Iterable[str], eval_batches: int | None = None
) -> dict[str, float]:
    """Return held-out scores of a run's parameters under its experiment with `settings`.

    Raises `RunError` for settings that need parameters that the run lacks, other than the heads of a sentence task.
    """
    other = Run(apply_settings(run.experiment, settings), run.folder, run.vocab, run.open_store)
    wanted = other.state_shapes.params
    shapes, wanted_shapes = (jax.tree.map(np.shape, tree) for tree in (params, wanted))
    missing = [name for name in wanted if shapes.get(name) != wanted_shapes[name]]
    if not missing:
        return evaluate_run(other, {name: params[name] for name in wanted}, num_batches=eval_batches)
    sentence_task = getattr(other.experiment.objective, "sentence_task", None)
    problem = f"{run.folder} lacks parameters {', '.join(missing)}"
    if sentence_task is None or not set(missing) <= set(SENTENCE_TASK_HEADS):
        raise RunError(f"{problem} of the shapes for {', '.join(settings)}")
    if distributed.is_multi_process():
        raise RunError(f"{problem}; a regression in their place needs a single process")
    params = merge_word_tables(params)
    return score_linear_probe(other, params[find_encoder_name(params)], sentence_task)


def score_linear_probe(run: Run, params: dict, sentence_task) -> dict[str, float]:
    """Return the held-out accuracy of a logistic regression on frozen [CLS] vectors."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    experiment, tables = run.experiment, run.store.path / "tables"
    phase = experiment.phases[-1]
    num_passes = experiment.objective.num_distinct_passes
    stream = BatchStream.from_store(run.store, (phase,), experiment.seed, num_passes)
    train_batches = stream.iter_batches(0, max(min(phase.until_step, NUM_PROBE_EXAMPLES // phase.batch_size), 1))
    eval_batches = iter_eval_batches(
        run.store.eval_splits[0], run.vocab, phase, phase.batch_size, experiment.intervals.eval_batches, tables
    )
    x, y = collect_cls_vectors(run, params, train_batches, sentence_task)
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y)
    x, y = collect_cls_vectors(run, params, eval_batches, sentence_task)
    accuracy, positive_share = float(regression.score(x, y)), float(y.mean())
    error, baseline = float((accuracy * (1 - accuracy) / len(y)) ** 0.5), max(positive_share, 1 - positive_share)
    prefix = sentence_task.metric_prefix
    return {f"{prefix}_accuracy": accuracy, f"{prefix}_accuracy_error": error, f"{prefix}_baseline": baseline}


@partial(jax.jit, static_argnames="config")
def compute_cls_vectors(params: dict, batch: Batch, config) -> jax.Array:
    """Return the vector of [CLS] of every example, `[b s d]`."""
    return gather_hidden_states(Encoder(config).apply({"params": params}, batch), batch.cls_positions)


def collect_cls_vectors(run: Run, params: dict, batches, sentence_task) -> tuple[np.ndarray, np.ndarray]:
    """Return [CLS] vectors `[n d]` and labels `[n]` of the examples in batches."""
    vectors, labels = [], []
    for batch in batches:
        is_example = batch.example_mask == 1
        vectors.append(np.asarray(compute_cls_vectors(params, batch, run.experiment.model))[is_example])
        labels.append(batch.labels[sentence_task.label_field][is_example])
    return np.concatenate(vectors), np.concatenate(labels)
