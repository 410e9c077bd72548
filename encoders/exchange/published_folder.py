"""Published checkpoints, read from a folder: architecture, encoder and objective from config.json and the tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as shorten
from typing import Any

import numpy as np

from encoders.exchange.weights import CheckpointError, LazyTensor, list_names, read_json, read_weights
from encoders.families.architecture import Architecture, has_different_groups
from encoders.families.registry import ARCHITECTURES
from encoders.model.config import EncoderConfig
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.tasks.classification import Classification
from encoders.tasks.encoder_only import EncoderOnly
from encoders.tasks.question_answering import SpanPrediction
from encoders.tasks.token_classification import TokenClassification

SENTENCE_TASKS = {"nsp": NextSentencePrediction(), "sop": SentenceOrderPrediction()}


@dataclass(frozen=True, eq=False)
class PublishedCheckpoint:
    """A checkpoint with the tensor names of `architecture`; `heads` are its top-level modules but the encoder.

    `unread` are the names of tensors that published files hold and no parameter here is for.
    """

    architecture: Architecture
    config: EncoderConfig
    objective: Any
    heads: frozenset[str]
    tensors: dict[str, LazyTensor]
    files: tuple[Path, ...]
    unread: tuple[str, ...] = ()

    def read_leaf(self, path: str, layer: int = 0) -> np.ndarray:
        """Return the leaf at `path` of our tree, or one layer of it; kernels are transposed to ours."""
        name, kind = self.architecture.find_hf_leaf(path, layer, self.config.num_layers)
        values = self.tensors[name].read()
        return values.T if kind == "kernel" else values

    def has_equal_leaf(self, other: PublishedCheckpoint, path: str) -> bool:
        """Return whether both checkpoints have the leaf at `path`, with equal bits."""
        name = self.architecture.find_hf_leaf(path)[0]
        in_both = name in self.tensors and name in other.tensors
        return in_both and np.array_equal(self.tensors[name].read(), other.tensors[name].read())

    def list_problems(self, leaf_shapes: dict[str, tuple[int, ...]], tied_leaves: Iterable[str] = ()) -> list[str]:
        """Return a line for everything that does not fit the wanted leaves, path → shape.

        `tied_leaves` may be in the checkpoint and are read from another one.
        """
        architecture = self.architecture
        wanted = dict(row for path, shape in leaf_shapes.items() for row in architecture.list_hf_tensors(path, shape))
        known = {*wanted, *dict(architecture.tied_tensors)}
        known.update(architecture.find_hf_leaf(path)[0] for path in tied_leaves)
        missing, unexpected = sorted(wanted.keys() - self.tensors.keys()), sorted(self.tensors.keys() - known)
        problems = [f"missing: {list_names(missing)}"] if missing else []
        if unexpected:
            problems.append(f"unexpected: {list_names(unexpected)}; --ignore PATTERN leaves tensors out")
        problems += self.find_type_problems({name: shape for name, shape in wanted.items() if name in self.tensors})
        return problems or list(self.find_value_problems(wanted)) or list(self.find_tie_problems())

    def find_type_problems(self, wanted: dict[str, tuple[int, ...]]) -> Iterator[str]:
        for name, shape in wanted.items():
            tensor = self.tensors[name]
            if tensor.shape != shape:
                yield f"{name} is {list(tensor.shape)} and should be {list(shape)}"
            elif "float" not in tensor.dtype:
                yield f"{name} holds {tensor.dtype}; only floating-point numbers are read"

    def find_value_problems(self, names: Iterable[str]) -> Iterator[str]:
        for name in names:
            try:
                if not np.isfinite(self.tensors[name].read()).all():
                    yield f"{name} holds numbers that are not finite"
            except CheckpointError as error:
                yield f"{name}: {error}"

    def find_tie_problems(self) -> Iterator[str]:
        """Yield how the tensors differ that should repeat others."""
        for copy, original in self.architecture.tied_tensors:
            if copy not in self.tensors or original not in self.tensors:
                continue
            a, b = self.tensors[copy], self.tensors[original]
            if a.shape != b.shape:
                yield f"{copy} is {list(a.shape)} and should repeat {original}, which is {list(b.shape)}"
            elif largest := np.abs(a.read() - b.read()).max(initial=0.0):
                yield f"{copy} should repeat {original} and differs by up to {largest:.3g}"


def read_transformers_folder(
    folder: Path, ignored: Iterable[str] = (), log: Callable[[str], None] = lambda line: None
) -> PublishedCheckpoint:
    """Read a folder that transformers wrote, without the tensors that match a pattern of `ignored`. Raises
    `CheckpointError`."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give one with config.json and weights")
    hf_config = read_json(folder / "config.json")
    model_type = hf_config.get("model_type")
    architecture = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    own_prefix = f"{architecture.root or architecture.name}." if architecture else ""
    tensors, files = read_weights(folder, ignored, own_prefix, log)
    return interpret_checkpoint(hf_config, tensors, (folder / "config.json", *files))


