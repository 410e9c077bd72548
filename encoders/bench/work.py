"""The process of one variant: builds its work, then does as many units of it as each line of its input asks for."""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time


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
        units, value = json.loads(line)["units"], None
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(units):
            value = run()
        value = None if value is None else float(value)  # waits for the device
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answer({"cpu": cpu, "wall": wall, "value": value} if units else {"peak_bytes": peak})


if __name__ == "__main__":
    main()
