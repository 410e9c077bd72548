"""Diagnostics of runs that diverge, hang, or lack memory or disk."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from encoders.costs import ledger
from encoders.experiment import Experiment
from encoders.families import bert, deberta
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.run import diagnostics, loop
from encoders.run.folder import RunError
from encoders.run.prepare_run import check_memory, prepare_run
from encoders.run.run import Run
from encoders.run.warm_start import init_sharded_state
from encoders.run.watchdog import Watchdog
from encoders.tasks.classification import Classification
from encoders.tasks.scores import score_accuracy, score_classes
from encoders.text.tokenization import TokenizerSpec
from encoders.training import step
from encoders.training.sharding import Mesh, shard_batch
from tests import texts
from tests.refusals import raises_naming
from tests.run.test_loop import experiment, quiet

ROOT = Path(__file__).parents[2]


def prepare(made: Experiment, folder: Path) -> Run:
    with prepare_run(made, folder, quiet) as (run, _, _):
        return run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return str(texts.write(tmp_path_factory.mktemp("texts") / "text.txt", documents=60))


def test_a_gradient_that_is_not_finite_is_named_by_its_leaves(corpus, tmp_path, monkeypatch):
    run = prepare(experiment(corpus, "roberta", tmp_path), tmp_path / "run")
    state = init_sharded_state(run)
    batch = shard_batch(run.open_stream().build_batch(0), run.mesh)
    assert diagnostics.describe_nonfinite_update(run, state, batch, 0).startswith("nothing: its gradient is a spike")
    value_and_grad = jax.value_and_grad

    def spoil_gradient(loss, has_aux):
        def compute(*args):
            value, grads = value_and_grad(loss, has_aux=has_aux)(*args)
            grads["tokens"] = jax.tree.map(lambda x: x * np.nan, grads["tokens"])
            return value, grads

        return compute

    monkeypatch.setattr(jax, "value_and_grad", spoil_gradient)
    diagnostics.check_finite.clear_cache()
    assert diagnostics.describe_nonfinite_update(run, state, batch, 0).startswith("the gradient of tokens/")
    diagnostics.check_finite.clear_cache()


def test_a_loss_far_above_the_last_ones_is_logged():
    calm = [3.0 + 0.01 * (-1) ** n for n in range(60)]
    assert diagnostics.describe_loss_spike(calm) is None
    assert diagnostics.describe_loss_spike([*calm, 3.05]) is None
    assert diagnostics.describe_loss_spike([*calm, 2.0]) is None
    line = diagnostics.describe_loss_spike([*calm, 4.0])
    assert all(part in line for part in ("4.000", "3.000", "0.010", "optimizer.learning_rate"))
    assert diagnostics.describe_loss_spike([3.0, 9.0]) is None  # too few to know


WELL = {"rtd_replaced": 0.1, "rtd_accuracy": 0.95, "rtd_baseline": 0.9}
MASKED = {"generator_mask_accuracy": 0.3, "generator_mask_baseline": 0.05}


@pytest.mark.parametrize(
    ("scores", "beginnings"),
    [
        ({}, []),
        ({"rtd_replaced": 0.01}, ["only 1.0% of the tokens are replaced"]),
        (
            {"rtd_accuracy": 0.9},
            ["the discriminator is right for 90.00% of the tokens, and always answering 'original'"],
        ),
        ({"generator_mask_accuracy": 0.05}, ["the generator finds 5.00% of the masked tokens, and the most frequent"]),
    ],
)
def test_the_diagnosis_of_an_electra_that_learns_nothing_names_a_field(scores, beginnings):
    lines = diagnostics.diagnose_scores(ReplacedTokenDetection(), WELL | MASKED | scores)
    assert len(lines) == len(beginnings)
    assert (
        diagnostics.diagnose_scores(ReplacedTokenDetection(), WELL) == []
    )  # without [MASK] the generator is not diagnosed
    for line, start in zip(lines, beginnings, strict=True):
        assert line.startswith(start)
        assert "objective." in line


@pytest.mark.parametrize(
    "labels, predictions, values",
    [
        ([0] * 8 + [1], [0] * 9, ["88.89%", "'no'"]),  # always the majority
        ([0] * 8 + [1], [1] * 9, ["11.11%", "88.89%", "'yes'"]),
        ([0] * 8 + [1], [1] + [0] * 8, ["77.78%", "88.89%"]),  # worse than that
        ([0] * 8 + [1], [0] * 8 + [1], None),
    ],
)
def test_a_classifier_that_is_no_better_than_the_majority_is_named(labels, predictions, values):
    labels, predictions = np.array(labels), np.array(predictions)
    scores = {"label_accuracy": score_accuracy(predictions, labels)} | score_classes(predictions, labels, ("no", "yes"))
    lines = diagnostics.diagnose_scores(Classification(("no", "yes")), scores)
    assert len(lines) == (values is not None)
    assert all(value in line for line in lines for value in values)


def test_an_error_for_too_little_memory_names_fields_and_sizes(corpus, tmp_path, monkeypatch):
    def too_large(*args, **settings):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 137438953472 bytes.\nmore")

    monkeypatch.setattr(step, "train_step", too_large)
    with raises_naming(RunError, "tiny-roberta: ", "137438953472") as error:
        loop.train(experiment(corpus, "roberta", tmp_path), tmp_path / "run", quiet)
    fields = ("grad_accum_steps=1", "model.remat=none", "mesh.fsdp=1", "phases.batch_size=4", "GiB (parameters")
    assert all(field in str(error.value) for field in fields)


def test_a_batch_or_a_model_that_no_memory_holds_is_refused_before_its_text_is_read(corpus, tmp_path):
    made = experiment(corpus, "roberta", tmp_path)
    large = replace(made, phases=(replace(made.phases[0], batch_size=10**9),))
    with raises_naming(RunError, "phases.batch_size=1000000000", "GiB", "lower phases.batch_size"):
        loop.train(large, tmp_path / "run", quiet)
    wide = replace(made, model=replace(made.model, max_positions=10**9))
    with raises_naming(RunError, "model.max_positions=1000000000", "GiB"):
        loop.train(wide, tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


def test_a_batch_whose_activations_may_not_fit_is_warned_of(corpus, tmp_path, monkeypatch):
    made, lines = experiment(corpus, "roberta", tmp_path), []
    mesh = made.mesh.build()
    needed = sum(ledger.estimate_memory(made, mesh).values())
    check_memory(made, mesh, pytest.fail)
    monkeypatch.setattr("encoders.run.prepare_run.find_device_memory", lambda device: int(needed) - 1)
    check_memory(made, mesh, lines.append)
    assert len(lines) == 1 and all(part in lines[0] for part in ("GiB (parameters", "activations", "grad_accum_steps"))


@pytest.mark.parametrize(("length", "advice"), [(16, "raise it, as far as it allows"), (32, "no row of this model is")])
def test_rows_that_are_cut_can_be_longer_or_not(corpus, tmp_path, length, advice):
    made = experiment(corpus, "roberta", tmp_path)
    model = replace(made.model, max_positions=32)
    made = replace(made, model=model, phases=(replace(made.phases[0], seq_length=length),))
    store = SimpleNamespace(metadata={"splits": {"train": {"documents": 10}}})
    (line,) = diagnostics.describe_cut_rows(SimpleNamespace(experiment=made, store=store), {"train": 9})
    assert f"phases.seq_length={length}" in line and "model.max_positions=32" in line and advice in line


def test_a_disk_without_room_for_the_checkpoints_is_named_before_the_first_step(corpus, tmp_path, monkeypatch):
    run = prepare(experiment(corpus, "roberta", tmp_path), tmp_path / "run")
    assert diagnostics.describe_disk_shortage(run) is None
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(run.state_shapes))
    monkeypatch.setattr(diagnostics.shutil, "disk_usage", lambda folder: SimpleNamespace(free=4 * size - 1))
    line = diagnostics.describe_disk_shortage(run)
    assert f"{4 * size / 1e9:.3g} GB" in line and "intervals.keep_checkpoints" in line


def test_memory_is_estimated_for_a_device_of_a_mesh(corpus, tmp_path):
    made = experiment(corpus, "bert", tmp_path)
    made = replace(
        made, model=bert.BASE, data=replace(made.data, tokenizer=TokenizerSpec(vocab_size=bert.BASE.vocab_size))
    )
    whole, split = ledger.estimate_memory(made), ledger.estimate_memory(made, Mesh(fsdp=4).build_abstract(1))
    assert split["activations"] == whole["activations"] / 4
    assert whole["gradients"] / 4 <= split["gradients"] < whole["gradients"] / 3.9
    assert "on each of 8 devices (data=2, fsdp=2, model=2): " in ledger.format_ledger(replace(made, mesh=Mesh(2, 2, 2)))
    assert "on each of" not in ledger.format_ledger(made)


HANGS = """
import sys, time
from encoders.run.watchdog import Watchdog
with Watchdog(0.5, print) as watchdog:
    for step in range(3):
        time.sleep(0.2)
        watchdog.record_progress(step)
    def stuck():
        time.sleep(60)
    stuck()
