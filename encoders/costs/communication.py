"""Communication of a training step between devices: the collectives of its compiled program, and their bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax

from encoders.experiment import Experiment
from encoders.text.tokenization import VocabInfo
from encoders.training import sharding, step

DEVICES_PER_NODE = 8  # joined by the fast links
# Bytes/s that a device sends to the others of its node, and to other nodes: NVLink and a network of 400 Gb/s a GPU;
# the four links of a TPU v5e.
LINK_BANDWIDTHS = {"NVLink": (450e9, 50e9), "v5e": (200e9, 200e9)}
COLLECTIVE_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
COLLECTIVE_REGEX = re.compile(rf" = (.*?) ({'|'.join(COLLECTIVE_KINDS)})\(")
CALLED_REGEX = re.compile(r"(?:body|condition|calls|to_apply|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")


@dataclass(frozen=True)
class Collective:
    """An operation that gives `arrays` to each device of a group of `group_size`, `num_calls` times a step.

    `arrays` are pairs of dtype and shape on a device; `op_path` is the operation's path in the program.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    group_size: int
    num_calls: int
    op_path: str

    @property
    def array_bytes(self) -> int:
        """Return the bytes of the arrays on one device."""
        bits = {dtype: int(re.search(r"\d+|$", dtype).group() or 8) for dtype, _ in self.arrays}  # f32, s64; pred
        return sum(max(bits[dtype] // 8, 1) * math.prod(shape) for dtype, shape in self.arrays)

    @property
    def sent_bytes(self) -> float:
        """Return the bytes that a device sends in a step, where the group is a ring."""
        remaining = (self.group_size - 1) / self.group_size
        factors = {"all-reduce": 2 * remaining, "reduce-scatter": self.group_size - 1, "collective-permute": 1}
        return self.num_calls * self.array_bytes * factors.get(self.kind, remaining)


def parse_collectives(program_text: str) -> Iterator[Collective]:
    """Yield the collectives of a compiled program's text; those in a loop count once a turn."""
    bodies = dict(re.findall(r"^(?:ENTRY )?(%[\w.\-]+) \([^\n]*\{\n(.*?)^\}", program_text, re.M | re.S))

    def parse_computation(name: str, num_calls: int) -> Iterator[Collective]:
        for line in bodies[name].splitlines():
            if collective := COLLECTIVE_REGEX.search(line):
                shapes = re.findall(r"(\w+)\[([\d,]*)\]", collective.group(1))
                arrays = tuple((dtype, tuple(map(int, filter(None, sizes.split(","))))) for dtype, sizes in shapes)
                op_path = "".join(re.findall(r'op_name="([^"]*)"', line)[:1])
                yield Collective(collective.group(2), arrays, parse_group_size(line), num_calls, op_path)
            else:
                trip_count = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                num_turns = int(trip_count.group(1)) if trip_count else 1
                for called in re.findall(r"%[\w.\-]+", " ".join(CALLED_REGEX.findall(line))):
                    yield from parse_computation(called, num_calls * num_turns)

    return parse_computation(re.search(r"^ENTRY (%[\w.\-]+)", program_text, re.M).group(1), 1)


def parse_group_size(line: str) -> int:
    """Return the number of devices that a collective joins; a permutation joins 2.

    XLA writes groups in three ways, here of 2 devices: {{0,1},{2,3}}, [2,2]<=[4] and mesh['x'=2,'y'=2] {'y'}.
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
    """Return `train_step` compiled from shapes, without memory, for unpacked batches of the first phase on a mesh."""
    phase = experiment.phases[0]
    module = experiment.objective.replace_mask_rate(phase.mask_rate).module(experiment.model, vocab)
    init = partial(step.init_train_state, module=module, optimizer=experiment.optimizer)
    state, rows_sharding = jax.eval_shape(init, experiment.seed), sharding.make_batch_sharding(mesh)
    shard = lambda x, leaf_sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=leaf_sharding)
    state = jax.tree.map(shard, state, sharding.infer_shardings(state, mesh))
    shard_rows = lambda x: jax.ShapeDtypeStruct((phase.batch_size, *x.shape[1:]), x.dtype, sharding=rows_sharding)
    blank = step.make_blank_batch(phase.seq_length, experiment.objective.required_fields)
    batch = jax.tree.map(shard_rows, blank)
    return step.train_step.lower(state, batch, experiment.seed, **step.build_static_args(experiment, module)).compile()


def compute_step_seconds(sent_bytes: float, gradient_bytes: float, num_devices: int, link: str) -> float:
    """Return the seconds that a step's communication takes, where nothing overlaps and nothing waits.

    A device sends `sent_bytes` within its node. More nodes have rows of their own and add up their gradients, each
    device those of its share; `gradient_bytes` is what a device sends for that within a node. In a ring of n, a member
    sends in proportion to (n - 1) / n.
    """
    bandwidth_inside, bandwidth_between = LINK_BANDWIDTHS[link]
    between, inside = (1 - 1 / size for size in (num_devices / DEVICES_PER_NODE, DEVICES_PER_NODE))
    between_bytes = gradient_bytes / DEVICES_PER_NODE * between / inside
    return sent_bytes / bandwidth_inside + between_bytes / bandwidth_between
