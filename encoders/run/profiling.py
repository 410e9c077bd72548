"""Where a step's time goes: a trace of a few steps, for TensorBoard or Perfetto, and its operations summed by part."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax

STEPS = 3
SKIPPED = ("while", "body", "cond", "closed_call", "checkpoint", "remat", "rematted_computation", "transpose", "jvp")
CONTROL = r"^(while|call|conditional|async|tuple)\b"  # their time is that of the operations inside them


class Profile:
    """Traces `STEPS` steps, after the second of this process, into `folder`, and says where their time went."""

    def __init__(self, folder: Path, program: Callable[..., str], say: Callable[[str], None]):
        self.folder, self.program, self.say, self.seen = folder, program, say, 0

    def watch(self, state, batch, measured) -> None:
        """To be called with what every step hands back; `program` gives the compiled step's text for such arguments."""
        self.seen += 1
        if self.seen in (2, 2 + STEPS):
            jax.block_until_ready(measured)
        if self.seen == 2:
            jax.profiler.start_trace(self.folder)
        elif self.seen == 2 + STEPS:
            jax.profiler.stop_trace()
            text = self.program(state, batch)
            self.say(f"a trace of {STEPS} steps is in {self.folder}\n" + summary(self.folder, text, STEPS))


def summary(folder: Path, program: str, steps: int, most: int = 16) -> str:
    """The largest parts of the newest trace in `folder`; `program` is the text of the compiled step."""
    source = dict(re.findall(r"%?([\w.\-]+) = [^\n]*?op_name=\"([^\"]*)\"", program))
    times: Counter = Counter()
    for name, seconds in operations(newest(folder)).items():
        times[part(source.get(name, ""), name)] += seconds / steps
    whole = sum(times.values())
    if not whole:
        return "the trace holds no operation of a step"
    lines = [f"{1e3 * seconds:10.2f} ms {seconds / whole:6.1%}  {name}" for name, seconds in times.most_common(most)]
    return "\n".join([f"{1e3 * whole:10.2f} ms a step, all operations", *lines])


def newest(folder: Path) -> Path:
    """The newest trace below `folder`."""
    return max(Path(folder).rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)


def operations(trace: Path) -> Counter:
    """Seconds of every operation of the compiled programs in a trace, in all, by its name there."""
    found: Counter = Counter()
    with warnings.catch_warnings():
        # jaxlib's types on Python 3.12; as an error it would end the process.
        warnings.filterwarnings("ignore", r"builtin type \w+ has no __module__ attribute", DeprecationWarning)
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
            for line in plane.lines:
                for event in line.events:
                    stats = dict(event.stats)
                    name, ours = stats.get("hlo_op"), str(stats.get("hlo_module")).startswith("jit_train_step")
                    if name and ours and not re.match(CONTROL, name):
                        found[name] += event.duration_ns / 1e9
    return found


def part(source: str, name: str) -> str:
    """The part of the network an operation belongs to, forward or back, by the path that the program gives it.

    >>> part("jit(train_step)/transpose(jvp(M))/encoder/while/body/layers/attend/query/query/dot_general", "")
    'encoder/layers/attend backward, products'
    """
    if "jvp(" not in source:
        return "update, masks, counts" if source else f"other: {re.sub(r'[.0-9]+$', '', name)}"
    path = [x for x in source.split(";")[0].split("/") if re.fullmatch(r"[A-Za-z_]\w*", x) and x not in SKIPPED]
    kind = "dropout" if re.search(r"[Dd]rop", source) else "products" if "dot_general" in source else "the rest"
    place = "/".join(path[:3] if len(path) > 1 and path[1] == "layers" else path[:1]) or "loss"
    return f"{place} {'backward' if 'transpose(' in source else 'forward'}, {kind}"