def interpret_checkpoint(
    hf_config: dict, tensors: dict[str, LazyTensor], files: tuple[Path, ...]
) -> PublishedCheckpoint:
    """Return the checkpoint that a configuration and tensors describe. Raises `CheckpointError`."""
    architecture = identify_architecture(hf_config, tensors)
    try:
        config = architecture.read_buffers(architecture.read_encoder_config(hf_config), tensors)
    except ValueError as error:
        raise CheckpointError(f"config.json: {error}") from None
    tensors = modernize_tensor_names(architecture, tensors)
    if config.num_layers > len(tensors):  # checked before anything is built of that size
        raise CheckpointError(
            f"config.json: num_hidden_layers={config.num_layers} exceeds the {len(tensors)} tensors of the weights"
        )
    largest_size = max(size for tensor in tensors.values() for size in tensor.shape)
    if config.vocab_size > largest_size:
        raise CheckpointError(
            f"config.json: vocab_size={config.vocab_size} exceeds {largest_size}, the largest size of the tensors"
        )
    if has_different_groups(config):
        raise CheckpointError(
            f"config.json: num_hidden_groups={config.num_groups} with num_hidden_layers={config.num_layers} is not "
            "supported: transformers rounds and puts a layer into another group than this library does"
        )
    known_names = dict.fromkeys(name for _, name in architecture.model_classes)
    names = hf_config.get("architectures") or []
    if not isinstance(names, list) or (names and known_names.keys().isdisjoint(map(str, names))):
        raise CheckpointError(f"config.json: architectures={shorten(names)} names none of {', '.join(known_names)}")
    if config.always_project and config.embedding_size == config.hidden_size:
        projection = [architecture.find_hf_leaf(f"encoder/project/{leaf}")[0] for leaf in ("kernel", "bias")]
        if is_identity(*map(tensors.get, projection), config.hidden_size):  # as in exports of models without one
            config = replace(config, always_project=False)
            tensors = {name: tensor for name, tensor in tensors.items() if name not in projection}
    heads = architecture.infer_heads(tensors, names)
    unread = [name for name in tensors if re.search(architecture.unread_tensors, name)]
    if heads >= {"replaced", "tokens"}:  # a released discriminator brings a masked-token head, and no generator
        heads -= {"tokens"}
        unread += [name for name in tensors if architecture.list_top_modules(name) == ["tokens"]]
    tensors = {name: tensor for name, tensor in tensors.items() if name not in unread}
    gelu_heads = heads.intersection(architecture.gelu_heads)
    if config.activation != "gelu" and gelu_heads:
        raise CheckpointError(
            f"config.json: hidden_act={hf_config['hidden_act']!r} differs from the exact gelu of its "
            f"{list_names(gelu_heads)} head; only gelu is supported with it"
        )
    objective = infer_objective(architecture, hf_config, config, heads)
    return PublishedCheckpoint(architecture, config, objective, heads, tensors, files, tuple(unread))


