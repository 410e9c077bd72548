"""A published checkpoint: what its configuration and its tensors say it is."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as shown
from typing import Any

import numpy as np

from encoders.exchange.architectures import ARCHITECTURES, BUFFER_PATTERN, Architecture, has_different_groups
from encoders.exchange.weights import CheckpointError, LazyTensor, list_names, read_json, read_weights
from encoders.model.config import EncoderConfig
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.tasks.classification import Classification
from encoders.tasks.encoder_only import EncoderOnly
from encoders.tasks.question_answering import SpanPrediction


@dataclass(frozen=True, eq=False)
class PublishedCheckpoint:
    """`entries` are its tensors by their names today; `found` its parts beside the encoder."""

    architecture: Architecture
    config: EncoderConfig
    objective: Any
    heads: frozenset[str]
    tensors: dict[str, LazyTensor]
    files: tuple[Path, ...]

    def read_leaf(self, path: str, layer: int = 0) -> np.ndarray:
        """The leaf at `path`, or one layer of it, as ours: kernels transposed."""
        theirs, kind = self.architecture.locate_leaf(path)
        numbers = self.tensors[theirs.format(layer)].read()
        return numbers.T if kind == "kernel" else numbers

    def has_equal_leaf(self, other: PublishedCheckpoint, path: str) -> bool:
        """Whether the leaf at `path` is the same in both, to the bit."""
        name = self.architecture.locate_leaf(path)[0]
        mine, theirs = self.tensors.get(name), other.tensors.get(name)
        return mine is not None and theirs is not None and np.array_equal(mine.read(), theirs.read())

    def list_problems(
        self, leaf_shapes: dict[str, tuple[int, ...]], tied_leaves: frozenset[str] = frozenset()
    ) -> list[str]:
        """What does not fit the leaves wanted of it (path → shape), a line each; `tied` come from elsewhere."""
        wanted = dict(
            pair for path, shape in leaf_shapes.items() for pair in self.architecture.list_hf_tensors(path, shape)
        )
        known = set(wanted) | {self.architecture.locate_leaf(path)[0] for path in tied_leaves}
        ties = dict(self.architecture.tied_tensors)
        lines = [f"missing: {list_names(missing)}"] if (missing := sorted(set(wanted) - set(self.tensors))) else []
        if unexpected := sorted(set(self.tensors) - known - set(ties)):
            lines.append(f"unexpected: {list_names(unexpected)}")
        for name, shape in wanted.items():
            if name in self.tensors and self.tensors[name].shape != shape:
                lines.append(f"{name} is {list(self.tensors[name].shape)} and should be {list(shape)}")
            elif name in self.tensors and "float" not in self.tensors[name].dtype:
                lines.append(f"{name} holds {self.tensors[name].dtype}; only floating-point numbers are read")
        if not lines:
            lines = [line for name in wanted if (line := self.describe_bad_values(name))]
        if not lines:
            lines = [line for copy, original in ties.items() if (line := self.describe_tie_mismatch(copy, original))]
        return lines

    def describe_bad_values(self, name: str) -> str | None:
        """Why the numbers of a tensor are of no use."""
        try:
            return None if np.isfinite(self.tensors[name].read()).all() else f"{name} holds numbers that are not finite"
        except CheckpointError as error:
            return f"{name}: {error}"

    def describe_tie_mismatch(self, copy: str, original: str) -> str | None:
        """How a tensor differs from the one it should repeat."""
        if copy not in self.tensors or original not in self.tensors:
            return None
        a, b = self.tensors[copy], self.tensors[original]
        if a.shape != b.shape:
            return f"{copy} is {list(a.shape)} and should repeat {original}, which is {list(b.shape)}"
        largest = np.abs(a.read() - b.read()).max(initial=0.0)
        return None if largest == 0 else f"{copy} should repeat {original} and differs by up to {largest:.3g}"


def read_transformers_folder(folder: Path) -> PublishedCheckpoint:
    """The checkpoint in a folder of transformers. Raises `CheckpointError` for one that cannot be read."""
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}")
    config = read_json(folder / "config.json")
    entries, files = read_weights(folder)
    return interpret_checkpoint(config, entries, (folder / "config.json", *files))


def interpret_checkpoint(
    hf_config: dict, tensors: dict[str, LazyTensor], files: tuple[Path, ...]
) -> PublishedCheckpoint:
    """What a configuration and tensors are together."""
    architecture = identify_architecture(hf_config, tensors)
    tensors = modernize_tensor_names(architecture, tensors)
    try:
        model = architecture.read_config(hf_config)
    except ValueError as error:
        raise CheckpointError(f"config.json: {error}") from None
    if model.num_layers > len(tensors):
        raise CheckpointError(
            f"config.json: num_hidden_layers={model.num_layers}, and there are {len(tensors)} tensors"
        )
    if has_different_groups(model):
        raise CheckpointError(
            f"config.json: num_hidden_groups={model.num_groups} with num_hidden_layers={model.num_layers}: "
            "transformers rounds, and has a layer in another group than it is in here"
        )
    classes = dict.fromkeys(name for _, name in architecture.model_classes)
    named = hf_config.get("architectures") or []
    if not isinstance(named, list) or (named and not any(name in classes for name in map(str, named))):
        raise CheckpointError(f"config.json: architectures={shown(named)} names none of {', '.join(classes)}")
    if model.always_project and model.embedding_size == model.hidden_size:
        model, tensors = drop_identity_projection(architecture, model, tensors)
    found = frozenset(filter(None, (architecture.find_part(name) for name in tensors))) - {"encoder"}
    if model.activation != "gelu" and (fixed := [part for part in architecture.gelu_heads if part in found]):
        raise CheckpointError(f"config.json: hidden_act={hf_config['hidden_act']!r} with a {fixed[0]} head of gelu")
    return PublishedCheckpoint(
        architecture, model, infer_objective(architecture, hf_config, model, found), found, tensors, files
    )


def identify_architecture(hf_config: dict, tensors: dict[str, LazyTensor]) -> Architecture:
    """The architecture by the configuration's model_type or, where it has none, by the tensors' names."""
    given = hf_config.get("model_type")
    if given is None:
        given = next((root for root in ARCHITECTURES if any(name.startswith(f"{root}.") for name in tensors)), None)
        given = given or "bert"
    if not isinstance(given, str) or given not in ARCHITECTURES:
        raise CheckpointError(f"config.json: model_type={given!r} is not one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[given]


def modernize_tensor_names(architecture: Architecture, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors under the names of today: TensorFlow's old names of layer norms, and names without the family."""
    root, renamed = f"{architecture.name}.", {}
    bare = not any(name.startswith(root) for name in tensors)
    for name, entry in tensors.items():
        if re.search(BUFFER_PATTERN, name):
            continue
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        if bare and architecture.find_part(root + name):
            name = root + name
        if name in renamed:
            raise CheckpointError(f"two tensors have the name {name}")
        renamed[name] = entry
    for copy, original in architecture.tied_tensors:  # a file may hold a tied tensor under its second name only
        if original not in renamed and copy in renamed:
            renamed[original] = renamed[copy]
    return renamed


