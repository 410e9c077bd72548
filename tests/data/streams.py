"""Documents, phases and streams of made-up tokens."""

import jax
import numpy as np

from encoders.data.formats import FullSentences, SegmentPairs
from encoders.data.store import Split
from encoders.data.stream import BatchStream, Phase
from encoders.text.tokenization import VocabInfo

PAD, CLS, SEP = 1, 2, 3  # padding is not 0, as in RoBERTa
FACTS = VocabInfo(100, PAD, 0, CLS, SEP, 4, (0, 1, 2, 3, 4), bytes(13))
PAIRS, FULL = SegmentPairs("swapped"), FullSentences()


def split_of(documents, name="train"):
    """A split from the tokens of the sentences of each document."""
    flat, sentences, ends = [], [0], [0]
    for document in documents:
        for i, sentence in enumerate(document):
            flat += sentence + [SEP] * (i == len(document) - 1)
            sentences.append(len(flat))
        ends.append(len(sentences) - 1)
    kind = np.uint16 if max(flat) < 1 << 16 else np.uint32  # as a store has them
    return Split(name, np.array(flat, kind), np.array(sentences), np.array(ends))


def prose(count=12, seed=0, name="train"):
    rng = np.random.default_rng(seed)
    sentence = lambda: rng.integers(5, 100, rng.integers(2, 9)).tolist()
    return split_of([[sentence() for _ in range(rng.integers(3, 9))] for _ in range(count)], name)


PROSE = prose()
ONE = (Phase(until_step=100, seq_length=16, batch_size=6, format=PAIRS),)
TWO = (
    Phase(until_step=5, seq_length=16, batch_size=6, format=PAIRS),
    Phase(until_step=8, seq_length=24, batch_size=4, format=PAIRS),
    Phase(until_step=20, seq_length=16, batch_size=2, format=PAIRS),
)


def share(number, of):
    """Which rows of a batch the process of this number holds, where each has as many."""
    return lambda batch: np.arange(batch).reshape(of, -1)[number]


def opener(folder):
    """Makes streams that share a folder of tables."""

    def new(phases=ONE, seed=0, copies=None, split=PROSE, folder=folder, **held):
        return BatchStream(split, FACTS, phases, seed, copies, folder, **held)

    return new


def same(x, y):
    return jax.tree.structure(x) == jax.tree.structure(y) and all(
        map(np.array_equal, jax.tree.leaves(x), jax.tree.leaves(y))
    )


def concatenate(batches):
    """The rows of some batches as one batch."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


def shapes_of(batch):
    """The shape of each field of a batch, and of each label."""
    fields = batch.get_arrays()
    return {name: array.shape for name, array in (fields.pop("labels") | fields).items()}


def names(batch):
    """(epoch, id) of each row."""
    return list(zip(batch.pass_index[:, 0].tolist(), batch.example_index[:, 0].tolist(), strict=True))


def counts(made, phase, epochs):
    return [len(made.tables.get_table(phase.format, phase.seq_length, epoch)) for epoch in range(epochs)]