def identify_architecture(hf_config: dict, tensors: dict[str, LazyTensor]) -> Architecture:
    """Return the architecture of model_type or, without one, of the tensors' names; BERT by default."""
    model_type = hf_config.get("model_type")
    if model_type is None:
        roots = (root for root in ARCHITECTURES if any(name.startswith(f"{root}.") for name in tensors))
        model_type = next(roots, "bert")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise CheckpointError(f"config.json: model_type={model_type!r} is not one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[model_type]


def modernize_tensor_names(architecture: Architecture, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Rename tensors with names of another layout or without the model type's prefix; drop buffers.

    A tied tensor that the file holds under its copy's name only gets its own.
    """
    prefix, renamed = f"{architecture.root or architecture.name}.", {}
    has_prefix = any(name.startswith(prefix) for name in tensors)
    for original_name, tensor in tensors.items():
        if re.search(architecture.buffers, original_name):
            continue
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", original_name))
        for pattern, replacement in architecture.former_names:
            name = re.sub(pattern, replacement, name)
        if not has_prefix and architecture.list_top_modules(prefix + name):
            name = prefix + name
        if name in renamed:
            raise CheckpointError(f"two tensors have the name {name}")
        renamed[name] = tensor
    for copy, original in architecture.tied_tensors:
        if original not in renamed and copy in renamed:
            renamed[original] = renamed[copy]
    return renamed


def is_identity(kernel: LazyTensor | None, bias: LazyTensor | None, width: int) -> bool:
    """Return whether a projection returns its input."""
    if kernel is None or bias is None or kernel.shape != (width, width) or bias.read().any():
        return False
    return np.array_equal(kernel.read(), np.eye(width))


def infer_objective(architecture: Architecture, hf_config: dict, config: EncoderConfig, heads: frozenset[str]):
    """Return the objective that a checkpoint with these heads was last trained for. Raises `CheckpointError`."""
    if heads & {"classes", "tags"}:
        return infer_classification(architecture, hf_config, config, heads)
    if "spans" in heads:
        return SpanPrediction(architecture.token_classifier_head)
    if "replaced" in heads:
        return ReplacedTokenDetection(generator_width=None)
    if "tokens" in heads or "pair" in heads:
        return MaskedLM(Masking(), SENTENCE_TASKS[architecture.sentence_task] if "pair" in heads else None)
    return EncoderOnly("pooler" in heads)


def infer_classification(
    architecture: Architecture, hf_config: dict, config: EncoderConfig, heads: frozenset[str]
) -> Classification | TokenClassification:
    """Return the classification of a config.json: labels, head and dropout. Raises `CheckpointError`."""
    labels = read_label_names(hf_config)
    problem_type = hf_config.get("problem_type")
    if "classes" in heads and problem_type not in (None, choose_problem_type(labels)):
        raise CheckpointError(
            f"config.json: problem_type={shorten(problem_type)} with num_labels={len(labels)} is not supported; "
            f"only {choose_problem_type(labels)!r} is"
        )
    dropout_field, default_dropout = architecture.classifier_dropout_field
    dropout = hf_config.get(dropout_field, default_dropout)
    dropout = config.hidden_dropout if dropout is None else dropout
    try:
        if "tags" in heads:
            return TokenClassification(labels, dropout, architecture.token_classifier_head)
        return Classification(labels, architecture.classifier_head, dropout)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"config.json: {error}") from None


def read_label_names(hf_config: dict) -> tuple[str, ...]:
    """Return the names of the classes, LABEL_0 and so on by default. Raises `CheckpointError`."""
    names = hf_config.get("id2label")
    num_labels = hf_config.get("num_labels", len(names) if isinstance(names, dict) else 2)
    if type(num_labels) is not int or not 0 < num_labels < 100_000:
        raise CheckpointError(f"config.json: num_labels={num_labels!r} must be an integer from 1 to 99999")
    if not isinstance(names, dict) or len(names) != num_labels:
        return tuple(f"LABEL_{i}" for i in range(num_labels))
    indices = [str(i) for i in range(num_labels)]
    if set(names) != set(indices) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"config.json: id2label must name the classes 0 to {num_labels - 1}")
    return tuple(names[index] for index in indices)


def choose_problem_type(labels: tuple[str, ...]) -> str:
    """Return transformers' problem_type for these labels; one label alone is a number."""
    return "regression" if len(labels) == 1 else "single_label_classification"


def build_label_config(architecture: Architecture, objective) -> dict:
    """Return the fields of config.json for the classes of an objective."""
    if not isinstance(objective, Classification | TokenClassification):
        return {}
    problem_type = {"problem_type": choose_problem_type(objective.labels)}
    return {
        "id2label": {str(i): name for i, name in enumerate(objective.labels)},
        "label2id": {name: i for i, name in enumerate(objective.labels)},
        **(problem_type if isinstance(objective, Classification) else {}),
        architecture.classifier_dropout_field[0]: objective.head_dropout,
    }
