"""The run: build, restore, step, log, evaluate, save.

A run's folder holds `experiment.json`, `metrics.jsonl`, `checkpoints/` and, once it is finished, `result.json`.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
    write_json(path, record)


def write_json(path: Path, value: dict) -> None:
    """Write a file that is either whole or not there."""
    partial_path = path.with_suffix(".partial")
    partial_path.write_text(json.dumps(value, indent=1), encoding="utf-8")
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
        scores = advance(run, state, at, Tally.read(notes), checkpoints, out)
    finally:
        checkpoints.close()
        out.close()
    speeds = [row["time"]["tokens_per_second"] for row in log.rows(out.path) if row["split"] == "train"]
    final = {
        "name": experiment.name,
        "fingerprint": fingerprint(experiment, store.key),
        "steps": experiment.steps,
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(run.shapes.params)),
        "tokens_per_second": statistics.median(speeds),
        "heldout": scores,
    }
    write_json(run.folder / "result.json", final)
    return final


@dataclass
class Tally:
    """What the steps since the last row of the log have reported, fetched from the device only when it is asked for."""

    sums: dict[str, metrics.Mean] = field(default_factory=dict)
    tokens: int = 0  # of the whole run
    waiting: list[dict] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    counted_from: int = 0

    @classmethod
    def read(cls, notes: dict) -> Tally:
        """The tally that a checkpoint's notes hold."""
        sums = {name: metrics.Mean(*map(np.float64, pair)) for name, pair in notes.get("pending", {}).items()}
        tokens = notes.get("tokens", 0)
        return cls(sums, tokens, counted_from=tokens)

    def notes(self) -> dict:
        self.collect()
        pending = {name: [float(mean.total), float(mean.count)] for name, mean in self.sums.items()}
        return {"pending": pending, "tokens": self.tokens}

    def watch(self, measured: dict) -> None:
        """Add a step's metrics, and wait until at most two steps are in flight."""
        self.waiting.append(measured)
        if len(self.waiting) > 2:
            jax.block_until_ready(self.waiting[-3])

    def collect(self) -> None:
        fetched = jax.device_get(self.waiting)
        self.tokens += sum(int(each.pop("tokens").total) for each in fetched)
        self.sums, self.waiting = metrics.add([self.sums, *fetched]), []

    def finish(self) -> tuple[dict[str, metrics.Mean], dict[str, float]]:
        """The sums since the last time, and the time they took; a new interval begins."""
        self.collect()
        seconds = time.monotonic() - self.started
        speed = (self.tokens - self.counted_from) / seconds
        sums, self.sums, self.started, self.counted_from = self.sums, {}, time.monotonic(), self.tokens
        return sums, {"seconds": round(seconds, 3), "tokens_per_second": round(speed, 1)}


def advance(run: Run, state, at: int, tally: Tally, checkpoints: Checkpoints, out: log.Log) -> dict[str, float]:
    """All steps from `at` on; held-out scores of the last one."""
    experiment, cadence, steps = run.experiment, run.experiment.cadence, run.experiment.steps
    if at == steps:  # interrupted between the last checkpoint and the result
        return run.evaluate(state.params)
    stream = Stream(
        run.store.train,
        run.store.facts,
        experiment.phases,
        experiment.seed,
        experiment.objective.copies,
        run.store.path / "tables",
        jax.process_index(),
        jax.process_count(),
    )
    for index, batch in enumerate(stream.batches(at, steps), start=at + 1):
        state, measured = step.train_step(
            state,
            sharding.place(batch, run.mesh),
            experiment.seed,
            module=run.module,
            optimizer=experiment.optimizer,
            steps=steps,
            accumulate=experiment.accumulate,
        )
        tally.watch(measured)
        due = lambda every, index=index: index % every == 0 or index == steps
        if due(cadence.log):
            record(run, index, tally, out)
            stop_if_not_finite(run, index, state, checkpoints)
        loss = None
        if due(cadence.evaluate):
            jax.block_until_ready(state.params)
            paused = time.monotonic()
            scores = run.evaluate(state.params, stream.phase(index - 1))
            loss, seconds = scores["loss"], time.monotonic() - paused
            tally.started += seconds
            out.write(index, "heldout", scores, {"seconds": round(seconds, 3)})
            out.say(f"{experiment.name} step {index:,}: held-out {describe(scores)}")
        if due(cadence.save):
            checkpoints.save(index, state, tally.notes(), loss)
    return scores


def record(run: Run, index: int, tally: Tally, out: log.Log) -> None:
    """A row of the log, and the progress bar."""
    experiment = run.experiment
    sums, taken = tally.finish()
    scores = experiment.objective.scores(sums)
    loss = total_loss(scores, experiment.objective.weights)
    rate = float(experiment.optimizer.learning_rate(index - 1, experiment.steps))
    out.write(index, "train", {"loss": loss, "tokens": tally.tokens, "learning_rate": rate} | scores, taken)
    out.advance(index, f"loss {loss:.3f}, {taken['tokens_per_second']:,.0f} tokens/s")


def stop_if_not_finite(run: Run, index: int, state, checkpoints: Checkpoints) -> None:
    """Raises `RunError` after too many updates in a row that had to be left out."""
    streak = int(state.guard["streak"])
    if streak >= run.experiment.cadence.patience:
        raise RunError(
            f"{run.experiment.name}: the last {streak} updates up to step {index} were not finite and left out; the "
            f"last checkpoint is {checkpoints.latest()}. A lower optimizer.rate or longer optimizer.warmup may help"
        )


def describe(scores: dict[str, float]) -> str:
    """The scores in one line, without errors and baselines."""
    shown = {n: s for n, s in scores.items() if not n.endswith(("_error", "_baseline"))}
    return ", ".join(f"{name.replace('_', ' ')} {score:.4g}" for name, score in shown.items())
