"""Vectors of texts under the interface of sentence-transformers, for its evaluators and for mteb."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from encoders.inference.predictor import Predictor, load_predictor
from encoders.inference.sentence_embedding import add_prompt
from encoders.inference.text_batch import TextOrPair
from encoders.run.folder import RunError, read_run_record

ONLY_VALUES = {  # arguments of sentence-transformers for which one value is accepted, beside None
    "output_value": "sentence_embedding",
    "precision": "float32",
    "device": None,
    "pool": None,
    "chunk_size": None,
}
UNUSED_ARGUMENTS = ("task", "hf_split", "hf_subset")  # of sentence-transformers and mteb: they change no vector


class SentenceEncoder:
    """A run with the methods of a `SentenceTransformer`: `encode`, `similarity` and those that evaluators call.

    It gives the vectors of `Predictor.embed`, as one array. An evaluator of sentence-transformers and `mteb.evaluate`
    take it as their model.

        encoder = encoders.load_sentence_encoder("runs/minilm")
        scores = EmbeddingSimilarityEvaluator(first, second, gold)(encoder)
        results = mteb.evaluate(encoder, mteb.get_tasks(tasks=["STSBenchmark"]))
    """

    def __init__(self, predictor: Predictor):
        self.predictor = predictor
        self.model_card_data = EvaluationScores()  # where evaluators leave their scores

    @property
    def prompts(self) -> dict[str, str]:
        return dict(self.predictor.sentence_embedding.prompts)

    @property
    def default_prompt_name(self) -> str | None:
        return self.predictor.sentence_embedding.default_prompt

    @property
    def similarity_fn_name(self) -> str:
        return self.predictor.sentence_embedding.similarity

    @property
    def max_seq_length(self) -> int:
        own, longest = self.predictor.sentence_embedding.max_length, self.predictor.lengths[-1]
        return min(own or longest, longest)

    def get_embedding_dimension(self) -> int:
        """Return the numbers of a vector."""
        return self.predictor.sentence_embedding.get_vector_size(self.predictor.config, self.predictor.params)

    get_sentence_embedding_dimension = get_embedding_dimension  # before version 6

    def encode(
        self,
        sentences: str | Iterable[TextOrPair | Mapping[str, Sequence[str]]],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        task_metadata: Any = None,
        prompt_type: Any = None,
        **arguments,
    ):
        """Return the vectors of texts, float32 `[n d]`, or `[d]` of one string.

        `sentences` may also be batches `{"text": [...]}`, as mteb gives them. `prompt` is put in front of each text;
        without it the prompt of that name, the one for mteb's task and `prompt_type`, or the default one is.
        `truncate_dim` is the `size` of `Predictor.embed`. `batch_size` is kept for later calls. With
        `convert_to_tensor` the vectors are one tensor of torch, and without both conversions a list of tensors. An
        empty text has the vector of its special tokens. Raises `RunError` for arguments that are not supported.
        """
        check_arguments(arguments)
        texts = [sentences] if isinstance(sentences, str) else list_texts(sentences)
        if prompt is None:
            prompt = self.get_prompt(prompt_name, task_metadata, prompt_type)
        settings = self.predictor.sentence_embedding.adapt_settings(None, truncate_dim)
        if normalize_embeddings:
            settings = replace(settings, normalize=True)
        if batch_size is not None:
            self.predictor.set_batch_size(batch_size)
        tokenizer = self.predictor.run.tokenizer

        def encode_text(text: TextOrPair) -> list[list[int]]:
            text = add_prompt(prompt, text)
            return tokenizer.encode_batch([text] if isinstance(text, str) else [*text])

        size = settings.get_vector_size(self.predictor.config, self.predictor.params)
        vectors = np.empty((len(texts), size), np.float32)
        rows = tqdm(vectors, "texts", disable=not show_progress_bar)
        for row, vector in zip(rows, self.predictor.iter_vectors(texts, settings, encode_text), strict=True):
            row[:] = vector
        if convert_to_tensor or not convert_to_numpy:
            import torch

            tensor = torch.from_numpy(vectors)
            vectors = tensor if convert_to_tensor else [*tensor]
        return vectors[0] if isinstance(sentences, str) else vectors

    def encode_query(self, sentences, prompt_name: str | None = None, prompt: str | None = None, **arguments):
        """Return `encode` with the prompt "query" where the run has one."""
        return self.encode(sentences, prompt_name, prompt, prompt_type="query", **arguments)

    def encode_document(self, sentences, prompt_name: str | None = None, prompt: str | None = None, **arguments):
        """Return `encode` with the prompt "document", "passage" or "corpus", the first that the run has."""
        return self.encode(sentences, prompt_name, prompt, prompt_type="document", **arguments)

    def get_prompt(self, name: str | None, task_metadata: Any = None, prompt_type: Any = None) -> str:
        """Return the prompt of a name, else that of a task of mteb, else that of a side of a search, else the default.

        A task's prompts are named after its name or its type, alone or with "-query" or "-document" behind, as in mteb.
        Raises `RunError` for a name that the run lacks.
        """
        own = self.predictor.sentence_embedding
        if name is not None:
            return own.get_prompt(name)
        side = getattr(prompt_type, "value", prompt_type)
        tasks = [] if task_metadata is None else [task_metadata.name, task_metadata.type]
        names = [name for task in tasks for name in (f"{task}-{side}", task)]
        found = next((name for name in names if name in own.prompts), None)
        return own.get_prompt(found or (own.find_prompt_name(side) if side else None))

    def similarity(self, first, second):
        """Return the similarities of all vectors `[n d]` with all vectors `[m d]`, `[n m]`, arrays or tensors.

        One vector `[d]` alone counts as `[1 d]`; two of them give one number.
        """
        are_single = np.ndim(first) == np.ndim(second) == 1
        first, second = self.prepare_vectors(first, second)
        similarities = first @ second.T
        return similarities[0, 0] if are_single else similarities

    def similarity_pairwise(self, first, second):
        """Return the similarity of each vector of `first` with that of `second`, `[n]`, arrays or tensors."""
        first, second = self.prepare_vectors(first, second)
        return (first * second).sum(-1)

    def prepare_vectors(self, *vectors):
        """Return vectors as `[n d]` each, scaled to length 1 for the cosine: arrays, or tensors if all are tensors."""
        if any(isinstance(array, np.ndarray | list | tuple) for array in vectors):
            vectors = [np.asarray(array, np.float32) for array in vectors]
        vectors = [array[None] if array.ndim == 1 else array for array in vectors]
        if self.similarity_fn_name == "cosine":
            vectors = [array / ((array * array).sum(-1)[:, None] ** 0.5).clip(1e-12) for array in vectors]
        return vectors

    @property
    def mteb_model_meta(self):
        """The run's name and the fingerprint of its record, under which mteb files results."""
        from mteb.models.model_meta import ModelMeta

        run = self.predictor.run
        return ModelMeta.create_empty(
            {
                "name": f"encoders/{run.spec.name}",
                "revision": read_run_record(run.folder)["fingerprint"],
                "embed_dim": self.get_embedding_dimension(),
                "max_tokens": self.max_seq_length,
                "similarity_fn_name": self.similarity_fn_name,
            }
        )


