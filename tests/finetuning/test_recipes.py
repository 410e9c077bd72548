"""Recipes, grids and the files of fine-tuning experiments: what runs they make, before any is trained."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from encoders.costs.ledger import eval_param_shapes
from encoders.data.packing import PackedFormat
from encoders.experiment import RunSpec
from encoders.finetuning import grids
from encoders.finetuning.grids import Recipe, build_finetuning, build_finetuning_grid
from encoders.finetuning.recipes import build_recipes
from encoders.objectives.masked_lm import MaskedLM
from encoders.reporting.summaries import summarize_results
from encoders.run.folder import parse_run_spec
from encoders.tasks.encoder_only import EncoderOnly
from encoders.tasks.glue import GLUE_TASKS, NUM_GLUE_TRAIN_ROWS, get_glue_task
from encoders.tasks.multiple_choice import MultipleChoiceTask
from encoders.tasks.text_groups import TextGroups
from encoders.text.tokenization import load_tokenizer
from encoders.utils.serialization import ExperimentError, to_json_value
from tests import task_examples
from tests.finetuning.tiny import FAMILIES, MODEL, QUICK, build_run, load_file
from tests.networks import write_random_run
from tests.refusals import raises_naming


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return task_examples.vocabulary(tmp_path_factory.mktemp("home"))


def plan(task: str, recipe, words, num_rows=None):
    """Return the fine-tuning of a GLUE task by a recipe."""
    num_rows, model = num_rows or NUM_GLUE_TRAIN_ROWS[task], dict(config=MODEL, tokenizer_path=words)
    return build_finetuning("x", GLUE_TASKS[task], "r", recipe, num_rows, init_from=None, **model)


def test_a_warm_up_below_one_is_a_share_and_epochs_count_rows(words):
    one = plan("RTE", Recipe(3e-5, 32, num_epochs=3), words)
    assert (one.num_steps, one.optimizer.warmup_steps, one.intervals.eval_every) == (234, 23, 78)  # 2,490 x 3 / 32
    both = plan("MRPC", Recipe(3e-5, 32, both_orders=True), words)
    assert both.num_steps == 688 and both.phases[0].format.both_orders
    once = plan("RTE", Recipe(3e-5, 32, both_orders=True, num_steps=800, warmup=200), words, num_rows=9)
    assert (once.num_steps, once.optimizer.warmup_steps) == (800, 200) and not once.phases[0].format.both_orders


def test_every_option_of_a_question_has_the_recipes_length(words):
    model = replace(MODEL, max_positions=512)
    for length, option_length in ((512, 512), (128, 128), (600, 512)):
        recipe = replace(QUICK, max_seq_length=length)
        (phase,) = build_run("x", MultipleChoiceTask(), "r", Path("r"), words, recipe, config=model).phases
        lengths = phase.seq_length, phase.format.max_example_length(phase.seq_length)
        assert lengths == (4 * option_length, option_length)


@pytest.mark.parametrize("task", NUM_GLUE_TRAIN_ROWS)
def test_every_epoch_is_evaluated_once(words, task):
    run = plan(task, Recipe(3e-5, 32, num_epochs=3), words)
    every, steps = run.intervals.eval_every, run.num_steps
    evaluated = {*range(every, steps, every), steps}
    assert len(evaluated) == 3 and steps - every * 2 > every // 2


def test_a_grid_has_every_recipe_with_every_seed(words):
    several = [replace(QUICK, learning_rate=rate, batch_size=batch) for rate in (1e-3, 2e-3) for batch in (8, 16)]
    members = build_finetuning_grid(
        "g", GLUE_TASKS["RTE"], "r", several, 96, num_seeds=2, init_from=None, config=MODEL, tokenizer_path=words
    )
    names = [member.name for member in members]
    assert len(set(names)) == 8 and "g-rate0.002-batch8-seed1" in names
    assert {member.seed for member in members} == {0, 1}


def test_rates_batch_sizes_and_epochs_override_a_recipes_own():
    parts = lambda *given, **axes: [
        (r.learning_rate, r.batch_size, r.num_steps or r.num_epochs) for r in build_recipes(*given, MODEL, **axes)
    ]
    assert parts("bert", "RTE") == [(rate, 32, 3) for rate in (5e-5, 4e-5, 3e-5, 2e-5)]
    assert parts("bert", "RTE", batch_sizes=(16,), epoch_counts=(4,)) == [(r, 16, 4) for r in (5e-5, 4e-5, 3e-5, 2e-5)]
    ten = parts("roberta", "RTE", learning_rates=(1e-5, 2e-5), batch_sizes=(16, 32), epoch_counts=(10,))
    assert ten == [(1e-5, 16, 10), (1e-5, 32, 10), (2e-5, 16, 10), (2e-5, 32, 10)]
    (twice,) = build_recipes("roberta", "RTE", MODEL, batch_sizes=(32,))  # fairseq has 2,036 updates of 16 rows
    assert (twice.num_steps, twice.batch_size, twice.warmup) == (1018, 32, pytest.approx(122 / 2036))
    (longer,) = build_recipes("roberta", "RTE", MODEL, epoch_counts=(10,))
    assert (longer.num_steps, longer.num_epochs, longer.batch_size, longer.warmup) == (
        None,
        10,
        16,
        pytest.approx(122 / 2036),
    )
    assert build_recipes("roberta", "RTE", MODEL, learning_rates=(2e-5,)) == build_recipes("roberta", "RTE", MODEL)


@pytest.mark.parametrize("name, accepted", [("SST2", "CoLA, SST-2"), ("AX", "MNLI")])
def test_a_name_that_is_not_a_glue_task_is_refused(name, accepted):
    with raises_naming(ExperimentError, name, accepted):
        get_glue_task(name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_record_without_conventions_gets_those_of_its_family(family):
    for model in FAMILIES[family].SIZES.values():
        assert model.conventions == FAMILIES[family].CONVENTIONS and model.conventions.name == family
        experiment = to_json_value(RunSpec(name="known", model=model, objective=MaskedLM()))
        del experiment["model"]["conventions"]
        assert parse_run_spec({"experiment": experiment}).model == model


@pytest.mark.parametrize("file", ["glue", "squad"])
@pytest.mark.parametrize("name", FAMILIES)
def test_experiments_at_paper_scale_initialise(file, name, monkeypatch):
    module = load_file(file)
    known = RunSpec(name="known", model=FAMILIES[name].SIZES[f"{name}-base"], objective=MaskedLM())
    for place in (module, grids):
        monkeypatch.setattr(place, "load_run_spec", lambda run: known)
    ways = {"glue": [{"seeds": 2}], "squad": [{}, {"version": "2.0"}, {"version": "2.0", "design": "classifier"}]}
    members = [member for each in ways[file] for member in module.experiments(f"runs/{name}", **each)]
    assert len({member.name for member in members}) == len(members)
    for objective in {member.objective for member in members}:
        tree = eval_param_shapes(known.model, objective)
        assert "encoder" in tree and len(tree) > 1
    if file == "glue":
        assert {member.data.task.name for member in members} == set(GLUE_TASKS)


def test_seeds_share_a_row_with_their_median_and_range(words):
    members = build_finetuning_grid(
        "g", GLUE_TASKS["MRPC"], "r", [QUICK], 96, num_seeds=3, init_from=None, config=MODEL, tokenizer_path=words
    )
    best = [{"step": 6, "loss": 0.5, "accuracy": a, "f1": a / 2} for a in (0.5, 0.9, 0.6)]
    results = [{"name": m.name, "best": b} for m, b in zip(members, best, strict=True)]
    row = summarize_results(list(zip(members, results, strict=True))).splitlines()[2].split()
    assert row[:8] == ["g", "3", "accuracy", "0.6", "0.5", "0.9", "6", "of"] and row[-2:] == ["f1", "0.3"]


@pytest.fixture(scope="module")
def source(words, tmp_path_factory):
    """The folder of a run of random parameters, in a folder with rows of texts and of scored pairs."""
    home = tmp_path_factory.mktemp("source")
    write_random_run(home / "bert", RunSpec(name="bert", model=MODEL, objective=EncoderOnly()), load_tokenizer(words))
    task_examples.numbers(home / "STS-B")
    (home / "sentences.txt").write_text("a b\nc d\ne f\n", encoding="utf-8")
    (home / "nli.csv").write_text("sent0,sent1,hard_neg\na b,c d,e f\n", encoding="utf-8")
    (home / "pairs").mkdir()
    (home / "pairs" / "train.jsonl").write_text('{"anchor": "a b", "positive": "c d"}\n', encoding="utf-8")
    return home / "bert"


def test_simcse_has_the_recipes_of_its_paper_and_a_grid(source):
    build, sts = load_file("simcse").experiments, str(source.parent / "STS-B" / "dev.tsv")
    alone, other = build(str(source), sts, sentences=str(source.parent / "sentences.txt"), temperatures=(0.05, 0.1))
    assert (alone.name, other.name) == ("bert-simcse-temperature0.05-seed0", "bert-simcse-temperature0.1-seed0")
    assert (alone.optimizer.learning_rate, alone.phases[0].batch_size, alone.num_steps) == (3e-5, 64, 1)
    assert alone.phases[0].seq_length == 2 * 32 and alone.objective.projection_size == MODEL.hidden_size
    assert alone.model.hidden_dropout == 0.1 and other.objective.loss.temperature == 0.1
    (nli,) = build(str(source), sts, nli=str(source.parent / "nli.csv"), poolings=("mean",))
    assert (nli.phases[0].batch_size, nli.phases[0].seq_length) == (512, 3 * 32)
    assert nli.objective.projection_size is None and nli.objective.best_metric == "spearman"
    with raises_naming(ExperimentError, "sentences=None", "nli=None"):
        build(str(source), sts)


def test_tsdae_denoises_sentences_and_has_a_grid(source):
    build, sts = load_file("tsdae").experiments, str(source.parent / "STS-B" / "dev.tsv")
    sentences = str(source.parent / "sentences.txt")
    (alone,) = build(str(source), sts, sentences)
    assert (alone.name, alone.objective.pooling, alone.objective.deletion_rate) == ("bert-tsdae-seed0", "cls", 0.6)
    assert (alone.phases[0].batch_size, alone.num_steps) == (8, 1)
    assert alone.objective.loss_weights == {"reconstruction_loss": 1.0} and not alone.objective.compares_rows
    grid = build(str(source), sts, sentences, deletions=(0.3, 0.6), poolings=("cls", "mean"), seeds=2)
    assert grid[-1].name == "bert-tsdae-deletion0.6-mean-seed1" and len(grid) == 8


def test_simcse_reads_nli_in_the_layouts_of_snli_and_mnli(source, tmp_path):
    build, sts = load_file("simcse").experiments, str(source.parent / "STS-B" / "dev.tsv")
    with raises_naming(ExperimentError, str(tmp_path), "snli_1.0_train.jsonl"):
        build(str(source), sts, nli=str(tmp_path))
    rows = [{"sentence1": "p", "sentence2": label, "gold_label": label} for label in ("contradiction", "entailment")]
    (tmp_path / "snli_1.0_train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (single,) = build(str(source), sts, nli=str(tmp_path))
    lines = ["\t".join(row.values()) for row in ({name: name for name in rows[0]}, *rows, *rows)]
    (tmp_path / "train.tsv").write_text("\n".join(lines), encoding="utf-8")
    (both,) = build(str(source), sts, nli=str(tmp_path), batches=(1,))
    (one,) = build(str(source), sts, nli=str(tmp_path / "train.tsv"), batches=(1,))
    assert single.data.task.nli_label_column == "gold_label" and single.phases[0].format.num_texts == 3
    assert (both.num_steps, one.num_steps) == (3 * 3, 3 * 2)  # three epochs of 1 + 2 and of 2 rows
    assert [name for name, _ in both.data.task.sources] == ["snli_1.0_train.jsonl", "train.tsv"]
    assert one.data.task.sources == () and one.data.root == both.data.root == str(tmp_path)


def test_stages_of_embeddings_start_from_each_other(source):
    rows = dict(pairs=str(source.parent / "pairs"), scored=str(source.parent / "STS-B"))
    first, second = load_file("embeddings").experiments(str(source), **rows, query_prompt="query: ", chunks=4, runs="r")
    assert (first.name, second.name) == ("bert-pairs-seed0", "bert-scored-seed0")
    assert (first.init_from, second.init_from) == (str(source), "r/bert-pairs-seed0")
    packed, _ = load_file("embeddings").experiments(str(source), **rows, query_prompt="query: ", packed=4)
    assert packed.phases[0] == replace(first.phases[0], format=PackedFormat(TextGroups(2), 4), batch_size=64)
    assert first.data.task.prompts == ("query: ", "") and first.grad_accum_steps == second.grad_accum_steps == 4
    assert (first.objective.best_metric, second.objective.best_metric) == ("accuracy", "spearman")
    with raises_naming(ExperimentError, "pairs=", "hard=", "scored="):
        load_file("embeddings").experiments(str(source))
