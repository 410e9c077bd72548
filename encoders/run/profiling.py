"""Where a step's time goes: a trace of a few steps, for TensorBoard or Perfetto, and its operations summed by part."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax

PROFILED_STEPS = 3
SKIPPED_SCOPES = (
    "while",
    "body",
    "cond",
    "closed_call",
    "checkpoint",
    "remat",
    "rematted_computation",
    "transpose",
    "jvp",
)
CONTROL_FLOW_OPS = r"^(while|call|conditional|async|tuple)\b"  # their time is that of the operations inside them


class StepProfiler:
    """Traces `STEPS` steps, after the second of this process, into `folder`, and says where their time went."""

    def __init__(self, folder: Path, get_program_text: Callable[..., str], log: Callable[[str], None]):
        self.folder, self.get_program_text, self.log, self.num_steps_seen = folder, get_program_text, log, 0

    def on_step(self, state, batch, step_metrics) -> None:
        """To be called with what every step hands back; `program` gives the compiled step's text for such arguments."""
        self.num_steps_seen += 1
        if self.num_steps_seen in (2, 2 + PROFILED_STEPS):
            jax.block_until_ready(step_metrics)
        if self.num_steps_seen == 2:
            jax.profiler.start_trace(self.folder)
        elif self.num_steps_seen == 2 + PROFILED_STEPS:
            jax.profiler.stop_trace()
            text = self.get_program_text(state, batch)
            self.log(
                f"a trace of {PROFILED_STEPS} steps is in {self.folder}\n"
                + summarize_trace(self.folder, text, PROFILED_STEPS)
            )


def summarize_trace(folder: Path, program_text: str, num_steps: int, max_lines: int = 16) -> str:
    """The largest parts of the newest trace in `folder`; `program` is the text of the compiled step."""
    source = dict(re.findall(r"%?([\w.\-]+) = [^\n]*?op_name=\"([^\"]*)\"", program_text))
    times: Counter = Counter()
    for name, seconds in read_operation_seconds(find_newest_trace(folder)).items():
        times[classify_operation(source.get(name, ""), name)] += seconds / num_steps
    whole = sum(times.values())
    if not whole:
        return "the trace holds no operation of a step"
    lines = [
        f"{1e3 * seconds:10.2f} ms {seconds / whole:6.1%}  {name}" for name, seconds in times.most_common(max_lines)
    ]
    return "\n".join([f"{1e3 * whole:10.2f} ms a step, all operations", *lines])


def find_newest_trace(folder: Path) -> Path:
    """The newest trace below `folder`."""
    return max(Path(folder).rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)


def read_operation_seconds(trace_path: Path) -> Counter:
    """Seconds of every operation of the compiled programs in a trace, in all, by its name there."""
    found: Counter = Counter()
    with warnings.catch_warnings():
        # jaxlib's types on Python 3.12; as an error it would end the process.
        warnings.filterwarnings("ignore", r"builtin type \w+ has no __module__ attribute", DeprecationWarning)
        for plane in jax.profiler.ProfileData.from_file(str(trace_path)).planes:
            for line in plane.lines:
                for event in line.events:
                    stats = dict(event.stats)
                    name, ours = stats.get("hlo_op"), str(stats.get("hlo_module")).startswith("jit_train_step")
                    if name and ours and not re.match(CONTROL_FLOW_OPS, name):
                        found[name] += event.duration_ns / 1e9
    return found


def classify_operation(op_path: str, op_name: str) -> str:
    """The part of the network an operation belongs to, forward or back, by the path that the program gives it.

    >>> step = "jit(train_step)/transpose(jvp(M))"
    >>> classify_operation(step + "/encoder/while/body/layers/attend/query/query/dot_general", "")
    'encoder/layers/attend backward, products'
    """
    if "jvp(" not in op_path:
        return "update, masks, counts" if op_path else f"other: {re.sub(r'[.0-9]+$', '', op_name)}"
    path = [x for x in op_path.split(";")[0].split("/") if re.fullmatch(r"[A-Za-z_]\w*", x) and x not in SKIPPED_SCOPES]
    kind = "dropout" if re.search(r"[Dd]rop", op_path) else "products" if "dot_general" in op_path else "the rest"
    place = "/".join(path[:3] if len(path) > 1 and path[1] == "layers" else path[:1]) or "loss"
    return f"{place} {'backward' if 'transpose(' in op_path else 'forward'}, {kind}"
