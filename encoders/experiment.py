"""An experiment as a value: overridden, varied, described, fingerprinted, and saved as JSON that reads back equal."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import itertools
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from encoders.data.prepare import Data
from encoders.data.stream import Phase
from encoders.model.config import Model, aside
from encoders.objectives.joint import Joint
from encoders.objectives.rtd import ReplacedTokens
from encoders.training.log import Cadence
from encoders.training.optimizer import AdamW, Lamb
from encoders.training.sharding import Mesh


class ExperimentError(ValueError):
    """A field or a value that an experiment cannot have."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All that determines a run, and beside it what only names, places or records it (mesh, name, cadence).

    Raises `ExperimentError` for parts that do not fit together.
    """

    name: str = aside()
    model: Model
    objective: Joint | ReplacedTokens
    data: Data
    optimizer: AdamW | Lamb
    phases: tuple[Phase, ...]
    seed: int = 0
    accumulate: int = 1  # micro-steps a batch is split into
    mesh: Mesh = aside(Mesh())
    cadence: Cadence = aside(Cadence())

    def __post_init__(self):
        def require(holds, message):
            if not holds:
                raise ExperimentError(f"{self.name}: {message}")

        require(self.name and not set(self.name) & set("/\\ \t\n") and self.name[0] != ".", "is no name for a folder")
        require(self.phases, "phases is empty; a run needs at least one")
        check_choices(self)
        require(0 <= self.seed < 2**31, f"seed={self.seed} must be from 0 to 2147483647")
        require(self.accumulate >= 1, f"accumulate={self.accumulate} must be at least 1")
        untils = [phase.until for phase in self.phases]
        require(untils == sorted(set(untils)), f"phases.until={untils} must rise from phase to phase")
        spec = self.data.vocabulary
        require(
            spec.path or spec.size == self.model.vocab,
            f"data.vocabulary.size={spec.size} and model.vocab={self.model.vocab} differ; set both",
        )
        warmup = self.optimizer.warmup
        require(warmup <= self.steps, f"optimizer.warmup={warmup} is more than the {self.steps} steps of phases.until")
        for phase in self.phases:
            positions = self.model.positions
            require(
                phase.length <= positions,
                f"phases.length={phase.length} is longer than model.positions={positions}",
            )
            provided = {phase.format.label} - {None}
            missing = ", ".join(sorted(self.objective.needs - provided))
            have = ", ".join(sorted(provided)) or "no label"
            kind = type(phase.format).__name__
            require(not missing, f"the objective needs {missing}, and the format {kind} provides {have}")
            require(
                phase.batch % self.accumulate == 0,
                f"phases.batch={phase.batch} is not a multiple of accumulate={self.accumulate}",
            )

    @property
    def steps(self) -> int:
        return self.phases[-1].until


def check_choices(value: Any, path: str = "") -> None:
    """Every field that has a list of choices holds one of them. Raises `ExperimentError`."""
    if isinstance(value, tuple):
        for i, item in enumerate(value):
            check_choices(item, f"{path}.{i}")
    elif is_dataclass(value) and not isinstance(value, type):
        for name, kind in typing.get_type_hints(type(value)).items():
            given, here = getattr(value, name), f"{path}.{name}" if path else name
            if typing.get_origin(kind) is typing.Literal and given not in typing.get_args(kind):
                raise ExperimentError(f"{here}={given!r} is not one of {', '.join(map(str, typing.get_args(kind)))}")
            check_choices(given, here)


# Changing values ------------------------------------------------------------------------------------------------------


def override(experiment: Experiment, settings: Iterable[str]) -> Experiment:
    """`experiment` with settings such as "model.layers=4", each read by the declared type of its field.

    A phase is named by its number, or `*` for all: "phases.*.batch=8". Parts that are chosen by class take the class's
    name: "objective.sentences=SentenceOrder". All settings apply at once, so that those which belong together can
    differ from the old values together. Raises `ExperimentError` with a suggestion.

    >>> from encoders.training.optimizer import AdamW
    >>> change(AdamW(rate=1e-3, warmup=10), {"rate": 0.1}).rate
    0.1
    """
    changes: dict = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ExperimentError(f"--set {setting!r} must be of the form a.b=value")
        node = changes
        *parents, leaf = path.strip().split(".")
        for name in parents:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ExperimentError(f"--set {path}: {name} is set as a whole and in part")
        if isinstance(node.get(leaf), dict):
            raise ExperimentError(f"--set {path}: {leaf} is set as a whole and in part")
        node[leaf] = text.strip()
    return change(experiment, changes)


def change(value: Any, changes: Mapping[str, Any], path: str = "") -> Any:
    """A dataclass (or tuple of them) with a nested dict of changes; texts are read by the field's declared type."""
    if not isinstance(changes, Mapping):
        raise ExperimentError(f"{path} cannot be set as a whole; set its fields or write an experiment file")
    if isinstance(value, tuple) and any(map(is_dataclass, value)):
        numbers = [str(i) for i in range(len(value))]
        for name in changes:
            if name not in (*numbers, "*"):
                raise ExperimentError(f"{path} has no {name!r}; it has {', '.join(numbers)} and * for all")
        for name, inner in changes.items():
            each = range(len(value)) if name == "*" else [int(name)]
            value = tuple(change(v, inner, f"{path}.{i}") if i in each else v for i, v in enumerate(value))
        return value
    if not is_dataclass(value) or isinstance(value, type):
        raise ExperimentError(f"{path} is {value!r} and has no fields to set")
    hints = typing.get_type_hints(type(value))
    settable = {f.name for f in fields(value)}
    new = {}
    for name, inner in changes.items():
        here = f"{path}.{name}" if path else name
        if name not in settable:
            near = difflib.get_close_matches(name, settable, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ExperimentError(
                f"{path or 'an experiment'} has no {name!r}{hint}; it has {', '.join(sorted(settable))}"
            )
        if isinstance(inner, Mapping):
            new[name] = change(getattr(value, name), inner, here)
        else:
            new[name] = read(inner, hints[name], here) if isinstance(inner, str) else inner
    try:
        return replace(value, **new)
    except ExperimentError:
        raise
    except ValueError as error:
        raise ExperimentError(f"--set {path or 'of the experiment'}: {error}") from None


def read(text: str, kind: Any, path: str) -> Any:
    """The value that `text` stands for in a field of type `kind`."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        if text in inner:
            return text
        raise ExperimentError(f"{path}={text!r} is not one of {', '.join(map(str, inner))}")
    if origin in (typing.Union, types.UnionType):
        if type(None) in inner and text.lower() in ("none", "null", ""):
            return None
        failures = []
        for option in inner:
            if option is not type(None):
                try:
                    return read(text, option, path)
                except ExperimentError as error:
                    failures.append(error)
                    if text == getattr(option, "__name__", None):
                        raise
        if len(failures) == 1:
            raise failures[0]
        raise ExperimentError(
            f"{path}={text!r} is not one of {', '.join(o.__name__ for o in inner if o is not type(None))}"
        )
    if origin is tuple:
        # Brackets around the whole; those of a glob such as [ab]*.txt stay.
        inside = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
        parts = [part.strip() for part in inside.split(",") if part.strip()]
        kinds = [inner[0]] * len(parts) if inner[-1] is Ellipsis else list(inner)
        if len(parts) != len(kinds):
            raise ExperimentError(f"{path}={text!r} must have {len(kinds)} values, separated by commas")
        return tuple(read(part, k, path) for part, k in zip(parts, kinds, strict=True))
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise ExperimentError(f"{path}={text!r} is not one of true, false")
    if kind in (int, float):
        try:
            number = float(text.replace("_", ""))
            if not math.isfinite(number):
                raise ValueError
            if kind is int and number != int(number):
                raise ValueError
            return kind(number) if kind is float or "e" in text.lower() else int(text)
        except (ValueError, OverflowError):
            what = "a whole number" if kind is int else "a number"
            raise ExperimentError(f"{path}={text!r} is not {what}") from None
    if kind is str:
        return text
    if is_dataclass(kind):
        needed = [f.name for f in fields(kind) if f.default is dataclasses.MISSING]
        if text == kind.__name__ and not needed:
            return kind()
        hint = f"; set its fields, such as {path}.{fields(kind)[0].name}=" if fields(kind) else ""
        raise ExperimentError(f"{path}={text!r} is not {kind.__name__}{hint}")
    raise ExperimentError(f"{path} cannot be set on the command line; write an experiment file")


def label(value: Any) -> str:
    """`value` as a part of a name."""
    if isinstance(value, tuple):
        return "+".join(map(label, value)) or "none"
    if isinstance(value, type):
        return value.__name__
    return type(value).__name__ if is_dataclass(value) else str(value)


def vary(base: Experiment, axes: Mapping[str, Sequence | Mapping[str, Any]]) -> list[Experiment]:
    """Every combination of the values in `axes`, named after what differs from `base`.

    An axis is a path and its values, or its values by label: `{"model.share": {"all": BOTH, "none": ()}}`.
    """
    choices = []
    for path, values in axes.items():
        named = values if isinstance(values, Mapping) else {label(value): value for value in values}
        if len(named) != len(values):
            raise ExperimentError(
                f"{path}: two of the values have one name; give them names of their own, {{name: value}}"
            )
        leaf = path.rpartition(".")[2]
        choices.append(
            [(path, part if isinstance(values, Mapping) else f"{leaf}{part}", v) for part, v in named.items()]
        )
    members = []
    for combination in itertools.product(*choices):
        changes: dict = {"name": "-".join([base.name, *(part for _, part, _ in combination)])}
        for path, _, value in combination:
            node = changes
            *parents, leaf = path.split(".")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value
        members.append(change(base, changes))
    return members


# Values as JSON -------------------------------------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """Dataclasses as `{"class": ..., fields}`, classes as `{"type": ...}`; only classes of `encoders` are named."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": class_name(type(value))} | {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, type):
        return {"type": class_name(value)}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value


