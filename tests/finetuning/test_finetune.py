"""Fine-tuning as a run like any other: learned, interrupted, stopped early, begun with another run, and tabled."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import launch
from encoders.data.formats import SegmentPairs
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.finetuning.grids import build_finetuning
from encoders.inference.predictor import load_predictor
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.sentence_pair import NextSentencePrediction
from encoders.reporting.page import read_runs
from encoders.run import diagnostics, loop
from encoders.run.folder import RunError
from encoders.run.prepare_run import prepare_run
from encoders.run.run import Run
from encoders.tasks.classification import Classification
from encoders.tasks.glue import GLUE_TASKS, NUM_GLUE_TRAIN_ROWS
from encoders.tasks.multiple_choice import MultipleChoiceTask
from encoders.tasks.squad import SQUAD_1_1, SQUAD_2_0
from encoders.tasks.text_tasks import TextTask
from encoders.tasks.token_classification import TokenTask
from encoders.text.tokenization import TokenizerSpec, load_tokenizer
from encoders.training.metric_log import read_metric_rows
from encoders.training.optimizer import AdamW
from encoders.utils.serialization import ExperimentError, from_json_value, to_json_value
from tests import task_examples
from tests.finetuning.tiny import FAMILIES, MODEL, QUICK, TINY, build_run, load_file
from tests.networks import write_random_run
from tests.refusals import assert_names, raises_naming


def quiet(line):
    pass


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def words(home):
    return task_examples.vocabulary(home)


@pytest.fixture(scope="module")
def sentiment(home):
    return task_examples.classes(home / "SST-2")


@pytest.fixture(scope="module")
def learned(home, words, sentiment):
    """A finished run on sentiment: its experiment, its folder and its result."""
    experiment = build_run("learned", GLUE_TASKS["SST-2"], sentiment, home, words, config=replace(MODEL, num_layers=2))
    return experiment, home / "runs" / "learned", loop.train(experiment, home / "runs" / "learned", quiet)


def test_a_task_is_learned_and_its_best_checkpoint_saved(learned):
    experiment, folder, result = learned
    assert result["best"]["accuracy"] > 0.9
    held = [row for row in read_metric_rows(folder / "metrics.jsonl") if row["split"] == "heldout"]
    assert len(held) == 4 and result["best"]["accuracy"] == max(row["accuracy"] for row in held)
    best = load_predictor(folder, "best")
    assert best.run.load_params("best")[0] == result["best"]["step"]


def test_a_run_of_a_task_is_read_back_from_json_as_it_was(learned):
    experiment, *_ = learned
    assert from_json_value(json.loads(json.dumps(to_json_value(experiment)))) == experiment


def test_predictions_for_development_rows_give_the_evaluated_scores(learned, sentiment):
    _, folder, result = learned
    rows = (Path(sentiment) / "dev.tsv").read_text().splitlines()[1:]
    texts, labels = zip(*(row.split("\t") for row in rows), strict=True)
    predictions = load_predictor(folder, "latest", batch_size=7).classify(texts)
    right = [max(chances, key=chances.get) == label for chances, label in zip(predictions, labels, strict=True)]
    assert sum(right) / len(labels) == result["heldout"]["accuracy"]


def test_an_interrupted_run_ends_with_the_same_numbers(learned, home, monkeypatch):
    experiment, folder, result = learned
    again, record, seen = home / "runs" / "again", loop.log_interval, []

    def interrupted(session, current_step, phase):
        record(session, current_step, phase)
        seen.append(current_step)
        if seen == [6, 12, 18]:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "log_interval", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(experiment, again, quiet)
    resumed = loop.train(experiment, again, quiet)
    assert seen == [6, 12, 18, 18, 24] and resumed["best"] == result["best"]
    strip = lambda path: [{k: v for k, v in row.items() if k != "time"} for row in read_metric_rows(path)]
    assert strip(again / "metrics.jsonl") == strip(folder / "metrics.jsonl")


def test_a_run_stops_some_evaluations_after_its_best(home, words, sentiment):
    recipe = replace(QUICK, learning_rate=1e-12, num_epochs=9, early_stopping=2)
    experiment = build_run("early", GLUE_TASKS["SST-2"], sentiment, home, words, recipe)
    result = loop.train(experiment, folder := home / "runs" / "early", quiet)
    assert (result["best"]["step"], result["steps"], experiment.num_steps) == (6, 18, 54)
    assert loop.train(experiment, folder, quiet) == result


def list_tasks(home):
    """Return a task of every kind, the folder of its rows, and its scores."""
    return {
        "pair": (replace(GLUE_TASKS["STS-B"]), task_examples.numbers(home / "sts"), {"spearman", "pearson"}),
        "span": (SQUAD_1_1, task_examples.squad(home / "squad"), {"exact", "f1"}),
        "maybe": (
            SQUAD_2_0,
            task_examples.squad(home / "squad2", unanswerable=True),
            {"exact", "f1", "threshold", "f1_at_zero"},
        ),
        "tags": (TokenTask(("O", "B-PER", "B-LOC")), task_examples.tags(home / "tags"), {"f1"}),
        "choice": (MultipleChoiceTask(), task_examples.choices(home / "choices"), {"accuracy"}),
    }


@pytest.mark.parametrize(
    "kind, family",
    [
        ("pair", "roberta"),
        *(pytest.param("maybe", family, marks=pytest.mark.live) for family in ("bert", "roberta", "albert", "electra")),
    ],
)
def test_tasks_run_with_the_heads_of_each_family(kind, family, home, words):
    task, root, scores = list_tasks(home)[kind]
    sizes = dict(TINY, embedding_size=16 if family in ("albert", "electra") else 32, attention_dropout=0.0)
    model = replace(FAMILIES[family].SIZES[f"{family}-base"], **sizes)
    recipe = replace(QUICK, max_seq_length=40, num_steps=3, learning_rate=1e-3, num_length_buckets=1)
    name = f"{kind}-{family}"
    result = loop.train(build_run(name, task, root, home, words, recipe, config=model), home / "runs" / name, quiet)
    assert scores <= result["best"].keys() and result["steps"] == 3
    assert all(abs(result["best"][score]) < 1e6 for score in scores)


@pytest.mark.live
@pytest.mark.parametrize("kind, least", [("tags", 0.8), ("choice", 0.8)])
def test_other_kinds_can_be_learned(kind, least, home, words, capsys):
    task, root, _ = list_tasks(home)[kind]
    recipe = replace(
        QUICK, max_seq_length=28 if kind == "choice" else 40, num_epochs=12, learning_rate=4e-3, num_length_buckets=1
    )
    experiment = build_run(f"learn-{kind}", task, root, home, words, recipe, num_rows=64)
    at_the_end = replace(experiment.intervals, eval_every=experiment.num_steps, save_every=experiment.num_steps)
    experiment = replace(experiment, intervals=at_the_end)
    result = loop.train(experiment, home / "runs" / experiment.name, quiet)
    assert result["best"][experiment.objective.best_metric] > least
    assert_submit_refused(home / "runs" / experiment.name, capsys, values=[task.name, "submit"])


def test_a_task_with_two_development_sets_is_scored_on_both(home, words, sentiment):
    files = (("train", "train.tsv"), ("dev_matched", "dev.tsv"), ("dev_mismatched", "train.tsv"))
    task = TextTask("two", ("sentence",), labels=("0", "1"), files=files)
    recipe = replace(QUICK, num_steps=2)
    result = loop.train(build_run("two", task, sentiment, home, words, recipe), home / "runs" / "two", quiet)
    assert {"accuracy", "f1", "matthews", "mismatched_accuracy", "mismatched_loss"} <= result["heldout"].keys()


def test_the_best_checkpoint_predicts_by_default(learned, monkeypatch):
    asked = []
    monkeypatch.setattr(Run, "load_params", lambda run, at: asked.append(at) or (0, {}))
    load_predictor(learned[1]), load_predictor(learned[1], "latest")
    assert asked == ["best", "latest"]


def assert_submit_refused(folder, capsys, *options, values) -> None:
    """Check that no file to submit is written, with a message that names all of the values."""
    out = Path(folder).parent / "submissions"
    assert launch.main(["submit", str(folder), str(out), *options]) == 1 and not out.exists()
    assert_names(capsys.readouterr().err, *values)


def test_submit_needs_a_task_with_test_rows(learned, pretrained, tmp_path, capsys):
    assert_submit_refused(pretrained, capsys, values=["submit", "task"])
    assert_submit_refused(learned[1], capsys, "--root", str(tmp_path), values=["SST-2", tmp_path, "--root"])


# Beginnings -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(home, words):
    """A run with BERT's pre-training heads, whose parameters are random."""
    experiment = Experiment(
        name="pretrained",
        model=MODEL,
        objective=MaskedLM(sentence_task=NextSentencePrediction()),
        data=PretrainingData(("text.txt",), TokenizerSpec(path=words)),
        optimizer=AdamW(1e-3, 1),
        phases=(Phase(2, 32, 4, SegmentPairs()),),
    )
    write_random_run(home / "runs" / "pretrained", experiment, load_tokenizer(words))
    return str(home / "runs" / "pretrained")


