"""Fine-tuning as a run like any other: learned, interrupted, stopped early, begun with another run, and tabled."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

import launch
from encoders.costs.ledger import shapes
from encoders.data import stream
from encoders.data.formats import SegmentPairs
from encoders.data.prepare import Data
from encoders.data.stream import Phase
from encoders.experiment import Experiment, Network
from encoders.families import albert, bert, electra, roberta
from encoders.finetuning import grids
from encoders.finetuning.grids import Recipe, finetuned, grid
from encoders.finetuning.recipes import recipes
from encoders.inference.predictor import load
from encoders.objectives.masked_lm import Joint
from encoders.objectives.sentence_pair import NextSentence
from encoders.reporting.summaries import summary
from encoders.run import loop
from encoders.run.run import Run, RunError
from encoders.tasks.classification import Classification
from encoders.tasks.conventions import ALBERT, BERT, ELECTRA, ROBERTA, conventions
from encoders.tasks.glue import ROWS, TASKS, named
from encoders.tasks.multiple_choice import MultipleChoice
from encoders.tasks.squad import V1, V2
from encoders.tasks.text_tasks import Texts
from encoders.tasks.token_classification import Words
from encoders.text.tokenization import Vocabulary
from encoders.training.metric_log import rows
from encoders.training.optimizer import AdamW
from encoders.utils.overrides import ExperimentError, from_json, to_json
from tests import task_examples

TINY = dict(vocab=400, hidden=32, layers=1, heads=2, intermediate=48, positions=128, deviation=0.15, dropout=0.0)
MODEL = replace(bert.TINY, **TINY, embedding=32, attention_dropout=0.0)
ADAM = AdamW(1.0, 0, correction=True)
FAMILIES = {"bert": bert, "roberta": roberta, "albert": albert, "electra": electra}
QUICK = Recipe(rate=5e-3, batch=16, epochs=4, length=24, dropout=0.0, optimizer=ADAM, cuts=2)


def quiet(line):
    pass


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CUTS", 1)  # one length to compile
        yield tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def words(home):
    return task_examples.vocabulary(home)


@pytest.fixture(scope="module")
def sentiment(home):
    return task_examples.classes(home / "SST-2")


def made(name, task, root, home, words, recipe=QUICK, count=96, **given):
    given = {"start": None, "model": MODEL, "vocabulary": words} | given
    experiment = finetuned(name, task, root, recipe, count, **given)
    return replace(experiment, data=replace(experiment.data, folder=str(home / "stores")))


@pytest.fixture(scope="module")
def learned(home, words, sentiment):
    """A finished run on sentiment: its experiment, its folder and its result."""
    two = replace(MODEL, layers=2)
    experiment, folder = made("learned", TASKS["SST-2"], sentiment, home, words, model=two), home / "runs" / "learned"
    return experiment, folder, loop.train(experiment, folder, quiet)


def test_a_task_is_learned_and_its_best_checkpoint_kept(learned):
    experiment, folder, result = learned
    assert result["best"]["accuracy"] > 0.9
    held = [row for row in rows(folder / "metrics.jsonl") if row["split"] == "heldout"]
    assert len(held) == 4 and result["best"]["accuracy"] == max(row["accuracy"] for row in held)
    best = load(folder, "best")
    assert best.run.params("best")[0] == result["best"]["step"]


def test_a_run_of_a_task_is_read_back_from_json_as_it_was(learned):
    experiment, *_ = learned
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment


def test_what_is_predicted_of_the_development_rows_is_what_they_were_scored_by(learned, sentiment):
    _, folder, result = learned
    said = (Path(sentiment) / "dev.tsv").read_text().splitlines()[1:]
    texts, labels = zip(*(line.split("\t") for line in said), strict=True)
    found = [max(each, key=each.get) for each in load(folder, "latest", batch=7).classify(texts)]
    assert sum(a == b for a, b in zip(found, labels, strict=True)) / len(labels) == result["heldout"]["accuracy"]


def test_an_interrupted_run_ends_with_the_same_numbers(learned, home, monkeypatch):
    experiment, folder, result = learned
    again, record, seen = home / "runs" / "again", loop.record, []

    def interrupted(run, index, tally, out):
        record(run, index, tally, out)
        seen.append(index)
        if seen == [6, 12, 18]:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(experiment, again, quiet)
    resumed = loop.train(experiment, again, quiet)
    assert seen == [6, 12, 18, 18, 24] and resumed["best"] == result["best"]
    strip = lambda path: [{k: v for k, v in row.items() if k != "time"} for row in rows(path)]
    assert strip(again / "metrics.jsonl") == strip(folder / "metrics.jsonl")


def test_a_run_stops_some_evaluations_after_its_best(home, words, sentiment):
    recipe = replace(QUICK, rate=1e-12, epochs=9, stop_after=2)
    experiment, folder = made("early", TASKS["SST-2"], sentiment, home, words, recipe), home / "runs" / "early"
    result = loop.train(experiment, folder, quiet)
    assert (result["best"]["step"], result["steps"], experiment.steps) == (6, 18, 54)
    assert loop.train(experiment, folder, quiet) == result


def kinds(home):
    """Every kind of task: its value, its folder, and the scores it is judged by."""
    return {
        "pair": (replace(TASKS["STS-B"]), task_examples.numbers(home / "sts"), {"spearman", "pearson"}),
        "span": (V1, task_examples.squad(home / "squad"), {"exact", "f1"}),
        "maybe": (
            V2,
            task_examples.squad(home / "squad2", unanswerable=True),
            {"exact", "f1", "threshold", "f1_at_zero"},
        ),
        "tags": (Words(("O", "B-PER", "B-LOC")), task_examples.tags(home / "tags"), {"f1"}),
        "choice": (MultipleChoice(), task_examples.choices(home / "choices"), {"accuracy"}),
    }


@pytest.mark.parametrize(
    "kind, family",
    [*(("maybe", family) for family in FAMILIES), ("pair", "roberta")],
)
def test_tasks_run_with_the_heads_of_each_family(kind, family, home, words):
    task, root, scores = kinds(home)[kind]
    sizes = dict(TINY, embedding=16 if family in ("albert", "electra") else 32, attention_dropout=0.0)
    model = replace(FAMILIES[family].SIZES[f"{family}-base"], **sizes)
    recipe = replace(QUICK, length=40, steps=3, rate=1e-3, cuts=1)
    name = f"{kind}-{family}"
    result = loop.train(made(name, task, root, home, words, recipe, model=model), home / "runs" / name, quiet)
    assert scores <= result["best"].keys() and result["steps"] == 3
    assert all(abs(result["best"][score]) < 1e6 for score in scores)


@pytest.mark.parametrize("kind, least", [("tags", 0.8), ("choice", 0.8)])
def test_other_kinds_can_be_learned(kind, least, home, words, capsys):
    task, root, _ = kinds(home)[kind]
    recipe = replace(QUICK, length=28 if kind == "choice" else 40, epochs=12, rate=4e-3, cuts=1)
    experiment = made(f"learn-{kind}", task, root, home, words, recipe, count=64)
    result = loop.train(experiment, home / "runs" / experiment.name, quiet)
    assert result["best"][experiment.objective.goal] > least
    assert f"{task.name}: GLUE's tasks and SQuAD" in refusal_to_submit(home / "runs" / experiment.name, capsys)


def test_a_task_with_two_development_sets_is_scored_on_both(home, words, sentiment):
    files = (("train", "train.tsv"), ("dev_matched", "dev.tsv"), ("dev_mismatched", "train.tsv"))
    task = Texts("two", ("sentence",), labels=("0", "1"), files=files)
    recipe = replace(QUICK, steps=2)
    result = loop.train(made("two", task, sentiment, home, words, recipe), home / "runs" / "two", quiet)
    assert {"accuracy", "f1", "matthews", "mismatched_accuracy", "mismatched_loss"} <= result["heldout"].keys()


def test_the_best_checkpoint_answers_unless_another_is_asked_for(learned, monkeypatch):
    asked = []
    monkeypatch.setattr(Run, "params", lambda run, at: asked.append(at) or (0, {}))
    load(learned[1]), load(learned[1], "latest")
    assert asked == ["best", "latest"]


def refusal_to_submit(folder, capsys, *options) -> str:
    out = Path(folder).parent / "submissions"
    assert launch.main(["submit", str(folder), str(out), *options]) == 1 and not out.exists()
    return capsys.readouterr().err


def test_only_runs_of_tasks_with_rows_to_submit_submit(learned, pretrained, tmp_path, capsys):
    assert "trained on no task" in refusal_to_submit(pretrained, capsys)
    said = refusal_to_submit(learned[1], capsys, "--root", str(tmp_path))
    assert f"{tmp_path} has no test rows of SST-2" in said


# Beginnings -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(home, words):
    from tests import texts

    corpus = str(texts.write(home / "text.txt", documents=60))
    experiment = Experiment(
        name="pretrained",
        model=MODEL,
        objective=Joint(sentences=NextSentence()),
        data=Data((corpus,), Vocabulary(path=words), heldout=0.2, folder=str(home / "stores")),
        optimizer=AdamW(1e-3, 1),
        phases=(Phase(2, 32, 4, SegmentPairs()),),
    )
    loop.train(experiment, home / "runs" / "pretrained", quiet)
    return str(home / "runs" / "pretrained")


def begun(start, task, root, home, name):
    said = []
    experiment = finetuned(name, task, root, replace(QUICK, steps=1), 96, start=start)
    experiment = replace(experiment, data=replace(experiment.data, folder=str(home / "stores")))
    loop.train(experiment, home / "runs" / name, said.append)
    return next(line for line in said if line.startswith("begins with")), experiment


def test_the_model_and_the_vocabulary_are_those_of_the_run_it_begins_with(pretrained, sentiment, home):
    said, experiment = begun(pretrained, TASKS["SST-2"], sentiment, home, "after")
    assert experiment.model == MODEL and experiment.data.vocabulary.path == f"{pretrained}/tokenizer.json"
    assert "encoder, pooler; new: classes" in said


def test_a_head_is_taken_over_for_the_same_classes_only(learned, sentiment, home):
    _, folder, _ = learned
    same, _ = begun(str(folder), TASKS["SST-2"], sentiment, home, "same")
    assert "new" not in same
    other = Texts("other", ("sentence",), labels=("1", "0"))  # as many, but they mean something else
    said, _ = begun(str(folder), other, sentiment, home, "other")
    assert said.endswith("encoder, pooler; new: classes")


def test_without_a_run_a_model_and_a_vocabulary_are_needed(sentiment):
    with pytest.raises(ExperimentError, match="a model and a vocabulary are needed"):
        finetuned("x", TASKS["SST-2"], sentiment, QUICK, 96, start=None, model=MODEL)
    with pytest.raises(RunError, match="holds no run"):
        finetuned("x", TASKS["SST-2"], sentiment, QUICK, 96, start=sentiment)


def test_labels_of_objective_and_rows_must_agree(home, words, sentiment):
    experiment = made("x", TASKS["SST-2"], sentiment, home, words)
    with pytest.raises(ExperimentError, match="the rows' are"):
        replace(experiment, objective=Classification(("no", "yes")))


# Recipes and grids ----------------------------------------------------------------------------------------------------


def test_a_warm_up_below_one_is_a_share_and_epochs_count_rows(words):
    common = dict(start=None, model=MODEL, vocabulary=words)
    one = finetuned("x", TASKS["RTE"], "r", Recipe(3e-5, 32, epochs=3), ROWS["RTE"], **common)
    assert (one.steps, one.optimizer.warmup, one.cadence.evaluate) == (234, 23, 78)  # 2,490 x 3 / 32
    both = finetuned("x", TASKS["MRPC"], "r", Recipe(3e-5, 32, both_orders=True), ROWS["MRPC"], **common)
    assert both.steps == 688 and both.phases[0].format.symmetric
    once = finetuned("x", TASKS["RTE"], "r", Recipe(3e-5, 32, both_orders=True, steps=800, warmup=200), 9, **common)
    assert (once.steps, once.optimizer.warmup) == (800, 200) and not once.phases[0].format.symmetric


def test_every_option_of_a_question_has_a_recipes_length(words):
    model = replace(MODEL, positions=512)
    for length, each in ((512, 512), (128, 128), (600, 512)):
        recipe = replace(QUICK, length=length)
        one = finetuned("x", MultipleChoice(), "r", recipe, 96, start=None, model=model, vocabulary=words)
        (phase,) = one.phases
        assert (phase.length, phase.format.longest(phase.length)) == (4 * each, each)


@pytest.mark.parametrize("task", ROWS)
def test_every_epoch_is_evaluated_once(words, task):
    recipe = Recipe(3e-5, 32, epochs=3)
    one = finetuned("x", TASKS[task], "r", recipe, ROWS[task], start=None, model=MODEL, vocabulary=words)
    every, steps = one.cadence.evaluate, one.steps
    evaluated = {*range(every, steps, every), steps}
    assert len(evaluated) == 3 and steps - every * 2 > every // 2


def test_a_grid_has_every_recipe_with_every_seed(words):
    several = [replace(QUICK, rate=rate, batch=batch) for rate in (1e-3, 2e-3) for batch in (8, 16)]
    members = grid("g", TASKS["RTE"], "r", several, 96, seeds=2, start=None, model=MODEL, vocabulary=words)
    names = [member.name for member in members]
    assert len(set(names)) == 8 and "g-rate0.002-batch8-seed1" in names
    assert {member.seed for member in members} == {0, 1}


def test_rates_batches_and_epochs_span_a_grid_in_the_place_of_a_recipes_own():
    parts = lambda *given, **axes: [(r.rate, r.batch, r.steps or r.epochs) for r in recipes(*given, MODEL, **axes)]
    assert parts("bert", "RTE") == [(rate, 32, 3) for rate in (5e-5, 4e-5, 3e-5, 2e-5)]
    assert parts("bert", "RTE", batches=(16,), epochs=(4,)) == [(r, 16, 4) for r in (5e-5, 4e-5, 3e-5, 2e-5)]
    ten = parts("roberta", "RTE", rates=(1e-5, 2e-5), batches=(16, 32), epochs=(10,))
    assert ten == [(1e-5, 16, 10), (1e-5, 32, 10), (2e-5, 16, 10), (2e-5, 32, 10)]
    (twice,) = recipes("roberta", "RTE", MODEL, batches=(32,))  # fairseq has 2,036 updates of 16 rows
    assert (twice.steps, twice.batch, twice.warmup) == (1018, 32, pytest.approx(122 / 2036))
    (longer,) = recipes("roberta", "RTE", MODEL, epochs=(10,))
    assert (longer.steps, longer.epochs, longer.batch, longer.warmup) == (None, 10, 16, pytest.approx(122 / 2036))
    assert recipes("roberta", "RTE", MODEL, rates=(2e-5,)) == recipes("roberta", "RTE", MODEL)


@pytest.mark.parametrize("name, said", [("SST2", "there are CoLA, SST-2"), ("AX", "no training rows")])
def test_a_task_that_glue_has_not_is_refused_by_name(name, said):
    with pytest.raises(ExperimentError, match=said):
        named(name)


@pytest.mark.parametrize(
    "sizes, family", [(bert, BERT), (roberta, ROBERTA), (albert, ALBERT), (electra, ELECTRA)], ids=lambda x: str(x)[:20]
)
def test_conventions_are_found_by_what_a_model_is(sizes, family):
    assert {conventions(model) for model in sizes.SIZES.values()} == {family}


@pytest.mark.parametrize("file", ["glue", "squad"])
@pytest.mark.parametrize("name", FAMILIES)
def test_members_at_paper_scale_initialise(file, name, monkeypatch):
    path = Path(__file__).parents[2] / "experiments" / f"{file}.py"
    spec = importlib.util.spec_from_file_location(file, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    known = Network(name="known", model=FAMILIES[name].SIZES[f"{name}-base"], objective=Joint())
    for place in (module, grids):
        monkeypatch.setattr(place, "network", lambda run: known)
    ways = {"glue": [{"seeds": 2}], "squad": [{}, {"version": "2.0"}, {"version": "2.0", "design": "judged"}]}
    members = [member for each in ways[file] for member in module.experiments(f"runs/{name}", **each)]
    assert len({member.name for member in members}) == len(members)
    for objective in {member.objective for member in members}:
        tree = shapes(known.model, objective)
        assert "encoder" in tree and len(tree) > 1
    if file == "glue":
        assert {member.data.task.name for member in members} == set(TASKS)


# The table ------------------------------------------------------------------------------------------------------------


def test_seeds_share_a_row_with_their_median_and_range(words):
    members = grid("g", TASKS["MRPC"], "r", [QUICK], 96, seeds=3, start=None, model=MODEL, vocabulary=words)
    best = [{"step": 6, "loss": 0.5, "accuracy": a, "f1": a / 2} for a in (0.5, 0.9, 0.6)]
    results = [{"name": m.name, "best": b} for m, b in zip(members, best, strict=True)]
    row = summary(list(zip(members, results, strict=True))).splitlines()[2].split()
    assert row[:8] == ["g", "3", "accuracy", "0.6", "0.5", "0.9", "6", "of"] and row[-2:] == ["f1", "0.3"]
