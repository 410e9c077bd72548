"""Sentence embeddings: rows of texts, a step of a batch that is encoded in chunks, scores, and a run that learns."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import pearsonr

from encoders.data.row_files import RowError, RowReader
from encoders.data.stream import BatchStream, Phase, assemble_rows
from encoders.experiment import Experiment
from encoders.finetuning.grids import build_finetuning
from encoders.inference.predictor import load_predictor
from encoders.inference.sentence_embedding import SentenceEmbedding
from encoders.model.encoder import Encoder
from encoders.model.heads import average_examples
from encoders.objectives.embedding_losses import Distillation, InfoNCE, Matryoshka, TextRelations, TripletLoss
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.run import loop
from encoders.run.folder import RunError
from encoders.tasks.contrastive import Contrastive
from encoders.tasks.scores import score_positive_ranks
from encoders.tasks.text_groups import EmbeddingTask, TextGroups
from encoders.training.metric_log import Intervals
from encoders.training.step import compute_gradients, init_params
from encoders.utils.errors import UserError
from encoders.utils.serialization import ExperimentError, to_json_value
from tests import task_examples
from tests.finetuning.tiny import MODEL, QUICK, build_run
from tests.networks import make_vocab, random_parameters
from tests.refusals import raises_naming
from tests.run import test_loop
from tests.tasks.text_rows import make_split, make_table, make_text_batch

VOCAB = make_vocab(MODEL.vocab_size)
TWO_LAYERS = replace(MODEL, num_layers=2)
PAIRS = EmbeddingTask(scored_splits=("dev",), files=(("train", "train.jsonl"), ("dev", "dev.tsv")))


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def read(task, root, split="train"):
    return [(row.texts, row.target) for row in task.read_examples(str(root), split, RowReader())]


def test_columns_give_the_texts_of_a_row_with_their_prompts(tmp_path):
    write_lines(tmp_path / "train.jsonl", [{"q": "a b", "p": "c", "n": ["d", "e f", "g"]}])
    task = EmbeddingTask(text_columns=("q", "p", "n"), prompts=("query: ", "", "- "), num_texts=4, group_column="q")
    (row,) = read(task, tmp_path)
    assert row[0] == ("query: a b", "c", "- d", "- e f") and np.isnan(row[1][0]) and row[1][1] == "a b"


def test_scored_rows_are_two_texts_and_a_similarity_from_0_to_1(tmp_path):
    (tmp_path / "dev.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t2.5\n", encoding="utf-8")
    assert read(PAIRS, tmp_path, "dev") == [(("a", "b"), (0.5, None, None))]


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"anchor": "a", "positive": []}, r"positive=\[\] .*list of texts"),
        ({"anchor": "a", "positive": ["b", 3]}, "positive=.*3.*list of texts"),
        ({"anchor": " ", "positive": "b"}, "anchor is empty"),
        ({"anchor": "a"}, "no column 'positive'.* anchor"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, row, wrong):
    write_lines(tmp_path / "train.jsonl", [row])
    with pytest.raises(RowError, match=f"train.jsonl:1: .*{wrong}"):
        read(PAIRS, tmp_path)


def test_a_similarity_outside_of_its_range_is_named(tmp_path):
    (tmp_path / "dev.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t5.5\n", encoding="utf-8")
    with pytest.raises(RowError, match="dev.tsv:2: score='5.5' .* 0 to max_score=5"):
        read(PAIRS, tmp_path, "dev")


def test_each_text_is_an_example_of_its_row_and_a_text_alone_is_there_twice():
    split = make_split([[[5, 6], [7], [8, 9]], [[7]], [[5, 6], [10, 11, 12, 13, 14]]], [np.nan, np.nan, 0.5], [0, 3, 0])
    table = make_table(split, 3, 15)
    batch = assemble_rows(split, table, 15, VOCAB, TextGroups(3))
    c, s = VOCAB.cls_id, VOCAB.sep_id
    assert [[token for token in row if token != VOCAB.pad_id] for row in batch.input_ids.tolist()] == [
        [c, 5, 6, s, c, 7, s, c, 8, 9, s],
        [c, 7, s, c, 7, s],
        [c, 5, 6, s, c, 10, 11, 12, s],  # cut at a third of the row
    ]
    ids = batch.labels["text_id"]
    assert ids[0, 1] == ids[1, 0] == ids[1, 1] and ids[0, 0] == ids[2, 0] and len({*ids[0], ids[2, 1]}) == 4
    assert batch.example_mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0]]
    np.testing.assert_array_equal(batch.labels["similarity"][:, 0], np.array([np.nan, np.nan, 0.5], np.float32))
    assert batch.labels["group_id"][:, 0].tolist() == [0, 3, 0]


def test_batches_hold_texts_of_any_length_and_no_text_twice(tmp_path):
    rng = np.random.default_rng(0)
    rows = [[rng.integers(5, 400, size).tolist(), rng.integers(5, 400, size).tolist()] for size in [2, 12] * 16]
    rows += [[rows[0][0], [7, 8]], [rows[1][0], [8, 9]]]  # an anchor that occurs again
    rows *= 2
    phase = Phase(until_step=17, seq_length=36, batch_size=4, format=TextGroups(), num_length_buckets=4)
    batches = [*BatchStream(make_split(rows), VOCAB, (phase,), 0, 1, tmp_path).iter_batches(0, 17)]
    texts = [batch.labels["text_id"][batch.example_mask > 0].tolist() for batch in batches]
    assert all(len(set(ids)) == len(ids) for ids in texts) and sum(map(len, texts)) == 2 * len(rows)
    have_several_lengths = [np.ptp((batch.example_ids > 0).sum(1)) > 0 for batch in batches]
    assert np.mean(have_several_lengths) > 0.8
    assert {batch.input_ids.shape[1] for batch in batches} <= {9, 18, 27, 36}


def test_prompts_of_the_rows_are_those_of_the_trained_run():
    task = EmbeddingTask(text_columns=("q", "p", "n"), prompts=("query: ", "passage: ", ""), num_texts=3)
    objective, row_format = task.build_objective_and_format(MODEL.conventions, 0.1, False)
    settings = SentenceEmbedding.choose_settings({}, objective)
    assert settings.get_prompt("query") == "query: " and settings.find_prompt_name("document") == "passage"
    assert settings.normalize and settings.pooling == "mean" and row_format.num_texts == 3


def test_a_loss_that_needs_more_texts_than_the_rows_have_is_refused(tmp_path):
    train = dict(init_from=None, config=MODEL, tokenizer_path="vocabulary.json")
    with raises_naming(ExperimentError, "TripletLoss", "3", "num_texts=2"):
        build_finetuning("triplets", PAIRS, "rows", QUICK, 8, objective=Contrastive(TripletLoss()), **train)
    with raises_naming(UserError, "projection_size=0"):
        Contrastive(projection_size=0)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last", "pooled", "attention"])
def test_the_vector_of_a_text_does_not_depend_on_the_texts_beside_it(pooling):
    objective = Contrastive(pooling=pooling)
    texts = [[5, 6], [7], [8, 9, 10]]
    together, alone = encode_rows(objective, [texts])[0], encode_rows(objective, [[text] for text in texts])[:, 0]
    assert together.shape == (3, MODEL.hidden_size) and np.abs(together[0] - together[1]).max() > 0.02
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def encode_rows(objective, rows):
    split = make_split(rows)
    batch = assemble_rows(split, make_table(split, 3, 36), 36, VOCAB, TextGroups(3))
    module, batch = objective.module(MODEL, VOCAB), jax.tree.map(jnp.asarray, batch)
    params = random_parameters(objective, MODEL, VOCAB, batch)
    return np.array(jax.jit(lambda: module.apply({"params": params}, batch, method=module.compute_logits).vectors)())


LEARNED_SCALE = InfoNCE(symmetric=True, learn_temperature=True)
ALL_TERMS = Contrastive(Matryoshka(LEARNED_SCALE, (4, 8), layers=(1,)), "attention", masking=Masking())


@pytest.mark.parametrize(
    "objective, parts",
    [
        (Contrastive(LEARNED_SCALE, projection_size=8), {"projection"}),
        pytest.param(ALL_TERMS, {"attention_pooler", "tokens"}, marks=pytest.mark.live),
    ],
    ids=["projection", "all terms"],
)
def test_gradients_of_a_batch_in_chunks_are_those_of_the_whole_batch(objective, parts):
    config = TWO_LAYERS if objective.loss.layers else MODEL
    module, batch = objective.module(config, VOCAB), make_text_batch(num_rows=8, num_texts=3)
    params = init_params(0, module)
    compute = jax.jit(compute_gradients, static_argnames=("module", "grad_accum_steps"))
    (loss, _), whole = compute(params, batch, 0, 0, module=module)
    (chunked_loss, _), chunked = compute(params, batch, 0, 0, module=module, grad_accum_steps=4)
    assert float(chunked_loss) == pytest.approx(float(loss), rel=1e-6)
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, chunked, whole)) / optax.tree.norm(whole)
    assert float(difference) < 1e-6
    if objective != ALL_TERMS:  # whose single elements differ by more, of sums of many more terms
        size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * size), chunked, whole)
    assert set(params) == {"encoder", "log_scale", *parts} and whole["log_scale"] != 0


def test_the_loss_adds_those_of_masked_tokens_and_of_other_layers():
    masking, batch = Masking(), jax.tree.map(jnp.asarray, make_text_batch(num_rows=8, num_texts=2))
    objective = Contrastive(Matryoshka(InfoNCE(), layers=(1,)), masking=masking, masked_lm_weight=0.3)
    module, masked_lm = objective.module(TWO_LAYERS, VOCAB), MaskedLM(masking).module(TWO_LAYERS, VOCAB)

    @jax.jit
    def compute(seed):
        params, masked = init_params(seed, module), objective.corrupt(batch, VOCAB, 0)
        metrics = module.apply({"params": params}, masked, train=True, rngs={"dropout": jax.random.key(0)})
        hidden = Encoder(TWO_LAYERS).apply({"params": params["encoder"]}, batch, output_hidden_states=True)
        rows = TextRelations.from_batch(batch)
        layers = [InfoNCE().compute_metrics(average_examples(layer, batch), rows, None) for layer in hidden[1:]]
        heads = {name: params[name] for name in ("encoder", "tokens")}
        return metrics, masked_lm.apply({"params": heads}, masked), [m["contrastive_loss"] for m in layers]

    metrics, expected, by_layer = jax.device_get(compute(0))
    assert len(expected) == 4
    for name, mean in expected.items():
        np.testing.assert_allclose(metrics[name], mean, rtol=1e-5, err_msg=name)
    total = sum(mean.total for mean in by_layer)
    np.testing.assert_allclose(metrics["contrastive_loss"], (total, 8), rtol=1e-5)
    assert objective.loss_weights == {"contrastive_loss": 1.0, "mlm_loss": 0.3}


def test_a_student_learns_from_the_vectors_of_the_rows_and_needs_vectors_of_its_own_size(tmp_path):
    task = EmbeddingTask(text_columns=("text",), vector_column="vector", vector_size=32, loss=Distillation())
    made = build_finetuning("student", task, "rows", QUICK, 8, init_from=None, config=MODEL, tokenizer_path="v.json")
    assert made.objective.required_fields <= set(made.phases[0].format.label_fields)
    with raises_naming(ExperimentError, "Distillation", "vector_size=32", 16):
        replace(made, phases=(replace(made.phases[0], format=TextGroups(2, 16)),))
    with raises_naming(ExperimentError, "teacher_vector"):
        replace(made, phases=(replace(made.phases[0], format=TextGroups(2)),))


def test_a_size_or_a_layer_that_the_encoder_lacks_is_refused():
    with raises_naming(UserError, "objective.loss.sizes=(4, 999)", 32):
        Contrastive(Matryoshka(InfoNCE(), (4, 999))).module(TWO_LAYERS, VOCAB)
    with raises_naming(UserError, "objective.loss.layers=(2,)", "1 to 1"):
        Contrastive(Matryoshka(InfoNCE(), layers=(2,))).module(TWO_LAYERS, VOCAB)


def test_the_ranks_of_positive_texts_are_those_of_plain_loops():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 3, 4))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    has_text = rng.random((40, 3)) < 0.7
    has_text[:, :2] = True
    text_ids = np.arange(120).reshape(40, 3)
    text_ids[3, 1], vectors[3, 1] = text_ids[2, 1], vectors[2, 1]  # the positive text of two anchors
    candidates = {text_ids[place]: vectors[place] for place in np.ndindex(40, 3) if place[1] and has_text[place]}
    ranks = []
    for row in range(40):
        own = vectors[row, 0] @ vectors[row, 1]
        others = [v @ vectors[row, 0] for number, v in candidates.items() if number != text_ids[row, 1]]
        ranks.append(1 + sum(other > own for other in others))
    expected = {"accuracy": np.mean(np.array(ranks) == 1), "mrr": np.mean(1 / np.array(ranks))}
    assert score_positive_ranks(vectors, has_text, text_ids) == pytest.approx(expected)


def build_pairs_run(home: Path, **changes) -> Experiment:
    """Return a run on pairs that share their words, scored on two texts that are equal or not."""
    root, words = Path(task_examples.numbers(home / "rows")), task_examples.vocabulary(home)
    lines = (root / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [{"anchor": (text := line.split("\t")[1]), "positive": " ".join(text.split()[::-1])} for line in lines]
    write_lines(root / "train.jsonl", rows)
    recipe = replace(QUICK, num_epochs=2, learning_rate=1e-3, max_seq_length=48)  # no text is cut
    made = build_run("pairs", PAIRS, str(root), home, words, recipe, num_rows=64)
    return replace(made, grad_accum_steps=2, **changes)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The folder of rows, the folder of a run on them, and its result."""
    home = tmp_path_factory.mktemp("home")
    experiment, folder = build_pairs_run(home), home / "runs" / "pairs"
    return home / "rows", folder, loop.train(experiment, folder, lambda line: None)


