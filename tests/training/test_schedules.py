import json
from dataclasses import replace

import numpy as np
import optax
import pytest

from encoders.experiment import ExperimentError, apply_settings
from encoders.training.optimizer import AdamW
from encoders.training.schedules import (
    CosineDecay,
    PiecewiseSchedule,
    SchedulePiece,
    WarmupStableDecay,
    compute_rate_fraction,
)
from encoders.utils.serialization import fingerprint_content, from_json_value, to_json_value
from tests.refusals import raises_naming
from tests.run.test_loop import experiment

CLOSE = {"rtol": 1e-6, "atol": 1e-7}  # float32 against float64
STEPS = np.arange(101)
IN_THE_END = np.clip((STEPS - 60) / 40, 0, 1)  # share of a decay over the last 40 of 100 steps
MODERNBERT = PiecewiseSchedule(
    (SchedulePiece(60), SchedulePiece(80, 0.375, 0.375), SchedulePiece(100, 0.375, 0.0, "one_minus_sqrt"))
)


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize(
    "schedule, by_hand",
    [
        (WarmupStableDecay(0.4), 1 - np.sqrt(IN_THE_END)),
        (WarmupStableDecay(0.4, final_fraction=0.5), 0.5 + 0.5 * (1 - np.sqrt(IN_THE_END))),
        (WarmupStableDecay(0.4, "linear", 0.1), 1 - 0.9 * IN_THE_END),
        (WarmupStableDecay(0.4, "cosine"), (1 + np.cos(np.pi * IN_THE_END)) / 2),
        (
            MODERNBERT,
            np.select([STEPS < 60, STEPS < 80], [1.0, 0.375], 0.375 * (1 - np.sqrt(np.clip((STEPS - 80) / 20, 0, 1)))),
        ),
        (PiecewiseSchedule((SchedulePiece(100, 0.2, 0.8),)), 0.2 + 0.6 * STEPS / 100),
    ],
)
def test_a_schedule_is_its_formula_times_the_warm_up(schedule, by_hand, warmup):
    rates = compute_rate_fraction(schedule, STEPS, warmup, 100)
    np.testing.assert_allclose(rates, by_hand * np.minimum(1, STEPS / warmup if warmup else 1), **CLOSE)
    assert rates.dtype == np.float32


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_a_cosine_is_that_of_optax(final):
    reference = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps=10, decay_steps=100, end_value=final)
    rates = compute_rate_fraction(CosineDecay(final), STEPS, 10, 100)
    np.testing.assert_allclose(rates, reference(STEPS), **CLOSE)
    plain = compute_rate_fraction(CosineDecay(final), STEPS, 0, 100)
    np.testing.assert_allclose(plain, final + (1 - final) * (1 + np.cos(np.pi * STEPS / 100)) / 2, **CLOSE)


@pytest.mark.parametrize("schedule", [WarmupStableDecay(1 / 7), CosineDecay(), MODERNBERT])
def test_a_schedule_keeps_its_last_rate_after_its_end(schedule):
    assert compute_rate_fraction(schedule, 130, 10, 100) == compute_rate_fraction(schedule, 100, 10, 100) == 0


def test_a_run_of_a_cosine_may_be_all_warm_up():
    np.testing.assert_array_equal(compute_rate_fraction(CosineDecay(), np.arange(8), 8, 8), np.arange(8) / 8)


@pytest.mark.parametrize(
    "schedule, warmup, named",
    [
        (WarmupStableDecay(0.5), 60, ["warmup_steps=60", "decay_fraction=0.5", "100 steps"]),
        (MODERNBERT, 101, ["warmup_steps=101", "100 steps"]),
        (PiecewiseSchedule(()), 0, ["pieces", "100 steps"]),
        (PiecewiseSchedule((SchedulePiece(60), SchedulePiece(90))), 0, ["pieces.until_step=[60, 90]", "100 steps"]),
        (PiecewiseSchedule((SchedulePiece(90), SchedulePiece(60), SchedulePiece(100))), 0, ["[90, 60, 100]"]),
    ],
)
def test_a_schedule_that_does_not_fit_the_run_is_refused(schedule, warmup, named, tmp_path):
    optimizer = AdamW(1e-3, warmup, schedule=schedule)
    with raises_naming(ValueError, *named):
        optimizer.build_transformation(100)
    with raises_naming(ExperimentError, *named):
        experiment("text.txt", "bert", tmp_path, steps=100, optimizer=optimizer)


@pytest.mark.parametrize(
    "build, named",
    [
        (lambda: WarmupStableDecay(0.0), "optimizer.schedule.decay_fraction=0.0"),
        (lambda: WarmupStableDecay(final_fraction=1.5), "optimizer.schedule.final_fraction=1.5"),
        (lambda: CosineDecay(-0.1), "optimizer.schedule.final_fraction=-0.1"),
        (lambda: SchedulePiece(0), "optimizer.schedule.pieces.until_step=0"),
        (lambda: SchedulePiece(5, 1.0, 2.0), "optimizer.schedule.pieces.end=2.0"),
    ],
)
def test_a_schedule_of_a_wrong_value_is_refused_by_name(build, named):
    with raises_naming(ValueError, named):
        build()


def test_a_schedule_is_set_saved_and_part_of_the_fingerprint(tmp_path):
    named = experiment("text.txt", "bert", tmp_path)
    valued = apply_settings(named, ["optimizer.schedule=WarmupStableDecay"])
    linear = apply_settings(valued, ["optimizer.schedule.decay=linear", "optimizer.schedule.decay_fraction=0.25"])
    pieced = replace(named, optimizer=replace(named.optimizer, schedule=PiecewiseSchedule((SchedulePiece(12),))))
    assert linear.optimizer.schedule == WarmupStableDecay(0.25, "linear")
    for made in (named, valued, linear, pieced):
        assert from_json_value(json.loads(json.dumps(to_json_value(made)))) == made
    assert len({json.dumps(fingerprint_content(made)) for made in (named, valued, linear, pieced)}) == 4
    assert apply_settings(valued, ["optimizer.schedule=replace"]) == named


@pytest.mark.parametrize(
    "setting, accepted",
    [
        ("optimizer.schedule=wsd", ["replace", "constant", "WarmupStableDecay", "CosineDecay", "PiecewiseSchedule"]),
        ("optimizer=Sgd", ["AdamW", "Lamb"]),
        ("optimizer=OptimizerConfig", ["AdamW", "Lamb"]),
    ],
)
def test_an_unknown_schedule_or_optimizer_is_refused_with_the_known_ones(setting, accepted, tmp_path):
    with raises_naming(ExperimentError, setting.split("=")[0], *accepted):
        apply_settings(experiment("text.txt", "bert", tmp_path), [setting])
