"""What a store holds, and rows of it as the model sees them: what `launch.py inspect` prints."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from encoders.data.batch import Batch
from encoders.data.example_table import add_example_axis, count_row_tokens
from encoders.data.formats import SegmentPairs
from encoders.data.store import Split, Store
from encoders.data.stream import BatchStream, Phase
from encoders.objectives.base import Objective
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.sentence_pair import NextSentencePrediction
from encoders.reporting.table_formats import format_grid

LABEL_MEANINGS = {
    "next_sentence": ("B follows A", "B is random"),
    "sentence_order": ("A stands before B", "A and B are swapped"),
}
ANSI_COLOURS = {"special": "2", "second": "34", "mask": "1;33", "random": "1;31", "kept": "4;32"}  # ANSI
LEGEND = "{second} segment B   {mask} a mask and the word under it   {random} a random word   {kept} chosen, and kept"


@dataclass(frozen=True)
class RowSettings:
    """How rows are made: phases and an objective, of an experiment or BERT's, and the seed of the run."""

    phases: tuple[Phase, ...] = (Phase(1, 128, 64, SegmentPairs()),)
    objective: Objective = MaskedLM(sentence_task=NextSentencePrediction())
    seed: int = 0


def describe_store(store: Store, settings: RowSettings, num_rows: int, use_colour: bool) -> Iterator[str]:
    """Lines: what is in the store; for running text, each phase's rows in numbers and `rows` of them in full; for
    labelled rows the first ones."""
    yield from describe_splits(store)
    if "task" in store.metadata["content"]:
        yield from format_labelled_rows(store, num_rows)
        return
    colourize = (lambda kind, text: f"\033[{ANSI_COLOURS[kind]}m{text}\033[0m") if use_colour else mark_plain_text
    yield ""
    yield LEGEND.format(**{kind: colourize(kind, "word") for kind in ANSI_COLOURS})
    start = 0
    stream = BatchStream(
        store.train_split,
        store.vocab,
        settings.phases,
        settings.seed,
        settings.objective.num_distinct_passes,
        store.path / "tables",
    )
    for phase in settings.phases:
        yield ""
        yield from describe_pass(phase, store.train_split, settings.seed)
        if num_rows:
            batch = jax.tree.map(lambda array: array[:num_rows], stream.build_batch(start))
            yield from format_rows(batch, settings, phase, store, colourize)
        start = phase.until_step


def mark_plain_text(kind: str, text: str) -> str:
    marks = {"mask": "{}", "random": "{}!", "kept": "{}=", "second": "{}", "special": "{}"}
    return marks[kind].format(text)


def describe_splits(store: Store) -> Iterator[str]:
    meta = store.metadata
    kind = store.tokenizer.kind
    yield f"{store.path}: {kind} vocabulary of {store.vocab.vocab_size:,}, tokens as {meta['dtype']}"
    head = ["split", "documents", "sentences", "tokens", "tokens a document", "tokens a sentence"]
    rows = [head]
    for name, split in meta["splits"].items():
        counts = [split[column] for column in head[1:4]]
        means = [split["tokens"] / max(split[column], 1) for column in ("documents", "sentences")]
        rows.append([name, *(f"{count:,}" for count in counts), *(f"{mean:,.1f}" for mean in means)])
    yield format_grid(rows)
    if "unknown_rate" in meta:
        tokens = sum(split["tokens"] for split in meta["splits"].values())
        yield f"unknown tokens: {meta['unknown_rate']:.3%}; characters a token: {meta['characters'] / tokens:.2f}"
    if left := {name: count for name, count in meta.get("filtered", {}).items() if name != "documents read"}:
        yield "left out: " + ", ".join(f"{count:,} {name}" for name, count in left.items())


