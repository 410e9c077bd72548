"""Hard negatives of a run for contrastive training: texts near an anchor that do not belong to it.

The nearest texts are often positive without a label, and so the first ranks may be left out. The limits by the score of
the positive text are TopK-MarginPos and TopK-PercPos of NV-Retriever (Moreira et al., 2024,
https://arxiv.org/abs/2407.15831).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from encoders.data.row_files import RowError, iter_checked_records
from encoders.inference.corpus_file import CorpusText, iter_corpus_texts
from encoders.inference.predictor import Predictor
from encoders.inference.vector_index import (
    VectorIndex,
    build_index,
    check_identity,
    describe_vectors,
    embed_located,
    find_bad_text,
)
from encoders.tasks.text_groups import get_texts
from encoders.utils.buckets import check_local_paths
from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields
from encoders.utils.files import (
    claim_partial,
    hash_file,
    lock_dir,
    read_signed_json,
    remove_path,
    write_file_atomically,
    write_signed_json,
)

ROW_BLOCK_SIZE = 4096  # rows that are mined at a time
WORK_FILE, TEXTS_FILE, INDEX_FOLDER = "work.json", "texts.jsonl", "index"  # of the folder beside the output
ANCHOR_COLUMN, POSITIVE_COLUMN, NEGATIVE_COLUMN = "anchor", "positive", "negative"


@dataclass(frozen=True)
class NegativeRule:
    """Choice of hard negatives: the nearest `num_negatives` of the texts at `ranks` that the limits admit.

    Ranks count from 1 and leave out the positive texts of an anchor and the anchor itself. A negative's cosine with the
    anchor is at most that of the positive minus `margin`, and at most `share` of it; None sets no limit. A cosine below
    0 is lowered by its size times 1 - `share`. For a run whose similarity is the inner product, it takes the place of
    the cosine.
    """

    ranks: tuple[int, int] = (10, 100)
    margin: float | None = None
    share: float | None = None
    num_negatives: int = 3

    def __post_init__(self):
        checks = (
            ("ranks", lambda ranks: 1 <= ranks[0] <= ranks[1], "two ranks from 1 on, the first at most the last"),
            ("margin", lambda margin: margin is None or margin >= 0, "at least 0, or None"),
            ("share", lambda share: share is None or 0 < share <= 1, "above 0 and at most 1, or None"),
            ("num_negatives", lambda number: number >= 1, "at least 1"),
        )
        check_fields(self, "", checks)

    def compute_limits(self, positive_scores: Float[np.ndarray, "r"]) -> Float[np.ndarray, "r"]:
        """Return the highest score that a negative of each row may have."""
        limits = np.full(len(positive_scores), np.inf)
        if self.margin is not None:
            limits = np.minimum(limits, positive_scores - self.margin)
        if self.share is not None:
            # A share of a cosine below 0 would be above it.
            limits = np.minimum(limits, positive_scores - np.abs(positive_scores) * (1 - self.share))
        return limits


class TextPair(NamedTuple):
    """The location of a row, its anchor and its positive texts without spaces around them, and both columns as read."""

    location: str
    anchor: str
    positives: tuple[str, ...]
    columns: dict[str, str | list[str]]


@dataclass(frozen=True)
class MiningCorpus:
    """The texts that are searched for negatives.

    - `first_indices [n]`: the index of the first text that is equal to each;
    - `known_indices`: the indices of the anchors and positive texts that are among them.
    """

    index: VectorIndex
    first_indices: Int[np.ndarray, "n"]
    known_indices: dict[str, int]


def mine_negatives(
    predictor: Predictor,
    step: int,
    pairs: str | Path,
    out: str | Path,
    rule: NegativeRule = NegativeRule(),
    corpus: str | Path | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> None:
    """Write the rows of a file of pairs with hard negatives as JSON lines: anchor, positive and a list, negative.

    `pairs` has the columns anchor and positive; a positive of JSON may be a list. Texts are searched in `corpus`, or in
    all positive texts. Those of the same anchor are never its negatives. Texts are compared without the spaces around
    them. A row without negatives is left out, and such rows and those with fewer than asked for are logged.

    `step` is the checkpoint of the predictor. Finished blocks are in the folder OUT.work, and a later call with the
    same arguments resumes. Raises `RowError` for a bad row, and `UserError` for a file that exists.

        predictor = encoders.load("runs/sentences", "1000")
        mine_negatives(predictor, 1000, "pairs.jsonl", "triplets.jsonl", NegativeRule((10, 100), margin=0.05))
    """
    pairs_path, out = Path(pairs), Path(out)
    check_local_paths(str(pairs), str(out), corpus and str(corpus))
    work = out.with_name(f"{out.name}.work")
    rows = read_anchor_pairs(pairs_path, log)
    identity = describe_vectors(predictor, step) | {"rule": asdict(rule) | {"ranks": [*rule.ranks]}}
    identity |= {"pairs": hash_file(pairs_path), "corpus": hash_file(Path(corpus)) if corpus else None}
    with lock_dir(work, lambda: log(f"{work}: another process mines these pairs; waiting")):
        start_work(work, out, identity)
        corpus_path = Path(corpus) if corpus else write_positives(work / TEXTS_FILE, rows)
        try:
            index = build_index(predictor, step, corpus_path, work / INDEX_FOLDER, log)
        except RowError as error:
            bad_row = None if corpus else find_bad_text(predictor, list_positives(rows))
            raise bad_row or error from None
        pieces = write_pieces(predictor, rows, build_mining_corpus(index, rows), rule, work, log)
        log(count_negatives(pieces, len(rows), rule))
        join_files(pieces, out)
        remove_path(work)


def read_anchor_pairs(path: Path, log: Callable[[str], None]) -> list[TextPair]:
    """Return the pairs of a file. Raises `RowError` for a bad row."""
    pairs, other_columns = [], {}
    for row in iter_checked_records(path):
        anchor, positives = row.get_text(ANCHOR_COLUMN), get_texts(row, POSITIVE_COLUMN)
        columns = {ANCHOR_COLUMN: anchor, POSITIVE_COLUMN: row[POSITIVE_COLUMN]}
        pairs.append(TextPair(row.location, anchor.strip(), tuple(text.strip() for text in positives), columns))
        other_columns |= dict.fromkeys(row.values)
    if names := [name for name in other_columns if name not in (ANCHOR_COLUMN, POSITIVE_COLUMN)]:
        log(f"{path}: the columns {', '.join(names)} are left out")
    return pairs


def start_work(work: Path, out: Path, identity: dict) -> None:
    """Begin or resume the work of a file.

    Raises `UserError` for work of other arguments, and for a file that exists.
    """
    path = work / WORK_FILE
    if path.exists():
        check_identity(read_signed_json(path), identity, path)
    elif out.exists():
        remove_path(work)
        raise UserError(f"{out} exists; remove it or name another file")
    else:
        write_signed_json(path, identity)


def write_positives(path: Path, pairs: Sequence[TextPair]) -> Path:
    """Write the distinct positive texts of all pairs as JSON lines, and return the path."""
    lines = (json.dumps({"text": text.text}, ensure_ascii=False) for text in list_positives(pairs))
    write_file_atomically(path, "".join(f"{line}\n" for line in lines).encode())
    return path


def list_positives(pairs: Sequence[TextPair]) -> list[CorpusText]:
    """Return the distinct positive texts of pairs, with the location of the first row that has each."""
    texts = {}
    for pair in pairs:
        for text in pair.positives:
            texts.setdefault(text, CorpusText("", text, pair.location))
    return [*texts.values()]


def build_mining_corpus(index: VectorIndex, pairs: Sequence[TextPair]) -> MiningCorpus:
    """Return an indexed corpus with the indices of equal texts, and of the texts of the pairs."""
    known_texts = {text for pair in pairs for text in (pair.anchor, *pair.positives)}
    first_indices, known_indices, by_digest = np.empty(len(index.corpus), np.int64), {}, {}
    texts = (text.text for text, _ in iter_corpus_texts(index.corpus.path) if text.text)
    for i, text in enumerate(texts):
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()  # smaller than the text
        first_indices[i] = by_digest.setdefault(digest, i)
        if text in known_texts:
            known_indices.setdefault(text, i)
    return MiningCorpus(index, first_indices, known_indices)


def write_pieces(
    predictor: Predictor,
    pairs: Sequence[TextPair],
    corpus: MiningCorpus,
    rule: NegativeRule,
    work: Path,
    log: Callable[[str], None],
) -> list[Path]:
    """Write the rows of each block of pairs to a file of its own, unless it is there, and return the files."""
    positives_by_anchor: dict[str, set[str]] = {}
    for pair in pairs:
        positives_by_anchor.setdefault(pair.anchor, {pair.anchor}).update(pair.positives)
    excluded = {
        anchor: [corpus.known_indices[text] for text in texts if text in corpus.known_indices]
        for anchor, texts in positives_by_anchor.items()
    }
    starts = range(0, len(pairs), ROW_BLOCK_SIZE)
    paths = [work / f"rows-{number:05}.jsonl" for number in range(len(starts))]
    for path, start in zip(paths, starts, strict=True):
        if not path.exists():
            block = pairs[start : start + ROW_BLOCK_SIZE]
            lines = mine_block(predictor, block, corpus, excluded, rule)
            write_file_atomically(path, "".join(f"{line}\n" for line in lines).encode())
            log(f"mined {start + len(block):,} of {len(pairs):,} rows")
    return paths


def mine_block(
    predictor: Predictor,
    pairs: Sequence[TextPair],
    corpus: MiningCorpus,
    excluded: dict[str, list[int]],
    rule: NegativeRule,
) -> Iterator[str]:
    """Yield the pairs that have negatives as lines of JSON. `excluded` are indices of texts, by anchor."""
    anchors: dict[str, CorpusText] = {}
    for pair in pairs:
        anchors.setdefault(pair.anchor, CorpusText("", pair.anchor, pair.location))
    vectors = embed_located(predictor, [*anchors.values()], "query")
    numbers = {anchor: i for i, anchor in enumerate(anchors)}
    ranked = rank_texts(vectors, [np.array(excluded[anchor], np.int64) for anchor in anchors], corpus, rule.ranks)
    row_vectors = vectors[[numbers[pair.anchor] for pair in pairs]]
    limits = rule.compute_limits(score_positives(predictor, pairs, row_vectors, corpus))
    for pair, limit in zip(pairs, limits, strict=True):
        scores, indices = ranked[numbers[pair.anchor]]
        chosen = indices[scores <= limit][: rule.num_negatives]
        if len(chosen):
            negatives = [text.text for text in corpus.index.corpus.read_texts(chosen)]
            yield json.dumps(pair.columns | {NEGATIVE_COLUMN: negatives}, ensure_ascii=False)


def score_positives(
    predictor: Predictor, pairs: Sequence[TextPair], anchor_vectors: Float[np.ndarray, "r d"], corpus: MiningCorpus
) -> Float[np.ndarray, "r"]:
    """Return the score of each anchor with its positive text, or the lowest of several."""
    texts = list_positives(pairs)
    known_texts = [text.text for text in texts if text.text in corpus.known_indices]
    other_texts = [text for text in texts if text.text not in corpus.known_indices]
    known_vectors = corpus.index.get_vectors([corpus.known_indices[text] for text in known_texts])
    vectors = dict(zip(known_texts, known_vectors, strict=True))
    if other_texts:
        other_vectors = embed_located(predictor, other_texts, "document")
        vectors |= zip([text.text for text in other_texts], other_vectors, strict=True)
    scores = [
        min(float(anchor @ vectors[text]) for text in pair.positives)
        for pair, anchor in zip(pairs, anchor_vectors, strict=True)
    ]
    return np.array(scores)


def rank_texts(
    vectors: Float[np.ndarray, "a d"],
    excluded: Sequence[Int[np.ndarray, "e"]],
    corpus: MiningCorpus,
    ranks: tuple[int, int],
) -> list[tuple[Float[np.ndarray, "k"], Int[np.ndarray, "k"]]]:
    """Return scores and indices of the texts at `ranks` of each vector, without its excluded texts and repetitions."""
    num_searched, ranked = ranks[1] + max(map(len, excluded)), [None] * len(vectors)
    waiting = [*range(len(vectors))]
    while waiting:
        num_searched = min(1 << (num_searched - 1).bit_length(), len(corpus.first_indices))  # few are compiled
        searched = corpus.index.search_vectors(vectors[waiting], num_searched)
        for i, scores, indices in zip(waiting, *searched, strict=True):
            indices = corpus.first_indices[indices]
            is_ranked = find_new_texts(indices, excluded[i])
            if is_ranked.sum() >= ranks[1] or num_searched == len(corpus.first_indices):
                ranked[i] = tuple(values[is_ranked][ranks[0] - 1 : ranks[1]] for values in (scores, indices))
        waiting = [i for i in waiting if ranked[i] is None]  # repetitions took the place of other texts
        num_searched *= 2
    return ranked


def find_new_texts(indices: Int[np.ndarray, "k"], excluded: Int[np.ndarray, "e"]) -> Bool[np.ndarray, "k"]:
    """Return which indices occur for the first time and are not excluded."""
    is_first = np.zeros(len(indices), bool)
    is_first[np.unique(indices, return_index=True)[1]] = True
    return is_first & ~np.isin(indices, excluded)


def count_negatives(pieces: Sequence[Path], num_rows: int, rule: NegativeRule) -> str:
    """Return a line about the rows that have fewer negatives than asked for."""
    counts = []
    for path in pieces:
        with path.open(encoding="utf-8") as lines:
            counts += [len(json.loads(line)[NEGATIVE_COLUMN]) for line in lines]
    num_short = sum(count < rule.num_negatives for count in counts)
    text = f"{len(counts):,} of {num_rows:,} rows have negatives, {num_short:,} of them fewer than {rule.num_negatives}"
    return f"{text}; {num_rows - len(counts):,} rows without negatives are left out"


def join_files(paths: Sequence[Path], out: Path) -> None:
    """Write files one after the other as one whole file."""
    with claim_partial(out, lambda partial: os.open(partial, os.O_WRONLY | os.O_CREAT, 0o666)) as partial:
        with partial.open("wb") as file:
            for path in paths:
                with path.open("rb") as piece:
                    shutil.copyfileobj(piece, file)
        partial.rename(out)
