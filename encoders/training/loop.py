"""The run: build, restore, step, log, evaluate, save.

A run's folder holds `experiment.json`, `metrics.jsonl`, `checkpoints/` and, once it is finished, `result.json`.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import jax
import numpy as np

from encoders import metrics
from encoders.data.prepare import prepared
from encoders.data.store import Store
from encoders.data.stream import Stream, heldout_batches
from encoders.experiment import Experiment, differences, fingerprint, from_json, to_json
from encoders.objectives.objective import total_loss
from encoders.training import log, sharding, step
from encoders.training.checkpoint import Checkpoints, abstract


class RunError(ValueError):
    """A run that cannot start or go on."""


class Run:
    """An experiment with its store, in its folder."""

    def __init__(self, experiment: Experiment, store: Store, folder: Path):
        self.experiment, self.store, self.folder = experiment, store, Path(folder)
        self.mesh = experiment.mesh.build()
        if store.facts.size > experiment.model.vocab:
            raise RunError(
                f"the vocabulary has {store.facts.size} entries and model.vocab={experiment.model.vocab} is less"
            )
        share = self.mesh.shape["data"] * self.mesh.shape["fsdp"] * experiment.accumulate
        for phase in experiment.phases:
            if phase.batch % share:
                raise RunError(
                    f"phases.batch={phase.batch} is not a multiple of {share}: mesh.data x mesh.fsdp x accumulate"
                )
        self.module = experiment.objective.module(experiment.model, store.facts)

    @classmethod
    def open(cls, folder: Path, store: str | None = None) -> Run:
        """A run from its folder alone; `store` says where its store has moved to."""
        record = read_record(folder)
        path = Path(store or record["store"])
        if not (path / "store.json").exists():
            raise RunError(f"the store of {folder} is not at {path}; pass where it is now with --store DIR")
        opened = Store.open(path)
        if opened.key != record["store_key"]:
            raise RunError(f"{path} is another store: {opened.key}, and the run was made with {record['store_key']}")
        return cls(from_json(record["experiment"]), opened, folder)

    @cached_property
    def init(self) -> Callable:
        label = self.experiment.phases[0].format.label
        return partial(step.init, module=self.module, optimizer=self.experiment.optimizer, label=label)

    @cached_property
    def shapes(self):
        return jax.eval_shape(self.init, self.experiment.seed)

    @cached_property
    def shardings(self):
        return sharding.shardings(self.shapes, self.mesh)

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints", self.experiment.cadence.keep)

    def fresh(self):
        """The state before the first step, made where it belongs."""
        return jax.jit(self.init, out_shardings=self.shardings)(self.experiment.seed)

    def restored(self, checkpoints: Checkpoints, at: int):
        return checkpoints.restore(at, abstract(self.shapes, self.shardings))

    def evaluate(self, params, phase=None, batches: int | None = None) -> dict[str, float]:
        """Held-out scores in the given phase's format, by default the last one's."""
        phase = phase or self.experiment.phases[-1]
        limit = batches or self.experiment.cadence.heldout
        rows = heldout_batches(
            self.store.heldout, self.store.facts, phase, phase.batch, limit, self.store.path / "tables"
        )
        sums = [step.eval_step(params, sharding.place(b, self.mesh), module=self.module) for b in rows]
        objective = self.experiment.objective
        scores = objective.scores(metrics.add(jax.device_get(sums)))
        return {"loss": total_loss(scores, objective.weights)} | scores


def read_record(folder: Path) -> dict:
    """`experiment.json` of a run's folder. Raises `RunError` where there is none."""
    path = Path(folder) / "experiment.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise RunError(f"{folder} holds no run (no experiment.json)") from None
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from None


def write_record(run: Run) -> None:
    """Claim the run's folder for its experiment. Raises `RunError` where it belongs to another one."""
    experiment, path = run.experiment, run.folder / "experiment.json"
    mine = fingerprint(experiment, run.store.key)
    if path.exists():
        record = read_record(run.folder)
        if record["fingerprint"] != mine:
            theirs = from_json(record["experiment"])
            changes = differences(theirs, experiment) or ["the content of data.corpus"]
            raise RunError(
                f"{run.folder} belongs to another experiment: {'; '.join(changes)}. "
                "Give this one a name of its own (--set name=...), or remove that folder"
            )
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    record = {
        "fingerprint": mine,
        "store": str(run.store.path.resolve()),
        "store_key": run.store.key,
        "versions": {package.__name__: package.__version__ for package in (jax, np)},
        "devices": [str(device) for device in jax.devices()],
        "experiment": to_json(experiment),
    }
    partial_path = path.with_suffix(".partial")
    partial_path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    partial_path.rename(path)