class EvaluationScores:
    """The scores that evaluators of sentence-transformers leave with a model, by name."""

    def __init__(self):
        self.scores: dict[str, float] = {}

    def set_evaluation_metrics(self, evaluator: Any, metrics: dict[str, float], epoch: int = 0, step: int = 0) -> None:
        self.scores |= metrics


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise `RunError` for an argument of `encode` that is unknown, or has a value that changes the vectors."""
    for name, value in arguments.items():
        if name not in ONLY_VALUES and name not in UNUSED_ARGUMENTS:
            known = ", ".join((*ONLY_VALUES, *UNUSED_ARGUMENTS))
            raise RunError(f"{name} is not an argument of encode; beside its own it accepts {known}")
        if name in ONLY_VALUES and value not in (None, ONLY_VALUES[name]):
            raise RunError(f"{name}={value!r} is not supported; accepted is {ONLY_VALUES[name]!r}")


def list_texts(sentences: Iterable[TextOrPair | Mapping[str, Sequence[str]]]) -> list[TextOrPair]:
    """Return the texts of a list, or of batches with the key "text"."""
    texts: list[TextOrPair] = []
    for item in sentences:
        if isinstance(item, Mapping):
            texts += item["text"]
        else:
            texts.append(item)
    return texts


def load_sentence_encoder(
    run: str | Path, step: str = "best", batch_size: int = 32, lengths: Sequence[int] | None = None
) -> SentenceEncoder:
    """Return the sentence encoder of a run; the arguments are those of `load_predictor`."""
    return SentenceEncoder(load_predictor(run, step, batch_size, lengths))