def train_from(source_run, task, root, home, name):
    """Train one step from another run; return the logged line about its parameters, and the experiment."""
    lines = []
    experiment = build_finetuning(name, task, root, replace(QUICK, num_steps=1), 96, init_from=source_run)
    experiment = replace(experiment, data=replace(experiment.data, store_dir=str(home / "stores")))
    loop.train(experiment, home / "runs" / name, lines.append)
    return next(line for line in lines if line.startswith("initialised from")), experiment


def test_model_and_vocabulary_are_those_of_init_from(pretrained, sentiment, home):
    line, experiment = train_from(pretrained, GLUE_TASKS["SST-2"], sentiment, home, "after")
    assert experiment.model == MODEL and experiment.data.tokenizer.path == f"{pretrained}/tokenizer.json"
    assert "encoder, pooler; fresh: classes" in line


def test_the_log_has_the_passes_over_the_rows_that_are_left(pretrained, sentiment, home):
    recipe = replace(QUICK, batch_size=8, num_epochs=3, num_steps=None)
    experiment = build_finetuning("few", GLUE_TASKS["SST-2"], sentiment, recipe, 16, init_from=pretrained)
    assert experiment.num_steps == 6
    experiment = replace(
        experiment, data=replace(experiment.data, max_train_examples=8, store_dir=str(home / "stores"))
    )
    with prepare_run(experiment, home / "few", quiet) as (run, _, _):
        assert diagnostics.describe_passes(run) == "6.0 passes over 8 rows, to phases.until_step=6"


