"""The verb `inspect`: the counts of a store, and its rows as the model reads them."""

import itertools
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
from encoders.utils.errors import escape_control

LABEL_MEANINGS = {
    "next_sentence": ("B follows A", "B is random"),
    "sentence_order": ("A precedes B", "A and B are swapped"),
}
ANSI_COLOURS = {"special": "2", "second": "34", "mask": "1;33", "random": "1;31", "kept": "4;32"}
COLOURED_TOKENS = {kind: f"\033[{colour}m{{}}\033[0m" for kind, colour in ANSI_COLOURS.items()}
PLAIN_TOKENS = {"special": "{}", "second": "{}", "mask": "{}", "random": "{}!", "kept": "{}="}
LEGEND = "{second} segment B   {mask} a mask and its token   {random} a random token   {kept} selected, unchanged"


@dataclass(frozen=True)
class RowSettings:
    """The phases, objective and seed that make rows of a store; BERT's by default."""

    phases: tuple[Phase, ...] = (Phase(1, 128, 64, SegmentPairs()),)
    objective: Objective = MaskedLM(sentence_task=NextSentencePrediction())
    seed: int = 0


def describe_store(store: Store, settings: RowSettings, num_rows: int, use_colour: bool) -> Iterator[str]:
    """Yield the counts of a store, then `num_rows` rows of each phase, or of each split of labelled rows."""
    yield from describe_splits(store)
    if "task" in store.metadata["content"]:
        yield from format_labelled_rows(store, num_rows)
        return
    marks = COLOURED_TOKENS if use_colour else PLAIN_TOKENS
    yield "\n" + LEGEND.format(**{kind: mark.format("word") for kind, mark in marks.items()})
    start = 0
    num_passes = settings.objective.num_distinct_passes
    stream = BatchStream.from_store(store, settings.phases, settings.seed, num_passes)
    for phase in settings.phases:
        yield ""
        yield from describe_pass(phase, store.train_split, settings.seed)
        if num_rows:
            batch = jax.tree.map(lambda array: array[:num_rows], stream.build_batch(start))
            yield from format_rows(batch, settings, phase, store, marks)
        start = phase.until_step


def describe_splits(store: Store) -> Iterator[str]:
    meta = store.metadata
    yield f"{store.path}: {store.tokenizer.kind} vocabulary of {store.vocab.vocab_size:,}, tokens as {meta['dtype']}"
    rows = [["split", "documents", "sentences", "tokens", "tokens per document", "tokens per sentence"]]
    for name, split in meta["splits"].items():
        counts = [split[column] for column in ("documents", "sentences", "tokens")]
        means = [split["tokens"] / max(split[column], 1) for column in ("documents", "sentences")]
        rows.append([name, *(f"{count:,}" for count in counts), *(f"{mean:,.1f}" for mean in means)])
    yield format_grid(rows)
    if "unknown_rate" in meta:
        tokens = sum(split["tokens"] for split in meta["splits"].values())
        yield f"unknown tokens: {meta['unknown_rate']:.3%}; characters per token: {meta['characters'] / tokens:.2f}"
    if filtered := {name: count for name, count in meta.get("filtered", {}).items() if name != "documents read"}:
        yield "filtered: " + ", ".join(f"{count:,} {name}" for name, count in filtered.items())


