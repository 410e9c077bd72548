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

from encoders.data.prepare import prepare_store
from encoders.data.stream import BatchStream, NumpyBatch, load_eval_table
from encoders.experiment import Experiment
from encoders.objectives.base import Metrics, total_loss
from encoders.run import diagnostics
from encoders.run.preemption import RunStopped, StopRequest
from encoders.run.profiling import PROFILED_STEPS, StepProfiler
from encoders.run.run import Run, RunError, lock_run, read_result, register_run, to_host
from encoders.run.warm_start import WarmStart, init_sharded_state
from encoders.run.watchdog import Watchdog
from encoders.training import distributed, metric_log, sharding, step
from encoders.training.checkpoint import Checkpoints, quiet_orbax
from encoders.utils import metrics
from encoders.utils.files import catch_disk_full, write_json

HANG_SECONDS = 1800.0  # seconds without a step, of which the first has to be compiled
StepCallback = Callable[
    [step.TrainState, dict, Metrics], None
]  # told of every step: the new state, its batch, its metrics


def train(
    experiment: Experiment,
    folder: Path,
    log: Callable[[str], None] = print,
    profile: bool = False,
    stop: StopRequest | None = None,
    hang_timeout: float = HANG_SECONDS,
) -> dict:
    """Train to the end, from where the folder's newest sound checkpoint stands, and return the result.

    With `profile` the first steps are traced into the folder, and `log` is told where their time went. Raises
    `RunStopped` after the step in which `stop` asks for it, which is saved, and `RunError` while another process trains
    there. When nothing has happened for `hang_timeout` seconds, `log` is told, and after as long again the process
    ends.
    """
    run, start = distributed.raise_on_all(lambda: prepare_run(experiment, folder, log))
    with ExitStack() as stack, catch_disk_full(folder), quiet_orbax():
        distributed.raise_on_all(lambda: stack.enter_context(lock_run(folder)) if distributed.is_primary() else None)
        mark = distributed.primary_first(lambda: register_run(run, start and start.init_key))
        if done := read_result(folder):
            return done
        watchdog = stack.enter_context(Watchdog(hang_timeout, distributed.log_from_host))
        return train_to_end(run, start, mark, log, profile, StepHooks(stop or StopRequest(), watchdog))


@contextmanager
def failure_report(run: Run) -> Iterator[None]:
    """Says what to change where memory is out; where one of several processes fails, ends it at once."""
    try:
        with catch_disk_full(run.folder):
            yield
    except RunStopped:
        raise
    except BaseException as error:
        told = (
            RunError(diagnostics.describe_out_of_memory(run, error)) if diagnostics.is_out_of_memory(error) else error
        )
        if distributed.is_multi_process():
            distributed.abort_all(told)
        if told is error:
            raise
        raise told from error


@dataclass(frozen=True)
class StepHooks:
    """What is asked and told after every step."""

    stop: StopRequest
    watchdog: Watchdog
    on_step: StepCallback = lambda *_: None


def prepare_run(experiment: Experiment, folder: Path, log: Callable[[str], None]) -> tuple[Run, WarmStart | None]:
    """The run and what it starts with; all that can be refused before its folder is there has been."""
    start = WarmStart(experiment) if experiment.init_from else None
    store = prepare_store(experiment.data, log)
    if start:
        start.check_tokenizer(store.tokenizer)
    run = Run(experiment, folder, store.vocab, lambda: store)
    run.check_batch_sizes()
    for phase in experiment.phases:
        for split in store.eval_splits:
            load_eval_table(split, phase, store.path / "tables")  # raises where there is no example
    return run, start


