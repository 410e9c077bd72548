"""Documents, phases and streams of made-up tokens."""

import numpy as np

from encoders.data.formats import FullSentences, SegmentPairs
from encoders.data.store import Split
from encoders.data.stream import Phase, Stream
from encoders.text.tokenization import Facts

PAD, CLS, SEP = 1, 2, 3  # padding is not 0, as in RoBERTa
FACTS = Facts(size=100, pad=PAD, unk=0, cls=CLS, sep=SEP, mask=4, special=(0, 1, 2, 3, 4), continuations=bytes(13))
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
ONE = (Phase(until=100, length=16, batch=6, format=PAIRS),)
TWO = (
    Phase(until=5, length=16, batch=6, format=PAIRS),
    Phase(until=8, length=24, batch=4, format=PAIRS),
    Phase(until=20, length=16, batch=2, format=PAIRS),
)


def share(number, of):
    """Which rows of a batch the process of this number holds, where each has as many."""
    return lambda batch: np.arange(batch).reshape(of, -1)[number]


def opener(folder):
    """Makes streams that share a folder of tables."""

    def new(phases=ONE, seed=0, copies=None, split=PROSE, folder=folder, **held):
        return Stream(split, FACTS, phases, seed, copies, folder, **held)

    return new


def same(x, y):
    return x.keys() == y.keys() and all(np.array_equal(x[name], y[name]) for name in x)


def names(batch):
    """(epoch, id) of each row."""
    return list(zip(batch["epoch"][:, 0].tolist(), batch["id"][:, 0].tolist(), strict=True))


def counts(made, phase, epochs):
    return [len(made.tables.get(phase.format, phase.length, epoch)) for epoch in range(epochs)]
