"""Whole runs: resumed, killed, evaluated, refused."""

import inspect
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import launch
from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs
from encoders.data.packing import PackedFormat
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import albert, bert, deberta, electra, modernbert, roberta
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.run import loop
from encoders.run.evaluate import evaluate_run
from encoders.run.folder import RESULT_FILE, RunError, read_result
from encoders.run.preemption import RunStopped, StopRequest
from encoders.run.run import Run
from encoders.run.time_account import read_time_report
from encoders.text.tokenization import TokenizerSpec
from encoders.training import step
from encoders.training.metric_log import TIMES_FILE, Intervals, read_metric_rows
from encoders.training.optimizer import AdamW, Lamb
from encoders.training.sharding import Mesh
from encoders.training.step import TrainState
from encoders.utils.serialization import to_json_value
from tests import texts
from tests.batches import make_batch
from tests.refusals import raises_naming

ROOT = Path(__file__).parents[2]
TINY = dict(vocab_size=300, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24, max_positions=32)


def quiet(line):
    pass


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return str(texts.write(tmp_path_factory.mktemp("texts") / "text.txt", documents=60))


def experiment(corpus, family: str, folder, steps=12, **changes) -> Experiment:
    model, objective, form, optimizer, kind = {
        "bert": (bert.TINY, MaskedLM(Masking(), NextSentencePrediction()), SegmentPairs(), AdamW(1e-3, 2), "wordpiece"),
        "roberta": (roberta.BASE, MaskedLM(Masking(dupe_factor=None)), FullSentences(), AdamW(1e-3, 2), "wordpiece"),
        "albert": (
            replace(albert.BASE, embedding_size=8),
            MaskedLM(Masking(dupe_factor=2, unit="word", max_ngram=3), SentenceOrderPrediction()),
            SegmentPairs("swapped"),
            Lamb(1e-3, 2),
            "wordpiece",
        ),
        "electra": (
            electra.BASE,
            ReplacedTokenDetection(generator_width=1 / 2),
            ElectraPairs(),
            AdamW(1e-3, 2),
            "wordpiece",
        ),
        "deberta": (
            replace(deberta.BASE, position_buckets=8),
            ReplacedTokenDetection(generator_width=1, generator_depth=0.5, tie="disentangled"),
            PackedFormat(SegmentPairs(), max_examples_per_row=3),
            AdamW(1e-3, 2, clip_by_network=True),
            "unigram",
        ),
        "modernbert": (
            replace(modernbert.BASE, local_window=8, global_every=2, attention_out_dropout=0.1),
            MaskedLM(Masking(0.3, dupe_factor=None)),
            PackedFormat(SegmentPairs(), max_examples_per_row=3),
            AdamW(1e-3, 2),
            "bpe",
        ),
    }[family]
    embedding = 8 if family in ("albert", "electra") else 16
    return Experiment(
        **dict(
            name=f"tiny-{family}",
            model=replace(model, **TINY, embedding_size=embedding),
            objective=objective,
            data=PretrainingData(
                (corpus,),
                TokenizerSpec(kind=kind, vocab_size=300),
                heldout_fraction=0.1,
                store_dir=str(folder / "stores"),
            ),
            optimizer=optimizer,
            phases=(Phase(until_step=steps, seq_length=32, batch_size=4, format=form),),
            intervals=Intervals(log_every=2, eval_every=4, save_every=3, eval_batches=2),
        )
        | changes
    )


def final_state(folder: Path) -> TrainState:
    run = Run.open(folder)
    checkpoints = run.open_checkpoints()
    _, state, _ = run.restore_latest(checkpoints, pytest.fail)
    checkpoints.close()
    return state


def without_time(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "time"} for row in read_metric_rows(folder / "metrics.jsonl")]


def assert_same_run(a: Path, b: Path):
    for x, y in zip(jax.tree.leaves(final_state(a)), jax.tree.leaves(final_state(b)), strict=True):
        np.testing.assert_array_equal(x, y)  # to the bit
    assert without_time(a) == without_time(b)


def assert_stopped_run_is_the_same(made: Experiment, folder: Path, num_stops: int):
    """Train `made` in one go, and with a stop after each of its first steps, to the same bits."""
    loop.train(made, folder / "straight", quiet)
    for _ in range(num_stops):
        with pytest.raises(RunStopped):
            loop.train(made, folder / "stopped", quiet, stop=StopRequest(0))
    loop.train(made, folder / "stopped", quiet)
    assert_same_run(folder / "straight", folder / "stopped")


