"""Losses of vectors: beside plain loops in numpy, and beside sentence-transformers with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.objectives.embedding_losses import (
    AnglE,
    CoSENT,
    CosineMSE,
    Distillation,
    InfoNCE,
    Matryoshka,
    TextRelations,
    TripletLoss,
    normalize_vectors,
)
from encoders.utils.errors import UserError

NUM_ROWS, NUM_TEXTS, SIZE = 5, 4, 6
VECTORS = np.random.default_rng(0).normal(size=(NUM_ROWS, NUM_TEXTS, SIZE)).astype(np.float32)
SIMILARITY = np.array([0.1, 0.9, 0.5, 0.5, 0.0], np.float32)


def make_rows(similarity=None, has_text=None, text_ids=None, group_ids=None) -> TextRelations:
    """Return what is known of rows of different texts without a similarity, but for what is given."""
    return TextRelations(
        jnp.array(np.ones((NUM_ROWS, NUM_TEXTS), bool) if has_text is None else has_text),
        jnp.array(np.arange(1, NUM_ROWS * NUM_TEXTS + 1).reshape(NUM_ROWS, -1) if text_ids is None else text_ids),
        jnp.zeros(NUM_ROWS, int) if group_ids is None else jnp.array(group_ids),
        jnp.full(NUM_ROWS, jnp.nan) if similarity is None else jnp.array(similarity),
    )


def compute(loss, rows, vectors=VECTORS, scale=None) -> float:
    total, count = loss.compute_metrics(jnp.array(vectors), rows, scale)["contrastive_loss"]
    return float(total / count)


def cosine(a, b) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def info_nce_by_hand(negatives, temperature=0.05):
    """The mean over rows; `negatives` lists for each row the (row, slot) of its negatives."""
    losses = []
    for row, places in enumerate(negatives):
        cosines = [cosine(VECTORS[row, 0], VECTORS[place]) for place in [(row, 1), *places]]
        logits = np.array(cosines, np.float64) / temperature
        losses.append(np.log(np.exp(logits).sum()) - logits[0])
    return np.mean(losses)


def list_others(row, slots=range(1, NUM_TEXTS)):
    return [(other, slot) for other in range(NUM_ROWS) for slot in slots if (other, slot) != (row, 1)]


def test_an_anchor_is_compared_with_all_other_texts_of_the_batch():
    expected = info_nce_by_hand([list_others(row) for row in range(NUM_ROWS)], temperature=0.1)
    assert compute(InfoNCE(0.1), make_rows()) == pytest.approx(expected, rel=1e-5)


def test_a_slot_without_a_text_is_no_negative_and_a_row_without_a_text_has_no_loss():
    has_text = np.ones((NUM_ROWS, NUM_TEXTS), bool)
    has_text[1, 2:] = has_text[4] = False
    negatives = [[place for place in list_others(row) if has_text[place]] for row in range(4)]
    assert compute(InfoNCE(), make_rows(has_text=has_text)) == pytest.approx(info_nce_by_hand(negatives), rel=1e-5)


def test_texts_that_equal_a_rows_own_are_no_negatives_of_it():
    text_ids = np.arange(1, NUM_ROWS * NUM_TEXTS + 1).reshape(NUM_ROWS, -1)
    text_ids[1, 1] = text_ids[0, 1]  # the same positive text
    text_ids[3, 2] = text_ids[2, 0]  # an anchor that is a hard negative elsewhere
    text_ids[4, 0] = text_ids[3, 0]  # the same anchor: each positive text belongs to both
    excluded = {0: [(1, 1)], 1: [(0, 1)], 2: [(3, 2)], 3: [(4, 1)], 4: [(3, 1)]}
    negatives = [[place for place in list_others(row) if place not in excluded[row]] for row in range(NUM_ROWS)]
    rows = make_rows(text_ids=text_ids)
    assert compute(InfoNCE(), rows) == pytest.approx(info_nce_by_hand(negatives), rel=1e-5)
    everything = info_nce_by_hand([list_others(row) for row in range(NUM_ROWS)])
    assert compute(InfoNCE(mask_equal_texts=False), rows) == pytest.approx(everything, rel=1e-5)


def test_positive_texts_of_a_group_are_no_negatives_of_each_other():
    negatives = [list_others(row) for row in range(NUM_ROWS)]
    negatives[0].remove((2, 1))
    negatives[2].remove((0, 1))
    rows = make_rows(group_ids=[7, 0, 7, 0, 0])
    assert compute(InfoNCE(), rows) == pytest.approx(info_nce_by_hand(negatives), rel=1e-5)


def test_the_symmetric_loss_also_finds_the_anchor_of_each_positive_text():
    pairs = [[(c, 0) for c in range(NUM_ROWS) if c != row] for row in range(NUM_ROWS)]
    backward = []
    for row, places in enumerate(pairs):
        cosines = [cosine(VECTORS[row, 1], VECTORS[place]) for place in [(row, 0), *places]]
        logits = np.array(cosines, np.float64) / 0.05
        backward.append(np.log(np.exp(logits).sum()) - logits[0])
    forward = info_nce_by_hand([list_others(row) for row in range(NUM_ROWS)])
    expected = (forward + np.mean(backward)) / 2
    assert compute(InfoNCE(symmetric=True), make_rows()) == pytest.approx(expected, rel=1e-5)


def test_scored_rows_have_no_positive_text():
    metrics = InfoNCE().compute_metrics(jnp.array(VECTORS), make_rows(SIMILARITY), None)
    assert metrics["contrastive_loss"].count == 0 and metrics["contrastive_loss"].total == 0


def test_a_learned_scale_takes_the_place_of_the_temperature():
    loss = InfoNCE(0.05, learn_temperature=True)
    assert loss.initial_scale == 20.0
    metrics = loss.compute_metrics(jnp.array(VECTORS), make_rows(), jnp.array(8.0))
    assert metrics["temperature"].total == pytest.approx(1 / 8)
    assert compute(loss, make_rows(), scale=jnp.array(8.0)) == pytest.approx(compute(InfoNCE(1 / 8), make_rows()))


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_a_triplet_asks_for_a_margin(distance):
    def measure(a, b):
        return 1 - cosine(a, b) if distance == "cosine" else np.linalg.norm(a - b)

    expected = [
        max(0, measure(row[0], row[1]) - measure(row[0], row[slot]) + 0.5) for row in VECTORS for slot in (2, 3)
    ]
    assert compute(TripletLoss(0.5, distance), make_rows()) == pytest.approx(np.mean(expected), rel=1e-4)


def test_the_losses_of_scored_rows_are_those_of_plain_loops():
    rows = make_rows(np.where(np.arange(NUM_ROWS) == 3, np.nan, SIMILARITY))
    scored = [0, 1, 2, 4]
    cosines = {row: cosine(VECTORS[row, 0], VECTORS[row, 1]) for row in scored}
    squares = [(cosines[row] - SIMILARITY[row]) ** 2 for row in scored]
    assert compute(CosineMSE(), rows) == pytest.approx(np.mean(squares), rel=1e-5)
    pairs = [(i, j) for i in scored for j in scored if SIMILARITY[i] < SIMILARITY[j]]
    expected = np.log(1 + sum(np.exp(20.0 * (cosines[i] - cosines[j])) for i, j in pairs))
    assert compute(CoSENT(), rows) == pytest.approx(expected, rel=1e-5)


def test_matryoshka_adds_the_losses_of_the_first_numbers():
    loss = Matryoshka(InfoNCE(), (2, SIZE), (1.0, 0.25))
    expected = compute(InfoNCE(), make_rows(), VECTORS[..., :2]) + 0.25 * compute(InfoNCE(), make_rows())
    assert compute(loss, make_rows()) == pytest.approx(expected, rel=1e-6)
    accuracy = loss.compute_metrics(jnp.array(VECTORS), make_rows(), None)["contrastive_accuracy"]
    assert accuracy == InfoNCE().compute_metrics(jnp.array(VECTORS), make_rows(), None)["contrastive_accuracy"]


def test_distillation_is_the_mean_squared_difference_from_the_teachers_vector_of_the_row():
    has_text = np.ones((NUM_ROWS, NUM_TEXTS), bool)
    has_text[0, 2:] = False
    teacher = np.random.default_rng(1).normal(size=(NUM_ROWS, 1, SIZE)).astype(np.float32)
    teacher[3] = 0  # unknown
    rows = make_rows(has_text=has_text)._replace(teacher_vectors=jnp.array(teacher))
    expected = [np.mean((VECTORS[row, slot] - teacher[row, 0]) ** 2) for row, slot in np.argwhere(has_text) if row != 3]
    assert compute(Distillation(), rows) == pytest.approx(np.mean(expected), rel=1e-5)
    first = [
        np.mean((VECTORS[row, slot, :2] - teacher[row, 0, :2]) ** 2) for row, slot in np.argwhere(has_text) if row != 3
    ]
    both = compute(Matryoshka(Distillation(), (2, SIZE)), rows)
    assert both == pytest.approx(np.mean(expected) + np.mean(first), rel=1e-5)


LOSSES = [InfoNCE(symmetric=True), TripletLoss(), CosineMSE(), CoSENT(), AnglE(), Matryoshka(CoSENT(), (3, 6))]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_gradients_are_finite_where_vectors_are_zero_and_equal(loss):
    vectors = jnp.array(VECTORS).at[0].set(0.0).at[1].set(1.0)
    total = lambda vectors: loss.compute_metrics(vectors, make_rows(SIMILARITY), None)["contrastive_loss"].total
    gradient = jax.grad(lambda v: total(v) + loss.compute_metrics(v, make_rows(), None)["contrastive_loss"].total)
    assert np.isfinite(gradient(vectors)).all()


def test_values_that_a_loss_cannot_have_are_named():
    for make, name in (
        (lambda: InfoNCE(0.0), "temperature=0.0"),
        (lambda: TripletLoss(-1.0), "margin=-1.0"),
        (lambda: Matryoshka(InfoNCE(), ()), r"sizes=\(\)"),
        (lambda: Matryoshka(InfoNCE(), (4, 8), (1.0,)), r"weights=\(1.0,\)"),
        (lambda: Matryoshka(Matryoshka(InfoNCE(), (4,)), (4,)), "loss=Matryoshka"),
    ):
        with pytest.raises(UserError, match=name):
            make()


@pytest.mark.live
def test_losses_and_gradients_equal_those_of_sentence_transformers():
    import torch
    from sentence_transformers.sentence_transformer import losses

    both_ways = dict(directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction")
    ranking, scored = losses.MultipleNegativesRankingLoss, make_rows(SIMILARITY)
    cases = [  # ours, theirs, the texts of a row, what is known of the rows
        (InfoNCE(), ranking, {}, 2, make_rows()),
        (InfoNCE(), ranking, {}, 4, make_rows()),
        (InfoNCE(0.1, symmetric=True), ranking, dict(scale=10.0, **both_ways), 2, make_rows()),
        (TripletLoss(0.5), losses.TripletLoss, dict(triplet_margin=0.5), 3, make_rows()),
        (CoSENT(), losses.CoSENTLoss, {}, 2, scored),
        (AnglE(), losses.AnglELoss, {}, 2, scored),
        (CosineMSE(), losses.CosineSimilarityLoss, {}, 2, scored),
    ]
    for ours, theirs, settings, num_texts, rows in cases:
        loss, labels = theirs(torch.nn.Identity(), **settings), torch.tensor(SIMILARITY)
        rows = rows._replace(has_text=rows.has_text[:, :num_texts], text_ids=rows.text_ids[:, :num_texts])
        for sizes in ((SIZE,), (SIZE, 2)):
            vectors = torch.tensor(VECTORS[:, :num_texts], requires_grad=True)
            expected = sum(
                loss.compute_loss_from_embeddings([*vectors[..., :size].unbind(1)], labels) for size in sizes
            )
            expected.backward()
            mean = lambda v, loss, rows: (lambda m: m.total / m.count)(
                loss.compute_metrics(v, rows, None)["contrastive_loss"]
            )
            value, gradient = jax.value_and_grad(mean)(jnp.array(VECTORS[:, :num_texts]), Matryoshka(ours, sizes), rows)
            assert float(value) == pytest.approx(expected.item(), rel=1e-5), ours
            np.testing.assert_allclose(gradient, vectors.grad, rtol=1e-4, atol=1e-5, err_msg=str(ours))


def test_a_vector_of_zeros_stays_one():
    np.testing.assert_array_equal(normalize_vectors(jnp.zeros((2, 3))), np.zeros((2, 3)))
