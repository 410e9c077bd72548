"""The verb `predict`: texts read from the command, a file or standard input, and their predictions printed."""

import itertools
import json
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from encoders.cli.search_corpus import CorpusSearch, choose_search, format_hits
from encoders.cli.vector_files import check_vector_file, write_vectors
from encoders.data.row_files import RowError
from encoders.inference.predictor import CHUNK_SIZE, Predictor, load_predictor
from encoders.inference.text_batch import TextOrPair
from encoders.run.folder import RunError
from encoders.utils.errors import escape_control
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
    out: str | None = None,
    corpus: str | None = None,
    index: str | None = None,
    log: Callable[[str], None] = print,
    **settings,
) -> int:
    """Print a run's predictions for the texts as they come, or write vectors to the file `out`.

    A text that cannot be predicted is logged with its line; the others are predicted, and the status is 1. `settings`
    are arguments of `iter_predictions`.
    """
    if out:
        check_vector_file(out, kind)
        if as_json:
            raise ExperimentError(f"--json prints lines, and --out {out} writes a file; give one of them")
    search = choose_search(run, kind, step, corpus, index, log, settings)
    if search and search.step is not None:
        step = str(search.step)  # the one that the index names, whatever is saved meanwhile
    predictor = load_predictor(run, step, batch_size)
    selection = TextSelection(predictor, kind, log)
    lines = pair_texts(texts, second_texts) if texts else read_lines(file or "-")
    # Predictions come first in the pairs, so that texts are read only as they need them.
    read, printed = itertools.tee(selection.iter_texts(lines))
    predictions = zip(iter_predictions(predictor, kind, read, search=search, **settings), printed, strict=False)
    if out:
        vectors = [(text, prediction["vector"]) for prediction, text in predictions]
        own = predictor.sentence_embedding.adapt_settings(settings.get("pooling"), settings.get("size"))
        write_vectors(out, vectors, selection.bad_indices, own.get_vector_size(predictor.config, predictor.params))
    else:
        for prediction, text in predictions:
            print_prediction(kind, text, prediction, as_json)
    if predictor.num_truncated:
        own_limit, max_positions = predictor.sentence_embedding.max_length, predictor.config.max_positions
        limit = f"model.max_positions={max_positions}"
        if kind in ("embed", "similarity", "search") and own_limit and own_limit < max_positions:
            limit = f"max_seq_length={own_limit}"
        log(f"truncated {predictor.num_truncated} texts that exceed {limit} tokens")
    if selection.bad_indices:
        log(f"{len(selection.bad_indices)} of {selection.num_texts} texts were not predicted")
    return 1 if selection.bad_indices else 0


@dataclass
class TextSelection:
    """Selection of the texts that a kind of prediction accepts; it logs the location and the reason of the others."""

    predictor: Predictor
    kind: str
    log: Callable[[str], None]
    num_texts: int = 0
    bad_indices: list[int] = field(default_factory=list)
    are_pairs: bool | None = None  # of similarity, as the first text says

    def __post_init__(self):
        # The predictor encodes a text soon after it was checked here: what was encoded is remembered until then.
        for name in ("encode_text", "encode_masked_text", "split_text"):
            setattr(self.predictor, name, lru_cache(2 * CHUNK_SIZE)(getattr(self.predictor, name)))

    def iter_texts(self, lines: Iterable[tuple[str, TextOrPair | bytes]]) -> Iterator[TextOrPair]:
        """Yield the texts among locations and lines, or texts, that are accepted."""
        for location, line in lines:
            try:
                text = parse_line(line) if isinstance(line, bytes) else line
                self.check_text(text)
            except (ExperimentError, RunError, RowError) as error:
                self.log(f"{location}: {error}")
                self.bad_indices.append(self.num_texts)
                text = None
            self.num_texts += 1
            if text is not None:
                yield text

    def check_text(self, text: TextOrPair) -> None:
        """Raise `ExperimentError`, `RunError` or `RowError` for a text that cannot be predicted."""
        is_pair = not isinstance(text, str)
        if self.kind == "answer" and not is_pair:
            raise ExperimentError(f"{text!r} needs a second text: --second TEXT, or a tab between the two")
        if self.kind == "search" and is_pair:
            raise ExperimentError(f"{text!r} has a second text; a query is one text")
        if self.kind == "answer":
            self.predictor.build_windows([text])
        elif self.kind == "fill":
            self.predictor.encode_masked_text(text)
        elif self.kind == "tags":
            self.predictor.split_text(text)
        else:
            self.predictor.encode_text(text)
        self.are_pairs = is_pair if self.are_pairs is None else self.are_pairs
        if self.kind == "similarity" and is_pair != self.are_pairs:
            raise ExperimentError(f"{text!r} must have {'a' if self.are_pairs else 'no'} second text, as the first has")


def pair_texts(texts: Sequence[str], second_texts: Sequence[str]) -> Iterator[tuple[str, TextOrPair]]:
    """Yield a name of each text, and the text with its second one, or with the only one.

    Raises `ExperimentError` for other numbers of second texts.
    """
    if len(second_texts) not in (0, 1, len(texts)):
        raise ExperimentError(f"--second has {len(second_texts)} texts for {len(texts)}; give one, or as many")
    seconds = itertools.cycle(second_texts) if second_texts else itertools.repeat(None)
    for number, (text, second) in enumerate(zip(texts, seconds, strict=False), 1):
        yield f"text {number}", text if second is None else (text, second)


