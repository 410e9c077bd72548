"""Cost of an experiment: parameters by part, matrix-product FLOPs and memory, computed from shapes alone.

`compute_forward_flops` and `list_trained_configs` dispatch on the class of the objective: an objective from elsewhere
costs its encoder alone unless it registers its own.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import cache, singledispatch

import jax
import numpy as np

from encoders.data.stream import Phase, expand_batch_ramps
from encoders.experiment import Experiment
from encoders.model.config import EncoderConfig
from encoders.model.encoder import find_encoder_name, is_stacked, merge_word_tables
from encoders.model.flops import forward_flops, masked_token_head_flops
from encoders.objectives.base import Objective
from encoders.objectives.causal_lm import CausalLM
from encoders.objectives.generator import GeneratorObjective
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.restored_tokens import ReplaceMLM
from encoders.tasks.contrastive import Contrastive
from encoders.text.tokenization import make_blank_vocab
from encoders.training import sharding, step
from encoders.training.optimizer import flatten_with_paths

FlopsByPart = dict[str, np.ndarray]


def eval_param_shapes(config: EncoderConfig, objective) -> dict:
    """Return the shapes of all parameters, without allocating them."""
    return step.eval_module_shapes(objective.module(config, make_blank_vocab(config.vocab_size)))


def count_params(tree) -> int:
    """Return the number of parameters in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def count_params_by_part(tree) -> dict[str, int]:
    """Return the number of parameters of each head and of each encoder's embeddings, projection and layer parts."""
    sizes: Counter = Counter()
    for path, leaf in flatten_with_paths(tree):
        names = path.split("/")
        networks = names[0] in ("encoder", "generator", "discriminator")
        depth = (3 if is_stacked(path) or names[1] == "embed" else 2) if networks else 1
        sizes["/".join(names[:depth])] += math.prod(leaf.shape)
    return dict(sizes)


@singledispatch
def compute_forward_flops(objective: Objective, config: EncoderConfig, example_lengths: np.ndarray) -> FlopsByPart:
    """Return the forward FLOPs of examples of `example_lengths` tokens, by the top-level parameters that they use.

    Heads of a few outputs are left out.
    """
    return {"encoder": forward_flops(config, example_lengths)}


@compute_forward_flops.register
def _(objective: MaskedLM | CausalLM, config: EncoderConfig, example_lengths: np.ndarray) -> FlopsByPart:
    num_predictions = example_lengths - 1
    if isinstance(objective, MaskedLM):
        num_predictions = objective.masking.count_predictions(example_lengths)
    head = masked_token_head_flops(config, num_predictions)
    return {"encoder": forward_flops(config, example_lengths), "tokens": head}


@compute_forward_flops.register
def _(objective: GeneratorObjective, config: EncoderConfig, example_lengths: np.ndarray) -> FlopsByPart:
    parts = {"discriminator": forward_flops(config, example_lengths)}
    num_masked = objective.masking.count_predictions(example_lengths)
    generator = objective.get_generator_config(config)
    if generator is not None:
        parts["generator"] = forward_flops(generator, example_lengths)
        parts["tokens"] = masked_token_head_flops(generator, num_masked)
    if isinstance(objective, ReplacedTokenDetection):
        parts["replaced"] = example_lengths * 2.0 * (config.hidden_size**2 + config.hidden_size)
    if isinstance(objective, ReplaceMLM):
        num_restored = num_masked if objective.loss_over == "chosen" else example_lengths
        parts["restored"] = masked_token_head_flops(config, num_restored)
    return parts


@compute_forward_flops.register
def _(objective: Contrastive, config: EncoderConfig, example_lengths: np.ndarray) -> FlopsByPart:
    whole = forward_flops(config, example_lengths)
    if objective.masking:
        num_masked = objective.masking.count_predictions(example_lengths)
        num_passes = 2 if objective.loss.compares_vectors else 1
        return {"encoder": num_passes * whole, "tokens": masked_token_head_flops(config, num_masked)}
    if not objective.deletion_rate:
        return {"encoder": whole}
    shortened = forward_flops(config, (1 - objective.deletion_rate) * example_lengths)
    memory = example_lengths * config.num_layers * 4.0 * config.hidden_size**2
    return {
        "encoder": shortened + (whole if objective.loss.compares_vectors else 0),
        "decoder": whole + memory,
        "tokens": masked_token_head_flops(config, example_lengths - 1),
    }


@singledispatch
def list_trained_configs(objective: Objective, config: EncoderConfig) -> list[EncoderConfig]:
    """Return the configs of the encoders that an update trains."""
    return [config]


@list_trained_configs.register
def _(objective: GeneratorObjective, config: EncoderConfig) -> list[EncoderConfig]:
    generator = objective.get_generator_config(config)
    return [config] if generator is None or "generator" in objective.frozen_params else [config, generator]


def step_flops(experiment: Experiment, example_lengths: np.ndarray, mask_rate: float | None = None) -> np.ndarray:
    """Return the matrix-product FLOPs of training on examples of `example_lengths` tokens: three forward passes.

    `mask_rate` is that of a phase. Frozen parts count one. Padding, recomputation, softmax and the heads of tasks count
    nothing.
    """
    objective = experiment.objective.replace_mask_rate(mask_rate)
    parts = compute_forward_flops(objective, experiment.model, example_lengths)
    return sum(flops * (1 if part in objective.frozen_params else 3) for part, flops in parts.items())


