"""Results of a measurement as a table and as JSON, with the hardware and software they were measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import jax

from encoders.bench.measurements import MEASUREMENTS, BenchOptions
from encoders.experiment import Experiment, ExperimentError
from encoders.reporting.table_formats import format_grid
from encoders.utils.files import write_json
from encoders.utils.machine import describe_processor, find_commit


def run_measurement(
    measurement: str,
    experiments: Sequence[Experiment],
    *,
    device: str = "cpu",
    core: int | None = None,
    as_installed: bool = False,
    out: str = "bench",
    **bench_options,
) -> int:
    """Print the rows of a measurement as they come and its table at the end, and write it to `out`/MEASUREMENT.json.

    `bench_options` are further fields of `BenchOptions`. Returns the status of the process. Raises `ExperimentError`
    for an unknown measurement, counts below 1, and an option of another measurement.
    """
    if measurement not in MEASUREMENTS:
        raise ExperimentError(f"bench {measurement!r} is not one of {', '.join(MEASUREMENTS)}")
    core = choose_core(core, device)
    options = BenchOptions(device=device, core=core, keep_freed_memory=not as_installed, **bench_options)
    for name in ("rounds", "units"):
        if getattr(options, name) < 1:
            raise ExperimentError(f"--{name} {getattr(options, name)} must be at least 1")
    if options.changes and measurement != "ablate":
        raise ExperimentError(
            f"--change {options.changes[0]} is for `bench ablate`, and `bench {measurement}` was given"
        )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)  # before the work
    jax.config.update("jax_platforms", "cpu")  # the device belongs to the processes that are measured
    about, rows = describe_bench_environment(options), []
    for row in MEASUREMENTS[measurement](experiments, options):
        options.log("  ".join(f"{name} {format_bench_value(value)}" for name, value in row.items()))
        rows.append(row)
    about["load after"] = round(os.getloadavg()[0], 2)
    if not rows:
        options.log("nothing could be measured")
        return 1
    names = list(dict.fromkeys(name for row in rows for name in row))
    print(format_grid([names, *([format_bench_value(row.get(name, "")) for name in names] for row in rows)]))
    print("; ".join(f"{name} {value}" for name, value in about.items()))
    content = {"part": measurement, "about": about, "rows": rows, "variants": options.variant_records}
    write_json(folder / f"{measurement}.json", content)
    return 0


def choose_core(core: int | None, device: str) -> int | None:
    """Return `core`, by default the last one allowed; None beside an accelerator.

    Raises `ExperimentError` for a core that this process may not use.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if core is not None and core not in allowed:
        accepted = ", ".join(map(str, allowed)) or "none, since this system pins no process"
        raise ExperimentError(f"--core {core} is not one of the allowed cores: {accepted}")
    if device != "cpu":
        return None
    return allowed[-1] if core is None and allowed else core


def describe_bench_environment(options: BenchOptions) -> dict[str, object]:
    """Return commit, versions, processor and load of this machine, and options of the measurement."""
    return {
        "commit": find_commit() or "unknown",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "processor": describe_processor(),
        "core": options.core,
        "freed memory": "kept" if options.keep_freed_memory and options.device == "cpu" else "as installed",
        "rounds": options.rounds,
        "load before": round(os.getloadavg()[0], 2),
    }


def format_bench_value(value: object) -> str:
    """Return a number with three significant digits, or "busy" for one that could not be measured."""
    if value is None:
        return "busy"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
