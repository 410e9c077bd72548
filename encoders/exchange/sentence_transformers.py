"""Files of sentence-transformers beside a checkpoint: pooling, normalisation and the longest text.

modules.json lists modules by type and folder: a Transformer, whose sentence_bert_config.json has the longest text, a
Pooling with a config.json in its folder, and a Normalize.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from reprlib import repr as shorten

from encoders.exchange.weights import CheckpointError, list_names, read_json
from encoders.inference.sentence_embedding import SentenceEmbedding

MODULES_FILE, LENGTH_FILE, POOLING_FOLDER = "modules.json", "sentence_bert_config.json", "1_Pooling"
POOLING_FLAGS = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
MIN_LENGTH = 8  # tokens of the shortest rows
MODULE_TYPES = "sentence_transformers.models."


def read_sentence_embedding(folder: Path, lowers_text: bool, ignored: Iterable[str] = ()) -> SentenceEmbedding:
    """Return how the model of a folder gives vectors; the default without files of
    sentence-transformers.

    Modules whose folder or type matches a pattern of `ignored` are left out. Raises `CheckpointError` for others that
    are not supported, and for a text that is lowered where the tokenizer does not lower it.
    """
    if not (folder / MODULES_FILE).is_file():
        return SentenceEmbedding()
    values, unsupported = {}, []
    for path, name in read_modules(folder):
        if any(fnmatchcase(path, pattern) or fnmatchcase(name, pattern) for pattern in ignored):
            continue
        if name == "Pooling":
            values["pooling"] = read_pooling(folder / path / "config.json")
        elif name == "Normalize":
            values["normalize"] = True
        elif name != "Transformer":
            unsupported.append(path or name)
    if unsupported:
        problem = f"{MODULES_FILE} has {list_names(unsupported)}, which change the vectors and are not supported"
        raise CheckpointError(f"{folder.name}: {problem}; --ignore {unsupported[0]} leaves it out")
    settings = read_json(folder / LENGTH_FILE) if (folder / LENGTH_FILE).is_file() else {}
    if settings.get("do_lower_case") and not lowers_text:
        raise CheckpointError(f"{LENGTH_FILE}: do_lower_case=True lowers texts, and the tokenizer keeps capitals")
    max_length = settings.get("max_seq_length")
    if max_length is not None and (type(max_length) is not int or max_length < MIN_LENGTH):
        raise CheckpointError(
            f"{LENGTH_FILE}: max_seq_length={shorten(max_length)} must be an integer from {MIN_LENGTH}"
        )
    return SentenceEmbedding(**values, max_length=max_length)


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """Return folder and type of each module, the type without its package. Raises `CheckpointError`."""
    try:
        modules = json.loads((folder / MODULES_FILE).read_text(encoding="utf-8-sig"))
        rows = [(module["path"], module["type"].rpartition(".")[2]) for module in modules]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{MODULES_FILE} does not list modules by path and type: {error!r}"[:300]) from None
    for path, _ in rows:
        if not isinstance(path, str) or len(Path(path).parts) > 1 or Path(path).is_absolute() or path == "..":
            raise CheckpointError(f"{MODULES_FILE}: path={shorten(path)} is not a folder beside it")
    return rows


def read_pooling(path: Path) -> str:
    """Return the pooling of a config.json. Raises `CheckpointError` for one that is not supported."""
    settings = read_json(path)
    modes = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    known = {flag: pooling for pooling, flag in POOLING_FLAGS.items()}
    if isinstance(settings.get("pooling_mode"), str):  # of newer versions
        modes = [f"pooling_mode_{settings['pooling_mode']}"]
        known |= {f"pooling_mode_{pooling}": pooling for pooling in POOLING_FLAGS}
    if len(modes) != 1 or modes[0] not in known:
        accepted = " or ".join(POOLING_FLAGS.values())
        place = path.parent.name
        raise CheckpointError(
            f"{place}: {list_names(modes) or 'no pooling'} is not supported, only {accepted}; --ignore {place} takes "
            "the mean"
        )
    return known[modes[0]]


def write_sentence_embedding(embedding: SentenceEmbedding, folder: Path, hidden_size: int, max_positions: int) -> None:
    """Write the files that sentence-transformers reads beside those of transformers."""
    modules = [("Transformer", ""), ("Pooling", POOLING_FOLDER)]
    modules += [("Normalize", "2_Normalize")] if embedding.normalize else []
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": MODULE_TYPES + name} for i, (name, path) in enumerate(modules)
    ]
    flags = {flag: pooling == embedding.pooling for pooling, flag in POOLING_FLAGS.items()}
    pooling = {"word_embedding_dimension": hidden_size, **flags, "pooling_mode_max_tokens": False}
    length = {"max_seq_length": embedding.max_length or max_positions, "do_lower_case": False}
    for _, path in modules[1:]:
        (folder / path).mkdir()
    for name, content in (
        (MODULES_FILE, listed),
        (f"{POOLING_FOLDER}/config.json", pooling),
        (LENGTH_FILE, length),
    ):
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
