"""Times that the links between devices need for the communication of a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from encoders.bench.rounds import ResultRow, Variant, time_alternately
from encoders.costs.communication import (
    COLLECTIVE_KINDS,
    DEVICES_PER_NODE,
    LINK_BANDWIDTHS,
    compile_train_step,
    compute_step_seconds,
    parse_collectives,
)
from encoders.costs.ledger import make_blank_vocab
from encoders.experiment import Experiment
from encoders.training.sharding import Mesh
from encoders.utils.serialization import from_json_value, to_json_value

MESH_LAYOUTS = (
    Mesh(data=8),
    Mesh(data=1, fsdp=8),
    Mesh(data=1, model=8),
    Mesh(data=2, fsdp=4),
    Mesh(data=1, fsdp=4, model=2),
)
DEVICE_COUNTS = (8, 64, 1024)


def measure_communication(experiments: Sequence[Experiment], options) -> Iterator[ResultRow]:
    """Yield the bytes that a device sends in a step, and their time, for each phase and each of `MESH_LAYOUTS`.

    The batch is that of eight devices; more devices are more nodes, each with rows of its own.
    """
    for experiment in experiments:
        for phase in experiment.phases:
            gradient_bytes = 0.0
            for mesh in MESH_LAYOUTS:
                axes = ", ".join(f"{name}={size}" for name, size in vars(mesh).items() if size > 1)
                name = f"{experiment.name}, {phase.batch_size} x {phase.seq_length}, {axes}"
                sent = measure_sent_bytes(name, replace(experiment, phases=(phase,), mesh=mesh), options)
                if not sent:
                    break
                total = sum(sent.values())
                gradient_bytes = gradient_bytes or total  # the first layout sends only gradients
                row = {"what": name, "GB": total / 1e9}
                row |= {kind: sent[kind] / 1e9 for kind in ("all-reduce", "all-gather")}
                for link in LINK_BANDWIDTHS:
                    for count in DEVICE_COUNTS:
                        seconds = compute_step_seconds(total, gradient_bytes, count, link)
                        row[f"{link} {count}, ms"] = 1e3 * seconds
                yield row


def measure_sent_bytes(name: str, experiment: Experiment, options) -> dict[str, float]:
    """Return the bytes that a device sends in a step, by kind; nothing, and a log line, where it does not compile."""
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(DEVICES_PER_NODE)}
    variant = Variant(name, "links", {"experiment": to_json_value(experiment)}, environment)
    timings = time_alternately([variant], 0, 1, options.core, options.log)
    options.variant_records.update((name, timing.info) for name, timing in timings.items())
    return timings[name].info["sent"] if timings else {}


def build_communication_work(spec: dict) -> tuple[Callable[[], float], dict]:
    """Return no work to time, and the bytes that a device sends in a step, by kind of collective."""
    experiment = from_json_value(spec["experiment"])
    vocab = make_blank_vocab(experiment.model.vocab_size)
    program = compile_train_step(experiment, vocab, experiment.mesh.build()).as_text()
    sent = dict.fromkeys(COLLECTIVE_KINDS, 0.0)
    for collective in parse_collectives(program):
        sent[collective.kind] += collective.sent_bytes
    return lambda: 0.0, {"sent": sent}
