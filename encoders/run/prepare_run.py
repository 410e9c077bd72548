"""Everything that can refuse a run, before any long work: mesh, folder, source run, store, vocabulary and lock."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import jax

from encoders.costs.ledger import estimate_memory, format_gibibytes
from encoders.data.prepare import prepare_store
from encoders.data.stream import load_eval_table
from encoders.experiment import Experiment, fingerprint_experiment
from encoders.run.folder import RunError, differing_fields, lock_run, register_run, wrong_experiment
from encoders.run.run import Run, check_batch_sizes
from encoders.run.warm_start import WarmStart
from encoders.training import distributed

BYTES_PER_TOKEN = 16  # of a batch: four arrays of int32


def check_memory(experiment: Experiment, mesh: jax.sharding.Mesh, log: Callable[[str], None]) -> None:
    """Raise `RunError` where parameters, moments and gradients alone exceed the memory of a device, or a batch that of
    the machine. Activations, which the compiler may keep fewer of, are warned of."""
    estimate = estimate_memory(experiment, mesh)
    sizes = {name: size for name, size in estimate.items() if name != "activations"}
    available = find_device_memory(mesh.local_devices[0])
    if sum(sizes.values()) > available:
        problem = f"{experiment.name} needs {format_gibibytes(sizes)} on a device of {available / 2**30:.2f} GiB"
        model = experiment.model
        fields = f"model.vocab_size={model.vocab_size}, model.max_positions={model.max_positions}"
        raise RunError(f"{problem}; lower the model's sizes ({fields}), or spread it with mesh.fsdp")
    for phase in experiment.phases:
        batch_bytes = BYTES_PER_TOKEN * phase.batch_size * phase.seq_length // jax.process_count()
        if batch_bytes > (machine_bytes := count_machine_memory()):
            rows = f"phases.batch_size={phase.batch_size} rows of phases.seq_length={phase.seq_length}"
            sizes = f"{batch_bytes / 2**30:,.2f} GiB of the {machine_bytes / 2**30:.2f} that the machine has"
            raise RunError(f"{rows} take {sizes}; lower phases.batch_size")
    if sum(estimate.values()) > available:
        sizes = f"{format_gibibytes(estimate)} on a device of {available / 2**30:.2f} GiB"
        log(f"warning: {experiment.name} may need {sizes}; raise grad_accum_steps, or lower phases.batch_size")


def find_device_memory(device: jax.Device) -> int:
    """Return the bytes of a device; devices of a CPU share those of the machine."""
    if device.platform == "cpu":
        return count_machine_memory() // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit", 2**63)


def count_machine_memory() -> int:
    """Return the bytes of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextmanager
def prepare_run(
    experiment: Experiment, folder: Path, log: Callable[[str], None]
) -> Iterator[tuple[Run, WarmStart | None, str]]:
    """Yield a run that nothing refuses, the run that it starts from and its fingerprint, and hold its folder's lock.

    Raises `RunError`, `RunInUse`, or the `ValueError` of a store, mesh or corpus. Of several processes the primary one
    locks and records.
    """
    mesh = experiment.mesh.build()
    check_batch_sizes(experiment, mesh)
    check_memory(experiment, mesh, log)
    if differences := differing_fields(experiment, folder):
        raise wrong_experiment(folder, differences)
    warm_start = WarmStart(experiment) if experiment.init_from else None
    store = prepare_store(experiment.data, log)
    if distributed.is_primary():
        store.verify()
    if warm_start:
        warm_start.check_tokenizer(store.tokenizer)
    run = Run(experiment, folder, store.vocab, lambda: store)
    for phase in experiment.phases:
        for split in store.eval_splits:
            load_eval_table(split, phase, store.path / "tables")  # raises if no example fits
    fingerprint = fingerprint_experiment(experiment, store.key, warm_start.init_key if warm_start else None)
    with lock_run(run.folder, log) if distributed.is_primary() else nullcontext():
        if distributed.is_primary():
            register_run(run.folder, experiment, store, fingerprint)
        yield run, warm_start, fingerprint
