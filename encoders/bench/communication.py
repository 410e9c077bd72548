"""What a training step sends between devices: the collectives in the text of the compiled step, and their bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax

from encoders.bench.rounds import Row, Variant, alternate
from encoders.costs.ledger import blank_facts
from encoders.experiment import Experiment
from encoders.run.loop import static
from encoders.text.tokenization import Facts
from encoders.training import sharding, step
from encoders.training.sharding import Mesh
from encoders.utils.overrides import from_json, to_json

EIGHT = 8  # devices that the fast links join
LAYOUTS = (
    Mesh(data=8),
    Mesh(data=1, fsdp=8),
    Mesh(data=1, model=8),
    Mesh(data=2, fsdp=4),
    Mesh(data=1, fsdp=4, model=2),
)
# Bytes/s that a device is assumed to send, to the others of its eight and to other eights: NVLink and a network of
# 400 Gb/s a GPU; the four links of a TPU v5e.
LINKS = {"NVLink": (450e9, 50e9), "v5e": (200e9, 200e9)}
DEVICES = (8, 64, 1024)
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
ITEM = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}  # else 4
OPERATION = re.compile(rf" = (.*?) ({'|'.join(KINDS)})\(")
CALLED = re.compile(r"(?:body|condition|calls|to_apply|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")


@dataclass(frozen=True)
class Collective:
    """An operation by which each device of a group of `group` gets `arrays`, `times` a step.

    `arrays` are pairs of dtype and shape on a device; `source` is the path that the program gives the operation.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    group: int
    times: int
    source: str

    @property
    def bytes(self) -> int:
        """Of the arrays, once."""
        return sum(ITEM.get(dtype, 4) * math.prod(shape) for dtype, shape in self.arrays)

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a step, where the group is a ring."""
        rest = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * rest, "reduce-scatter": self.group - 1, "collective-permute": 1}
        return self.times * self.bytes * factor.get(self.kind, rest)


def collectives(program: str) -> Iterator[Collective]:
    """The collectives of a compiled program's text; those in a loop count as often as it turns."""
    bodies = dict(re.findall(r"^(?:ENTRY )?(%[\w.\-]+) \([^\n]*\{\n(.*?)^\}", program, re.M | re.S))

    def inside(name: str, times: int) -> Iterator[Collective]:
        for line in bodies[name].splitlines():
            if found := OPERATION.search(line):
                shapes = re.findall(r"(\w+)\[([\d,]*)\]", found.group(1))
                arrays = tuple((dtype, tuple(map(int, filter(None, sizes.split(","))))) for dtype, sizes in shapes)
                source = re.search(r'op_name="([^"]*)"', line)
                yield Collective(found.group(2), arrays, group(line), times, source.group(1) if source else "")
            else:
                turns = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                for inner in re.findall(r"%[\w.\-]+", " ".join(CALLED.findall(line))):
                    yield from inside(inner, times * int(turns.group(1) if turns else 1))

    return inside(re.search(r"^ENTRY (%[\w.\-]+)", program, re.M).group(1), 1)


def group(line: str) -> int:
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


def compiled_step(experiment: Experiment, facts: Facts, mesh):
    """`train_step` compiled for the first phase's batches, unpacked, on a mesh of devices: from shapes, no memory."""
    module, phase = experiment.objective.module(experiment.model, facts), experiment.phases[0]
    shaped = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
    state = jax.eval_shape(partial(step.init, module=module, optimizer=experiment.optimizer), experiment.seed)
    state = jax.tree.map(shaped, state, sharding.shardings(state, mesh))
    rows = lambda x: jax.ShapeDtypeStruct((phase.batch, *x.shape[1:]), x.dtype, sharding=sharding.batch_sharding(mesh))
    batch = jax.tree.map(rows, step.blank(phase.length, experiment.objective.needs))
    return step.train_step.lower(state, batch, experiment.seed, **static(experiment, module)).compile()


def build(spec: dict) -> tuple[Callable[[], float], dict]:
    """No work to be timed; the facts are the bytes that a device sends in a step, by kind."""
    experiment = from_json(spec["experiment"])
    program = compiled_step(experiment, blank_facts(experiment.model.vocab), experiment.mesh.build()).as_text()
    sent = dict.fromkeys(KINDS, 0.0)
    for each in collectives(program):
        sent[each.kind] += each.sent
    return lambda: 0.0, {"sent": sent}


def links(members: Sequence[Experiment], options) -> Iterator[Row]:
    """What a device sends in a step of each phase, in each of `LAYOUTS` of eight devices, and how long that takes.

    The batch is that of eight devices. More devices are more eights with rows of their own, which add up their
    gradients: each device those of its eighth. Nothing overlaps and nothing waits.
    """
    for member in members:
        for phase in member.phases:
            added = 0.0
            for mesh in LAYOUTS:
                axes = ", ".join(f"{name}={size}" for name, size in vars(mesh).items() if size > 1)
                name = f"{member.name}, {phase.batch} x {phase.length}, {axes}"
                sent = sends(name, replace(member, phases=(phase,), mesh=mesh), options)
                if not sent:
                    break
                total = sum(sent.values())
                added = added or total  # of the first layout, where only gradients are sent
                row = {"what": name, "GB": total / 1e9}
                row |= {kind: sent[kind] / 1e9 for kind in ("all-reduce", "all-gather")}
                yield row | {
                    f"{link} {devices}, ms": 1e3 * (total / inside + added / EIGHT * share(devices) / between)
                    for link, (inside, between) in LINKS.items()
                    for devices in DEVICES
                }


def sends(name: str, experiment: Experiment, options) -> dict[str, float]:
    """Bytes that a device sends in a step, by kind; none, and `options.say` is told why, where it does not compile."""
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(EIGHT)}
    variant = Variant(name, "links", {"experiment": to_json(experiment)}, environment)
    found = alternate([variant], 0, 1, options.core, options.say)
    options.variants.update((name, timing.facts) for name, timing in found.items())
    return found[name].facts["sent"] if found else {}


def share(devices: int) -> float:
    """Of what an eight sends to add up gradients, the part that each of more eights sends: a ring sends (n - 1) / n."""
    eights = devices / EIGHT
    return (eights - 1) / eights / ((EIGHT - 1) / EIGHT)
