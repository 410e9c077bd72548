"""Lines in, answers out: what `launch.py predict` reads and prints."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from encoders.inference.predictor import Predictor, Text, load
from encoders.utils.overrides import ExperimentError


def ask(options, say: Callable[[str], None]) -> int:
    """Answers of a run to the texts that the options name, printed as they come."""
    predictor = load(options.run, options.step, options.batch)
    answers, listed = ANSWERS[options.what]
    for text, said in answers(predictor, inputs(options), options):
        if options.json:
            print(json.dumps({"text": text} | said, ensure_ascii=False))
        else:
            print(text if isinstance(text, str) else "  |  ".join(text), *listed(said), sep="\n   ")
    if predictor.cut:
        say(f"{predictor.cut} of the texts were longer than {predictor.model.positions} tokens and cut at their end")
    return 0


def inputs(options) -> Iterator[Text]:
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


def pairs(texts: Iterable[Text]) -> Iterator[tuple[str, str]]:
    for text in texts:
        if isinstance(text, str):
            raise ExperimentError(f"{text!r} needs a second text: --second TEXT, or a tab between the two")
        yield text


def with_texts(texts: Iterable[Text], answer: Callable[[Iterable[Text]], Iterator]) -> Iterator[tuple[Text, object]]:
    """Each text beside its answer; texts are drawn as the answers need them."""
    seen: list[Text] = []

    def watched() -> Iterator[Text]:
        for text in texts:
            seen.append(text)
            yield text

    for each in answer(watched()):
        yield seen.pop(0), each


def fill(predictor: Predictor, texts, options):
    for text, masks in with_texts(texts, lambda t: predictor.fill(t, options.top)):
        yield text, {"masks": [[{"token": word, "probability": p} for word, p in words] for words in masks]}


def classify(predictor: Predictor, texts, options):
    for text, said in with_texts(texts, predictor.classify):
        yield text, said if len(said) == 1 else {"label": max(said, key=said.get), "probabilities": said}


def answer(predictor: Predictor, texts, options):
    yield from with_texts(texts, lambda t: predictor.answer(pairs(t), options.threshold))


def similarity(predictor: Predictor, texts, options):
    first = next(texts, None)
    texts = itertools.chain([first] if first else [], texts)
    if isinstance(first, str):
        texts = list(texts)  # each is compared with all
        if two := [text for text in texts if not isinstance(text, str)]:
            raise ExperimentError(f"{two[0]!r} has a second text, and {first!r} has none")
        matrix = predictor.matrix(texts, options.pool, options.layer)
        yield from ((text, {"similarity": row.round(4).tolist()}) for text, row in zip(texts, matrix, strict=True))
        return
    said = with_texts(texts, lambda t: predictor.similarity(pairs(t), options.pool, options.layer))
    yield from ((text, {"similarity": round(each, 4)}) for text, each in said)


def embed(predictor: Predictor, texts, options):
    for text, vector in with_texts(texts, lambda t: predictor.embed(t, options.pool, options.layer)):
        yield text, {"vector": np.asarray(vector, float).round(6).tolist()}


def tokens(predictor: Predictor, texts, options):
    for text, each in with_texts(texts, lambda t: predictor.tokens(t, options.layer)):
        rows = [{"token": token, "vector": np.asarray(vector, float).round(6).tolist()} for token, vector in each]
        yield text, {"tokens": rows}


def replaced(predictor: Predictor, texts, options):
    for text, each in with_texts(texts, predictor.replaced):
        yield text, {"tokens": [{"token": token, "replaced": round(p, 4)} for token, p in each]}


def list_words(answer: dict) -> list[str]:
    return ["   ".join(f"{word['token']} {word['probability']:.1%}" for word in words) for words in answer["masks"]]


def list_labels(answer: dict) -> list[str]:
    if "probabilities" in answer:
        return ["   ".join(f"{label} {p:.1%}" for label, p in answer["probabilities"].items())]
    return [f"{value:.3f}" for value in answer.values()]


def list_answer(answer: dict) -> list[str]:
    if not answer["answer"]:
        return ["no answer"]
    return ["{answer} (characters {start} to {end}, score {score:.2f})".format(**answer)]


def list_numbers(answer: dict) -> list[str]:
    found = answer["similarity"]
    return ["  ".join(f"{x:.3f}" for x in (found if isinstance(found, list) else [found]))]


def list_tokens(answer: dict) -> list[str]:
    return [f"{each['token']:12} {brief(each['vector'])}" for each in answer["tokens"]]


def list_marks(answer: dict) -> list[str]:
    mark = lambda token, p: f"[{token} {p:.0%}]" if p > 0.5 else token
    return [" ".join(mark(each["token"], each["replaced"]) for each in answer["tokens"])]


def brief(vector: list[float]) -> str:
    return "  ".join(f"{x:.3f}" for x in vector[:6]) + f"  ... ({len(vector)} numbers; --json prints all)"


ANSWERS = {
    "fill": (fill, list_words),
    "classify": (classify, list_labels),
    "answer": (answer, list_answer),
    "similarity": (similarity, list_numbers),
    "embed": (embed, lambda answer: [brief(answer["vector"])]),
    "tokens": (tokens, list_tokens),
    "replaced": (replaced, list_marks),
}
