"""Profile of a step: a trace of a few steps for TensorBoard or Perfetto, and its operations summed by part."""

import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax

from encoders.run.folder import RunError
from encoders.run.run import Run
from encoders.training import distributed, step
from encoders.utils.buckets import is_in_bucket

PROFILED_STEPS = 3
SKIPPED_SCOPES = "while body cond closed_call checkpoint remat rematted_computation transpose jvp".split()
CONTROL_FLOW_OPS = r"^(while|call|conditional|async|tuple)\b"  # their time is that of the operations inside them


class StepProfiler:
    """Trace of `PROFILED_STEPS` steps of a run in its folder, from the third step of this process, and its summary."""

    def __init__(self, run: Run, start_step: int, log: Callable[[str], None]):
        if distributed.is_multi_process():
            raise RunError("--profile traces one process, and this run has several; profile it with one")
        if is_in_bucket(run.folder):
            raise RunError(f"--profile writes to a folder of this machine, and the run is in {run.folder}")
        num_steps_left, needed = run.experiment.num_steps - start_step, 2 + PROFILED_STEPS
        if num_steps_left < needed:
            raise RunError(f"--profile needs {needed} steps, and {num_steps_left} of phases.until_step are left")
        self.run, self.log, self.num_steps_seen = run, log, 0

    def record_step(self, state, batch, step_metrics, static_args: dict) -> None:
        self.num_steps_seen += 1
        if self.num_steps_seen not in (2, 2 + PROFILED_STEPS):
            return
        jax.block_until_ready(step_metrics)
        run, folder = self.run, self.run.folder / "profile"
        if self.num_steps_seen == 2:
            jax.profiler.start_trace(folder)
            return
        jax.profiler.stop_trace()
        compiled = step.train_step.lower(state, batch, run.experiment.seed, **static_args).compile()
        summary = summarize_trace(folder, compiled.as_text(), PROFILED_STEPS)
        self.log(f"a trace of {PROFILED_STEPS} steps is in {folder}\n{summary}")


def summarize_trace(folder: Path, program_text: str, num_steps: int, max_lines: int = 16) -> str:
    """Return the largest parts of the newest trace in `folder`, by the operation names of the compiled program."""
    op_paths = dict(re.findall(r"%?([\w.\-]+) = [^\n]*?op_name=\"([^\"]*)\"", program_text))
    newest_trace = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    part_seconds: Counter = Counter()
    for op_name, seconds in read_operation_seconds(newest_trace).items():
        part_seconds[classify_operation(op_paths.get(op_name, ""), op_name)] += seconds / num_steps
    total = part_seconds.total()
    if not total:
        return "the trace holds no operation of a step"
    largest = part_seconds.most_common(max_lines)
    lines = [f"{1e3 * seconds:10.2f} ms {seconds / total:6.1%}  {part}" for part, seconds in largest]
    return "\n".join([f"{1e3 * total:10.2f} ms a step, all operations", *lines])


def read_operation_seconds(trace_path: Path) -> Counter:
    """Return the total seconds of each operation of `train_step` in a trace, by its name in the program."""
    op_seconds: Counter = Counter()
    with warnings.catch_warnings():
        # A warning of jaxlib's types on Python 3.12 would end the process where warnings are errors.
        warnings.filterwarnings("ignore", r"builtin type \w+ .*__module__ attribute", DeprecationWarning)
        for plane in jax.profiler.ProfileData.from_file(str(trace_path)).planes:
            for event in (event for line in plane.lines for event in line.events):
                stats = dict(event.stats)
                op_name, is_step = stats.get("hlo_op"), str(stats.get("hlo_module")).startswith("jit_train_step")
                if op_name and is_step and not re.match(CONTROL_FLOW_OPS, op_name):
                    op_seconds[op_name] += event.duration_ns / 1e9
    return op_seconds


def classify_operation(op_path: str, op_name: str) -> str:
    """Return the part of the network, the direction and the kind of an operation, from its path in the program.

    >>> step = "jit(train_step)/transpose(jvp(M))"
    >>> classify_operation(step + "/encoder/while/body/layers/attend/query/query/dot_general", "")
    'encoder/layers/attend backward, products'
    """
    if "jvp(" not in op_path:
        return "update, masks, counts" if op_path else f"other: {re.sub(r'[.0-9]+$', '', op_name)}"
    names = op_path.split(";")[0].split("/")
    scopes = [name for name in names if re.fullmatch(r"[A-Za-z_]\w*", name) and name not in SKIPPED_SCOPES]
    depth = 3 if scopes[1:2] == ["layers"] else 1
    part, direction = "/".join(scopes[:depth]) or "loss", "backward" if "transpose(" in op_path else "forward"
    kinds = {r"[Dd]rop": "dropout", "dot_general": "products"}
    kind = next((kind for pattern, kind in kinds.items() if re.search(pattern, op_path)), "the rest")
    return f"{part} {direction}, {kind}"
