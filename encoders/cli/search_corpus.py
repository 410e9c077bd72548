"""The kind `search` of the verb `predict`: the nearest texts of a corpus file to each query."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from encoders.inference.predictor import Predictor
from encoders.inference.vector_index import Hit, build_index, search_corpus
from encoders.measures.base import find_step
from encoders.run.run import Run
from encoders.utils.serialization import ExperimentError

MAX_SHOWN_CHARS = 200  # of the text of a hit


@dataclass(frozen=True)
class CorpusSearch:
    """Search in a corpus file, with an index in a folder of the checkpoint at `step`, or in memory without one."""

    corpus: str
    index: str | None
    step: int | None
    log: Callable[[str], None]

    def iter_hits(self, predictor: Predictor, queries: Iterable[str], top_k: int) -> Iterator[list[Hit]]:
        """Yield the `top_k` nearest texts of each query."""
        if self.index is None:
            return search_corpus(predictor, queries, self.corpus, top_k, self.log)
        return build_index(predictor, self.step, self.corpus, self.index, self.log).search_texts(
            predictor, queries, top_k
        )


def choose_search(
    run: str, kind: str, step: str, corpus: str | None, index: str | None, log: Callable[[str], None], settings: dict
) -> CorpusSearch | None:
    """Return the search of the options of `predict`, or None for another kind of prediction.

    Raises `ExperimentError` for options that do not fit the kind, and `RunError` for a step without a checkpoint.
    """
    if kind != "search":
        if corpus or index:
            raise ExperimentError(f"--corpus and --index are for search, and not for {kind}")
        return None
    if corpus is None:
        raise ExperimentError("search needs --corpus FILE: lines of text, or JSON lines in the layout of BEIR")
    not_for_search = ("pooling", "layer", "prompt", "size", "threshold")
    if unused := [f"{name}={settings[name]}" for name in not_for_search if name in settings]:
        raise ExperimentError(f"search takes vectors as the run has them; leave out {', '.join(unused)}")
    return CorpusSearch(corpus, index, find_step(Run.open(run), step) if index else None, log)


def format_hits(hits: list[dict]) -> list[str]:
    """Return a line for each text that was found: its cosine, its id, and its start."""
    lines = []
    for hit in hits:
        text = " ".join(hit["text"].split())
        shown = text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."
        lines.append(f"{hit['score']:.3f}  {hit['id']}  {shown}")
    return lines
