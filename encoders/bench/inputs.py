"""Batches for both sides of a comparison: random ids in full rows, or rows of an experiment's own text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from encoders.costs.ledger import make_blank_vocab
from encoders.data.prepare import prepare_store
from encoders.data.stream import BatchStream, NumpyBatch, Phase
from encoders.experiment import Experiment
from encoders.objectives.masking import make_membership_mask
from encoders.text.tokenization import VocabInfo


def make_random_batches(experiment: Experiment, phase: Phase, num_batches: int) -> tuple[VocabInfo, list[NumpyBatch]]:
    """`count` batches of one full example a row, two segments where the model has them."""
    facts, draw = make_blank_vocab(experiment.model.vocab_size), np.random.default_rng(0)
    shape, at = (phase.batch_size, phase.seq_length), np.arange(phase.seq_length, dtype=np.int32)
    segments = ((at > phase.seq_length // 2) & (experiment.model.num_token_types > 1)).astype(np.int32)
    batches = []
    for number in range(num_batches):
        tokens = draw.integers(len(facts.special_ids), facts.vocab_size, shape, np.int32)
        tokens[:, 0], tokens[:, [phase.seq_length // 2, -1]] = facts.cls_id, facts.sep_id
        ids = np.arange(phase.batch_size, dtype=np.int32)[:, None] + number * phase.batch_size
        rows = {
            "tokens": tokens,
            "example": np.ones(shape, np.int32),
            "segments": np.broadcast_to(segments, shape),
            "positions": np.broadcast_to(at, shape),
            "id": ids,
            "start": 0 * ids,
            "epoch": 0 * ids,
            "valid": 0 * ids + 1,
        }
        batches.append(rows | {label: ids % 2 for label in experiment.objective.required_fields})
    return facts, batches


def read_text_batches(experiment: Experiment, phase: Phase, num_batches: int) -> tuple[VocabInfo, list[NumpyBatch]]:
    """The first `count` batches of a phase from the experiment's own text."""
    store = prepare_store(experiment.data, lambda line: None)
    copies, tables = experiment.objective.num_distinct_passes, store.path / "tables"
    stream = BatchStream(store.train_split, store.vocab, (phase,), experiment.seed, copies, tables)
    return store.vocab, [stream.build_batch(number) for number in range(num_batches)]


def count_example_tokens(batches: Sequence[NumpyBatch]) -> np.ndarray:
    """The number of tokens of every example."""
    found = np.concatenate(
        [make_membership_mask(jax.tree.map(jnp.asarray, batch)).sum(-1).ravel() for batch in batches]
    )
    return found[found > 0]


def save_batches(path: Path, batches: Sequence[NumpyBatch]) -> None:
    np.savez(path, **{f"{i}/{name}": x for i, batch in enumerate(batches) for name, x in batch.items()})


def load_batches(path: str) -> list[NumpyBatch]:
    batches: dict[int, NumpyBatch] = {}
    with np.load(path) as stored:
        for key in stored.files:
            number, _, name = key.partition("/")
            batches.setdefault(int(number), {})[name] = stored[key]
    return [batches[number] for number in sorted(batches)]


def save_peer_batches(path: Path, experiment: Experiment, vocab: VocabInfo, batches: Sequence[NumpyBatch]) -> None:
    """The same rows as other libraries take them: masked here, with labels of -100 where nothing is predicted."""
    corrupt = jax.jit(lambda batch: experiment.objective.corrupt(batch, vocab, 0))
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in ("ids", "original", "mask", "types", "labels", "pair")}
    for batch in batches:
        masked = jax.device_get(corrupt(jax.tree.map(jnp.asarray, batch)))
        labels = np.full(batch["tokens"].shape, -100, np.int64)
        rows, slots = np.nonzero(masked["weights"])
        labels[rows, masked["picked"][rows, slots]] = masked["targets"][rows, slots]
        pair = next((batch[name][:, 0] for name in experiment.objective.required_fields), batch["valid"][:, 0] * 0)
        found = (masked["tokens"], batch["tokens"], batch["example"] > 0, batch["segments"], labels, pair)
        for name, array in zip(arrays, found, strict=True):
            arrays[name].append(array.astype(np.int64))
    np.savez(path, **{name: np.stack(each) for name, each in arrays.items()})
