"""StableAdamW and Muon: their formulas, layer by layer of a stack, and runs that resume."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

from encoders.model.encoder import is_stacked
from encoders.run.run import Run
from encoders.training.optimizer import AdamW, Muon, StableAdamW, flatten_with_paths
from encoders.training.schedules import PiecewiseSchedule, SchedulePiece, WarmupStableDecay
from tests import texts
from tests.refusals import raises_naming
from tests.run.test_loop import assert_stopped_run_is_the_same, experiment
from tests.training.test_optimizer import CLOSE, model, run, unstacked

STEPS, WARMUP, TOTAL = 6, 2, 10
STABLE = StableAdamW(0.02, WARMUP, 0.1, betas=(0.8, 0.9), eps=1e-3, schedule=WarmupStableDecay(0.5))
DECAYING = [min(1, step / WARMUP) * (1 - max(0, (step - 5) / 5) ** 0.5) for step in range(STEPS)]


class StableReference:
    """StableAdamW of one tensor in float64, as modern recipes publish it: one step at a time."""

    def __init__(self, optimizer: StableAdamW, theta, decays: bool):
        self.optimizer, self.theta, self.decay = optimizer, np.float64(theta), optimizer.weight_decay * decays
        self.m, self.v, self.t, self.ratios = np.zeros_like(self.theta), np.zeros_like(self.theta), 0, []

    def step(self, g, rate: float):
        self.t += 1
        (beta1, beta2), eps = self.optimizer.betas, self.optimizer.eps
        debias = lambda beta: (beta**self.t - beta) / (beta**self.t - 1)
        self.m = debias(beta1) * self.m + (1 - debias(beta1)) * g
        self.v = debias(beta2) * self.v + (1 - debias(beta2)) * g**2
        r = np.sqrt(np.mean(g**2 / np.maximum(self.v, eps**2)))
        self.ratios.append(r)
        eta = rate / max(1, r)
        self.theta = self.theta * (1 - eta / self.optimizer.learning_rate * self.decay)
        self.theta = self.theta - eta * self.m / (np.sqrt(self.v) + eps)


def gradients_of(step: int) -> dict:
    """Gradients of one step, which are several times larger in every other one, so that r exceeds 1 there."""
    return jax.tree.map(lambda leaf: leaf * np.float32(1 + 3 * (step % 2)), model(10 + 10 * step))


def train_trees(optimizer, params) -> list[dict]:
    """The parameters after each of `STEPS` steps."""
    transform = optimizer.build_transformation(TOTAL)
    state, update, after = transform.init(params), jax.jit(transform.update), []
    for step in range(STEPS):
        updates, state = update(gradients_of(step), state, params)
        params = optax.apply_updates(params, updates)
        after.append(params)
    return after


@pytest.mark.parametrize("no_decay", [STABLE.no_decay, ()])
def test_stable_adamw_is_the_published_formula_with_one_clip_a_layer(no_decay):
    optimizer = replace(STABLE, no_decay=no_decay)
    decays = lambda path: not no_decay or not (path.endswith("bias") or "norm/" in path)
    references = {p: StableReference(optimizer, leaf, decays(p)) for p, leaf in unstacked(model(0)).items()}
    assert len(references) == 3 * 3 + 2 + 1
    for step, params in enumerate(train_trees(optimizer, model(0))):
        for path, gradient in unstacked(gradients_of(step)).items():
            references[path].step(gradient.astype(np.float64), 0.02 * DECAYING[step])
            np.testing.assert_allclose(unstacked(params)[path], references[path].theta, rtol=2e-5, atol=1e-6)
    ratios = np.array([reference.ratios for reference in references.values()])
    assert (ratios > 1.2).any(axis=1).all() and (ratios[:, 2::2] < 0.9).any()  # the clip works, and not always
    layers = [reference.ratios for path, reference in references.items() if "query/kernel" in path]
    assert np.ptp(layers, axis=0).max() > 0.1  # layers differ, so that one clip of a whole stack would show


def test_a_fused_projection_is_clipped_as_one_tensor():
    sides = {"small": np.full((2, 3), 0.1, np.float32), "large": np.full((2, 3), 9.0, np.float32)}
    fused = {"layers": {"qkv": {"kernel": np.concatenate([*sides.values()], axis=1)[None]}}}
    optimizer = StableAdamW(1.0, 0, 0.0, schedule="constant")
    steps = [fused, jax.tree.map(lambda leaf: leaf * np.float32(7), fused)]
    transform = optimizer.build_transformation(2)
    state = transform.init(fused)
    for gradients in steps:
        updates, state = transform.update(gradients, state, fused)
    reference = StableReference(optimizer, fused["layers"]["qkv"]["kernel"], decays=False)
    for gradients in steps:
        before = reference.theta
        reference.step(gradients["layers"]["qkv"]["kernel"].astype(np.float64), 1.0)
    assert reference.ratios[-1] > 1.2
    np.testing.assert_allclose(updates["layers"]["qkv"]["kernel"], reference.theta - before, rtol=1e-5)


def test_the_decay_of_stable_adamw_follows_the_schedule_and_not_the_peak_rate():
    params, after = model(0), []
    for rate in (1e-3, 1e-1):
        optimizer = StableAdamW(rate, 0, 0.25, schedule="constant")
        transform = optimizer.build_transformation(10)
        updates, _ = transform.update(jax.tree.map(np.zeros_like, params), transform.init(params), params)
        after.append(updates["encoder"]["layers"]["attend"]["query"]["kernel"])
    kernel = params["encoder"]["layers"]["attend"]["query"]["kernel"]
    for update in after:
        np.testing.assert_allclose(update, -0.25 * kernel, rtol=1e-6)


def test_muon_is_that_of_optax_for_each_matrix_of_layers_and_adamw_for_the_rest():
    changes = dict(weight_decay=0.1, clip_norm=None, schedule="peak")
    muon, adamw = Muon(0.05, 2, **changes), AdamW(0.05, 2, bias_correction=True, **changes)
    rate = lambda step: muon.compute_learning_rate(step, 10)
    reference = optax.contrib.muon(rate, weight_decay=0.1, consistent_rms=0.2)
    is_matrix = lambda path, leaf: is_stacked(path) and leaf.ndim == 3
    params, rest = model(0), run(adamw, model(0))
    matrices = {
        f"{p}/{i}": leaf[i] for p, leaf in flatten_with_paths(params) if is_matrix(p, leaf) for i in range(len(leaf))
    }
    assert len(matrices) == 3 + 2 and {leaf.shape for leaf in matrices.values()} == {(2, 5), (5, 4)}
    state = reference.init(matrices)
    for step, updates in enumerate(run(muon, params)):
        gradients = dict(flatten_with_paths(model(10 + 10 * step)))
        apart = {path: gradients[path.rpartition("/")[0]][int(path.rpartition("/")[2])] for path in matrices}
        expected, state = reference.update(apart, state, matrices)
        matrices = optax.apply_updates(matrices, expected)
        adam = dict(flatten_with_paths(rest[step]))
        for path, update in flatten_with_paths(updates):
            if is_matrix(path, update):
                wanted = np.stack([expected[f"{path}/{i}"] for i in range(len(update))])
                np.testing.assert_allclose(update, wanted, rtol=1e-4, atol=1e-6)  # five iterations in float32
            else:
                np.testing.assert_allclose(update, adam[path], **CLOSE)


def test_an_update_of_muon_has_nearly_equal_singular_values():
    params = {"layers": {"up": {"kernel": np.float32(np.random.default_rng(0).normal(size=(2, 24, 8)))}}}
    params["layers"]["up"]["kernel"][1] = 100 * params["layers"]["up"]["kernel"][0]
    transform = Muon(1.0, 0, 0.0, schedule="constant").build_transformation(10)
    updates, _ = transform.update(params, transform.init(params), params)
    values = np.linalg.svd(updates["layers"]["up"]["kernel"], compute_uv=False) / (0.2 * 24**0.5)
    assert values.shape == (2, 8) and values.min() > 0.6 and values.max() < 1.3
    first, second = updates["layers"]["up"]["kernel"]
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-5)  # whatever the size of a layer's gradient


@pytest.mark.live
@pytest.mark.parametrize(
    "optimizer",
    [
        StableAdamW(1e-2, 1, schedule=PiecewiseSchedule((SchedulePiece(2), SchedulePiece(4, 0.5, 0.0)))),
        Muon(1e-2, 1, schedule=WarmupStableDecay(0.5, "linear")),
    ],
    ids=["stable", "muon"],
)
def test_a_run_of_a_later_optimizer_and_schedule_resumes_to_the_same_bits(optimizer, tmp_path):
    made = experiment(
        str(texts.write(tmp_path / "text.txt", documents=60)), "bert", tmp_path, steps=4, optimizer=optimizer
    )
    assert_stopped_run_is_the_same(made, tmp_path, num_stops=3)
    assert Run.open(tmp_path / "stopped").experiment.optimizer == optimizer


@pytest.mark.parametrize(
    "kind, field, value",
    [(StableAdamW, "betas", (0.9,)), (StableAdamW, "eps", 0.0), (Muon, "momentum", 1.0), (Muon, "update_rms", 0.0)],
)
def test_a_wrong_value_is_refused_by_name(kind, field, value):
    with raises_naming(ValueError, f"optimizer.{field}={value!r}"):
        kind(0.1, 1, **{field: value})