def describe_pass(phase: Phase, split: Split, seed: int) -> Iterator[str]:
    """Yield the rows, the padding and the labels of a pass of a phase, counted shard by shard."""
    row_format, counts = phase.format, Counter()
    for shard in split.split_shards():
        table = row_format.build_example_table(split, shard, phase.seq_length, seed, 0)
        sizes, examples = count_row_tokens(table, row_format.num_separators), add_example_axis(table)
        labels = examples["label"][examples["a_end"] > examples["a_start"]]
        counts.update(rows=len(table), tokens=int(sizes.sum()), shorter=int((sizes < phase.seq_length).sum()))
        counts.update(Counter(labels.tolist()))
        counts["examples"] += len(labels)
    yield f"up to step {phase.until_step:,}: {row_format}, rows of {phase.seq_length}"
    if not counts["rows"]:
        yield "  too little text for a row"
        return
    padding, shorter = 1 - counts["tokens"] / (counts["rows"] * phase.seq_length), counts["shorter"] / counts["rows"]
    shares = f"{padding:.1%} of their positions are padding, {shorter:.1%} of the rows are shorter"
    yield f"  a pass has {counts['rows']:,} rows and {counts['tokens']:,} tokens; {shares}"
    for label in row_format.label_fields:
        for value, meaning in enumerate(LABEL_MEANINGS.get(label, ())):
            yield f"  {meaning}: {counts[value] / counts['examples']:.1%}"


def format_rows(batch: Batch, settings: RowSettings, phase: Phase, store: Store, marks: dict) -> Iterator[str]:
    """Yield corrupted rows as the model reads them, each with its counts and its labels."""
    objective = settings.objective.replace_mask_rate(phase.mask_rate)
    corrupted = objective.corrupt(jax.tree.map(jnp.asarray, batch), store.vocab, settings.seed)
    corrupted = jax.tree.map(np.asarray, corrupted)
    is_selected = np.zeros(corrupted.input_ids.shape, bool)  # [b l], positions to predict
    for row, (positions, weights) in enumerate(zip(corrupted.masked_positions, corrupted.masked_weights, strict=True)):
        is_selected[row, positions[weights > 0]] = True
    for row, example_ids in enumerate(corrupted.example_ids):
        positions = np.flatnonzero(example_ids)
        yield ""
        tokens = [format_token(corrupted, row, i, is_selected[row, i], store, marks) for i in positions]
        yield " ".join(tokens)
        num_padding, num_selected = phase.seq_length - len(tokens), is_selected[row].sum()
        counts = f"{len(tokens)} tokens, {num_padding} of padding, {num_selected} to predict"
        labels = [
            LABEL_MEANINGS[name][int(batch.labels[name][row, slot])]
            for slot in np.flatnonzero(corrupted.example_mask[row])
            for name in phase.format.label_fields
            if name in LABEL_MEANINGS
        ]
        yield f"  {'; '.join([counts, *labels])}"


def format_token(corrupted: Batch, row: int, position: int, is_selected: bool, store: Store, marks: dict) -> str:
    """Return a token as the model reads it; where it is to be predicted, with the original after an arrow."""
    token, original = int(corrupted.input_ids[row, position]), int(corrupted.clean_ids[row, position])
    text, original_text = (escape_control(store.tokenizer.id_to_token(id)) for id in (token, original))
    if is_selected:
        kind = "mask" if token == store.vocab.mask_id else "kept" if token == original else "random"
        return marks[kind].format(text if kind == "kept" else f"{text}←{original_text}")
    if token in store.vocab.special_ids:
        return marks["special"].format(text)
    return marks["second"].format(text) if corrupted.token_type_ids[row, position] else text


def format_labelled_rows(store: Store, num_rows: int) -> Iterator[str]:
    """Yield the first rows of each split: their texts, their labels, and the metadata that scores need."""
    for name in store.metadata["splits"]:
        split = store.open_split(name)
        yield f"\n{name}"
        for row in range(min(num_rows, split.num_documents)):
            offsets = split.get_sentence_offsets(row)
            texts = [store.tokenizer.decode(np.asarray(split.tokens[a:b])) for a, b in itertools.pairwise(offsets)]
            # A column has a label for each row, or for each token.
            tokens = slice(*split.sentences[split.documents[[row, row + 1]]])
            labels = {
                column: values[row if len(values) == split.size else tokens].tolist()
                for column, values in split.label_columns.items()
            }
            yield f"  {escape_control(' | '.join(texts))}\n    {json.dumps(labels | split.row_metadata[row])}"
