"""The verb `predict`: texts read from the command, a file or standard input, and their predictions printed."""

from __future__ import annotations

import itertools
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from encoders.inference.predictor import Predictor, TextOrPair, load_predictor
from encoders.utils.serialization import ExperimentError


@dataclass(frozen=True)
class PredictionSettings:
    """Options of single kinds of prediction: tokens per mask, pooling and layer of vectors, threshold of no answer."""

    top_k: int = 5
    pooling: str = "mean"
    layer: int = -1
    threshold: float | None = None


def predict_lines(
    run: str,
    kind: str,
    texts: Sequence[str] = (),
    second_texts: Sequence[str] = (),
    file: str | None = None,
    step: str = "best",
    as_json: bool = False,
    batch_size: int = 32,
    log: Callable[[str], None] = print,
    **settings,
) -> int:
    """Print a run's predictions for the texts as they come, and return the status of the process.

    `settings` are the fields of `PredictionSettings`.
    """
    predictor = load_predictor(run, step, batch_size)
    predict, format_prediction = PREDICTION_KINDS[kind]
    inputs = pair_texts(texts, second_texts) if texts else read_texts(file or "-")
    for text, prediction in predict(predictor, inputs, PredictionSettings(**settings)):
        if as_json:
            print(json.dumps({"text": text} | prediction, ensure_ascii=False))
        else:
            print(text if isinstance(text, str) else "  |  ".join(text), *format_prediction(prediction), sep="\n   ")
    if predictor.num_truncated:
        log(
            f"truncated {predictor.num_truncated} of the texts at their end: they exceed "
            f"model.max_positions={predictor.config.max_positions} tokens"
        )
    return 0


def pair_texts(texts: Sequence[str], second_texts: Sequence[str]) -> Iterator[TextOrPair]:
    """Yield each text with its second text, or with the only one. Raises `ExperimentError` for other numbers."""
    if not second_texts:
        yield from texts
    elif len(second_texts) == 1:
        yield from zip(texts, itertools.repeat(second_texts[0]), strict=False)
    elif len(second_texts) == len(texts):
        yield from zip(texts, second_texts, strict=True)
    else:
        raise ExperimentError(f"--second has {len(second_texts)} texts for {len(texts)}; give one, or as many")


def read_texts(name: str) -> Iterator[TextOrPair]:
    """Yield the texts of a file, one a line; `-` is standard input. Raises `ExperimentError` with the line's number."""
    source = "standard input" if name == "-" else name
    with nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb") as lines:
        for line_number, line in enumerate(lines, 1):
            yield parse_line(line, f"{source}:{line_number}")


def parse_line(line: bytes, location: str) -> TextOrPair:
    """Return the text of a line, or two: separated by a tab, or as JSON. Raises `ExperimentError`."""
    try:
        text = line.decode("utf-8").rstrip("\r\n")
        row = json.loads(text) if text.startswith("{") else None
    except UnicodeError as error:
        raise ExperimentError(f"{location}: {error}; texts are UTF-8") from None
    except ValueError as error:
        raise ExperimentError(f"{location}: the line starts with {{ and is not JSON: {error}") from None
    fields = text.split("\t") if row is None else [row[key] for key in ("text", "second") if key in row]
    if not 1 <= len(fields) <= 2 or not all(isinstance(value, str) and value.strip() for value in fields):
        raise ExperimentError(
            f'{location}: a line is a text, two with a tab between, or {{"text": ..., "second": ...}}'
        )
    return fields[0] if len(fields) == 1 else tuple(fields)


def require_pairs(texts: Iterable[TextOrPair]) -> Iterator[tuple[str, str]]:
    """Yield pairs of texts. Raises `ExperimentError` for a text alone."""
    for text in texts:
        if isinstance(text, str):
            raise ExperimentError(f"{text!r} needs a second text: --second TEXT, or a tab between the two")
        yield text


def zip_with_texts(
    texts: Iterable[TextOrPair], predict: Callable[[Iterable[TextOrPair]], Iterator]
) -> Iterator[tuple[TextOrPair, object]]:
    """Yield each text with its prediction; texts are read only as the predictions need them."""
    read_ahead: deque[TextOrPair] = deque()

    def record_texts() -> Iterator[TextOrPair]:
        for text in texts:
            read_ahead.append(text)
            yield text

    for prediction in predict(record_texts()):
        yield read_ahead.popleft(), prediction


# Kinds of prediction: JSON values for each text -----------------------------------------------------------------------


def predict_masks(predictor: Predictor, texts: Iterable[str], settings: PredictionSettings):
    for text, masks in zip_with_texts(texts, lambda t: predictor.fill_masks(t, settings.top_k)):
        yield text, {"masks": [[{"token": word, "probability": p} for word, p in words] for words in masks]}


