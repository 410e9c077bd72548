"""The price of a run before it starts: its training step compiled for accelerators that are not there.

XLA's compiler for TPUs (the extra `tpu`) runs on any machine. Its programs say what a step needs of memory and, by
XLA's own estimate, how many cycles each instruction takes; they are compiled from shapes, so nothing is allocated. For
GPUs no compiler runs here, and what is given is a floor from the configuration alone.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import jax
import numpy as np

from encoders.costs import ledger
from encoders.costs.chips import Topology
from encoders.costs.program import count_unknown_cycles, parse_collectives, sum_cycles_by_part
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.model.config import EncoderConfig
from encoders.objectives.base import Objective
from encoders.text.tokenization import VocabInfo, make_blank_vocab
from encoders.training import sharding, step
from encoders.utils.errors import UserError

# libtpu asks the machine which TPU it is; these stop it, and let several processes compile at once.
COMPILER_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
MEMORY_REGEX = re.compile(r"\(([\d.]+)G\) exceeds available HBM|Used ([\d.]+)G of [\d.]+G hbm")


@dataclass(frozen=True)
class StepPrice:
    """The price of a training step of one phase on a topology.

    `cycles` are XLA's estimates by part of the step, `sent_bytes` those of a chip by kind of collective. Both are None
    for a program that does not fit, and `missing_memory` is the memory that it needs.
    """

    experiment: Experiment
    phase: Phase
    topology: Topology
    argument_bytes: float = 0.0
    temporary_bytes: float = 0.0
    cycles: Counter[str] | None = None
    sent_bytes: Counter[str] | None = None
    missing_memory: str | None = None
    num_unknown: int = 0  # instructions that XLA does not estimate, which count nothing

    @property
    def fits(self) -> bool:
        return self.missing_memory is None

    @property
    def computing_seconds(self) -> float:
        return sum(self.cycles.values()) / self.topology.chip.clock

    @property
    def sending_seconds(self) -> float:
        """Return the seconds that the collectives take, where all links of a chip send."""
        chip, network_bytes = self.topology.chip, self.sent_bytes["network send"]
        inside_bytes = sum(self.sent_bytes.values()) - network_bytes
        return inside_bytes / chip.link_bandwidth + network_bytes / chip.network_bandwidth

    @property
    def seconds(self) -> float:
        """Return the seconds of a step, where nothing overlaps."""
        return self.computing_seconds + self.sending_seconds

    @property
    def tokens_per_second(self) -> float:
        return self.phase.batch_size * self.phase.seq_length / self.seconds

    @property
    def share_of_peak(self) -> float:
        """Return the FLOPs that the step needs, without recomputation, over those of the peak rate in its time."""
        return compute_phase_flops(self.experiment, self.phase) / self.seconds / compute_peak_flops(self.topology)


@dataclass(frozen=True)
class StepFloor:
    """The shortest time of a training step of one phase, by arithmetic from the configuration.

    Products run at the peak rate. Every saved activation moves four times: written and read forward, read backward, and
    its gradient written. Parameters with their moments and gradients move 40 bytes each. The gradients are added up in
    a ring of the devices of a node; more nodes then add up their sums, each device those of its share.
    """

    experiment: Experiment
    phase: Phase
    topology: Topology

    @property
    def product_seconds(self) -> float:
        return compute_phase_flops(self.experiment, self.phase) / compute_peak_flops(self.topology)

    @property
    def memory_seconds(self) -> float:
        experiment, length = self.experiment, self.phase.seq_length
        configs = ledger.list_trained_configs(experiment.objective, experiment.model)
        activations = sum(ledger.count_saved_activations(config, length) for config in configs)
        width = 2 if experiment.model.dtype == "bfloat16" else 4
        moved = 4 * width * activations * self.phase.batch_size * length / self.topology.num_chips
        return (moved + 40 * self.num_params) / self.topology.chip.memory_bandwidth

    @property
    def sending_seconds(self) -> float:
        topology, gradient_bytes = self.topology, 4 * self.num_params
        num_inside = topology.num_chips // topology.num_slices
        inside = 2 * (1 - 1 / num_inside) * gradient_bytes / topology.chip.link_bandwidth
        between = 2 * (1 - 1 / topology.num_slices) * gradient_bytes / num_inside / topology.chip.network_bandwidth
        return inside + between

    @property
    def num_params(self) -> int:
        return count_trained_params(self.experiment.model, self.experiment.objective)

    @property
    def seconds(self) -> float:
        """Return the seconds of a step where all three overlap."""
        return max(self.product_seconds, self.memory_seconds, self.sending_seconds)

    @property
    def tokens_per_second(self) -> float:
        return self.phase.batch_size * self.phase.seq_length / self.seconds


@cache
def count_trained_params(config: EncoderConfig, objective: Objective) -> int:
    return ledger.count_params(ledger.eval_param_shapes(config, objective))


def compute_phase_flops(experiment: Experiment, phase: Phase) -> float:
    """Return the FLOPs of a step of full rows."""
    return ledger.step_flops(experiment, np.array([phase.seq_length]), phase.mask_rate).item() * phase.batch_size


def compute_peak_flops(topology: Topology) -> float:
    return topology.num_chips * topology.chip.peak_flops


def compile_train_step(experiment: Experiment, vocab: VocabInfo, mesh, phase: Phase | None = None):
    """Return `train_step` compiled from shapes, without memory, for batches of a phase (the first) on a mesh.

    Rows of a packed format have the most examples that it puts in one.
    """
    phase = phase or experiment.phases[0]
    module = experiment.objective.replace_mask_rate(phase.mask_rate).module(experiment.model, vocab)
    state = step.eval_state_shapes(module=module, optimizer=experiment.optimizer)
    rows_sharding = sharding.make_batch_sharding(mesh)
    shard = lambda x, leaf_sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=leaf_sharding)
    state = jax.tree.map(shard, state, sharding.infer_shardings(state, mesh))
    blank = step.make_blank_batch(phase.seq_length, experiment.objective.required_fields)
    num_examples = getattr(phase.format, "max_examples_per_row", 1)

    def shard_rows(x):
        width = num_examples if x.shape[1] == 1 else x.shape[1]
        return jax.ShapeDtypeStruct((phase.batch_size, width, *x.shape[2:]), x.dtype, sharding=rows_sharding)

    batch = jax.tree.map(shard_rows, blank)
    return step.train_step.lower(state, batch, experiment.seed, **step.build_static_args(experiment, module)).compile()


@cache
def describe_devices(topology: Topology) -> tuple[jax.Device, ...]:
    """Return the chips of a topology of TPUs, which need not be there.

    Raises `UserError` without the compiler for TPUs, and for a grid that it does not know.
    """
    os.environ.update(COMPILER_ENVIRONMENT | os.environ)  # read when the compiler is loaded
    from jax.experimental import topologies

    try:
        description = topologies.get_topology_desc(topology.slice_name, platform="tpu", num_slices=topology.num_slices)
        return tuple(description.devices)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        if "not installed" in reason:
            reason = "the compiler for TPUs is missing; install the extra tpu"
        raise UserError(f"--on {topology.name}: {reason}") from None


def price_step(experiment: Experiment, phase: Phase, topology: Topology) -> StepPrice:
    """Compile the training step of a phase for a topology of TPUs and return its price.

    Raises `UserError` for a mesh that does not divide the chips, and for rows that do not divide among them.
    """
    mesh = experiment.mesh.build(describe_devices(topology))
    shards = sharding.count_batch_shards(mesh) * experiment.grad_accum_steps
    if phase.batch_size % shards:
        raise UserError(
            f"{experiment.name}: {phase.batch_size} rows do not divide into {shards}: "
            f"{sharding.count_batch_shards(mesh)} shards of {experiment.grad_accum_steps} micro-steps"
        )
    price = StepPrice(experiment, phase, topology)
    try:
        program = compile_train_step(experiment, make_blank_vocab(experiment.model.vocab_size), mesh, phase)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = MEMORY_REGEX.search(str(error))
        needed = f"{next(filter(None, found.groups()))} GiB" if found else str(error).splitlines()[0]
        return replace(price, missing_memory=needed)
    text, memory = program.as_text(), program.memory_analysis()
    sent: Counter[str] = Counter()
    for collective in parse_collectives(text):
        sent[collective.kind] += collective.sent_bytes
    return replace(
        price,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        cycles=sum_cycles_by_part(text),
        sent_bytes=sent,
        num_unknown=count_unknown_cycles(text),
    )


def compute_run_seconds(prices: Sequence[StepPrice] | Sequence[StepFloor]) -> float:
    """Return the seconds of all steps of a run, from the price of a step of each phase; rows of a batch ramp cost the
    same as others."""
    row_seconds = {price.phase.until_step: price.seconds / price.phase.batch_size for price in prices}
    total = 0.0
    for num_rows, phase in ledger.count_phase_rows(prices[0].experiment):
        until_step = min(last for last in row_seconds if last >= phase.until_step)
        total += num_rows * row_seconds[until_step]
    return total
