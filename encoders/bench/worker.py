"""Process of one variant: it builds its work, then does the units of it that each line of its input requests."""

from __future__ import annotations

import importlib
import json
import math
import os
import resource
import sys
from collections.abc import Callable

from encoders.bench.rounds import time_call


def serve_variant() -> None:
    """Answer every line of the standard input, of which the first describes the work, until its end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the prints of libraries must not mix with the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "builder" in request:
                run_unit, answer = build_work(**request)
            else:
                answer = time_units(run_unit, request["units"]) if request["units"] else measure_peak_bytes()
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error).strip()[:2000] or 'no message'}"}
        print(json.dumps(answer), file=answers, flush=True)


def build_work(builder: str, spec: dict, core: int | None) -> tuple[Callable, dict]:
    """Return a unit of work and facts about it; no other variant's libraries are imported."""
    if core is not None:
        os.sched_setaffinity(0, {core})  # before any library counts the cores
    return getattr(importlib.import_module(f"encoders.bench.{builder}_step"), f"build_{builder}_work")(spec)


def time_units(run_unit: Callable, num_units: int) -> dict:
    """Return processor and wall seconds of `num_units` units of work, and the value of the last one.

    Raises `ArithmeticError` for a value that is not finite.
    """

    def run_units() -> float:
        for _ in range(num_units):
            value = run_unit()
        return float(value)  # waits for the device

    answer = dict(zip(("cpu", "wall", "value"), time_call(run_units), strict=True))
    if not math.isfinite(answer["value"]):
        raise ArithmeticError(f"it computes {answer['value']}")
    return answer


def measure_peak_bytes() -> dict:
    """Return the peak memory of this process: on its accelerator if it uses one, else on the machine."""
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        peak_bytes = sys.modules["torch"].cuda.max_memory_allocated()
    elif "jax" in sys.modules and (stats := sys.modules["jax"].local_devices()[0].memory_stats()):
        peak_bytes = stats["peak_bytes_in_use"]
    return {"peak_bytes": peak_bytes}


if __name__ == "__main__":
    serve_variant()
