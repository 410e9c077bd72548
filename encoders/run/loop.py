"""The training loop: update, log, evaluate, save."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import jax
import numpy as np

from encoders.costs.device_use import measure_device_use
from encoders.costs.ledger import count_params
from encoders.data.batch import Batch
from encoders.data.stream import Phase, find_phase
from encoders.experiment import Experiment
from encoders.objectives.base import Objective, Scores, select_numbers, total_loss
from encoders.run import diagnostics
from encoders.run.evaluate import evaluate_run, to_host
from encoders.run.folder import RECORD_FILE, RESULT_FILE, RunError, open_run_folder, read_result, wait_for_file
from encoders.run.preemption import STOPPED_STATUS, RunStopped, StopRequest
from encoders.run.prepare_run import prepare_run
from encoders.run.profiling import StepProfiler
from encoders.run.run import Run
from encoders.run.time_account import TimeAccount
from encoders.run.warm_start import init_sharded_state
from encoders.run.watchdog import Watchdog
from encoders.training import distributed, sharding, step
from encoders.training.checkpoint import Checkpoints, quiet_orbax
from encoders.training.metric_log import MetricLog
from encoders.utils.buckets import is_in_bucket
from encoders.utils.errors import describe_error, is_disk_full, is_of_bucket, is_refusal
from encoders.utils.files import write_signed_json
from encoders.utils.metrics import Mean, sum_means

HANG_SECONDS = 1800.0  # without progress; the first step includes its compilation


def train(
    experiment: Experiment,
    folder: str | Path,
    log: Callable[[str], None] = print,
    profile: bool = False,
    stop: StopRequest | None = None,
    hang_timeout: float = HANG_SECONDS,
) -> dict:
    """Train a run to its end, from the newest intact checkpoint in `folder`, and return its result.

    With `profile` the first steps are traced into the folder, and a summary is logged. After `hang_timeout` seconds
    without progress the stacks of all threads are logged, and after as many again the process ends.

    Raises `RunStopped` after the step in which `stop` requests it, which is saved; `RunInUse` while another process
    trains the run; and `RunError` for what cannot be trained.
    """
    folder, is_primary, time_account = open_run_folder(folder), distributed.is_primary(), TimeAccount()
    with quiet_orbax(), explain_failures(experiment, folder) as resources:
        preparation = prepare_run(experiment, folder, log)
        run, warm_start, fingerprint = distributed.raise_on_all(lambda: resources.enter_context(preparation))
        if (result := read_result(folder)) is not None:
            return result
        if not wait_for_file(folder / RECORD_FILE):
            raise RunError(f"{folder} was made by process 0 and is missing here: all processes must see the same files")
        if is_primary and (shortage := diagnostics.describe_disk_shortage(run)):
            log(shortage)
        for hint in diagnostics.describe_slow_settings(experiment.model, run.mesh.devices.flat[0].platform):
            log(hint)
        if passes := diagnostics.describe_passes(run):
            log(f"{experiment.name}: {passes}")
        cut_rows = diagnostics.count_cut_rows(run)
        for line in diagnostics.describe_cut_rows(run, cut_rows):
            log(line)
        watchdog = resources.enter_context(Watchdog(hang_timeout, distributed.log_from_host))
        resources.enter_context(closing(time_account))
        outputs = resources.enter_context(ExitStack())
        checkpoints = outputs.enter_context(closing(run.open_checkpoints(experiment.intervals.keep_checkpoints)))
        start_step, state, notes = run.restore_latest(checkpoints, log)
        if state is not None:
            log(f"{experiment.name}: resumes from step {start_step}")
        else:
            state = warm_start.build_state(run, log) if warm_start else init_sharded_state(run)
        profiler = StepProfiler(run, start_step, log) if profile else None
        metric_log = MetricLog(run.folder, start_step, experiment.num_steps, experiment.name, is_primary, notes, log)
        outputs.enter_context(closing(metric_log))
        time_account.step = start_step
        if is_primary:
            time_account.open(run.folder, log)
        interval_metrics, stop = IntervalMetrics.from_notes(notes), stop or StopRequest()
        journal = checkpoints, metric_log, interval_metrics, time_account
        scores = run_train_steps(session := TrainSession(run, start_step, *journal, watchdog, stop, profiler), state)
        with time_account.measure("checkpoints"):
            outputs.close()  # checkpoints are on disk before the result is
        return write_result(session, fingerprint, scores, cut_rows)


@contextmanager
def explain_failures(experiment: Experiment, folder: Path) -> Iterator[ExitStack]:
    """Yield a stack for what the run opens, close it at the end, and say what to change for lack of memory or disk.

    If one of several processes fails alone, it ends at once: closing checkpoints would wait for the others. An error
    that all processes have agreed on is raised as it is.
    """
    resources, stopped = ExitStack(), None
    try:
        try:
            yield resources
        except RunStopped as reason:
            stopped = reason
        resources.close()
    except BaseException as error:
        advice = diagnostics.describe_out_of_memory(experiment, error)
        if is_disk_full(error):
            advice = f"no space is left in {folder}; checkpoints are intact, and the same command resumes"
        explained = RunError(advice) if advice else explain_bucket_error(folder, error)
        if distributed.is_multi_process() and not isinstance(error, distributed.DistributedError):
            distributed.abort_all(explained, STOPPED_STATUS if isinstance(explained, RunStopped) else 1)
        with suppress(Exception):  # the first error is the reason
            resources.close()
        if explained is error:
            raise
        raise explained from error
    if stopped:
        raise stopped


def explain_bucket_error(folder: Path, error: BaseException) -> BaseException:
    """Return an error of the bucket of a run with what to do; one that may pass ends the run as a stop does."""
    if not is_in_bucket(folder) or not is_of_bucket(error):
        return error
    if is_refusal(error):
        return RunError(f"{folder}: the bucket refuses ({describe_error(error)}); the same command resumes")
    return RunStopped(f"{folder}: stopped by the bucket ({describe_error(error)})")


@dataclass
class IntervalMetrics:
    """Metrics of the steps since the last row of the log; they stay on the device until the row is written."""

    sums: dict[str, Mean] = field(default_factory=dict)
    num_tokens: int = 0  # since the first step of the run
    pending_metrics: list[dict] = field(default_factory=list)
    start_time: float = field(default_factory=time.monotonic)
    tokens_at_start: int = 0
    seconds_waited: float = 0.0  # for devices and other processes, since the last row
    seconds_stalled: float = 0.0  # for batches while the devices were idle, since the last row
    num_steps: int = 0  # since the last row, or since the process began

    @classmethod
    def from_notes(cls, notes: dict) -> Self:
        sums = {name: Mean(*map(np.float64, pair)) for name, pair in notes.get("pending", {}).items()}
        return cls(sums, notes.get("tokens", 0), tokens_at_start=notes.get("tokens", 0))

    def to_notes(self) -> dict:
        self.fetch_pending()
        pending = {name: [float(x) for x in mean] for name, mean in self.sums.items()}
        return {"pending": pending, "tokens": self.num_tokens}

    def add_step(self, step_metrics: dict) -> None:
        """Add the metrics of a step, and wait until at most two steps are in flight."""
        # Several processes on CPUs have none in flight, since JAX below 0.12 hangs there.
        jax.tree.map(lambda x: x.copy_to_host_async(), step_metrics)
        self.pending_metrics.append(step_metrics)
        self.num_steps += 1
        in_flight = 0 if distributed.is_multi_process() and jax.default_backend() == "cpu" else 2
        if len(self.pending_metrics) > in_flight:
            with self.time_waiting():
                jax.block_until_ready(self.pending_metrics[-1 - in_flight])

    def is_idle(self) -> bool:
        """Return whether the devices have finished all steps that were begun."""
        return not self.pending_metrics or self.pending_metrics[-1]["tokens"].total.is_ready()

    @contextmanager
    def time_waiting(self) -> Iterator[None]:
        started_at = time.monotonic()
        yield
        self.seconds_waited += time.monotonic() - started_at

    def fetch_pending(self) -> None:
        with self.time_waiting():
            fetched = jax.device_get(self.pending_metrics)
        self.num_tokens += sum(int(step_metrics.pop("tokens").total) for step_metrics in fetched)
        self.sums, self.pending_metrics = sum_means([self.sums, *fetched]), []

    def finish_interval(self) -> tuple[dict[str, Mean], dict[str, float]]:
        """Return the sums of the interval and its timing, and begin the next one."""
        self.fetch_pending()
        seconds = time.monotonic() - self.start_time
        timing = {
            "seconds": round(seconds, 3),
            "tokens_per_second": round((self.num_tokens - self.tokens_at_start) / seconds, 1),
            "waiting": round(self.seconds_waited, 3),
            "input_stall": round(self.seconds_stalled, 3),
        }
        sums, self.sums, self.num_steps = self.sums, {}, 0
        self.seconds_waited = self.seconds_stalled = 0.0
        self.start_time, self.tokens_at_start = time.monotonic(), self.num_tokens
        return sums, timing


@dataclass(frozen=True)
class TrainSession:
    """The objects that the steps of a run use and write to."""

    run: Run
    start_step: int
    checkpoints: Checkpoints
    metric_log: MetricLog
    interval_metrics: IntervalMetrics
    time_account: TimeAccount
    watchdog: Watchdog
    stop: StopRequest
    profiler: StepProfiler | None

    def log_line(self, current_step: int, text: str) -> None:
        self.metric_log.log_line(f"{self.run.experiment.name} step {current_step:,}: {text}")

    def is_converged(self) -> bool:
        """Return whether early stopping ends the run: too many evaluations since the best one."""
        limit = self.run.experiment.early_stopping
        return limit is not None and find_best_evaluation(self.metric_log, self.run.experiment.objective)[0] >= limit


def run_train_steps(session: TrainSession, state: step.TrainState) -> Scores:
    """Update `state` to the end of the run, and return the held-out scores of the last step."""
    run, experiment, intervals = session.run, session.run.experiment, session.run.experiment.intervals
    num_steps, interval_metrics, time_account = experiment.num_steps, session.interval_metrics, session.time_account
    if session.start_step == num_steps or session.is_converged():  # stopped between the last checkpoint and the result
        with time_account.measure("evaluation"):
            return evaluate_run(run, state.params, on_batch=session.watchdog.record_progress)
    stream = run.open_stream()
    static_args = {phase: run.build_static_args(phase) for phase in experiment.phases}
    batches = prefetch_to_device(stream.iter_batches(session.start_step, num_steps), run.mesh)
    time_account.switch_to("steps")
    compiled_shapes = set()
    for current_step, batch in enumerate(time_batches(session, batches), start=session.start_step + 1):
        phase = find_phase(experiment.phases, current_step - 1)
        is_compiled = (phase, batch.input_ids.shape) in compiled_shapes
        compiled_shapes.add((phase, batch.input_ids.shape))
        with interval_metrics.time_waiting(), time_account.measure("steps" if is_compiled else "compilation"):
            state, step_metrics = step.train_step(state, batch, experiment.seed, **static_args[phase])
        if session.profiler:
            session.profiler.record_step(state, batch, step_metrics, static_args[phase])
        interval_metrics.add_step(step_metrics)
        session.watchdog.record_progress(current_step)
        time_account.step = current_step
        is_last = current_step == num_steps
        if is_last or current_step % intervals.log_every == 0:
            log_interval(session, current_step, phase)
            raise_if_diverged(session, current_step, state, batch)
        else:
            session.metric_log.advance_progress(current_step)
        cost = None
        if is_last or current_step % intervals.eval_every == 0:
            scores = evaluate_step(session, current_step, state, phase)
            cost = compute_checkpoint_cost(experiment.objective, scores)
        is_converged = cost is not None and session.is_converged()
        with time_account.measure("other processes"):
            stop_reason = None if is_last else session.stop.poll_reason()
        if is_last or is_converged or stop_reason or current_step % intervals.save_every == 0:
            notes = interval_metrics.to_notes() | session.metric_log.to_notes()
            with time_account.measure("checkpoints"):
                session.checkpoints.save(current_step, state, notes, cost)
        if is_converged:
            session.log_line(current_step, f"stops early: early_stopping={experiment.early_stopping} evaluations")
            break
        if stop_reason:
            raise RunStopped(f"{experiment.name}: stopped by {stop_reason}; saved checkpoint at step {current_step}")
    return scores


def prefetch_to_device(batches: Iterator[Batch], mesh) -> Iterator[Batch]:
    """Yield batches on the devices, where the next one is put before the step of the current one begins."""
    on_devices = (sharding.shard_batch(batch, mesh) for batch in batches)
    for current, _ in itertools.pairwise(itertools.chain(on_devices, [None])):
        yield current


def time_batches(session: TrainSession, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield batches, and count the time for one after which the devices are idle: an upper bound of their wait."""
    clock, interval_metrics = time.monotonic, session.interval_metrics
    asked_at = clock()
    for batch in batches:
        if interval_metrics.is_idle():
            interval_metrics.seconds_stalled += clock() - asked_at
            session.time_account.move_to("waiting for data", clock() - asked_at)
        yield batch
        asked_at = clock()


