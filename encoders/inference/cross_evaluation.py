"""A pre-trained run scored on what it was not trained for: ALBERT's table 5 scores every model on both sentence tasks.

`evaluate --set` asks the same of any run. Where the run lacks the head, as one without a sentence task does, a logistic
regression on its [CLS] vectors takes the head's place: fitted to `FITTED` training examples and scored held out.
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
from encoders.model.encoder import Encoder, find_encoder_name
from encoders.model.heads import gather_hidden_states
from encoders.run.evaluate import evaluate_run
from encoders.run.folder import RunError
from encoders.run.run import Run
from encoders.training import distributed
from encoders.utils.files import lock_dir, write_json

NUM_PROBE_EXAMPLES = 8192
SENTENCE_TASK_HEADS = ("pooler", "pair")
SCORES_FOLDER = "scores"


def score_path(folder: Path, settings: Iterable[str]) -> Path:
    """Where a run's scores under other settings are kept."""
    mark = hashlib.sha256(json.dumps(sorted(settings)).encode()).hexdigest()[:8]
    return folder / SCORES_FOLDER / f"{mark}.json"


def cached_scores(folder: Path, settings: Iterable[str]) -> dict[str, float] | None:
    """A run's scores under other settings, if they have been computed."""
    path = score_path(folder, settings)
    return json.loads(path.read_text(encoding="utf-8"))["scores"] if path.exists() else None


def load_or_compute_scores(folder: Path, settings: tuple[str, ...], store: str | None = None) -> dict[str, float]:
    """The same, computed now if they are not there."""
    with lock_dir(folder / SCORES_FOLDER, lambda: None) if not distributed.is_multi_process() else nullcontext():
        if (found := cached_scores(folder, settings)) is None:
            run = Run.open(folder, store)
            step, params = run.load_params("latest")
            found = evaluate_with_overrides(run, params, settings)
            if distributed.is_primary():
                score_path(folder, settings).parent.mkdir(exist_ok=True)
                write_json(score_path(folder, settings), {"settings": sorted(settings), "step": step, "scores": found})
    return found


def evaluate_with_overrides(
    run: Run, params: dict, settings: Iterable[str], eval_batches: int | None = None
) -> dict[str, float]:
    """Held-out scores of a run's parameters as if its experiment had `settings`.

    Raises `RunError` where these need parameters that the run lacks, other than the heads of a sentence task.
    """
    other = Run(apply_settings(run.experiment, settings), run.folder, run.vocab, run.open_store)
    wanted = jax.eval_shape(other.init_fn, 0).params
    get_shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
    missing = [name for name in wanted if name not in params or get_shapes(params[name]) != get_shapes(wanted[name])]
    if not missing:
        return evaluate_run(other, {name: params[name] for name in wanted}, num_batches=eval_batches)
    sentences = getattr(other.experiment.objective, "sentence_task", None)
    if sentences is None or not set(missing) <= set(SENTENCE_TASK_HEADS):
        raise RunError(f"{run.folder} has no {', '.join(missing)} that fits {', '.join(settings)}")
    if distributed.is_multi_process():
        raise RunError(f"{run.folder} has no {', '.join(missing)}, and one process alone fits what takes its place")
    return score_linear_probe(other, params[find_encoder_name(params)], sentences)


def score_linear_probe(run: Run, params: dict, sentence_task) -> dict[str, float]:
    """The held-out accuracy of a logistic regression on frozen [CLS] vectors."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    experiment, tables = run.experiment, run.store.path / "tables"
    phase = experiment.phases[-1]
    copies = experiment.objective.num_distinct_passes
    training = BatchStream(run.store.train_split, run.vocab, (phase,), experiment.seed, copies, tables)
    seen = training.iter_batches(0, max(min(phase.until_step, NUM_PROBE_EXAMPLES // phase.batch_size), 1))
    limit = experiment.intervals.eval_batches
    heldout = iter_eval_batches(run.store.eval_splits[0], run.vocab, phase, phase.batch_size, limit, tables)
    x, y = collect_cls_vectors(run, params, seen, sentence_task)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y)
    x, y = collect_cls_vectors(run, params, heldout, sentence_task)
    accuracy, share = float(model.score(x, y)), float(y.mean())
    name = sentence_task.metric_prefix
    return {
        f"{name}_accuracy": accuracy,
        f"{name}_accuracy_error": float((accuracy * (1 - accuracy) / len(y)) ** 0.5),
        f"{name}_baseline": max(share, 1 - share),
    }


@partial(jax.jit, static_argnames="config")
def compute_cls_vectors(params: dict, batch: Batch, config) -> jax.Array:
    """The vector of [CLS] of every example, `[b s d]`."""
    return gather_hidden_states(Encoder(config).apply({"params": params}, batch), batch.cls_positions)


def collect_cls_vectors(run: Run, params: dict, batches, sentence_task) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and labels of the examples of some batches."""
    found, labels = [], []
    for batch in batches:
        real = batch.example_mask == 1
        found.append(np.asarray(compute_cls_vectors(params, batch, run.experiment.model))[real])
        labels.append(batch.labels[sentence_task.label_field][real])
    return np.concatenate(found), np.concatenate(labels)
