"""Lines in, answers out: what `launch.py predict` reads and prints."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from encoders.inference.predictor import Predictor, TextOrPair, load_predictor
from encoders.utils.overrides import ExperimentError


def predict_lines(options, log: Callable[[str], None]) -> int:
    """Answers of a run to the texts that the options name, printed as they come."""
    predictor = load_predictor(options.run, options.step, options.batch)
    answers, listed = PREDICTION_KINDS[options.what]
    for text, said in answers(predictor, read_texts(options), options):
        if options.json:
            print(json.dumps({"text": text} | said, ensure_ascii=False))
        else:
            print(text if isinstance(text, str) else "  |  ".join(text), *listed(said), sep="\n   ")
    if predictor.num_truncated:
        log(
            f"{predictor.num_truncated} of the texts were longer than {predictor.config.max_positions} tokens and cut "
            "at their end"
        )
    return 0


def read_texts(options) -> Iterator[TextOrPair]:
    """The texts of the command, or those of a file or of standard input, one a line. Raises `ExperimentError`."""
    if options.text:
        if options.second and len(options.second) not in (1, len(options.text)):
            raise ExperimentError(
                f"--second has {len(options.second)} texts for {len(options.text)}; give one, or as many"
            )
        seconds = options.second * (len(options.text) if len(options.second) == 1 else 1) or [None] * len(options.text)
        yield from (t if s is None else (t, s) for t, s in zip(options.text, seconds, strict=True))
        return
    name = options.file or "-"
    source = sys.stdin.buffer if name == "-" else open(name, "rb")
    with source as file:
        for number, line in enumerate(file, 1):
            place = f"{'standard input' if name == '-' else name}:{number}"
            try:
                line = line.decode("utf-8").rstrip("\r\n")
                row = json.loads(line) if line.startswith("{") else None
            except ValueError as error:
                reason = error if isinstance(error, UnicodeError) else f"begins like JSON and is none: {error}"
                raise ExperimentError(f"{place}: {reason}") from None
            fields = line.split("\t") if row is None else [row[key] for key in ("text", "second") if key in row]
            if not 1 <= len(fields) <= 2 or not all(isinstance(x, str) and x.strip() for x in fields):
                raise ExperimentError(
                    f'{place}: a line is a text, two with a tab between, or {{"text": ..., "second": ...}}'
                )
            yield fields[0] if len(fields) == 1 else (fields[0], fields[1])


def require_pairs(texts: Iterable[TextOrPair]) -> Iterator[tuple[str, str]]:
    for text in texts:
        if isinstance(text, str):
            raise ExperimentError(f"{text!r} needs a second text: --second TEXT, or a tab between the two")
        yield text


def zip_with_texts(
    texts: Iterable[TextOrPair], predict: Callable[[Iterable[TextOrPair]], Iterator]
) -> Iterator[tuple[TextOrPair, object]]:
    """Each text beside its answer; texts are drawn as the answers need them."""
    seen: list[TextOrPair] = []

    def record_texts() -> Iterator[TextOrPair]:
        for text in texts:
            seen.append(text)
            yield text

    for each in predict(record_texts()):
        yield seen.pop(0), each


def predict_masks(predictor: Predictor, texts, options):
    for text, masks in zip_with_texts(texts, lambda t: predictor.fill_masks(t, options.top)):
        yield text, {"masks": [[{"token": word, "probability": p} for word, p in words] for words in masks]}


def predict_labels(predictor: Predictor, texts, options):
    for text, said in zip_with_texts(texts, predictor.classify):
        yield text, said if len(said) == 1 else {"label": max(said, key=said.get), "probabilities": said}


def predict_answers(predictor: Predictor, texts, options):
    yield from zip_with_texts(texts, lambda t: predictor.answer_questions(require_pairs(t), options.threshold))


def predict_similarity(predictor: Predictor, texts, options):
    first = next(texts, None)
    texts = itertools.chain([first] if first else [], texts)
    if isinstance(first, str):
        texts = list(texts)  # each is compared with all
        if two := [text for text in texts if not isinstance(text, str)]:
            raise ExperimentError(f"{two[0]!r} has a second text, and {first!r} has none")
        matrix = predictor.similarity_matrix(texts, options.pool, options.layer)
        yield from ((text, {"similarity": row.round(4).tolist()}) for text, row in zip(texts, matrix, strict=True))
        return
    said = zip_with_texts(texts, lambda t: predictor.compare_pairs(require_pairs(t), options.pool, options.layer))
    yield from ((text, {"similarity": round(each, 4)}) for text, each in said)


def predict_vectors(predictor: Predictor, texts, options):
    for text, vector in zip_with_texts(texts, lambda t: predictor.embed(t, options.pool, options.layer)):
        yield text, {"vector": np.asarray(vector, float).round(6).tolist()}


def predict_token_vectors(predictor: Predictor, texts, options):
    for text, each in zip_with_texts(texts, lambda t: predictor.embed_tokens(t, options.layer)):
        rows = [{"token": token, "vector": np.asarray(vector, float).round(6).tolist()} for token, vector in each]
        yield text, {"tokens": rows}


def predict_replaced(predictor: Predictor, texts, options):
    for text, each in zip_with_texts(texts, predictor.detect_replaced):
        yield text, {"tokens": [{"token": token, "replaced": round(p, 4)} for token, p in each]}


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
    found = prediction["similarity"]
    return ["  ".join(f"{x:.3f}" for x in (found if isinstance(found, list) else [found]))]


def format_token_vectors(prediction: dict) -> list[str]:
    return [f"{each['token']:12} {format_vector(each['vector'])}" for each in prediction["tokens"]]


def format_replaced(prediction: dict) -> list[str]:
    mark_token = lambda token, p: f"[{token} {p:.0%}]" if p > 0.5 else token
    return [" ".join(mark_token(each["token"], each["replaced"]) for each in prediction["tokens"])]


def format_vector(vector: list[float]) -> str:
    return "  ".join(f"{x:.3f}" for x in vector[:6]) + f"  ... ({len(vector)} numbers; --json prints all)"


PREDICTION_KINDS = {
    "fill": (predict_masks, format_masks),
    "classify": (predict_labels, format_labels),
    "answer": (predict_answers, format_answer),
    "similarity": (predict_similarity, format_similarity),
    "embed": (predict_vectors, lambda answer: [format_vector(answer["vector"])]),
    "tokens": (predict_token_vectors, format_token_vectors),
    "replaced": (predict_replaced, format_replaced),
}
