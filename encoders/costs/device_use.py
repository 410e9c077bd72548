"""Use of the devices while a run trains: shares of their peak rate, and their memory."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from encoders.costs.chips import Topology, find_chip
from encoders.costs.price import StepFloor
from encoders.data.stream import Phase
from encoders.experiment import Experiment


def measure_device_use(
    experiment: Experiment, phase: Phase, steps_per_second: float, devices: Sequence[jax.Device]
) -> dict[str, float]:
    """Return the share of the devices' peak rate, the share of the speed that arithmetic allows at most, and the most
    gigabytes that the first local device held; each where it is known.

    The FLOPs are those of full rows, without recomputation.
    """
    use = {}
    if (chip_name := find_chip(devices[0].device_kind)) is not None:
        floor = StepFloor(experiment, phase, Topology(chip_name, (len(devices),)))
        use["share_of_peak"] = round(floor.product_seconds * steps_per_second, 4)
        use["share_of_floor"] = round(floor.seconds * steps_per_second, 4)
    if memory := jax.local_devices()[0].memory_stats():
        use["device_gigabytes"] = round(memory["peak_bytes_in_use"] / 1e9, 3)
    return use