def read_lines(name: str) -> Iterator[tuple[str, bytes]]:
    """Yield the location and the bytes of each line of a file; `-` is standard input."""
    source = "standard input" if name == "-" else name
    with nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb") as lines:
        for line_number, line in enumerate(lines, 1):
            yield f"{source}:{line_number}", line.removeprefix(BOM_UTF8) if line_number == 1 else line


def parse_line(line: bytes) -> TextOrPair:
    """Return the text of a line, or two: separated by a tab, or as JSON. Raises `ExperimentError`."""
    try:
        text = line.decode("utf-8").rstrip("\r\n")
        row = json.loads(text) if text.startswith("{") else None
    except UnicodeError as error:
        raise ExperimentError(f"{error}; texts are UTF-8") from None
    except ValueError as error:
        raise ExperimentError(f"the line starts with {{ and is not JSON: {error}") from None
    fields = text.split("\t") if row is None else [row[key] for key in ("text", "second") if key in row]
    if not 1 <= len(fields) <= 2 or not all(isinstance(value, str) and value.strip() for value in fields):
        accepted = 'a text, two with a tab between, or {"text": ..., "second": ...}'
        raise ExperimentError(f"{text!r} is not a line of texts, which is {accepted}")
    return fields[0] if len(fields) == 1 else tuple(fields)


def print_prediction(kind: str, text: TextOrPair, prediction: dict, as_json: bool) -> None:
    if as_json:
        print(escape_control(json.dumps({"text": text} | prediction, ensure_ascii=False, default=round_vector)))
    else:
        shown = text if isinstance(text, str) else "  |  ".join(text)
        print(*map(escape_control, [shown, *format_prediction(kind, prediction)]), sep="\n   ")


def iter_predictions(
    predictor: Predictor,
    kind: str,
    texts: Iterator[TextOrPair],
    top_k: int = 5,
    pooling: str | None = None,
    layer: int = -1,
    prompt: str | None = None,
    size: int | None = None,
    threshold: float | None = None,
    search: CorpusSearch | None = None,
) -> Iterator[dict]:
    """Yield the prediction of a kind for each text: a JSON value, but for vectors, which are arrays.

    `search` is that of the kind "search"; the other arguments are those of `Predictor`.
    """
    match kind:
        case "fill":
            for masks in predictor.fill_masks(texts, top_k):
                yield {"masks": [[{"token": word, "probability": p} for word, p in words] for words in masks]}
        case "classify":
            for scores in predictor.classify(texts):
                is_number = len(scores) == 1  # as of STS-B
                yield scores if is_number else {"label": max(scores, key=scores.get), "probabilities": scores}
        case "tags":
            for words in predictor.tag_words(texts):
                yield {"words": words}
        case "answer":
            yield from predictor.answer_questions(texts, threshold)
        case "similarity":
            for similarity in iter_similarities(predictor, texts, pooling, layer):
                yield {"similarity": similarity}
        case "embed":
            for vector in predictor.embed(texts, pooling, layer, prompt, size):
                yield {"vector": vector}
        case "tokens":
            for tokens in predictor.embed_tokens(texts, layer):
                yield {"tokens": [{"token": token, "vector": vector} for token, vector in tokens]}
        case "replaced":
            for tokens in predictor.detect_replaced(texts):
                yield {"tokens": [{"token": token, "replaced": round(p, 4)} for token, p in tokens]}
        case "search":
            for hits in search.iter_hits(predictor, texts, top_k):
                yield {"hits": [hit._asdict() for hit in hits]}


def round_vector(vector) -> list[float]:
    return np.asarray(vector, float).round(6).tolist()


def iter_similarities(predictor: Predictor, texts: Iterator[TextOrPair], pooling: str | None, layer: int) -> Iterator:
    """Yield the cosine of each pair, or, for texts alone, those of each text with all texts."""
    first = next(texts, None)
    texts = itertools.chain([first] if first else [], texts)
    if isinstance(first, str):
        yield from predictor.similarity_matrix(texts, pooling, layer).round(4).tolist()
    else:
        yield from (round(similarity, 4) for similarity in predictor.compare_pairs(texts, pooling, layer))


def format_prediction(kind: str, prediction: dict) -> list[str]:
    match kind:
        case "fill":
            masks = prediction["masks"]
            return ["   ".join(f"{word['token']} {word['probability']:.1%}" for word in words) for words in masks]
        case "classify" if "probabilities" in prediction:
            return ["   ".join(f"{label} {p:.1%}" for label, p in prediction["probabilities"].items())]
        case "classify":
            return [f"{value:.3f}" for value in prediction.values()]
        case "tags":
            line = "{word:15} {tag:10} {probability:6.1%}  characters {start} to {end}"
            return [line.format(**word) for word in prediction["words"]]
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
        case "search":
            return format_hits(prediction["hits"])
    shares = [(token["token"], token["replaced"]) for token in prediction["tokens"]]
    return [" ".join(f"[{token} {share:.0%}]" if share > 0.5 else token for token, share in shares)]


def format_vector(vector: np.ndarray) -> str:
    return "  ".join(f"{x:.3f}" for x in vector[:6]) + f"  ... ({len(vector)} numbers; --json prints all)"
