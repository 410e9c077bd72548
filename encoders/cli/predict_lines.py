"""The verb `predict`: texts read from the command, a file or standard input, and their predictions printed."""

import itertools
import json
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext

import numpy as np

from encoders.inference.predictor import Predictor, TextOrPair, load_predictor
from encoders.utils.serialization import ExperimentError


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
) -> None:
    """Print a run's predictions for the texts as they come; `settings` are arguments of `iter_predictions`."""
    predictor = load_predictor(run, step, batch_size)
    # Predictions come first in the pairs, so that texts are read only as they need them.
    read, printed = itertools.tee(pair_texts(texts, second_texts) if texts else read_texts(file or "-"))
    for prediction, text in zip(iter_predictions(predictor, kind, read, **settings), printed, strict=False):
        if as_json:
            print(json.dumps({"text": text} | prediction, ensure_ascii=False))
        else:
            shown = text if isinstance(text, str) else "  |  ".join(text)
            print(shown, *format_prediction(kind, prediction), sep="\n   ")
    if predictor.num_truncated:
        own_limit, max_positions = predictor.sentence_embedding.max_length, predictor.config.max_positions
        limit = f"model.max_positions={max_positions}"
        if kind in ("embed", "similarity") and own_limit and own_limit < max_positions:
            limit = f"max_seq_length={own_limit}"
        log(f"truncated {predictor.num_truncated} texts that exceed {limit} tokens")


def pair_texts(texts: Sequence[str], second_texts: Sequence[str]) -> Iterable[TextOrPair]:
    """Return each text with its second text, or with the only one. Raises `ExperimentError` for other numbers."""
    if not second_texts:
        return texts
    if len(second_texts) == 1:
        return zip(texts, itertools.repeat(second_texts[0]), strict=False)
    if len(second_texts) != len(texts):
        raise ExperimentError(f"--second has {len(second_texts)} texts for {len(texts)}; give one, or as many")
    return zip(texts, second_texts, strict=True)


def read_texts(name: str) -> Iterator[TextOrPair]:
    """Yield the texts of a file, one a line; `-` is standard input. Raises `ExperimentError` with the line's number."""
    source = "standard input" if name == "-" else name
    with nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb") as lines:
        for line_number, line in enumerate(lines, 1):
            yield parse_line(line.removeprefix(BOM_UTF8) if line_number == 1 else line, f"{source}:{line_number}")


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
        accepted = 'a text, two with a tab between, or {"text": ..., "second": ...}'
        raise ExperimentError(f"{location}: a line is {accepted}")
    return fields[0] if len(fields) == 1 else tuple(fields)


def require_pairs(texts: Iterable[TextOrPair]) -> Iterator[tuple[str, str]]:
    """Yield pairs of texts. Raises `ExperimentError` for a text alone."""
    for text in texts:
        if isinstance(text, str):
            raise ExperimentError(f"{text!r} needs a second text: --second TEXT, or a tab between the two")
        yield text


def iter_predictions(
    predictor: Predictor,
    kind: str,
    texts: Iterator[TextOrPair],
    top_k: int = 5,
    pooling: str | None = None,
    layer: int = -1,
    threshold: float | None = None,
) -> Iterator[dict]:
    """Yield the prediction of a kind for each text, as a JSON value; the other arguments are those of `Predictor`."""
    match kind:
        case "fill":
            for masks in predictor.fill_masks(texts, top_k):
                yield {"masks": [[{"token": word, "probability": p} for word, p in words] for words in masks]}
        case "classify":
            for scores in predictor.classify(texts):
                is_number = len(scores) == 1  # as of STS-B
                yield scores if is_number else {"label": max(scores, key=scores.get), "probabilities": scores}
        case "answer":
            yield from predictor.answer_questions(require_pairs(texts), threshold)
        case "similarity":
            for similarity in iter_similarities(predictor, texts, pooling, layer):
                yield {"similarity": similarity}
        case "embed":
            for vector in predictor.embed(texts, pooling, layer):
                yield {"vector": round_vector(vector)}
        case "tokens":
            for tokens in predictor.embed_tokens(texts, layer):
                yield {"tokens": [{"token": token, "vector": round_vector(vector)} for token, vector in tokens]}
        case "replaced":
            for tokens in predictor.detect_replaced(texts):
                yield {"tokens": [{"token": token, "replaced": round(p, 4)} for token, p in tokens]}


def round_vector(vector) -> list[float]:
    return np.asarray(vector, float).round(6).tolist()


def iter_similarities(predictor: Predictor, texts: Iterator[TextOrPair], pooling: str | None, layer: int) -> Iterator:
    """Yield the cosine of each pair, or, for texts alone, those of each text with all texts."""
    first = next(texts, None)
    texts = itertools.chain([first] if first else [], texts)
    if not isinstance(first, str):
        similarities = predictor.compare_pairs(require_pairs(texts), pooling, layer)
        yield from (round(similarity, 4) for similarity in similarities)
        return
    texts = list(texts)
    if pairs := [text for text in texts if not isinstance(text, str)]:
        raise ExperimentError(f"{pairs[0]!r} has a second text, and {first!r} has none; give all texts one, or none")
    yield from predictor.similarity_matrix(texts, pooling, layer).round(4).tolist()


def format_prediction(kind: str, prediction: dict) -> list[str]:
    match kind:
        case "fill":
            masks = prediction["masks"]
            return ["   ".join(f"{word['token']} {word['probability']:.1%}" for word in words) for words in masks]
        case "classify" if "probabilities" in prediction:
            return ["   ".join(f"{label} {p:.1%}" for label, p in prediction["probabilities"].items())]
        case "classify":
            return [f"{value:.3f}" for value in prediction.values()]
        case "answer" if prediction["answer"]:
            return ["{answer} (characters {start} to {end}, score {score:.2f})".format(**prediction)]
        case "answer":
            return ["no answer"]
        case "similarity":
            return ["  ".join(f"{x:.3f}" for x in np.atleast_1d(prediction["similarity"]))]
        case "embed":
            return [format_vector(prediction["vector"])]
        case "tokens":
            return [f"{token['token']:12} {format_vector(token['vector'])}" for token in prediction["tokens"]]
    shares = [(token["token"], token["replaced"]) for token in prediction["tokens"]]
    return [" ".join(f"[{token} {share:.0%}]" if share > 0.5 else token for token, share in shares)]


def format_vector(vector: list[float]) -> str:
    return "  ".join(f"{x:.3f}" for x in vector[:6]) + f"  ... ({len(vector)} numbers; --json prints all)"