@pytest.mark.parametrize(
    "family",
    ["bert", *(pytest.param(f, marks=pytest.mark.live) for f in ("albert", "electra", "modernbert", "deberta"))],
)
def test_a_run_interrupted_between_two_logs_resumes_to_the_same_numbers(family, corpus, tmp_path, monkeypatch):
    base = experiment(corpus, family, tmp_path)
    if family == "bert":  # two phases, and the second is resumed in its middle
        short = replace(base.phases[0], until_step=6, seq_length=16)
        base = replace(base, phases=(short, *base.phases))
    scores = loop.train(base, tmp_path / "whole", quiet)["heldout"]
    assert all(np.isfinite(score) for score in scores.values())

    class Stop(Exception):
        pass

    def stop(self, saved_step, *rest):
        if saved_step == 9:
            self.manager.wait_until_finished()
            raise Stop
        return save(self, saved_step, *rest)

    save = loop.Checkpoints.save
    with monkeypatch.context() as patch:
        patch.setattr(loop.Checkpoints, "save", stop)
        with pytest.raises(Stop):
            loop.train(base, tmp_path / "parts", quiet)
    assert read_result(tmp_path / "parts") is None
    loop.train(base, tmp_path / "parts", quiet)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_batches_are_put_on_the_devices_one_ahead_and_in_order():
    produced, mesh = [], Mesh().build()

    def rows():
        for number in range(4):
            produced.append(number)
            yield make_batch(np.full((1, 2), number, np.int32))

    for number, batch in enumerate(loop.prefetch_to_device(rows(), mesh)):
        assert batch.input_ids.tolist() == [[number, number]] and isinstance(batch.input_ids, jax.Array)
        assert len(produced) == min(number + 2, 4)
    assert number == 3


def test_a_profile_needs_steps_to_trace(corpus, tmp_path):
    base = experiment(corpus, "roberta", tmp_path, steps=4)
    with raises_naming(RunError, "--profile", "5 steps", " 4 "):
        loop.train(base, tmp_path / "run", quiet, profile=True)


def test_a_finished_run_is_not_run_again(corpus, tmp_path, monkeypatch):
    base = experiment(corpus, "roberta", tmp_path, steps=4)
    first = loop.train(base, tmp_path / "run", quiet)
    monkeypatch.setattr(loop, "run_train_steps", None)
    assert loop.train(base, tmp_path / "run", quiet) == first


def test_a_folder_of_another_experiment_is_refused_and_the_difference_named(corpus, tmp_path):
    base = experiment(corpus, "roberta", tmp_path, steps=4)
    loop.train(base, tmp_path / "run", quiet)
    other = replace(base, optimizer=AdamW(2e-3, 2))
    with raises_naming(RunError, "optimizer.learning_rate is 0.001", "0.002", "--set name="):
        loop.train(other, tmp_path / "run", quiet)
    moved = replace(base, intervals=Intervals(log_every=1), name="renamed")
    assert loop.train(moved, tmp_path / "run", quiet)["steps"] == 4


def test_a_batch_that_does_not_divide_is_refused(corpus, tmp_path):
    base = experiment(corpus, "roberta", tmp_path)
    with raises_naming(ValueError, "phases.batch_size=4", "grad_accum_steps=3"):
        replace(base, grad_accum_steps=3)


def test_a_vocabulary_larger_than_the_model_is_refused(corpus, tmp_path):
    base = experiment(corpus, "roberta", tmp_path, steps=4)
    loop.train(base, tmp_path / "run", quiet)
    path = next((tmp_path / "stores").iterdir()) / "tokenizer.json"
    small = replace(
        base,
        model=replace(base.model, vocab_size=50),
        data=replace(base.data, tokenizer=TokenizerSpec(path=str(path), vocab_size=50)),
    )
    with raises_naming(RunError, "model.vocab_size=50"):
        loop.train(small, tmp_path / "small", quiet)


@pytest.mark.live
def test_held_out_scores_do_not_depend_on_the_seed_of_the_run(corpus, tmp_path):
    base = experiment(corpus, "electra", tmp_path, steps=4)
    loop.train(base, tmp_path / "run", quiet)
    run = Run.open(tmp_path / "run")
    other = Run(replace(run.experiment, seed=5), tmp_path / "other", run.vocab, lambda: run.store)
    params = final_state(tmp_path / "run").params
    assert evaluate_run(run, params) == evaluate_run(other, params)
    assert evaluate_run(run, params)["loss"] == pytest.approx(
        read_result(tmp_path / "run")["heldout"]["loss"], rel=1e-6
    )


def test_the_newest_checkpoints_and_the_best_one_are_kept(corpus, tmp_path):
    base = experiment(
        corpus,
        "roberta",
        tmp_path,
        steps=16,
        intervals=Intervals(log_every=2, eval_every=2, save_every=2, keep_checkpoints=2, eval_batches=2),
    )
    loop.train(base, tmp_path / "run", quiet)
    losses = {r["step"]: r["loss"] for r in read_metric_rows(tmp_path / "run/metrics.jsonl") if r["split"] == "heldout"}
    checkpoints = Run.open(tmp_path / "run").open_checkpoints()
    assert set(checkpoints.all_steps()) == {14, 16, min(losses, key=losses.get)}
    assert checkpoints.best_step() == min(losses, key=losses.get)
    checkpoints.close()


