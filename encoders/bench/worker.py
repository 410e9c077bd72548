"""Process of one variant: it builds its work, then does the units of it that each line of its input requests."""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from collections.abc import Callable

from encoders.bench.rounds import time_call

BUILDERS = {
    "jax": ("jax_step", "build_jax_work"),
    "torch": ("torch_step", "build_torch_work"),
    "links": ("link_times", "build_communication_work"),
}


def serve_variant() -> None:
    """Build the work of the first line of the standard input, then answer every further line until its end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the prints of libraries must not mix with the answers
    request = json.loads(sys.stdin.readline())
    if request["core"] is not None:
        os.sched_setaffinity(0, {request["core"]})  # before any library counts the cores

    def send_answer(message: dict) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        run_unit, info = import_builder(request["builder"])(request["spec"])
    except Exception as error:
        send_answer({"error": f"{type(error).__name__}: {str(error).strip() or 'no message'}"})
        return
    send_answer(info)
    for line in sys.stdin:
        units = json.loads(line)["units"]
        try:
            send_answer(time_units(run_unit, units) if units else {"peak_bytes": measure_peak_bytes()})
        except Exception as error:
            send_answer({"error": f"{type(error).__name__}: {str(error).strip()[:500]}"})


def import_builder(name: str) -> Callable[[dict], tuple[Callable, dict]]:
    """Return the function that builds a variant's work; no other variant's libraries are imported."""
    module, function = BUILDERS[name]
    return getattr(importlib.import_module(f"encoders.bench.{module}"), function)


def time_units(run_unit: Callable, num_units: int) -> dict:
    """Return processor and wall seconds of `num_units` units of work, and the value of the last one."""

    def run_units() -> float:
        for _ in range(num_units):
            value = run_unit()
        return float(value)  # waits for the device

    return dict(zip(("cpu", "wall", "value"), time_call(run_units), strict=True))


def measure_peak_bytes() -> int:
    """Return the peak memory of this process: on its accelerator if it uses one, else on the machine."""
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        return sys.modules["torch"].cuda.max_memory_allocated()
    if "jax" in sys.modules and (stats := sys.modules["jax"].local_devices()[0].memory_stats()):
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    serve_variant()
