"""The run: build, restore, step, log, evaluate, save."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from encoders.data.prepare import prepared
from encoders.data.stream import Rows, Stream, heldout_table
from encoders.experiment import Experiment
from encoders.objectives.base import Metrics, total_loss
from encoders.run import diagnostics
from encoders.run.preemption import Stop, Stopped
from encoders.run.profiling import STEPS, Profile
from encoders.run.run import Run, RunError, claim, fetched, held, result
from encoders.run.warm_start import Start, fresh
from encoders.run.watchdog import Watchdog
from encoders.training import distributed, metric_log, sharding, step
from encoders.training.checkpoint import Checkpoints, hushed
from encoders.utils import metrics
from encoders.utils.files import roomy, write_json

HANGS = 1800.0  # seconds without a step, of which the first has to be compiled
Watch = Callable[[step.State, dict, Metrics], None]  # told of every step: the new state, its batch, its metrics


def train(
    experiment: Experiment,
    folder: Path,
    say: Callable[[str], None] = print,
    profile: bool = False,
    stop: Stop | None = None,
    patience: float = HANGS,
) -> dict:
    """Train to the end, from where the folder's newest sound checkpoint stands, and return the result.

    With `profile` the first steps are traced into the folder, and `say` is told where their time went. Raises `Stopped`
    after the step in which `stop` asks for it, which is saved, and `RunError` while another process trains there. When
    nothing has happened for `patience` seconds, `say` is told, and after as long again the process ends.
    """
    run, start = distributed.agreed(lambda: ready(experiment, folder, say))
    with ExitStack() as stack, roomy(folder), hushed():
        distributed.agreed(lambda: stack.enter_context(held(folder)) if distributed.primary() else None)
        mark = distributed.first(lambda: claim(run, start and start.key))
        if done := result(folder):
            return done
        watchdog = stack.enter_context(Watchdog(patience, distributed.tell))
        return finished(run, start, mark, say, profile, Hooks(stop or Stop(), watchdog))


@contextmanager
def sound(run: Run) -> Iterator[None]:
    """Says what to change where memory is out; where one of several processes fails, ends it at once."""
    try:
        with roomy(run.folder):
            yield
    except Stopped:
        raise
    except BaseException as error:
        told = RunError(diagnostics.out_of_memory(run, error)) if diagnostics.is_out_of_memory(error) else error
        if distributed.several():
            distributed.leave(told)
        if told is error:
            raise
        raise told from error


@dataclass(frozen=True)
class Hooks:
    """What is asked and told after every step."""

    stop: Stop
    watchdog: Watchdog
    watch: Watch = lambda *_: None


def ready(experiment: Experiment, folder: Path, say: Callable[[str], None]) -> tuple[Run, Start | None]:
    """The run and what it starts with; all that can be refused before its folder is there has been."""
    start = Start(experiment) if experiment.start else None
    store = prepared(experiment.data, say)
    if start:
        start.check_vocabulary(store.tokenizer)
    run = Run(experiment, folder, store.facts, lambda: store)
    run.check_batches()
    for phase in experiment.phases:
        for split in store.heldouts:
            heldout_table(split, phase, store.path / "tables")  # raises where there is no example
    return run, start


def finished(run: Run, start: Start | None, mark: str, say: Callable[[str], None], profile: bool, hooks: Hooks) -> dict:
    """The result of a run, trained to its end."""
    experiment = run.experiment
    checkpoints = run.checkpoints(experiment.cadence.keep)
    with sound(run):
        if distributed.primary() and (short := diagnostics.room(run)):
            say(short)
        at, state, notes = run.newest(checkpoints, say)
        if state is None:
            state = start.state(run, say) if start else fresh(run)
        if profile:
            hooks = replace(hooks, watch=profiled(run, at, say))
        out = metric_log.Log(run.folder, at, experiment.steps, experiment.name, distributed.primary())
    # The inner one comes before what is closed, for which the processes wait for one another.
    with sound(run), closing(out), closing(checkpoints), sound(run):
        scores = advance(run, state, at, Tally.read(notes), checkpoints, out, hooks)
    speeds = [row["time"]["tokens_per_second"] for row in out.rows if row["split"] == "train"]
    final = {
        "name": experiment.name,
        "fingerprint": mark,
        "steps": out.rows[-1]["step"],
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(run.shapes.params)),
        "tokens_per_second": statistics.median(speeds),
        "heldout": scores,
        "best": evaluations(out, experiment.objective)[1],
    }
    if distributed.primary():
        with sound(run):
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
    waited: float = 0.0  # seconds that went to the devices, and to other processes, since the last row

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
        """Add a step's metrics, and wait until at most two steps are in flight.

        Between the processors of several processes it is none, since JAX below 0.12 hangs there.
        """
        jax.tree.map(lambda x: x.copy_to_host_async(), measured)
        self.waiting.append(measured)
        flying = 0 if distributed.several() and jax.default_backend() == "cpu" else 2
        if len(self.waiting) > flying:
            with self.timed():
                jax.block_until_ready(self.waiting[-1 - flying])

    @contextmanager
    def timed(self) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.waited += time.monotonic() - begun

    def collect(self) -> None:
        with self.timed():
            fetched = jax.device_get(self.waiting)
        self.tokens += sum(int(each.pop("tokens").total) for each in fetched)
        self.sums, self.waiting = metrics.add([self.sums, *fetched]), []

    def finish(self) -> tuple[dict[str, metrics.Mean], dict[str, float]]:
        """The sums since the last time, and the time they took; a new interval begins."""
        self.collect()
        seconds = time.monotonic() - self.started
        speed = (self.tokens - self.counted_from) / seconds
        taken = {"seconds": round(seconds, 3), "tokens_per_second": round(speed, 1), "waiting": round(self.waited, 3)}
        sums, self.sums, self.started, self.counted_from = self.sums, {}, time.monotonic(), self.tokens
        self.waited = 0.0
        return sums, taken


def placed(rows: Iterator[Rows], mesh) -> Iterator[dict[str, jax.Array]]:
    """The batches on the devices, each put there before the step that is ahead of it begins."""
    ahead = None
    for each in rows:
        ahead, ready = sharding.place(each, mesh), ahead
        if ready is not None:
            yield ready
    if ahead is not None:
        yield ahead


def profiled(run: Run, at: int, say: Callable[[str], None]) -> Watch:
    """What watches the first steps and says where their time went. Raises `RunError` where too few are left."""
    if distributed.several():
        raise RunError("a profile is of one process, and this run has several")
    if run.experiment.steps - at < 2 + STEPS:
        raise RunError(f"a profile needs {2 + STEPS} steps, and {run.experiment.steps - at} are left")
    settings = static(run.experiment, run.module)
    program = lambda state, batch: step.train_step.lower(state, batch, run.experiment.seed, **settings).compile()
    return Profile(run.folder / "profile", lambda *given: program(*given).as_text(), say).watch


def static(experiment: Experiment, module) -> dict:
    """What a compiled `train_step` depends on beside shapes."""
    named = {"module": module, "optimizer": experiment.optimizer, "steps": experiment.steps}
    return named | {"accumulate": experiment.accumulate}


def advance(
    run: Run, state, at: int, tally: Tally, checkpoints: Checkpoints, out: metric_log.Log, hooks: Hooks
) -> dict[str, float]:
    """All steps from `at` on; held-out scores of the last one. Raises `Stopped`."""
    experiment, cadence, steps = run.experiment, run.experiment.cadence, run.experiment.steps
    since = lambda: evaluations(out, experiment.objective)[0]
    if at == steps or (experiment.stop_after and since() >= experiment.stop_after):
        # Interrupted between the last checkpoint and the result.
        return run.evaluate(state.params, told=hooks.watchdog.beat)
    stream = Stream(
        run.store.train,
        run.facts,
        experiment.phases,
        experiment.seed,
        experiment.objective.copies,
        run.store.path / "tables",
        partial(sharding.local_rows, run.mesh),
    )
    settings = static(experiment, run.module)
    for index, batch in enumerate(placed(stream.batches(at, steps), run.mesh), start=at + 1):
        with tally.timed():
            state, measured = step.train_step(state, batch, experiment.seed, **settings)
        hooks.watch(state, batch, measured)
        tally.watch(measured)
        hooks.watchdog.beat(index)
        due = lambda every, index=index: index % every == 0 or index == steps
        if due(cadence.log):
            record(run, index, tally, out)
            stop_if_not_finite(run, index, state, batch, checkpoints)
        else:
            out.advance(index)
        cost = None
        if due(cadence.evaluate):
            jax.block_until_ready(state.params)
            paused = time.monotonic()
            scores = run.evaluate(state.params, stream.phase(index - 1), told=hooks.watchdog.beat)
            cost, seconds = experiment.objective.cost(scores), time.monotonic() - paused
            tally.started += seconds
            out.write(index, "heldout", scores, {"seconds": round(seconds, 3)})
            out.say(f"{experiment.name} step {index:,}: held-out {describe(scores)}")
            for line in experiment.objective.ailments(scores) if 10 * index >= steps else ():
                out.say(f"{experiment.name} step {index:,}: {line}")
        done = cost is not None and experiment.stop_after and since() >= experiment.stop_after
        why = None if index == steps else hooks.stop.asked()
        if done or why or due(cadence.save):
            checkpoints.save(index, state, tally.notes(), cost)
        if done:
            out.say(
                f"{experiment.name}: step {index:,} is the last, {experiment.stop_after} evaluations after the best"
            )
            break
        if why:
            raise Stopped(f"{experiment.name}: stopped by {why} after step {index:,}, which is saved")
    return scores


def evaluations(out: metric_log.Log, objective) -> tuple[int, dict[str, float]]:
    """How many evaluations the best one lies back, and the best: its step and its scores."""
    rows = [row for row in out.rows if row["split"] == "heldout"]
    best = min(range(len(rows)), key=lambda i: objective.cost(rows[i]), default=None)
    if best is None:
        return 0, {}
    return len(rows) - 1 - best, {n: value for n, value in rows[best].items() if n not in ("split", "time")}


def record(run: Run, index: int, tally: Tally, out: metric_log.Log) -> None:
    """A row of the log, and the progress bar."""
    experiment = run.experiment
    sums, taken = tally.finish()
    scores = experiment.objective.scores(sums)
    loss = total_loss(scores, experiment.objective.weights)
    rate = float(experiment.optimizer.learning_rate(index - 1, experiment.steps))
    out.write(index, "train", {"loss": loss, "tokens": tally.tokens, "learning_rate": rate} | scores, taken)
    out.advance(index, f"loss {loss:.3f}, {taken['tokens_per_second']:,.0f} tokens/s")
    lines = [diagnostics.spike([row["loss"] for row in out.rows if row["split"] == "train"])]
    if left := int(sums["skipped"].total):
        lines.append(f"{left} updates since the last row were not finite, or spikes, and left out")
    if distributed.several():
        with tally.timed():
            lines.append(diagnostics.slowest(taken["seconds"] - taken["waiting"], taken["seconds"]))
    for line in filter(None, lines):
        out.say(f"{experiment.name} step {index:,}: {line}")


def stop_if_not_finite(run: Run, index: int, state, batch: dict, checkpoints: Checkpoints) -> None:
    """Raises `RunError` after too many updates in a row that had to be left out."""
    streak = int(state.guard["streak"])
    if streak >= run.experiment.cadence.patience:
        real = fetched(batch["valid"]) == 1
        epochs, ids = (fetched(batch[name])[real] for name in ("epoch", "id"))
        shown = ", ".join(f"{epoch}:{place}" for epoch, place in list(zip(epochs, ids, strict=True))[:4])
        raise RunError(
            f"{run.experiment.name}: the last {streak} updates up to step {index} were not finite, or spikes, and left "
            f"out; the last checkpoint is {checkpoints.latest()}. What was not finite of the last one: "
            f"{diagnostics.not_finite(run, state, batch, index - 1)}; its {len(ids)} examples (pass:place) are "
            f"{shown}, ... "
            "A lower optimizer.rate or longer optimizer.warmup may help"
        )


def describe(scores: dict[str, float]) -> str:
    """The scores in one line, without errors and baselines."""
    shown = {n: s for n, s in scores.items() if not n.endswith(("_error", "_baseline"))}
    return ", ".join(f"{name.replace('_', ' ')} {score:.4g}" for name, score in shown.items())
