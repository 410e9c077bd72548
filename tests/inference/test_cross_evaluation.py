"""A run scored on what it was not trained for, with its own head or one that is fitted to its vectors."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from encoders.data.formats import SegmentPairs
from encoders.inference import cross_evaluation
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.sentence_pair import NextSentencePrediction
from encoders.run import loop
from encoders.run.evaluate import evaluate_run
from encoders.run.folder import RunError
from encoders.run.run import Run
from encoders.utils.serialization import ExperimentError
from tests import texts
from tests.refusals import raises_naming
from tests.run.test_loop import experiment, quiet

ORDER = ("objective.sentence_task=SentenceOrderPrediction", "phases.*.format.negatives=swapped")
NEXT = ("objective.sentence_task=NextSentencePrediction", "phases.*.format.negatives=random")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with next sentence, and one with masked tokens alone, on the same pairs."""
    home = tmp_path_factory.mktemp("home")
    base = experiment(str(texts.write(home / "text.txt", documents=60)), "bert", home)
    form = SegmentPairs("random")
    base = replace(base, phases=tuple(replace(phase, format=form) for phase in base.phases))
    made = {}
    for name, sentences in (("nsp", NextSentencePrediction()), ("alone", None)):
        member = replace(base, name=name, objective=MaskedLM(Masking(), sentences))
        loop.train(member, home / name, quiet)
        made[name] = home / name
    return made


def test_the_runs_own_settings_give_its_own_scores(runs):
    run = Run.open(runs["nsp"])
    _, params = run.load_params()
    scores = cross_evaluation.evaluate_with_overrides(run, params, NEXT)
    assert scores["nsp_accuracy"] == pytest.approx(evaluate_run(run, params)["nsp_accuracy"], abs=1e-6)


def test_the_head_of_one_sentence_task_is_scored_on_the_other(runs):
    run = Run.open(runs["nsp"])
    _, params = run.load_params()
    scores = cross_evaluation.evaluate_with_overrides(run, params, ORDER)
    assert 0 <= scores["sop_accuracy"] <= 1 and scores["sop_baseline"] >= 0.5 and "nsp_accuracy" not in scores
    turned = jax.tree.map(lambda x: x, params)
    turned["pair"] = {"out": {name: -value for name, value in params["pair"]["out"].items()}}
    assert cross_evaluation.evaluate_with_overrides(run, turned, ORDER)["sop_accuracy"] == pytest.approx(
        1 - scores["sop_accuracy"], abs=1e-6
    )


def test_a_run_without_a_head_is_scored_by_a_regression_on_its_vectors(runs):
    run = Run.open(runs["alone"])
    _, params = run.load_params()
    scores = cross_evaluation.evaluate_with_overrides(run, params, NEXT)
    assert scores.keys() == {"nsp_accuracy", "nsp_accuracy_error", "nsp_baseline"}
    assert 0.5 <= scores["nsp_baseline"] <= 1 and 0 <= scores["nsp_accuracy"] <= 1


def test_the_regression_finds_a_label_that_is_encoded_in_the_vectors(runs, monkeypatch):
    """[CLS] vectors that are the label and noise: nothing else is told to the fit."""
    rng = np.random.default_rng(0)

    def told(run, params, batches, task):
        labels = np.concatenate([batch.labels[task.label_field][batch.example_mask == 1] for batch in batches])
        return np.stack([labels + 0.01 * rng.normal(size=len(labels)), rng.normal(size=len(labels))], 1), labels

    monkeypatch.setattr(cross_evaluation, "collect_cls_vectors", told)
    run = Run.open(runs["alone"])
    assert cross_evaluation.evaluate_with_overrides(run, run.load_params()[1], ORDER)["sop_accuracy"] == 1


def test_scores_are_computed_once_and_stored_with_the_run(runs, monkeypatch):
    assert cross_evaluation.cached_scores(runs["nsp"], ORDER) is None
    found = cross_evaluation.load_or_compute_scores(runs["nsp"], ORDER)
    monkeypatch.setattr(cross_evaluation, "evaluate_with_overrides", lambda *given: pytest.fail("computed again"))
    assert (
        cross_evaluation.load_or_compute_scores(runs["nsp"], ORDER[::-1])
        == found
        == cross_evaluation.cached_scores(runs["nsp"], ORDER)
    )
    kept = json.loads(cross_evaluation.score_path(runs["nsp"], ORDER).read_text())
    assert kept["settings"] == sorted(ORDER) and kept["step"] == Run.open(runs["nsp"]).experiment.num_steps


def test_settings_that_need_other_parameters_are_refused(runs):
    run = Run.open(runs["nsp"])
    _, params = run.load_params()
    with raises_naming(RunError, "encoder", "model.num_layers=3"):
        cross_evaluation.evaluate_with_overrides(run, params, ("model.num_layers=3",))
    with raises_naming(ExperimentError, "sentence_order"):
        cross_evaluation.evaluate_with_overrides(run, params, ORDER[:1])
