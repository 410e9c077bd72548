"""The process of one variant: builds its work, then does as many units of it as each line of its input asks for."""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from collections.abc import Callable

from encoders.bench.rounds import time_call

BUILDERS = {
    "ours": ("our_step", "build_jax_work"),
    "theirs": ("their_step", "build_torch_work"),
    "links": ("communication", "build_communication_work"),
}


def serve_variant() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers
    order = json.loads(sys.stdin.readline())
    if order["core"] is not None:
        os.sched_setaffinity(0, {order["core"]})  # before any library counts the cores

    def send_answer(message: dict) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        run, facts = import_builder(order["module"])(order["spec"])
    except Exception as error:
        send_answer({"error": f"{type(error).__name__}: {str(error).strip() or 'no message'}"})
        return
    send_answer(facts)
    for line in sys.stdin:
        units = json.loads(line)["units"]
        try:
            send_answer(time_units(run, units) if units else {"peak_bytes": measure_peak_bytes()})
        except Exception as error:
            send_answer({"error": f"{type(error).__name__}: {str(error).strip()[:500]}"})


def import_builder(side: str) -> Callable[[dict], tuple[Callable, dict]]:
    """The function that builds the work of a side; no other side's libraries are imported."""
    module, function = BUILDERS[side]
    return getattr(importlib.import_module(f"encoders.bench.{module}"), function)


def time_units(run_unit: Callable, num_units: int) -> dict:
    """Processor and wall seconds of `units` units of work, and what the last one computed."""

    def run_units() -> float:
        for _ in range(num_units):
            value = run_unit()
        return float(value)  # waits for the device

    return dict(zip(("cpu", "wall", "value"), time_call(run_units), strict=True))


def measure_peak_bytes() -> int:
    """The most memory that this process had: of the accelerator if it has one, else of the machine."""
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        return sys.modules["torch"].cuda.max_memory_allocated()
    if "jax" in sys.modules and (stats := sys.modules["jax"].local_devices()[0].memory_stats()):
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    serve_variant()
