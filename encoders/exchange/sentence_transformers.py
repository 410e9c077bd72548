"""Files of sentence-transformers beside a checkpoint: how it gives the vector of a text.

modules.json lists modules by type and folder: a Transformer, whose sentence_bert_config.json has the longest text; a
Pooling with a config.json in its folder; Dense layers with weights beside theirs; and a Normalize.
config_sentence_transformers.json has the prompts, the similarity of two vectors and their size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from reprlib import repr as shorten
from typing import Any, get_args

import jax
import numpy as np

from encoders.exchange.weights import (
    CheckpointError,
    LazyTensor,
    list_names,
    read_json,
    read_weights,
    write_safetensors,
)
from encoders.inference.sentence_embedding import SentenceEmbedding, Similarity
from encoders.utils.files import write_json

MODULES_FILE, LENGTH_FILE, SETTINGS_FILE = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
}
POOLING_MODES = {"cls": "cls", "mean": "mean", "lasttoken": "last"}  # of newer versions
MODULE_ORDER = ("Transformer", "Pooling", "Dense", "Normalize")
MODULE_TYPES = "sentence_transformers.models."  # that versions before and after 5.4 read
MIN_LENGTH = 8  # tokens of the shortest rows
NO_LENGTH = 10**9  # and above: transformers' sign of a tokenizer without a longest text
HIDDEN_STATES, POOLED = ("last_hidden_state", "token_embeddings"), ("pooler_output", "sentence_embedding")
ACTIVATION_CLASSES = {  # of torch, by our names
    "identity": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
    "relu": "torch.nn.modules.activation.ReLU",
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
    "gelu": "torch.nn.modules.activation.GELU",
    "silu": "torch.nn.modules.activation.SiLU",
}
DENSE_TENSORS = {"kernel": "linear.weight", "bias": "linear.bias"}


@dataclass(frozen=True, eq=False)
class DenseCheckpoint:
    """Dense layers behind the pooling, as a checkpoint of the parameters "sentence_dense".

    `layers` have the tensors of each by our name, `sizes` its numbers of inputs and outputs.
    """

    layers: tuple[dict[str, LazyTensor], ...]
    sizes: tuple[tuple[int, int], ...]
    files: tuple[Path, ...]
    unread: tuple[str, ...] = ()

    def build_param_shapes(self) -> dict:
        """Return the shapes of the parameters, by the number of the layer and by name."""
        shapes = {}
        for number, (layer, (inputs, outputs)) in enumerate(zip(self.layers, self.sizes, strict=True)):
            leaf_shapes = {"kernel": (inputs, outputs), "bias": (outputs,)}
            shapes[str(number)] = {name: jax.ShapeDtypeStruct(leaf_shapes[name], np.float32) for name in layer}
        return shapes

    def read_leaf(self, path: str, layer: int = 0) -> np.ndarray:
        """Return the leaf at `path` of our tree; kernels are transposed to ours."""
        _, number, name = path.split("/")
        return self.layers[int(number)][name].read().T

    def list_problems(self, leaf_shapes: dict[str, tuple[int, ...]], tied_leaves: Iterable[str] = ()) -> list[str]:
        """Return a line for every tensor that does not fit its leaf, path → shape."""
        problems = []
        for path, shape in leaf_shapes.items():
            _, number, name = path.split("/")
            tensor, name = self.layers[int(number)][name], f"{DENSE_TENSORS[name]} of dense layer {number}"
            if tensor.shape[::-1] != shape:
                problems.append(f"{name} is {list(tensor.shape)} and should be {list(shape[::-1])}")
            elif not np.isfinite(tensor.read()).all():
                problems.append(f"{name} holds numbers that are not finite")
        return problems


def read_sentence_embedding(folder: Path, lowers_text: bool, ignored: Iterable[str] = ()) -> SentenceEmbedding:
    """Return how the model of a folder gives vectors; the default without files of sentence-transformers.

    Modules whose folder or type matches a pattern of `ignored` are left out, and so is a similarity where
    similarity_fn_name does. Raises `CheckpointError` for others that are not supported, and for a text that is lowered
    where the tokenizer does not lower it.
    """
    settings = read_optional_json(folder / SETTINGS_FILE)
    if not (folder / MODULES_FILE).is_file() or settings.get("model_type") == "CrossEncoder":  # scores, not vectors
        return SentenceEmbedding()
    modules = list_modules(folder, ignored)
    values: dict[str, Any] = {"pooling": "pooled"} if gives_pooled_output(folder) else {}
    for path, name in modules:
        if name == "Pooling":
            values["pooling"] = read_pooling(folder / path / "config.json")
    values["dense"] = tuple(read_activation(folder / path) for path, name in modules if name == "Dense")
    values["normalize"] = any(name == "Normalize" for _, name in modules)
    values["max_length"] = read_max_length(folder, lowers_text)
    if not any(fnmatchcase("similarity_fn_name", pattern) for pattern in ignored):
        values["similarity"] = read_similarity(settings)
    values["size"] = size = settings.get("truncate_dim")
    if size is not None and (type(size) is not int or size < 1):
        raise CheckpointError(f"{SETTINGS_FILE}: truncate_dim={shorten(size)} must be an integer from 1")
    return SentenceEmbedding(**values, **read_prompts(settings))


def list_modules(folder: Path, ignored: Iterable[str]) -> list[tuple[str, str]]:
    """Return folder and type of the modules that match no pattern. Raises `CheckpointError` for one that is not
    supported, and for another order than Transformer, Pooling, Dense, Normalize."""
    modules = [
        (path, name)
        for path, name in read_modules(folder)
        if not any(fnmatchcase(path, pattern) or fnmatchcase(name, pattern) for pattern in ignored)
    ]
    if unsupported := [path or name for path, name in modules if name not in MODULE_ORDER]:
        problem = f"{MODULES_FILE} has {list_names(unsupported)}, which change the vectors and are not supported"
        raise CheckpointError(f"{folder.name}: {problem}; --ignore {unsupported[0]} leaves it out")
    ranks = [MODULE_ORDER.index(name) for _, name in modules]
    if ranks != sorted(ranks) or any(ranks.count(MODULE_ORDER.index(name)) > 1 for name in ("Transformer", "Pooling")):
        listed = ", ".join(path or name for path, name in modules)
        raise CheckpointError(f"{MODULES_FILE} lists {listed}; accepted is the order {', '.join(MODULE_ORDER)}")
    return modules


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


def gives_pooled_output(folder: Path) -> bool:
    """Return whether the Transformer gives its pooler's vector, and no hidden states for a Pooling.

    Raises `CheckpointError` for other outputs.
    """
    settings = read_optional_json(folder / LENGTH_FILE)
    try:
        output = settings.get("modality_config", {}).get("text", {}).get("method_output_name", HIDDEN_STATES[0])
    except AttributeError:
        raise CheckpointError(f"{LENGTH_FILE}: modality_config must map text to its outputs") from None
    names = (output, settings.get("module_output_name", HIDDEN_STATES[1]))
    if names not in (HIDDEN_STATES, POOLED):
        accepted = " or ".join(f"{output} as {name}" for output, name in (HIDDEN_STATES, POOLED))
        raise CheckpointError(f"{LENGTH_FILE}: the output {names[0]!r} as {names[1]!r} must be {accepted}")
    return names == POOLED


def read_pooling(path: Path) -> str:
    """Return the pooling of a config.json. Raises `CheckpointError` for one that is not supported."""
    settings, place = read_json(path), path.parent.name
    modes = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    known = {flag: pooling for pooling, flag in POOLING_FLAGS.items()}
    if "pooling_mode" in settings:  # of newer versions
        mode = settings["pooling_mode"]
        modes, known = mode if isinstance(mode, list) else [mode], POOLING_MODES
    if len(modes) != 1 or modes[0] not in known:
        problem = f"{list_names(map(str, modes)) or 'no pooling'} is not supported, only {' or '.join(known)}"
        raise CheckpointError(f"{place}: {problem}; --ignore {place} takes the mean")
    if settings.get("include_prompt", True) is not True:
        problem = "include_prompt=False leaves tokens of a prompt out, which is not supported"
        raise CheckpointError(f"{place}: {problem}; --ignore {place} takes the mean of all")
    return known[modes[0]]


def read_max_length(folder: Path, lowers_text: bool) -> int | None:
    """Return the longest text in tokens, or None. Raises `CheckpointError` for one that is too short, and for texts
    that are lowered and the tokenizer keeps capitals."""
    settings, name = read_optional_json(folder / LENGTH_FILE), "max_seq_length"
    if settings.get("do_lower_case") and not lowers_text:
        raise CheckpointError(f"{LENGTH_FILE}: do_lower_case=True lowers texts, and the tokenizer keeps capitals")
    file, max_length = LENGTH_FILE, settings.get(name)
    if max_length is None:  # newer versions leave it to the tokenizer
        file, name = "tokenizer_config.json", "model_max_length"
        max_length = read_optional_json(folder / file).get(name)
        if isinstance(max_length, int | float) and max_length >= NO_LENGTH:
            return None
    if max_length is not None and (type(max_length) is not int or max_length < MIN_LENGTH):
        raise CheckpointError(f"{file}: {name}={shorten(max_length)} must be an integer from {MIN_LENGTH}")
    return max_length


def read_similarity(settings: dict) -> str:
    """Return the similarity of two vectors. Raises `CheckpointError` for one that is not supported."""
    similarity = settings.get("similarity_fn_name")
    if similarity not in (None, *get_args(Similarity)):
        problem = f"similarity_fn_name={shorten(similarity)} is not supported, only {' or '.join(get_args(Similarity))}"
        raise CheckpointError(f"{SETTINGS_FILE}: {problem}; --ignore similarity_fn_name takes the cosine")
    return similarity or "cosine"


def read_prompts(settings: dict) -> dict:
    """Return the fields `prompts` and `default_prompt`.

    Raises `CheckpointError` for prompts that are not texts, and for a default that is none of them.
    """
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise CheckpointError(f"{SETTINGS_FILE}: prompts={shorten(prompts)} must map names to texts")
    prompts = {name: text or "" for name, text in prompts.items()}
    default = settings.get("default_prompt_name")
    if default is not None and default not in prompts:
        accepted = ", ".join(prompts) or "null: there are no prompts"
        raise CheckpointError(f"{SETTINGS_FILE}: default_prompt_name={shorten(default)} must be {accepted}")
    if not any(prompts.values()):  # as newer versions write for a model without prompts
        return {}
    return {"prompts": prompts, "default_prompt": default}


def read_activation(folder: Path) -> str:
    """Return our name of the activation of a dense layer. Raises `CheckpointError` for one that is not supported, and
    for a layer that does more."""
    settings = read_json(folder / "config.json")
    names = {path.rpartition(".")[2]: name for name, path in ACTIVATION_CLASSES.items()}
    activation = str(settings.get("activation_function", ACTIVATION_CLASSES["tanh"]))
    package, _, class_name = activation.rpartition(".")
    if package.partition(".")[0] != "torch" or class_name not in names:
        problem = f"activation_function={activation} is not supported, only {', '.join(ACTIVATION_CLASSES.values())}"
        raise CheckpointError(f"{folder.name}: {problem}; --ignore {folder.name} leaves the layer out")
    places = [settings.get(name) or "sentence_embedding" for name in ("module_input_name", "module_output_name")]
    if settings.get("use_residual") or places != ["sentence_embedding"] * 2:
        problem = "only a layer from sentence_embedding to sentence_embedding without use_residual is supported"
        raise CheckpointError(f"{folder.name}: {problem}; --ignore {folder.name} leaves the layer out")
    return names[class_name]


def read_dense_checkpoint(folder: Path, hidden_size: int, ignored: Iterable[str] = ()) -> DenseCheckpoint | None:
    """Return the dense layers of a folder, the first of which reads vectors of `hidden_size`, or None without one.

    Raises `CheckpointError` for layers that do not fit each other.
    """
    if not (folder / MODULES_FILE).is_file():
        return None
    layers, sizes, files, width = [], [], [], hidden_size
    for path, name in list_modules(folder, ignored):
        if name != "Dense":
            continue
        settings = read_json(folder / path / "config.json")
        inputs, outputs = settings.get("in_features"), settings.get("out_features")
        if inputs != width or type(outputs) is not int or outputs < 1:
            accepted = f"in_features={width}, as the vectors before, and out_features from 1"
            raise CheckpointError(f"{path}: in_features={inputs} and out_features={outputs} must be {accepted}")
        tensors, weight_files = read_weights(folder / path)
        names = DENSE_TENSORS if settings.get("bias", True) else {"kernel": DENSE_TENSORS["kernel"]}
        if sorted(tensors) != sorted(names.values()):
            raise CheckpointError(f"{path} holds {list_names(sorted(tensors))}, not {list_names(names.values())}")
        layers.append({ours: tensors[theirs] for ours, theirs in names.items()})
        sizes.append((inputs, outputs))
        files += [folder / path / "config.json", *weight_files]
        width = outputs
    return DenseCheckpoint(tuple(layers), tuple(sizes), tuple(files)) if layers else None


def read_optional_json(path: Path) -> dict:
    """Return the object in a JSON file, or an empty one without the file."""
    return read_json(path) if path.is_file() else {}


def write_sentence_embedding(
    embedding: SentenceEmbedding, folder: Path, hidden_size: int, max_positions: int, dense_params: Mapping
) -> None:
    """Write the files that sentence-transformers reads beside those of transformers."""
    length: dict[str, Any] = {"max_seq_length": embedding.max_length or max_positions, "do_lower_case": False}
    modules = [("Transformer", "")]
    if embedding.pooling == "pooled":
        text = {"method": "forward", "method_output_name": POOLED[0]}
        length |= {"modality_config": {"text": text}, "module_output_name": POOLED[1]}
    else:
        modules.append(("Pooling", "1_Pooling"))
    for name in [*("Dense" for _ in embedding.dense), *(["Normalize"] if embedding.normalize else [])]:
        modules.append((name, f"{len(modules)}_{name}"))
    for _, path in modules[1:]:
        (folder / path).mkdir()
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": MODULE_TYPES + name} for i, (name, path) in enumerate(modules)
    ]
    (folder / MODULES_FILE).write_text(json.dumps(listed, indent=1), encoding="utf-8")
    write_json(folder / LENGTH_FILE, length)
    write_json(folder / SETTINGS_FILE, build_settings(embedding))
    if embedding.pooling in POOLING_FLAGS:
        flags = {flag: pooling == embedding.pooling for pooling, flag in POOLING_FLAGS.items()}
        write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden_size, **flags})
    dense_folders = [folder / path for name, path in modules if name == "Dense"]
    for number, (path, activation) in enumerate(zip(dense_folders, embedding.dense, strict=True)):
        write_dense_layer(path, activation, dense_params[str(number)])


def build_settings(embedding: SentenceEmbedding) -> dict:
    """Return config_sentence_transformers.json."""
    settings = {
        "model_type": "SentenceTransformer",
        "prompts": dict(embedding.prompts),
        "default_prompt_name": embedding.default_prompt,
        "similarity_fn_name": embedding.similarity,
    }
    return settings if embedding.size is None else settings | {"truncate_dim": embedding.size}


def write_dense_layer(folder: Path, activation: str, layer: Mapping[str, np.ndarray]) -> None:
    """Write a dense layer: its config.json and its weights, transposed to torch's layout."""
    inputs, outputs = layer["kernel"].shape
    settings = {"in_features": inputs, "out_features": outputs, "bias": "bias" in layer}
    write_json(folder / "config.json", settings | {"activation_function": ACTIVATION_CLASSES[activation]})
    tensors: dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]] = {}
    for name, values in layer.items():
        tensors[DENSE_TENSORS[name]] = values.shape[::-1], partial(np.transpose, np.asarray(values))
    write_safetensors(folder / "model.safetensors", tensors)
