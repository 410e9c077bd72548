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

from encoders.data.formats import Format, examples
from encoders.data.store import Split
from encoders.data.stream import Phase, longest_first
from encoders.experiment import Experiment
from encoders.model.encoder import Encoder
from encoders.model.heads import Pooler, summary
from encoders.run.run import Run, RunError
from encoders.tasks.answers import Verdict
from encoders.tasks.classification import Classification
from encoders.tasks.conventions import conventions
from encoders.tasks.question_answering import Questions
from encoders.tasks.squad import Windows
from encoders.tasks.text_tasks import TextRows

CHUNK = 4096  # texts that are sorted by length at a time
CUTS = 16  # lengths that batches may have
WINDOW = 384  # tokens, where the run does not say
Pool = Literal["cls", "mean", "pooled"]
Text = str | tuple[str, str]  # one text or two


@partial(jax.jit, static_argnames=("module", "method"))
def apply(params: dict, batch: dict, *, module, method: str):
    return module.apply({"params": params}, batch, method=method)


@partial(jax.jit, static_argnames=("model", "layer", "pool"))
def vectors(params: dict, pooler: dict | None, batch: dict, *, model, layer: int, pool: Pool | None):
    """The hidden states of a layer, `[b l d]`, or one vector of each row, `[b d]`."""
    inputs = (batch[name] for name in ("tokens", "example", "segments", "positions"))
    hidden = Encoder(model).apply({"params": params}, *inputs, collect=True)[layer]
    if pool is None:
        return hidden
    if pool == "mean":
        real = (batch["example"] > 0)[..., None]
        return (hidden * real).sum(1) / jnp.maximum(real.sum(1), 1)
    vector = summary(model, hidden, batch)
    return (Pooler(model).apply({"params": pooler}, vector) if pool == "pooled" else vector)[:, 0]