def describe_pass(phase: Phase, split: Split, seed: int) -> Iterator[str]:
    """A pass of a phase: rows, padding and labels, counted shard by shard."""
    form, counts = phase.format, Counter()
    for shard in split.split_shards():
        table = form.build_example_table(split, shard, phase.seq_length, seed, 0)
        sizes, each = count_row_tokens(table, form.num_separators), add_example_axis(table)
        labels = each["label"][each["a_end"] > each["a_start"]]
        counts.update(rows=len(table), tokens=int(sizes.sum()), shorter=int((sizes < phase.seq_length).sum()))
        counts.update(Counter(labels.tolist()))
        counts["examples"] += len(labels)
    yield f"up to step {phase.until_step:,}: {form}, rows of {phase.seq_length}"
    if not counts["rows"]:
        yield "  there is too little text for a row"
        return
    padding, shorter = 1 - counts["tokens"] / (counts["rows"] * phase.seq_length), counts["shorter"] / counts["rows"]
    yield (
        f"  a pass has {counts['rows']:,} rows and {counts['tokens']:,} tokens; {padding:.1%} of the rows is padding, "
        f"{shorter:.1%} of them are shorter"
    )
    for label in form.label_fields:
        for value, meaning in enumerate(LABEL_MEANINGS.get(label, ())):
            yield f"  {meaning}: {counts[value] / counts['examples']:.1%}"


def format_rows(batch: Batch, settings: RowSettings, phase: Phase, store: Store, colourize) -> Iterator[str]:
    """Rows as the model is shown them, with what it has to say."""
    corrupted = settings.objective.corrupt(jax.tree.map(jnp.asarray, batch), store.vocab, settings.seed)
    corrupted = jax.tree.map(np.asarray, corrupted)
    word, mask = store.tokenizer.id_to_token, store.vocab.mask_id
    chosen = np.zeros(corrupted.input_ids.shape, bool)
    for row, (where, weights) in enumerate(zip(corrupted.masked_positions, corrupted.masked_weights, strict=True)):
        chosen[row, where[weights > 0]] = True
    for row, tokens in enumerate(corrupted.input_ids):
        said = []
        for place in np.flatnonzero(corrupted.example_ids[row]):
            token, before = int(tokens[place]), int(corrupted.clean_ids[row, place])
            if chosen[row, place]:
                kind = "mask" if token == mask else "kept" if token == before else "random"
                text = word(token) if kind == "kept" else f"{word(token)}←{word(before)}"
            else:
                kind = "special" if token in store.vocab.special_ids else "second"
                text = word(token)
                if kind == "second" and not corrupted.token_type_ids[row, place]:
                    said.append(text)
                    continue
            said.append(colourize(kind, text))
        yield ""
        yield " ".join(said)
        count = int((corrupted.example_ids[row] > 0).sum())
        of = f"{count} tokens, {phase.seq_length - count} of padding, {int(chosen[row].sum())} to be predicted"
        for slot in np.flatnonzero(corrupted.example_mask[row]):
            labels = [
                LABEL_MEANINGS[name][int(batch.labels[name][row, slot])]
                for name in phase.format.label_fields
                if name in LABEL_MEANINGS
            ]
            of += "".join(f"; {label}" for label in labels)
        yield f"  {of}"


def format_labelled_rows(store: Store, num_rows: int) -> Iterator[str]:
    """The first rows of each split: their texts, their labels, and what scores need of them."""
    for name in store.metadata["splits"]:
        split = store.open_split(name)
        yield f"\n{name}"
        for row in range(min(num_rows, split.num_documents)):
            offsets = split.get_sentence_offsets(row)
            pairs = zip(offsets, offsets[1:], strict=False)
            texts = [store.tokenizer.decode(np.asarray(split.tokens[a:b])) for a, b in pairs]
            answers = {column: select_label(values, row, split) for column, values in split.label_columns.items()}
            yield f"  {' | '.join(texts)}\n    {json.dumps(answers | split.row_metadata[row])}"


def select_label(values: np.ndarray, row: int, split):
    """What a column says of a row: of the row, or of each of its tokens."""
    if len(values) == split.size:
        return values[row].tolist()
    first, last = split.sentences[split.documents[[row, row + 1]]]
    return values[first:last].tolist()