"""


def test_a_run_that_hangs_logs_its_stacks_and_ends():
    done = subprocess.run(
        [sys.executable, "-c", HANGS], cwd=ROOT, capture_output=True, text=True, timeout=30
    )  # fmt: skip
    assert done.returncode == 1
    assert [("step 2" in line) for line in done.stdout.splitlines()] == [True, True]
    assert "in stuck" in done.stderr


def test_the_watchdog_of_a_run_that_makes_progress_logs_nothing():
    with Watchdog(60, pytest.fail) as watchdog:
        watchdog.record_progress(1)
    assert not watchdog.thread.is_alive()


HALF = {"dtype": "bfloat16"}
NO_DROPOUT = {**HALF, "attention_dropout": 0.0}


@pytest.mark.parametrize(
    "platform, config, changes, named",
    [
        ("cpu", bert.BASE, {}, []),
        ("tpu", bert.BASE, {}, ["model.unroll_layers", "model.dtype"]),
        ("tpu", bert.BASE, {"unroll_layers": True, **HALF}, []),
        ("tpu", bert.BASE, {"remat": "full", **HALF}, []),
        ("gpu", bert.BASE, {}, ["model.dtype"]),
        ("gpu", bert.BASE, HALF, []),  # dropout of attention weights needs XLA's attention
        ("gpu", bert.BASE, NO_DROPOUT, ["model.attention_impl"]),
        ("gpu", bert.BASE, NO_DROPOUT | {"attention_impl": "cudnn"}, []),
        ("gpu", deberta.BASE, NO_DROPOUT, []),
    ],
)
def test_settings_that_are_slow_on_an_accelerator_are_named(platform, config, changes, named):
    lines = diagnostics.describe_slow_settings(replace(config, **changes), platform)
    fields = ("model.unroll_layers", "model.dtype", "model.attention_impl")
    assert [next(name for name in fields if name in line) for line in lines] == named