def class_name(kind: type) -> str:
    if kind.__module__.split(".")[0] != "encoders":
        raise ExperimentError(
            f"{kind.__module__}.{kind.__name__} is not part of the encoders package, so a run with it could not be "
            "opened again; put its file into encoders/"
        )
    return f"{kind.__module__}.{kind.__qualname__}"


def from_json(value: Any) -> Any:
    """The value that `to_json` was given. Names outside of `encoders` are refused, and nothing is executed."""
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    kind = find_class(value.get("class", value.get("type", "")))
    if "type" in value:
        return kind
    if not is_dataclass(kind):
        raise ExperimentError(f"{value['class']} is not a value")
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(value) - known - {"class"})
    if unknown:
        raise ExperimentError(f"{value['class']} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    try:
        return kind(**{name: from_json(item) for name, item in value.items() if name != "class"})
    except TypeError as error:
        raise ExperimentError(f"{value['class']} cannot be read: {error}") from None


def find_class(name: str) -> type:
    module, _, attribute = str(name).rpartition(".")
    try:
        if module.split(".")[0] != "encoders":
            raise ImportError
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        raise ExperimentError(f"{name!r} is not a class of the encoders package") from None
    if not isinstance(found, type) or found.__module__ != module:
        raise ExperimentError(f"{name!r} is not a class of the encoders package")
    return found


# What makes two experiments the same ----------------------------------------------------------------------------------


def essence(value: Any) -> Any:
    """`value` as JSON without what changes no number, and without fields that have their default.

    Leaving defaults out keeps the fingerprints of old experiments when a field is added later.
    """
    if is_dataclass(value) and not isinstance(value, type):
        kept = {}
        for f in fields(value):
            given = getattr(value, f.name)
            if not f.metadata.get("aside") and (f.default is dataclasses.MISSING or given != f.default):
                kept[f.name] = essence(given)
        return {"class": type(value).__name__} | kept
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, tuple):
        return [essence(item) for item in value]
    if isinstance(value, float) and value.is_integer():  # 1 and 1.0 are equal
        return int(value)
    return value


