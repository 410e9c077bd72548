"""Diagnostics of a run: what is wrong, with numbers, and which field to change."""

import shutil
import statistics
from dataclasses import replace
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np

from encoders.costs.ledger import estimate_memory, format_gibibytes
from encoders.data.batch import Batch
from encoders.data.example_table import count_cut_documents
from encoders.data.labelled import LabelledData
from encoders.data.stream import find_phase, load_eval_table
from encoders.experiment import Experiment
from encoders.model.config import EncoderConfig
from encoders.objectives.base import Objective, Scores
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.run.folder import CHECKPOINTS_FOLDER
from encoders.run.run import Run
from encoders.training import distributed, step
from encoders.training.optimizer import flatten_with_paths
from encoders.utils.buckets import is_in_bucket
from encoders.utils.errors import UserError

SPIKE_DEVIATIONS = 6.0  # standard deviations above the mean of the rows before
SPIKE_WINDOW = 50  # rows of the log
MIN_REPLACED_SHARE = 0.02  # of the tokens
MAX_CUT_SHARE = 0.01  # of the rows of a split, before a warning
SLOW_PROCESS_RATIO = 2.0  # times the median of the other processes


@partial(jax.jit, static_argnames=("module", "grad_accum_steps"))
def check_finite(params: dict, batch: Batch, seed, step_index, *, module, grad_accum_steps: int) -> tuple[dict, dict]:
    """Return which loss terms of an update are finite, and which leaves of their gradient."""
    (_, metrics), grads = step.compute_gradients(
        params, batch, seed, step_index, module=module, grad_accum_steps=grad_accum_steps
    )
    terms = {name: jnp.isfinite(metrics[name].total) for name in module.objective.loss_weights}
    return terms, jax.tree.map(lambda x: jnp.isfinite(x).all(), grads)


def describe_nonfinite_update(run: Run, state: step.TrainState, batch: Batch, step_index: int) -> str:
    """Return the loss terms, else the gradient leaves, that were not finite in the skipped update of `step_index`."""
    # A skipped update leaves the state unchanged, so it can be computed again.
    seed, grad_accum_steps = run.experiment.seed, run.experiment.grad_accum_steps
    module = run.build_train_module(find_phase(run.experiment.phases, step_index))
    finite = check_finite(state.params, batch, seed, step_index, module=module, grad_accum_steps=grad_accum_steps)
    terms, grads = jax.device_get(finite)
    names = [name for name, is_finite in terms.items() if not is_finite]
    names = names or [f"the gradient of {path}" for path, is_finite in flatten_with_paths(grads) if not is_finite]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "nothing: its gradient is a spike, or its norm overflows"


def count_cut_rows(run: Run) -> dict[str, int]:
    """Return the number of labelled rows of each split that are cut in the last phase; empty without such rows."""
    phase, store = run.experiment.phases[-1], run.store
    if not isinstance(run.experiment.data, LabelledData):
        return {}
    splits = (store.train_split, *store.eval_splits)
    return {s.name: count_cut_documents(load_eval_table(s, phase, store.path / "tables"), s) for s in splits}


def describe_cut_rows(run: Run, cut_rows: dict[str, int]) -> list[str]:
    """Return a line for each split with cut rows, a warning that names the setting for more than `MAX_CUT_SHARE`."""
    phase, max_positions, lines = run.experiment.phases[-1], run.experiment.model.max_positions, []
    setting = getattr(phase.format, "length_setting", "seq_length")
    value = reduce(getattr, setting.split("."), phase)
    for name, num_cut in cut_rows.items():
        num_rows = run.store.metadata["splits"][name]["documents"]
        line = f"{name}: {num_cut:,} of {num_rows:,} rows are cut at phases.{setting}={value} tokens"
        if num_cut > MAX_CUT_SHARE * num_rows:
            is_longest = isinstance(value, int) and value >= max_positions
            advice = "and no row of this model is longer" if is_longest else "raise it, as far as it allows"
            line = f"warning: {line}; model.max_positions={max_positions}: {advice}"
        if num_cut:
            lines.append(line)
    return lines


def describe_passes(run: Run) -> str | None:
    """Return a line with the passes over labelled rows in the last phase: steps do not follow the number of rows."""
    if not isinstance(run.experiment.data, LabelledData):
        return None
    stream, phase = run.open_stream(), run.experiment.phases[-1]
    num_rows = len(stream.tables.get_table(phase.format, phase.seq_length, 0))
    num_drawn = stream.count_consumed_rows(phase.until_step - 1) + phase.batch_size
    return f"{num_drawn / num_rows:,.1f} passes over {num_rows:,} rows, to phases.until_step={phase.until_step:,}"


def describe_guessing(scores: Scores) -> list[str]:
    """Return a line for a classifier that always giving the commonest answer would equal."""
    for accuracy_name, baseline_name in (("label_accuracy", "accuracy_baseline"), ("tag_accuracy", "tag_baseline")):
        accuracy, baseline = scores.get(accuracy_name), scores.get(baseline_name)
        if accuracy is None or baseline is None or accuracy > baseline:
            continue
        predicted = {name for row in scores.get("confusion", {}).values() for name, count in row.items() if count}
        always = f" It always answers {predicted.pop()!r}." if len(predicted) == 1 else ""
        return [
            f"{accuracy_name} {accuracy:.2%} is not above {baseline:.2%}, which always giving the commonest answer "
            f"reaches.{always} More steps or another optimizer.learning_rate may help"
        ]
    return []


