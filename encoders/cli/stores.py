"""The verbs `prepare` and `inspect`: stores of tokens, made, mended and shown."""

import json
import os
import sys
from collections.abc import Callable, Sequence

from encoders.cli.experiment_files import ExperimentChoice, load_experiment_file
from encoders.cli.inspect_store import RowSettings, describe_pass, describe_store
from encoders.data.beam_runner import BeamRunner, LocalRunner, Runner
from encoders.data.bucket_store import open_store
from encoders.data.labelled import LabelledData
from encoders.data.prepare import find_damaged_units, prepare_store, repair_store
from encoders.data.spec import PretrainingData
from encoders.data.store import Store
from encoders.utils.buckets import is_in_bucket, parse_path
from encoders.utils.serialization import ExperimentError


def prepare_stores(
    choice: ExperimentChoice,
    log: Callable[[str], None],
    num_workers: int | None = None,
    runner: str | None = None,
    repair: bool = False,
    pipeline_options: Sequence[str] = (),
) -> None:
    work_runner = build_runner(num_workers, runner, pipeline_options)
    printed = set()
    for experiment in load_experiment_file(choice).experiments:
        if isinstance(experiment.data, LabelledData) and not parse_path(experiment.data.tokenizer.path).exists():
            log(f"skipped {experiment.name}: its vocabulary is missing; train {experiment.init_from} first")
            continue
        if repair and is_in_bucket(experiment.data.store_dir):
            bucket = experiment.data.store_dir
            raise ExperimentError(f"--repair mends stores of this machine; remove a damaged one from {bucket}")
        store = prepare_store(experiment.data, log, work_runner)
        if store.key not in printed:
            printed.add(store.key)
            if repair:
                repair_damaged_units(store, experiment.data, work_runner, log)
            print(f"{experiment.name}: {store.path}")
            print(json.dumps(summarize_preparation(store.metadata), indent=1))
        for phase in experiment.phases if isinstance(experiment.data, PretrainingData) else ():
            rows = (store.key, phase.format, phase.seq_length)
            if rows not in printed:
                printed.add(rows)
                print("\n".join(describe_pass(phase, store.train_split, experiment.seed)))


def build_runner(num_workers: int | None, runner: str | None, pipeline_options: Sequence[str]) -> Runner:
    """Return the runner that prepares a store: processes of this machine, or Beam's. Raises `ExperimentError`."""
    if runner and num_workers is not None:
        raise ExperimentError(f"--workers {num_workers} is for this machine; --runner {runner} takes options after --")
    if runner:
        return BeamRunner(runner, tuple(pipeline_options))
    if pipeline_options:
        raise ExperimentError(f"{' '.join(pipeline_options)}: pipeline options need --runner NAME")
    return LocalRunner(len(os.sched_getaffinity(0)) if num_workers is None else num_workers)


def summarize_preparation(metadata: dict) -> dict:
    """Return the counts of a store and, where its preparation was timed, characters and tokens per second."""
    keys = ("splits", "skipped", "filtered", "unknown_rate", "characters", "seconds", "peak_memory_mb")
    summary = {key: metadata[key] for key in keys if key in metadata}
    if "seconds" in metadata:
        counts = {"characters": metadata["characters"], "tokens": sum(s["tokens"] for s in metadata["splits"].values())}
        seconds = max(metadata["seconds"]["tokens"], 0.01)
        summary["speed"] = {name: round(count / seconds) for name, count in counts.items()}
    return summary


def repair_damaged_units(
    store: Store, data: PretrainingData | LabelledData, runner: Runner, log: Callable[[str], None]
) -> None:
    if "units" not in store.metadata:
        log(f"{store.path} lacks checksums (labelled rows, or an earlier version) and cannot be repaired")
        return
    if damaged := list_damaged_units(store, log):
        repair_store(store, data, damaged, log, runner)
    log(f"{store.path}: {len(damaged)} damaged unit(s) repaired" if damaged else f"{store.path}: no damage")


def list_damaged_units(store: Store, log: Callable[[str], None]) -> list[int]:
    """Return the indices of a store's damaged units, and log each."""
    damaged = find_damaged_units(store)
    for index in damaged:
        source = store.metadata["units"][index]["name"]
        log(f"{store.path}: unit {index} ({source}) is damaged; prepare --repair makes it again")
    return damaged


def inspect_store(
    choice: ExperimentChoice,
    store: str,
    log: Callable[[str], None],
    num_rows: int = 3,
    plain: bool = False,
    verify: bool = False,
) -> int:
    opened, row_settings = open_store(parse_path(store)), RowSettings()
    if choice.experiment:
        experiments = load_experiment_file(choice).experiments
        if len(experiments) > 1:
            raise ExperimentError(f"--only must name one of {', '.join(experiment.name for experiment in experiments)}")
        row_settings = RowSettings(experiments[0].phases, experiments[0].objective, experiments[0].seed)
    elif choice.settings or choice.only or choice.with_settings:
        raise ExperimentError("--set, --only and --with need an EXPERIMENT, and none is named")
    if verify:
        damaged = list_damaged_units(opened, log)
        log(f"{len(opened.metadata['units'])} units, {len(damaged)} damaged")
        if damaged:
            return 1
    for line in describe_store(opened, row_settings, num_rows, sys.stdout.isatty() and not plain):
        print(line)
    return 0