def result(folder: Path) -> dict | None:
    """The result of a finished run, else None."""
    path = Path(folder) / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def train(experiment: Experiment, folder: Path, say: Callable[[str], None] = print) -> dict:
    """Train to the end, from where the folder's newest checkpoint stands, and return the result."""
    store = prepared(experiment.data, say)
    run = Run(experiment, store, folder)
    write_record(run)
    if done := result(folder):
        return done
    checkpoints = run.checkpoints()
    at = checkpoints.latest() or 0
    state, notes = run.restored(checkpoints, at) if at else (run.fresh(), {})
    out = log.Log(run.folder, at, experiment.steps, experiment.name)
    try:
        scores = advance(run, state, at, notes, checkpoints, out)
    finally:
        checkpoints.close()
        out.close()
    rates = [row["time"]["tokens_per_second"] for row in log.rows(out.path) if row["split"] == "train"]
    sizes = jax.tree.map(lambda x: x.size, run.shapes.params)
    final = {
        "name": experiment.name,
        "fingerprint": fingerprint(experiment, store.key),
        "steps": experiment.steps,
        "parameters": sum(jax.tree.leaves(sizes)),
        "tokens_per_second": statistics.median(rates),
        "heldout": scores,
    }
    (run.folder / "result.json").write_text(json.dumps(final, indent=1), encoding="utf-8")
    return final


def advance(run: Run, state, at: int, notes: dict, checkpoints: Checkpoints, out: log.Log) -> dict[str, float]:
    """All steps from `at` on; held-out scores of the last one."""
    experiment, cadence, objective = run.experiment, run.experiment.cadence, run.experiment.objective
    store, steps = run.store, run.experiment.steps
    stream = Stream(
        store.train, store.facts, experiment.phases, experiment.seed, objective.copies, store.path / "tables"
    )
    sums = {name: metrics.Mean(*map(np.float64, pair)) for name, pair in notes.get("pending", {}).items()}
    tokens, waiting, scores, since = notes.get("tokens", 0), [], {}, time.monotonic()
    interval_tokens = 0.0

    def collect() -> None:
        """Fetch what the device has reported since the last time."""
        nonlocal sums, tokens, interval_tokens, waiting
        fetched = jax.device_get(waiting)
        sums = metrics.add([sums, *fetched])
        new = sum(float(each["tokens"].total) for each in fetched)
        tokens, interval_tokens, waiting = tokens + int(new), interval_tokens + new, []

    for index, batch in enumerate(stream.batches(at, steps), start=at + 1):
        placed = sharding.place(batch, run.mesh)
        state, measured = step.train_step(
            state,
            placed,
            experiment.seed,
            module=run.module,
            optimizer=experiment.optimizer,
            steps=steps,
            accumulate=experiment.accumulate,
        )
        waiting.append(measured)
        if len(waiting) > 2:
            jax.block_until_ready(waiting[-3])
        last = index == steps
        if index % cadence.log == 0 or last:
            collect()
            taken = time.monotonic() - since
            streak = int(state.guard["streak"])
            row = objective.scores({name: mean for name, mean in sums.items() if name != "tokens"})
            row = {"loss": total_loss(row, objective.weights), "tokens": tokens} | row
            rate = interval_tokens / taken
            out.write(index, "train", row, {"seconds": round(taken, 3), "tokens_per_second": round(rate, 1)})
            out.advance(index, f"loss {row['loss']:.3f}, {rate:,.0f} tokens/s")
            if streak >= cadence.patience:
                raise RunError(
                    f"{streak} updates in a row were not finite (step {index}); the last good checkpoint is "
                    f"{checkpoints.latest()}. A lower optimizer.rate or a longer optimizer.warmup may help"
                )
            sums, interval_tokens, since = {}, 0.0, time.monotonic()
        loss = None
        if index % cadence.evaluate == 0 or last:
            paused = time.monotonic()
            jax.block_until_ready(state.params)
            scores = run.evaluate(state.params, stream.phase(index - 1))
            loss = scores["loss"]
            out.write(index, "heldout", scores, {"seconds": round(time.monotonic() - paused, 3)})
            out.advance(index)
            out.say(f"{experiment.name} step {index:,}: held-out " + describe(scores))
            since += time.monotonic() - paused
        if index % cadence.save == 0 or last:
            collect()
            pending = {name: [float(mean.total), float(mean.count)] for name, mean in sums.items()}
            checkpoints.save(index, state, {"pending": pending, "tokens": tokens}, loss)
    return scores


def describe(scores: dict[str, float]) -> str:
    """The scores in one line, without errors and baselines."""
    shown = {n: s for n, s in scores.items() if not n.endswith(("_error", "_baseline"))}
    return ", ".join(f"{name.replace('_', ' ')} {score:.4g}" for name, score in shown.items())
