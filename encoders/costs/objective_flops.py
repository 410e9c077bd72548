"""Matrix-product FLOPs of each objective's forward pass, and the encoders that it trains.

Both are single-dispatch functions on the class of the objective: an objective from elsewhere costs its encoder alone
unless it registers its own.
"""

from __future__ import annotations

from functools import singledispatch

import numpy as np

from encoders.model.config import EncoderConfig
from encoders.model.flops import forward_flops, masked_token_head_flops
from encoders.objectives.base import Objective
from encoders.objectives.causal_lm import CausalLM
from encoders.objectives.generator import GeneratorObjective
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.restored_tokens import ReplaceMLM

FlopsByPart = dict[str, np.ndarray]


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


@singledispatch
def list_trained_configs(objective: Objective, config: EncoderConfig) -> list[EncoderConfig]:
    """Return the configs of the encoders that an update trains."""
    return [config]


@list_trained_configs.register
def _(objective: GeneratorObjective, config: EncoderConfig) -> list[EncoderConfig]:
    generator = objective.get_generator_config(config)
    return [config] if generator is None or "generator" in objective.frozen_params else [config, generator]
