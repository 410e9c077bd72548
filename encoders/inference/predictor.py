"""Predictions of a run on new texts, in Python and for `launch.py predict`.

Texts are read in chunks, sorted by length within each, and their predictions are returned in the order of the texts.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, product
from pathlib import Path

import jax
import numpy as np

from encoders.data.batch import Batch
from encoders.data.example_table import Table, add_example_axis
from encoders.data.store import Split
from encoders.inference import packed_texts, text_batch
from encoders.inference.missing_head import missing_head
from encoders.inference.packed_texts import AnyTextBatch
from encoders.inference.question_windows import build_question_windows
from encoders.inference.sentence_embedding import (
    Pooling,
    SentenceEmbedding,
    add_prompt,
    compute_layer_states,
    compute_vectors,
    normalize_vector,
)
from encoders.inference.text_batch import EncodeFn, TextBatch, TextOrPair, Texts
from encoders.inference.word_tags import TextWords, split_words
from encoders.model.heads import POOLER_PARAMS
from encoders.run.evaluate import concatenate_padded
from encoders.run.folder import RunError, read_result, read_run_record
from encoders.run.run import Run
from encoders.tasks.answers import QAPrediction
from encoders.tasks.classification import Classification
from encoders.tasks.question_answering import QAObjective
from encoders.tasks.token_classification import TokenClassification

CHUNK_SIZE = 4096  # texts that are sorted by length at a time
EXAMPLE_TEXTS = {"fill_masks": "[MASK]", "answer_questions": ("a", "a"), "compare_pairs": ("a", "a")}


class Predictor:
    """Predictions of a run. Every method takes any number of texts and yields one result a text, in their order.

    A text is a string, or a pair of strings where a second text is allowed. One string alone is one text, whose result
    is the only one. Texts longer than the last of `lengths` are cut at their end and counted in `num_truncated`.
    Methods raise `RunError` for a run without the head they need, for a text without tokens, and for other values.

        predictor = encoders.load("runs/bert-base")
        vectors = list(predictor.embed(["A text.", "Another one."]))
        vector = next(predictor.embed("A text."))
        for text in open("masked.txt"):
            print(next(predictor.fill_masks(text, top_k=3)))

    Rows are padded to the least of `lengths` that holds them, and batches to few sizes up to `batch_size`. A program is
    compiled once for each length and size: at first use, or before by `warm_up`.
    """

    def __init__(
        self,
        run: Run,
        params: dict,
        batch_size: int = 32,
        lengths: Sequence[int] | None = None,
        sentence_embedding: SentenceEmbedding | None = None,
    ):
        self.run, self.params = run, params
        self.sentence_embedding = sentence_embedding or SentenceEmbedding()
        self.config, self.objective = run.spec.model, run.spec.objective
        self.num_separators = self.config.conventions.num_separators
        self.lengths = text_batch.list_lengths(self.config.max_positions) if lengths is None else tuple(lengths)
        self.set_batch_size(batch_size)
        self.programs: dict[tuple, dict[tuple[int, int], Callable]] = {}  # compiled, by function and by shape
        self.num_truncated = 0

    def set_batch_size(self, batch_size: int) -> None:
        """Change the largest batch; programs that were compiled stay."""
        text_batch.check_shapes(self.lengths, batch_size, self.config.max_positions)
        self.batch_sizes = text_batch.list_batch_sizes(batch_size)

    def warm_up(self, method: str = "embed", **arguments) -> None:
        """Compile what a method computes with these arguments, for every length and batch size.

        For `fill_masks` it is what texts with one mask need.

            predictor.warm_up("embed", pooling="cls")
        """
        deque(getattr(self, method)([EXAMPLE_TEXTS.get(method, "a")], **arguments), maxlen=0)
        for function, *static in [*self.programs]:
            batches = map(text_batch.make_padding_batch, product(self.batch_sizes, self.lengths))
            if function == self.embed_rows:
                batches = chain(batches, packed_texts.iter_padding_batches(self.lengths, self.batch_sizes))
            for batch in batches:
                self.get_program(function, batch, *static)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of a classifier. Raises `RunError` for another run."""
        if not isinstance(self.objective, Classification):
            raise missing_head(self.run.folder, self.params, "classes", "classification")
        return self.objective.labels

    def fill_masks(self, texts: str | Iterable[str], top_k: int = 5) -> Iterator[list[list[tuple[str, float]]]]:
        """Yield for each [MASK] (or <mask>) of each text the `top_k` likeliest tokens and their probabilities.

        ELECTRA's predictions are its generator's. Raises `RunError` for a text without a mask.

            (masks,) = predictor.fill_masks("The capital of France is [MASK].")
            token, probability = masks[0][0]
        """
        self.require_params("tokens", "masked-token")
        if not hasattr(self.run.module, "compute_token_logits"):
            raise RunError(f"{self.run.folder} has a decoder's token head; filling needs one that reads the encoder")
        if top_k < 1:
            raise RunError(f"top_k={top_k} must be at least 1")
        vocab, name_token = self.run.vocab, self.run.tokenizer.id_to_token

        def predict_rows(batch: TextBatch) -> list:
            num_masks = (batch.input_ids == vocab.mask_id).sum(1).tolist()
            # A power of two, so that few numbers of positions are compiled.
            num_positions = 1 << (max(num_masks) - 1).bit_length()
            top_values = self.compute(self.fill_rows, batch, num_positions, min(top_k, vocab.vocab_size))
            probabilities, ids = (values.tolist() for values in top_values)
            return [
                [list(zip(map(name_token, ids[row][i]), probabilities[row][i], strict=True)) for i in range(count)]
                for row, count in enumerate(num_masks)
            ]

        yield from self.predict_texts(texts, predict_rows, self.encode_masked_text)

    def classify(self, texts: Texts) -> Iterator[dict[str, float]]:
        """Yield the probability of each label, or the number of a regression under its only label."""
        labels = self.labels

        def predict_rows(batch: TextBatch) -> list:
            scores = self.compute(self.classify_rows, batch)
            return [dict(zip(labels, row, strict=True)) for row in scores.tolist()]

        yield from self.predict_texts(texts, predict_rows)

    def tag_words(self, texts: str | Iterable[str]) -> Iterator[list[dict]]:
        """Yield the words of each text with the keys word, start, end, tag and probability.

        `start` and `end` are characters of the text. Words behind the cut, and words without tokens, are left out.
        """
        if not isinstance(self.objective, TokenClassification):
            raise missing_head(self.run.folder, self.params, "tags", "token-classification")
        encoded: deque[TextWords] = deque()

        def encode_words(text: str) -> list[list[int]]:
            encoded.append(self.split_text(text))
            return [encoded[-1].token_ids]

        predict_rows = lambda batch: list(self.compute(self.tag_rows, batch))
        for probabilities in self.predict_texts(texts, predict_rows, encode_words):
            yield encoded.popleft().name_tags(self.objective.labels, probabilities)

    def answer_questions(
        self, questions: tuple[str, str] | Iterable[tuple[str, str]], null_threshold: float | None = None
    ) -> Iterator[dict]:
        """Yield for each (question, context), or the only one, the keys answer, start, end, score and null.

        `start` and `end` are characters of the context. The answer is "", without start, end and score, where the null
        score exceeds `null_threshold`, by default the threshold tuned at the run's evaluation.
        """
        if not isinstance(self.objective, QAObjective):
            raise missing_head(self.run.folder, self.params, "spans", "question-answering")
        if null_threshold is None:  # and it stays None for a run on answerable questions
            null_threshold = (read_result(self.run.folder) or {}).get("best", {}).get("threshold")
        for chunk in text_batch.chunk_items(text_batch.iter_pairs(questions), CHUNK_SIZE):
            for prediction in self.predict_spans(chunk):
                result = {"answer": prediction.best_text(null_threshold)}
                if result["answer"]:
                    best = prediction.answers[0]
                    result |= {"start": best.start, "end": best.end, "score": best.score}
                yield result | {"null": prediction.null_score}

    def predict_spans(self, questions: Sequence[tuple[str, str]]) -> list[QAPrediction]:
        """Return a prediction for each (question, context), read through the windows that the run was trained on."""
        split, table = self.build_windows(questions)
        segments = (("a_start", "a_end"), ("b_start", "b_end"))
        rows = [[split.tokens[row[start] : row[end]].tolist() for start, end in segments] for row in table]
        batch_outputs, order = [], []
        for indices, batch in self.iter_batches(rows):
            outputs = self.compute(self.answer_rows, batch)
            batch_outputs.append({name: array[: len(indices)] for name, array in outputs.items()})
            order += indices
        outputs = concatenate_padded(batch_outputs, np.ones(len(order), bool))
        predictions = self.objective.decode_predictions(outputs, add_example_axis(table)[order], split)
        return [predictions[document] for document in range(len(questions))]

    def build_windows(self, questions: Sequence[tuple[str, str]]) -> tuple[Split, Table]:
        """Return questions and contexts as a split, and the table of their windows.

        Raises `RunError` for an empty text, and `RowError` for a question that leaves no room in a row.
        """
        ids, offsets = self.run.tokenizer.encode_with_offsets(list(chain.from_iterable(questions)))
        rows = [self.require_tokens([a, b], pair) for a, b, pair in zip(ids[::2], ids[1::2], questions, strict=True)]
        return build_question_windows(self.run, questions, rows, offsets, self.lengths[-1])

    def embed(
        self,
        texts: Texts,
        pooling: Pooling | None = None,
        layer: int = -1,
        prompt: str | None = None,
        size: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield a vector `[d]` of each text, by default as the run's own `SentenceEmbedding` says.

        A `pooling` is taken alone: without the run's dense layers, size and scaling to length 1. `layer` is 0 for the
        embedding, n for the n-th layer, -1 for the last. `prompt` is the name of one of the run's prompts, "" for none;
        `size` cuts vectors to their first numbers. Texts are cut at the run's own longest length.
        """
        own = self.sentence_embedding
        prompt_text, settings = own.get_prompt(prompt), own.adapt_settings(pooling, size)
        encode_prompted = lambda text: self.encode_text(add_prompt(prompt_text, text))
        yield from self.iter_vectors(texts, settings, encode_prompted, layer)

    def iter_vectors(
        self, texts: Texts, settings: SentenceEmbedding, encode: EncodeFn, layer: int = -1
    ) -> Iterator[np.ndarray]:
        """Yield the vector of each text, whose tokens `encode` returns, under settings that need not be the run's."""
        if settings.pooling in POOLER_PARAMS:
            self.require_params(POOLER_PARAMS[settings.pooling], "pooler")
        self.check_layer(layer)
        settings.get_vector_size(self.config, self.params)  # raises for a size that is too large
        dense = settings.dense if layer in (-1, self.config.num_layers) else ()  # they read the last layer

        def embed_batch(batch: AnyTextBatch) -> np.ndarray:
            return self.compute(self.embed_rows, batch, layer, settings.pooling, dense)[batch.lengths > 0]

        vectors = self.predict_texts(texts, embed_batch, encode, settings.max_length, packs=True)
        yield from map(settings.finish_vector, vectors)

    def embed_tokens(self, texts: Texts, layer: int = -1) -> Iterator[list[tuple[str, np.ndarray]]]:
        """Yield the tokens of each text, special ones included, with their vectors `[d]`."""
        self.check_layer(layer)
        name_token = self.run.tokenizer.id_to_token
        name_rows = lambda batch: text_batch.name_tokens(batch, self.compute(self.read_rows, batch, layer), name_token)
        yield from self.predict_texts(texts, name_rows)

    def compare_pairs(
        self, pairs: tuple[str, str] | Iterable[tuple[str, str]], pooling: Pooling | None = None, layer: int = -1
    ) -> Iterator[float]:
        """Yield the cosine of the vectors of two texts, each encoded alone. (A head on a pair is `classify`.)"""
        vectors = map(normalize_vector, self.embed(chain.from_iterable(text_batch.iter_pairs(pairs)), pooling, layer))
        for first, second in zip(vectors, vectors, strict=True):
            yield float(first @ second)

    def similarity_matrix(self, texts: Texts, pooling: Pooling | None = None, layer: int = -1) -> np.ndarray:
        """Return the cosines of all pairs of texts, `[n n]`."""
        vectors = np.stack([normalize_vector(vector) for vector in self.embed(texts, pooling, layer)])
        return vectors @ vectors.T

    def detect_replaced(self, texts: Texts) -> Iterator[list[tuple[str, float]]]:
        """Yield the tokens of each text with the probability that each was replaced, from ELECTRA's discriminator."""
        self.require_params("replaced", "replaced-token")

        def predict_rows(batch: TextBatch) -> list:
            shares = self.compute(self.detect_rows, batch).tolist()
            return text_batch.name_tokens(batch, shares, self.run.tokenizer.id_to_token)

        yield from self.predict_texts(texts, predict_rows)

    # Pure functions of parameters and rows, which are compiled

    def apply_module(self, params: dict, batch: Batch, method: str):
        return self.run.module.apply({"params": params}, batch, method=method)

    def fill_rows(self, params: dict, batch: TextBatch, num_positions: int, num_candidates: int):
        """Return probabilities and ids of the likeliest tokens at the first masks of each row, `[b k n]`."""
        masked_batch = batch.to_masked_batch(self.run.vocab.mask_id, num_positions)
        logits = self.apply_module(params, masked_batch, "compute_token_logits")[..., : self.run.vocab.vocab_size]
        return jax.lax.top_k(jax.nn.softmax(logits), num_candidates)

    def classify_rows(self, params: dict, batch: TextBatch):
        """Return the probabilities of the labels, `[b c]`, or the number of a regression."""
        logits = self.answer_rows(params, batch)["logits"][:, 0]
        return jax.nn.softmax(logits) if len(self.labels) > 1 else logits

    def tag_rows(self, params: dict, batch: TextBatch):
        """Return the probabilities of the tags of each token, `[b l c]`."""
        return jax.nn.softmax(self.apply_module(params, batch.to_batch(), "compute_logits"))

    def answer_rows(self, params: dict, batch: TextBatch):
        """Return the outputs of a task's module, by name `[b s ...]`."""
        return self.apply_module(params, batch.to_batch(), "predict_outputs")

    def detect_rows(self, params: dict, batch: TextBatch):
        """Return the probability of each token that it was replaced, `[b l]`."""
        return jax.nn.sigmoid(self.apply_module(params, batch.to_batch(), "compute_replaced_logits"))

    def read_rows(self, params: dict, batch: TextBatch, layer: int):
        """Return the hidden states of a layer, `[b l d]`."""
        return compute_layer_states(self.config, params, batch.to_batch(), layer)

    def embed_rows(self, params: dict, batch: AnyTextBatch, layer: int, pooling: Pooling, dense: tuple[str, ...]):
        """Return one vector of each text, `[b d]`, or of packed texts `[b s d]`."""
        return compute_vectors(self.config, params, batch, layer, pooling, dense)

    def require_params(self, param_name: str, head_name: str) -> None:
        if param_name not in self.params:
            raise missing_head(self.run.folder, self.params, param_name, head_name)

    def check_layer(self, layer: int) -> None:
        """Raise `RunError` for a layer that the encoder lacks."""
        num_layers = self.config.num_layers
        if not -num_layers - 1 <= layer <= num_layers:
            raise RunError(f"layer={layer} must be from 0 (the embedding) to {num_layers}, or -1 for the last")

    def get_program(self, function: Callable, batch: AnyTextBatch, *static) -> Callable:
        """Return `function(params, batch, *static)` compiled for the shape of a batch."""
        programs = self.programs.setdefault((function, *static), {})
        shape = (*batch.input_ids.shape, *batch.lengths.shape[1:])
        if shape not in programs:
            jitted = jax.jit(lambda params, batch: function(params, batch, *static))
            programs[shape] = jitted.lower(self.params, batch).compile()
        return programs[shape]

    def compute(self, function: Callable, batch: AnyTextBatch, *static):
        """Return what a compiled function computes, as NumPy arrays."""
        return jax.device_get(self.get_program(function, batch, *static)(self.params, batch))

    def encode_text(self, text: TextOrPair) -> list[list[int]]:
        """Return the token ids of one text or two. Raises `RunError` where one is empty."""
        return self.require_tokens(self.run.tokenizer.encode_batch([text] if isinstance(text, str) else [*text]), text)

    def split_text(self, text: str) -> TextWords:
        """Return the words of a text. Raises `RunError` for one without tokens and for a pair."""
        if not isinstance(text, str):
            raise RunError(f"{text!r} is a pair; words are tagged in one text")
        words = split_words(self.run.tokenizer, text)
        self.require_tokens([words.token_ids], text)
        return words

    def encode_masked_text(self, text: str) -> list[list[int]]:
        """Return the token ids of a text. Raises `RunError` for one without a mask and for a pair."""
        if not isinstance(text, str):
            raise RunError(f"{text!r} is a pair; masks are filled in one text")
        tokenizer, vocab, num_read = self.run.tokenizer, self.run.vocab, self.lengths[-1] - 2
        ids = tokenizer.encode(re.sub(r"\[MASK\]|<mask>", lambda _: tokenizer.id_to_token(vocab.mask_id), text))
        if vocab.mask_id not in ids[:num_read]:
            raise RunError(f"{text!r} needs a [MASK] within its first {num_read} tokens")
        return [ids]

    def require_tokens(self, ids: list[list[int]], text: TextOrPair) -> list[list[int]]:
        if not all(ids):
            raise RunError(f"{text!r} is empty after tokenization; every text needs at least one token")
        return ids

    def iter_batches(
        self, rows: Sequence[list[list[int]]], packs: bool = False
    ) -> Iterator[tuple[list[int], AnyTextBatch]]:
        iter_batches = packed_texts.iter_packed_batches if packs else text_batch.iter_text_batches
        return iter_batches(rows, self.lengths, self.batch_sizes, self.run.vocab, self.num_separators)

    def predict_texts(
        self,
        texts: Texts,
        predict_rows: Callable[[TextBatch], Sequence],
        encode: EncodeFn | None = None,
        max_length: int | None = None,
        packs: bool = False,
    ) -> Iterator:
        """Yield the result of `predict_rows` for each text, in the order of the texts; `encode` returns its tokens.

        With `packs` the batch that it reads may be `PackedTexts`.
        """
        max_length = min(self.lengths[-1], max_length or self.lengths[-1])
        for chunk in text_batch.chunk_items(text_batch.iter_texts(texts), CHUNK_SIZE):
            rows = [(encode or self.encode_text)(text) for text in chunk]
            for i, ids in enumerate(rows):
                if text_batch.measure_row(ids, self.num_separators) > max_length:
                    rows[i] = text_batch.cut_texts(ids, max_length, self.num_separators)
                    self.num_truncated += 1
            results = [None] * len(rows)
            for indices, batch in self.iter_batches(rows, packs):
                for index, result in zip(indices, predict_rows(batch), strict=False):  # without the rows that fill it
                    results[index] = result
            yield from results


def load_predictor(
    run: str | Path, step: str = "best", batch_size: int = 32, lengths: Sequence[int] | None = None
) -> Predictor:
    """Return the predictor of a trained or imported run in the folder `run`.

    `step` is "best" (the latest where none was scored), or another of `Run.load_params`. `lengths` are the lengths
    that rows are padded to, in tokens and ascending; the last one cuts texts. By default they reach to all positions.
    """
    opened = Run.open(run)
    embedding = SentenceEmbedding.choose_settings(read_run_record(opened.folder), opened.spec.objective)
    return Predictor(opened, opened.load_params(step)[1], batch_size, lengths, embedding)
