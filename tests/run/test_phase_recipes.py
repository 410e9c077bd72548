"""What a phase may have of its own: mask rate, batch ramp, piece of the schedule."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.costs.ledger import format_ledger, run_flops
from encoders.data.batch import build_single_example_batch
from encoders.data.stream import BatchRamp
from encoders.experiment import ExperimentError, apply_settings
from encoders.model.layers import CausalSelfAttention
from encoders.objectives.causal_lm import CausalLM
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.restored_tokens import ReplaceMLM
from encoders.run import loop
from encoders.run.evaluate import evaluate_run
from encoders.run.run import Run
from encoders.tasks.classification import Classification
from encoders.training.optimizer import StableAdamW
from encoders.training.schedules import PiecewiseSchedule, SchedulePiece
from encoders.utils.serialization import fingerprint_content
from tests.networks import make_vocab
from tests.refusals import raises_naming
from tests.run.test_loop import assert_stopped_run_is_the_same, corpus, experiment, quiet  # noqa: F401

IDS = np.random.default_rng(0).integers(5, 200, (4, 64))


@pytest.mark.live
def test_a_run_of_phases_with_their_own_mask_rate_batch_and_rate_resumes_to_the_same_bits(corpus, tmp_path):  # noqa: F811
    made = experiment(corpus, "bert", tmp_path, steps=6)
    first = replace(made.phases[0], until_step=4, mask_rate=0.4, batch_ramp=BatchRamp(2, 1, 3))
    pieces = PiecewiseSchedule((SchedulePiece(4), SchedulePiece(6, 0.375, 0.0, "one_minus_sqrt")))
    last = replace(made.phases[0], mask_rate=0.05)
    made = replace(made, phases=(first, last), optimizer=StableAdamW(1e-2, 1, schedule=pieces))
    assert_stopped_run_is_the_same(made, tmp_path, num_stops=5)
    assert Run.open(tmp_path / "stopped").experiment == made


def test_a_phase_trains_at_its_own_mask_rate_and_is_evaluated_at_that_of_the_objective(corpus, tmp_path):  # noqa: F811
    made = experiment(corpus, "roberta", tmp_path, steps=2)
    by_phase = apply_settings(made, ["phases.0.mask_rate=0.4"])
    by_objective = apply_settings(made, ["objective.masking.mask_rate=0.4"])
    scores = {
        name: loop.train(e, tmp_path / name, quiet)["heldout"]
        for name, e in {"phase": by_phase, "objective": by_objective}.items()
    }
    phase, objective = (Run.open(tmp_path / name) for name in ("phase", "objective"))
    params = objective.load_params()[1]
    jax.tree.map(np.testing.assert_array_equal, phase.load_params()[1], params)
    assert scores["phase"] == evaluate_run(phase, params) != scores["objective"]
    assert run_flops(by_phase) == run_flops(by_objective) > run_flops(made)
    assert fingerprint_content(by_phase) != fingerprint_content(made)
    assert "mask_rate" not in str(fingerprint_content(made)["phases"])  # as before phases had one


@pytest.mark.parametrize(
    "objective", [MaskedLM(Masking()), ReplacedTokenDetection(generator_width=0.5), ReplaceMLM(generator_width=0.5)]
)
def test_an_objective_that_masks_has_another_rate_and_the_same_choice_of_tokens(objective):
    batch, vocab, chosen = build_single_example_batch(IDS), make_vocab(200), {}
    batch = jax.tree.map(jnp.asarray, batch)
    for rate in (0.1, 0.5):
        other = objective.replace_mask_rate(rate)
        assert replace(other, masking=objective.masking) == objective and other.masking.mask_rate == rate
        masked = other.corrupt(batch, vocab, 3)
        real = np.asarray(masked.masked_weights) > 0
        chosen[rate] = [set(np.asarray(p)[r]) for p, r in zip(masked.masked_positions, real, strict=True)]
    assert objective.replace_mask_rate(None) is objective
    assert all(few < many and len(few) >= 1 for few, many in zip(chosen[0.1], chosen[0.5], strict=True))


@pytest.mark.parametrize("objective", [CausalLM(), Classification(("no", "yes"))])
def test_a_mask_rate_for_an_objective_that_masks_nothing_is_refused(objective, tmp_path):
    made = experiment("text.txt", "roberta", tmp_path)
    causal = replace(made.model, attention=CausalSelfAttention)
    with raises_naming(ValueError, "phases.mask_rate=0.3", type(objective).__name__):
        objective.replace_mask_rate(0.3)
    with raises_naming(ExperimentError, "phases.mask_rate=0.3", type(objective).__name__):
        replace(made, model=causal, objective=objective, phases=(replace(made.phases[0], mask_rate=0.3),))


def test_the_cost_of_each_phase_is_shown_with_its_mask_rate(tmp_path):
    made = experiment("text.txt", "roberta", tmp_path)
    made = replace(made, phases=(replace(made.phases[0], until_step=6, mask_rate=0.4), made.phases[0]))
    first, second = [line for line in format_ledger(made).splitlines() if "FLOPs" in line]
    assert "32 and mask rate 0.4:" in first and "32:" in second and "mask rate" not in second
