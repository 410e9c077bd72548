"""Groups of texts that share rows: what a batch holds, and losses and scores equal to those of one group a row."""

from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from encoders.data.packing import PackedFormat
from encoders.data.stream import BatchStream, Phase, assemble_rows
from encoders.objectives.embedding_losses import CoSENT, Distillation, InfoNCE, Matryoshka
from encoders.run import loop
from encoders.run.evaluate import concatenate_padded
from encoders.tasks.contrastive import Contrastive
from encoders.tasks.text_groups import TextGroups
from encoders.training.step import compute_gradients, eval_step, init_params
from tests.finetuning.tiny import MODEL
from tests.networks import make_vocab
from tests.tasks.test_contrastive import build_pairs_run
from tests.tasks.text_rows import make_split

VOCAB = make_vocab(MODEL.vocab_size)
LENGTH = 60


def make_groups(num_groups=24, num_texts=3, with_vectors=False, is_scored=None):
    """Return a split of groups of one to `num_texts` texts of different lengths, and their format."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, num_texts + 1, num_groups) if is_scored is None else np.full(num_groups, 2)
    rows = [[rng.integers(5, 400, rng.integers(1, 9)).tolist() for _ in range(size)] for size in sizes]
    rows[3] = rows[3][:1]  # a text alone
    similarity = None if is_scored is None else np.where(is_scored, rng.random(num_groups), np.nan)
    split = make_split(rows, similarity, rng.integers(0, 3, num_groups))
    if with_vectors:
        vectors = rng.normal(size=(num_groups, MODEL.hidden_size)).astype(np.float32)
        split = replace(split, label_columns=split.label_columns | {"teacher_vector": vectors})
    return split, TextGroups(num_texts, MODEL.hidden_size if with_vectors else None)


def build_batch(split, row_format):
    table = row_format.build_example_table(split, range(split.num_documents), LENGTH, 0, 0)
    return assemble_rows(split, table, LENGTH, VOCAB, row_format), table


def list_groups(batch, num_texts):
    """Return the texts of each group of a batch and its labels, sorted."""
    groups = []
    for row, mask in enumerate(batch.example_mask):
        for group in range(len(mask) // num_texts):
            slots = range(group * num_texts, (group + 1) * num_texts)
            texts = [batch.input_ids[row][batch.example_ids[row] == slot + 1].tolist() for slot in slots]
            labels = [batch.labels[name][row, group].tolist() for name in ("group_id", "teacher_vector")]
            groups += [(texts, batch.labels["text_id"][row, slots].tolist(), labels)] if mask[slots[0]] else []
    return sorted(groups)


def test_packed_rows_hold_every_group_whole_with_its_labels():
    split, row_format = make_groups(with_vectors=True)
    alone, _ = build_batch(split, row_format)
    packed, table = build_batch(split, PackedFormat(row_format, 4))
    assert len(table) < len(alone.input_ids) / 2 and table.shape[1] == 12
    assert packed.labels["group_id"].shape == (len(table), 4)
    assert list_groups(packed, 3) == list_groups(alone, 3) and len(list_groups(alone, 3)) == 24


def test_no_row_and_no_batch_of_packed_groups_holds_a_text_twice(tmp_path):
    rng = np.random.default_rng(0)
    rows = [[[5 + rng.integers(40)], rng.integers(50, 400, 4).tolist()] for _ in range(120)]  # anchors occur again
    split, row_format = make_split(rows), PackedFormat(TextGroups(), 4)
    phase = Phase(until_step=20, seq_length=36, batch_size=3, format=row_format)
    batches = [*BatchStream(split, VOCAB, (phase,), 0, 1, tmp_path).iter_batches(0, 20)]
    texts = [batch.labels["text_id"][batch.example_mask > 0].tolist() for batch in batches]
    assert max(max(Counter(ids).values()) for ids in texts) == 1
    assert sum(map(len, texts)) > 1.9 * 20 * 3 * 3  # rows are nearly full


SCORED = np.arange(24) % 2 == 0


@pytest.mark.parametrize(
    ("objective", "groups"),
    [
        (Contrastive(InfoNCE(symmetric=True, learn_temperature=True)), {}),
        pytest.param(Contrastive(Matryoshka(InfoNCE(), (8, 16)), "cls"), {}, marks=pytest.mark.live),
        pytest.param(Contrastive(CoSENT()), {"is_scored": SCORED}, marks=pytest.mark.live),
        (Contrastive(Distillation(), "last"), {"with_vectors": True}),
    ],
    ids=["InfoNCE", "Matryoshka", "CoSENT", "Distillation"],
)
def test_the_loss_and_its_gradients_are_those_of_one_group_a_row(objective, groups):
    split, row_format = make_groups(**groups)
    module = objective.module(MODEL, VOCAB)
    params = init_params(0, module)
    compute = jax.jit(compute_gradients, static_argnames="module")
    alone, packed = (
        compute(params, build_batch(split, row)[0], 0, 0, module=module)
        for row in (row_format, PackedFormat(row_format, 4))
    )
    assert float(packed[0][0]) == pytest.approx(float(alone[0][0]), rel=1e-5) != 0
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, packed[1], alone[1])) / optax.tree.norm(alone[1])
    assert float(difference) < 1e-5


def test_scores_of_packed_groups_are_those_of_one_group_a_row():
    split, row_format = make_groups(is_scored=SCORED)
    objective = Contrastive(best_score="spearman")
    module = objective.module(MODEL, VOCAB)
    params, scores = init_params(0, module), []
    for row in (row_format, PackedFormat(row_format, 4)):
        batch, table = build_batch(split, row)
        _, outputs = eval_step(params, batch, module=module)
        outputs = concatenate_padded([jax.device_get(outputs)], np.ones(len(table), bool))
        scores.append(objective.score_outputs(outputs, table, split))
    assert scores[1].keys() == {"spearman", "pearson", "accuracy", "mrr"}
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)


@pytest.mark.live
def test_a_run_on_packed_groups_learns(tmp_path):
    made = build_pairs_run(tmp_path)
    phase = replace(made.phases[0], format=PackedFormat(made.phases[0].format, 4), until_step=24)
    result = loop.train(replace(made, phases=(phase,)), tmp_path / "runs" / "pairs", lambda line: None)
    assert 0.5 < result["best"]["spearman"] <= 1
