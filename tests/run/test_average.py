"""The mean of a run's last checkpoints, wherever a step of a run is chosen."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import launch
from encoders.exchange.convert import export_run, import_checkpoint
from encoders.inference.predictor import load_predictor
from encoders.run import loop
from encoders.run.folder import RunError
from encoders.run.run import Run
from encoders.training.metric_log import Intervals
from tests.refusals import raises_naming
from tests.run.test_loop import corpus, experiment, quiet  # noqa: F401

INTERVALS = Intervals(log_every=2, eval_every=2, save_every=2, keep_checkpoints=3, eval_batches=1)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):  # noqa: F811
    """A run of eight steps that keeps the checkpoints 4, 6 and 8."""
    folder = tmp_path_factory.mktemp("average")
    made = experiment(corpus, "bert", folder, steps=8, intervals=INTERVALS)
    loop.train(replace(made, optimizer=replace(made.optimizer, learning_rate=0.03)), folder / "run", quiet)
    return folder / "run"


def test_the_average_is_the_mean_of_the_last_checkpoints_and_has_the_newest_step(trained):
    run = Run.open(trained)
    saved = {step: run.load_params(str(step))[1] for step in (4, 6, 8)}
    for count, steps in ((1, (8,)), (2, (6, 8)), (3, (4, 6, 8))):
        step, params = run.load_params(f"average:{count}")
        assert step == 8
        mean = jax.tree.map(lambda *leaves: np.mean(np.float64(leaves), axis=0), *(saved[at] for at in steps))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), params, mean)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    kernels = [np.asarray(saved[at]["encoder"]["layers"]["attend"]["query"]["kernel"]) for at in (4, 8)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01  # checkpoints differ, so that one of them would show


def test_predict_evaluate_and_export_take_an_average(trained, tmp_path, capsys):
    vectors = [next(load_predictor(trained, step).embed(["a word"])) for step in ("average:3", "8")]
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    status = launch.main(["evaluate", str(trained), "--step", "average:3", "--batches", "1"])
    averaged = json.loads(capsys.readouterr().out)
    launch.main(["evaluate", str(trained), "--step", "8", "--batches", "1"])
    newest = json.loads(capsys.readouterr().out)
    assert not status and averaged["step"] == 8 and averaged["loss"] != newest["loss"]
    export_run(trained, tmp_path / "average", step="average:2", log=quiet)
    for step in (6, 8):
        export_run(trained, tmp_path / str(step), step=str(step), log=quiet)
    mean, *parts = (load_file(tmp_path / name / "model.safetensors") for name in ("average", "6", "8"))
    for name, tensor in mean.items():
        np.testing.assert_allclose(tensor, (parts[0][name] + parts[1][name]) / 2, rtol=1e-6, atol=1e-7)
    import_checkpoint(tmp_path / "average", tmp_path / "imported")
    imported = Run.open(tmp_path / "imported")
    assert imported.load_params("average:1")[0] == 0
    with raises_naming(RunError, "average:2", tmp_path / "imported"):
        imported.load_params("average:2")


@pytest.mark.parametrize(
    "step, named", [("average:4", ["keep_checkpoints", "4, 6, 8"]), ("average:0", ["latest, best", "average:N"])]
)
def test_an_average_of_checkpoints_that_are_not_there_is_refused(trained, step, named):
    with raises_naming(RunError, trained, f"--step {step}", *named):
        Run.open(trained).load_params(step)


@pytest.mark.live
def test_the_best_checkpoint_is_none_of_the_last_ones(corpus, tmp_path):  # noqa: F811
    made = experiment(corpus, "bert", tmp_path, steps=4, intervals=replace(INTERVALS, keep_checkpoints=1))
    loop.train(replace(made, optimizer=replace(made.optimizer, learning_rate=0.3)), tmp_path / "run", quiet)
    run = Run.open(tmp_path / "run")
    assert run.load_params("best")[0] == 2  # the rate is far too high
    with raises_naming(RunError, "average:2", "keep_checkpoints", "2, 4"):
        run.load_params("average:2")
