"""What an experiment costs: parameters by part, matrix-product FLOPs per token, memory. All without allocating it."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache

import jax
import numpy as np

from encoders.experiment import Experiment
from encoders.model.config import Model
from encoders.text.tokenization import Facts
from encoders.training import sharding, step
from encoders.training.optimizer import leaves, stacked


def blank_facts(size: int) -> Facts:
    """A vocabulary of `size` entries of which nothing but the size is known."""
    return Facts(size=size, pad=0, unk=1, cls=2, sep=3, mask=4, special=(0, 1, 2, 3, 4), continuations=b"", common=5)


def shapes(model: Model, objective) -> dict:
    """Shapes of all parameters, by `eval_shape`: any size, no memory."""
    return jax.eval_shape(lambda: step.parameters(0, objective.module(model, blank_facts(model.vocab))))


def parameters(tree) -> int:
    """The number of parameters in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def by_part(tree) -> dict[str, int]:
    """Parameters by part: the networks' embeddings, projections and layer parts, and the heads."""
    sizes: Counter = Counter()
    for path, leaf in leaves(tree):
        names = path.split("/")
        networks = names[0] in ("encoder", "generator", "discriminator")
        depth = (3 if stacked(path) or names[1] == "embed" else 2) if networks else 1
        sizes["/".join(names[:depth])] += math.prod(leaf.shape)
    return dict(sizes)


def step_flops(experiment: Experiment, sizes: np.ndarray) -> np.ndarray:
    """Matrix-product FLOPs of a training step for examples of `sizes` tokens: forward, and twice that backward.

    Vocabulary logits count only where the objective needs them; padding, recomputation, softmax, the heads of tasks and
    the like count nothing.
    """
    objective = experiment.objective
    parts = objective.flops(experiment.model, sizes)
    return sum(flops * (1 if part in objective.frozen else 3) for part, flops in parts.items())


def run_flops(experiment: Experiment) -> float:
    """`step_flops` of all steps, for rows that are full."""
    row = lambda length: step_flops(experiment, np.array([length])).item()
    return sum(rows * row(length) for rows, length in run_rows(experiment))


def run_rows(experiment: Experiment) -> list[tuple[int, int]]:
    """Of each phase, how many rows all its steps have and how long they are."""
    starts = (0, *(phase.until for phase in experiment.phases))
    spans = zip(experiment.phases, starts, strict=False)
    return [((phase.until - start) * phase.batch, phase.length) for phase, start in spans]


@cache
def encoder_parameters(model: Model, objective) -> int:
    """Parameters of the encoder that fine-tuning begins with, embeddings and pooler with it: what papers count."""
    tree = shapes(model, objective)
    return parameters(tree[objective.body]) + (parameters(tree["pooler"]) if "pooler" in tree else 0)


def saved_values(model: Model, length: int) -> int:
    """Numbers of a token that the forward pass leaves for the backward one, with nothing rematerialised.

    About 10 d + 4 f a layer and, where attention weights are stored, 3 a head and attended token.
    """
    weights = 3 * model.heads * length if model.attention == "xla" else 0
    return model.layers * (10 * model.hidden + 4 * model.intermediate + weights)


def memory(experiment: Experiment, mesh=None) -> dict[str, float]:
    """Estimated bytes on a device of `mesh`, without one on a device that holds it all: parameters and moments,
    gradients, saved activations.

    Activations are `saved_values`; with rematerialisation only the layers' inputs ("full") or matrix products ("dots").
    They are counted whole along mesh.model.
    """
    model, tree = experiment.model, shapes(experiment.model, experiment.objective)
    count, devices = parameters(tree), 1
    if mesh is not None:
        places = sharding.shardings(tree, mesh)
        local = jax.tree.map(lambda leaf, place: math.prod(place.shard_shape(leaf.shape)), tree, places)
        count, devices = sum(jax.tree.leaves(local)), sharding.shards(mesh)
    item = 2 if model.dtype == "bfloat16" else 4

    def saved(m: Model, length: int) -> float:
        products, inputs = m.layers * (6 * m.hidden + m.intermediate), m.layers * m.hidden
        return item * {"none": saved_values(m, length), "dots": products, "full": inputs}[m.remat]

    networks = experiment.objective.networks(model)
    most = max(
        phase.batch / experiment.accumulate * phase.length * sum(saved(m, phase.length) for m in networks)
        for phase in experiment.phases
    )
    return {"parameters and moments": 12.0 * count, "gradients": 4.0 * count, "activations": most / devices}


def gibibytes(sizes: dict[str, float]) -> str:
    """Sizes in bytes as their sum, and each."""
    inner = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in sizes.items())
    return f"{sum(sizes.values()) / 2**30:.2f} GiB ({inner})"


def embedding_products(model: Model) -> str:
    """The arithmetic of factorised embeddings: V x H beside V x E + E x H."""
    v, e, h = model.vocab, model.embedding, model.hidden
    whole, parts = v * h, v * e + e * h
    line = f"V x H = {v:,} x {h:,} = {whole / 1e6:.2f} M"
    return line if e == h else f"{line}; factorised V x E + E x H = {v:,} x {e} + {e} x {h:,} = {parts / 1e6:.2f} M"


def show(experiment: Experiment) -> str:
    """The ledger as text."""
    tree = shapes(experiment.model, experiment.objective)
    width = max(map(len, by_part(tree)))
    lines = [f"  {name:{width}} {size:>13,}" for name, size in by_part(tree).items()]
    lines += [f"  {'total':{width}} {parameters(tree):>13,}", f"embedding: {embedding_products(experiment.model)}"]
    for phase in experiment.phases:
        row = np.array([phase.length])
        forward = sum(experiment.objective.flops(experiment.model, row).values())
        each = [flops.item() / phase.length / 1e6 for flops in (step_flops(experiment, row), forward)]
        lines.append(
            f"FLOPs per token at length {phase.length}: {each[0]:,.1f} M in training, {each[1]:,.1f} M forward"
        )
    lines.append(f"memory, estimated, on one device: {gibibytes(memory(experiment))}")
    if (mesh := experiment.mesh.abstract(jax.device_count())).size > 1:
        axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
        lines.append(f"on each of {mesh.size} devices ({axes}): {gibibytes(memory(experiment, mesh))}")
    return "\n".join(lines)
