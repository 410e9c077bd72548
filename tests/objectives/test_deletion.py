import jax
import numpy as np
import pytest

from encoders.objectives.deletion import delete_tokens
from tests.batches import make_batch
from tests.networks import make_vocab

VOCAB = make_vocab(400)
CLS, SEP, PAD = VOCAB.cls_id, VOCAB.sep_id, VOCAB.pad_id
TEXTS = [np.arange(5, 65), np.arange(70, 72), np.arange(80, 110), np.array([], int)]


def make_rows(rows: list[list[int]], length: int):
    """Rows of the texts of these numbers, `[CLS] text [SEP]` behind one another; the index of an example is its text's
    number."""
    fields = {
        name: np.zeros((len(rows), length), np.int32)
        for name in ("input_ids", "example_ids", "token_type_ids", "position_ids")
    }
    slots = {name: np.zeros((len(rows), 3), np.int32) for name in ("cls_positions", "example_index", "example_mask")}
    for row, numbers in enumerate(rows):
        start = 0
        for slot, number in enumerate(numbers):
            tokens = [CLS, *TEXTS[number], SEP]
            here = slice(start, start + len(tokens))
            fields["input_ids"][row, here], fields["example_ids"][row, here] = tokens, slot + 1
            fields["position_ids"][row, here] = np.arange(len(tokens))
            fields["token_type_ids"][row, here.stop - 1] = 1
            for name, value in zip(slots, (start, number, 1), strict=True):
                slots[name][row, slot] = value
            start = here.stop
    return make_batch(**fields, **slots, pass_index=np.zeros((len(rows), 3), np.int32))


@pytest.fixture(scope="module")
def shortened():
    """The texts packed into two rows, and in rows of their own of another length, both with 60 % deleted."""
    delete = jax.jit(lambda batch, seed: delete_tokens(0.6, batch, VOCAB, seed))
    packed, alone = make_rows([[0, 1, 3], [2]], 100), make_rows([[0], [1], [2], [3]], 90)
    return *(jax.device_get(delete(batch, 0)) for batch in (packed, alone)), jax.device_get(delete(alone, 1))


def list_texts(batch) -> list[list[int]]:
    """The tokens of each example, row by row."""
    examples = [(row, n) for row in range(len(batch.input_ids)) for n in range(1, batch.example_ids[row].max() + 1)]
    return [batch.input_ids[row][batch.example_ids[row] == n].tolist() for row, n in examples]


def test_what_is_kept_is_in_order_between_its_special_tokens_and_never_nothing(shortened):
    for batch in shortened:
        for tokens, text in zip(sorted(list_texts(batch)), sorted(map(list, TEXTS)), strict=True):
            inner = tokens[1:-1]
            assert (tokens[0], tokens[-1]) == (CLS, SEP) and inner == [token for token in text if token in inner]
            assert min(len(text), 1) <= len(inner) < max(len(text), 1) + (len(text) < 3)
    kept = sum(len(tokens) - 2 for batch in shortened[1:] for tokens in list_texts(batch))
    assert 0.25 < kept / (2 * sum(map(len, TEXTS))) < 0.55


def test_an_example_loses_the_same_tokens_in_any_row_and_others_with_another_seed(shortened):
    packed, alone, of_other_seed = map(list_texts, shortened)
    assert sorted(packed) == sorted(alone) and alone[0] != of_other_seed[0]


def test_rows_stay_well_formed(shortened):
    for batch in shortened:
        is_token = batch.example_ids > 0
        assert (np.diff(is_token.astype(int), axis=1) <= 0).all() and (batch.input_ids[~is_token] == PAD).all()
        assert (batch.position_ids[~is_token] == 0).all() and (batch.token_type_ids == (batch.input_ids == SEP)).all()
        for row, slot in np.argwhere(batch.example_mask):
            where = np.flatnonzero(batch.example_ids[row] == slot + 1)
            assert batch.cls_positions[row, slot] == where[0] and (np.diff(where) == 1).all()
            np.testing.assert_array_equal(batch.position_ids[row, where], np.arange(len(where)))
