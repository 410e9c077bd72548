"""A published checkpoint: what its configuration and its tensors say it is."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as shown
from typing import Any

import numpy as np

from encoders.exchange.architectures import ARCHITECTURES, BUFFERS, Architecture, groups_differ
from encoders.exchange.weights import CheckpointError, Entry, listed, read_json, weights
from encoders.model.config import Model
from encoders.objectives.masked_lm import Joint
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokens
from encoders.tasks.classification import Classification
from encoders.tasks.encoder_only import Features
from encoders.tasks.question_answering import Spans


@dataclass(frozen=True, eq=False)
class Published:
    """`entries` are its tensors by their names today; `found` its parts beside the encoder."""

    architecture: Architecture
    model: Model
    objective: Any
    found: frozenset[str]
    entries: dict[str, Entry]
    files: tuple[Path, ...]

    def tensor(self, path: str, layer: int = 0) -> np.ndarray:
        """The leaf at `path`, or one layer of it, as ours: kernels transposed."""
        theirs, kind = self.architecture.place(path)
        numbers = self.entries[theirs.format(layer)].read()
        return numbers.T if kind == "kernel" else numbers

    def same(self, other: Published, path: str) -> bool:
        """Whether the leaf at `path` is the same in both, to the bit."""
        name = self.architecture.place(path)[0]
        mine, theirs = self.entries.get(name), other.entries.get(name)
        return mine is not None and theirs is not None and np.array_equal(mine.read(), theirs.read())

    def problems(self, leaves: dict[str, tuple[int, ...]], tied: frozenset[str] = frozenset()) -> list[str]:
        """What does not fit the leaves wanted of it (path → shape), a line each; `tied` come from elsewhere."""
        wanted = dict(pair for path, shape in leaves.items() for pair in self.architecture.tensors(path, shape))
        known = set(wanted) | {self.architecture.place(path)[0] for path in tied}
        ties = dict(self.architecture.ties)
        lines = [f"missing: {listed(missing)}"] if (missing := sorted(set(wanted) - set(self.entries))) else []
        if unexpected := sorted(set(self.entries) - known - set(ties)):
            lines.append(f"unexpected: {listed(unexpected)}")
        for name, shape in wanted.items():
            if name in self.entries and self.entries[name].shape != shape:
                lines.append(f"{name} is {list(self.entries[name].shape)} and should be {list(shape)}")
            elif name in self.entries and "float" not in self.entries[name].dtype:
                lines.append(f"{name} holds {self.entries[name].dtype}; only floating-point numbers are read")
        if not lines:
            lines = [line for name in wanted if (line := self.unsound(name))]
        if not lines:
            lines = [line for copy, original in ties.items() if (line := self.disagreement(copy, original))]
        return lines

    def unsound(self, name: str) -> str | None:
        """Why the numbers of a tensor are of no use."""
        try:
            return None if np.isfinite(self.entries[name].read()).all() else f"{name} holds numbers that are not finite"
        except CheckpointError as error:
            return f"{name}: {error}"

    def disagreement(self, copy: str, original: str) -> str | None:
        """How a tensor differs from the one it should repeat."""
        if copy not in self.entries or original not in self.entries:
            return None
        a, b = self.entries[copy], self.entries[original]
        if a.shape != b.shape:
            return f"{copy} is {list(a.shape)} and should repeat {original}, which is {list(b.shape)}"
        largest = np.abs(a.read() - b.read()).max(initial=0.0)
        return None if largest == 0 else f"{copy} should repeat {original} and differs by up to {largest:.3g}"


def read(folder: Path) -> Published:
    """The checkpoint in a folder of transformers. Raises `CheckpointError` for one that cannot be read."""
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}")
    config = read_json(folder / "config.json")
    entries, files = weights(folder)
    return interpret(config, entries, (folder / "config.json", *files))


def interpret(config: dict, entries: dict[str, Entry], files: tuple[Path, ...]) -> Published:
    """What a configuration and tensors are together."""
    architecture = identify(config, entries)
    entries = named_today(architecture, entries)
    try:
        model = architecture.read(config)
    except ValueError as error:
        raise CheckpointError(f"config.json: {error}") from None
    if model.layers > len(entries):
        raise CheckpointError(f"config.json: num_hidden_layers={model.layers}, and there are {len(entries)} tensors")
    if groups_differ(model):
        raise CheckpointError(
            f"config.json: num_hidden_groups={model.groups} with num_hidden_layers={model.layers}: "
            "transformers rounds, and has a layer in another group than it is in here"
        )
    classes = dict.fromkeys(name for _, name in architecture.classes)
    named = config.get("architectures") or []
    if not isinstance(named, list) or (named and not any(name in classes for name in map(str, named))):
        raise CheckpointError(f"config.json: architectures={shown(named)} names none of {', '.join(classes)}")
    if model.always_project and model.embedding == model.hidden:
        model, entries = without_identity(architecture, model, entries)
    found = frozenset(filter(None, (architecture.part(name) for name in entries))) - {"encoder"}
    if model.activation != "gelu" and (fixed := [part for part in architecture.always_gelu if part in found]):
        raise CheckpointError(f"config.json: hidden_act={config['hidden_act']!r} with a {fixed[0]} head of gelu")
    return Published(architecture, model, objective(architecture, config, model, found), found, entries, files)


def identify(config: dict, entries: dict[str, Entry]) -> Architecture:
    """The architecture by the configuration's model_type or, where it has none, by the tensors' names."""
    given = config.get("model_type")
    if given is None:
        given = next((root for root in ARCHITECTURES if any(name.startswith(f"{root}.") for name in entries)), None)
        given = given or "bert"
    if not isinstance(given, str) or given not in ARCHITECTURES:
        raise CheckpointError(f"config.json: model_type={given!r} is not one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[given]


def named_today(architecture: Architecture, entries: dict[str, Entry]) -> dict[str, Entry]:
    """The tensors under the names of today: TensorFlow's old names of layer norms, and names without the family."""
    root, renamed = f"{architecture.name}.", {}
    bare = not any(name.startswith(root) for name in entries)
    for name, entry in entries.items():
        if re.search(BUFFERS, name):
            continue
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        if bare and architecture.part(root + name):
            name = root + name
        if name in renamed:
            raise CheckpointError(f"two tensors have the name {name}")
        renamed[name] = entry
    for copy, original in architecture.ties:  # a file may hold a tied tensor under its second name only
        if original not in renamed and copy in renamed:
            renamed[original] = renamed[copy]
    return renamed