def drop_identity_projection(architecture: Architecture, config: EncoderConfig, tensors: dict[str, LazyTensor]):
    """Model and tensors without a projection that changes nothing, such as the export of a model that has none."""
    kernel, bias = (architecture.locate_leaf(f"encoder/project/{leaf}")[0] for leaf in ("kernel", "bias"))
    square = (config.hidden_size, config.hidden_size)
    if kernel not in tensors or bias not in tensors or tensors[kernel].shape != square:
        return config, tensors
    if tensors[bias].read().any() or not np.array_equal(tensors[kernel].read(), np.eye(config.hidden_size)):
        return config, tensors
    rest = {name: entry for name, entry in tensors.items() if name not in (kernel, bias)}
    return replace(config, always_project=False), rest


def infer_objective(architecture: Architecture, hf_config: dict, encoder_config: EncoderConfig, heads: frozenset[str]):
    """What a checkpoint with these parts was trained for last."""
    if "classes" in heads:
        key, default = architecture.classifier_dropout_field
        dropout, names = hf_config.get(key, default), read_label_names(hf_config)
        dropout = encoder_config.hidden_dropout if dropout is None else dropout
        kind = hf_config.get("problem_type")
        if kind not in (None, choose_problem_type(names)):
            raise CheckpointError(
                f"config.json: problem_type={shown(kind)} with num_labels={len(names)}; "
                f"only {choose_problem_type(names)!r} can be read with it"
            )
        try:
            return Classification(names, architecture.classifier_head, dropout)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"config.json: {error}") from None
    if "spans" in heads:
        return SpanPrediction()
    if "replaced" in heads:
        return ReplacedTokenDetection(generator_width=None)
    if "tokens" in heads or "pair" in heads:
        return MaskedLM(Masking(), architecture.sentence_task if "pair" in heads else None)
    return EncoderOnly("pooler" in heads)


def read_label_names(hf_config: dict) -> tuple[str, ...]:
    """The names of the classes. Raises `CheckpointError` where they are not numbered from 0 on."""
    names = hf_config.get("id2label")
    count = hf_config.get("num_labels", len(names) if isinstance(names, dict) else 2)
    if type(count) is not int or not 0 < count < 100_000:
        raise CheckpointError(f"config.json: num_labels={count!r} is not a number of classes")
    if not isinstance(names, dict) or len(names) != count:
        return tuple(f"LABEL_{i}" for i in range(count))
    if set(names) != {str(i) for i in range(count)} or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"config.json: id2label must name the classes 0 to {count - 1}")
    return tuple(names[str(i)] for i in range(count))


def choose_problem_type(label_names: tuple[str, ...]) -> str:
    """transformers' word for what is learned of these classes."""
    return "regression" if len(label_names) == 1 else "single_label_classification"


def build_label_config(architecture: Architecture, objective) -> dict:
    """What config.json says of an objective's classes."""
    if not isinstance(objective, Classification):
        return {}
    return {
        "id2label": {str(i): name for i, name in enumerate(objective.labels)},
        "label2id": {name: i for i, name in enumerate(objective.labels)},
        "problem_type": choose_problem_type(objective.labels),
        architecture.classifier_dropout_field[0]: objective.head_dropout,
    }