def train_to_end(
    run: Run,
    warm_start: WarmStart | None,
    fingerprint: str,
    log: Callable[[str], None],
    profile: bool,
    hooks: StepHooks,
) -> dict:
    """The result of a run, trained to its end."""
    experiment = run.experiment
    checkpoints = run.open_checkpoints(experiment.intervals.keep_checkpoints)
    with failure_report(run):
        if distributed.is_primary() and (short := diagnostics.describe_disk_shortage(run)):
            log(short)
        at, state, notes = run.restore_latest(checkpoints, log)
        if state is None:
            state = warm_start.build_state(run, log) if warm_start else init_sharded_state(run)
        if profile:
            hooks = replace(hooks, on_step=make_profile_callback(run, at, log))
        out = metric_log.MetricLog(run.folder, at, experiment.num_steps, experiment.name, distributed.is_primary())
    # The inner one comes before what is closed, for which the processes wait for one another.
    with failure_report(run), closing(out), closing(checkpoints), failure_report(run):
        scores = run_train_steps(run, state, at, IntervalMetrics.from_notes(notes), checkpoints, out, hooks)
    speeds = [row["time"]["tokens_per_second"] for row in out.rows if row["split"] == "train"]
    final = {
        "name": experiment.name,
        "fingerprint": fingerprint,
        "steps": out.rows[-1]["step"],
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(run.state_shapes.params)),
        "tokens_per_second": statistics.median(speeds),
        "heldout": scores,
        "best": find_best_evaluation(out, experiment.objective)[1],
    }
    if distributed.is_primary():
        with failure_report(run):
            write_json(run.folder / "result.json", final)
    return final


@dataclass
class IntervalMetrics:
    """What the steps since the last row of the log have reported, fetched from the device only when it is asked for."""

    sums: dict[str, metrics.Mean] = field(default_factory=dict)
    num_tokens: int = 0  # of the whole run
    pending_metrics: list[dict] = field(default_factory=list)
    start_time: float = field(default_factory=time.monotonic)
    tokens_at_start: int = 0
    seconds_waited: float = 0.0  # seconds that went to the devices, and to other processes, since the last row

    @classmethod
    def from_notes(cls, notes: dict) -> IntervalMetrics:
        """The tally that a checkpoint's notes hold."""
        sums = {name: metrics.Mean(*map(np.float64, pair)) for name, pair in notes.get("pending", {}).items()}
        tokens = notes.get("tokens", 0)
        return cls(sums, tokens, tokens_at_start=tokens)

    def to_notes(self) -> dict:
        self.fetch_pending()
        pending = {name: [float(mean.total), float(mean.count)] for name, mean in self.sums.items()}
        return {"pending": pending, "tokens": self.num_tokens}

    def add_step(self, step_metrics: dict) -> None:
        """Add a step's metrics, and wait until at most two steps are in flight.

        Between the processors of several processes it is none, since JAX below 0.12 hangs there.
        """
        jax.tree.map(lambda x: x.copy_to_host_async(), step_metrics)
        self.pending_metrics.append(step_metrics)
        flying = 0 if distributed.is_multi_process() and jax.default_backend() == "cpu" else 2
        if len(self.pending_metrics) > flying:
            with self.time_waiting():
                jax.block_until_ready(self.pending_metrics[-1 - flying])

    @contextmanager
    def time_waiting(self) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.seconds_waited += time.monotonic() - begun

    def fetch_pending(self) -> None:
        with self.time_waiting():
            fetched = jax.device_get(self.pending_metrics)
        self.num_tokens += sum(int(each.pop("tokens").total) for each in fetched)
        self.sums, self.pending_metrics = metrics.sum_means([self.sums, *fetched]), []

    def finish_interval(self) -> tuple[dict[str, metrics.Mean], dict[str, float]]:
        """The sums since the last time, and the time they took; a new interval begins."""
        self.fetch_pending()
        seconds = time.monotonic() - self.start_time
        speed = (self.num_tokens - self.tokens_at_start) / seconds
        taken = {
            "seconds": round(seconds, 3),
            "tokens_per_second": round(speed, 1),
            "waiting": round(self.seconds_waited, 3),
        }
        sums, self.sums, self.start_time, self.tokens_at_start = self.sums, {}, time.monotonic(), self.num_tokens
        self.seconds_waited = 0.0
        return sums, taken


