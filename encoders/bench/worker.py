"""The process of one variant: builds its work, then does as many units of it as each line of its input asks for."""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from collections.abc import Callable

from encoders.bench.rounds import clocked


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers
    order = json.loads(sys.stdin.readline())
    if order["core"] is not None:
        os.sched_setaffinity(0, {order["core"]})  # before any library counts the cores

    def answer(content: dict) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        run, facts = importlib.import_module(f"encoders.bench.{order['module']}").build(order["spec"])
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {str(error).strip() or 'no message'}"})
        return
    answer(facts)
    for line in sys.stdin:
        units = json.loads(line)["units"]
        try:
            answer(timed(run, units) if units else {"peak_bytes": peak_bytes()})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {str(error).strip()[:500]}"})


def timed(run: Callable, units: int) -> dict:
    """Processor and wall seconds of `units` units of work, and what the last one computed."""

    def work() -> float:
        for _ in range(units):
            value = run()
        return float(value)  # waits for the device

    return dict(zip(("cpu", "wall", "value"), clocked(work), strict=True))


def peak_bytes() -> int:
    """The most memory that this process had: of the accelerator if it has one, else of the machine."""
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        return sys.modules["torch"].cuda.max_memory_allocated()
    if "jax" in sys.modules and (stats := sys.modules["jax"].local_devices()[0].memory_stats()):
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
