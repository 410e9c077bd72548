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
import jax.numpy as jnp
import numpy as np

from encoders.data.stream import Stream, heldout_batches
from encoders.experiment import override
from encoders.model.encoder import Encoder
from encoders.model.heads import gather
from encoders.run.run import Run, RunError
from encoders.training import distributed
from encoders.utils.files import owned, write_json

FITTED = 8192
HEADS = ("pooler", "pair")
KEPT = "scores"


def place(folder: Path, settings: Iterable[str]) -> Path:
    """Where a run's scores under other settings are kept."""
    mark = hashlib.sha256(json.dumps(sorted(settings)).encode()).hexdigest()[:8]
    return folder / KEPT / f"{mark}.json"


def known(folder: Path, settings: Iterable[str]) -> dict[str, float] | None:
    """A run's scores under other settings, if they have been computed."""
    path = place(folder, settings)
    return json.loads(path.read_text(encoding="utf-8"))["scores"] if path.exists() else None


def scored(folder: Path, settings: tuple[str, ...], store: str | None = None) -> dict[str, float]:
    """The same, computed now if they are not there."""
    with owned(folder / KEPT, lambda: None) if not distributed.several() else nullcontext():
        if (found := known(folder, settings)) is None:
            run = Run.open(folder, store)
            step, params = run.params("latest")
            found = under(run, params, settings)
            if distributed.primary():
                place(folder, settings).parent.mkdir(exist_ok=True)
                write_json(place(folder, settings), {"settings": sorted(settings), "step": step, "scores": found})
    return found


def under(run: Run, params: dict, settings: Iterable[str], batches: int | None = None) -> dict[str, float]:
    """Held-out scores of a run's parameters as if its experiment had `settings`.

    Raises `RunError` where these need parameters that the run lacks, other than the heads of a sentence task.
    """
    other = Run(override(run.experiment, settings), run.folder, run.facts, run.find_store)
    wanted = jax.eval_shape(other.init, 0).params
    shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
    missing = [name for name in wanted if name not in params or shapes(params[name]) != shapes(wanted[name])]
    if not missing:
        return other.evaluate({name: params[name] for name in wanted}, batches=batches)
    sentences = getattr(other.experiment.objective, "sentences", None)
    if sentences is None or not set(missing) <= set(HEADS):
        raise RunError(f"{run.folder} has no {', '.join(missing)} that fits {', '.join(settings)}")
    if distributed.several():
        raise RunError(f"{run.folder} has no {', '.join(missing)}, and one process alone fits what takes its place")
    return fitted(other, params[other.experiment.objective.body], sentences)


def fitted(run: Run, params: dict, task) -> dict[str, float]:
    """The held-out accuracy of a logistic regression on frozen [CLS] vectors."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    experiment, tables = run.experiment, run.store.path / "tables"
    phase = experiment.phases[-1]
    copies = experiment.objective.copies
    training = Stream(run.store.train, run.facts, (phase,), experiment.seed, copies, tables)
    seen = training.batches(0, max(min(phase.until, FITTED // phase.batch), 1))
    limit = experiment.cadence.heldout
    heldout = heldout_batches(run.store.heldouts[0], run.facts, phase, phase.batch, limit, tables)
    x, y = vectors(run, params, seen, task)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y)
    x, y = vectors(run, params, heldout, task)
    accuracy, share = float(model.score(x, y)), float(y.mean())
    name = task.name
    return {
        f"{name}_accuracy": accuracy,
        f"{name}_accuracy_error": float((accuracy * (1 - accuracy) / len(y)) ** 0.5),
        f"{name}_baseline": max(share, 1 - share),
    }


@partial(jax.jit, static_argnames="model")
def first(params: dict, batch: dict, model) -> jax.Array:
    """The vector of [CLS] of every example, `[b s d]`."""
    fields = (batch[name] for name in ("tokens", "example", "segments", "positions"))
    return gather(Encoder(model).apply({"params": params}, *fields), batch["start"])


def vectors(run: Run, params: dict, batches, task) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and labels of the examples of some batches."""
    found, labels = [], []
    for batch in batches:
        real = batch["valid"] == 1
        rows = {name: jnp.asarray(value) for name, value in batch.items()}
        found.append(np.asarray(first(params, rows, run.experiment.model))[real])
        labels.append(batch[task.label][real])
    return np.concatenate(found), np.concatenate(labels)
