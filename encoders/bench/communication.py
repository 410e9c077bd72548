"""What a training step sends between devices: the collectives in the text of the compiled step, and their bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax

from encoders.bench.rounds import ResultRow, Variant, time_alternately
from encoders.costs.ledger import make_blank_vocab
from encoders.experiment import Experiment
from encoders.text.tokenization import VocabInfo
from encoders.training import sharding, step
from encoders.training.sharding import Mesh
from encoders.utils.serialization import from_json_value, to_json_value

DEVICES_PER_NODE = 8  # devices that the fast links join
MESH_LAYOUTS = (
    Mesh(data=8),
    Mesh(data=1, fsdp=8),
    Mesh(data=1, model=8),
    Mesh(data=2, fsdp=4),
    Mesh(data=1, fsdp=4, model=2),
)
# Bytes/s that a device is assumed to send, to the others of its eight and to other eights: NVLink and a network of
# 400 Gb/s a GPU; the four links of a TPU v5e.
LINK_BANDWIDTHS = {"NVLink": (450e9, 50e9), "v5e": (200e9, 200e9)}
DEVICE_COUNTS = (8, 64, 1024)
COLLECTIVE_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
DTYPE_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}  # else 4
COLLECTIVE_PATTERN = re.compile(rf" = (.*?) ({'|'.join(COLLECTIVE_KINDS)})\(")
CALLED_PATTERN = re.compile(r"(?:body|condition|calls|to_apply|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")


@dataclass(frozen=True)
class Collective:
    """An operation by which each device of a group of `group` gets `arrays`, `times` a step.

    `arrays` are pairs of dtype and shape on a device; `source` is the path that the program gives the operation.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    group_size: int
    num_calls: int
    op_path: str

    @property
    def array_bytes(self) -> int:
        """Of the arrays, once."""
        return sum(DTYPE_BYTES.get(dtype, 4) * math.prod(shape) for dtype, shape in self.arrays)

    @property
    def sent_bytes(self) -> float:
        """Bytes that a device sends in a step, where the group is a ring."""
        rest = (self.group_size - 1) / self.group_size
        factor = {"all-reduce": 2 * rest, "reduce-scatter": self.group_size - 1, "collective-permute": 1}
        return self.num_calls * self.array_bytes * factor.get(self.kind, rest)


def parse_collectives(program_text: str) -> Iterator[Collective]:
    """The collectives of a compiled program's text; those in a loop count as often as it turns."""
    bodies = dict(re.findall(r"^(?:ENTRY )?(%[\w.\-]+) \([^\n]*\{\n(.*?)^\}", program_text, re.M | re.S))

    def parse_computation(computation: str, num_calls: int) -> Iterator[Collective]:
        for line in bodies[computation].splitlines():
            if found := COLLECTIVE_PATTERN.search(line):
                shapes = re.findall(r"(\w+)\[([\d,]*)\]", found.group(1))
                arrays = tuple((dtype, tuple(map(int, filter(None, sizes.split(","))))) for dtype, sizes in shapes)
                source = re.search(r'op_name="([^"]*)"', line)
                yield Collective(
                    found.group(2), arrays, parse_group_size(line), num_calls, source.group(1) if source else ""
                )
            else:
                turns = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                for inner in re.findall(r"%[\w.\-]+", " ".join(CALLED_PATTERN.findall(line))):
                    yield from parse_computation(inner, num_calls * int(turns.group(1) if turns else 1))

    return parse_computation(re.search(r"^ENTRY (%[\w.\-]+)", program_text, re.M).group(1), 1)


def parse_group_size(line: str) -> int:
    """The devices that one collective joins: of {{0,1},{2,3}}, [2,2]<=[4] or mesh['x'=2,'y'=2] {'y'} they are 2.

    A permutation has no groups, and counts as one between 2.
    """
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(listed.group(1).split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(counted.group(1))
    if named := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named.group(2)))
    return 2


def compile_train_step(experiment: Experiment, vocab: VocabInfo, mesh):
    """`train_step` compiled for the first phase's batches, unpacked, on a mesh of devices: from shapes, no memory."""
    module, phase = experiment.objective.module(experiment.model, vocab), experiment.phases[0]
    abstract_leaf = lambda x, leaf_sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=leaf_sharding)
    state = jax.eval_shape(
        partial(step.init_train_state, module=module, optimizer=experiment.optimizer), experiment.seed
    )
    state = jax.tree.map(abstract_leaf, state, sharding.infer_shardings(state, mesh))
    abstract_rows = lambda x: jax.ShapeDtypeStruct(
        (phase.batch_size, *x.shape[1:]), x.dtype, sharding=sharding.make_batch_sharding(mesh)
    )
    batch = jax.tree.map(abstract_rows, step.make_blank_batch(phase.seq_length, experiment.objective.required_fields))
    return step.train_step.lower(state, batch, experiment.seed, **step.build_static_args(experiment, module)).compile()


def build_communication_work(spec: dict) -> tuple[Callable[[], float], dict]:
    """No work to be timed; the facts are the bytes that a device sends in a step, by kind."""
    experiment = from_json_value(spec["experiment"])
    program = compile_train_step(
        experiment, make_blank_vocab(experiment.model.vocab_size), experiment.mesh.build()
    ).as_text()
    sent = dict.fromkeys(COLLECTIVE_KINDS, 0.0)
    for each in parse_collectives(program):
        sent[each.kind] += each.sent_bytes
    return lambda: 0.0, {"sent": sent}


def measure_communication(experiments: Sequence[Experiment], options) -> Iterator[ResultRow]:
    """What a device sends in a step of each phase, in each of `LAYOUTS` of eight devices, and how long that takes.

    The batch is that of eight devices. More devices are more eights with rows of their own, which add up their
    gradients: each device those of its eighth. Nothing overlaps and nothing waits.
    """
    for member in experiments:
        for phase in member.phases:
            added = 0.0
            for mesh in MESH_LAYOUTS:
                axes = ", ".join(f"{name}={size}" for name, size in vars(mesh).items() if size > 1)
                name = f"{member.name}, {phase.batch_size} x {phase.seq_length}, {axes}"
                sent = measure_sent_bytes(name, replace(member, phases=(phase,), mesh=mesh), options)
                if not sent:
                    break
                total = sum(sent.values())
                added = added or total  # of the first layout, where only gradients are sent
                row = {"what": name, "GB": total / 1e9}
                row |= {kind: sent[kind] / 1e9 for kind in ("all-reduce", "all-gather")}
                yield row | {
                    f"{link} {devices}, ms": 1e3
                    * (total / inside + added / DEVICES_PER_NODE * compute_gradient_share(devices) / between)
                    for link, (inside, between) in LINK_BANDWIDTHS.items()
                    for devices in DEVICE_COUNTS
                }


def measure_sent_bytes(name: str, experiment: Experiment, options) -> dict[str, float]:
    """Bytes that a device sends in a step, by kind; none, and `options.log` is told why, where it does not compile."""
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(DEVICES_PER_NODE)}
    variant = Variant(name, "links", {"experiment": to_json_value(experiment)}, environment)
    found = time_alternately([variant], 0, 1, options.core, options.log)
    options.variant_records.update((name, timing.info) for name, timing in found.items())
    return found[name].info["sent"] if found else {}


def compute_gradient_share(num_devices: int) -> float:
    """Of what an eight sends to add up gradients, the part that each of more eights sends: a ring sends (n - 1) / n."""
    eights = num_devices / DEVICES_PER_NODE
    return (eights - 1) / eights / ((DEVICES_PER_NODE - 1) / DEVICES_PER_NODE)
