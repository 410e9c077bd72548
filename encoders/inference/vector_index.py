"""Search in a file of texts by their vectors: in memory block by block, or in an index of vectors on disk.

    index/
      index.json             run, step, settings of its vectors, digests of the corpus and of every finished block;
      positions.npy          line number and byte offset of each text, [n 2];
      vectors-00000.npy ...  blocks of vectors, float32 [b d].

The similarity is that of the run: the cosine, for which vectors are scaled to length 1, or the inner product.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from encoders.data.row_files import RowError
from encoders.data.store import encode_npy
from encoders.inference.corpus_file import CorpusFile, CorpusText
from encoders.inference.predictor import Predictor
from encoders.inference.sentence_embedding import normalize_vector
from encoders.inference.text_batch import chunk_items
from encoders.inference.vector_search import CORPUS_BLOCK_SIZE, VectorSearch
from encoders.run.folder import RunError, read_run_record
from encoders.utils.buckets import check_local_paths
from encoders.utils.errors import UserError
from encoders.utils.files import (
    DamagedFile,
    check_shape,
    hash_file,
    lock_dir,
    read_signed_json,
    write_file_atomically,
    write_signed_json,
)

INDEX_FILE, POSITIONS_FILE = "index.json", "positions.npy"
Side = Literal["query", "document"]  # of a search, for which a run may have prompts
QUERY_CHUNK_SIZE = 4096  # queries that an index is read for at a time
INDEX_SHAPE = {
    "fingerprint": str,
    "step": int,
    "embedding": dict,
    "corpus": {"name": str, "sha256": str},
    "num_texts": int,
    "size": int,
    "block_size": int,
    "positions": str,
    "blocks": [str],
}


class Hit(NamedTuple):
    """A text that was found: its similarity to the query, its id in the corpus file, and itself."""

    score: float
    id: str
    text: str


@dataclass(frozen=True)
class VectorIndex:
    """A corpus file and the vectors of its texts, in blocks [b d] of one size, but for the last.

    `build_index` builds one in a folder, or opens it with memory-mapped blocks:

        predictor = encoders.load("runs/sentences", "1000")
        index = build_index(predictor, 1000, "corpus.jsonl", "corpus.index")
        for hits in index.search_texts(predictor, ["a query", "another one"], top_k=5):
            print(hits[0].score, hits[0].id, hits[0].text)
    """

    corpus: CorpusFile
    blocks: Sequence[Float[np.ndarray, "b d"]]

    def search_texts(self, predictor: Predictor, queries: Iterable[str], top_k: int = 10) -> Iterator[list[Hit]]:
        """Yield the `top_k` nearest texts of each query, best first."""
        for chunk in chunk_items(queries, QUERY_CHUNK_SIZE):
            scores, indices = self.search_vectors(embed_side(predictor, chunk, "query"), top_k)
            yield from read_hits(self.corpus, scores, indices)

    def search_vectors(
        self, queries: Float[np.ndarray, "q d"], top_k: int
    ) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
        """Return the scores and the indices of the `top_k` nearest texts of each vector."""
        search = VectorSearch(queries, top_k, corpus_block=len(self.blocks[0]))
        for block in self.blocks:
            search.add_vectors(block)
        return search.get_best()

    def get_vectors(self, indices: Iterable[int]) -> list[Float[np.ndarray, "d"]]:
        """Return the vectors of texts by their indices."""
        places = [divmod(index, len(self.blocks[0])) for index in indices]
        return [self.blocks[block][row] for block, row in places]


def search_corpus(
    predictor: Predictor,
    queries: Iterable[str],
    corpus: str | Path,
    top_k: int = 10,
    log: Callable[[str], None] = lambda line: None,
) -> Iterator[list[Hit]]:
    """Yield the `top_k` nearest texts of a corpus file for each query, best first.

    The corpus is embedded block by block, and neither its texts nor its vectors are kept; `build_index` keeps them.

        for hits in search_corpus(predictor, ["a query"], "corpus.txt", top_k=5):
            print(hits[0].score, hits[0].id, hits[0].text)
    """
    if not (queries := [*queries]):
        return
    corpus = CorpusFile.scan_file(corpus, log)
    search = VectorSearch(embed_side(predictor, queries, "query"), top_k)
    for vectors in iter_vector_blocks(predictor, corpus, CORPUS_BLOCK_SIZE, 0, log):
        search.add_vectors(vectors)
    yield from read_hits(corpus, *search.get_best())


def build_index(
    predictor: Predictor,
    step: int,
    corpus: str | Path,
    folder: str | Path,
    log: Callable[[str], None] = lambda line: None,
    block_size: int = CORPUS_BLOCK_SIZE,
) -> VectorIndex:
    """Return the index of a corpus file in `folder`; it is built first, or continued after its last whole block.

    `step` is the checkpoint of the predictor. Raises `UserError` for an index of another corpus, run or step and for a
    folder of something else, `RowError` for a bad row, and `DamagedFile` for a damaged file.
    """
    corpus, folder = Path(corpus), Path(folder)
    check_local_paths(str(folder))
    check_index_folder(folder)
    identity = describe_vectors(predictor, step) | {"corpus": {"name": corpus.name, "sha256": hash_file(corpus)}}
    content = read_index(folder, identity)
    if content is None or not is_complete(content):
        with lock_dir(folder, lambda: log(f"{folder}: another process builds this index; waiting")):
            content = read_index(folder, identity) or start_index(folder, identity, corpus, block_size, log)
            add_blocks(predictor, open_index(folder, corpus, content), folder, content, log)
    return open_index(folder, corpus, content)


def check_index_folder(folder: Path) -> None:
    """Raise `UserError` for a folder that holds something else than an index."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; an index is a folder")
    names = {path.name for path in folder.iterdir() if path.name[0] != "."} if folder.exists() else set()
    if INDEX_FILE not in names and names - {POSITIONS_FILE}:
        raise UserError(f"{folder} is not an index: it lacks {INDEX_FILE} and holds {', '.join(sorted(names)[:3])}")