def diagnose_scores(objective: Objective, scores: Scores) -> list[str]:
    """Return what is wrong with the held-out scores of a run past its first steps, each with a field to change."""
    problems = describe_guessing(scores)
    if not isinstance(objective, ReplacedTokenDetection):
        return problems
    share, accuracy, baseline = (scores[f"rtd_{name}"] for name in ("replaced", "accuracy", "baseline"))
    if share < MIN_REPLACED_SHARE:
        problems.append(
            f"only {share:.1%} of the tokens are replaced, too few to learn from: a lower objective.generator_width or "
            "objective.generator_depth, a higher objective.temperature or mask rate may help"
        )
    if accuracy <= baseline:
        answer = "original" if share <= 0.5 else "replaced"
        problems.append(
            f"the discriminator is right for {accuracy:.2%} of the tokens, and always answering '{answer}' for "
            f"{baseline:.2%}: more steps, another optimizer.learning_rate, a longer optimizer.warmup_steps or a "
            "smaller generator (objective.generator_width) may help"
        )
    accuracy, baseline = (scores.get(f"generator_mask_{name}") for name in ("accuracy", "baseline"))
    if "generator_loss" in objective.loss_weights and accuracy is not None and accuracy <= baseline:
        problems.append(
            f"the generator finds {accuracy:.2%} of the masked tokens, and the most frequent token alone would be "
            f"{baseline:.2%}: a higher optimizer.learning_rate, or a lower objective.rtd_weight of the discriminator, "
            "may help"
        )
    return problems


def describe_loss_spike(losses: list[float]) -> str | None:
    """Return a line if the last loss is far above the ones before it."""
    *before, last = losses[-SPIKE_WINDOW - 1 :]
    if len(before) < SPIKE_WINDOW // 5:
        return None
    mean, deviation = statistics.fmean(before), statistics.pstdev(before)
    if last <= mean + SPIKE_DEVIATIONS * max(deviation, 1e-3 * abs(mean)):
        return None
    remedy = "lower optimizer.learning_rate or optimizer.clip_norm, or raise optimizer.warmup_steps"
    return f"the loss is {last:.3f}, after {mean:.3f} with a deviation of {deviation:.3f}; if this recurs, {remedy}"


def describe_slowest_process(busy_seconds: float, interval_seconds: float) -> str | None:
    """Return a line if the others wait for one process, which was busy on its host for much longer than they."""
    times = distributed.gather_from_processes(np.float32(busy_seconds))
    slowest, median = int(times.argmax()), float(np.median(np.delete(times, times.argmax())))
    if times[slowest] < max(SLOW_PROCESS_RATIO * median, 0.1 * interval_seconds):
        return None
    seconds = f"{times[slowest]:.1f} of {interval_seconds:.1f} s, the others for {median:.1f} s"
    return f"process {slowest} was busy on its host for {seconds}: they wait for its batches, its disk or its processor"


def describe_disk_shortage(run: Run) -> str | None:
    """Return a line if the disk has less room than the checkpoints need: the newest, the best and one being written."""
    if is_in_bucket(run.folder):
        return None
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(run.state_shapes))
    written = sum(path.stat().st_size for path in (run.folder / CHECKPOINTS_FOLDER).rglob("*") if path.is_file())
    needed = size * (run.experiment.intervals.keep_checkpoints + 2) - written
    free = shutil.disk_usage(run.folder).free
    if needed <= free:
        return None
    sizes = f"checkpoints may take {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free"
    return f"{run.folder}: {sizes}; lower intervals.keep_checkpoints"


def describe_slow_settings(model: EncoderConfig, platform: str) -> list[str]:
    """Return a line for each setting with which an accelerator is slower than it could be."""
    lines = []
    if platform == "tpu" and not model.unroll_layers and model.remat == "none":
        lines.append(
            "on TPUs model.unroll_layers=true is faster by XLA's estimate, and compiles longer: `price --search`"
        )
    if platform in ("tpu", "gpu") and model.dtype == "float32":
        lines.append(
            "accelerators multiply faster with model.dtype=bfloat16, which rounds more; parameters stay in float32"
        )
    if platform == "gpu" and takes_fused_attention(model):
        lines.append("on GPUs model.attention_impl=cudnn, or cudnn_packed for packed rows, is the fused attention")
    return lines


def takes_fused_attention(model: EncoderConfig) -> bool:
    """Return whether a model with XLA's attention may have cuDNN's."""
    if model.attention_impl != "xla":
        return False
    try:
        replace(model, attention_impl="cudnn")
    except UserError:  # with dropout, in float32, or of a family whose attention it does not compute
        return False
    return True


def describe_out_of_memory(experiment: Experiment, error: BaseException) -> str | None:
    """Return what to change where an error says that a device or the host is out of memory, with estimated sizes."""
    is_named = any(words in str(error).lower() for words in ("resource_exhausted", "out of memory"))
    if not isinstance(error, MemoryError) and not (is_named and isinstance(error, jax.errors.JaxRuntimeError)):
        return None
    mesh = experiment.mesh.build()
    estimate = format_gibibytes(estimate_memory(experiment, mesh))
    line = next((line for line in str(error).splitlines() if "memory" in line.lower()), str(error))
    batch_size = max(phase.batch_size for phase in experiment.phases)
    return (
        f"{experiment.name}: out of memory ({line.strip()[:150]}). Estimate: {estimate}. With the same numbers: raise "
        f"grad_accum_steps={experiment.grad_accum_steps}, set model.remat={experiment.model.remat} to dots or full, or "
        f"raise mesh.fsdp={mesh.shape['fsdp']} on more devices. With other numbers: lower "
        f"phases.batch_size={batch_size} or phases.seq_length"
    )