def log_interval(session: TrainSession, current_step: int, phase: Phase) -> None:
    """Write a row of training metrics, and log what needs attention in it."""
    experiment, metric_log = session.run.experiment, session.metric_log
    num_steps = session.interval_metrics.num_steps
    sums, timing = session.interval_metrics.finish_interval()
    timing |= measure_device_use(experiment, phase, num_steps / timing["seconds"], jax.devices())
    row = {
        "tokens": session.interval_metrics.num_tokens,
        "learning_rate": float(experiment.optimizer.compute_learning_rate(current_step - 1, experiment.num_steps)),
    }
    lines, shown_loss = [], "no update applied"
    if sums["gradient_norm"].count:
        scores = experiment.objective.scores(sums)
        row = {"loss": total_loss(scores, experiment.objective.loss_weights)} | row | scores
        losses = [row["loss"] for row in metric_log.rows if row["split"] == "train" and "loss" in row]
        lines, shown_loss = [diagnostics.describe_loss_spike([*losses, row["loss"]])], f"loss {row['loss']:.3f}"
    else:  # all updates were skipped, so a loss is unknown
        row["skipped"] = 1.0
    metric_log.write_row(current_step, "train", row, timing)
    metric_log.advance_progress(current_step, f"{shown_loss}, {timing['tokens_per_second']:,.0f} tokens/s")
    if num_skipped := int(sums["skipped"].total):
        lines.append(f"skipped {num_skipped} updates since the last row: not finite, or spikes")
    if distributed.is_multi_process():
        with session.interval_metrics.time_waiting(), session.time_account.measure("other processes"):
            busy_seconds = timing["seconds"] - timing["waiting"]
            lines.append(diagnostics.describe_slowest_process(busy_seconds, timing["seconds"]))
    for line in filter(None, lines):
        session.log_line(current_step, line)
    session.time_account.write_row()