def test_a_head_is_transferred_only_for_the_same_labels(learned, sentiment, home):
    _, folder, _ = learned
    same, _ = train_from(str(folder), GLUE_TASKS["SST-2"], sentiment, home, "same")
    assert "new" not in same
    other = TextTask("other", ("sentence",), labels=("1", "0"))  # as many, but they mean something else
    line, _ = train_from(str(folder), other, sentiment, home, "other")
    assert line.endswith("encoder, pooler; fresh: classes")


def test_without_init_from_a_config_and_a_tokenizer_are_required(sentiment):
    with raises_naming(ExperimentError, "init_from=None", "config", "tokenizer_path"):
        build_finetuning("x", GLUE_TASKS["SST-2"], sentiment, QUICK, 96, init_from=None, config=MODEL)
    with raises_naming(RunError, "experiment.json"):
        build_finetuning("x", GLUE_TASKS["SST-2"], sentiment, QUICK, 96, init_from=sentiment)


def test_labels_of_objective_and_rows_must_agree(home, words, sentiment):
    experiment = build_run("x", GLUE_TASKS["SST-2"], sentiment, home, words)
    with raises_naming(ExperimentError, "label_names=", "'no'", "'yes'"):
        replace(experiment, objective=Classification(("no", "yes")))


# Files of experiments -------------------------------------------------------------------------------------------------


