"""Deletion of tokens, the noise of a denoising autoencoder: a pure function of (seed, pass, example index, position).

TSDAE (Wang et al., 2021, https://arxiv.org/abs/2104.06979, §3) deletes words, and here tokens are deleted.
"""

import jax
import jax.numpy as jnp

from encoders.data.batch import Batch
from encoders.model.layers import make_membership_mask
from encoders.objectives.masking import DELETION_STREAM, bits_to_uniform, make_example_keys, make_token_keys
from encoders.text.tokenization import VocabInfo


def delete_tokens(deletion_rate: float, batch: Batch, vocab: VocabInfo, seed) -> Batch:
    """Return `batch` without a share of the tokens of its examples; what is kept moves up, with positions from 0.

    [CLS] and separators are kept, and of every example at least one other token. Labels of tokens are left out.
    """
    keys = make_example_keys(seed, DELETION_STREAM, batch.pass_index, batch.example_index)
    words = jax.random.key_data(make_token_keys(keys, batch)).astype(jnp.uint32)
    is_special = jnp.isin(batch.input_ids, jnp.array([vocab.cls_id, vocab.sep_id]))
    draws = jnp.where(is_special, -1.0, bits_to_uniform(words[..., 0]))
    example = jnp.maximum(batch.example_ids - 1, 0)
    largest = jnp.where(make_membership_mask(batch), draws[:, None], -1.0).max(-1)
    is_largest = draws == jnp.take_along_axis(largest, example, axis=1)
    is_kept = (is_special | is_largest | (draws >= deletion_rate)) & (batch.example_ids > 0)

    order = jnp.argsort(~is_kept, axis=1, stable=True)
    positions = jnp.arange(is_kept.shape[1])
    is_token = positions < is_kept.sum(1, keepdims=True)
    move_up = lambda x, filler: jnp.where(is_token, jnp.take_along_axis(x, order, axis=1), filler)
    shorter = batch.replace(
        input_ids=move_up(batch.input_ids, vocab.pad_id),
        example_ids=move_up(batch.example_ids, 0),
        token_type_ids=move_up(batch.token_type_ids, 0),
        labels={},
    )
    cls_positions = make_membership_mask(shorter).argmax(-1).astype(batch.cls_positions.dtype)
    starts = jnp.take_along_axis(cls_positions, jnp.maximum(shorter.example_ids - 1, 0), axis=1)
    return shorter.replace(cls_positions=cls_positions, position_ids=jnp.where(is_token, positions - starts, 0))
