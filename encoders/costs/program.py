"""A compiled program read as text: its instructions, what XLA estimates that they take, and its collectives."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

COLLECTIVE_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
COLLECTIVE_REGEX = re.compile(rf" = (.*?) ({'|'.join(COLLECTIVE_KINDS)})(?:-start)?\(")
NETWORK_SEND_REGEX = re.compile(r" = \(?(\w+\[[\d,]*\]).*? send\(.*megascale")  # to another slice of TPUs
INSTRUCTION_REGEX = re.compile(r"^\s+(?:ROOT )?%[\w.\-]+ = .*? ([\w\-]+)\(")
CALLED_REGEX = re.compile(r"(?:calls|to_apply|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")
MAX_CYCLES = 2**40  # of an instruction; XLA writes more where it cannot estimate
# Parts of a step, by the first regex that the path of an operation matches.
STEP_PARTS = (
    ("dropout", r"/Dropout_\d+/|/drop/"),
    ("stacked activations", r"/(while|scan)/body/(jit\()?dynamic_"),  # written and read by the loop over layers
    ("attention", r"/attend/"),
    ("feed-forward", r"/transform/"),
    ("embeddings", r"/(embed|project)/"),
    ("heads and losses", r"jvp\("),
    ("masks", r"/shard_map/"),
    ("optimizer", r"/"),
    ("copies", r""),
)


@dataclass(frozen=True)
class Instruction:
    """An instruction of a compiled program, which runs `num_calls` times; `is_fused` where it is part of another."""

    text: str
    computation: str  # the name of its computation
    num_calls: int
    is_fused: bool

    @property
    def op_path(self) -> str:
        """The path of the operation in the traced function; of a fusion, that of one of its operations."""
        return "".join(re.findall(r'op_name="([^"]*)"', self.text)[:1])

    @property
    def estimated_cycles(self) -> int:
        """XLA's estimate of all its calls, in cycles of a TPU core; 0 where there is none."""
        return 0 if self.has_unknown_cycles else self.num_calls * self.written_cycles

    @property
    def written_cycles(self) -> int:
        """The number that XLA writes as the cycles of a call; 0 where it writes none, and inside a fusion."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.text)
        return int(found.group(1)) if found and not self.is_fused else 0

    @property
    def has_unknown_cycles(self) -> bool:
        """True where XLA writes a number above `MAX_CYCLES`."""
        return self.written_cycles > MAX_CYCLES


def parse_instructions(program_text: str) -> Iterator[Instruction]:
    """Yield the instructions of a compiled program; those in a loop have the number of its turns as calls."""
    bodies = {
        name: text.splitlines()
        for name, text in re.findall(r"^(?:ENTRY )?(%[\w.\-]+) \([^\n]*\{\n(.*?)^\}", program_text, re.M | re.S)
    }

    def parse_computation(name: str, num_calls: int, is_fused: bool) -> Iterator[Instruction]:
        for line in bodies[name]:
            found = INSTRUCTION_REGEX.match(line)
            if not found:
                continue
            yield Instruction(line, name, num_calls, is_fused)
            if loop := re.search(r"condition=(%[\w.\-]+), body=(%[\w.\-]+)", line):
                num_turns = count_loop_turns(line, bodies[loop.group(1)])
                yield from parse_computation(loop.group(2), num_calls * num_turns, is_fused)
            is_inner = is_fused or found.group(1) not in ("call", "conditional", "async-start")
            for called in re.findall(r"%[\w.\-]+", " ".join(CALLED_REGEX.findall(line))):
                yield from parse_computation(called, num_calls, is_inner)

    return parse_computation(re.search(r"^ENTRY (%[\w.\-]+)", program_text, re.M).group(1), 1, False)


def count_loop_turns(loop_line: str, condition: list[str]) -> int:
    """Return the turns of a loop: as XLA for CPUs and GPUs notes them, else the bound of its counter; 1 if unknown."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop_line):
        return int(noted.group(1))
    text = "\n".join(condition)
    compared = re.search(r"ROOT .* compare\(.*?, (%[\w.\-]+)\), direction=LT", text)
    bound = compared and re.search(rf"{re.escape(compared.group(1))} = s32\[\]\S* constant\((\d+)\)", text)
    return int(bound.group(1)) if bound else 1


def count_unknown_cycles(program_text: str) -> int:
    """Return the number of instructions whose cycles XLA does not know."""
    return sum(instruction.has_unknown_cycles for instruction in parse_instructions(program_text))


def sum_cycles_by_part(program_text: str) -> Counter[str]:
    """Return XLA's estimated cycles of a training step by the names of `STEP_PARTS`; only programs for TPUs have any.

    A fusion counts whole for the part of one of its operations. Collectives have no estimate.
    """
    cycles: Counter[str] = Counter()
    for instruction in parse_instructions(program_text):
        if count := instruction.estimated_cycles:
            path = instruction.op_path
            cycles[next(name for name, regex in STEP_PARTS if re.search(regex, path))] += count
    return cycles


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
        factors = {
            "all-reduce": 2 * remaining,
            "reduce-scatter": self.group_size - 1,
            "collective-permute": 1,
            "network send": 1,
        }
        return self.num_calls * self.array_bytes * factors.get(self.kind, remaining)


def parse_collectives(program_text: str) -> Iterator[Collective]:
    """Yield the collectives of a compiled program's text; those in a loop count once a turn.

    A program for TPUs writes one that overlaps with other work several times, with the same channel.
    """
    channels = set()
    for instruction in parse_instructions(program_text):
        if sent := NETWORK_SEND_REGEX.search(instruction.text):
            yield Collective("network send", parse_arrays(sent.group(1)), 2, instruction.num_calls, instruction.op_path)
        if not (found := COLLECTIVE_REGEX.search(instruction.text)):
            continue
        channel = (found.group(2), *re.findall(r"channel_id=(\d+)", instruction.text))
        if len(channel) > 1 and channel in channels:
            continue
        channels.add(channel)
        arrays = parse_arrays(found.group(1))
        is_scattered = "all-reduce-scatter" in instruction.computation  # a fusion for TPUs: each keeps its share
        kind = "all-reduce-scatter" if is_scattered else found.group(2)
        group_size = parse_group_size(instruction.text)
        yield Collective(kind, arrays, group_size, instruction.num_calls, instruction.op_path)


def parse_arrays(text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the dtype and the shape of each array in a type as XLA writes it.

    >>> parse_arrays("(f32[2,3]{1,0}, pred[])")
    (('f32', (2, 3)), ('pred', ()))
    """
    shapes = re.findall(r"(\w+)\[([\d,]*)\]", text)
    return tuple((dtype, tuple(map(int, filter(None, sizes.split(","))))) for dtype, sizes in shapes)


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