def prefetch_to_device(batches: Iterator[NumpyBatch], mesh) -> Iterator[dict[str, jax.Array]]:
    """The batches on the devices, each put there before the step that is ahead of it begins."""
    ahead = None
    for each in batches:
        ahead, ready = sharding.shard_batch(each, mesh), ahead
        if ready is not None:
            yield ready
    if ahead is not None:
        yield ahead


def make_profile_callback(run: Run, start_step: int, log: Callable[[str], None]) -> StepCallback:
    """What watches the first steps and says where their time went. Raises `RunError` where too few are left."""
    if distributed.is_multi_process():
        raise RunError("a profile is of one process, and this run has several")
    if run.experiment.num_steps - start_step < 2 + PROFILED_STEPS:
        raise RunError(
            f"a profile needs {2 + PROFILED_STEPS} steps, and {run.experiment.num_steps - start_step} are left"
        )
    settings = build_static_args(run.experiment, run.module)
    compile_train_step = lambda state, batch: step.train_step.lower(
        state, batch, run.experiment.seed, **settings
    ).compile()
    return StepProfiler(run.folder / "profile", lambda *given: compile_train_step(*given).as_text(), log).on_step


def build_static_args(experiment: Experiment, module) -> dict:
    """What a compiled `train_step` depends on beside shapes."""
    named = {"module": module, "optimizer": experiment.optimizer, "total_steps": experiment.num_steps}
    return named | {"grad_accum_steps": experiment.grad_accum_steps}


def run_train_steps(
    run: Run,
    state,
    start_step: int,
    interval_metrics: IntervalMetrics,
    checkpoints: Checkpoints,
    metric_log: metric_log.MetricLog,
    hooks: StepHooks,
) -> dict[str, float]:
    """All steps from `at` on; held-out scores of the last one. Raises `RunStopped`."""
    experiment, cadence, steps = run.experiment, run.experiment.intervals, run.experiment.num_steps
    count_evals_since_best = lambda: find_best_evaluation(metric_log, experiment.objective)[0]
    if start_step == steps or (experiment.early_stopping and count_evals_since_best() >= experiment.early_stopping):
        # Interrupted between the last checkpoint and the result.
        return run.evaluate(state.params, on_batch=hooks.watchdog.record_progress)
    stream = BatchStream(
        run.store.train_split,
        run.vocab,
        experiment.phases,
        experiment.seed,
        experiment.objective.num_distinct_passes,
        run.store.path / "tables",
        partial(sharding.find_local_rows, run.mesh),
    )
    settings = build_static_args(experiment, run.module)
    for index, batch in enumerate(
        prefetch_to_device(stream.iter_batches(start_step, steps), run.mesh), start=start_step + 1
    ):
        with interval_metrics.time_waiting():
            state, measured = step.train_step(state, batch, experiment.seed, **settings)
        hooks.on_step(state, batch, measured)
        interval_metrics.add_step(measured)
        hooks.watchdog.record_progress(index)
        is_due = lambda every, index=index: index % every == 0 or index == steps
        if is_due(cadence.log_every):
            log_interval(run, index, interval_metrics, metric_log)
            raise_if_diverged(run, index, state, batch, checkpoints)
        else:
            metric_log.advance_progress(index)
        cost = None
        if is_due(cadence.eval_every):
            jax.block_until_ready(state.params)
            paused = time.monotonic()
            scores = run.evaluate(state.params, stream.find_phase(index - 1), on_batch=hooks.watchdog.record_progress)
            cost, seconds = experiment.objective.checkpoint_cost(scores), time.monotonic() - paused
            interval_metrics.start_time += seconds
            metric_log.write_row(index, "heldout", scores, {"seconds": round(seconds, 3)})
            metric_log.log_line(f"{experiment.name} step {index:,}: held-out {format_scores(scores)}")
            for line in experiment.objective.diagnose(scores) if 10 * index >= steps else ():
                metric_log.log_line(f"{experiment.name} step {index:,}: {line}")
        done = cost is not None and experiment.early_stopping and count_evals_since_best() >= experiment.early_stopping
        why = None if index == steps else hooks.stop.poll_reason()
        if done or why or is_due(cadence.save_every):
            checkpoints.save(index, state, interval_metrics.to_notes(), cost)
        if done:
            metric_log.log_line(
                f"{experiment.name}: step {index:,} is the last, {experiment.early_stopping} evaluations after the best"
            )
            break
        if why:
            raise RunStopped(f"{experiment.name}: stopped by {why} after step {index:,}, which is saved")
    return scores