def test_an_epoch_is_one_pass_over_the_rows_that_are_there(home, pretrained, tmp_path):
    task_examples.classes(tmp_path / "GLUE" / "SST-2", rows=80)
    task_examples.numbers(tmp_path / "GLUE" / "STS-B", rows=40)
    task_examples.squad(tmp_path / "squad", questions=24)
    glue, squad = load_file("glue"), load_file("squad")
    given = {"init_from": pretrained, "rates": (1e-4,), "batches": (8,), "epochs": (1,)}
    for name, steps in (("SST-2", 10), ("STS-B", 5), ("RTE", math.ceil(NUM_GLUE_TRAIN_ROWS["RTE"] / 8))):
        for recipe in ("bert", "roberta"):
            (one,) = glue.experiments(root=str(tmp_path / "GLUE"), tasks=(name,), recipe=recipe, **given)
            assert (one.num_steps, one.intervals.eval_every) == (steps, steps)
    (paper,) = glue.experiments(init_from=pretrained, root=str(tmp_path / "GLUE"), tasks=("SST-2",), recipe="roberta")
    assert paper.num_steps == 20_935  # a recipe in steps
    (questions,) = squad.experiments(root=str(tmp_path / "squad"), **given)
    assert questions.num_steps == 3


@pytest.mark.parametrize(
    "values, labels",
    [
        (["good", "bad", "good"], ("bad", "good")),
        (["10", "9", "2"], ("2", "9", "10")),
        (["", "1", "0"], ("0", "1")),
        (["1", "2.5"], ()),
        ([str(i) for i in range(30)], ()),
    ],
)
def test_own_rows_have_the_labels_of_their_column(values, labels, pretrained, tmp_path):
    for split in ("train", "dev"):
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *(f"tan,{value}" for value in values)]))
    own = load_file("own")
    (one,) = own.experiments(pretrained, str(tmp_path))
    assert one.data.task.labels == labels and one.phases[0].seq_length == MODEL.max_positions
    (shorter,) = own.experiments(pretrained, str(tmp_path), length=64, labels=("number",) if not labels else labels)
    assert shorter.phases[0].seq_length == 64 and shorter.data.task == one.data.task
    with pytest.raises(ExperimentError, match="length=200 .*max_positions=128"):
        own.experiments(pretrained, str(tmp_path), length=200)


def test_tags_of_a_file_are_learned_and_cut_rows_are_counted(pretrained, home, words):
    root = task_examples.tags(home / "cut-tags")
    (one,) = load_file("tags").experiments(pretrained, root, length=8, epochs=(1,))
    assert one.data.task.labels == ("O", "B-LOC", "B-PER")
    one, lines = replace(one, data=replace(one.data, store_dir=str(home / "stores"))), []
    result = loop.train(one, home / "runs" / "cut-tags", lines.append)
    store = Run.open(home / "runs" / "cut-tags").store
    for split in (store.train_split, *store.eval_splits):
        sizes = np.diff(split.sentence_offsets) - 1
        assert result["cut_rows"][split.name] == (sizes > 6).sum() > 0
        (line,) = (line for line in lines if f"{split.name}: {(sizes > 6).sum()} of {len(sizes)} rows" in line)
        assert "warning" in line and "phases.seq_length=8" in line and "model.max_positions=128" in line
    assert {"PER", "LOC"} == result["best"]["classes"].keys()


def test_rows_that_fit_are_not_counted_as_cut(learned):
    _, folder, result = learned
    assert result["cut_rows"] == {"train": 0, "dev": 0}
    assert result["best"]["confusion"].keys() == result["best"]["classes"].keys() == {"0", "1"}
    (run,) = (run for run in read_runs(folder.parent)[0] if run.folder == folder)
    table, best = run.build_class_table(), result["best"]
    assert table.header[-2:] == ("predicted 0", "predicted 1")
    assert table.rows[1] == (
        "1",
        *(f"{best['classes']['1'][key]:.4g}" for key in ("precision", "recall", "f1", "count")),
        *(str(best["confusion"]["1"][label]) for label in ("0", "1")),
    )
