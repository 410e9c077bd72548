"""Measures on held-out text, beside plain computations, and how measurements are kept."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

import encoders
import launch
from encoders.measures.base import Measure, Measurement, list_measurements, load_or_measure, read_measurement
from encoders.measures.fixed_corruption import FixedCorruption
from encoders.measures.heldout_text import count_train_tokens, iter_heldout_batches
from encoders.measures.masked_tokens import MaskedTokens
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.reporting.measure_tables import build_measure_table
from encoders.run import loop
from encoders.run.evaluate import evaluate_run
from encoders.run.folder import RunError
from encoders.run.run import Run
from encoders.run.time_account import read_time_report
from tests import texts
from tests.refusals import raises_naming
from tests.run.test_loop import experiment, quiet


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a masked language model and of an ELECTRA, trained for a few steps on the same rows."""
    home = tmp_path_factory.mktemp("home")
    base = experiment(str(texts.write(home / "text.txt", documents=60)), "electra", home)
    objectives = {"mlm": MaskedLM(Masking()), "electra": base.objective}
    for name, objective in objectives.items():
        loop.train(replace(base, name=name, objective=objective), home / name, quiet)
    return {name: home / name for name in objectives}


def collect_masked_tokens(folder):
    """Log probabilities, labels and positions of the masked tokens of a run, from its network applied as it is."""
    predictor = encoders.load(folder, step="latest")
    run, rows = predictor.run, []
    for batch in iter_heldout_batches(run, 100):
        masked = run.spec.objective.corrupt(jax.tree.map(jnp.asarray, batch), run.vocab, 0)
        logits = run.module.apply({"params": predictor.params}, masked, method="compute_token_logits")
        is_masked = np.asarray(masked.masked_weights) > 0
        fields = (jax.nn.log_softmax(logits), masked.masked_labels, masked.masked_positions)
        rows.append([np.asarray(field)[is_masked] for field in fields])
    return [np.concatenate(field) for field in zip(*rows, strict=True)]


@pytest.mark.parametrize("name", ["mlm", "electra"])
def test_the_loss_and_its_parts_by_frequency_and_position_are_those_of_a_plain_computation(runs, name):
    measurement = load_or_measure(runs[name], [MaskedTokens()])["heldout"]
    scores, run = measurement.scores, Run.open(runs[name])
    log_probs, labels, positions = collect_masked_tokens(runs[name])
    losses = -log_probs[np.arange(len(labels)), labels]
    theirs = log_loss(labels, np.exp(log_probs), labels=range(log_probs.shape[1]))
    assert scores["heldout_loss"] == pytest.approx(theirs, abs=1e-4)
    counts = count_train_tokens(run)
    commonest = np.isin(labels, np.argsort(-counts, kind="stable")[:10])
    assert scores["heldout_loss_rank_1_10"] == pytest.approx(losses[commonest].mean(), abs=1e-4)
    length = run.experiment.phases[-1].seq_length
    first = positions < length / 4
    assert scores["heldout_loss_position_1"] == pytest.approx(losses[first].mean(), abs=1e-4)
    is_right = log_probs.argmax(1) == labels
    assert measurement.items["heldout_accuracy"].tolist() == is_right.astype(float).tolist()
    confidence = np.exp(log_probs.max(1))
    bins = np.digitize(confidence, np.linspace(0, 1, 16)[1:-1])
    gaps = [(bins == b).mean() * abs(is_right[bins == b].mean() - confidence[bins == b].mean()) for b in set(bins)]
    assert scores["heldout_calibration_error"] == pytest.approx(sum(gaps), abs=1e-4)
    assert ("heldout_rtd_calibration_error" in scores) == (name == "electra")


def test_the_loss_is_the_one_of_the_runs_own_evaluation(runs):
    run = Run.open(runs["mlm"])
    _, params = run.load_params()
    own = evaluate_run(run, params, num_batches=100)
    scores = load_or_measure(runs["mlm"], [MaskedTokens()])["heldout"].scores
    assert scores["heldout_loss"] == pytest.approx(own["mlm_loss"], abs=1e-4)
    assert scores["heldout_accuracy"] == pytest.approx(own["mlm_accuracy"], abs=1e-6)


def test_the_corruption_is_of_the_rate_and_the_area_is_that_of_scikit_learn(runs):
    measure, predictor = FixedCorruption(), encoders.load(runs["electra"], step="latest")
    run = predictor.run
    is_ordinary = ~np.isin(np.arange(run.vocab.vocab_size), run.vocab.special_ids)
    labels, verdicts, clean = [], [], []
    for batch, clean_ids in measure.corrupt_batches(run, count_train_tokens(run), is_ordinary):
        rows = jax.tree.map(jnp.asarray, batch)
        logits = run.module.apply({"params": predictor.params}, rows, method="compute_replaced_logits")
        is_token = batch.example_ids > 0
        labels.append((batch.input_ids != clean_ids)[is_token])
        verdicts.append(np.asarray(logits)[is_token])
        clean.append(clean_ids[is_token])
    labels, verdicts, clean = map(np.concatenate, (labels, verdicts, clean))
    assert not labels[np.isin(clean, run.vocab.special_ids)].any()
    share = count_train_tokens(run) / count_train_tokens(run).sum()
    ordinary = clean[is_ordinary[clean]]
    expected = measure.rate * (1 - share[ordinary]).mean() * len(ordinary) / len(clean)
    assert labels.mean() == pytest.approx(expected, abs=4 * (expected / len(clean)) ** 0.5)
    scores = load_or_measure(runs["electra"], [measure])["corruption"].scores
    assert scores["corruption_auc_unigram"] == pytest.approx(roc_auc_score(labels, verdicts), abs=2e-3)
    assert scores["corruption_auc_uniform"] != scores["corruption_auc_unigram"]