def fingerprint(experiment: Experiment, store_key: str) -> str:
    """16 hexadecimal digits that two experiments share if and only if they compute the same numbers.

    `store_key` stands for `data`: the content of a store rather than the path of its corpus.
    """
    content = essence(experiment) | {"data": store_key}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of an experiment by its path, the class of each part included."""
    if is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: getattr(value, f.name) for f in fields(value) if not f.metadata.get("aside")}
        start = {path: type(value).__name__} if path else {}
        parts = (flat(item, f"{path}.{name}" if path else name) for name, item in inner.items())
    elif isinstance(value, tuple) and any(map(is_dataclass, value)):
        start = {path: f"{len(value)} of them"}
        parts = (flat(item, f"{path}.{i}") for i, item in enumerate(value))
    else:
        return {path: value.__name__ if isinstance(value, type) else value}
    return start | {k: v for part in parts for k, v in part.items()}


def differences(old: Experiment, new: Experiment) -> list[str]:
    """What differs between two experiments, as "model.layers is 4 there and 6 here"."""
    a, b = flat(old), flat(new)
    none = object()
    return [
        f"{path} is {a.get(path, 'absent')} there and {b.get(path, 'absent')} here"
        for path in sorted(a.keys() | b.keys())
        if a.get(path, none) != b.get(path, none)
    ]


def describe(experiment: Experiment) -> str:
    """The experiment as lines of `path = value`."""
    return "\n".join(f"{path} = {value}" for path, value in flat(experiment).items())