def test_a_run_of_updates_that_are_not_finite_stops_and_names_the_cause(corpus, tmp_path):
    wild = experiment(
        corpus,
        "roberta",
        tmp_path,
        steps=30,
        optimizer=AdamW(1e30, 0, clip_norm=None),
        intervals=Intervals(log_every=2, eval_every=100, save_every=100, max_bad_updates=4),
    )
    fields = ("optimizer.learning_rate", "optimizer.warmup_steps")
    with raises_naming(RunError, "5 updates", "step 6", "mlm_loss", "4 examples", " 0:", *fields):
        loop.train(wild, tmp_path / "run", quiet)
    rows = read_metric_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [2]  # step 1 was applied; later intervals have no loss
    assert [row["skipped"] for row in rows] == [0.5, 1.0, 1.0] and not any(row.get("mlm_loss") == 0 for row in rows)


ALONE = """
import json, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from encoders.run import loop
from encoders.utils.serialization import from_json_value
loop.train(from_json_value(json.loads(Path({path!r}).read_text())), Path({folder!r}), lambda line: None)
"""


def started(path: Path, folder: Path) -> subprocess.Popen:
    """Start a process that trains the experiment of a JSON file, or resumes it."""
    code = ALONE.format(root=str(ROOT), path=str(path), folder=str(folder))
    return subprocess.Popen([sys.executable, "-W", "error", "-c", code], stderr=subprocess.PIPE)


def finish(process: subprocess.Popen, *statuses: int) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode in statuses, errors.decode()


LONG_LOCAL_ROWS = dict(
    model=replace(
        modernbert.BASE, **TINY | {"max_positions": 2048, "num_heads": 1}, embedding_size=16, attention_out_dropout=0.1
    ),
    phases=(Phase(8, 2048, 1, PackedFormat(SegmentPairs(), max_examples_per_row=128)),),
    intervals=Intervals(log_every=2, eval_every=50, save_every=3, keep_checkpoints=2, eval_batches=1),
)


@pytest.mark.live
@pytest.mark.parametrize(
    "family, steps, changes",
    [
        ("electra", 120, {}),
        ("modernbert", 8, LONG_LOCAL_ROWS),
    ],
)
def test_a_run_killed_at_a_random_moment_ends_bit_identical(family, steps, changes, corpus, tmp_path):
    intervals = Intervals(log_every=5, eval_every=50, save_every=7, keep_checkpoints=2, eval_batches=2)
    path, finished, killed = (tmp_path / name for name in ("experiment.json", "finished", "killed"))
    made = experiment(corpus, family, tmp_path, steps=steps, **{"intervals": intervals} | changes)
    path.write_text(json.dumps(to_json_value(made)))
    finish(started(path, finished), 0)
    chance, left = random.Random(), int(os.environ.get("ENCODERS_KILLS", "2"))
    while read_result(killed) is None:
        process, before = started(path, killed), len(without_time(killed))
        if left:  # at some moment after it has got on
            while process.poll() is None and len(without_time(killed)) == before:
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
            left -= 1
        finish(process, 0, -signal.SIGKILL)
    assert left == 0
    assert_same_run(finished, killed)
    first = json.loads((killed / TIMES_FILE).read_text().splitlines()[0])
    report, seconds = read_time_report(killed), (killed / RESULT_FILE).stat().st_mtime - first["begun_at"]
    assert report.total == pytest.approx(seconds, rel=0.01)
    assert {"steps", "steps done twice", "restarts", "not running"} <= report.seconds.keys()


class FirstUpdate(Exception):
    """Ends a run at its first update."""


EXPERIMENT_FILE = """
from pathlib import Path
from tests.run.test_loop import experiment
experiments = [experiment({corpus!r}, "roberta", Path({folder!r}))]
"""


@pytest.mark.parametrize("door", ["train", "launch"])
def test_the_first_update_is_at_most_six_frames_below_the_door(door, corpus, tmp_path, monkeypatch):
    frames = []

    def record_stack(*args, **settings):
        frames.extend(frame for frame in traceback.extract_stack() if f"{ROOT}/encoders/" in frame.filename)
        raise FirstUpdate

    monkeypatch.setattr(step, "train_step", record_stack)
    (tmp_path / "file.py").write_text(EXPERIMENT_FILE.format(corpus=corpus, folder=str(tmp_path)))
    with pytest.raises(FirstUpdate):
        if door == "train":
            loop.train(experiment(corpus, "roberta", tmp_path), tmp_path / "run", quiet)
        else:
            launch.main(["train", str(tmp_path / "file.py"), "--runs", str(tmp_path / "runs")])
    names = [frame.name for frame in frames if frame.name not in ("main", "run_verb")]  # they only call a verb
    assert 0 < len(names) <= 6, names
    assert len(inspect.getsource(loop.run_train_steps).splitlines()) <= 60