def test_what_a_run_cannot_have_is_named_and_the_rest_is_measured(runs, capsys):
    assert launch.main(["measure", str(runs["mlm"]), "--what", "corruption,heldout"]) == 0
    shown = capsys.readouterr()
    assert "corruption" in shown.err and "discriminator" in shown.err
    scores = json.loads(shown.out)
    assert scores["run"] == "mlm" and "heldout_loss" in scores and "corruption_auc_unigram" not in scores


@dataclass(frozen=True)
@encoders.register
class CountLines(Measure):
    """The lines of a file, and the times that it was counted."""

    path: str = ""

    name: ClassVar[str] = "lines"
    num_computed: ClassVar[list] = []

    def list_files(self):
        return [Path(self.path)]

    def compute(self, predictor):
        self.num_computed.append(1)
        lines = self.list_files()[0].read_text().splitlines()
        return Measurement({"lines": float(len(lines))}, {"lines": np.array([0, 0.5, 1])})


def test_a_measurement_is_computed_once_for_the_same_data_and_anew_for_other_data(runs, tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("a\nb\n")
    measure, counted = CountLines(str(file)), len(CountLines.num_computed)
    assert read_measurement(runs["mlm"], measure) is None
    for _ in range(2):
        measured = load_or_measure(runs["mlm"], [measure])["lines"]
        assert measured.scores == {"lines": 2.0} and measured.items["lines"].tolist() == [0, 0.5, 1]
    assert len(CountLines.num_computed) == counted + 1
    file.write_text("a\nb\nc\n")
    assert load_or_measure(runs["mlm"], [measure])["lines"].scores == {"lines": 3.0}
    file.unlink()
    assert read_measurement(runs["mlm"], measure).scores == {"lines": 3.0}  # without the data


def test_a_damaged_measurement_is_named(runs):
    load_or_measure(runs["mlm"], [MaskedTokens(max_batches=1)])
    for path in (runs["mlm"] / "measures").glob("heldout-*.json"):
        if json.loads(path.read_text())["measure"]["max_batches"] == 1:
            path.write_text(path.read_text().replace('"step"', '"stop"', 1))
            with raises_naming(RunError, path.name):
                load_or_measure(runs["mlm"], [MaskedTokens(max_batches=1)])
            path.unlink()


def test_a_measurement_of_another_run_is_named(runs):
    load_or_measure(runs["mlm"], [MaskedTokens(max_batches=2)])
    for path in (runs["mlm"] / "measures").glob("heldout-*.json"):
        if json.loads(path.read_text())["measure"]["max_batches"] == 2:
            copied = runs["electra"] / "measures" / path.name
            copied.parent.mkdir(exist_ok=True)
            copied.write_text(path.read_text())
            with raises_naming(RunError, copied):
                load_or_measure(runs["electra"], [MaskedTokens(max_batches=2)])
            copied.unlink()


@pytest.mark.parametrize(
    "words, values",
    [
        (["--what", "blimp"], ["blimp=PATH"]),
        (["--what", "grammar"], ["grammar", "heldout", "blimp"]),
        (["--with", "heldout=x"], ["heldout=x", "blimp"]),
        (["--with", "blimp=missing.jsonl"], ["missing.jsonl"]),
        (["--what", "heldout", "--with", "sts=x"], ["sts=x"]),
        (["--set", "sts.layer=1"], ["sts", "heldout"]),
        (["--set", "heldout.max_batch=1"], ["max_batch", "max_batches"]),
        (["--step", "77"], ["77", "latest"]),
    ],
)
def test_a_command_that_cannot_be_measured_is_one_line(runs, capsys, words, values):
    assert launch.main(["measure", str(runs["mlm"]), *words]) == 1
    shown = capsys.readouterr().err
    assert all(value in shown for value in values) and shown.count("\n") == 1


def test_a_file_of_experiments_names_measures_of_every_finished_run(runs, tmp_path, capsys):
    run = Run.open(runs["electra"])
    source = tmp_path / "measured.py"
    source.write_text(
        "from encoders.measures.fixed_corruption import FixedCorruption\n"
        "from encoders.run.run import Run\n"
        f"experiments = [Run.open({str(run.folder)!r}).experiment]\n"
        "measures = [FixedCorruption(max_batches=1)]\n"
    )
    assert launch.main(["train", str(source), "--runs", str(run.folder.parent)]) == 0
    shown = capsys.readouterr().out
    auc = read_measurement(run.folder, FixedCorruption(max_batches=1)).scores["corruption_auc_unigram"]
    assert "corruption auc unigram" in shown and f"{auc:.4g}" in shown
    measured = list_measurements(run.folder)
    table = build_measure_table({run.folder: measured})
    hours = sum(read_time_report(run.folder).seconds.values()) / 3600
    assert float(table.rows[0][table.header.index("hours")]) == pytest.approx(hours, abs=0.01)