def run_flops(experiment: Experiment) -> float:
    """Return the `step_flops` of all steps, for full rows."""
    row_flops = lambda phase: step_flops(experiment, np.array([phase.seq_length]), phase.mask_rate).item()
    return sum(rows * row_flops(phase) for rows, phase in count_phase_rows(experiment))


def count_phase_rows(experiment: Experiment) -> list[tuple[int, Phase]]:
    """Return the number of rows of each phase, and of each size of a batch ramp, with the phase."""
    phases = expand_batch_ramps(experiment.phases)
    starts = (0, *(phase.until_step for phase in phases))
    return [
        ((phase.until_step - start) * phase.batch_size, phase) for phase, start in zip(phases, starts, strict=False)
    ]


@cache
def count_encoder_params(config: EncoderConfig, objective) -> int:
    """Return the number of parameters of encoder and pooler, as papers count them."""
    tree = jax.eval_shape(merge_word_tables, eval_param_shapes(config, objective))
    return count_params(tree[find_encoder_name(tree)]) + (count_params(tree["pooler"]) if "pooler" in tree else 0)


def count_saved_activations(config: EncoderConfig, seq_length: int) -> int:
    """Return the activations saved for the backward pass, for each token, without rematerialisation.

    A layer saves about 10 d + 4 f, or 6 f where a gate multiplies them, and for stored attention weights 3 a head and
    attended token: in a window those of two blocks.
    """
    spans = [seq_length if window is None else min(seq_length, 2 * window) for window in config.layer_windows]
    weights = 3 * config.num_heads * sum(spans) if config.attention_impl == "xla" else 0
    inner = 2 * config.feed_forward.num_matrices * config.intermediate_size
    return config.num_layers * (10 * config.hidden_size + inner) + weights


def estimate_memory(experiment: Experiment, mesh=None) -> dict[str, float]:
    """Return the estimated bytes on a device of `mesh`, or on a single device: parameters, gradients, activations.

    Rematerialisation saves only the layers' inputs ("full") or matrix products ("dots"). Activations are not divided by
    `mesh.model`.
    """
    model, tree = experiment.model, eval_param_shapes(experiment.model, experiment.objective)
    count, devices = count_params(tree), 1
    if mesh is not None:
        places = sharding.infer_shardings(tree, mesh)
        local = jax.tree.map(lambda leaf, place: math.prod(place.shard_shape(leaf.shape)), tree, places)
        count, devices = sum(jax.tree.leaves(local)), sharding.count_batch_shards(mesh)

    def activation_bytes(config: EncoderConfig, seq_length: int) -> int:
        activations = {
            "none": count_saved_activations(config, seq_length),
            "dots": config.num_layers * (6 * config.hidden_size + config.intermediate_size),
            "full": config.num_layers * config.hidden_size,
        }
        return (2 if model.dtype == "bfloat16" else 4) * activations[config.remat]

    activations = 0.0
    for phase in experiment.phases:
        tokens = phase.batch_size / experiment.grad_accum_steps * phase.seq_length
        configs = list_trained_configs(experiment.objective, model)
        activations = max(activations, tokens * sum(activation_bytes(c, phase.seq_length) for c in configs))
    return {"parameters and moments": 12.0 * count, "gradients": 4.0 * count, "activations": activations / devices}


def format_gibibytes(num_bytes: dict[str, float]) -> str:
    """Return the sum of the sizes, and each of them, as text."""
    inner = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in num_bytes.items())
    return f"{sum(num_bytes.values()) / 2**30:.2f} GiB ({inner})"


def describe_embedding_size(config: EncoderConfig) -> str:
    """Return the parameters of plain (V x H) and factorised (V x E + E x H) embeddings as text."""
    v, e, h = config.vocab_size, config.embedding_size, config.hidden_size
    line = f"V x H = {v:,} x {h:,} = {v * h / 1e6:.2f} M"
    if e != h:
        line += f"; factorised V x E + E x H = {v:,} x {e} + {e} x {h:,} = {(v * e + e * h) / 1e6:.2f} M"
    return line


def format_ledger(experiment: Experiment) -> str:
    """Return the costs of an experiment as text."""
    tree = eval_param_shapes(experiment.model, experiment.objective)
    sizes = count_params_by_part(tree)
    width = max(map(len, sizes))
    lines = [f"  {name:{width}} {size:>13,}" for name, size in (sizes | {"total": count_params(tree)}).items()]
    lines.append(f"embedding: {describe_embedding_size(experiment.model)}")
    for phase in experiment.phases:
        length, row = phase.seq_length, np.array([phase.seq_length])
        objective = experiment.objective.replace_mask_rate(phase.mask_rate)
        forward = sum(compute_forward_flops(objective, experiment.model, row).values())
        training = step_flops(experiment, row, phase.mask_rate)
        training, forward = (flops.item() / length / 1e6 for flops in (training, forward))
        row_kind = f"{length}" if phase.mask_rate is None else f"{length} and mask rate {phase.mask_rate:g}"
        lines.append(f"FLOPs per token at length {row_kind}: {training:,.1f} M in training, {forward:,.1f} M forward")
    lines.append(f"memory, estimated, on one device: {format_gibibytes(estimate_memory(experiment))}")
    if (mesh := experiment.mesh.build_abstract(jax.device_count())).size > 1:
        axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
        lines.append(f"on each of {mesh.size} devices ({axes}): {format_gibibytes(estimate_memory(experiment, mesh))}")
    return "\n".join(lines)