def evaluate_step(session: TrainSession, current_step: int, state: step.TrainState, phase: Phase) -> Scores:
    """Evaluate the state after a step, write a row of held-out scores, and return them."""
    experiment, metric_log = session.run.experiment, session.metric_log
    jax.block_until_ready(state.params)
    started_at = time.monotonic()
    with session.time_account.measure("evaluation"):
        scores = evaluate_run(session.run, state.params, phase, on_batch=session.watchdog.record_progress)
    seconds = time.monotonic() - started_at
    session.interval_metrics.start_time += seconds  # the interval's speed is that of training
    metric_log.write_row(current_step, "heldout", scores, {"seconds": round(seconds, 3)})
    line = ", ".join(f"{name.replace('_', ' ')} {score:.4g}" for name, score in select_numbers(scores).items())
    session.log_line(current_step, f"held-out {line}")
    if 10 * current_step >= experiment.num_steps:  # before, no model has learned enough
        for line in diagnostics.diagnose_scores(experiment.objective, scores):
            session.log_line(current_step, line)
    return scores


def raise_if_diverged(session: TrainSession, current_step: int, state: step.TrainState, batch: Batch) -> None:
    run, num_bad_updates = session.run, int(state.update_guard["consecutive_skips"])
    if num_bad_updates < run.experiment.intervals.max_bad_updates:
        return
    is_example = to_host(batch.example_mask) == 1
    epochs, ids = (to_host(field)[is_example] for field in (batch.pass_index, batch.example_index))
    shown = ", ".join(f"{epoch}:{example_id}" for epoch, example_id in list(zip(epochs, ids, strict=True))[:4])
    cause = diagnostics.describe_nonfinite_update(run, state, batch, current_step - 1)
    raise RunError(
        f"{run.experiment.name}: skipped the last {num_bad_updates} updates up to step {current_step}, not finite or "
        f"spikes; the last checkpoint is {session.checkpoints.latest_step()}. Not finite in the last one: {cause}. Its "
        f"{len(ids)} examples (pass:id) are {shown}, ... A lower optimizer.learning_rate or longer "
        "optimizer.warmup_steps may help"
    )