def test_a_run_learns_and_its_best_checkpoint_has_the_score_of_its_vectors(learned):
    root, folder, result = learned
    assert 0.5 < result["best"]["spearman"] <= 1 and "contrastive_loss" not in result["heldout"]
    rows = [line.split("\t") for line in (root / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    cosines = load_predictor(folder, "best").compare_pairs([(row[1], row[2]) for row in rows])
    # Equal texts have a cosine of 1 but for rounding, which their ranks depend on.
    expected = pearsonr([*cosines], [float(row[3]) for row in rows]).statistic
    assert result["best"]["pearson"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.live
def test_loss_and_gradients_are_equal_on_any_number_of_devices_and_chunks():
    command = [sys.executable, "-m", "tests.tasks.contrastive_devices"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    differences = json.loads(printed)
    assert len(differences) == 8 and np.max([*differences.values()]) < 1e-5


def test_a_best_score_that_the_held_out_rows_do_not_have_is_named():
    with raises_naming(RunError, "accuracy", "spearman, pearson"):
        loop.compute_checkpoint_cost(Contrastive(), {"spearman": 0.5, "pearson": 0.4})


@pytest.mark.live
def test_a_run_on_pairs_that_is_killed_ends_bit_identical_and_two_processes_give_its_numbers(tmp_path):
    objective = Contrastive(masking=Masking(), pooling="attention", best_score="spearman")
    model = replace(TWO_LAYERS, hidden_dropout=0.1)  # drawn anew in each step, as masks are
    intervals = Intervals(log_every=1, eval_every=8, save_every=3, eval_batches=2)
    made = build_pairs_run(tmp_path, objective=objective, model=model, intervals=intervals)
    optimizer = replace(made.optimizer, warmup_steps=0)
    made = replace(made, phases=(replace(made.phases[0], until_step=16),), optimizer=optimizer)
    path, finished, killed = (tmp_path / name for name in ("experiment.json", "finished", "killed"))
    path.write_text(json.dumps(to_json_value(made)), encoding="utf-8")
    test_loop.finish(test_loop.started(path, finished), 0)
    process = test_loop.started(path, killed)
    while process.poll() is None and len(test_loop.without_time(killed)) < random.randrange(4, 12):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    test_loop.finish(process, -signal.SIGKILL)
    test_loop.finish(test_loop.started(path, killed), 0)
    test_loop.assert_same_run(finished, killed)
    (tmp_path / "pairs.py").write_text(EXPERIMENT_OF_FILE.format(path=str(path)), encoding="utf-8")
    command = [sys.executable, "launch.py", "train", str(tmp_path / "pairs.py"), "--runs", str(tmp_path / "two")]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    subprocess.run([*command, "--processes", "2"], check=True, cwd=test_loop.ROOT, env=environment)
    states = (
        jax.tree.leaves(test_loop.final_state(folder).params) for folder in (tmp_path / "two" / "pairs", finished)
    )
    for ours, theirs in zip(*states, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


EXPERIMENT_OF_FILE = """
import json
from encoders.utils.serialization import from_json_value
experiments = [from_json_value(json.loads(open({path!r}).read()))]
"""
