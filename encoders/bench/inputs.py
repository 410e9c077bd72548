"""Batches for all variants of a comparison: random ids in full rows, or rows of an experiment's own text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from encoders.costs.ledger import make_blank_vocab
from encoders.data.batch import Batch, build_single_example_batch
from encoders.data.prepare import prepare_store
from encoders.data.stream import BatchStream, Phase
from encoders.experiment import Experiment
from encoders.model.layers import make_membership_mask
from encoders.text.tokenization import VocabInfo


def make_random_batches(experiment: Experiment, phase: Phase, num_batches: int) -> tuple[VocabInfo, list[Batch]]:
    """Return batches of one full example a row, with two segments where the model has two token types."""
    vocab, draw = make_blank_vocab(experiment.model.vocab_size), np.random.default_rng(0)
    shape = phase.batch_size, phase.seq_length
    is_second = np.arange(phase.seq_length) > phase.seq_length // 2
    token_type_ids = np.broadcast_to(is_second & (experiment.model.num_token_types > 1), shape).astype(np.int32)
    batches = []
    for batch_index in range(num_batches):
        input_ids = draw.integers(len(vocab.special_ids), vocab.vocab_size, shape, np.int32)
        input_ids[:, 0], input_ids[:, [phase.seq_length // 2, -1]] = vocab.cls_id, vocab.sep_id
        batch = build_single_example_batch(input_ids, token_type_ids, first_index=batch_index * phase.batch_size)
        labels = {name: batch.example_index % 2 for name in experiment.objective.required_fields}
        batches.append(batch.replace(labels=labels))
    return vocab, batches


def read_text_batches(experiment: Experiment, phase: Phase, num_batches: int) -> tuple[VocabInfo, list[Batch]]:
    """Return the first batches of a phase from the experiment's own text."""
    store = prepare_store(experiment.data, lambda line: None)
    stream = BatchStream.from_store(store, (phase,), experiment.seed, experiment.objective.num_distinct_passes)
    return store.vocab, [stream.build_batch(batch_index) for batch_index in range(num_batches)]


def count_example_tokens(batches: Sequence[Batch]) -> np.ndarray:
    """Return the number of tokens of every example."""
    sizes = np.concatenate([make_membership_mask(jax.tree.map(jnp.asarray, rows)).sum(-1).ravel() for rows in batches])
    return sizes[sizes > 0]


def save_peer_batches(path: Path, experiment: Experiment, vocab: VocabInfo, batches: Sequence[Batch]) -> None:
    """Save the rows as other libraries take them: already masked, with labels of -100 where nothing is predicted."""
    corrupt = lambda batch: experiment.objective.corrupt(batch, vocab, 0)
    rows = jax.tree.map(lambda *arrays: np.concatenate(arrays), *batches)
    masked = jax.device_get(jax.jit(corrupt)(jax.tree.map(jnp.asarray, rows)))
    labels = np.full(rows.input_ids.shape, -100)
    row_index, slots = np.nonzero(masked.masked_weights)
    labels[row_index, masked.masked_positions[row_index, slots]] = masked.masked_labels[row_index, slots]
    pair_labels = [rows.labels[name][:, 0] for name in experiment.objective.required_fields]
    arrays = {
        "ids": masked.input_ids,
        "original": rows.input_ids,
        "mask": rows.example_ids > 0,
        "types": rows.token_type_ids,
        "labels": labels,
        "pair": pair_labels[0] if pair_labels else np.zeros(len(labels), np.int64),
    }
    np.savez(path, **{name: array.reshape(len(batches), -1, *array.shape[1:]) for name, array in arrays.items()})
