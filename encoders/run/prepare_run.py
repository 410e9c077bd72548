"""Everything that can refuse a run, before any long work: mesh, folder, source run, store, vocabulary and lock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from encoders.data.prepare import prepare_store
from encoders.data.stream import load_eval_table
from encoders.experiment import Experiment, describe_differences, fingerprint_experiment
from encoders.run.folder import (
    RECORD_FILE,
    build_run_record,
    differing_fields,
    lock_run,
    parse_run_spec,
    read_run_record,
    wrong_experiment,
)
from encoders.run.run import Run, check_batch_sizes
from encoders.run.warm_start import WarmStart
from encoders.training import distributed
from encoders.utils.files import write_json


@contextmanager
def prepare_run(
    experiment: Experiment, folder: Path, log: Callable[[str], None]
) -> Iterator[tuple[Run, WarmStart | None, str]]:
    """Yield a run that nothing refuses, the run that it starts from and its fingerprint, and hold its folder's lock.

    Raises `RunError`, `RunInUse`, or the `ValueError` of a store, mesh or corpus. The store is prepared after all
    checks that do not need it. Of several processes the primary one locks and records.
    """
    check_batch_sizes(experiment, experiment.mesh.build())
    if differences := differing_fields(experiment, folder):
        raise wrong_experiment(folder, differences)
    warm_start = WarmStart(experiment) if experiment.init_from else None
    store = prepare_store(experiment.data, log)
    if warm_start:
        warm_start.check_tokenizer(store.tokenizer)
    run = Run(experiment, Path(folder), store.vocab, lambda: store)
    for phase in experiment.phases:
        for split in store.eval_splits:
            load_eval_table(split, phase, store.path / "tables")  # raises if no example fits
    fingerprint = fingerprint_experiment(experiment, store.key, warm_start.init_key if warm_start else None)
    with lock_run(run.folder) if distributed.is_primary() else nullcontext():
        if distributed.is_primary():
            register_run(run, fingerprint)
        yield run, warm_start, fingerprint


def register_run(run: Run, fingerprint: str) -> None:
    """Record an experiment in its folder, with its tokenizer. Raises `RunError` if the folder has another one."""
    path = run.folder / RECORD_FILE
    if path.exists():
        record = read_run_record(run.folder)
        if record["fingerprint"] != fingerprint:
            differences = describe_differences(parse_run_spec(record), run.experiment)
            raise wrong_experiment(run.folder, differences or ["the content of data.corpus or of init_from"])
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    run.store.tokenizer.save(run.folder)
    store = {"store": str(run.store.path.resolve()), "store_key": run.store.key}
    write_json(path, build_run_record(run.experiment, fingerprint, run.vocab) | store)
