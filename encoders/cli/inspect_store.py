"""What a store holds, and rows of it as the model sees them: what `launch.py inspect` prints."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from encoders.data.formats import LABEL, SegmentPairs, examples, row_sizes
from encoders.data.store import Split, Store
from encoders.data.stream import Phase, Rows, Stream
from encoders.objectives.base import Objective
from encoders.objectives.masked_lm import Joint
from encoders.objectives.sentence_pair import NextSentence
from encoders.reporting.summaries import grid

MEANING = {
    "next_sentence": ("B follows A", "B is random"),
    "sentence_order": ("A stands before B", "A and B are swapped"),
}
COLOURS = {"special": "2", "second": "34", "mask": "1;33", "random": "1;31", "kept": "4;32"}  # ANSI
LEGEND = "{second} segment B   {mask} a mask and the word under it   {random} a random word   {kept} chosen, and kept"


@dataclass(frozen=True)
class View:
    """How rows are made: phases and an objective, of an experiment or BERT's, and the seed of the run."""

    phases: tuple[Phase, ...] = (Phase(1, 128, 64, SegmentPairs()),)
    objective: Objective = Joint(sentences=NextSentence())
    seed: int = 0


def described(store: Store, view: View, rows: int, colour: bool) -> Iterator[str]:
    """Lines: what is in the store; for running text, each phase's rows in numbers and `rows` of them in full; for
    labelled rows the first ones."""
    yield from facts(store)
    if "task" in store.meta["content"]:
        yield from labelled(store, rows)
        return
    paint = (lambda kind, text: f"\033[{COLOURS[kind]}m{text}\033[0m") if colour else plain
    yield ""
    yield LEGEND.format(**{kind: paint(kind, "word") for kind in COLOURS})
    start = 0
    stream = Stream(store.train, store.facts, view.phases, view.seed, view.objective.copies, store.path / "tables")
    for phase in view.phases:
        yield ""
        yield from numbers(phase, store.train, view.seed)
        if rows:
            batch = {name: values[:rows] for name, values in stream.batch(start).items()}
            yield from shown(batch, view, phase, store, paint)
        start = phase.until


def plain(kind: str, text: str) -> str:
    marks = {"mask": "{}", "random": "{}!", "kept": "{}=", "second": "{}", "special": "{}"}
    return marks[kind].format(text)


def facts(store: Store) -> Iterator[str]:
    meta = store.meta
    kind = store.tokenizer.kind
    yield f"{store.path}: {kind} vocabulary of {store.facts.size:,}, tokens as {meta['dtype']}"
    head = ["split", "documents", "sentences", "tokens", "tokens a document", "tokens a sentence"]
    rows = [head]
    for name, split in meta["splits"].items():
        counts = [split[column] for column in head[1:4]]
        means = [split["tokens"] / max(split[column], 1) for column in ("documents", "sentences")]
        rows.append([name, *(f"{count:,}" for count in counts), *(f"{mean:,.1f}" for mean in means)])
    yield grid(rows)
    if "unknown_rate" in meta:
        tokens = sum(split["tokens"] for split in meta["splits"].values())
        yield f"unknown tokens: {meta['unknown_rate']:.3%}; characters a token: {meta['characters'] / tokens:.2f}"
    if left := {name: count for name, count in meta.get("filtered", {}).items() if name != "documents read"}:
        yield "left out: " + ", ".join(f"{count:,} {name}" for name, count in left.items())


def numbers(phase: Phase, split: Split, seed: int) -> Iterator[str]:
    """A pass of a phase: rows, padding and labels, counted shard by shard."""
    form, counts = phase.format, Counter()
    for shard in split.shards():
        table = form.table(split, shard, phase.length, seed, 0)
        sizes, each = row_sizes(table, form.between), examples(table)
        labels = each[..., LABEL][each[..., 1] > each[..., 0]]
        counts.update(rows=len(table), tokens=int(sizes.sum()), shorter=int((sizes < phase.length).sum()))
        counts.update(Counter(labels.tolist()))
        counts["examples"] += len(labels)
    yield f"up to step {phase.until:,}: {form}, rows of {phase.length}"
    if not counts["rows"]:
        yield "  there is too little text for a row"
        return
    padding, shorter = 1 - counts["tokens"] / (counts["rows"] * phase.length), counts["shorter"] / counts["rows"]
    yield (
        f"  a pass has {counts['rows']:,} rows and {counts['tokens']:,} tokens; {padding:.1%} of the rows is padding, "
        f"{shorter:.1%} of them are shorter"
    )
    for label in form.labels:
        for value, meaning in enumerate(MEANING.get(label, ())):
            yield f"  {meaning}: {counts[value] / counts['examples']:.1%}"


def shown(batch: Rows, view: View, phase: Phase, store: Store, paint) -> Iterator[str]:
    """Rows as the model is shown them, with what it has to say."""
    corrupted = view.objective.corrupt(jax.tree.map(jnp.asarray, batch), store.facts, view.seed)
    corrupted = jax.tree.map(np.asarray, corrupted)
    word, mask = store.tokenizer.token, store.facts.mask
    chosen = np.zeros(corrupted["tokens"].shape, bool)
    for row, (where, weights) in enumerate(zip(corrupted["picked"], corrupted["weights"], strict=True)):
        chosen[row, where[weights > 0]] = True
    for row, tokens in enumerate(corrupted["tokens"]):
        said = []
        for place in np.flatnonzero(corrupted["example"][row]):
            token, before = int(tokens[place]), int(corrupted["original"][row, place])
            if chosen[row, place]:
                kind = "mask" if token == mask else "kept" if token == before else "random"
                text = word(token) if kind == "kept" else f"{word(token)}←{word(before)}"
            else:
                kind = "special" if token in store.facts.special else "second"
                text = word(token)
                if kind == "second" and not corrupted["segments"][row, place]:
                    said.append(text)
                    continue
            said.append(paint(kind, text))
        yield ""
        yield " ".join(said)
        count = int((corrupted["example"][row] > 0).sum())
        of = f"{count} tokens, {phase.length - count} of padding, {int(chosen[row].sum())} to be predicted"
        for slot in np.flatnonzero(corrupted["valid"][row]):
            labels = [MEANING[name][int(batch[name][row, slot])] for name in phase.format.labels if name in MEANING]
            of += "".join(f"; {label}" for label in labels)
        yield f"  {of}"


def labelled(store: Store, rows: int) -> Iterator[str]:
    """The first rows of each split: their texts, their labels, and what scores need of them."""
    for name in store.meta["splits"]:
        split = store.split(name)
        yield f"\n{name}"
        for row in range(min(rows, split.size)):
            offsets = split.offsets(row)
            pairs = zip(offsets, offsets[1:], strict=False)
            texts = [store.tokenizer.decode(np.asarray(split.tokens[a:b])) for a, b in pairs]
            answers = {column: answer(values, row, split) for column, values in split.columns.items()}
            yield f"  {' | '.join(texts)}\n    {json.dumps(answers | split.notes[row])}"


def answer(values: np.ndarray, row: int, split):
    """What a column says of a row: of the row, or of each of its tokens."""
    if len(values) == split.size:
        return values[row].tolist()
    first, last = split.sentences[split.documents[[row, row + 1]]]
    return values[first:last].tolist()
