"""Batches for both sides of a comparison: random ids in full rows, or rows of an experiment's own text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from encoders.costs.ledger import blank_facts
from encoders.data.prepare import prepared
from encoders.data.stream import Phase, Rows, Stream
from encoders.experiment import Experiment
from encoders.objectives.masking import members
from encoders.text.tokenization import Facts


def random_rows(experiment: Experiment, phase: Phase, count: int) -> tuple[Facts, list[Rows]]:
    """`count` batches of one full example a row, two segments where the model has them."""
    facts, draw = blank_facts(experiment.model.vocab), np.random.default_rng(0)
    shape, at = (phase.batch, phase.length), np.arange(phase.length, dtype=np.int32)
    segments = ((at > phase.length // 2) & (experiment.model.segments > 1)).astype(np.int32)
    batches = []
    for number in range(count):
        tokens = draw.integers(len(facts.special), facts.size, shape, np.int32)
        tokens[:, 0], tokens[:, [phase.length // 2, -1]] = facts.cls, facts.sep
        ids = np.arange(phase.batch, dtype=np.int32)[:, None] + number * phase.batch
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
        batches.append(rows | {label: ids % 2 for label in experiment.objective.needs})
    return facts, batches


def text_rows(experiment: Experiment, phase: Phase, count: int) -> tuple[Facts, list[Rows]]:
    """The first `count` batches of a phase from the experiment's own text."""
    store = prepared(experiment.data, lambda line: None)
    copies, tables = experiment.objective.copies, store.path / "tables"
    stream = Stream(store.train, store.facts, (phase,), experiment.seed, copies, tables)
    return store.facts, [stream.batch(number) for number in range(count)]


def sizes(batches: Sequence[Rows]) -> np.ndarray:
    """The number of tokens of every example."""
    found = np.concatenate([members(jax.tree.map(jnp.asarray, batch)).sum(-1).ravel() for batch in batches])
    return found[found > 0]


def save(path: Path, batches: Sequence[Rows]) -> None:
    np.savez(path, **{f"{i}/{name}": x for i, batch in enumerate(batches) for name, x in batch.items()})


def load(path: str) -> list[Rows]:
    batches: dict[int, Rows] = {}
    with np.load(path) as stored:
        for key in stored.files:
            number, _, name = key.partition("/")
            batches.setdefault(int(number), {})[name] = stored[key]
    return [batches[number] for number in sorted(batches)]


def save_for_peers(path: Path, experiment: Experiment, facts: Facts, batches: Sequence[Rows]) -> None:
    """The same rows as other libraries take them: masked here, with labels of -100 where nothing is predicted."""
    corrupt = jax.jit(lambda batch: experiment.objective.corrupt(batch, facts, 0))
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in ("ids", "original", "mask", "types", "labels", "pair")}
    for batch in batches:
        masked = jax.device_get(corrupt(jax.tree.map(jnp.asarray, batch)))
        labels = np.full(batch["tokens"].shape, -100, np.int64)
        rows, slots = np.nonzero(masked["weights"])
        labels[rows, masked["picked"][rows, slots]] = masked["targets"][rows, slots]
        pair = next((batch[name][:, 0] for name in experiment.objective.needs), batch["valid"][:, 0] * 0)
        found = (masked["tokens"], batch["tokens"], batch["example"] > 0, batch["segments"], labels, pair)
        for name, array in zip(arrays, found, strict=True):
            arrays[name].append(array.astype(np.int64))
    np.savez(path, **{name: np.stack(each) for name, each in arrays.items()})