def predict_labels(predictor: Predictor, texts: Iterable[TextOrPair], settings: PredictionSettings):
    for text, scores in zip_with_texts(texts, predictor.classify):
        if len(scores) == 1:  # a number, as of STS-B
            yield text, scores
        else:
            yield text, {"label": max(scores, key=scores.get), "probabilities": scores}


def predict_answers(predictor: Predictor, texts: Iterable[TextOrPair], settings: PredictionSettings):
    yield from zip_with_texts(texts, lambda t: predictor.answer_questions(require_pairs(t), settings.threshold))


def predict_similarity(predictor: Predictor, texts: Iterator[TextOrPair], settings: PredictionSettings):
    """Yield the cosine of each pair, or, for texts alone, of each text with all texts."""
    first = next(texts, None)
    texts = itertools.chain([first] if first else [], texts)
    if isinstance(first, str):
        texts = list(texts)
        if pairs := [text for text in texts if not isinstance(text, str)]:
            raise ExperimentError(
                f"{pairs[0]!r} has a second text, and {first!r} has none; give all texts one, or none"
            )
        matrix = predictor.similarity_matrix(texts, settings.pooling, settings.layer)
        for text, row in zip(texts, matrix, strict=True):
            yield text, {"similarity": row.round(4).tolist()}
        return
    compare = lambda pairs: predictor.compare_pairs(require_pairs(pairs), settings.pooling, settings.layer)
    for text, similarity in zip_with_texts(texts, compare):
        yield text, {"similarity": round(similarity, 4)}


def predict_vectors(predictor: Predictor, texts: Iterable[TextOrPair], settings: PredictionSettings):
    for text, vector in zip_with_texts(texts, lambda t: predictor.embed(t, settings.pooling, settings.layer)):
        yield text, {"vector": np.asarray(vector, float).round(6).tolist()}


def predict_token_vectors(predictor: Predictor, texts: Iterable[TextOrPair], settings: PredictionSettings):
    for text, tokens in zip_with_texts(texts, lambda t: predictor.embed_tokens(t, settings.layer)):
        rows = [{"token": token, "vector": np.asarray(vector, float).round(6).tolist()} for token, vector in tokens]
        yield text, {"tokens": rows}


def predict_replaced(predictor: Predictor, texts: Iterable[TextOrPair], settings: PredictionSettings):
    for text, tokens in zip_with_texts(texts, predictor.detect_replaced):
        yield text, {"tokens": [{"token": token, "replaced": round(p, 4)} for token, p in tokens]}


# Predictions as lines -------------------------------------------------------------------------------------------------


def format_masks(prediction: dict) -> list[str]:
    return ["   ".join(f"{word['token']} {word['probability']:.1%}" for word in words) for words in prediction["masks"]]


def format_labels(prediction: dict) -> list[str]:
    if "probabilities" in prediction:
        return ["   ".join(f"{label} {p:.1%}" for label, p in prediction["probabilities"].items())]
    return [f"{value:.3f}" for value in prediction.values()]


def format_answer(prediction: dict) -> list[str]:
    if not prediction["answer"]:
        return ["no answer"]
    return ["{answer} (characters {start} to {end}, score {score:.2f})".format(**prediction)]


def format_similarity(prediction: dict) -> list[str]:
    similarity = prediction["similarity"]
    return ["  ".join(f"{x:.3f}" for x in (similarity if isinstance(similarity, list) else [similarity]))]


def format_text_vector(prediction: dict) -> list[str]:
    return [format_vector(prediction["vector"])]


def format_token_vectors(prediction: dict) -> list[str]:
    return [f"{token['token']:12} {format_vector(token['vector'])}" for token in prediction["tokens"]]


def format_replaced(prediction: dict) -> list[str]:
    words = [
        f"[{token['token']} {token['replaced']:.0%}]" if token["replaced"] > 0.5 else token["token"]
        for token in prediction["tokens"]
    ]
    return [" ".join(words)]


def format_vector(vector: list[float]) -> str:
    return "  ".join(f"{x:.3f}" for x in vector[:6]) + f"  ... ({len(vector)} numbers; --json prints all)"


PREDICTION_KINDS = {
    "fill": (predict_masks, format_masks),
    "classify": (predict_labels, format_labels),
    "answer": (predict_answers, format_answer),
    "similarity": (predict_similarity, format_similarity),
    "embed": (predict_vectors, format_text_vector),
    "tokens": (predict_token_vectors, format_token_vectors),
    "replaced": (predict_replaced, format_replaced),
}