def describe_vectors(predictor: Predictor, step: int) -> dict:
    """Return what the vectors of a predictor at a step are made of, as JSON."""
    fingerprint = read_run_record(predictor.run.folder)["fingerprint"]
    embedding = asdict(predictor.sentence_embedding) | {"longest_row": predictor.lengths[-1]}
    return json.loads(json.dumps({"fingerprint": fingerprint, "step": step, "embedding": embedding}))


def read_index(folder: Path, identity: dict) -> dict | None:
    """Return the content of `index.json`, or None before it is written. Raises `UserError` for another identity."""
    path = folder / INDEX_FILE
    if not path.exists():
        return None
    content = read_signed_json(path)
    check_shape(content, INDEX_SHAPE, path)
    check_identity(content, identity, path)
    return content


def check_identity(content: dict, identity: dict, path: Path) -> None:
    """Raise `UserError` for the content of a file that was made of something else; names of files do not count."""
    for name, expected in identity.items():
        recorded = content.get(name)
        is_file = isinstance(recorded, dict) and isinstance(expected, dict) and "sha256" in expected
        if recorded["sha256"] != expected["sha256"] if is_file else recorded != expected:
            raise UserError(f"{path} has {name}={recorded} and not {expected}; remove {path.parent} to start over")


def is_complete(content: dict) -> bool:
    return len(content["blocks"]) * content["block_size"] >= content["num_texts"]


def start_index(folder: Path, identity: dict, corpus: Path, block_size: int, log: Callable[[str], None]) -> dict:
    """Write an index without vectors, and return its content."""
    corpus_file = CorpusFile.scan_file(corpus, log)
    positions = encode_npy(corpus_file.positions)
    write_file_atomically(folder / POSITIONS_FILE, positions)
    content = identity | {"num_texts": len(corpus_file), "size": 0, "block_size": block_size}
    content |= {"positions": hashlib.sha256(positions).hexdigest(), "blocks": []}
    write_signed_json(folder / INDEX_FILE, content)
    return content