class Predictor:
    """A run that answers. `cut` counts the texts that were longer than the model reads, and cut at their end."""

    def __init__(self, run: Run, params: dict, batch: int = 32):
        self.run, self.params, self.batch, self.cut = run, params, batch, 0
        self.model, self.objective = run.network.model, run.network.objective
        self.between = conventions(self.model).between

    @property
    def labels(self) -> tuple[str, ...]:
        """What a classifier chooses from. Raises `RunError` for a run that is none."""
        if not isinstance(self.objective, Classification):
            raise RunError(f"{self.run.folder} has no classification head, only {', '.join(sorted(self.params))}")
        return self.objective.labels

    def fill(self, texts: Iterable[str], top: int = 5) -> Iterator[list[list[tuple[str, float]]]]:
        """For each [MASK] (or <mask>) of each text the `top` likeliest tokens and their probabilities.

        ELECTRA's generator answers for ELECTRA. Raises `RunError` for a text without a mask.
        """
        self.need("tokens", "masked-token")
        facts, tokenizer, mask = self.run.facts, self.run.tokenizer, self.run.tokenizer.token(self.run.facts.mask)

        def encoded(text: str) -> list[list[int]]:
            ids = tokenizer.encode(re.sub(r"\[MASK\]|<mask>", lambda _: mask, text))
            if facts.mask not in ids[: self.model.positions - 2]:
                raise RunError(f"{text!r} has no [MASK]")
            return [ids]

        def said(rows: dict) -> list:
            masked = rows["tokens"] == facts.mask
            most = 1 << (int(masked.sum(1).max()) - 1).bit_length()
            picked = np.argsort(~masked, axis=1, kind="stable")[:, :most]
            found = apply(self.params, rows | {"picked": picked}, module=self.run.module, method="predict")
            values, best = jax.device_get(jax.lax.top_k(jax.nn.softmax(found[..., : facts.size]), min(top, facts.size)))
            words = lambda row, n: [
                [(tokenizer.token(int(i)), float(p)) for p, i in zip(*pair, strict=True)]
                for pair in zip(values[row, :n], best[row, :n], strict=True)
            ]
            return [words(row, n) for row, n in enumerate(masked.sum(1))]

        yield from self.answers(texts, encoded, said)

    def classify(self, texts: Iterable[Text]) -> Iterator[dict[str, float]]:
        """The probability of each label, or the number where there is one label only, for one text or two."""
        labels = self.labels

        def said(rows: dict) -> list:
            logits = apply(self.params, rows, module=self.run.module, method="outputs")["logits"][:, 0]
            found = logits if len(labels) == 1 else jax.nn.softmax(logits)
            return [dict(zip(labels, map(float, row), strict=True)) for row in jax.device_get(found)]

        yield from self.answers(texts, self.plain, said)

    def answer(self, questions: Iterable[tuple[str, str]], threshold: float | None = None) -> Iterator[dict]:
        """The answer to each (question, text), its place in the text and its score; "" where it is likelier that there
        is none: `null` exceeds the threshold, by default the one that was tuned when the run was evaluated.

        Raises `RunError` for a run that answers no questions.
        """
        if not isinstance(self.objective, Questions):
            raise RunError(f"{self.run.folder} answers no questions, it is {type(self.objective).__name__}")
        threshold = self.threshold if threshold is None else threshold
        for chunk in batched(questions, CHUNK):
            for verdict in self.verdicts(chunk):
                best = verdict.answers[0] if verdict.text(threshold) else None
                place = {"start": best.start, "end": best.end, "score": best.score} if best else {}
                yield {"answer": best.text if best else ""} | place | {"null": verdict.null}

    def verdicts(self, questions: Sequence[tuple[str, str]]) -> list[Verdict]:
        """What is said of each (question, text), through windows such as the run was trained on."""
        network = self.run.network
        phase = network.phases[-1] if isinstance(network, Experiment) else None
        form, length = (phase.format, phase.length) if phase else (Windows(between=self.between), WINDOW)
        length = min(length, self.model.positions)
        ids, places = self.run.tokenizer.encode_places(list(chain.from_iterable(questions)))
        pairs = [self.whole([a, b], text) for a, b, text in zip(ids[::2], ids[1::2], questions, strict=True)]
        flat = [place for a, b in zip(places[::2], places[1::2], strict=True) for place in (*a, *b, (0, 0))]
        columns = {"answer": np.full((len(questions), 2), -1), "places": np.array(flat)}
        notes = tuple({"context": text, "place": repr(question)} for question, text in questions)
        split = split_of(pairs, self.run.facts, columns, notes)
        table, heard, rows = form.table(split, range(split.size), length, 0, 0), [], []
        for batch in self.batches(split, table, form, length):
            heard.append(jax.device_get(apply(self.params, batch, module=self.run.module, method="outputs")))
            rows.append(batch["id"][:, 0])
        said = {name: np.concatenate([each[name] for each in heard])[: len(table)] for name in heard[0]}
        found = self.objective.verdicts(said, examples(table)[np.concatenate(rows)[: len(table)]], split)
        return [found[document] for document in range(len(questions))]

    @property
    def threshold(self) -> float | None:
        """Above which `null` means that there is no answer: None for a run that was trained on answers alone."""
        path = self.run.folder / "result.json"
        best = json.loads(path.read_text(encoding="utf-8")).get("best", {}) if path.exists() else {}
        return best.get("threshold")

    def embed(self, texts: Iterable[Text], pool: Pool = "mean", layer: int = -1) -> Iterator[np.ndarray]:
        """A vector of each text, `[d]`: its [CLS], the mean of its tokens, or what the pooler makes of [CLS].

        `layer` is 0 for the embedding, n for the n-th layer, -1 for the last.
        """
        if pool == "pooled":
            self.need("pooler", "pooler")

        def said(rows: dict) -> list:
            return list(jax.device_get(self.hidden(rows, layer, pool)))

        yield from self.answers(texts, self.plain, said)

    def tokens(self, texts: Iterable[Text], layer: int = -1) -> Iterator[list[tuple[str, np.ndarray]]]:
        """Each token of each text, special ones included, and its vector `[d]`."""

        def said(rows: dict) -> list:
            hidden = jax.device_get(self.hidden(rows, layer, None))
            sizes = (rows["example"] > 0).sum(1)
            names = [self.names(row, size) for row, size in zip(rows["tokens"], sizes, strict=True)]
            return [list(zip(name, row[: len(name)], strict=True)) for name, row in zip(names, hidden, strict=True)]

        yield from self.answers(texts, self.plain, said)

    def similarity(self, pairs: Iterable[tuple[str, str]], pool: Pool = "mean", layer: int = -1) -> Iterator[float]:
        """The cosine of the vectors of two texts, each read alone. (A head on a pair is `classify`.)"""
        both = self.embed(chain.from_iterable(pairs), pool, layer)
        for first in both:
            yield float(unit(first) @ unit(next(both)))

    def matrix(self, texts: Sequence[str], pool: Pool = "mean", layer: int = -1) -> np.ndarray:
        """The cosines of all texts with all, `[n n]`."""
        rows = np.stack([unit(vector) for vector in self.embed(texts, pool, layer)])
        return rows @ rows.T

    def replaced(self, texts: Iterable[Text]) -> Iterator[list[tuple[str, float]]]:
        """Each token of each text and how likely ELECTRA's discriminator thinks that it was replaced."""
        self.need("replaced", "replaced-token")

        def said(rows: dict) -> list:
            verdict = apply(self.params, rows, module=self.run.module, method="judge")
            found, sizes = jax.device_get(jax.nn.sigmoid(verdict)), (rows["example"] > 0).sum(1)
            each = zip(rows["tokens"], found, sizes, strict=True)
            return [list(zip(self.names(t, n), map(float, p[:n]), strict=True)) for t, p, n in each]

        yield from self.answers(texts, self.plain, said)

    # What they have in common

    def need(self, part: str, name: str) -> None:
        if part not in self.params:
            raise RunError(f"{self.run.folder} has no {name} head, only {', '.join(sorted(self.params))}")

    def names(self, row: np.ndarray, size: int) -> list[str]:
        return [self.run.tokenizer.token(int(id)) for id in row[:size]]

    def hidden(self, rows: dict, layer: int, pool: Pool | None):
        if not -self.model.layers - 1 <= layer <= self.model.layers:
            raise RunError(f"layer={layer} is not from 0 (the embedding) to {self.model.layers}, or -1 for the last")
        body, pooler = self.params[self.objective.body], self.params.get("pooler")
        return vectors(body, pooler, rows, model=self.model, layer=layer, pool=pool)

    def plain(self, text: Text) -> list[list[int]]:
        return self.run.tokenizer.encode_batch([text] if isinstance(text, str) else list(text))

    def whole(self, ids: list[list[int]], text: Text) -> list[list[int]]:
        if not all(ids):
            raise RunError(f"{text!r} has no tokens, or one of its texts has none")
        return ids

    def batches(self, split: Split, table: np.ndarray, form: Format, length: int) -> Iterator[dict]:
        """The rows of a table, the longest first; rows that fill up the last batch are its last."""
        phase = Phase(1, length, self.batch, form)
        for rows in longest_first(split, self.run.facts, table, np.arange(len(table)), phase, self.batch, CUTS):
            yield {name: rows[name] for name in FIELDS}

    def answers(
        self, texts: Iterable[Text], encoded: Callable[[Text], list[list[int]]], said: Callable[[dict], list]
    ) -> Iterator:
        """What is `said` of each text, in their order."""
        length, form = self.model.positions, TextRows(between=self.between)
        for chunk in batched(texts, CHUNK):
            ids = [self.whole(encoded(text), text) for text in chunk]
            sizes = np.array([sum(map(len, row)) + (2 if len(row) == 1 else 2 + self.between) for row in ids])
            self.cut += int((sizes > length).sum())
            split = split_of(ids, self.run.facts, {"label": np.zeros(len(ids))})
            found = [None] * len(ids)
            for rows in self.batches(split, form.table(split, range(split.size), length, 0, 0), form, length):
                each = zip(rows["id"][:, 0], rows["valid"][:, 0], said(rows), strict=True)
                for place, _, answer in (row for row in each if row[1]):
                    found[place] = answer
            yield from found


FIELDS = ("tokens", "example", "segments", "positions", "start", "id", "valid")


def batched(items: Iterable, size: int) -> Iterator[tuple]:
    """The items in tuples of `size`; itertools has this from Python 3.12 on."""
    left = iter(items)
    while some := tuple(islice(left, size)):
        yield some


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def split_of(rows: list[list[list[int]]], facts, columns: dict, notes: tuple[dict, ...] = ()) -> Split:
    """Rows of one or two texts as a split in memory."""
    flat, sentences, documents = [], [0], [0]
    for texts in rows:
        for number, ids in enumerate(texts):
            flat += [*ids, facts.sep] if number == len(texts) - 1 else ids
            sentences.append(len(flat))
        documents.append(len(sentences) - 1)
    return Split("new", np.array(flat), np.array(sentences), np.array(documents), columns, kept=notes)


def load(run: str | Path, step: str = "best", batch: int = 32) -> Predictor:
    """A run, trained or imported, that answers: `step` is best (the latest where none was scored), latest, or a number.

    predictor = load("runs/bert-base")
    next(predictor.fill(["The capital of France is [MASK]."]))
    """
    opened = Run.open(Path(run))
    return Predictor(opened, opened.params(step)[1], batch)
