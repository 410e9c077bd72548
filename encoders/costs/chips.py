"""Accelerators: what the makers' data sheets say of each, and the topologies that `price` takes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from encoders.utils.errors import UserError


@dataclass(frozen=True)
class Chip:
    """Peak rates of one accelerator.

    `cycle_flops` are the FLOPs of a cycle in XLA's estimates, 0 where it makes none.
    """

    peak_flops: float  # dense bfloat16 products, FLOP/s
    memory_bytes: float
    memory_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s that it sends to its neighbours over all its links
    network_bandwidth: float  # bytes/s that it sends to other slices of TPUs, or other nodes of GPUs
    source: str
    device_kind: str  # how JAX calls it, in part
    cycle_flops: int = 0

    @property
    def clock(self) -> float:
        """Return the cycles a second of XLA's estimates."""
        return self.peak_flops / self.cycle_flops


TPU_PAGES = "https://cloud.google.com/tpu/docs/"
NVIDIA_PAGES = "https://www.nvidia.com/en-us/data-center/"
# TPUs send half of the bidirectional bandwidth that their pages give, and share their host's network (assumed as 100
# Gb/s a chip for v6e). They multiply in units of 128 x 128 (four in v5e, eight in v5p) or 256 x 256 (four in v6e, as
# the peak rate and the estimates of XLA have it).
CHIPS = {
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 3.125e9, f"{TPU_PAGES}v5e", "TPU v5 lite", 4 * 2 * 128**2),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 6.25e9, f"{TPU_PAGES}v5p", "TPU v5", 8 * 2 * 128**2),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 400e9, 12.5e9, f"{TPU_PAGES}v6e", "TPU v6 lite", 4 * 2 * 256**2),
    "a100": Chip(312e12, 80e9, 2039e9, 300e9, 25e9, f"{NVIDIA_PAGES}a100/", "A100"),
    "h100": Chip(989e12, 80e9, 3350e9, 450e9, 50e9, f"{NVIDIA_PAGES}h100/", "H100"),
    "h200": Chip(989e12, 141e9, 4800e9, 450e9, 50e9, f"{NVIDIA_PAGES}h200/", "H200"),
}


def find_chip(device_kind: str) -> str | None:
    """Return the name of the chip that JAX calls `device_kind`, or None where it is not known.

    >>> find_chip("TPU v5 lite"), find_chip("NVIDIA H100 80GB HBM3"), find_chip("cpu")
    ('v5e', 'h100', None)
    """
    return next((name for name, chip in CHIPS.items() if chip.device_kind in device_kind), None)


@dataclass(frozen=True)
class Topology:
    """Accelerators that are joined: a grid of TPUs such as v5e:4x4, or a node of GPUs such as h200:8, or several."""

    chip_name: str
    grid: tuple[int, ...]
    num_slices: int = 1  # of TPUs, or nodes of GPUs; each has the grid

    @property
    def slice_name(self) -> str:
        return f"{self.chip_name}:{'x'.join(map(str, self.grid))}"

    @property
    def name(self) -> str:
        return self.slice_name if self.num_slices == 1 else f"{self.num_slices}*{self.slice_name}"

    @property
    def chip(self) -> Chip:
        return CHIPS[self.chip_name]

    @property
    def num_chips(self) -> int:
        return self.num_slices * math.prod(self.grid)

    @property
    def is_tpu(self) -> bool:
        """True where XLA's compiler for TPUs knows the chip."""
        return self.chip.cycle_flops > 0


def parse_topologies(text: str) -> list[Topology]:
    """Return the topologies in a list such as v5e:4x4,h200:8. Raises `UserError` for one that is not known."""
    topologies = []
    for name in filter(None, text.split(",")):
        found = re.fullmatch(r"(?:([1-9]\d*)\*)?(\w+):([1-9]\d*(?:x[1-9]\d*)*)", name.strip())
        if not found or found.group(2) not in CHIPS:
            raise UserError(
                f"--on {name}: a topology is a chip and its grid or number, such as v5e:4x4, 2*v5p:2x2x2 or h200:8; "
                f"the chips are {', '.join(CHIPS)}"
            )
        grid = tuple(map(int, found.group(3).split("x")))
        topologies.append(Topology(found.group(2), grid, int(found.group(1) or 1)))
    if not topologies:
        raise UserError("--on names no topology; it takes a list such as v5e:4x4,h200:8")
    return topologies