def without_identity(architecture: Architecture, model: Model, entries: dict[str, Entry]):
    """Model and tensors without a projection that changes nothing, such as the export of a model that has none."""
    kernel, bias = (architecture.place(f"encoder/project/{leaf}")[0] for leaf in ("kernel", "bias"))
    square = (model.hidden, model.hidden)
    if kernel not in entries or bias not in entries or entries[kernel].shape != square:
        return model, entries
    if entries[bias].read().any() or not np.array_equal(entries[kernel].read(), np.eye(model.hidden)):
        return model, entries
    rest = {name: entry for name, entry in entries.items() if name not in (kernel, bias)}
    return replace(model, always_project=False), rest


def objective(architecture: Architecture, config: dict, model: Model, found: frozenset[str]):
    """What a checkpoint with these parts was trained for last."""
    if "classes" in found:
        key, default = architecture.class_dropout
        dropout, names = config.get(key, default), labels(config)
        dropout = model.dropout if dropout is None else dropout
        kind = config.get("problem_type")
        if kind not in (None, problem_type(names)):
            raise CheckpointError(
                f"config.json: problem_type={shown(kind)} with num_labels={len(names)}; "
                f"only {problem_type(names)!r} can be read with it"
            )
        try:
            return Classification(names, architecture.classifier, dropout)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"config.json: {error}") from None
    if "spans" in found:
        return Spans()
    if "replaced" in found:
        return ReplacedTokens(width=None)
    if "tokens" in found or "pair" in found:
        return Joint(Masking(), architecture.sentences if "pair" in found else None)
    return Features("pooler" in found)


def labels(config: dict) -> tuple[str, ...]:
    """The names of the classes. Raises `CheckpointError` where they are not numbered from 0 on."""
    names = config.get("id2label")
    count = config.get("num_labels", len(names) if isinstance(names, dict) else 2)
    if type(count) is not int or not 0 < count < 100_000:
        raise CheckpointError(f"config.json: num_labels={count!r} is not a number of classes")
    if not isinstance(names, dict) or len(names) != count:
        return tuple(f"LABEL_{i}" for i in range(count))
    if set(names) != {str(i) for i in range(count)} or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"config.json: id2label must name the classes 0 to {count - 1}")
    return tuple(names[str(i)] for i in range(count))


def problem_type(names: tuple[str, ...]) -> str:
    """transformers' word for what is learned of these classes."""
    return "regression" if len(names) == 1 else "single_label_classification"


def classes_in_config(architecture: Architecture, objective) -> dict:
    """What config.json says of an objective's classes."""
    if not isinstance(objective, Classification):
        return {}
    return {
        "id2label": {str(i): name for i, name in enumerate(objective.labels)},
        "label2id": {name: i for i, name in enumerate(objective.labels)},
        "problem_type": problem_type(objective.labels),
        architecture.class_dropout[0]: objective.dropout,
    }
