"""CHECKPOINT → ANSWERS: what a run says of new texts, in Python and for `launch.py predict`.

Texts are read in chunks, sorted by length within each, and answered in the order they came in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from encoders.data.batch import Batch
from encoders.data.example_table import add_example_axis
from encoders.data.formats import Format
from encoders.data.store import Split
from encoders.data.stream import Phase, iter_batches_longest_first
from encoders.experiment import Experiment
from encoders.model.encoder import Encoder, find_encoder_name
from encoders.model.heads import Pooler, summarize_examples
from encoders.objectives.masking import MaskedBatch
from encoders.run.folder import RunError
from encoders.run.run import Run
from encoders.tasks.answers import QAPrediction
from encoders.tasks.classification import Classification
from encoders.tasks.question_answering import QAObjective
from encoders.tasks.squad import ContextWindows
from encoders.tasks.text_tasks import TextRows

CHUNK_SIZE = 4096  # texts that are sorted by length at a time
NUM_LENGTH_BUCKETS = 16  # lengths that batches may have
DEFAULT_WINDOW_LENGTH = 384  # tokens, where the run does not say
Pooling = Literal["cls", "mean", "pooled"]
TextOrPair = str | tuple[str, str]  # one text or two


@partial(jax.jit, static_argnames=("module", "method"))
def apply_module(params: dict, batch: Batch, *, module, method: str):
    return module.apply({"params": params}, batch, method=method)


@partial(jax.jit, static_argnames=("config", "layer", "pooling"))
def compute_vectors(
    params: dict, pooler_params: dict | None, batch: Batch, *, config, layer: int, pooling: Pooling | None
):
    """The hidden states of a layer, `[b l d]`, or one vector of each row, `[b d]`."""
    hidden = Encoder(config).apply({"params": params}, batch, output_hidden_states=True)[layer]
    if pooling is None:
        return hidden
    if pooling == "mean":
        real = (batch.example_ids > 0)[..., None]
        return (hidden * real).sum(1) / jnp.maximum(real.sum(1), 1)
    vector = summarize_examples(config, hidden, batch)
    return (Pooler(config).apply({"params": pooler_params}, vector) if pooling == "pooled" else vector)[:, 0]


class Predictor:
    """A run that answers. `cut` counts the texts that were longer than the model reads, and cut at their end."""

    def __init__(self, run: Run, params: dict, batch_size: int = 32):
        self.run, self.params, self.batch_size, self.num_truncated = run, params, batch_size, 0
        self.config, self.objective = run.spec.model, run.spec.objective
        self.num_separators = self.config.conventions.num_separators

    @property
    def labels(self) -> tuple[str, ...]:
        """What a classifier chooses from. Raises `RunError` for a run that is none."""
        if not isinstance(self.objective, Classification):
            raise RunError(f"{self.run.folder} has no classification head, only {', '.join(sorted(self.params))}")
        return self.objective.labels

    def fill_masks(self, texts: Iterable[str], top_k: int = 5) -> Iterator[list[list[tuple[str, float]]]]:
        """For each [MASK] (or <mask>) of each text the `top` likeliest tokens and their probabilities.

        ELECTRA's generator answers for ELECTRA. Raises `RunError` for a text without a mask.
        """
        self.require_params("tokens", "masked-token")
        facts, tokenizer, mask = (
            self.run.vocab,
            self.run.tokenizer,
            self.run.tokenizer.id_to_token(self.run.vocab.mask_id),
        )

        def encode_masked_text(text: str) -> list[list[int]]:
            ids = tokenizer.encode(re.sub(r"\[MASK\]|<mask>", lambda _: mask, text))
            if facts.mask_id not in ids[: self.config.max_positions - 2]:
                raise RunError(f"{text!r} has no [MASK]")
            return [ids]

        def predict_rows(rows: Batch) -> list:
            masked = rows.input_ids == facts.mask_id
            most = 1 << (int(masked.sum(1).max()) - 1).bit_length()
            picked = np.argsort(~masked, axis=1, kind="stable")[:, :most]
            batch = MaskedBatch(
                **rows.get_arrays(),
                clean_ids=rows.input_ids,
                masked_positions=picked,
                masked_labels=np.take_along_axis(rows.input_ids, picked, axis=1),
                masked_weights=np.take_along_axis(masked, picked, axis=1).astype(np.float32),
            )
            found = apply_module(self.params, batch, module=self.run.module, method="compute_token_logits")
            values, best = jax.device_get(
                jax.lax.top_k(jax.nn.softmax(found[..., : facts.vocab_size]), min(top_k, facts.vocab_size))
            )
            list_candidates = lambda row, n: [
                [(tokenizer.id_to_token(int(i)), float(p)) for p, i in zip(*pair, strict=True)]
                for pair in zip(values[row, :n], best[row, :n], strict=True)
            ]
            return [list_candidates(row, n) for row, n in enumerate(masked.sum(1))]

        yield from self.predict_texts(texts, encode_masked_text, predict_rows)

    def classify(self, texts: Iterable[TextOrPair]) -> Iterator[dict[str, float]]:
        """The probability of each label, or the number where there is one label only, for one text or two."""
        labels = self.labels

        def predict_rows(rows: Batch) -> list:
            logits = apply_module(self.params, rows, module=self.run.module, method="predict_outputs")["logits"][:, 0]
            found = logits if len(labels) == 1 else jax.nn.softmax(logits)
            return [dict(zip(labels, map(float, row), strict=True)) for row in jax.device_get(found)]

        yield from self.predict_texts(texts, self.encode_text, predict_rows)

    def answer_questions(
        self, questions: Iterable[tuple[str, str]], null_threshold: float | None = None
    ) -> Iterator[dict]:
        """The answer to each (question, text), its place in the text and its score; "" where it is likelier that there
        is none: `null` exceeds the threshold, by default the one that was tuned when the run was evaluated.

        Raises `RunError` for a run that answers no questions.
        """
        if not isinstance(self.objective, QAObjective):
            raise RunError(f"{self.run.folder} answers no questions, it is {type(self.objective).__name__}")
        null_threshold = self.null_threshold if null_threshold is None else null_threshold
        for chunk in chunk_items(questions, CHUNK_SIZE):
            for verdict in self.predict_spans(chunk):
                best = verdict.answers[0] if verdict.best_text(null_threshold) else None
                place = {"start": best.start, "end": best.end, "score": best.score} if best else {}
                yield {"answer": best.text if best else ""} | place | {"null": verdict.null_score}

    def predict_spans(self, questions: Sequence[tuple[str, str]]) -> list[QAPrediction]:
        """What is said of each (question, text), through windows such as the run was trained on."""
        network = self.run.spec
        phase = network.phases[-1] if isinstance(network, Experiment) else None
        form, length = (
            (phase.format, phase.seq_length)
            if phase
            else (ContextWindows(num_separators=self.num_separators), DEFAULT_WINDOW_LENGTH)
        )
        length = min(length, self.config.max_positions)
        ids, places = self.run.tokenizer.encode_with_offsets(list(chain.from_iterable(questions)))
        pairs = [self.require_tokens([a, b], text) for a, b, text in zip(ids[::2], ids[1::2], questions, strict=True)]
        flat = [place for a, b in zip(places[::2], places[1::2], strict=True) for place in (*a, *b, (0, 0))]
        columns = {"answer": np.full((len(questions), 2), -1), "places": np.array(flat)}
        notes = tuple({"context": text, "place": repr(question)} for question, text in questions)
        split = build_split(pairs, self.run.vocab, columns, notes)
        table, heard, rows = form.build_example_table(split, range(split.num_documents), length, 0, 0), [], []
        for batch in self.iterate_batches(split, table, form, length):
            heard.append(
                jax.device_get(apply_module(self.params, batch, module=self.run.module, method="predict_outputs"))
            )
            rows.append(batch.example_index[:, 0])
        said = {name: np.concatenate([each[name] for each in heard])[: len(table)] for name in heard[0]}
        found = self.objective.decode_predictions(
            said, add_example_axis(table)[np.concatenate(rows)[: len(table)]], split
        )
        return [found[document] for document in range(len(questions))]

    @property
    def null_threshold(self) -> float | None:
        """Above which `null` means that there is no answer: None for a run that was trained on answers alone."""
        path = self.run.folder / "result.json"
        best = json.loads(path.read_text(encoding="utf-8")).get("best", {}) if path.exists() else {}
        return best.get("threshold")

    def embed(self, texts: Iterable[TextOrPair], pooling: Pooling = "mean", layer: int = -1) -> Iterator[np.ndarray]:
        """A vector of each text, `[d]`: its [CLS], the mean of its tokens, or what the pooler makes of [CLS].

        `layer` is 0 for the embedding, n for the n-th layer, -1 for the last.
        """
        if pooling == "pooled":
            self.require_params("pooler", "pooler")

        def predict_rows(rows: Batch) -> list:
            return list(jax.device_get(self.encode_rows(rows, layer, pooling)))

        yield from self.predict_texts(texts, self.encode_text, predict_rows)

    def embed_tokens(self, texts: Iterable[TextOrPair], layer: int = -1) -> Iterator[list[tuple[str, np.ndarray]]]:
        """Each token of each text, special ones included, and its vector `[d]`."""

        def predict_rows(rows: Batch) -> list:
            hidden = jax.device_get(self.encode_rows(rows, layer, None))
            sizes = (rows.example_ids > 0).sum(1)
            names = [self.decode_tokens(row, size) for row, size in zip(rows.input_ids, sizes, strict=True)]
            return [list(zip(name, row[: len(name)], strict=True)) for name, row in zip(names, hidden, strict=True)]

        yield from self.predict_texts(texts, self.encode_text, predict_rows)

    def compare_pairs(
        self, pairs: Iterable[tuple[str, str]], pooling: Pooling = "mean", layer: int = -1
    ) -> Iterator[float]:
        """The cosine of the vectors of two texts, each read alone. (A head on a pair is `classify`.)"""
        both = self.embed(chain.from_iterable(pairs), pooling, layer)
        for first in both:
            yield float(normalize_vector(first) @ normalize_vector(next(both)))

    def similarity_matrix(self, texts: Sequence[str], pooling: Pooling = "mean", layer: int = -1) -> np.ndarray:
        """The cosines of all texts with all, `[n n]`."""
        rows = np.stack([normalize_vector(vector) for vector in self.embed(texts, pooling, layer)])
        return rows @ rows.T

    def detect_replaced(self, texts: Iterable[TextOrPair]) -> Iterator[list[tuple[str, float]]]:
        """Each token of each text and how likely ELECTRA's discriminator thinks that it was replaced."""
        self.require_params("replaced", "replaced-token")

        def predict_rows(rows: Batch) -> list:
            verdict = apply_module(self.params, rows, module=self.run.module, method="compute_replaced_logits")
            found, sizes = jax.device_get(jax.nn.sigmoid(verdict)), (rows.example_ids > 0).sum(1)
            each = zip(rows.input_ids, found, sizes, strict=True)
            return [list(zip(self.decode_tokens(t, n), map(float, p[:n]), strict=True)) for t, p, n in each]

        yield from self.predict_texts(texts, self.encode_text, predict_rows)

    # What they have in common

    def require_params(self, param_name: str, head_name: str) -> None:
        if param_name not in self.params:
            raise RunError(f"{self.run.folder} has no {head_name} head, only {', '.join(sorted(self.params))}")

    def decode_tokens(self, input_ids: np.ndarray, size: int) -> list[str]:
        return [self.run.tokenizer.id_to_token(int(id)) for id in input_ids[:size]]

    def encode_rows(self, rows: Batch, layer: int, pooling: Pooling | None):
        if not -self.config.num_layers - 1 <= layer <= self.config.num_layers:
            raise RunError(
                f"layer={layer} is not from 0 (the embedding) to {self.config.num_layers}, or -1 for the last"
            )
        body, pooler = self.params[find_encoder_name(self.params)], self.params.get("pooler")
        return compute_vectors(body, pooler, rows, config=self.config, layer=layer, pooling=pooling)

    def encode_text(self, text: TextOrPair) -> list[list[int]]:
        return self.run.tokenizer.encode_batch([text] if isinstance(text, str) else list(text))

    def require_tokens(self, ids: list[list[int]], text: TextOrPair) -> list[list[int]]:
        if not all(ids):
            raise RunError(f"{text!r} has no tokens, or one of its texts has none")
        return ids

    def iterate_batches(
        self, split: Split, example_table: np.ndarray, row_format: Format, seq_length: int
    ) -> Iterator[Batch]:
        """The rows of a table, the longest first; rows that fill up the last batch are its last."""
        phase = Phase(1, seq_length, self.batch_size, row_format)
        for rows in iter_batches_longest_first(
            split,
            self.run.vocab,
            example_table,
            np.arange(len(example_table)),
            phase,
            self.batch_size,
            NUM_LENGTH_BUCKETS,
        ):
            yield rows.replace(labels={})

    def predict_texts(
        self,
        texts: Iterable[TextOrPair],
        encode: Callable[[TextOrPair], list[list[int]]],
        predict: Callable[[Batch], list],
    ) -> Iterator:
        """What is `said` of each text, in their order."""
        length, form = self.config.max_positions, TextRows(num_separators=self.num_separators)
        for chunk in chunk_items(texts, CHUNK_SIZE):
            ids = [self.require_tokens(encode(text), text) for text in chunk]
            sizes = np.array([sum(map(len, row)) + (2 if len(row) == 1 else 2 + self.num_separators) for row in ids])
            self.num_truncated += int((sizes > length).sum())
            split = build_split(ids, self.run.vocab, {"label": np.zeros(len(ids))})
            found = [None] * len(ids)
            for rows in self.iterate_batches(
                split, form.build_example_table(split, range(split.num_documents), length, 0, 0), form, length
            ):
                each = zip(rows.example_index[:, 0], rows.example_mask[:, 0], predict(rows), strict=True)
                for place, _, answer in (row for row in each if row[1]):
                    found[place] = answer
            yield from found


def chunk_items(items: Iterable, size: int) -> Iterator[tuple]:
    """The items in tuples of `size`; itertools has this from Python 3.12 on."""
    left = iter(items)
    while some := tuple(islice(left, size)):
        yield some


def normalize_vector(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def build_split(rows: list[list[list[int]]], vocab, columns: dict, notes: tuple[dict, ...] = ()) -> Split:
    """Rows of one or two texts as a split in memory."""
    flat, sentences, documents = [], [0], [0]
    for texts in rows:
        for number, ids in enumerate(texts):
            flat += [*ids, vocab.sep_id] if number == len(texts) - 1 else ids
            sentences.append(len(flat))
        documents.append(len(sentences) - 1)
    return Split("new", np.array(flat), np.array(sentences), np.array(documents), columns, in_memory_metadata=notes)


def load_predictor(run: str | Path, step: str = "best", batch_size: int = 32) -> Predictor:
    """A run, trained or imported, that answers: `step` is best (the latest where none was scored), latest, or a number.

    predictor = load_predictor("runs/bert-base")
    next(predictor.fill_masks(["The capital of France is [MASK]."]))
    """
    opened = Run.open(Path(run))
    return Predictor(opened, opened.load_params(step)[1], batch_size)
