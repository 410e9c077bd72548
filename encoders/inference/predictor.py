"""Predictions of a run on new texts, in Python and for `launch.py predict`.

Texts are read in chunks, sorted by length within each, and their predictions are returned in the order of the texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from encoders.data.batch import Batch
from encoders.data.example_table import add_example_axis
from encoders.data.formats import Format
from encoders.data.store import Split
from encoders.data.stream import Phase, iter_batches_longest_first
from encoders.experiment import Experiment
from encoders.inference.sentence_embedding import Pooling, SentenceEmbedding
from encoders.model.encoder import Encoder, find_encoder_name
from encoders.model.heads import Pooler, summarize_examples
from encoders.objectives.masking import MaskedBatch
from encoders.run.folder import RunError, read_run_record
from encoders.run.run import Run
from encoders.tasks.answers import QAPrediction
from encoders.tasks.classification import Classification
from encoders.tasks.question_answering import QAObjective
from encoders.tasks.squad import ContextWindows
from encoders.tasks.text_tasks import TextRows

CHUNK_SIZE = 4096  # texts that are sorted by length at a time
NUM_LENGTH_BUCKETS = 16  # lengths that batches may have
DEFAULT_WINDOW_LENGTH = 384  # tokens, for imported runs
HEAD_COMMANDS = {  # commands that make a run with a head; RUN is the one without it
    "tokens": "train mini --only mini-bert --set init_from=RUN data.tokenizer.path=RUN/tokenizer.json",
    "pooler": "train mini --only mini-bert --set init_from=RUN data.tokenizer.path=RUN/tokenizer.json",
    "replaced": "train mini --only mini-electra --set init_from=RUN data.tokenizer.path=RUN/tokenizer.json",
    "classes": "train own --with init_from=RUN root=FOLDER texts=COLUMN labels=A,B",
    "spans": "train squad --with init_from=RUN root=FOLDER",
}
TextOrPair = str | tuple[str, str]


@partial(jax.jit, static_argnames=("module", "method"))
def apply_jitted(params: dict, batch: Batch, *, module, method: str):
    return module.apply({"params": params}, batch, method=method)


@partial(jax.jit, static_argnames=("config", "layer", "pooling"))
def compute_vectors(
    params: dict, pooler_params: dict | None, batch: Batch, *, config, layer: int, pooling: Pooling | None
):
    """Return the hidden states of a layer, `[b l d]`, or with a pooling one vector of each row, `[b d]`."""
    hidden = Encoder(config).apply({"params": params}, batch, output_hidden_states=True)[layer]
    if pooling is None:
        return hidden
    if pooling == "mean":
        is_token = (batch.example_ids > 0)[..., None]
        return (hidden * is_token).sum(1) / jnp.maximum(is_token.sum(1), 1)
    vectors = summarize_examples(config, hidden, batch)
    if pooling == "pooled":
        vectors = Pooler(config).apply({"params": pooler_params}, vectors)
    return vectors[:, 0]


class Predictor:
    """Predictions of a run. Every method takes any number of texts and yields one result a text, in their order.

    A text is a string, or a pair of strings where a second text is allowed. Texts longer than the model's positions
    are cut at their end and counted in `num_truncated`. Methods raise `RunError` for a run without the head they need,
    and for a text without tokens.

        predictor = encoders.load("runs/bert-base")
        vectors = list(predictor.embed(["A text.", "Another one."]))
        for text in open("masked.txt"):
            print(next(predictor.fill_masks([text], top_k=3)))
    """

    def __init__(
        self, run: Run, params: dict, batch_size: int = 32, sentence_embedding: SentenceEmbedding | None = None
    ):
        self.run, self.params, self.batch_size = run, params, batch_size
        self.sentence_embedding = sentence_embedding or SentenceEmbedding()
        self.config, self.objective = run.spec.model, run.spec.objective
        self.num_separators = self.config.conventions.num_separators
        self.num_truncated = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of a classifier. Raises `RunError` for another run."""
        if not isinstance(self.objective, Classification):
            raise self.missing_head("classes", "classification")
        return self.objective.labels

    def fill_masks(self, texts: Iterable[str], top_k: int = 5) -> Iterator[list[list[tuple[str, float]]]]:
        """Yield for each [MASK] (or <mask>) of each text the `top_k` likeliest tokens and their probabilities.

        ELECTRA's predictions are its generator's. Raises `RunError` for a text without a mask.

            (masks,) = predictor.fill_masks(["The capital of France is [MASK]."])
            token, probability = masks[0][0]
        """
        self.require_params("tokens", "masked-token")
        vocab, tokenizer = self.run.vocab, self.run.tokenizer
        mask_token = tokenizer.id_to_token(vocab.mask_id)
        num_candidates = min(top_k, vocab.vocab_size)

        def encode_masked_text(text: str) -> list[list[int]]:
            ids = tokenizer.encode(re.sub(r"\[MASK\]|<mask>", lambda _: mask_token, text))
            if vocab.mask_id not in ids[: self.config.max_positions - 2]:
                raise RunError(f"{text!r} needs a [MASK] within its first {self.config.max_positions - 2} tokens")
            return [ids]

        def predict_rows(batch: Batch) -> list:
            is_mask = batch.input_ids == vocab.mask_id
            num_masks = is_mask.sum(1)
            # A power of two, so that few numbers of positions are compiled.
            num_positions = 1 << (int(num_masks.max()) - 1).bit_length()
            positions = np.argsort(~is_mask, axis=1, kind="stable")[:, :num_positions]
            masked_batch = MaskedBatch(
                **batch.get_arrays(),
                clean_ids=batch.input_ids,
                masked_positions=positions,
                masked_labels=np.take_along_axis(batch.input_ids, positions, axis=1),
                masked_weights=np.take_along_axis(is_mask, positions, axis=1).astype(np.float32),
            )
            logits = self.apply_module(masked_batch, "compute_token_logits")[..., : vocab.vocab_size]
            top_values = jax.device_get(jax.lax.top_k(jax.nn.softmax(logits), num_candidates))
            probabilities, ids = (values.tolist() for values in top_values)
            name_token = tokenizer.id_to_token
            return [
                [list(zip(map(name_token, ids[row][i]), probabilities[row][i], strict=True)) for i in range(count)]
                for row, count in enumerate(num_masks)
            ]

        yield from self.predict_texts(texts, predict_rows, encode_masked_text)

    def classify(self, texts: Iterable[TextOrPair]) -> Iterator[dict[str, float]]:
        """Yield the probability of each label, or the number of a regression under its only label."""
        labels = self.labels

        def predict_rows(batch: Batch) -> list:
            scores = self.apply_module(batch, "predict_outputs")["logits"][:, 0]
            scores = jax.nn.softmax(scores) if len(labels) > 1 else scores
            return [dict(zip(labels, map(float, row), strict=True)) for row in jax.device_get(scores)]

        yield from self.predict_texts(texts, predict_rows)

    def answer_questions(
        self, questions: Iterable[tuple[str, str]], null_threshold: float | None = None
    ) -> Iterator[dict]:
        """Yield for each (question, context) the keys answer, start, end, score and null.

        `start` and `end` are characters of the context. The answer is "", without start, end and score, where the null
        score exceeds `null_threshold`, by default the threshold tuned at the run's evaluation.
        """
        if not isinstance(self.objective, QAObjective):
            raise self.missing_head("spans", "question-answering")
        result_file = self.run.folder / "result.json"
        if null_threshold is None and result_file.exists():  # None for a run on answerable questions
            null_threshold = json.loads(result_file.read_text(encoding="utf-8")).get("best", {}).get("threshold")
        for chunk in chunk_items(questions, CHUNK_SIZE):
            for prediction in self.predict_spans(chunk):
                result = {"answer": prediction.best_text(null_threshold)}
                if result["answer"]:
                    best = prediction.answers[0]
                    result |= {"start": best.start, "end": best.end, "score": best.score}
                yield result | {"null": prediction.null_score}

    def predict_spans(self, questions: Sequence[tuple[str, str]]) -> list[QAPrediction]:
        """Return a prediction for each (question, context), read through the windows that the run was trained on."""
        row_format, seq_length = ContextWindows(num_separators=self.num_separators), DEFAULT_WINDOW_LENGTH
        if isinstance(self.run.spec, Experiment):
            phase = self.run.spec.phases[-1]
            row_format, seq_length = phase.format, phase.seq_length
        seq_length = min(seq_length, self.config.max_positions)
        ids, offsets = self.run.tokenizer.encode_with_offsets(list(chain.from_iterable(questions)))
        rows = [self.require_tokens([a, b], pair) for a, b, pair in zip(ids[::2], ids[1::2], questions, strict=True)]
        # The separator that ends a document has an offset too.
        places = [place for a, b in zip(offsets[::2], offsets[1::2], strict=True) for place in (*a, *b, (0, 0))]
        columns = {"answer": np.full((len(questions), 2), -1), "places": np.array(places)}
        metadata = tuple({"context": context, "place": repr(question)} for question, context in questions)
        split = build_split(rows, self.run.vocab, columns, metadata)
        table = row_format.build_example_table(split, range(split.num_documents), seq_length, 0, 0)
        batch_outputs, indices = [], []
        for batch in self.iterate_batches(split, table, row_format, seq_length):
            batch_outputs.append(jax.device_get(self.apply_module(batch, "predict_outputs")))
            indices.append(batch.example_index[:, 0])
        # Rows behind the table's fill the last batch.
        outputs = jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(table)], *batch_outputs)
        windows = add_example_axis(table)[np.concatenate(indices)[: len(table)]]
        predictions = self.objective.decode_predictions(outputs, windows, split)
        return [predictions[document] for document in range(len(questions))]

    def embed(
        self, texts: Iterable[TextOrPair], pooling: Pooling | None = None, layer: int = -1
    ) -> Iterator[np.ndarray]:
        """Yield a vector `[d]` of each text: of [CLS] ("cls"), the mean over tokens, or the pooler's ("pooled").

        Without a pooling it is the run's own: that of sentence-transformers, with its scaling to length 1, where the
        run was imported with one, else the mean. Texts are cut at the run's own longest length. `layer` is 0 for the
        embedding, n for the n-th layer, -1 for the last.
        """
        own = self.sentence_embedding
        is_scaled, pooling = pooling is None and own.normalize, pooling or own.pooling
        if pooling == "pooled":
            self.require_params("pooler", "pooler")
        encode_batch = lambda batch: list(self.encode_rows(batch, layer, pooling))
        vectors = self.predict_texts(texts, encode_batch, max_length=own.max_length)
        yield from map(normalize_vector, vectors) if is_scaled else vectors

    def embed_tokens(self, texts: Iterable[TextOrPair], layer: int = -1) -> Iterator[list[tuple[str, np.ndarray]]]:
        """Yield the tokens of each text, special ones included, with their vectors `[d]`."""
        pair_rows = lambda batch: self.pair_with_tokens(batch, self.encode_rows(batch, layer, None))
        yield from self.predict_texts(texts, pair_rows)

    def compare_pairs(
        self, pairs: Iterable[tuple[str, str]], pooling: Pooling | None = None, layer: int = -1
    ) -> Iterator[float]:
        """Yield the cosine of the vectors of two texts, each encoded alone. (A head on a pair is `classify`.)"""
        vectors = map(normalize_vector, self.embed(chain.from_iterable(pairs), pooling, layer))
        for first, second in zip(vectors, vectors, strict=True):
            yield float(first @ second)

    def similarity_matrix(self, texts: Sequence[str], pooling: Pooling | None = None, layer: int = -1) -> np.ndarray:
        """Return the cosines of all pairs of texts, `[n n]`."""
        vectors = np.stack([normalize_vector(vector) for vector in self.embed(texts, pooling, layer)])
        return vectors @ vectors.T

    def detect_replaced(self, texts: Iterable[TextOrPair]) -> Iterator[list[tuple[str, float]]]:
        """Yield the tokens of each text with the probability that each was replaced, from ELECTRA's discriminator."""
        self.require_params("replaced", "replaced-token")

        def predict_rows(batch: Batch) -> list:
            probabilities = jax.device_get(jax.nn.sigmoid(self.apply_module(batch, "compute_replaced_logits")))
            return self.pair_with_tokens(batch, probabilities.tolist())

        yield from self.predict_texts(texts, predict_rows)

    # Shared by the methods above

    def require_params(self, param_name: str, head_name: str) -> None:
        if param_name not in self.params:
            raise self.missing_head(param_name, head_name)

    def missing_head(self, param_name: str, head_name: str) -> RunError:
        """Return the error for a head that the run lacks, with a command that makes it."""
        folder = self.run.folder
        problem = f"{folder} needs a {head_name} head and has {', '.join(sorted(self.params))}"
        return RunError(f"{problem}; this makes one: {HEAD_COMMANDS[param_name].replace('RUN', str(folder))}")

    def apply_module(self, batch: Batch, method: str):
        return apply_jitted(self.params, batch, module=self.run.module, method=method)

    def pair_with_tokens(self, batch: Batch, values: Sequence) -> list[list[tuple]]:
        """Return for each row of `values [b l ...]` its tokens with their values, without padding."""
        rows = []
        for ids, row_values, size in zip(batch.input_ids, values, (batch.example_ids > 0).sum(1), strict=True):
            tokens = [self.run.tokenizer.id_to_token(int(id)) for id in ids[:size]]
            rows.append(list(zip(tokens, row_values[:size], strict=True)))
        return rows

    def encode_rows(self, batch: Batch, layer: int, pooling: Pooling | None) -> np.ndarray:
        """Return the vectors of `compute_vectors`. Raises `RunError` for a layer that the encoder lacks."""
        num_layers = self.config.num_layers
        if not -num_layers - 1 <= layer <= num_layers:
            raise RunError(f"layer={layer} must be from 0 (the embedding) to {num_layers}, or -1 for the last")
        params, pooler_params = self.params[find_encoder_name(self.params)], self.params.get("pooler")
        vectors = compute_vectors(params, pooler_params, batch, config=self.config, layer=layer, pooling=pooling)
        return jax.device_get(vectors)

    def encode_text(self, text: TextOrPair) -> list[list[int]]:
        return self.run.tokenizer.encode_batch([text] if isinstance(text, str) else list(text))

    def require_tokens(self, ids: list[list[int]], text: TextOrPair) -> list[list[int]]:
        """Return the token ids of one or two texts. Raises `RunError` where one is empty."""
        if not all(ids):
            raise RunError(f"{text!r} is empty after tokenization; every text needs at least one token")
        return ids

    def iterate_batches(self, split: Split, table: np.ndarray, row_format: Format, seq_length: int) -> Iterator[Batch]:
        """Yield the rows of a table, longest first; rows that fill the last batch come at its end."""
        phase, indices = Phase(1, seq_length, self.batch_size, row_format), np.arange(len(table))
        for batch in iter_batches_longest_first(
            split, self.run.vocab, table, indices, phase, self.batch_size, NUM_LENGTH_BUCKETS
        ):
            yield batch.replace(labels={})

    def predict_texts(
        self,
        texts: Iterable[TextOrPair],
        predict_rows: Callable[[Batch], list],
        encode: Callable[[TextOrPair], list[list[int]]] | None = None,
        max_length: int | None = None,
    ) -> Iterator:
        """Yield the result of `predict_rows` for each text, in the order of the texts; `encode` returns its tokens."""
        seq_length = min(self.config.max_positions, max_length or self.config.max_positions)
        row_format = TextRows(num_separators=self.num_separators)
        for chunk in chunk_items(texts, CHUNK_SIZE):
            ids = [self.require_tokens((encode or self.encode_text)(text), text) for text in chunk]
            sizes = np.array([sum(map(len, row)) + (2 if len(row) == 1 else 2 + self.num_separators) for row in ids])
            self.num_truncated += int((sizes > seq_length).sum())
            split = build_split(ids, self.run.vocab, {"label": np.zeros(len(ids))})
            table = row_format.build_example_table(split, range(split.num_documents), seq_length, 0, 0)
            results = [None] * len(ids)
            for batch in self.iterate_batches(split, table, row_format, seq_length):
                indices = batch.example_index[batch.example_mask[:, 0] == 1, 0]
                for index, result in zip(indices, predict_rows(batch), strict=False):  # without the filled rows
                    results[index] = result
            yield from results