def find_best_evaluation(metric_log: metric_log.MetricLog, objective) -> tuple[int, dict[str, float]]:
    """How many evaluations the best one lies back, and the best: its step and its scores."""
    rows = [row for row in metric_log.rows if row["split"] == "heldout"]
    best = min(range(len(rows)), key=lambda i: objective.checkpoint_cost(rows[i]), default=None)
    if best is None:
        return 0, {}
    return len(rows) - 1 - best, {n: value for n, value in rows[best].items() if n not in ("split", "time")}


def log_interval(
    run: Run, current_step: int, interval_metrics: IntervalMetrics, metric_log: metric_log.MetricLog
) -> None:
    """A row of the log, and the progress bar."""
    experiment = run.experiment
    sums, taken = interval_metrics.finish_interval()
    scores = experiment.objective.scores(sums)
    loss = total_loss(scores, experiment.objective.loss_weights)
    rate = float(experiment.optimizer.compute_learning_rate(current_step - 1, experiment.num_steps))
    metric_log.write_row(
        current_step,
        "train",
        {"loss": loss, "tokens": interval_metrics.num_tokens, "learning_rate": rate} | scores,
        taken,
    )
    metric_log.advance_progress(current_step, f"loss {loss:.3f}, {taken['tokens_per_second']:,.0f} tokens/s")
    lines = [diagnostics.describe_loss_spike([row["loss"] for row in metric_log.rows if row["split"] == "train"])]
    if left := int(sums["skipped"].total):
        lines.append(f"{left} updates since the last row were not finite, or spikes, and left out")
    if distributed.is_multi_process():
        with interval_metrics.time_waiting():
            lines.append(diagnostics.describe_slowest_process(taken["seconds"] - taken["waiting"], taken["seconds"]))
    for line in filter(None, lines):
        metric_log.log_line(f"{experiment.name} step {current_step:,}: {line}")


def raise_if_diverged(run: Run, current_step: int, state, batch: dict, checkpoints: Checkpoints) -> None:
    """Raises `RunError` after too many updates in a row that had to be left out."""
    streak = int(state.update_guard["streak"])
    if streak >= run.experiment.intervals.max_bad_updates:
        real = to_host(batch["valid"]) == 1
        epochs, ids = (to_host(batch[name])[real] for name in ("epoch", "id"))
        shown = ", ".join(f"{epoch}:{place}" for epoch, place in list(zip(epochs, ids, strict=True))[:4])
        raise RunError(
            f"{run.experiment.name}: the last {streak} updates up to step {current_step} were not finite, or spikes, "
            f"and left out; the last checkpoint is {checkpoints.latest_step()}. What was not finite of the last one: "
            f"{diagnostics.describe_nonfinite_update(run, state, batch, current_step - 1)}; its {len(ids)} "
            f"examples (pass:place) are {shown}, ... "
            "A lower optimizer.learning_rate or longer optimizer.warmup_steps may help"
        )


def format_scores(scores: dict[str, float]) -> str:
    """The scores in one line, without errors and baselines."""
    shown = {n: s for n, s in scores.items() if not n.endswith(("_error", "_baseline"))}
    return ", ".join(f"{name.replace('_', ' ')} {score:.4g}" for name, score in shown.items())