def compute_checkpoint_cost(objective: Objective, scores: Scores) -> float:
    """Return the number that is lowest at the best checkpoint. Raises `RunError` where the score is missing."""
    name = objective.best_metric
    if name not in scores:
        found = ", ".join(select_numbers(scores))
        raise RunError(f"the objective selects the best checkpoint by {name}, and the held-out scores are {found}")
    return scores["loss"] if name == "loss" else -scores[name]


def find_best_evaluation(metric_log: MetricLog, objective) -> tuple[int, Scores]:
    """Return how many evaluations followed the best one, and the step and scores of the best."""
    rows = [row for row in metric_log.rows if row["split"] == "heldout"]
    if not rows:
        return 0, {}
    best = min(range(len(rows)), key=lambda i: compute_checkpoint_cost(objective, rows[i]))
    return len(rows) - 1 - best, {name: value for name, value in rows[best].items() if name not in ("split", "time")}


def write_result(session: TrainSession, fingerprint: str, scores: Scores, cut_rows: dict[str, int]) -> dict:
    run, experiment, rows = session.run, session.run.experiment, session.metric_log.rows
    result = {
        "name": experiment.name,
        "fingerprint": fingerprint,
        "steps": session.time_account.step,
        **session.metric_log.to_notes(),
        "parameters": count_params(run.state_shapes.params),
        "tokens_per_second": statistics.median(r["time"]["tokens_per_second"] for r in rows if r["split"] == "train"),
        "heldout": scores,
        "best": find_best_evaluation(session.metric_log, experiment.objective)[1],
    }
    if cut_rows:
        result["cut_rows"] = cut_rows
    if distributed.is_primary():
        write_signed_json(run.folder / RESULT_FILE, result)
    return result