def chunk_items(items: Iterable, size: int) -> Iterator[tuple]:
    """Yield the items in tuples of `size`; `itertools.batched` needs Python 3.12."""
    iterator = iter(items)
    while chunk := tuple(islice(iterator, size)):
        yield chunk


def normalize_vector(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def build_split(rows: list[list[list[int]]], vocab, columns: dict, metadata: tuple[dict, ...] = ()) -> Split:
    """Return rows of one or two token sequences as a split in memory: a row is a document, a sequence a sentence."""
    tokens = [id for sequences in rows for ids in (*sequences, [vocab.sep_id]) for id in ids]
    sizes = [size for sequences in rows for size in (*map(len, sequences[:-1]), len(sequences[-1]) + 1)]
    sentence_offsets, document_offsets = np.cumsum([0, *sizes]), np.cumsum([0, *map(len, rows)])
    return Split("new", np.array(tokens), sentence_offsets, document_offsets, columns, in_memory_metadata=metadata)


def load_predictor(run: str | Path, step: str = "best", batch_size: int = 32) -> Predictor:
    """Return the predictor of a trained or imported run in the folder `run`.

    `step` is "best" (the latest where none was scored), "latest", or a number.
    """
    opened = Run.open(Path(run))
    embedding = SentenceEmbedding.from_record(read_run_record(opened.folder))
    return Predictor(opened, opened.load_params(step)[1], batch_size, embedding)