def add_blocks(
    predictor: Predictor, index: VectorIndex, folder: Path, content: dict, log: Callable[[str], None]
) -> None:
    """Embed the texts that an index lacks, and record each finished block in its `content`."""
    for vectors in iter_vector_blocks(predictor, index.corpus, content["block_size"], len(index.blocks), log):
        block = encode_npy(vectors)
        write_file_atomically(name_block(folder, len(content["blocks"])), block)
        content["blocks"].append(hashlib.sha256(block).hexdigest())
        content["size"] = vectors.shape[1]
        write_signed_json(folder / INDEX_FILE, content)


def open_index(folder: Path, corpus: Path, content: dict) -> VectorIndex:
    """Return an index as far as it is built. Raises `DamagedFile` for a file that is not as it was written."""
    block_paths = [name_block(folder, i) for i in range(len(content["blocks"]))]
    paths, digests = [folder / POSITIONS_FILE, *block_paths], [content["positions"], *content["blocks"]]
    with ThreadPoolExecutor() as threads:
        for path, found, expected in zip(paths, threads.map(hash_file, paths), digests, strict=True):
            if found != expected:
                raise DamagedFile(f"{path} is damaged: its content differs from what was written; remove {folder}")
    blocks = [np.load(path, mmap_mode="r") for path in block_paths]
    return VectorIndex(CorpusFile(corpus, np.load(folder / POSITIONS_FILE)), blocks)


def name_block(folder: Path, number: int) -> Path:
    return folder / f"vectors-{number:05}.npy"


def iter_vector_blocks(
    predictor: Predictor, corpus: CorpusFile, block_size: int, first_block: int, log: Callable[[str], None]
) -> Iterator[Float[np.ndarray, "b d"]]:
    """Yield the vectors of the texts of a corpus, from a block on.

    Raises `RowError` for a text without tokens.
    """
    for start in range(first_block * block_size, len(corpus), block_size):
        stop = min(start + block_size, len(corpus))
        texts = corpus.read_texts(range(start, stop))
        vectors = embed_located(predictor, texts, "document")
        log(f"embedded {stop:,} of {len(corpus):,} texts")
        yield vectors


def embed_located(predictor: Predictor, texts: Sequence[CorpusText], side: Side) -> Float[np.ndarray, "n d"]:
    """Return the vectors of texts as `embed_side`. Raises `RowError` for a text without tokens."""
    try:
        return embed_side(predictor, [text.text for text in texts], side)
    except RunError as error:
        raise find_bad_text(predictor, texts) or error from None


def find_bad_text(predictor: Predictor, texts: Sequence[CorpusText]) -> RowError | None:
    """Return the error of the first text without tokens, with its location, or None."""
    for text in texts:
        try:
            predictor.encode_text(text.text)
        except RunError as error:
            return RowError(text.location, str(error))
    return None


def embed_side(predictor: Predictor, texts: Sequence[str], side: Side) -> Float[np.ndarray, "n d"]:
    """Return the vectors of texts in float32, with the run's prompt for the side; for the cosine, scaled to length 1.

    Raises `UserError` for a vector that is not finite.
    """
    own = predictor.sentence_embedding
    vectors = predictor.embed(texts, prompt=own.find_prompt_name(side))
    if own.similarity == "cosine":
        vectors = map(normalize_vector, vectors)
    vectors = np.array([*vectors], np.float32)
    if not np.isfinite(vectors).all():
        raise UserError("a vector is not finite; the parameters of the run are damaged or diverged")
    return vectors


def read_hits(
    corpus: CorpusFile, scores: Float[np.ndarray, "q k"], indices: Int[np.ndarray, "q k"]
) -> Iterator[list[Hit]]:
    """Yield the texts at the indices of each query, with their scores."""
    for row_scores, row_indices in zip(scores.tolist(), indices.tolist(), strict=True):
        texts = corpus.read_texts(row_indices)
        yield [Hit(score, text.id, text.text) for score, text in zip(row_scores, texts, strict=True)]
